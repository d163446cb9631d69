//! What is remembered of one shard: its newest rows as they came, and its series on the grid.

use foreshard_domain::{Metric, NodeId, Observation};
use std::collections::VecDeque;

use super::ring::{BIN, Ring, bin_of, bin_start};

/// The metrics that a row of history can hold.
pub(crate) const METRICS: [Metric; 5] =
    [Metric::CpuUtil, Metric::MemUtil, Metric::IoOps, Metric::LatencyMs, Metric::TxnRate];

/// How long single rows are remembered where they are finer than bins. Within it, a row that comes again replaces itself
/// exactly; before it, only the means of bins are known.
pub(crate) const RAW_WINDOW_MS: i64 = 24 * 3_600_000;

/// Gaps from which the native interval is read.
const GAPS: usize = 16;

/// Rows for which room is made at once, so that little more is held than is used.
const ROOM: usize = 16;

type Values = [f64; METRICS.len()];

/// One shard's rows and series.
#[derive(Debug, Default)]
pub(crate) struct ShardContext {
    /// The newest rows, by time.
    raw: VecDeque<(i64, Values)>,
    rings: [Ring; METRICS.len()],
    newest: Option<i64>,
    native: Option<i64>,
    changed: u64,
    node: Option<NodeId>,
}

impl ShardContext {
    /// Time of the newest row.
    pub(crate) fn newest(&self) -> Option<i64> {
        self.newest
    }

    /// Where it lies, by the newest row that says so.
    pub(crate) fn node(&self) -> Option<&NodeId> {
        self.node.as_ref()
    }

    /// Time of the newest row that is not ahead of `now`.
    pub(crate) fn newest_until(&self, now: i64) -> Option<i64> {
        let until = self.raw.partition_point(|(ts, _)| *ts <= now);
        self.raw.get(until.checked_sub(1)?).map(|(ts, _)| *ts)
    }

    /// The newest change, as the store counts them.
    pub(crate) fn changed(&self) -> u64 {
        self.changed
    }

    /// Notes a change.
    pub(crate) fn change(&mut self, number: u64) {
        self.changed = number;
    }

    /// The usual interval between rows: the median of the newest gaps, so that one stray row does not change it and the
    /// order in which rows came does not matter.
    pub(crate) fn native_ms(&self) -> Option<i64> {
        self.native
    }

    fn usual_gap(&self) -> Option<i64> {
        let later = self.raw.iter().rev();
        let earlier = self.raw.iter().rev().skip(1);
        let mut gaps = [0i64; GAPS];
        let mut n = 0;
        for (slot, ((a, _), (b, _))) in gaps.iter_mut().zip(later.zip(earlier)) {
            *slot = a.saturating_sub(*b);
            n += 1;
        }
        let gaps = gaps.get_mut(..n)?;
        gaps.sort_unstable();
        gaps.get(n / 2).copied()
    }

    /// The series of a metric; `None` if nothing was ever observed of it.
    pub(crate) fn ring(&self, metric: Metric) -> Option<&Ring> {
        let slot = METRICS.iter().position(|m| *m == metric)?;
        self.rings.get(slot).filter(|ring| ring.first_ts().is_some())
    }

    /// The metrics of which anything was observed.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = Metric> {
        let with_rings = METRICS.into_iter().zip(&self.rings);
        with_rings.filter(|(_, ring)| ring.first_ts().is_some()).map(|(metric, _)| metric)
    }

    /// Takes a row in; true if it replaced one of the same time.
    pub(crate) fn apply(&mut self, row: &Observation, capacity: usize) -> bool {
        let ts = row.ts.as_ms();
        let values = METRICS.map(|metric| row.get(metric).unwrap_or(f64::NAN));
        if self.newest.is_none_or(|newest| ts >= newest) && row.node.is_some() {
            self.node.clone_from(&row.node);
        }
        let newest = self.newest.map_or(ts, |newest| newest.max(ts));
        self.newest = Some(newest);
        if ts < self.remembered(newest) {
            return self.apply_late(ts, &values, capacity);
        }
        let replaced = self.remember(ts, values);
        self.native = self.usual_gap();
        let remembered = self.remembered(newest);
        while self.raw.front().is_some_and(|(oldest, _)| *oldest < remembered) {
            self.raw.pop_front();
        }
        self.recompute(ts, capacity);
        replaced
    }

    /// From when on single rows are remembered: whole bins, so that a bin is always computed from all of its rows or from
    /// none. Rows that are no finer than bins are known by their bins, and a few tell their interval.
    fn remembered(&self, newest: i64) -> i64 {
        let few = GAPS as i64 + 1;
        let window = match self.native {
            Some(native) if native >= BIN.as_ms() => native.saturating_mul(few).min(RAW_WINDOW_MS),
            _ => RAW_WINDOW_MS,
        };
        bin_start(bin_of(newest.saturating_sub(window)))
    }

    /// Puts a row into its place among the remembered ones; true if it replaced one of the same time.
    fn remember(&mut self, ts: i64, values: Values) -> bool {
        let place = self.raw.partition_point(|(other, _)| *other < ts);
        if let Some((_, row)) = self.raw.get_mut(place).filter(|(other, _)| *other == ts) {
            *row = values;
            return true;
        }
        if self.raw.len() == self.raw.capacity() {
            self.raw.reserve_exact(ROOM.max(self.raw.len() / 4));
        }
        self.raw.insert(place, (ts, values));
        false
    }

    /// Computes the bin of `ts` anew from its rows.
    fn recompute(&mut self, ts: i64, capacity: usize) {
        let (from, to) = (bin_start(bin_of(ts)), bin_start(bin_of(ts).saturating_add(1)));
        let first = self.raw.partition_point(|(ts, _)| *ts < from);
        let rows = || self.raw.range(first..).take_while(|(ts, _)| *ts < to);
        for (slot, ring) in self.rings.iter_mut().enumerate() {
            let values = rows().filter_map(|(ts, row)| Some((*ts, *row.get(slot)?)));
            let mut seen = values.filter(|(_, value)| value.is_finite());
            let Some((first, value)) = seen.next() else {
                if ring.get(bin_of(ts)).is_some() {
                    ring.set(ts, f32::NAN, 0, capacity);
                }
                continue;
            };
            let (sum, count) = seen.fold((value, 1u16), |(sum, n), (_, value)| (sum + value, n.saturating_add(1)));
            ring.set(first, (sum / f64::from(count)) as f32, count, capacity);
        }
    }

    /// Takes in a row from before the remembered ones. Where rows are no finer than bins it is the bin's only row and
    /// replaces it; otherwise it joins the mean, and a repetition counts twice until the next start reads the history.
    fn apply_late(&mut self, ts: i64, values: &[f64], capacity: usize) -> bool {
        let only_row = self.native_ms().is_none_or(|native| native >= BIN.as_ms());
        let mut replaced = false;
        for (ring, value) in self.rings.iter_mut().zip(values).filter(|(_, value)| value.is_finite()) {
            if only_row {
                replaced |= ring.get(bin_of(ts)).is_some();
                ring.set(ts, *value as f32, 1, capacity);
            } else {
                ring.merge(ts, *value, capacity);
            }
        }
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{ShardId, Timestamp};

    const M: i64 = 60_000;

    fn row(ts: i64, cpu: Option<f64>) -> Observation {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(ts));
        row.cpu_util = cpu;
        row.txn_rate = Some(1.0);
        row
    }

    fn cpu(shard: &ShardContext, bin: i64) -> Option<(f32, u16)> {
        shard.ring(Metric::CpuUtil).and_then(|ring| ring.get(bin))
    }

    #[test]
    fn a_repeated_row_replaces_itself() {
        let mut shard = ShardContext::default();
        assert!(!shard.apply(&row(0, Some(1.0)), 100));
        assert!(!shard.apply(&row(M, Some(3.0)), 100));
        assert_eq!(cpu(&shard, 0), Some((2.0, 2)));
        assert!(shard.apply(&row(M, Some(5.0)), 100));
        assert_eq!(cpu(&shard, 0), Some((3.0, 2)));
        assert!(shard.apply(&row(0, None), 100), "the last row wins as a whole");
        assert_eq!(cpu(&shard, 0), Some((5.0, 1)));
        assert!(shard.apply(&row(M, None), 100));
        assert_eq!(cpu(&shard, 0), None);
        assert_eq!(shard.ring(Metric::MemUtil).map(|_| ()), None);
    }

    #[test]
    fn order_does_not_matter_within_the_remembered_rows() {
        let times: Vec<i64> = (0..40).map(|i| i * M).collect();
        let mut forward = ShardContext::default();
        times.iter().for_each(|ts| _ = forward.apply(&row(*ts, Some(*ts as f64)), 100));
        let mut shuffled = ShardContext::default();
        times.iter().rev().for_each(|ts| _ = shuffled.apply(&row(*ts, Some(*ts as f64)), 100));
        for bin in 0..8 {
            assert_eq!(cpu(&forward, bin), cpu(&shuffled, bin));
        }
        let grid = |shard: &ShardContext| shard.ring(Metric::CpuUtil).unwrap().grid(BIN, 35 * M);
        assert_eq!(grid(&forward), grid(&shuffled));
    }

    #[test]
    fn native_interval_ignores_a_stray_row() {
        let mut shard = ShardContext::default();
        for i in 0..10 {
            shard.apply(&row(i * 5 * M, Some(1.0)), 100);
        }
        shard.apply(&row(45 * M + 1, Some(1.0)), 100);
        assert_eq!(shard.native_ms(), Some(5 * M));
    }

    #[test]
    fn late_rows_reach_bins_whose_rows_are_forgotten() {
        let mut shard = ShardContext::default();
        for i in 0..400 {
            shard.apply(&row(i * 5 * M, Some(1.0)), 1000);
        }
        assert!(shard.raw.len() <= 18, "of rows no finer than bins a few are remembered");
        for i in 2000..4000 {
            shard.apply(&row(i * M, Some(1.0)), 1000);
        }
        assert!((1440..=1445).contains(&shard.raw.len()), "finer ones for a day: {}", shard.raw.len());
        let mut shard = ShardContext::default();
        for i in 0..400 {
            shard.apply(&row(i * 5 * M, Some(1.0)), 1000);
        }
        assert!(shard.apply(&row(5 * M, Some(9.0)), 1000));
        assert_eq!(cpu(&shard, 1), Some((9.0, 1)));
        assert_eq!(shard.newest(), Some(399 * 5 * M));
    }
}
