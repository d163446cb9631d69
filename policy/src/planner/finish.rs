//! From chosen moves to a plan: exact figures in the order of execution, refusals, risks, notes.

use foreshard_domain::{PerResource, PlanId, Resource};
use std::collections::{BTreeMap, BTreeSet};

use super::headroom::if_lost;
use super::reasons::{self, Figures};
use super::rules::misplaced;
use super::search::{Chosen, Search};
use super::{Deferred, PlanError, PlanReport, Planned};
use crate::dense::{Model, NodeLoad};
use crate::{Considered, FORMAT, Move, NodeRisk, Plan, Refused, RuleName, Score};

/// Loads as the moves so far make them.
struct Prefix {
    at: Vec<usize>,
    /// With all copies: what is charged.
    loads: Vec<NodeLoad>,
    /// Without the copies that relieved nodes may carry: what is held against the bounds.
    held: Vec<NodeLoad>,
}

/// A search that is over, its moves with exact figures.
pub(crate) struct Appended<'m, 'a> {
    pub search: Search<'m, 'a>,
    moves: Vec<Move>,
    prefix: Prefix,
}

impl<'m, 'a> Appended<'m, 'a> {
    pub fn new(mut search: Search<'m, 'a>) -> Self {
        let mut chosen = std::mem::take(&mut search.chosen);
        chosen.sort_by_key(|c| (c.start.transfer.start, c.start.transfer.shard));
        let (moves, prefix) = loop {
            let (moves, prefix, dropped) = append_all(&mut search, &chosen);
            if dropped.is_empty() {
                break (moves, prefix);
            }
            chosen.retain(|c| !dropped.contains(&c.start.transfer.shard));
        };
        Self { search, moves, prefix }
    }

    /// Gain less cost of all moves.
    pub fn net(&self) -> f64 {
        self.moves.iter().map(|m| m.expected_gain - m.expected_cost).sum()
    }

    /// More of what must be done, then a higher net; what floats cannot tell apart is no better.
    pub fn better_than(&self, other: &Self) -> bool {
        let must = |p: &Self| p.moves.iter().filter(|m| m.reason.rule == RuleName::Constraint).count();
        must(self) > must(other) || (must(self) == must(other) && self.net() > other.net() + 1e-3)
    }

    /// The most that any other plan could net more: what the nodes are charged after this one, and what its moves cost
    /// but for one, since what there is to gain is gone by then.
    pub fn could_net_more(&self) -> f64 {
        let model = self.search.model;
        let left: f64 = (0..model.nodes.len())
            .map(|node| model.charge(node, &self.prefix.loads[node], &self.search.base[node].1))
            .sum();
        let costs = || self.moves.iter().map(|m| m.expected_cost);
        let least = costs().fold(f64::INFINITY, f64::min);
        left + if self.moves.is_empty() { 0.0 } else { costs().sum::<f64>() - least }
    }
}

/// The plan of a search.
pub(crate) fn finish(appended: Appended<'_, '_>, fingerprint: String) -> Result<Planned, PlanError> {
    let Appended { search, moves, prefix } = appended;
    let model = search.model;
    let moved: BTreeMap<usize, usize> =
        prefix.at.iter().enumerate().filter(|(s, at)| model.shards[*s].node != **at).map(|(s, at)| (s, *at)).collect();
    let (considered, refused) = considered(&search, &moved);
    let nodes = risks(&search, &prefix);
    let notes = notes(&search, &prefix, &nodes);
    let report = report(&search);
    let input = model.input;
    let plan = Plan {
        format: FORMAT,
        id: PlanId::new(Plan::content_id(&fingerprint, &moves)).map_err(PlanError::Id)?,
        parent: input.parent.clone(),
        input_fingerprint: fingerprint,
        created_at: input.now,
        moves,
        considered,
        refused,
        nodes,
        notes,
    };
    Ok(Planned { plan, report })
}

/// All moves in their order with exact figures. Shards whose move is left out although its partner was appended, or the
/// other way round, are returned: then the moves count for nothing and must be appended again without both.
fn append_all(search: &mut Search<'_, '_>, chosen: &[Chosen]) -> (Vec<Move>, Prefix, BTreeSet<usize>) {
    let model = search.model;
    let mut prefix = Prefix {
        at: model.shards.iter().map(|s| s.node).collect(),
        loads: search.base.iter().map(|(load, _)| load.clone()).collect(),
        held: search.base.iter().map(|(load, _)| load.clone()).collect(),
    };
    let (mut moves, mut dropped) = (Vec::new(), BTreeSet::new());
    let mut nets: BTreeMap<usize, f64> = BTreeMap::new();
    for chosen in chosen {
        let t = &chosen.start.transfer;
        match append(search, &mut prefix, chosen) {
            Ok(done) => {
                nets.insert(t.shard, done.expected_gain - done.expected_cost);
                moves.push(done);
            }
            Err(refused) => {
                search.defer(t.shard, t.target, refused);
                dropped.extend(chosen.with.map(|with| [t.shard, with]).into_iter().flatten());
            }
        }
    }
    for (shard, with) in chosen.iter().filter_map(|c| Some((c.start.transfer.shard, c.with?))) {
        match (nets.get(&shard), nets.get(&with)) {
            (Some(a), Some(b)) if a + b > 0.0 => {}
            _ => dropped.extend([shard, with]),
        }
    }
    (moves, prefix, dropped)
}

/// Appends a move to the prefix with its exact figures, or says why it must not be there after all: a move that was
/// chosen later may be carried out earlier and take its gain or its room.
fn append(search: &Search<'_, '_>, prefix: &mut Prefix, chosen: &Chosen) -> Result<Move, Refused> {
    let model = search.model;
    let settings = &model.input.settings;
    let t = &chosen.start.transfer;
    let ends = [t.source, t.target];
    let charge = |loads: &[NodeLoad; 2]| -> f64 {
        ends.iter().zip(loads).map(|(node, load)| model.charge(*node, load, &search.base[*node].1)).sum()
    };
    let before = ends.map(|node| prefix.loads[node].clone());
    let mut after = before.clone();
    ends.iter().zip(&mut after).for_each(|(node, load)| model.apply_shard(load, t, *node));
    let moved = charge(&after);
    ends.iter().zip(&mut after).for_each(|(node, load)| model.apply_copy(load, t, *node));
    let communication = model.place_change(t.shard, t.source, t.target, &prefix.at);
    let gain = charge(&before) - moved + (-communication).max(0.0);
    let cost = (charge(&after) - moved).max(0.0) + settings.churn_weight + communication.max(0.0);
    if chosen.because.is_none() && chosen.with.is_none() && gain <= cost {
        return Err(Refused::NotWorthIt { gain, needed: settings.needed(cost) });
    }
    let mut held = ends.map(|node| prefix.held[node].clone());
    for (node, load) in ends.iter().zip(&mut held) {
        let bounds = &search.base[*node].1;
        model.apply(load, t, *node, !bounds.relief);
        if !model.fits(load, bounds, model.firm(t)) {
            let detail = format!("{} would be over capacity after the moves before", model.nodes[*node].node.id);
            return Err(Refused::Hard { code: "no_capacity".into(), detail });
        }
    }
    let reason = reasons::reason(&Figures { search, chosen, before: &before, after: &after, gain, cost });
    let [source, target] = after;
    (prefix.loads[t.source], prefix.loads[t.target]) = (source, target);
    let [source, target] = held;
    (prefix.held[t.source], prefix.held[t.target]) = (source, target);
    prefix.at[t.shard] = t.target;
    let facts = model.shards[t.shard].facts;
    Ok(Move {
        shard: model.shards[t.shard].id.clone(),
        source: model.nodes[t.source].node.id.clone(),
        target: model.nodes[t.target].node.id.clone(),
        start: t.start,
        reason,
        expected_gain: gain,
        expected_cost: cost,
        with: chosen.with.map(|with| model.shards[with].id.clone()),
        predicted: chosen.start.prediction,
        data_bytes: facts.map_or(0.0, |f| f.data_bytes),
        write_bytes_per_s: facts.map_or(0.0, |f| f.write_bytes_per_s),
        cpu_share: chosen.start.cpu_share,
    })
}

/// A target and what was found of it.
type Tried = (usize, Result<Score, Refused>);

/// The best targets of each shard that moves or is at risk; all other refusals counted by code.
fn considered(search: &Search<'_, '_>, moved: &BTreeMap<usize, usize>) -> (Vec<Considered>, BTreeMap<String, u64>) {
    let model = search.model;
    let at_risk = |shard: usize| search.asking[model.shards[shard].node];
    let mut by_shard: BTreeMap<usize, Vec<Tried>> = BTreeMap::new();
    for ((shard, target), outcome) in &search.outcomes {
        by_shard.entry(*shard).or_default().push((*target, outcome.clone()));
    }
    let mut listed = Vec::new();
    let mut refused: BTreeMap<String, u64> = BTreeMap::new();
    let mut count = |code: &str, n: usize| {
        if n > 0 {
            *refused.entry(code.to_owned()).or_default() += u64::try_from(n).unwrap_or(u64::MAX);
        }
    };
    search.unseen.values().for_each(|n| count("targets_per_shard", *n));
    // What goes nowhere at all has its first targets listed, the others counted.
    for (shard, why) in &search.stays {
        let others: Vec<usize> = (0..model.nodes.len()).filter(|t| *t != model.shards[*shard].node).collect();
        let shown = if at_risk(*shard) { model.input.settings.search.listed_targets } else { 0 };
        count(why.code(), others.len().saturating_sub(shown));
        by_shard.insert(*shard, others.into_iter().take(shown).map(|t| (t, Err(why.clone()))).collect());
    }
    for (shard, mut outcomes) in by_shard {
        let goes = moved.get(&shard);
        outcomes.sort_by(|a, b| {
            let rank = |(target, outcome): &Tried| match outcome {
                _ if goes == Some(target) => (0, 0.0),
                Ok(score) => (1, score.cost - score.gain),
                Err(Refused::NotWorthIt { gain, needed }) => (2, needed - gain),
                Err(Refused::Limit { .. }) => (3, 0.0),
                Err(Refused::Hard { .. }) => (4, 0.0),
            };
            let (a_rank, b_rank) = (rank(a), rank(b));
            a_rank.0.cmp(&b_rank.0).then(a_rank.1.total_cmp(&b_rank.1)).then(a.0.cmp(&b.0))
        });
        let most = model.input.settings.search.listed_targets;
        let shown = if goes.is_some() || at_risk(shard) { most } else { 0 };
        for (rank, (target, outcome)) in outcomes.into_iter().enumerate() {
            if rank < shown {
                let (shard, target) = (model.shards[shard].id.clone(), model.nodes[target].node.id.clone());
                listed.push(Considered { shard, target, outcome });
            } else if let Err(why) = outcome {
                count(why.code(), 1);
            }
        }
    }
    (listed, refused)
}

fn risks(search: &Search<'_, '_>, prefix: &Prefix) -> Vec<NodeRisk> {
    let model = search.model;
    let minutes = model.grid.minutes();
    let mut on = vec![Vec::new(); model.nodes.len()];
    prefix.at.iter().enumerate().for_each(|(shard, node)| on[*node].push(shard));
    let base: Vec<&NodeLoad> = search.base.iter().map(|(load, _)| load).collect();
    let lost_before = if_lost(model, &base, &model.on, &search.weights);
    let lost_after = if_lost(model, &prefix.loads.iter().collect::<Vec<_>>(), &on, &search.weights);
    let nodes = model.nodes.iter().enumerate().map(|(i, node)| {
        let before = model.risk(i, &search.base[i].0, 1.0);
        let after = model.risk(i, &prefix.loads[i], 1.0);
        let excess = |risk: &PerResource<foreshard_domain::Risk>| -> f64 {
            let share = |r: &Resource| Some(risk[*r].expected_excess / model.capacity(i, *r)?);
            model.resources.iter().filter_map(share).sum::<f64>() * minutes
        };
        NodeRisk {
            node: node.node.id.clone(),
            before: before.map(|r| r.probability),
            after: after.map(|r| r.probability),
            excess_minutes: (excess(&before), excess(&after)),
            if_lost: (lost_before[i], lost_after[i]),
        }
    });
    nodes.collect()
}

fn notes(search: &Search<'_, '_>, prefix: &Prefix, nodes: &[NodeRisk]) -> Vec<String> {
    let model = search.model;
    let mut notes = model.notes.clone();
    let running: BTreeSet<usize> = model.running.iter().map(|t| t.shard).collect();
    let largest = PerResource::from_fn(|r| {
        let capacities: Option<Vec<f64>> = (0..model.nodes.len()).map(|n| model.capacity(n, r)).collect();
        capacities.map(|all| all.into_iter().fold(0.0, f64::max))
    });
    for (shard, s) in model.shards.iter().enumerate() {
        let misplaced = if model.constrained { misplaced(model, shard, &prefix.at) } else { None };
        if let Some(because) = misplaced.filter(|_| !running.contains(&shard)) {
            notes.push(format!("shard {} stays although {because}", s.id));
        }
        if search.asking[s.node] {
            notes.extend(too_big(model, shard, &largest));
        }
    }
    for (i, node) in model.nodes.iter().enumerate() {
        if let (Some(pin), Some(s)) = pinned_to_draining(model, i) {
            notes.push(format!("shard {s} is pinned to {pin}, which is being emptied; the pin holds"));
        }
        let left = Resource::ALL.into_iter().map(|r| nodes[i].after[r]).fold(0.0, f64::max);
        if left > model.input.settings.confidence {
            notes.push(format!("{} is over capacity with probability {left:.2} even with this plan", node.node.id));
        }
    }
    notes
}

fn pinned_to_draining<'a>(
    model: &Model<'a>,
    node: usize,
) -> (Option<&'a foreshard_domain::NodeId>, Option<&'a foreshard_domain::ShardId>) {
    let n = model.nodes[node].node;
    if n.state != foreshard_domain::NodeState::Draining {
        return (None, None);
    }
    let mut pinned = model.on[node].iter().map(|s| &model.shards[*s]).filter(|s| s.pin == Some(node));
    match pinned.next() {
        Some(s) => (Some(&n.id), Some(s.id)),
        None => (None, None),
    }
}

/// Says so if a shard alone is more than any node can carry.
fn too_big(model: &Model<'_>, shard: usize, largest: &PerResource<Option<f64>>) -> Option<String> {
    model.resources.iter().find_map(|r| {
        let largest = largest[*r]?;
        let lane = model.shards[shard].lanes[*r].as_deref()?;
        let mut rows = lane.chunks_exact(model.grid.scenarios).skip(model.grid.first);
        let over = rows.any(|row| row.iter().filter(|v| f64::from(**v) > largest).count() > model.may_exceed as usize);
        let id = model.shards[shard].id;
        over.then(|| format!("shard {id} alone is expected to need more {r} than any node has; split it or add a node"))
    })
}

fn report(search: &Search<'_, '_>) -> PlanReport {
    let model = search.model;
    let deferred = search.deferred.iter().map(|((shard, target), code)| Deferred {
        shard: model.shards[*shard].id.clone(),
        target: model.nodes[*target].node.id.clone(),
        code: code.clone(),
    });
    PlanReport {
        nodes_asking: search.asking.iter().filter(|asks| **asks).count(),
        evaluated: search.evaluated,
        deferred: deferred.collect(),
    }
}
