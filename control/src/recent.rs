//! What was last observed of every shard: the facts a plan needs beside the forecast, and the flat future that stands in
//! for a forecast when none can be had.

use foreshard_domain::{
    Metric, Observation, PerResource, Resource, ScenarioError, ScenarioSet, ShardId, Step, Timestamp,
};
use std::collections::BTreeMap;

/// The last known values of one shard. A metric that a row leaves out keeps its older value.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LastSeen {
    /// Time of the newest row.
    pub at: Timestamp,
    /// Last load by resource, where one was ever seen.
    pub load: PerResource<Option<f64>>,
    /// Last rate of transactions per second.
    pub txn_rate: Option<f64>,
    /// Last size in bytes.
    pub data_bytes: Option<f64>,
    /// Last rate of written bytes per second.
    pub write_bytes_per_s: Option<f64>,
}

/// What was last observed, by shard. Holds one row a shard, so it is bounded by the number of shards.
#[derive(Debug, Clone, Default)]
pub struct Recent {
    by_shard: BTreeMap<ShardId, LastSeen>,
    newest: Option<Timestamp>,
}

/// Takes `new` if it is a usable measurement: finite and not negative.
fn renew(known: &mut Option<f64>, new: Option<f64>) {
    if let Some(value) = new.filter(|v| v.is_finite() && *v >= 0.0) {
        *known = Some(value);
    }
}

impl Recent {
    /// Takes rows in; a row older than what is known of its shard changes nothing.
    pub fn observe(&mut self, rows: &[Observation]) {
        for row in rows {
            let seen = self.by_shard.entry(row.shard.clone()).or_insert(LastSeen { at: row.ts, ..LastSeen::default() });
            if row.ts < seen.at {
                continue;
            }
            seen.at = row.ts;
            for resource in Resource::ALL {
                renew(&mut seen.load[resource], row.get(resource.metric()));
            }
            renew(&mut seen.txn_rate, row.get(Metric::TxnRate));
            renew(&mut seen.data_bytes, row.data_bytes);
            renew(&mut seen.write_bytes_per_s, row.write_bytes_per_s);
            self.newest = self.newest.max(Some(row.ts));
        }
    }

    /// What is known of a shard.
    pub fn of(&self, shard: &ShardId) -> Option<&LastSeen> {
        self.by_shard.get(shard)
    }

    /// All shards that were ever observed, residuals included, in order.
    pub fn shards(&self) -> impl Iterator<Item = &ShardId> {
        self.by_shard.keys()
    }

    /// Time of the newest row of any shard.
    pub fn newest(&self) -> Option<Timestamp> {
        self.newest
    }

    /// The future in which every load stays as it was last seen: one scenario of `steps` steps, which is what a reactive
    /// policy plans on. `None` while nothing was observed.
    ///
    /// # Errors
    /// [`ScenarioError`] if `steps` is too large to be held.
    pub fn flat_scenarios(&self, step: Step, steps: usize) -> Option<Result<ScenarioSet, ScenarioError>> {
        let issued_at = step.floor(self.newest?);
        let shards: Vec<ShardId> = self.by_shard.keys().cloned().collect();
        let lane = |resource| self.by_shard.values().map(move |seen| seen.load[resource].unwrap_or(0.0) as f32);
        let flat = |value: f32| std::iter::repeat_n(value, steps);
        let values = Resource::ALL.into_iter().flat_map(lane).flat_map(flat).collect();
        Some(ScenarioSet::new(issued_at, step, Resource::ALL.to_vec(), shards, (steps, 1), values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(shard: &str, minute: i64, cpu: Option<f64>) -> Observation {
        let ts = Timestamp::from_ms(minute * 60_000);
        Observation { cpu_util: cpu, ..Observation::empty(ShardId::new(shard).unwrap(), ts) }
    }

    #[test]
    fn keeps_the_last_usable_value() {
        let mut recent = Recent::default();
        let a = ShardId::new("a").unwrap();
        recent.observe(&[row("a", 5, Some(3.0)), row("a", 10, None), row("a", 0, Some(9.0))]);
        recent.observe(&[row("a", 15, Some(f64::NAN)), row("a", 20, Some(-1.0))]);
        let seen = recent.of(&a).unwrap();
        assert_eq!(seen.load.cpu, Some(3.0));
        assert_eq!(seen.at, Timestamp::from_ms(20 * 60_000));
        assert_eq!(seen.load.io, None);
    }

    #[test]
    fn flat_future_repeats_the_last_load() {
        let mut recent = Recent::default();
        assert!(recent.flat_scenarios(Step::FIVE_MINUTES, 2).is_none());
        recent.observe(&[row("b", 7, Some(2.0)), row("a", 6, Some(1.0))]);
        let set = recent.flat_scenarios(Step::FIVE_MINUTES, 2).unwrap().unwrap();
        assert_eq!(set.issued_at(), Timestamp::from_ms(5 * 60_000));
        assert_eq!(set.lane(0, 0), Some([1.0f32, 1.0].as_slice()));
        assert_eq!(set.lane(0, 1), Some([2.0f32, 2.0].as_slice()));
        assert_eq!(set.lane(2, 1), Some([0.0f32, 0.0].as_slice()));
    }
}
