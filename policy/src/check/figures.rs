//! Gains and costs, recomputed.

use foreshard_domain::{NodeId, Timestamp};

use super::replay::{Copies, Loads, Replay};
use crate::{Move, PlanningInput};

/// Steps of the scenarios: step `i` begins `i + 1` steps after they were issued.
pub(super) struct Grid {
    begin: i64,
    step_ms: i64,
    pub steps: usize,
    pub scenarios: usize,
    /// The first step that is not over.
    pub first: usize,
}

impl Grid {
    pub fn new(input: &PlanningInput) -> Self {
        let set = &input.scenarios;
        let step_ms = set.step().as_ms();
        let begin = set.issued_at().as_ms() + step_ms;
        let mut grid = Self { begin, step_ms, steps: set.steps(), scenarios: set.scenarios(), first: 0 };
        grid.first = (0..grid.steps).find(|step| grid.span(*step).1 > input.now).unwrap_or(grid.steps);
        grid
    }

    /// Beginning and end of a step.
    pub fn span(&self, step: usize) -> (Timestamp, Timestamp) {
        let begin = self.begin + step as i64 * self.step_ms;
        (Timestamp::from_ms(begin), Timestamp::from_ms(begin + self.step_ms))
    }

    /// Share of a step that lies within a span of time.
    pub fn share(&self, step: usize, from: Timestamp, to: Timestamp) -> f64 {
        let (begin, end) = self.span(step);
        let (from, to) = (from.as_ms().max(begin.as_ms()), to.as_ms().min(end.as_ms()));
        if to > from { (to - from) as f64 / self.step_ms as f64 } else { 0.0 }
    }

    fn minutes(&self) -> f64 {
        self.step_ms as f64 / 60_000.0
    }
}

/// Gain and cost of the last move of a prefix, as the difference to the prefix before it; and the largest charge that they
/// are differences of, since the planner's single precision cannot tell more of it than six digits.
pub(super) fn gain_and_cost(replay: &Replay<'_>, prefix: &[Move]) -> (f64, f64, f64) {
    let Some((m, before)) = prefix.split_last() else { return (0.0, 0.0, 0.0) };
    let charge = |moves: &[Move], copies: Copies| -> f64 {
        let ends = [&m.source, &m.target].into_iter();
        ends.map(|node| charge(replay, node, &replay.loads(node, moves, copies))).sum()
    };
    let unmoved = charge(before, Copies::All);
    let moved = charge(prefix, Copies::Of(before.len()));
    let copied = charge(prefix, Copies::All);
    let talk = communication(replay.input, m, before) + away(replay.input, m);
    let gain = unmoved - moved + if talk < 0.0 { -talk } else { 0.0 };
    let cost = (copied - moved).max(0.0) + replay.input.settings.churn_weight + if talk > 0.0 { talk } else { 0.0 };
    (gain, cost, unmoved.max(copied))
}

/// Expected minutes over capacity of a node, all resources.
pub(super) fn excess(replay: &Replay<'_>, node: &NodeId, loads: &Loads) -> f64 {
    let mut total = 0.0;
    for (resource, paths) in loads {
        let Some(capacity) = replay.capacity(node, *resource) else { continue };
        for row in paths.iter().skip(replay.grid.first) {
            total += row.iter().map(|load| (load / capacity - 1.0).max(0.0)).sum::<f64>() / row.len() as f64;
        }
    }
    total * replay.grid.minutes()
}

/// How much a step's minutes count: all of them while the first cool-down lasts, half after every half-life behind it.
fn counts(replay: &Replay<'_>, step: usize) -> f64 {
    let settings = &replay.input.settings;
    let free = replay.input.now.as_ms() + settings.cool_down_shard_ms;
    let late = replay.grid.span(step).0.as_ms() - free;
    if settings.foresight_half_life_ms == 0 || late <= 0 {
        return 1.0;
    }
    0.5f64.powf(late as f64 / settings.foresight_half_life_ms as f64)
}

/// Overload minutes and weighted imbalance of a node.
fn charge(replay: &Replay<'_>, node: &NodeId, loads: &Loads) -> f64 {
    let settings = &replay.input.settings;
    let mut total = 0.0;
    for (resource, paths) in loads {
        let Some(capacity) = replay.capacity(node, *resource) else { continue };
        let everywhere = replay.shares.get(resource);
        for (step, row) in paths.iter().enumerate().skip(replay.grid.first) {
            let (n, counts) = (row.len() as f64, counts(replay, step));
            for load in row {
                let share = load / capacity;
                // All of the weight at capacity, none 2 % below it.
                let felt = settings.minute_weight * (50.0 * share - 49.0).clamp(0.0, 1.0);
                total += counts * ((share - settings.limit).max(0.0) + felt) / n;
            }
            if let Some(mean) = everywhere.and_then(|shares| shares.get(step)) {
                let share = row.iter().sum::<f64>() / (n * capacity);
                total += counts * settings.balance_weight * (share - mean - settings.balance_band).max(0.0);
            }
        }
    }
    total * replay.grid.minutes()
}

/// Charge or discharge for leaving or reaching the node where the ring would have the shard.
fn away(input: &PlanningInput, m: &Move) -> f64 {
    let weight = input.settings.home_weight;
    match input.homes.get(&m.shard) {
        Some(home) if *home == m.target => -weight,
        Some(home) if *home == m.source => weight,
        _ => 0.0,
    }
}

/// Change of the communication cost by a move, its peers being where the prefix before put them.
fn communication(input: &PlanningInput, m: &Move, before: &[Move]) -> f64 {
    let mut change = 0.0;
    for edge in &input.communication {
        let peer = match () {
            () if edge.a == edge.b => continue,
            () if edge.a == m.shard => &edge.b,
            () if edge.b == m.shard => &edge.a,
            () => continue,
        };
        let moved = before.iter().find(|o| o.shard == *peer).map(|o| &o.target);
        let Some(place) = moved.or_else(|| input.placement.node_of(peer)) else { continue };
        let latency = |node: &NodeId| input.topology.latency_ms(node, place);
        change += edge.bytes_per_s / (1024.0 * 1024.0) * (latency(&m.target) - latency(&m.source));
    }
    change * input.settings.communication_weight
}
