//! The newest values: levels, spreads and how fast the series drifts away from its last value.

use super::slots::Slots;
use super::{ORIGIN_ANCHORS, ORIGIN_INPUTS, ORIGIN_SPREADS};
use crate::statistics::{deviation, mean, mean_abs_difference, sorted_quantile, squash};

/// What an origin knows of the newest values, in z.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recent {
    pub inputs: [f32; ORIGIN_INPUTS],
    pub anchors: [f32; ORIGIN_ANCHORS],
    pub spreads: [f32; ORIGIN_SPREADS],
    /// Mean residual of the last 12 values against their slots.
    pub residual: f32,
    /// Mean of the last 12 values less that of the same stretch a season earlier.
    pub level: f32,
}

/// The last `n` values, fewer where there are fewer.
fn tail(z: &[f32], n: usize) -> &[f32] {
    z.get(z.len().saturating_sub(n)..).unwrap_or(&[])
}

/// The last `n` values as they were `lag` steps earlier.
fn tail_before(z: &[f32], n: usize, lag: usize) -> &[f32] {
    z.get(..z.len().saturating_sub(lag)).map_or(&[], |earlier| tail(earlier, n))
}

impl Recent {
    pub(super) fn new(z: &[f32], season: usize, slots: &Slots, scratch: &mut Vec<f32>) -> Self {
        let (day, week) = (tail(z, season), tail(z, season * 7));
        let last = z.last().copied().unwrap_or(0.0);
        let [mean_3, mean_6, mean_12] = [3, 6, 12].map(|n| mean(tail(z, n)));
        let mean_day = mean(day);
        let level = mean_12 - mean(tail_before(z, 12, season));
        let (dev_12, dev_day) = (deviation(tail(z, 12)), deviation(day));
        let seasonal_error = |n: usize| mean_abs_difference(tail(z, n), tail_before(z, n, season));
        let [error_12, error_day, error_week] = [12, season, season * 7].map(seasonal_error);
        let residuals = [3, 12, 36].map(|n| slots.residual(z, n));
        let of_day = quantiles(day, [0.1, 0.25, 0.5, 0.75, 0.9], scratch);
        let of_week = quantiles(week, [0.05, 0.25, 0.5, 0.75, 0.95], scratch);
        let (median_day, lower_week, median_week) = (of_day[2], of_week[1], of_week[2]);

        let mut inputs = [0.0; ORIGIN_INPUTS];
        let plain = [last, mean_3, mean_12, mean_day, level, dev_12, mean_6];
        let errors = [error_12, error_day, error_week, dev_day];
        let values = plain.into_iter().chain(residuals).chain(errors).chain(of_day).chain(of_week);
        for (input, value) in inputs.iter_mut().zip(values) {
            *input = squash(value);
        }
        Self {
            inputs,
            anchors: [median_week, mean_day, last, mean_3, mean_6, mean_12, median_day, lower_week],
            spreads: [error_week, error_day, 1.0, dev_day, dev_12],
            residual: residuals[1],
            level,
        }
    }
}

fn quantiles(values: &[f32], levels: [f64; 5], scratch: &mut Vec<f32>) -> [f32; 5] {
    scratch.clear();
    scratch.extend_from_slice(values);
    // The two ranks that each level lies between.
    let last = scratch.len().saturating_sub(1);
    let mut ranks = [0usize; 10];
    for (pair, level) in ranks.chunks_exact_mut(2).zip(levels) {
        let low = (level * last as f64).floor() as usize;
        pair.copy_from_slice(&[low.min(last), (low + 1).min(last)]);
    }
    ranks.sort_unstable();
    put_ranks(scratch, 0, &ranks);
    levels.map(|level| sorted_quantile(scratch, level))
}

/// Puts the values of these ranks, which never fall, where they would stand in rising order; the first value has rank `first`.
/// It takes half the time of a sort of a week.
fn put_ranks(values: &mut [f32], first: usize, ranks: &[usize]) {
    let Some(rank) = ranks.get(ranks.len() / 2) else { return };
    let Some(at) = rank.checked_sub(first).filter(|at| *at < values.len()) else { return };
    let (below, _, above) = values.select_nth_unstable_by(at, f32::total_cmp);
    // Equal ranks are in place already.
    let (low, high) = (ranks.partition_point(|r| r < rank), ranks.partition_point(|r| r <= rank));
    put_ranks(below, first, &ranks[..low]);
    put_ranks(above, rank + 1, &ranks[high..]);
}

/// Mean |x(t) - x(t - distance)| over the last `n` values: how far the last value is off at this distance, typically.
pub(super) fn drift(z: &[f32], distance: usize, n: usize) -> f32 {
    mean_abs_difference(tail(z, n), tail_before(z, n, distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_values() {
        let levels = [0.05, 0.25, 0.5, 0.75, 0.95];
        for n in [0, 1, 2, 3, 4, 5, 6, 10, 288, 2016] {
            let values: Vec<f32> =
                (0..n).map(|i| ((i * 7919) % 1009) as f32 / if i % 3 == 0 { 50.0 } else { 1.0 }).collect();
            let mut sorted = values.clone();
            sorted.sort_unstable_by(f32::total_cmp);
            assert_eq!(quantiles(&values, levels, &mut Vec::new()), levels.map(|l| sorted_quantile(&sorted, l)), "{n}");
        }
    }

    #[test]
    fn reads_the_newest_values() {
        let season = 12;
        let z: Vec<f32> = (0..12 * 28).map(|i| (i % 12) as f32).collect();
        let mut slots = Slots::default();
        slots.fill(&z, season, 1);
        let recent = Recent::new(&z, season, &slots, &mut Vec::new());
        assert_eq!(recent.anchors[2..6], [11.0, 10.0, 8.5, 5.5]);
        assert_eq!((recent.level, recent.spreads[0], recent.spreads[1]), (0.0, 0.0, 0.0));
        assert!(recent.residual.abs() < 1e-5);
        assert_eq!(recent.inputs[0], squash(11.0));
        assert_eq!(recent.anchors[7], 2.75f32.floor() + 0.75 - 0.0);
        assert_eq!(drift(&z, 12, 84), 0.0);
        assert!((drift(&z, 1, 84) - 22.0 / 12.0).abs() < 1e-5);
    }
}
