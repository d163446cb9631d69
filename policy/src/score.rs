//! Scores of decisions by what came, on the counterfactual: the demand of the shards summed on the placement that was not
//! changed. Without it every overload that a move avoided would count as a false alarm.

use foreshard_domain::{DecisionRecord, NodeId, PlanId, Resource, ShardId, Step, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

use crate::PolicySettings;

/// What shards really asked for, where they were, and what nodes can carry.
pub trait Demand {
    /// Steps in which demand is known.
    fn step(&self) -> Step;
    /// The shards that were on a node at a moment.
    fn shards_on(&self, node: &NodeId, at: Timestamp) -> Vec<ShardId>;
    /// What a shard asked for in the step that begins at a moment; `None` if that is not known, or cannot be, since its node
    /// was saturated and it got less than it asked for.
    fn demand(&self, shard: &ShardId, resource: Resource, at: Timestamp) -> Option<f64>;
    /// Capacity of a node, if it has a limit.
    fn capacity(&self, node: &NodeId, resource: Resource) -> Option<f64>;
}

/// One decision beside what came.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// Probability that was said of the shard's node being over capacity if nothing moves.
    pub said: f64,
    /// Whether it would have been.
    pub came: bool,
    /// For a move: expected gain, and the gain that there was, overload minutes.
    pub gain: Option<(f64, f64)>,
    /// Whether the probability counts: once for each node and plan.
    pub first: bool,
}

/// Compares records with what came within `window_ms` after each; `settings` are those by which they were made. What cannot
/// be told, since some demand is not known, is left out.
pub fn judge(
    records: &[DecisionRecord],
    demand: &dyn Demand,
    window_ms: i64,
    settings: &PolicySettings,
) -> Vec<Judged> {
    let mut seen: BTreeSet<(&PlanId, &NodeId)> = BTreeSet::new();
    let mut judged = Vec::new();
    for record in records {
        let first = seen.insert((&record.plan, &record.source));
        if !first && record.target.is_none() {
            continue;
        }
        let world = World { demand, at: record.decided_at, window_ms, settings };
        let Some(came) = world.over(&record.source) else { continue };
        let real = record.target.as_ref().and_then(|target| world.gain(&record.shard, &record.source, target));
        let gain = real.map(|real| (record.expected_gain, real));
        judged.push(Judged { said: record.risk_unmoved, came, gain, first });
    }
    judged
}

/// What came after one moment.
struct World<'a> {
    demand: &'a dyn Demand,
    at: Timestamp,
    window_ms: i64,
    settings: &'a PolicySettings,
}

impl World<'_> {
    fn steps(&self) -> impl Iterator<Item = Timestamp> + '_ {
        let step = self.demand.step();
        (0..step.count_in(self.window_ms)).map(move |i| self.at.plus_steps(i, step))
    }

    /// Shares of a node's limited resources at a step, shards added or left out.
    fn shares(&self, node: &NodeId, shards: &[ShardId], at: Timestamp) -> Option<Vec<f64>> {
        let limited = Resource::ALL.into_iter().filter_map(|r| Some((r, self.demand.capacity(node, r)?)));
        let share = |(r, capacity): (Resource, f64)| {
            let sum: Option<f64> = shards.iter().map(|shard| self.demand.demand(shard, r, at)).sum();
            Some(sum? / capacity)
        };
        limited.map(share).collect()
    }

    /// Whether a node would have been over capacity at any step; `None` if it is not known of a step and at no other.
    fn over(&self, node: &NodeId) -> Option<bool> {
        let shards = self.demand.shards_on(node, self.at);
        let mut unknown = false;
        for at in self.steps() {
            match self.shares(node, &shards, at) {
                Some(shares) if shares.iter().any(|share| *share > 1.0) => return Some(true),
                Some(_) => {}
                None => unknown = true,
            }
        }
        (!unknown).then_some(false)
    }

    /// Overload minutes, late ones faded as the planner does, that two nodes have less with the shard moved.
    fn gain(&self, shard: &ShardId, source: &NodeId, target: &NodeId) -> Option<f64> {
        let unmoved = [source, target].map(|node| self.demand.shards_on(node, self.at));
        let mut moved = unmoved.clone();
        moved[0].retain(|s| s != shard);
        moved[1].push(shard.clone());
        let excess = |shards: &[Vec<ShardId>; 2], at: Timestamp| -> Option<f64> {
            let over = |(node, shards): (&NodeId, &Vec<ShardId>)| {
                let shares = self.shares(node, shards, at)?;
                Some(shares.into_iter().map(|share| self.settings.charge(share)).sum::<f64>())
            };
            [source, target].into_iter().zip(shards).map(over).sum()
        };
        let mut gain = 0.0;
        for at in self.steps() {
            let counts = self.settings.counts(at.since_ms(self.at)) * self.demand.step().as_minutes();
            gain += (excess(&unmoved, at)? - excess(&moved, at)?) * counts;
        }
        Some(gain)
    }
}

/// Probabilities of about the same height beside how often they came true.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reliability {
    /// From this probability on ...
    pub from: f64,
    /// ... up to this one.
    pub to: f64,
    /// How many.
    pub count: usize,
    /// Their mean.
    pub said: f64,
    /// Share of them that came true.
    pub came: f64,
}

/// How decisions turned out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DecisionScores {
    /// Probabilities that were judged.
    pub risks: usize,
    /// Mean squared error of the probabilities; 0 is best.
    pub brier: Option<f64>,
    /// The same of always saying how often it came: below it probabilities tell something.
    pub brier_of_rate: Option<f64>,
    /// Calibration in tenths, those that occur.
    pub reliability: Vec<Reliability>,
    /// Moves that were judged.
    pub moves: usize,
    /// Sum of their expected gains, overload minutes.
    pub expected_gain: f64,
    /// Sum of the gains that there were.
    pub realised_gain: f64,
    /// Moves that made things worse.
    pub harmful: usize,
}

impl DecisionScores {
    /// Sums up.
    pub fn of(judged: &[Judged]) -> Self {
        let risks: Vec<&Judged> = judged.iter().filter(|j| j.first).collect();
        let came = |j: &Judged| f64::from(u8::from(j.came));
        let n = risks.len() as f64;
        let rate = risks.iter().map(|j| came(j)).sum::<f64>() / n.max(1.0);
        let mean = |error: &dyn Fn(&Judged) -> f64| {
            (!risks.is_empty()).then(|| risks.iter().map(|j| error(j) * error(j)).sum::<f64>() / n)
        };
        let tenth = |tenth: u8| {
            let (from, to) = (f64::from(tenth) / 10.0, f64::from(tenth + 1) / 10.0);
            let within = |j: &&&Judged| j.said >= from && (j.said < to || tenth == 9);
            let here: Vec<&&Judged> = risks.iter().filter(within).collect();
            let count = here.len();
            let mean = |of: &dyn Fn(&Judged) -> f64| here.iter().map(|j| of(j)).sum::<f64>() / count.max(1) as f64;
            (count > 0).then(|| Reliability { from, to, count, said: mean(&|j| j.said), came: mean(&came) })
        };
        let gains: Vec<(f64, f64)> = judged.iter().filter_map(|j| j.gain).collect();
        Self {
            risks: risks.len(),
            brier: mean(&|j| j.said - came(j)),
            brier_of_rate: mean(&|j| rate - came(j)),
            reliability: (0..10).filter_map(tenth).collect(),
            moves: gains.len(),
            expected_gain: gains.iter().map(|g| g.0).sum(),
            realised_gain: gains.iter().map(|g| g.1).sum(),
            harmful: gains.iter().filter(|g| g.1 < 0.0).count(),
        }
    }
}
