//! The newest means of one series on a 5-minute grid, bounded.

use foreshard_domain::Step;
use std::collections::VecDeque;

/// Width of a bin: the finest step that is forecast.
pub(crate) const BIN: Step = Step::FIVE_MINUTES;

/// The bin that `ts_ms` falls into; bins are counted from the epoch.
pub(crate) fn bin_of(ts_ms: i64) -> i64 {
    ts_ms.div_euclid(BIN.as_ms())
}

/// First millisecond of a bin.
pub(crate) fn bin_start(bin: i64) -> i64 {
    bin.saturating_mul(BIN.as_ms())
}

/// Bins for which room is made at once: a day, so that little more is held than is used.
const ROOM: usize = 288;

/// Mean and number of rows of each bin from `first` on; at most `capacity` bins up to the newest one, of five bytes each. More
/// than 255 rows of one bin weigh as 255.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ring {
    first: i64,
    first_ts: i64,
    means: VecDeque<f32>,
    counts: VecDeque<u8>,
}

impl Ring {
    fn len(&self) -> i64 {
        i64::try_from(self.means.len()).unwrap_or(i64::MAX)
    }

    /// Time of the oldest row, or the start of the oldest bin once older ones were given up.
    pub(crate) fn first_ts(&self) -> Option<i64> {
        (!self.means.is_empty()).then_some(self.first_ts)
    }

    /// Mean and number of rows of a bin; `None` outside what is kept or if the bin is empty.
    pub(crate) fn get(&self, bin: i64) -> Option<(f32, u16)> {
        let i = usize::try_from(bin.checked_sub(self.first)?).ok()?;
        let (mean, count) = (*self.means.get(i)?, u16::from(*self.counts.get(i)?));
        (count > 0).then_some((mean, count))
    }

    /// Puts the mean of `count` rows into the bin of `ts`, one of them at `ts`. Too old bins are left out.
    pub(crate) fn set(&mut self, ts: i64, mean: f32, count: u16, capacity: usize) {
        let bin = bin_of(ts);
        if !self.make_room(bin, ts, capacity) {
            return;
        }
        let Some(i) = bin.checked_sub(self.first).and_then(|i| usize::try_from(i).ok()) else { return };
        if let (Some(m), Some(c)) = (self.means.get_mut(i), self.counts.get_mut(i)) {
            (*m, *c) = (mean, u8::try_from(count).unwrap_or(u8::MAX));
        }
        if i == 0 && count > 0 {
            self.first_ts = self.first_ts.min(ts);
        }
    }

    /// Adds one row to the mean of a bin whose other rows are not known any more.
    pub(crate) fn merge(&mut self, ts: i64, value: f64, capacity: usize) {
        let (mean, count) = self.get(bin_of(ts)).map_or((0.0, 0), |(mean, count)| (f64::from(mean), count));
        let more = count.saturating_add(1);
        let mean = mean + (value - mean) / f64::from(more);
        self.set(ts, mean as f32, more, capacity);
    }

    /// Stretches the ring to hold `bin`; false if it is too old to be held.
    fn make_room(&mut self, bin: i64, ts: i64, capacity: usize) -> bool {
        let most = i64::try_from(capacity.max(1)).unwrap_or(i64::MAX);
        let last = self.first.saturating_add(self.len()).saturating_sub(1);
        if self.means.is_empty() || bin.saturating_sub(last) >= most {
            *self = Self { first: bin, first_ts: ts, ..Self::default() };
            self.push_back();
            return true;
        }
        if last.saturating_sub(bin) >= most {
            return false;
        }
        while bin < self.first {
            self.means.push_front(f32::NAN);
            self.counts.push_front(0);
            self.first -= 1;
            self.first_ts = ts;
        }
        for _ in last..bin {
            if self.len() >= most {
                self.means.pop_front();
                self.counts.pop_front();
                self.first += 1;
                self.first_ts = bin_start(self.first);
            }
            self.push_back();
        }
        true
    }

    fn push_back(&mut self) {
        if self.means.len() == self.means.capacity() {
            self.means.reserve_exact(ROOM);
            self.counts.reserve_exact(ROOM);
        }
        self.means.push_back(f32::NAN);
        self.counts.push_back(0);
    }

    /// Means on a grid of `step`, from the first step that was seen whole up to the one at `last`, with its start; steps
    /// without a row are `NaN`. Empty if the series begins later.
    pub(crate) fn grid(&self, step: Step, last: i64) -> (i64, Vec<f32>) {
        let width = step.as_ms();
        let Some(first_ts) = self.first_ts() else { return (last.saturating_add(width), Vec::new()) };
        // A step that the series entered late would hold the mean of its end alone.
        let start = first_ts.saturating_add(width - 1).div_euclid(width).saturating_mul(width);
        if start > last {
            return (last.saturating_add(width), Vec::new());
        }
        let bins = BIN.count_in(width).max(1);
        let steps = (0..).map(|i: i64| start.saturating_add(i.saturating_mul(width))).take_while(|ts| *ts <= last);
        let values = steps.map(|ts| {
            let from = bin_of(ts);
            let known = (from..from.saturating_add(bins)).filter_map(|bin| self.get(bin));
            let (sum, count) = known.fold((0.0f64, 0.0f64), |(sum, n), (mean, count)| {
                (sum + f64::from(mean) * f64::from(count), n + f64::from(count))
            });
            if count > 0.0 { (sum / count) as f32 } else { f32::NAN }
        });
        (start, values.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: i64 = 60_000;

    #[test]
    fn keeps_the_newest_bins_only() {
        let mut ring = Ring::default();
        for i in 0..10 {
            ring.set(i * 5 * M, i as f32, 1, 4);
        }
        assert_eq!(ring.get(5), None);
        assert_eq!(ring.get(6), Some((6.0, 1)));
        assert_eq!(ring.first_ts(), Some(30 * M));
        ring.set(5 * 5 * M, 1.0, 1, 4);
        assert_eq!(ring.get(5), None, "older than what fits");
        ring.set(1000 * 5 * M, 1.0, 1, 4);
        assert_eq!(ring.len(), 1, "a gap longer than the ring starts it anew");
    }

    #[test]
    fn older_rows_stretch_it_to_the_front() {
        let mut ring = Ring::default();
        ring.set(50 * M, 5.0, 1, 100);
        ring.set(41 * M, 4.0, 1, 100);
        assert_eq!(ring.first_ts(), Some(41 * M));
        assert_eq!(ring.get(9), None);
        // The step at 40 min was entered late and is cut; 45 min is missing.
        let (start, values) = ring.grid(BIN, 50 * M);
        assert_eq!(start, 45 * M);
        assert!(values[0].is_nan() && values[1] == 5.0 && values.len() == 2);
    }

    #[test]
    fn wider_steps_weigh_bins_by_their_rows() {
        let mut ring = Ring::default();
        ring.set(0, 1.0, 1, 100);
        ring.set(5 * M, 3.0, 3, 100);
        ring.set(15 * M, 7.0, 1, 100);
        let (start, values) = ring.grid(Step::QUARTER_HOUR, 15 * M);
        assert_eq!((start, values), (0, vec![2.5, 7.0]));
        assert_eq!(ring.grid(Step::QUARTER_HOUR, -15 * M), (0, vec![]));
    }

    #[test]
    fn merging_is_a_running_mean() {
        let mut ring = Ring::default();
        for v in [1.0, 2.0, 6.0] {
            ring.merge(7 * M, v, 10);
        }
        assert_eq!(ring.get(1), Some((3.0, 3)));
    }
}
