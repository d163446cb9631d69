//! Loads of every prefix, recomputed per scenario.

use foreshard_domain::{NodeId, NodeState, Resource, ShardId, Timestamp};
use std::collections::BTreeMap;

use super::Found;
use super::figures::{self, Grid};
use super::rules::{copy_end, running_end};
use crate::{Move, Plan, PlanningInput, RuleName};

/// Loads of one node by resource, step and scenario.
pub(super) type Loads = BTreeMap<Resource, Vec<Vec<f64>>>;

/// Which copies of leaving shards count.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Copies {
    None,
    Of(usize),
    All,
    /// All but those of planned moves that leave the node.
    Incoming,
}

/// Relative slack for the planner's single precision.
const SLACK: f64 = 1e-4;

pub(super) struct Replay<'a> {
    pub input: &'a PlanningInput,
    pub grid: Grid,
    index: BTreeMap<&'a ShardId, usize>,
    /// Mean share of the cluster by step, if imbalance is charged.
    pub shares: BTreeMap<Resource, Vec<f64>>,
}

/// The load of one shard.
enum Lane<'a> {
    Paths(&'a [f32]),
    Constant(f64),
}

impl Lane<'_> {
    fn add_to(&self, row: &mut [f64], step: usize) {
        let n = row.len();
        match self {
            Lane::Paths(values) => {
                let values = values.iter().skip(step * n);
                row.iter_mut().zip(values).for_each(|(sum, v)| *sum += f64::from(*v));
            }
            Lane::Constant(load) => row.iter_mut().for_each(|sum| *sum += load),
        }
    }
}

impl<'a> Replay<'a> {
    fn new(input: &'a PlanningInput) -> Self {
        let index = input.scenarios.shards().iter().enumerate().map(|(i, s)| (s, i)).collect();
        let mut replay = Self { input, grid: Grid::new(input), index, shares: BTreeMap::new() };
        if input.settings.rules.proactive_balancing && input.settings.balance_weight > 0.0 {
            replay.shares = Resource::ALL.into_iter().map(|r| (r, replay.cluster_share(r))).collect();
        }
        replay
    }

    /// The load of a shard: its scenarios, or its current load where the scenarios lack it.
    fn lane(&self, shard: &ShardId, resource: Resource) -> Lane<'a> {
        let set = &self.input.scenarios;
        let believed = !(self.input.voteless.contains(shard) && self.input.shards.contains_key(shard));
        let lane = self.index.get(shard).zip(set.resource_index(resource)).and_then(|(s, r)| set.lane(r, *s));
        let lane = if believed { lane } else { None };
        let current = || self.input.shards.get(shard).map_or(0.0, |f| f.current[resource]);
        lane.map_or_else(|| Lane::Constant(current()), Lane::Paths)
    }

    /// Mean share of all nodes together that are not being emptied, by step: what balance is measured against. Loads
    /// of nodes without a limit count, their capacity does not.
    fn cluster_share(&self, resource: Resource) -> Vec<f64> {
        let nodes = &self.input.topology.nodes;
        let stay = nodes.iter().filter(|n| n.state != NodeState::Draining);
        let capacity: f64 = stay.filter_map(|n| n.capacity[resource]).sum();
        let residuals: Vec<ShardId> = nodes.iter().map(|n| ShardId::residual(&n.id)).collect();
        let mut total = vec![vec![0.0; self.grid.scenarios]; self.grid.steps];
        for shard in self.input.placement.iter().map(|(shard, _)| shard).chain(&residuals) {
            let lane = self.lane(shard, resource);
            total.iter_mut().enumerate().for_each(|(step, row)| lane.add_to(row, step));
        }
        let scale = if capacity > 0.0 { 1.0 / (capacity * self.grid.scenarios as f64) } else { 0.0 };
        total.iter().map(|row| row.iter().sum::<f64>() * scale).collect()
    }

    /// Whether a shard is charged to a node at a step, the moves being carried out.
    fn charged(&self, shard: &ShardId, home: &NodeId, node: &NodeId, moves: &[Move], step: usize) -> bool {
        let moved = moves.iter().find(|m| m.shard == *shard);
        let running = self.input.in_flight.iter().find(|f| f.shard == *shard && f.source == *home);
        let (target, arrives, leaves) = match (moved, running) {
            (Some(m), _) => (&m.target, m.start.plus_ms(m.predicted.duration_ms), copy_end(m)),
            (None, Some(f)) => {
                let end = running_end(self.input, f.expected_end);
                (&f.target, end, end)
            }
            (None, None) => return home == node,
        };
        let (begin, end) = self.grid.span(step);
        if home == node { begin < leaves } else { target == node && end > arrives }
    }

    /// Loads of a node with the moves carried out.
    pub fn loads(&self, node: &NodeId, moves: &[Move], copies: Copies) -> Loads {
        let mut loads = Loads::new();
        for resource in Resource::ALL {
            let Some(capacity) = self.capacity(node, resource) else { continue };
            let mut paths = vec![vec![0.0; self.grid.scenarios]; self.grid.steps];
            let residual = self.lane(&ShardId::residual(node), resource);
            paths.iter_mut().enumerate().for_each(|(step, row)| residual.add_to(row, step));
            for (shard, home) in self.input.placement.iter() {
                let touches = home == node
                    || moves.iter().any(|m| m.shard == *shard && m.target == *node)
                    || self.input.in_flight.iter().any(|f| f.shard == *shard && f.target == *node);
                if !touches {
                    continue;
                }
                let lane = self.lane(shard, resource);
                for (step, row) in paths.iter_mut().enumerate() {
                    if self.charged(shard, home, node, moves, step) {
                        lane.add_to(row, step);
                    }
                }
            }
            for (from, to) in self.copies(node, moves, copies) {
                for (step, row) in paths.iter_mut().enumerate() {
                    let load = self.input.cost_model.extra_share[resource] * capacity * self.grid.share(step, from, to);
                    row.iter_mut().for_each(|v| *v += load);
                }
            }
            loads.insert(resource, paths);
        }
        loads
    }

    /// Spans of the copies that load a node.
    fn copies(&self, node: &NodeId, moves: &[Move], which: Copies) -> Vec<(Timestamp, Timestamp)> {
        let running = self.input.in_flight.iter().filter(|f| f.source == *node || f.target == *node);
        let mut spans: Vec<_> = running.map(|f| (f.started, running_end(self.input, f.expected_end))).collect();
        for (i, m) in moves.iter().enumerate() {
            let counts = match which {
                Copies::None => false,
                Copies::Of(prefix) => i < prefix,
                Copies::All => true,
                Copies::Incoming => m.target == *node,
            };
            if counts && (m.source == *node || m.target == *node) {
                spans.push((m.start, copy_end(m)));
            }
        }
        spans
    }

    pub fn capacity(&self, node: &NodeId, resource: Resource) -> Option<f64> {
        self.input.topology.node(node).and_then(|n| n.capacity[resource])
    }

    /// The nearest-rank quantile of one row at the configured level.
    fn quantile(&self, row: &[f64]) -> f64 {
        let mut row = row.to_vec();
        row.sort_by(f64::total_cmp);
        let rank = (self.input.settings.capacity_quantile * row.len() as f64).ceil().max(1.0) as usize;
        row[rank.min(row.len()) - 1]
    }

    /// Whether copies of shards that leave this node may put it over capacity.
    fn relieved(&self, node: &NodeId, unmoved: &Loads) -> bool {
        let settings = &self.input.settings;
        if !settings.relief_copies {
            return false;
        }
        let draining = self.input.topology.node(node).is_some_and(|n| n.state == NodeState::Draining);
        let warm = unmoved.iter().any(|(resource, paths)| {
            let limit = self.capacity(node, *resource).unwrap_or(f64::INFINITY) * settings.limit.min(1.0);
            paths.iter().skip(self.grid.first).any(|row| self.quantile(row) > limit * (1.0 - SLACK))
        });
        draining || warm
    }

    /// Where a node with the prefix carried out is over its capacity and over what it is without the plan, while its last
    /// move binds it: from its start for as long as is configured, and until its shard could be copied away again.
    fn over(&self, node: &NodeId, prefix: &[Move]) -> Option<String> {
        let unmoved = self.loads(node, &[], Copies::None);
        let copies = if self.relieved(node, &unmoved) { Copies::Incoming } else { Copies::All };
        let loads = self.loads(node, prefix, copies);
        let (last, settings) = (prefix.last()?, &self.input.settings);
        let stays = settings.cool_down_shard_ms.saturating_add(last.predicted.duration_p90_ms);
        let until = copy_end(last).plus_ms(settings.capacity_window_ms.max(stays));
        let bound = |step: &usize| {
            let (begin, end) = self.grid.span(*step);
            end > last.start && (begin < until || settings.capacity_window_ms == 0)
        };
        for (resource, paths) in &loads {
            let capacity = self.capacity(node, *resource)?;
            for step in (self.grid.first..self.grid.steps).filter(bound) {
                let (was, is) = (self.quantile(&unmoved[resource][step]), self.quantile(&paths[step]));
                if is > capacity.max(was) * (1.0 + SLACK) {
                    let at = self.grid.span(step).0;
                    return Some(format!("{resource} of {node} at {at}: {is:.3} of {capacity:.3}, unmoved {was:.3}"));
                }
            }
        }
        None
    }
}

/// Replays every prefix; returns the net gain of the plan.
pub(super) fn check(input: &PlanningInput, plan: &Plan, found: &mut Found) -> f64 {
    let replay = Replay::new(input);
    let mut nets = Vec::new();
    for (k, m) in plan.moves.iter().enumerate() {
        let prefix = &plan.moves[..=k];
        for node in [&m.source, &m.target] {
            if let Some(text) = replay.over(node, prefix) {
                found.of(&m.shard, "capacity", text);
            }
        }
        let (gain, cost, scale) = figures::gain_and_cost(&replay, prefix);
        let far = |claimed: f64, real: f64| {
            let tolerance = 1e-2 + 1e-3 * real.abs() + 1e-6 * scale;
            !(claimed - real).abs().le(&tolerance)
        };
        if far(m.expected_gain, gain) {
            found.of(&m.shard, "gain", format!("it claims a gain of {}, recomputed {gain}", m.expected_gain));
        }
        if far(m.expected_cost, cost) {
            found.of(&m.shard, "cost", format!("it claims a cost of {}, recomputed {cost}", m.expected_cost));
        }
        let alone = m.reason.rule != RuleName::Constraint && m.with.is_none();
        if alone && gain <= cost - 1e-2 - 1e-6 * scale {
            found.of(&m.shard, "not_worth_it", format!("it gains {gain} and costs {cost}"));
        }
        nets.push(gain - cost);
    }
    for (m, net) in plan.moves.iter().zip(&nets) {
        let Some(with) = &m.with else { continue };
        let partner = plan.moves.iter().zip(&nets).find(|(o, _)| o.shard == *with && o.with.as_ref() == Some(&m.shard));
        match partner {
            None => found.of(
                &m.shard,
                "partner",
                format!("it is said to be worth it with {with}, which does not move with it"),
            ),
            Some((_, other)) if net + other <= -2e-2 => {
                found.of(&m.shard, "not_worth_it", format!("with {with} it nets {}", net + other));
            }
            Some(_) => {}
        }
    }
    node_risks(&replay, plan, found);
    nets.iter().sum()
}

/// Whether the risks that the plan claims of the nodes that it touches are what the moves bring: a move that was left out
/// or changed shows here even where no other move depends on it.
fn node_risks(replay: &Replay<'_>, plan: &Plan, found: &mut Found) {
    if plan.nodes.len() != replay.input.topology.nodes.len() {
        found.plan(
            "nodes",
            format!("it tells of {} nodes, there are {}", plan.nodes.len(), replay.input.topology.nodes.len()),
        );
    }
    for risk in &plan.nodes {
        let named = plan.moves.iter().any(|m| m.source == risk.node || m.target == risk.node);
        let changed = risk.excess_minutes.0 != risk.excess_minutes.1 || risk.before != risk.after;
        if !(named || changed) || replay.input.topology.node(&risk.node).is_none() {
            continue;
        }
        let unmoved = replay.loads(&risk.node, &[], Copies::None);
        let moved = replay.loads(&risk.node, &plan.moves, Copies::All);
        for (what, claimed, loads) in
            [("before", risk.excess_minutes.0, unmoved), ("after", risk.excess_minutes.1, moved)]
        {
            let real = figures::excess(replay, &risk.node, &loads);
            let tolerance = 1e-2 + 1e-3 * real.abs();
            if !(claimed - real).abs().le(&tolerance) {
                found.plan(
                    "node_risk",
                    format!("{} {what} the plan: it claims {claimed} min of excess, recomputed {real}", risk.node),
                );
            }
        }
    }
}
