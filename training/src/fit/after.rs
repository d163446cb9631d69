//! After training: past forecasts, from which width factors and rank templates are read.

use std::collections::BTreeSet;

use foreshard_domain::{QuantileForecast, Timestamp};
use foreshard_model::{NetworkError, RankTemplates, TENSOR_LEVELS, TemplateLimits, Trained, WidthFactors, WidthSample};

use super::sampling::{Ready, Samples};

/// Seasons at the end of the data from which past forecasts are made.
const SEASONS: usize = 14;
/// Most and fewest moments at which past forecasts are made, and about how many forecasts in all.
const MOMENTS: (usize, usize) = (40, 120);
const FORECASTS: usize = 8000;

/// A forecast of the past, made with what was known then.
pub(super) struct PastForecast<'a> {
    series: &'a Ready,
    origin: usize,
    /// By step, at the learned levels, widths not corrected.
    rows: Vec<[f32; TENSOR_LEVELS.len()]>,
}

/// Forecasts of all series at common moments over the last two weeks (as far as the series reach back).
pub(super) fn past_forecasts<'a>(plain: &Trained, samples: &'a Samples) -> Result<Vec<PastForecast<'a>>, NetworkError> {
    let features = samples.features();
    let mut chosen: Vec<(&Ready, usize)> = Vec::new();
    for moment in moments(samples) {
        for series in samples.series() {
            let steps = features.step.count_in(moment.since_ms(series.start));
            let Ok(origin) = usize::try_from(steps) else { continue };
            let room = origin >= series.first && origin + features.horizon <= series.raw.len();
            if room && series.mostly_known(origin, features.horizon) {
                chosen.push((series, origin));
            }
        }
    }
    let origins: Vec<_> = chosen.iter().map(|(s, o)| (&s.filled, *o, s.wall(*o, features))).collect();
    let rows = plain.raw_quantiles(&origins)?;
    Ok(chosen.into_iter().zip(rows).map(|((series, origin), rows)| PastForecast { series, origin, rows }).collect())
}

/// Times of the first step of past windows, spread evenly, the last window ending with the newest series.
fn moments(samples: &Samples) -> BTreeSet<Timestamp> {
    let features = samples.features();
    let ends = samples.series().iter().map(|s| s.time_of(s.raw.len(), features));
    let Some(end) = ends.max() else { return BTreeSet::new() };
    let longest = samples.series().iter().map(|s| s.raw.len().saturating_sub(s.first + features.horizon)).max();
    let span = longest.unwrap_or(0).min(features.season * SEASONS);
    let wanted = (FORECASTS / samples.series().len().max(1)).clamp(MOMENTS.0, MOMENTS.1);
    let stride = (span / wanted).max(1);
    let back =
        |steps: usize| end.plus_steps(-i64::try_from(steps + features.horizon).unwrap_or(i64::MAX), features.step);
    (0..wanted.min(span / stride + 1)).map(|k| back(k * stride)).collect()
}

/// Width factors from the past forecasts of the validation stretch alone.
pub(super) fn widths(past: &[PastForecast<'_>], horizon: usize) -> WidthFactors {
    let held_back = past.iter().filter(|p| p.origin >= p.series.cut);
    let samples: Vec<WidthSample> = held_back
        .flat_map(|p| {
            let truth = p.series.truth(p.origin, horizon);
            let steps = p.rows.iter().zip(truth).enumerate();
            steps.map(|(step, (quantiles, truth))| WidthSample { step, quantiles: *quantiles, truth: *truth })
        })
        .collect();
    WidthFactors::fit(&samples, horizon)
}

/// A forecast of the past as it would have been answered, and what then came.
pub(super) struct Seen<'a> {
    pub series: &'a Ready,
    pub issued_at: Timestamp,
    pub forecast: QuantileForecast,
    /// What came, `NaN` where nothing was observed.
    pub truth: &'a [f32],
}

/// The past forecasts with their widths corrected.
pub(super) fn seen<'a>(trained: &Trained, past: &[PastForecast<'a>], samples: &Samples) -> Vec<Seen<'a>> {
    let features = samples.features();
    let answered = |p: &PastForecast<'a>| -> Option<Seen<'a>> {
        let values = trained.corrected(&p.rows)?;
        let forecast = QuantileForecast::new(trained.parts().spec.levels.clone(), values).ok()?;
        let issued_at = p.series.time_of(p.origin, features).plus_steps(-1, features.step);
        Some(Seen { series: p.series, issued_at, forecast, truth: p.series.truth(p.origin, features.horizon) })
    };
    past.iter().filter_map(answered).collect()
}

/// Ranks of the truth in past forecasts.
pub(super) fn templates(seen: &[Seen<'_>], horizon: usize) -> RankTemplates {
    let rank = |s: &Seen<'_>| {
        let name = (s.series.metric, s.series.shard.clone());
        (name, s.issued_at, RankTemplates::ranks_of(horizon, &s.forecast, s.truth))
    };
    RankTemplates::from_ranks(horizon, seen.iter().map(rank).collect(), &TemplateLimits::default())
}
