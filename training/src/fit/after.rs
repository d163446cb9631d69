//! After training: past forecasts, from which width factors and rank templates are read.
//!
//! A past forecast is some kilobytes, and there are forty and more of each series. As far as all of them fit into
//! [`HELD`] they are made once and kept; of a larger history they are made for some series at a time, for the widths and
//! again for the ranks, so that what is held does not grow with the history.

use std::collections::BTreeSet;

use foreshard_domain::{Metric, QuantileForecast, ShardId, Timestamp};
use foreshard_model::{
    Lanes, NetworkError, Origin, RankTemplates, TENSOR_LEVELS, TemplateLimits, Trained, WidthFactors, WidthSample,
};

use super::TrainError;
use super::sampling::{Ready, Samples, Values};

/// Seasons at the end of the data from which past forecasts are made.
const SEASONS: usize = 14;
/// Most and fewest moments at which past forecasts are made, and about how many forecasts in all.
const MOMENTS: (usize, usize) = (40, 120);
const FORECASTS: usize = 8000;
/// Most bytes of values and forecasts held at once.
const HELD: usize = 256 << 20;
/// Most steps of past forecasts from which widths are read where not all are kept; evenly many series are passed over.
const MOST_WIDTHS: usize = 1 << 20;

/// A forecast of the past, made with what was known then, and what came.
struct PastForecast<'a> {
    series: &'a Ready,
    origin: usize,
    /// By step, at the learned levels, widths not corrected.
    rows: Vec<[f32; TENSOR_LEVELS.len()]>,
    truth: Vec<f32>,
}

/// The past of one series as it would have been answered.
pub(super) struct AnsweredPast<'a> {
    pub series: &'a Ready,
    /// All its values.
    pub values: Values,
    /// Its forecasts, by the moment at which they were issued, with what then came (`NaN` where nothing was observed).
    pub forecasts: Vec<(Timestamp, QuantileForecast, Vec<f32>)>,
}

/// Ranks of one past forecast: whose, when it was issued, and the rank of each slot.
type Ranks = ((Metric, ShardId), Timestamp, Vec<u8>);

/// Forecasts of all series at common moments over the last two weeks (as far as the series reach back).
pub(super) struct PastForecasts<'a> {
    plain: &'a Trained,
    samples: &'a Samples<'a>,
    lanes: &'a Lanes,
    moments: BTreeSet<Timestamp>,
    /// All of them, if they fit.
    kept: Option<Vec<PastForecast<'a>>>,
    /// How many series are taken at a time, if they do not.
    piece: usize,
}

impl<'a> PastForecasts<'a> {
    /// Of networks whose widths are not corrected yet.
    pub(super) fn new(plain: &'a Trained, samples: &'a Samples<'a>, lanes: &'a Lanes) -> Result<Self, TrainError> {
        let moments = moments(samples);
        let mut past = Self { plain, samples, lanes, kept: None, piece: 0, moments };
        let bytes: usize = samples.series().iter().map(|series| past.bytes_of(series)).sum();
        let count = samples.series().len();
        past.piece = (HELD / (bytes / count.max(1)).max(1)).max(1);
        if bytes <= HELD {
            past.kept = Some(past.forecasts(&samples.series().iter().collect::<Vec<_>>(), |_, _| true)?);
        }
        Ok(past)
    }

    /// About how many bytes a series and its forecasts take.
    fn bytes_of(&self, series: &Ready) -> usize {
        let step = size_of::<[f32; TENSOR_LEVELS.len()]>() + size_of::<f32>();
        series.len * 3 * size_of::<f32>() + self.moments.len() * self.samples.features().horizon * step
    }

    /// The forecasts of some series that begin at a wanted origin.
    fn forecasts(
        &self,
        series: &[&'a Ready],
        wanted: impl Fn(&Ready, usize) -> bool,
    ) -> Result<Vec<PastForecast<'a>>, TrainError> {
        let features = self.samples.features();
        let values: Vec<Values> =
            self.lanes.map(series, |_, one| self.samples.values(one)).into_iter().collect::<Result<_, _>>()?;
        let mut chosen: Vec<(&'a Ready, &Values, usize)> = Vec::new();
        for moment in &self.moments {
            for (series, values) in series.iter().zip(&values) {
                let steps = features.step.count_in(moment.since_ms(series.start));
                let Ok(origin) = usize::try_from(steps) else { continue };
                let room = origin >= series.first && origin + features.horizon <= series.len;
                if room && values.mostly_known(origin, features.horizon) && wanted(series, origin) {
                    chosen.push((series, values, origin));
                }
            }
        }
        let origins = chosen.iter().map(|(series, values, origin)| Origin {
            shard: &series.shard,
            metric: series.metric,
            filled: &values.filled,
            index: *origin,
            start: series.wall(*origin, features),
        });
        let origins: Vec<Origin<'_>> = origins.collect();
        let rows = self.plain.raw_quantiles(&origins).map_err(|source| self.network(source))?;
        let one = |((series, values, origin), rows): ((&'a Ready, &Values, usize), _)| {
            let truth = values.truth(origin, features.horizon).to_vec();
            PastForecast { series, origin, rows, truth }
        };
        Ok(chosen.into_iter().zip(rows).map(one).collect())
    }

    fn network(&self, source: NetworkError) -> TrainError {
        TrainError::Network { product: self.plain.parts().name.clone(), source }
    }

    /// Width factors from the past forecasts of the validation stretch alone.
    pub(super) fn widths(&self) -> Result<WidthFactors, TrainError> {
        let horizon = self.samples.features().horizon;
        if let Some(kept) = &self.kept {
            return Ok(WidthFactors::fit(&width_samples(kept), horizon));
        }
        let series = self.samples.series();
        let every = (series.len() * self.moments.len() * horizon).div_ceil(MOST_WIDTHS).max(1);
        let taken: Vec<&Ready> = series.iter().step_by(every).collect();
        let mut found = Vec::new();
        for piece in taken.chunks(self.piece) {
            found.extend(width_samples(&self.forecasts(piece, |series, origin| origin >= series.cut)?));
        }
        Ok(WidthFactors::fit(&found, horizon))
    }

    /// Ranks of the truth in the past forecasts, corrected as `trained` does.
    pub(super) fn templates(&self, trained: &Trained) -> Result<RankTemplates, TrainError> {
        let horizon = self.samples.features().horizon;
        let limits = TemplateLimits::default();
        let mut ranks: Vec<Ranks> = Vec::new();
        if let Some(kept) = &self.kept {
            ranks.extend(kept.iter().filter_map(|past| self.ranks(trained, past)));
            return Ok(RankTemplates::from_ranks(horizon, ranks, &limits));
        }
        // Of more series than the templates have room for, those that they would drop are not asked.
        let series = self.samples.series();
        let most = RankTemplates::most_series(horizon, &limits);
        let taken: Vec<&Ready> = series.iter().step_by(series.len().div_ceil(most).max(1)).collect();
        for piece in taken.chunks(self.piece) {
            let past = self.forecasts(piece, |_, _| true)?;
            ranks.extend(past.iter().filter_map(|past| self.ranks(trained, past)));
        }
        Ok(RankTemplates::from_ranks(horizon, ranks, &limits))
    }

    /// The past of at most `most` series, evenly many passed over, corrected as `trained` does.
    pub(super) fn answered(&self, trained: &Trained, most: usize) -> Result<Vec<AnsweredPast<'a>>, TrainError> {
        let series = self.samples.series();
        let taken: Vec<&'a Ready> = series.iter().step_by(series.len().div_ceil(most.max(1)).max(1)).collect();
        let mut answered = Vec::with_capacity(taken.len());
        for one in taken {
            let made;
            let past: Vec<&PastForecast<'a>> = match &self.kept {
                Some(kept) => kept.iter().filter(|p| std::ptr::eq(p.series, one)).collect(),
                None => {
                    made = self.forecasts(&[one], |_, _| true)?;
                    made.iter().collect()
                }
            };
            let told = |p: &&PastForecast<'a>| {
                let (issued_at, forecast) = self.answer(trained, p)?;
                Some((issued_at, forecast, p.truth.clone()))
            };
            let forecasts = past.iter().filter_map(told).collect();
            answered.push(AnsweredPast { series: one, values: self.samples.values(one)?, forecasts });
        }
        Ok(answered)
    }

    /// A past forecast as it would have been answered, and when it was issued.
    fn answer(&self, trained: &Trained, past: &PastForecast<'_>) -> Option<(Timestamp, QuantileForecast)> {
        let features = self.samples.features();
        let values = trained.corrected(&past.rows)?;
        let forecast = QuantileForecast::new(trained.parts().spec.levels.clone(), values).ok()?;
        Some((past.series.time_of(past.origin, features).plus_steps(-1, features.step), forecast))
    }

    fn ranks(&self, trained: &Trained, past: &PastForecast<'_>) -> Option<Ranks> {
        let (issued_at, forecast) = self.answer(trained, past)?;
        let ranks = RankTemplates::ranks_of(self.samples.features().horizon, &forecast, &past.truth);
        Some(((past.series.metric, past.series.shard.clone()), issued_at, ranks))
    }
}

/// Times of the first step of past windows, spread evenly, the last window ending with the newest series.
fn moments(samples: &Samples<'_>) -> BTreeSet<Timestamp> {
    let features = samples.features();
    let ends = samples.series().iter().map(|s| s.time_of(s.len, features));
    let Some(end) = ends.max() else { return BTreeSet::new() };
    let longest = samples.series().iter().map(|s| s.len.saturating_sub(s.first + features.horizon)).max();
    let span = longest.unwrap_or(0).min(features.season * SEASONS);
    let wanted = (FORECASTS / samples.series().len().max(1)).clamp(MOMENTS.0, MOMENTS.1);
    let stride = (span / wanted).max(1);
    let back =
        |steps: usize| end.plus_steps(-i64::try_from(steps + features.horizon).unwrap_or(i64::MAX), features.step);
    (0..wanted.min(span / stride + 1)).map(|k| back(k * stride)).collect()
}

/// What widths are read from: the steps of the forecasts of the validation stretch.
fn width_samples(past: &[PastForecast<'_>]) -> Vec<WidthSample> {
    let held_back = past.iter().filter(|p| p.origin >= p.series.cut);
    let steps = held_back.flat_map(|p| p.rows.iter().zip(&p.truth).enumerate());
    steps.map(|(step, (quantiles, truth))| WidthSample { step, quantiles: *quantiles, truth: *truth }).collect()
}
