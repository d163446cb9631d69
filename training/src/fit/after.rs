//! After training: past forecasts, from which width factors and rank templates are read.

use std::collections::BTreeSet;

use foreshard_domain::{Metric, QuantileForecast, ShardId, Timestamp};
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
    let origins: Vec<_> = chosen.iter().map(|(s, o)| (&s.filled, *o, s.time_of(*o, features))).collect();
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

/// Ranks of the truth in the corrected past forecasts.
pub(super) fn templates(trained: &Trained, past: &[PastForecast<'_>], samples: &Samples) -> RankTemplates {
    let features = samples.features();
    let rank = |p: &PastForecast<'_>| -> Option<((Metric, ShardId), Timestamp, Vec<u8>)> {
        let values = trained.corrected(&p.rows)?;
        let forecast = QuantileForecast::new(trained.parts().spec.levels.clone(), values).ok()?;
        let ranks = RankTemplates::ranks_of(features.horizon, &forecast, p.series.truth(p.origin, features.horizon));
        let name = (p.series.metric, p.series.shard.clone());
        Some((name, p.series.time_of(p.origin, features).plus_steps(-1, features.step), ranks))
    };
    let rows = past.iter().filter_map(rank).collect();
    RankTemplates::from_ranks(features.horizon, rows, &TemplateLimits::default())
}
