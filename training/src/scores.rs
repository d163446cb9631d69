//! Figures of quantile forecasts: weighted and scaled quantile loss, coverage, and the Brier score of an event.
//!
//! Everything is computed in f64, series by series, and added up in the order of the series' names, so that the order in
//! which series are given does not show in the last digit.

mod series;

use foreshard_datasets::{EvalSeries, Protocol};
use foreshard_domain::{
    ClassFigure, EventFigures, EventScores, LevelFigure, Metric, QuantileForecast, QuantileLevels, Scores, SeriesClass,
    ShardId, StepsFigure,
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use self::series::Tally;
use crate::statistics::{mean, median, ratio};

/// Levels that enter every loss.
pub(crate) const DECILES: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Differences below this count as equal, so that sums in another order do not flip a comparison.
pub(crate) const EQUAL: f64 = 1e-9;
/// A scaled loss below this counts as this in the geometric mean: one series that never moves must not rule it.
const LEAST_SCALED_LOSS: f64 = 1e-3;
/// Ends of the blocks of steps, as far as the horizon reaches beyond them.
const BLOCK_ENDS: [usize; 5] = [3, 12, 24, 48, 96];

/// One series and its forecasts.
#[derive(Debug, Clone, Copy)]
pub struct ScoredSeries<'a> {
    /// The series and its windows.
    pub series: &'a EvalSeries,
    /// The forecast of each window, in order.
    pub forecasts: &'a [QuantileForecast],
    /// The probability of the event in each window, if it was given.
    pub p_any: Option<&'a [f64]>,
}

/// Figures of one series.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesScores {
    /// Whose.
    pub shard: ShardId,
    /// Of what.
    pub metric: Metric,
    /// What it is like.
    pub class: SeriesClass,
    /// Observed steps.
    pub points: usize,
    /// Loss over demand; `None` without demand.
    pub wql: Option<f64>,
    /// Mean loss in units of the scale.
    pub sql: Option<f64>,
    /// Mean |y - q.5| in units of the scale.
    pub mase: Option<f64>,
    /// Share of observed steps between q.1 and q.9.
    pub coverage_80: Option<f64>,
    /// This series' share of the loss of all.
    pub share_of_wql: f64,
    /// Its scale (of the first window).
    pub scale: Option<f64>,
    /// The limit of the event.
    pub threshold: Option<f64>,
    /// Windows in which the event happened.
    pub events: usize,
    /// Loss over demand of each window.
    pub wql_by_window: Vec<Option<f64>>,
    /// Loss of each window.
    pub loss_by_window: Vec<f64>,
}

/// Why forecasts cannot be scored.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScoreError {
    /// There is nothing to score.
    #[error(
        "no series to score; the history is too short for the windows of this protocol, or holds no value of its target"
    )]
    NoSeries,
    /// A forecast lacks a level of the losses.
    #[error("the forecasts have no quantile level {level}; scores need the levels .1, .2 to .9")]
    LevelMissing {
        /// The level.
        level: f64,
    },
    /// Forecasts differ in their levels or horizon.
    #[error("the forecasts of {shard} have other levels or another horizon than those of the other series")]
    Mixed {
        /// Whose.
        shard: ShardId,
    },
    /// The windows do not fit into the series, or a probability is missing.
    #[error(
        "the windows of {shard} reach past the end of its values, or not every window has its forecast and probability"
    )]
    Windows {
        /// Whose.
        shard: ShardId,
    },
}

/// Positions of the deciles among the levels of a forecast.
fn decile_positions(forecast: &QuantileForecast) -> Result<[usize; 9], ScoreError> {
    let mut positions = [0; 9];
    for (position, level) in positions.iter_mut().zip(DECILES) {
        *position = forecast.levels().position(level).ok_or(ScoreError::LevelMissing { level })?;
    }
    Ok(positions)
}

fn check(all: &[ScoredSeries<'_>]) -> Result<(usize, usize), ScoreError> {
    let first = all.iter().find_map(|s| s.forecasts.first()).ok_or(ScoreError::NoSeries)?;
    let windows = all.iter().map(|s| s.forecasts.len()).max().unwrap_or(0);
    let horizon = first.horizon();
    for one in all {
        let shard = || one.series.shard.clone();
        if one.forecasts.iter().any(|f| f.levels() != first.levels() || f.horizon() != horizon) {
            return Err(ScoreError::Mixed { shard: shard() });
        }
        let inside = (0..one.series.windows).all(|w| one.series.truth(w).len() == horizon);
        let odd = one.p_any.is_some_and(|p| p.len() != one.series.windows);
        if one.forecasts.is_empty() || one.forecasts.len() != one.series.windows || !inside || odd {
            return Err(ScoreError::Windows { shard: shard() });
        }
    }
    Ok((windows, horizon))
}

/// Scores forecasts: the figures over everything, and those of each series in the order given.
///
/// # Errors
/// [`ScoreError`] if there is nothing to score or the forecasts do not fit the series or one another.
pub fn score(all: &[ScoredSeries<'_>], protocol: &Protocol) -> Result<(Scores, Vec<SeriesScores>), ScoreError> {
    check(all)?;
    total(&all.par_iter().map(|s| Tallied::of(s, protocol)).collect::<Result<Vec<_>, _>>()?)
}

/// What is kept of a series and its forecasts once they have been compared.
#[derive(Debug, Clone)]
pub(crate) struct Tallied {
    shard: ShardId,
    metric: Metric,
    windows: usize,
    horizon: usize,
    levels: QuantileLevels,
    deciles: [usize; 9],
    tally: Tally,
}

impl Tallied {
    /// Compares the forecasts of one series with what came.
    pub(crate) fn of(one: &ScoredSeries<'_>, protocol: &Protocol) -> Result<Self, ScoreError> {
        let (windows, horizon) = check(std::slice::from_ref(one))?;
        let first = one.forecasts.first().ok_or(ScoreError::NoSeries)?;
        let deciles = decile_positions(first)?;
        let tally = series::tally(one, protocol, &deciles);
        let (shard, metric, levels) = (one.series.shard.clone(), one.series.metric, first.levels().clone());
        Ok(Self { shard, metric, windows, horizon, levels, deciles, tally })
    }
}

/// The figures over all series, and those of each in the order given.
pub(crate) fn total(all: &[Tallied]) -> Result<(Scores, Vec<SeriesScores>), ScoreError> {
    let first = all.first().ok_or(ScoreError::NoSeries)?;
    let (levels, deciles, horizon) = (&first.levels, &first.deciles, first.horizon);
    if let Some(other) = all.iter().find(|t| t.levels != *levels || t.horizon != horizon) {
        return Err(ScoreError::Mixed { shard: other.shard.clone() });
    }
    let windows = all.iter().map(|t| t.windows).max().unwrap_or(0);
    let mut ordered: Vec<&Tallied> = all.iter().collect();
    ordered.sort_by(|a, b| (&a.shard, a.metric).cmp(&(&b.shard, b.metric)));
    let ordered: Vec<&Tally> = ordered.into_iter().map(|one| &one.tally).collect();
    let scores = overall(&ordered, levels.as_slice(), deciles, windows, horizon);
    let loss: f64 = ordered.iter().map(|t| t.loss()).sum();
    Ok((scores, all.iter().map(|one| of_series(one, loss)).collect()))
}

fn overall(tallies: &[&Tally], levels: &[f64], deciles: &[usize; 9], windows: usize, horizon: usize) -> Scores {
    let sum = |f: &dyn Fn(&Tally) -> f64| tallies.iter().map(|t| f(t)).sum::<f64>();
    let count = |f: &dyn Fn(&Tally) -> usize| tallies.iter().map(|t| f(t)).sum::<usize>();
    let (points, demand) = (count(&|t| t.points()), sum(&|t| t.demand()));
    let sql: Vec<f64> = tallies.iter().filter_map(|t| t.scaled_loss()).collect();
    let mase: Vec<f64> = tallies.iter().filter_map(|t| t.scaled_error()).collect();
    let at = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(0.0);
    let wql_of = |i: usize| ratio(sum(&|t| at(&t.loss_by_level, i)), demand);
    let by_level = |f: &dyn Fn(usize) -> Option<f64>| -> Vec<LevelFigure> {
        let figure = |(i, level): (usize, &f64)| f(i).map(|value| LevelFigure { level: *level, value });
        levels.iter().enumerate().filter_map(figure).collect()
    };
    let losses: Option<Vec<f64>> = deciles.iter().map(|i| wql_of(*i)).collect();
    Scores {
        series: tallies.len(),
        windows,
        horizon,
        points,
        missing_points: count(&|t| t.missing),
        wql: losses.and_then(|l| mean(&l)),
        sql: mean(&sql),
        sql_median: median(&sql),
        sql_geo: mean(&sql.iter().map(|v| v.max(LEAST_SCALED_LOSS).ln()).collect::<Vec<_>>()).map(f64::exp),
        mase: mean(&mase),
        mase_median: median(&mase),
        series_without_scale: tallies.len() - sql.len(),
        coverage_80: ratio(count(&|t| t.inside()) as f64, points as f64),
        width_80: ratio(sum(&|t| t.width), demand),
        wql_by_level: by_level(&wql_of),
        below_by_level: by_level(&|i| {
            ratio(count(&|t| t.below_by_level.get(i).copied().unwrap_or(0)) as f64, points as f64)
        }),
        wql_by_steps: blocks(horizon, |steps| {
            let (loss, demand) = (sum(&|t| t.loss_in(&steps)), sum(&|t| t.demand_in(&steps)));
            ratio(loss, demand)
        }),
        coverage_by_steps: blocks(horizon, |steps| {
            ratio(count(&|t| t.inside_in(&steps)) as f64, count(&|t| t.points_in(&steps)) as f64)
        }),
        wql_by_class: by_class(tallies),
        event: event(tallies),
    }
}

fn by_class(tallies: &[&Tally]) -> Vec<ClassFigure> {
    let figure = |class: SeriesClass| {
        let of: Vec<&&Tally> = tallies.iter().filter(|t| t.class == class).collect();
        let (loss, demand) = of.iter().fold((0.0, 0.0), |(l, d), t| (l + t.loss(), d + t.demand()));
        (!of.is_empty()).then(|| ClassFigure { class, series: of.len(), value: ratio(loss, demand) })
    };
    SeriesClass::ALL.into_iter().filter_map(figure).collect()
}

fn of_series(one: &Tallied, loss: f64) -> SeriesScores {
    let tally = &one.tally;
    SeriesScores {
        shard: one.shard.clone(),
        metric: one.metric,
        class: tally.class,
        points: tally.points(),
        wql: ratio(tally.loss(), tally.demand()),
        sql: tally.scaled_loss(),
        mase: tally.scaled_error(),
        coverage_80: ratio(tally.inside() as f64, tally.points() as f64),
        share_of_wql: ratio(tally.loss(), loss).unwrap_or(0.0),
        scale: tally.windows.first().and_then(|w| w.scale),
        threshold: tally.threshold,
        events: tally.events.iter().filter(|e| e.happened).count(),
        wql_by_window: tally.windows.iter().map(|w| ratio(w.loss, w.demand)).collect(),
        loss_by_window: tally.windows.iter().map(|w| w.loss).collect(),
    }
}

fn event(tallies: &[&Tally]) -> Option<EventScores> {
    let windows: Vec<_> = tallies.iter().flat_map(|t| &t.events).collect();
    let n = windows.len() as f64;
    let happened = |w: &series::EventWindow| f64::from(u8::from(w.happened));
    let figures = |f: &dyn Fn(f64, f64) -> f64| {
        let of =
            |p: &dyn Fn(&series::EventWindow) -> f64| windows.iter().map(|w| f(p(w), happened(w))).sum::<f64>() / n;
        EventFigures {
            p_any: windows.iter().all(|w| w.p_any.is_some()).then(|| of(&|w| w.p_any.unwrap_or(0.0))),
            independent: of(&|w| w.independent),
            max_marginal: of(&|w| w.max_marginal),
            climatology: of(&|w| w.climatology),
        }
    };
    (!windows.is_empty()).then(|| EventScores {
        windows: windows.len(),
        rate: windows.iter().map(|w| happened(w)).sum::<f64>() / n,
        brier: figures(&|p, e| (p - e).powi(2)),
        mean_probability: figures(&|p, _| p),
    })
}

/// The figure of each block of steps; `of` gets indices counted from 0.
fn blocks(horizon: usize, of: impl Fn(std::ops::Range<usize>) -> Option<f64>) -> Vec<StepsFigure> {
    let ends: Vec<usize> = BLOCK_ENDS.into_iter().filter(|b| *b < horizon).chain([horizon]).collect();
    let starts = [0].into_iter().chain(ends.iter().copied());
    starts.zip(&ends).map(|(a, b)| StepsFigure { first: a + 1, last: *b, value: of(a..*b) }).collect()
}

#[cfg(test)]
mod tests;
