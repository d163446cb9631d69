//! A series on a regular grid.

use foreshard_domain::{Step, Timestamp};

/// Most bins that a grid may have; more can only come from a mistaken time or step.
const MOST_BINS: i64 = 1 << 26;

/// Values on a regular grid counted from the epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct GridSeries {
    /// Time of the first value.
    pub start: Timestamp,
    /// Distance of the values.
    pub step: Step,
    /// The values; NaN = missing. The first and the last belong to bins with full cover, but may be missing themselves.
    pub values: Vec<f32>,
}

impl GridSeries {
    /// First grid time after the last value.
    pub fn end(&self) -> Timestamp {
        self.time_of(self.values.len())
    }

    /// Place of the bin that begins at `ts`; `None` off the grid or outside the series.
    pub fn index_of(&self, ts: Timestamp) -> Option<usize> {
        let ms = ts.since_ms(self.start);
        if ms < 0 || ms % self.step.as_ms() != 0 {
            return None;
        }
        usize::try_from(ms / self.step.as_ms()).ok().filter(|i| *i < self.values.len())
    }

    /// Time of the value at place `i`, also beyond the end.
    pub fn time_of(&self, i: usize) -> Timestamp {
        self.start.plus_steps(i64::try_from(i).unwrap_or(i64::MAX), self.step)
    }

    /// The values before place `end_exclusive`: all that may be known there.
    pub fn window_up_to(&self, end_exclusive: usize) -> &[f32] {
        self.values.get(..end_exclusive).unwrap_or(&self.values)
    }

    /// Share of the values that are missing; 0 for an empty series.
    pub fn missing_share(&self) -> f64 {
        let missing = self.values.iter().filter(|v| v.is_nan()).count();
        missing as f64 / self.values.len().max(1) as f64
    }
}

/// A grid before its values are rounded to 32 bits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ExactGrid {
    pub start: Timestamp,
    pub step: Step,
    pub values: Vec<f64>,
}

impl ExactGrid {
    /// The grid that forecasters work on.
    pub(crate) fn rounded(&self) -> GridSeries {
        GridSeries { start: self.start, step: self.step, values: self.values.iter().map(|v| *v as f32).collect() }
    }
}

/// Means of the bins [k x step, (k + 1) x step); a bin that the samples enter late or leave early is cut off.
///
/// `ts` rises; `values` lies beside it, NaN = missing. `native` is the distance of the samples.
pub(crate) fn to_grid(ts: &[i64], values: &[f64], step: Step, native: Step) -> Option<ExactGrid> {
    let known = || ts.iter().zip(values).filter(|(_, v)| !v.is_nan());
    let (first, _) = known().next()?;
    let (last, _) = known().next_back()?;
    let width = step.as_ms();
    let mut lo = first.div_euclid(width);
    let mut hi = last.div_euclid(width);
    if lo * width < *first {
        lo += 1;
    }
    if (hi + 1) * width - native.as_ms() > *last {
        hi -= 1;
    }
    if hi < lo || hi - lo >= MOST_BINS {
        return None;
    }
    let bins = usize::try_from(hi - lo + 1).ok()?;
    let mut sums = vec![0.0f64; bins];
    let mut counts = vec![0u32; bins];
    for (t, v) in known() {
        let Ok(bin) = usize::try_from(t.div_euclid(width) - lo) else { continue };
        if let (Some(sum), Some(count)) = (sums.get_mut(bin), counts.get_mut(bin)) {
            *sum += v;
            *count += 1;
        }
    }
    let mean = |(sum, count): (&f64, &u32)| if *count == 0 { f64::NAN } else { sum / f64::from(*count) };
    let values = sums.iter().zip(&counts).map(mean).collect();
    Some(ExactGrid { start: Timestamp::from_ms(lo * width), step, values })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(step: i64) -> Step {
        Step::from_ms(step * 60_000).unwrap()
    }

    #[test]
    fn cuts_bins_without_full_cover() {
        // Five-minute samples from 00:05 to 00:50 on a quarter-hour grid: 00:00 begins late, 00:45 ends early.
        let ts: Vec<i64> = (1..=10).map(|i| i * 300_000).collect();
        let values: Vec<f64> = (1..=10).map(f64::from).collect();
        let series = to_grid(&ts, &values, minutes(15), minutes(5)).unwrap().rounded();
        assert_eq!(series.start, Timestamp::from_ms(900_000));
        assert_eq!(series.values, vec![4.0, 7.0]);
        assert_eq!(series.end(), Timestamp::from_ms(2_700_000));
    }

    #[test]
    fn gaps_stay_gaps() {
        let series = to_grid(&[0, 300_000, 1_200_000], &[1.0, f64::NAN, 3.0], minutes(5), minutes(5)).unwrap();
        let series = series.rounded();
        assert_eq!(series.values.len(), 5);
        assert_eq!(series.values[0], 1.0);
        assert!(series.values[1..4].iter().all(|v| v.is_nan()));
        assert_eq!(series.index_of(Timestamp::from_ms(1_200_000)), Some(4));
        assert_eq!(series.index_of(Timestamp::from_ms(1_200_001)), None);
        assert_eq!(series.index_of(Timestamp::from_ms(1_500_000)), None);
        assert!((series.missing_share() - 0.6).abs() < 1e-12);
    }

    #[test]
    fn nothing_without_a_full_bin() {
        assert_eq!(to_grid(&[300_000], &[1.0], minutes(15), minutes(5)), None);
        assert_eq!(to_grid(&[0], &[f64::NAN], minutes(5), minutes(5)), None);
        assert_eq!(to_grid(&[], &[], minutes(5), minutes(5)), None);
    }
}
