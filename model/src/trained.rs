//! What was trained, as a forecaster.

use std::ops::Range;
use std::sync::Arc;

use foreshard_domain::{Calibration, Fallback, Metric, RiskCalibrations, ShardId, Timestamp};

use crate::features::Features;
use crate::forecaster::as_steps;
use crate::local_time::Stretch;
use crate::rivals::{checked, missing_share};
use crate::widths::rise_outward;
use crate::{
    Answer, Batch, Context, EventEffects, FeatureTable, Filled, ForecastSpec, Forecaster, Lanes, Learned, LocalTime,
    ModelKind, NetworkError, TENSOR_LEVELS, WeightTensors, WidthFactors, fall_back, forward,
};

const LEVELS: usize = TENSOR_LEVELS.len();
/// Origins that one pass covers.
const PIECE: usize = 16;
/// Least history in seasons with which a trained forecaster answers; below it a seasonal baseline is better.
pub const MIN_HISTORY_DAYS: usize = 7;
/// Largest share of the last seven seasons that may be missing.
const MOST_MISSING: f32 = 0.5;

/// What a trained forecaster is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedParts {
    /// Name of the product, such as `next_hours`.
    pub name: String,
    /// What it forecasts.
    pub spec: ForecastSpec,
    /// What it learned.
    pub learned: Learned,
    /// Correction of the widths, if one was fitted.
    pub widths: Option<WidthFactors>,
    /// What known events do.
    pub events: EventEffects,
    /// Corrections of probabilities.
    pub risk: RiskCalibrations,
}

/// One product, ready to answer.
#[derive(Debug)]
pub struct Trained {
    parts: TrainedParts,
    features: Features,
    /// Of the networks, if it has some.
    tensors: Vec<WeightTensors>,
    clock: LocalTime,
    lanes: Arc<Lanes>,
}

/// One place in a series from which it is forecast.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// Whose.
    pub shard: &'a ShardId,
    /// Of what.
    pub metric: Metric,
    /// The values; those from `index` on are not read (D1).
    pub filled: &'a Filled,
    /// Index of the first target step.
    pub index: usize,
    /// Time of the first target step, on the wall.
    pub start: Timestamp,
}

/// Quantiles of one context at the learned levels, one row a step, in units of the metric; not yet bounded.
type Rows = Vec<[f32; LEVELS]>;

impl Trained {
    /// Makes what was learned ready.
    ///
    /// # Errors
    /// [`NetworkError`] if there is no network, or weights do not fit their sizes or the features of the spec.
    pub fn new(parts: TrainedParts, lanes: Arc<Lanes>) -> Result<Self, NetworkError> {
        let features = Features::new(&parts.spec);
        if let Some(problem) = parts.learned.problem(&parts.spec) {
            return Err(NetworkError::Unusable { problem });
        }
        let networks = parts.learned.networks();
        let (want, mut sizes) = (features.patch_inputs(), networks.iter().map(|m| m.architecture.patch_inputs));
        if let Some(got) = sizes.find(|got| *got != want) {
            return Err(NetworkError::Shape { what: "patch", want, got });
        }
        let tensors = networks.iter().map(WeightTensors::frozen).collect::<Result<_, _>>()?;
        let clock = LocalTime::new(&parts.spec.zone, parts.spec.step)?;
        Ok(Self { parts, features, tensors, clock, lanes })
    }

    /// The kind of its model.
    pub fn kind(&self) -> ModelKind {
        self.parts.learned.kind()
    }

    /// What it is made of.
    pub fn parts(&self) -> &TrainedParts {
        &self.parts
    }

    /// The shape of its features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// What is done to the widths of its quantiles.
    pub fn calibration(&self) -> Calibration {
        if self.parts.widths.is_some() { Calibration::SplitConformal } else { Calibration::None }
    }

    /// Quantiles at the learned levels, one row a step, in units of the metric, before any correction of widths and without
    /// bounds. They are no numbers where this model knows nothing of a series. The series are those of [`LocalTime`], without
    /// events.
    ///
    /// # Errors
    /// [`NetworkError`] if the tensor library fails.
    pub fn raw_quantiles(&self, origins: &[Origin<'_>]) -> Result<Vec<Vec<[f32; TENSOR_LEVELS.len()]>>, NetworkError> {
        let pieces: Vec<_> = origins.chunks(PIECE).collect();
        let done = self.lanes.map(&pieces, |_, piece| self.piece(piece));
        Ok(done.into_iter().collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    fn piece(&self, origins: &[Origin<'_>]) -> Result<Vec<Rows>, NetworkError> {
        let horizon = self.features.horizon;
        if let Learned::Prophet(prophet) = &self.parts.learned {
            let rows = |origin: &Origin<'_>| {
                let times = (0..horizon).map(|h| origin.start.plus_steps(as_steps(h), self.features.step));
                let rows = prophet.rows(origin.shard, origin.metric, times);
                rows.unwrap_or_else(|| vec![[f32::NAN; LEVELS]; horizon])
            };
            return Ok(origins.iter().map(rows).collect());
        }
        let places: Vec<_> = origins.iter().map(|o| (o.filled, o.index, o.start)).collect();
        let table = FeatureTable::here(self.features, &places);
        let all: Vec<usize> = (0..origins.len()).collect();
        let steps: Vec<usize> = (0..horizon).collect();
        let batch = table.batch(&all, &steps, |_| false);
        let mut rows = match &self.parts.learned {
            Learned::Ridge(ridge) => ridge.rows(&batch),
            Learned::Blend(blend) => {
                let mut rows = averaged(&self.tensors, &batch)?;
                blend.mix(&mut rows, &batch);
                rows
            }
            Learned::Lstm(_) | Learned::Prophet(_) => averaged(&self.tensors, &batch)?,
        };
        for (origin, rows) in rows.chunks_exact_mut(horizon.max(1)).enumerate() {
            let (loc, scale) = table.scaling(origin);
            rows.iter_mut().for_each(|row| *row = row.map(|z| z * scale + loc));
            rows.iter_mut().for_each(rise_outward);
        }
        Ok(rows.chunks_exact(horizon.max(1)).map(<[_]>::to_vec).collect())
    }

    /// Quantiles of the windows after some contexts, as [`Self::raw_quantiles`] has them: of days without events, by the
    /// clock on the wall. A window in which the clock is changed is passed once for each [`Pass`].
    fn rows_of(&self, contexts: &[&Context<'_>]) -> Result<Vec<Rows>, NetworkError> {
        let spec = &self.parts.spec;
        let own: Vec<Vec<Pass>> = contexts.iter().map(|c| self.passes(c)).collect();
        let passes: Vec<(&Context<'_>, &Pass)> =
            contexts.iter().zip(&own).flat_map(|(c, own)| own.iter().map(move |pass| (*c, pass))).collect();
        // The whole context is filled, then cut: the same order as in training.
        let filled = self.lanes.map(&passes, |_, (context, pass)| {
            let values = self.parts.events.removed(context);
            let aligned = self.clock.aligned(&values, context.start, pass.offset_ms, pass.keep);
            Filled::new(&aligned, spec.season_steps)
        });
        let origins = filled.iter().zip(&passes).map(|(filled, (context, pass))| Origin {
            shard: context.shard,
            metric: context.metric,
            filled,
            index: filled.values().len(),
            start: window(context).plus_ms(pass.offset_ms),
        });
        let origins: Vec<Origin<'_>> = origins.collect();
        let mut passed = self.raw_quantiles(&origins)?.into_iter();
        let of_window = |own: Vec<Pass>| -> Rows {
            let parts = own.into_iter().zip(passed.by_ref());
            parts.flat_map(|(pass, rows)| rows.get(pass.steps).unwrap_or(&[]).to_vec()).collect()
        };
        Ok(own.into_iter().map(of_window).collect())
    }

    /// By which clocks the window after a context is passed.
    fn passes(&self, context: &Context<'_>) -> Vec<Pass> {
        let spec = &self.parts.spec;
        let now = self.clock.offset_ms(context.issued_at());
        let half = spec.season_steps / 2;
        let mut passes = Vec::with_capacity(1);
        for Stretch { steps, offset_ms } in self.clock.stretches(window(context), spec.horizon) {
            let mut pass = |steps: Range<usize>, keep| {
                if !steps.is_empty() {
                    passes.push(Pass { steps, offset_ms, keep });
                }
            };
            if offset_ms == now {
                pass(steps, 0);
            } else {
                // What was an hour ago was an hour ago by any clock, and near steps live on that; for those farther off
                // yesterday has to be told by the clock that they have.
                pass(steps.start..steps.end.min(half), half);
                pass(steps.start.max(half)..steps.end, 0);
            }
        }
        passes
    }

    /// An answer with what the events of its window do; `None` if a quantile is no finite number any more.
    fn with_events(&self, context: &Context<'_>, mut values: Vec<f32>) -> Option<Vec<f32>> {
        let spec = &self.parts.spec;
        if !self.parts.events.is_empty() {
            self.parts.events.put_into(context, spec.levels.as_slice(), &mut values);
            values.iter_mut().for_each(|q| *q = spec.bounded(*q));
        }
        values.iter().all(|q| q.is_finite()).then_some(values)
    }

    /// Why a context cannot be answered by what was trained, if so.
    fn refusal(&self, context: &Context<'_>) -> Option<Fallback> {
        let spec = &self.parts.spec;
        if context.values.len() < spec.season_steps.saturating_mul(MIN_HISTORY_DAYS) {
            return Some(Fallback::ShortHistory);
        }
        let gaps = missing_share(context.values, spec.season_steps) > MOST_MISSING;
        (gaps || context.step != spec.step).then_some(Fallback::MissingContext)
    }

    /// The answer from quantiles at the learned levels: widths corrected, bounded, at the levels of the spec.
    ///
    /// `None` if a quantile is not a finite number.
    pub fn corrected(&self, rows: &[[f32; TENSOR_LEVELS.len()]]) -> Option<Vec<f32>> {
        let spec = &self.parts.spec;
        let mut values = Vec::with_capacity(rows.len() * spec.levels.len());
        for (step, row) in rows.iter().enumerate() {
            let mut row = *row;
            if let Some(widths) = &self.parts.widths {
                widths.apply(&mut row, step, spec.horizon);
            }
            if row.iter().any(|q| !q.is_finite()) {
                return None;
            }
            values.extend(spec.levels.as_slice().iter().map(|level| spec.bounded(at_level(&row, *level))));
        }
        Some(values)
    }
}

/// The mean of what some networks say, in z: a row for each origin and step of a batch.
///
/// # Errors
/// [`NetworkError`] if the tensor library fails.
pub fn averaged(networks: &[WeightTensors], batch: &Batch) -> Result<Rows, NetworkError> {
    let mut sums = vec![[0.0f32; LEVELS]; batch.origins * batch.steps];
    let share = 1.0 / networks.len().max(1) as f32;
    for member in networks {
        let quantiles = forward(member, batch, None)?.quantiles.flatten_all()?.to_vec1::<f32>()?;
        for (sum, row) in sums.iter_mut().zip(quantiles.as_chunks::<LEVELS>().0) {
            for (s, q) in sum.iter_mut().zip(row) {
                *s += q * share;
            }
        }
    }
    Ok(sums)
}

/// Steps of a window that are forecast together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pass {
    steps: Range<usize>,
    /// How far the wall clock is ahead of UTC there, in milliseconds.
    offset_ms: i64,
    /// How many of the newest values keep their place whatever the clock does.
    keep: usize,
}

/// The first step after a context.
fn window(context: &Context<'_>) -> Timestamp {
    context.start.plus_steps(as_steps(context.values.len()), context.step)
}

/// The quantile of any learned or intermediate level, linear between the learned ones.
fn at_level(row: &[f32; LEVELS], level: f64) -> f32 {
    if let Some(i) = TENSOR_LEVELS.iter().position(|l| (l - level).abs() < 1e-9) {
        return row[i];
    }
    let high = TENSOR_LEVELS.partition_point(|l| *l < level).clamp(1, LEVELS - 1);
    let (a, b) = (TENSOR_LEVELS[high - 1], TENSOR_LEVELS[high]);
    let share = ((level - a) / (b - a)).clamp(0.0, 1.0) as f32;
    (row[high - 1] + (row[high] - row[high - 1]) * share).clamp(row[high - 1], row[high])
}

impl Forecaster for Trained {
    fn name(&self) -> &str {
        self.kind().name()
    }

    fn spec(&self) -> &ForecastSpec {
        &self.parts.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        let spec = &self.parts.spec;
        let refusals: Vec<Option<Fallback>> = contexts.iter().map(|c| self.refusal(c)).collect();
        let fit: Vec<&Context<'_>> =
            contexts.iter().zip(&refusals).filter(|(_, r)| r.is_none()).map(|(c, _)| c).collect();
        let mut rows = match self.rows_of(&fit) {
            Ok(rows) => rows.into_iter(),
            Err(error) => {
                tracing::error!(%error, product = self.parts.name, "the model failed; seasonal naive answers");
                Vec::new().into_iter()
            }
        };
        let mut answer = |context: &Context<'_>, refusal: Option<Fallback>| {
            if let Some(reason) = refusal {
                return fall_back(spec, context, reason);
            }
            let Some(values) = rows.next().and_then(|rows| self.with_events(context, self.corrected(&rows)?)) else {
                return fall_back(spec, context, Fallback::NoModel);
            };
            Answer {
                forecast: checked(&spec.levels, values, spec.horizon),
                last_observed: context.last_observed(),
                missing_share: missing_share(context.values, spec.season_steps),
                fallback: None,
            }
        };
        contexts.iter().zip(refusals).map(|(c, r)| answer(c, r)).collect()
    }
}
