//! From chosen moves to a plan: exact figures in the order of execution, refusals, risks, notes.

use foreshard_domain::{PerResource, PlanId, Resource};
use std::collections::{BTreeMap, BTreeSet};

use super::reasons::{self, Figures};
use super::rules::misplaced;
use super::search::{Chosen, Search};
use super::{Deferred, PlanError, PlanReport, Planned};
use crate::dense::{Model, NodeLoad};
use crate::{Considered, FORMAT, Move, NodeRisk, Plan, Refused, Score};

/// Loads as the moves so far make them.
struct Prefix {
    at: Vec<usize>,
    /// With all copies: what is charged.
    loads: Vec<NodeLoad>,
    /// Without the copies that relieved nodes may carry: what is held against the bounds.
    held: Vec<NodeLoad>,
}

pub(crate) fn finish(mut search: Search<'_, '_>, fingerprint: String) -> Result<Planned, PlanError> {
    let model = search.model;
    let mut chosen = std::mem::take(&mut search.chosen);
    chosen.sort_by_key(|c| (c.start.transfer.start, c.start.transfer.shard));
    let mut prefix = Prefix {
        at: model.shards.iter().map(|s| s.node).collect(),
        loads: search.base.iter().map(|(load, _)| load.clone()).collect(),
        held: search.base.iter().map(|(load, _)| load.clone()).collect(),
    };
    let mut moves = Vec::new();
    for chosen in chosen {
        match append(&search, &mut prefix, &chosen) {
            Ok(done) => moves.push(done),
            Err(refused) => {
                let t = &chosen.start.transfer;
                search.defer(t.shard, t.target, refused);
            }
        }
    }
    let moved: BTreeMap<usize, usize> =
        prefix.at.iter().enumerate().filter(|(s, at)| model.shards[*s].node != **at).map(|(s, at)| (s, *at)).collect();
    let (considered, refused) = considered(&search, &moved);
    let nodes = risks(&search, &prefix);
    let notes = notes(&search, &prefix, &nodes);
    let report = report(&search);
    let input = model.input;
    let plan = Plan {
        format: FORMAT,
        id: plan_id(&fingerprint)?,
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

/// `plan-` and the first 16 digits of the fingerprint.
fn plan_id(fingerprint: &str) -> Result<PlanId, PlanError> {
    let digits: String = fingerprint.chars().take(16).collect();
    PlanId::new(format!("plan-{digits}")).map_err(PlanError::Id)
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
    let communication = model.communication_change(t.shard, t.source, t.target, &prefix.at);
    let gain = charge(&before) - moved + (-communication).max(0.0);
    let cost = (charge(&after) - moved).max(0.0) + settings.churn_weight + communication.max(0.0);
    if chosen.because.is_none() && gain <= cost {
        return Err(Refused::NotWorthIt { gain, needed: settings.needed(cost) });
    }
    let mut held = ends.map(|node| prefix.held[node].clone());
    for (node, load) in ends.iter().zip(&mut held) {
        let bounds = &search.base[*node].1;
        model.apply(load, t, *node, !bounds.relief);
        if !model.fits(load, bounds) {
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
                *refused.entry(why.code().to_owned()).or_default() += 1;
            }
        }
    }
    (listed, refused)
}

fn risks(search: &Search<'_, '_>, prefix: &Prefix) -> Vec<NodeRisk> {
    let model = search.model;
    let minutes = model.grid.minutes();
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
        }
    });
    nodes.collect()
}

fn notes(search: &Search<'_, '_>, prefix: &Prefix, nodes: &[NodeRisk]) -> Vec<String> {
    let model = search.model;
    let mut notes = model.notes.clone();
    let running: BTreeSet<usize> = model.running.iter().map(|t| t.shard).collect();
    for (shard, s) in model.shards.iter().enumerate() {
        if let Some(because) = misplaced(model, shard, &prefix.at).filter(|_| !running.contains(&shard)) {
            notes.push(format!("shard {} stays although {because}", s.id));
        }
        if search.asking[s.node] {
            notes.extend(too_big(model, shard));
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
    let mut pinned = model.shards.iter().filter(|s| s.pin == Some(node) && s.node == node);
    let draining = n.state == foreshard_domain::NodeState::Draining;
    match pinned.next().filter(|_| draining) {
        Some(s) => (Some(&n.id), Some(s.id)),
        None => (None, None),
    }
}

/// Says so if a shard alone is more than any node can carry.
fn too_big(model: &Model<'_>, shard: usize) -> Option<String> {
    model.resources.iter().find_map(|r| {
        let capacities: Option<Vec<f64>> = (0..model.nodes.len()).map(|n| model.capacity(n, *r)).collect();
        let largest = capacities?.into_iter().fold(0.0, f64::max);
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
