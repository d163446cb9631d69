//! The series and windows of an evaluation, and what is judged against them.

use std::sync::Arc;

use foreshard_domain::{Metric, ShardId, Step, Timestamp};
use serde::Serialize;

use crate::protocol::{Protocol, Target};
use crate::{EventCalendar, GridSeries, History};

/// Slack when a value is compared with a threshold that may equal it.
const EQUAL: f64 = 1e-9;
/// Least number of seasons before the first window.
const LEAST_SEASONS: usize = 2;

/// A series with its windows at the end. What lies before place `origin(w)` may be known when window `w` is forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalSeries {
    /// Whose series.
    pub shard: ShardId,
    /// Which metric.
    pub metric: Metric,
    /// All values, the windows included: what forecasters are told, as far as they may know it.
    pub series: GridSeries,
    /// The same values before they were rounded to 32 bits: what forecasts are judged by. Where a forecast repeats a value,
    /// rounding would decide on which side of it the truth lies.
    pub measured: Vec<f64>,
    /// Place of the first step of the first window.
    pub first: usize,
    /// Steps of a window.
    pub horizon: usize,
    /// Number of windows.
    pub windows: usize,
    /// Steps from one window to the next.
    pub stride: usize,
    /// Events that were announced before the windows; none unless the caller knows of some.
    pub events: Arc<EventCalendar>,
}

impl EvalSeries {
    /// Place of the first step of window `w`.
    pub fn origin(&self, w: usize) -> usize {
        self.first + w * self.stride
    }

    /// Time of the last step before window `w`: what a forecast of it is issued at.
    pub fn issued_at(&self, w: usize) -> Timestamp {
        self.series.time_of(self.origin(w)).plus_steps(-1, self.series.step)
    }

    /// What came in window `w`; NaN = missing; empty for a window that is not there.
    pub fn actual(&self, w: usize) -> &[f32] {
        let origin = self.origin(w);
        self.series.values.get(origin..origin.saturating_add(self.horizon)).unwrap_or_default()
    }

    /// What came in window `w` as it was measured; NaN = missing; empty for a window that is not there.
    pub fn truth(&self, w: usize) -> &[f64] {
        let origin = self.origin(w);
        self.measured.get(origin..origin.saturating_add(self.horizon)).unwrap_or_default()
    }

    fn measured_before(&self, end: usize) -> &[f64] {
        self.measured.get(..end).unwrap_or(&self.measured)
    }

    /// What may be known when window `w` is forecast.
    pub fn known(&self, w: usize) -> &[f32] {
        self.series.window_up_to(self.origin(w))
    }

    /// The quantile of the values before the first window, by linear interpolation; NaN if there are none.
    pub fn threshold(&self, level: f64) -> f64 {
        let mut known: Vec<f64> = self.measured_before(self.first).iter().copied().filter(|v| v.is_finite()).collect();
        known.sort_by(f64::total_cmp);
        quantile(&known, level)
    }

    /// Mean absolute difference to the value a season earlier, over the values before place `end`; 0 if there is none.
    pub fn scale(&self, end: usize, season_steps: usize) -> f64 {
        let values = self.measured_before(end);
        let later = values.get(season_steps..).unwrap_or_default();
        let difference = |(a, b): (&f64, &f64)| (a - b).abs();
        let known: Vec<f64> = later.iter().zip(values).map(difference).filter(|d| d.is_finite()).collect();
        if known.is_empty() { 0.0 } else { known.iter().sum::<f64>() / known.len() as f64 }
    }

    /// Share of the earlier windows of this length with a value over the threshold, (k + 0.5) / (n + 1). Windows with less
    /// than half of their steps known do not count.
    pub fn base_rate(&self, threshold: f64) -> f64 {
        let known = self.measured_before(self.first);
        let skipped = known.len() % self.horizon.max(1);
        let earlier = known.get(skipped..).unwrap_or_default().chunks_exact(self.horizon.max(1));
        let (mut n, mut hits) = (0u32, 0u32);
        for window in earlier.filter(|w| mostly_known(w)) {
            n += 1;
            hits += u32::from(exceeds(window, threshold));
        }
        (f64::from(hits) + 0.5) / (f64::from(n) + 1.0)
    }

    /// Whether any known step of window `w` is over the threshold; `None` if less than half of the steps are known.
    pub fn event(&self, w: usize, threshold: f64) -> Option<bool> {
        let truth = self.truth(w);
        mostly_known(truth).then(|| exceeds(truth, threshold))
    }
}

fn mostly_known(window: &[f64]) -> bool {
    !window.is_empty() && window.iter().filter(|v| v.is_finite()).count() * 2 >= window.len()
}

fn exceeds(window: &[f64], threshold: f64) -> bool {
    window.iter().any(|v| *v > threshold + EQUAL)
}

/// Quantile of sorted values, linear between neighbours; NaN for none.
pub fn quantile(sorted: &[f64], level: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = (level.clamp(0.0, 1.0) * last as f64).clamp(0.0, last as f64);
    let lower = place.floor();
    // `place` lies within 0..=last by the clamp above.
    let i = lower as usize;
    let (a, b) = (sorted[i.min(last)], sorted[(i + 1).min(last)]);
    let share = place - lower;
    // The form that is exact at both ends, as numpy computes it.
    if share < 0.5 { a + (b - a) * share } else { b - (b - a) * (1.0 - share) }
}

/// Why a shard takes no part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftOutReason {
    /// It has no value of the target.
    NoTarget,
    /// Less than two seasons, or fewer values than one season, lie before its first window.
    TooShort,
    /// Nothing was measured in its windows.
    NoValueInWindows,
    /// The history's rows lie further apart than the steps of the protocol.
    TooCoarse,
}

impl std::fmt::Display for LeftOutReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            LeftOutReason::NoTarget => "it has no value of the target",
            LeftOutReason::TooShort => "too little lies before its first window",
            LeftOutReason::NoValueInWindows => "nothing was measured in its windows",
            LeftOutReason::TooCoarse => "its rows lie further apart than the steps of the protocol",
        })
    }
}

/// A shard that takes no part, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The shard.
    pub shard: ShardId,
    /// Why.
    pub why: LeftOutReason,
}

/// Chooses the series of an evaluation, in the order of their names, and lays the windows at the end of each. Shards with
/// a target count towards `max_series` even if they turn out too short, so that the choice does not depend on lengths.
pub fn evaluation_series(history: &History, protocol: &Protocol) -> (Vec<EvalSeries>, Vec<LeftOut>) {
    let (mut chosen, mut left) = (Vec::new(), Vec::new());
    let native = history.native_step().unwrap_or(protocol.step);
    let mut taken = 0;
    for shard in history.shards() {
        if protocol.max_series.is_some_and(|most| taken >= most) {
            break;
        }
        let mut leave = |why| left.push(LeftOut { shard: shard.clone(), why });
        let Some(metric) = target_of(history, shard, protocol.target) else {
            leave(LeftOutReason::NoTarget);
            continue;
        };
        taken += 1;
        match EvalSeries::lay(history, shard, metric, native, protocol) {
            Ok(series) => chosen.push(series),
            Err(why) => leave(why),
        }
    }
    (chosen, left)
}

fn target_of(history: &History, shard: &ShardId, target: Target) -> Option<Metric> {
    let has = history.metrics_of(shard);
    let wanted: &[Metric] = match &target {
        Target::First => &[Metric::CpuUtil, Metric::TxnRate, Metric::Value],
        Target::Metric(metric) => std::slice::from_ref(metric),
    };
    wanted.iter().copied().find(|m| has.contains(m))
}

impl EvalSeries {
    /// One metric of one shard with the windows of a protocol at its end. `native` is the distance of the rows of the
    /// whole history, which may be more than what is given here.
    ///
    /// # Errors
    /// Why it cannot take part.
    pub fn lay(
        history: &History,
        shard: &ShardId,
        metric: Metric,
        native: Step,
        protocol: &Protocol,
    ) -> Result<Self, LeftOutReason> {
        if native > protocol.step {
            return Err(LeftOutReason::TooCoarse);
        }
        let exact = history.exact_grid(shard, metric, protocol.step, native).ok_or(LeftOutReason::TooShort)?;
        let series = exact.rounded();
        let covered =
            protocol.windows.saturating_sub(1).saturating_mul(protocol.stride).saturating_add(protocol.horizon);
        let first = series.values.len().checked_sub(covered).ok_or(LeftOutReason::TooShort)?;
        let season = protocol.season_steps();
        let known = series.window_up_to(first).iter().filter(|v| v.is_finite()).count();
        if first < LEAST_SEASONS * season || known < season {
            return Err(LeftOutReason::TooShort);
        }
        let (horizon, windows, stride) = (protocol.horizon, protocol.windows, protocol.stride);
        let laid = EvalSeries {
            shard: shard.clone(),
            metric,
            series,
            measured: exact.values,
            first,
            horizon,
            windows,
            stride,
            events: Arc::default(),
        };
        let any = (0..windows).any(|w| laid.actual(w).iter().any(|v| v.is_finite()));
        if any { Ok(laid) } else { Err(LeftOutReason::NoValueInWindows) }
    }
}
