//! The newest past of all shards, ready to be forecast from.

use foreshard_datasets::EventCalendar;
use foreshard_domain::{Metric, NodeId, Observation, Resource, ShardId, Step, Timestamp};
use foreshard_model::Context;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::ring::BIN;
use super::shard::{METRICS, ShardContext};

/// A series to be forecast.
pub(crate) type SeriesKey = (ShardId, Metric);

/// The past of one series on the grid of a product, up to the common origin.
#[derive(Debug, Clone)]
pub(crate) struct SeriesContext {
    pub(crate) shard: ShardId,
    pub(crate) metric: Metric,
    pub(crate) start: Timestamp,
    pub(crate) step: Step,
    /// One a step, `NaN` where nothing was observed; the last one belongs to the origin. Empty if nothing is known.
    pub(crate) values: Vec<f32>,
    /// Events known at the origin.
    pub(crate) events: Arc<EventCalendar>,
}

impl SeriesContext {
    /// As a forecaster takes it.
    pub(crate) fn as_context(&self) -> Context<'_> {
        Context {
            shard: &self.shard,
            metric: self.metric,
            start: self.start,
            step: self.step,
            values: &self.values,
            events: Some(&self.events),
        }
    }
}

/// The metrics that a request wants.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Wanted {
    /// Whatever was observed of a shard.
    Observed,
    /// These.
    Named(BTreeSet<Metric>),
    /// Those of these that were observed: loads that were not are taken to be zero.
    Loads(BTreeSet<Metric>),
}

impl Wanted {
    /// Named metrics; none means what was observed.
    pub(crate) fn named(metrics: &[Metric]) -> Self {
        if metrics.is_empty() { Wanted::Observed } else { Wanted::Named(metrics.iter().copied().collect()) }
    }

    /// The loads on resources.
    pub(crate) fn loads(resources: impl IntoIterator<Item = Resource>) -> Self {
        Wanted::Loads(resources.into_iter().map(Resource::metric).collect())
    }
}

/// Why a request names nothing that could be forecast.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NothingToForecast {
    /// No row was ever ingested.
    NothingObserved,
    /// None of the named shards was ever observed.
    UnknownShards(Vec<ShardId>),
    /// The shards are known, but none of them has a wanted metric.
    NoSuchMetric,
}

/// The newest past of all shards; memory is bounded by shards x metrics x days.
#[derive(Debug)]
pub(crate) struct ContextStore {
    shards: BTreeMap<ShardId, ShardContext>,
    newest: Option<Timestamp>,
    /// How many shards have which usual interval between their rows: the shortest is asked for with every request.
    natives: BTreeMap<i64, usize>,
    capacity: usize,
    events: Arc<EventCalendar>,
    /// Changes so far; those of shards and of events bear their numbers.
    changes: u64,
    events_changed: u64,
}

impl ContextStore {
    /// A store that keeps `days` of each series.
    pub(crate) fn new(days: u32) -> Self {
        let capacity = BIN.count_in(Step::DAY.as_ms()).saturating_mul(i64::from(days.max(1)));
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        let (shards, natives) = (BTreeMap::new(), BTreeMap::new());
        Self { shards, newest: None, natives, capacity, events: Arc::default(), changes: 0, events_changed: 0 }
    }

    /// Says which events are known from now on.
    pub(crate) fn announce(&mut self, events: Arc<EventCalendar>) {
        self.events = events;
        self.changes += 1;
        self.events_changed = self.changes;
    }

    /// Numbers of the newest changes of a shard and of the known events; they never come again.
    pub(crate) fn changed(&self, shard: &ShardId) -> Option<(u64, u64)> {
        Some((self.shards.get(shard)?.changed(), self.events_changed))
    }

    /// The events that are known.
    #[cfg(test)]
    pub(crate) fn events(&self) -> &Arc<EventCalendar> {
        &self.events
    }

    /// Takes a row in; true if it replaced one of the same shard and time.
    #[cfg(test)]
    pub(crate) fn apply(&mut self, row: &Observation) -> bool {
        self.apply_all(std::slice::from_ref(row)) > 0
    }

    /// Takes rows in; returns how many replaced one of the same shard and time. Rows of one shard that follow each other
    /// cost least.
    pub(crate) fn apply_all(&mut self, rows: &[Observation]) -> u64 {
        let mut replaced = 0;
        for of_shard in rows.chunk_by(|a, b| a.shard == b.shard) {
            let Some(first) = of_shard.first() else { continue };
            let shard = match self.shards.get_mut(&first.shard) {
                Some(shard) => shard,
                None => self.shards.entry(first.shard.clone()).or_default(),
            };
            self.changes += 1;
            shard.change(self.changes);
            let before = shard.native_ms();
            for row in of_shard {
                self.newest = self.newest.max(Some(row.ts));
                replaced += u64::from(shard.apply(row, self.capacity));
            }
            let after = shard.native_ms();
            if before != after {
                uncount(&mut self.natives, before);
                count(&mut self.natives, after);
            }
        }
        replaced
    }

    /// Time of the newest row of any shard.
    pub(crate) fn newest(&self) -> Option<Timestamp> {
        self.newest
    }

    /// The same among the rows that are not ahead of `now`, or `now` if all of them are. Whatever the age of series is
    /// judged by: one row that is ahead must not make the other shards look late.
    pub(crate) fn newest_until(&self, now: Timestamp) -> Option<Timestamp> {
        let newest = self.newest?;
        if newest <= now {
            return Some(newest);
        }
        let newest = self.shards.values().filter_map(|shard| shard.newest_until(now.as_ms())).max();
        Some(newest.map_or(now, Timestamp::from_ms))
    }

    /// Forgets shards that were not observed for as long as the store reaches back.
    pub(crate) fn forget_gone(&mut self) {
        let reach = BIN.as_ms().saturating_mul(i64::try_from(self.capacity).unwrap_or(i64::MAX));
        let Some(oldest) = self.newest.map(|newest| newest.as_ms().saturating_sub(reach)) else { return };
        let natives = &mut self.natives;
        self.shards.retain(|_, shard| {
            let stays = shard.newest().is_some_and(|newest| newest >= oldest);
            if !stays {
                uncount(natives, shard.native_ms());
            }
            stays
        });
    }

    /// The last step that is complete at `now`: no row of it is still to come, judged by the newest row of any shard that
    /// is not ahead of `now` and the shortest usual interval between the rows of a shard.
    pub(crate) fn issued_at(&self, step: Step, now: Timestamp) -> Option<Timestamp> {
        let newest = self.newest_until(now)?;
        let native = self.natives.keys().next().map_or(step.as_ms(), |native| (*native).min(step.as_ms()));
        // Timers jitter: a row that comes a tenth of the interval early still closes its step.
        let next_row = newest.plus_ms(native.saturating_add(native / 10));
        let current = step.floor(newest);
        let complete = next_row >= current.plus_steps(1, step);
        Some(if complete { current } else { current.plus_steps(-1, step) })
    }

    /// Which series a request means, ordered by shard and metric.
    ///
    /// Empty `shards` are all that are known. A shard that was never observed counts as having all that was observed of
    /// any. A series that is named by both its shard and its metric is always among them, observed or not.
    pub(crate) fn select(&self, shards: &[ShardId], metrics: &Wanted) -> Result<Vec<SeriesKey>, NothingToForecast> {
        let named: BTreeSet<&ShardId> = shards.iter().collect();
        self.check_known(&named)?;
        // A walk over all shards, only for those that are not known.
        let everywhere =
            LazyCell::new(|| self.shards.values().flat_map(ShardContext::metrics).collect::<BTreeSet<Metric>>());
        let all = named.is_empty();
        let chosen: Vec<&ShardId> = if all { self.shards.keys().collect() } else { named.into_iter().collect() };
        let mut keys = Vec::new();
        for shard in chosen {
            let observed: BTreeSet<Metric> = self
                .shards
                .get(shard)
                .map_or_else(|| BTreeSet::clone(&everywhere), |context| context.metrics().collect());
            let of_shard: BTreeSet<Metric> = match metrics {
                Wanted::Observed => observed,
                Wanted::Loads(loads) => loads.intersection(&observed).copied().collect(),
                Wanted::Named(named) if all => named.intersection(&observed).copied().collect(),
                Wanted::Named(named) => named.clone(),
            };
            keys.extend(of_shard.into_iter().map(|metric| (shard.clone(), metric)));
        }
        if keys.is_empty() { Err(NothingToForecast::NoSuchMetric) } else { Ok(keys) }
    }

    /// How many of some names are those of shards that were never observed.
    pub(crate) fn unknown(&self, named: &[ShardId]) -> usize {
        named.iter().filter(|shard| !self.shards.contains_key(*shard)).count()
    }

    fn check_known(&self, named: &BTreeSet<&ShardId>) -> Result<(), NothingToForecast> {
        if self.shards.is_empty() {
            return Err(NothingToForecast::NothingObserved);
        }
        if !named.is_empty() && named.iter().all(|shard| !self.shards.contains_key(*shard)) {
            return Err(NothingToForecast::UnknownShards(named.iter().map(|shard| (*shard).clone()).collect()));
        }
        Ok(())
    }

    /// The past of each series on a grid of `step`, up to the last step that is complete at `now`; series of which nothing
    /// is known are empty. No series at all if nothing was observed yet.
    #[cfg(test)]
    pub(crate) fn contexts(&self, step: Step, keys: &[SeriesKey], now: Timestamp) -> Vec<SeriesContext> {
        self.issued_at(step, now).map_or_else(Vec::new, |issued_at| self.contexts_at(step, keys, issued_at))
    }

    /// The same up to a step that was complete some time ago.
    pub(crate) fn contexts_at(&self, step: Step, keys: &[SeriesKey], issued_at: Timestamp) -> Vec<SeriesContext> {
        let contexts = keys.iter().map(|(shard, metric)| {
            let ring = self.shards.get(shard).and_then(|context| context.ring(*metric));
            let nothing = (issued_at.plus_steps(1, step).as_ms(), Vec::new());
            let (start, values) = ring.map_or(nothing, |ring| ring.grid(step, issued_at.as_ms()));
            let start = Timestamp::from_ms(start);
            let events = Arc::clone(&self.events);
            SeriesContext { shard: shard.clone(), metric: *metric, start, step, values, events }
        });
        contexts.collect()
    }

    /// On which node each shard lies, as far as that is known; a residual lies on its own.
    pub(crate) fn placement(&self) -> BTreeMap<ShardId, NodeId> {
        let lies = |(shard, context): (&ShardId, &ShardContext)| {
            let node = shard.residual_node().or_else(|| context.node().cloned())?;
            Some((shard.clone(), node))
        };
        self.shards.iter().filter_map(lies).collect()
    }

    /// Whether anything is known of a shard.
    pub(crate) fn knows(&self, shard: &ShardId) -> bool {
        self.shards.contains_key(shard)
    }

    /// How many shards are known.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Most bins that all series together can hold.
    pub(crate) fn bound(&self) -> usize {
        self.shards.len().saturating_mul(METRICS.len()).saturating_mul(self.capacity)
    }
}

fn count(natives: &mut BTreeMap<i64, usize>, native: Option<i64>) {
    if let Some(native) = native {
        *natives.entry(native).or_default() += 1;
    }
}

fn uncount(natives: &mut BTreeMap<i64, usize>, native: Option<i64>) {
    let Some(native) = native else { return };
    if let Some(shards) = natives.get_mut(&native) {
        *shards = shards.saturating_sub(1);
        if *shards == 0 {
            natives.remove(&native);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: i64 = 60_000;
    /// After all rows.
    const LATER: Timestamp = Timestamp::from_ms(i64::MAX);

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    fn row(name: &str, minute: i64, cpu: f64) -> Observation {
        let mut row = Observation::empty(shard(name), Timestamp::from_ms(minute * M));
        row.cpu_util = Some(cpu);
        row
    }

    fn minute(ts: Option<Timestamp>) -> i64 {
        ts.unwrap().as_ms() / M
    }

    #[test]
    fn a_step_is_issued_once_it_is_complete() {
        let mut store = ContextStore::new(2);
        assert_eq!(store.issued_at(BIN, LATER), None);
        for i in 0..=13 {
            store.apply(&row("a", i, 1.0));
        }
        assert_eq!(minute(store.issued_at(BIN, LATER)), 5, "minute 14 is still to come");
        store.apply(&row("a", 14, 1.0));
        assert_eq!(minute(store.issued_at(BIN, LATER)), 10);
        assert_eq!(minute(store.issued_at(Step::QUARTER_HOUR, LATER)), 0);
        store.apply(&row("b", 15, 1.0));
        assert_eq!(minute(store.issued_at(BIN, LATER)), 10);
    }

    #[test]
    fn rows_at_the_step_itself_complete_it_at_once() {
        let mut store = ContextStore::new(2);
        for i in 0..=4 {
            store.apply(&row("a", i * 5, 1.0));
        }
        assert_eq!(minute(store.issued_at(BIN, LATER)), 20);
        assert_eq!(minute(store.issued_at(Step::QUARTER_HOUR, LATER)), 0);
        store.apply(&row("a", 25, 1.0));
        assert_eq!(minute(store.issued_at(Step::QUARTER_HOUR, LATER)), 15);
    }

    #[test]
    fn a_row_ahead_of_the_clock_waits_for_its_time() {
        let mut store = ContextStore::new(2);
        assert_eq!(store.issued_at(BIN, LATER), None);
        store.apply(&row("ahead", 30, 9.0));
        let at = |minute: i64| Timestamp::from_ms(minute * M);
        assert_eq!(store.newest_until(at(16)), Some(at(16)), "nothing was observed yet");
        for i in 0..=3 {
            store.apply(&row("a", i * 5, 1.0));
        }
        let keys = store.select(&[], &Wanted::Observed).unwrap();
        let ends = |now: Timestamp| {
            let contexts = store.contexts(BIN, &keys, now);
            let end = |c: &SeriesContext| (minute(Some(c.as_context().issued_at())), c.as_context().last_observed());
            contexts.iter().map(end).collect::<Vec<_>>()
        };
        assert_eq!(ends(at(16)), [(15, Some(at(15))), (15, None)]);
        assert_eq!(ends(at(29)), [(15, Some(at(15))), (15, None)]);
        assert_eq!(ends(at(30)), [(30, Some(at(15))), (30, Some(at(30)))]);
    }

    #[test]
    fn d1_the_unfinished_step_does_not_reach_a_context() {
        let mut store = ContextStore::new(2);
        for i in 0..=14 {
            store.apply(&row("a", i, 1.0));
        }
        let keys = store.select(&[], &Wanted::Observed).unwrap();
        let before = store.contexts(BIN, &keys, LATER);
        assert_eq!(before[0].values, [1.0, 1.0, 1.0]);
        store.apply(&row("a", 15, 1e9));
        assert_eq!(store.contexts(BIN, &keys, LATER)[0].values, before[0].values);
        assert_eq!(before[0].as_context().issued_at(), store.issued_at(BIN, LATER).unwrap());
    }

    #[test]
    fn lagging_shards_end_in_gaps_at_the_common_origin() {
        let mut store = ContextStore::new(2);
        for i in 0..6 {
            store.apply(&row("a", i * 5, 1.0));
        }
        store.apply(&row("b", 5, 2.0));
        let contexts = store.contexts(BIN, &store.select(&[], &Wanted::Observed).unwrap(), LATER);
        assert_eq!(contexts.len(), 2);
        assert_eq!(contexts[1].values.len(), 5);
        assert!(contexts[1].values[1..].iter().all(|v| v.is_nan()));
        assert!(contexts.iter().all(|c| c.as_context().issued_at() == Timestamp::from_ms(25 * M)));
    }

    #[test]
    fn selection_answers_for_what_is_named() {
        let mut store = ContextStore::new(2);
        assert_eq!(store.select(&[], &Wanted::Observed), Err(NothingToForecast::NothingObserved));
        store.apply(&row("a", 0, 1.0));
        let mut other = row("b", 0, 1.0);
        other.io_ops = Some(5.0);
        store.apply(&other);
        let names = |keys: Vec<SeriesKey>| keys.iter().map(|(s, m)| format!("{s}/{m}")).collect::<Vec<_>>();
        assert_eq!(names(store.select(&[], &Wanted::Observed).unwrap()), ["a/cpu_util", "b/cpu_util", "b/io_ops"]);
        assert_eq!(names(store.select(&[], &Wanted::named(&[Metric::IoOps])).unwrap()), ["b/io_ops"]);
        assert_eq!(names(store.select(&[shard("a")], &Wanted::named(&[Metric::IoOps])).unwrap()), ["a/io_ops"]);
        let typo = store.select(&[shard("x"), shard("x")], &Wanted::Observed);
        assert_eq!(typo, Err(NothingToForecast::UnknownShards(vec![shard("x")])));
        let mixed = store.select(&[shard("x"), shard("a")], &Wanted::named(&[])).unwrap();
        assert_eq!(names(mixed), ["a/cpu_util", "x/cpu_util", "x/io_ops"]);
        let loads = Wanted::loads(Resource::ALL);
        assert_eq!(
            names(store.select(&[shard("a"), shard("b")], &loads).unwrap()),
            ["a/cpu_util", "b/cpu_util", "b/io_ops"]
        );
        assert_eq!(store.select(&[], &Wanted::named(&[Metric::LatencyMs])), Err(NothingToForecast::NoSuchMetric));
        let unknown = &store.contexts(BIN, &[(shard("x"), Metric::CpuUtil)], LATER)[0];
        assert_eq!(unknown.as_context().issued_at(), store.issued_at(BIN, LATER).unwrap());
    }

    #[test]
    fn contexts_equal_the_grid_that_training_sees() {
        // Rows every minute from the middle of a step on, some missing, an hour missing altogether.
        let minutes = (7..700).filter(|i| i % 13 != 0 && !(200..260).contains(i));
        let rows: Vec<Observation> = minutes.map(|i| row("a", i, (i * 7919 % 1009) as f64 / 7.0)).collect();
        let mut store = ContextStore::new(2);
        rows.iter().rev().for_each(|row| _ = store.apply(row));
        let history = foreshard_datasets::History::from_observations(rows).unwrap();
        for step in [BIN, Step::QUARTER_HOUR] {
            let grid = history.grid(&shard("a"), Metric::CpuUtil, step).unwrap();
            let context = &store.contexts(step, &[(shard("a"), Metric::CpuUtil)], LATER)[0];
            assert_eq!((context.start, context.values.len()), (grid.start, grid.values.len()));
            for (mine, theirs) in context.values.iter().zip(&grid.values) {
                assert!((mine - theirs).abs() <= theirs.abs() * 1e-6 || (mine.is_nan() && theirs.is_nan()));
            }
        }
    }

    #[test]
    fn shards_that_are_gone_are_forgotten() {
        let mut store = ContextStore::new(1);
        store.apply(&row("gone", 0, 1.0));
        store.apply(&row("here", 3 * 24 * 60, 1.0));
        store.apply(&row("gone", 1, 1.0));
        assert_eq!(store.natives, BTreeMap::from([(M, 1)]));
        store.forget_gone();
        assert_eq!(store.shards(), 1);
        assert!(store.natives.is_empty(), "what is gone says nothing of the interval");
        assert!(store.bound() <= 5 * 288);
    }
}
