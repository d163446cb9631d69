//! Sums over the windows of one series, from which every figure is made.

use foreshard_datasets::{EvalSeries, Event, Protocol, ScaleBasis};
use foreshard_domain::{QuantileForecast, SeriesClass};
use std::ops::Range;

use crate::statistics::mean;

use super::{DECILES, EQUAL, ScoredSeries};

/// Sums of one window.
#[derive(Debug, Clone, Default)]
pub(super) struct WindowTally {
    /// Loss (mean over the deciles), summed over observed steps.
    pub(super) loss: f64,
    /// |y - q.5|, summed.
    pub(super) error: f64,
    /// |y|, summed.
    pub(super) demand: f64,
    /// Observed steps.
    pub(super) points: usize,
    /// The scale that this window is measured by.
    pub(super) scale: Option<f64>,
}

/// Sums of one step of the horizon over all windows.
#[derive(Debug, Clone, Default)]
struct StepTally {
    loss: f64,
    demand: f64,
    points: usize,
    inside: usize,
}

/// The event in one window: whether it happened, and its probability stated in each way.
#[derive(Debug, Clone)]
pub(super) struct EventWindow {
    pub(super) happened: bool,
    pub(super) p_any: Option<f64>,
    pub(super) independent: f64,
    pub(super) max_marginal: f64,
    pub(super) climatology: f64,
}

/// All sums of one series.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    basis: ScaleBasis,
    pub(super) class: SeriesClass,
    pub(super) windows: Vec<WindowTally>,
    steps: Vec<StepTally>,
    pub(super) loss_by_level: Vec<f64>,
    pub(super) below_by_level: Vec<usize>,
    pub(super) width: f64,
    pub(super) missing: usize,
    pub(super) threshold: Option<f64>,
    pub(super) events: Vec<EventWindow>,
}

impl Tally {
    pub(super) fn points(&self) -> usize {
        self.windows.iter().map(|w| w.points).sum()
    }

    pub(super) fn demand(&self) -> f64 {
        self.windows.iter().map(|w| w.demand).sum()
    }

    pub(super) fn loss(&self) -> f64 {
        self.windows.iter().map(|w| w.loss).sum()
    }

    pub(super) fn inside(&self) -> usize {
        self.steps.iter().map(|s| s.inside).sum()
    }

    fn block(&self, steps: &Range<usize>) -> &[StepTally] {
        self.steps.get(steps.clone()).unwrap_or(&[])
    }

    pub(super) fn loss_in(&self, steps: &Range<usize>) -> f64 {
        self.block(steps).iter().map(|s| s.loss).sum()
    }

    pub(super) fn demand_in(&self, steps: &Range<usize>) -> f64 {
        self.block(steps).iter().map(|s| s.demand).sum()
    }

    pub(super) fn points_in(&self, steps: &Range<usize>) -> usize {
        self.block(steps).iter().map(|s| s.points).sum()
    }

    pub(super) fn inside_in(&self, steps: &Range<usize>) -> usize {
        self.block(steps).iter().map(|s| s.inside).sum()
    }

    /// Mean loss in units of the scale; `None` without one.
    pub(super) fn scaled_loss(&self) -> Option<f64> {
        self.scaled(|w| w.loss)
    }

    /// Mean |y - q.5| in units of the scale; `None` without one.
    pub(super) fn scaled_error(&self) -> Option<f64> {
        self.scaled(|w| w.error)
    }

    fn scaled(&self, of: impl Fn(&WindowTally) -> f64) -> Option<f64> {
        match self.basis {
            ScaleBasis::FirstWindow => {
                let scale = self.windows.first().and_then(|w| w.scale)?;
                let points = self.points();
                (points > 0).then(|| self.windows.iter().map(&of).sum::<f64>() / points as f64 / scale)
            }
            ScaleBasis::EachWindow => {
                let each = |w: &WindowTally| {
                    let scale = w.scale?;
                    (w.points > 0).then(|| of(w) / w.points as f64 / scale)
                };
                let scaled: Vec<f64> = self.windows.iter().filter_map(each).collect();
                mean(&scaled)
            }
        }
    }
}

/// Adds up one series. The windows lie inside the values and the deciles inside the levels (checked by the caller).
pub(super) fn tally(one: &ScoredSeries<'_>, protocol: &Protocol, deciles: &[usize; 9]) -> Tally {
    let horizon = one.forecasts.first().map_or(0, QuantileForecast::horizon);
    let levels = one.forecasts.first().map_or(0, |f| f.levels().len());
    let mut tally = Tally {
        basis: protocol.scale,
        class: one.series.class(protocol),
        windows: Vec::with_capacity(one.forecasts.len()),
        steps: vec![StepTally::default(); horizon],
        loss_by_level: vec![0.0; levels],
        below_by_level: vec![0; levels],
        width: 0.0,
        missing: 0,
        threshold: None,
        events: Vec::new(),
    };
    for (w, forecast) in one.forecasts.iter().enumerate() {
        let end = match protocol.scale {
            ScaleBasis::FirstWindow => one.series.first,
            ScaleBasis::EachWindow => one.series.origin(w),
        };
        let scale = Some(one.series.scale(end, protocol.season_steps())).filter(|scale| *scale > EQUAL);
        let mut window = WindowTally { scale, ..WindowTally::default() };
        add_window(&mut tally, &mut window, one.series.truth(w), forecast, deciles);
        tally.windows.push(window);
    }
    add_events(&mut tally, one, protocol);
    tally
}

fn add_window(
    tally: &mut Tally,
    window: &mut WindowTally,
    actual: &[f64],
    forecast: &QuantileForecast,
    deciles: &[usize; 9],
) {
    let levels = forecast.levels().as_slice();
    let rows = forecast.values().chunks_exact(levels.len());
    for ((y, row), step) in actual.iter().zip(rows).zip(&mut tally.steps) {
        if !y.is_finite() {
            tally.missing += 1;
            continue;
        }
        let y = *y;
        let q = |i: usize| row.get(i).map_or(0.0, |v| f64::from(*v));
        let loss = |i: usize, level: f64| 2.0 * (level * (y - q(i))).max((level - 1.0) * (y - q(i)));
        for (i, level) in levels.iter().enumerate() {
            tally.loss_by_level[i] += loss(i, *level);
            tally.below_by_level[i] += usize::from(y <= q(i) + EQUAL);
        }
        let mean = deciles.iter().zip(DECILES).map(|(i, level)| loss(*i, level)).sum::<f64>() / 9.0;
        let (low, high) = (q(deciles[0]), q(deciles[8]));
        window.loss += mean;
        window.error += (y - q(deciles[4])).abs();
        window.demand += y.abs();
        window.points += 1;
        step.loss += mean;
        step.demand += y.abs();
        step.points += 1;
        step.inside += usize::from(y >= low - EQUAL && y <= high + EQUAL);
        tally.width += high - low;
    }
}

fn add_events(tally: &mut Tally, one: &ScoredSeries<'_>, protocol: &Protocol) {
    let Event::TrainQuantile(level) = protocol.event else { return };
    let limit = one.series.threshold(level);
    if !limit.is_finite() {
        return;
    }
    tally.threshold = Some(limit);
    let climatology = one.series.base_rate(limit);
    for (w, forecast) in one.forecasts.iter().enumerate() {
        let Some(happened) = one.series.event(w, limit) else { continue };
        let p = step_probabilities(one.series, w, forecast, limit);
        tally.events.push(EventWindow {
            happened,
            p_any: one.p_any.and_then(|p| p.get(w)).copied(),
            independent: 1.0 - p.iter().map(|p| 1.0 - p).product::<f64>(),
            max_marginal: p.iter().copied().fold(0.0, f64::max),
            climatology,
        });
    }
}

/// P(y > limit) of the steps that were observed.
fn step_probabilities(series: &EvalSeries, window: usize, forecast: &QuantileForecast, limit: f64) -> Vec<f64> {
    let observed = series.truth(window).iter().enumerate().filter(|(_, y)| y.is_finite());
    observed.map(|(step, _)| forecast.exceedance(step, limit)).collect()
}
