//! What a history holds: cover, gaps, size and rhythm of its values.

use std::collections::BTreeMap;

use foreshard_domain::{Metric, ShardId, Step};
use serde::Serialize;

use crate::windows::quantile;
use crate::{GridSeries, History, ReadReport};

/// What a history holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// Rows after repeated ones were dropped.
    pub rows: u64,
    /// Number of shards.
    pub shards: usize,
    /// First row, RFC 3339.
    pub first: Option<String>,
    /// Last row, RFC 3339.
    pub last: Option<String>,
    /// Smallest distance between rows of a shard, in milliseconds.
    pub native_step_ms: Option<i64>,
    /// Rows there are over rows there would be if every shard had one at each step from its first to its last.
    pub coverage: f64,
    /// Stretches without rows, over all shards.
    pub gaps: u64,
    /// The longest of them, in milliseconds.
    pub longest_gap_ms: i64,
    /// Shards whose every metric never changes.
    pub constant_shards: usize,
    /// What was odd while reading.
    pub read: ReadReport,
    /// SHA-256 of the content.
    pub fingerprint: String,
    /// By metric.
    pub metrics: BTreeMap<Metric, MetricInspection>,
}

/// One metric over all shards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricInspection {
    /// Shards that have any value.
    pub shards: usize,
    /// Values.
    pub values: u64,
    /// Rows of those shards without a value.
    pub missing: u64,
    /// Values below what is physically possible.
    pub below_bound: u64,
    /// Smallest value.
    pub min: f64,
    /// Mean.
    pub mean: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest value.
    pub max: f64,
    /// Share of the variance that the time of day explains, median over the shards; about 0 for noise.
    pub daily_strength: Option<f64>,
    /// Share of the variance that the time of the week explains, median over the shards.
    pub weekly_strength: Option<f64>,
    /// Correlation with the step before, median over the shards.
    pub lag_1: Option<f64>,
}

/// Looks at everything in a history.
pub fn inspect(history: &History) -> Inspection {
    let span = history.span();
    let native = history.native_step();
    let gaps = native.map(|native| Gaps::of(history, native)).unwrap_or_default();
    let metrics = Metric::ALL.into_iter().filter_map(|m| Some((m, metric(history, m, native)?))).collect();
    let constant = |shard: &&ShardId| history.metrics_of(shard).into_iter().all(|m| is_constant(history, shard, m));
    Inspection {
        rows: history.rows(),
        shards: history.shards().count(),
        first: span.map(|(first, _)| first.to_string()),
        last: span.map(|(_, last)| last.to_string()),
        native_step_ms: native.map(Step::as_ms),
        coverage: if gaps.expected == 0 { 1.0 } else { history.rows() as f64 / gaps.expected as f64 },
        gaps: gaps.count,
        longest_gap_ms: gaps.longest_ms,
        constant_shards: history.shards().filter(constant).count(),
        read: history.report().clone(),
        fingerprint: history.fingerprint(),
        metrics,
    }
}

#[derive(Default)]
struct Gaps {
    expected: u64,
    count: u64,
    longest_ms: i64,
}

impl Gaps {
    fn of(history: &History, native: Step) -> Self {
        let mut gaps = Self::default();
        for (_, rows) in history.parts() {
            let (Some(first), Some(last)) = (rows.ts.first(), rows.ts.last()) else { continue };
            let steps = native.count_in(last.saturating_sub(*first)).saturating_add(1);
            gaps.expected += u64::try_from(steps).unwrap_or(0);
            for distance in rows.ts.windows(2).map(|pair| pair[1] - pair[0]).filter(|d| *d > native.as_ms()) {
                gaps.count += 1;
                gaps.longest_ms = gaps.longest_ms.max(distance - native.as_ms());
            }
        }
        gaps
    }
}

fn is_constant(history: &History, shard: &ShardId, metric: Metric) -> bool {
    let mut values = history.samples(shard, metric).map(|(_, v)| v);
    let first = values.next();
    values.all(|v| Some(v) == first)
}

fn metric(history: &History, metric: Metric, native: Option<Step>) -> Option<MetricInspection> {
    let with: Vec<&ShardId> = history.shards().filter(|s| history.metrics_of(s).contains(&metric)).collect();
    let mut values: Vec<f64> = Vec::new();
    let mut rows = 0u64;
    for shard in &with {
        values.extend(history.samples(shard, metric).map(|(_, v)| v));
        rows += history.rows_of(shard) as u64;
    }
    if values.is_empty() {
        return None;
    }
    values.sort_by(f64::total_cmp);
    let grids: Vec<GridSeries> = native
        .map(|n| with.iter().filter_map(|s| Some(history.exact_grid(s, metric, n, n)?.rounded())).collect())
        .unwrap_or_default();
    let over = |f: &dyn Fn(&GridSeries) -> Option<f64>| median(grids.iter().filter_map(f).collect());
    Some(MetricInspection {
        shards: with.len(),
        values: values.len() as u64,
        missing: rows - values.len() as u64,
        below_bound: metric.lower_bound().map_or(0, |least| values.partition_point(|v| *v < least) as u64),
        min: quantile(&values, 0.0),
        mean: values.iter().sum::<f64>() / values.len() as f64,
        p99: quantile(&values, 0.99),
        max: quantile(&values, 1.0),
        daily_strength: over(&|g| g.season_strength(Step::DAY)),
        weekly_strength: over(&|g| g.season_strength(Step::from_ms(7 * Step::DAY.as_ms())?)),
        lag_1: over(&lag_1),
    })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    Some(quantile(&values, 0.5)).filter(|m| m.is_finite())
}

impl GridSeries {
    /// Share of the variance that the place within the season explains, corrected for the number of seasons, so that noise
    /// gives about 0 (and slightly less at times). `None` for less than two seasons, constant series, or a season that is
    /// no multiple of the step.
    pub fn season_strength(&self, season: Step) -> Option<f64> {
        let period = usize::try_from(self.step.count_in(season.as_ms())).ok()?;
        if season.as_ms() % self.step.as_ms() != 0 || period < 2 || self.values.len() < 2 * period {
            return None;
        }
        let place = |i: usize| i % period;
        let mut sums = vec![(0.0f64, 0u32); period];
        for (i, value) in self.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let slot = sums.get_mut(place(i))?;
            slot.0 += f64::from(*value);
            slot.1 += 1;
        }
        let n: u32 = sums.iter().map(|(_, count)| count).sum();
        let used = sums.iter().filter(|(_, count)| *count > 0).count() as f64;
        let mean = sums.iter().map(|(sum, _)| sum).sum::<f64>() / f64::from(n.max(1));
        let (mut left, mut all) = (0.0, 0.0);
        for (i, value) in self.values.iter().enumerate().filter(|(_, v)| v.is_finite()) {
            let (sum, count) = sums.get(place(i)).copied()?;
            left += (f64::from(*value) - sum / f64::from(count.max(1))).powi(2);
            all += (f64::from(*value) - mean).powi(2);
        }
        let free = f64::from(n) - used;
        if all <= 0.0 || free < 1.0 {
            return None;
        }
        Some(1.0 - (left / free) / (all / (f64::from(n) - 1.0)))
    }
}

/// Correlation of neighbouring values.
fn lag_1(series: &GridSeries) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = series
        .values
        .windows(2)
        .map(|pair| (f64::from(pair[0]), f64::from(pair[1])))
        .filter(|(a, b)| a.is_finite() && b.is_finite())
        .collect();
    let n = pairs.len() as f64;
    let (mean_a, mean_b) = (pairs.iter().map(|p| p.0).sum::<f64>() / n, pairs.iter().map(|p| p.1).sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in pairs {
        ab += (a - mean_a) * (b - mean_b);
        aa += (a - mean_a).powi(2);
        bb += (b - mean_b).powi(2);
    }
    Some(ab / (aa * bb).sqrt()).filter(|r| r.is_finite())
}
