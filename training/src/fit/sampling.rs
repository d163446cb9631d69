//! Which origins a fit learns from, and which it is judged on.

use foreshard_datasets::{GridSeries, HistoryError};
use foreshard_domain::{Metric, ShardId, Timestamp};
use foreshard_model::{
    Batch, CALENDAR, Context, EventEffects, EventSource, FeatureTable, Features, Filled, Lanes, LocalTime,
    MIN_HISTORY_DAYS, NetworkError, Occurrence, PATCHES, STEP_INPUTS,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::source::SeriesSource;
use super::spec::{ProductSpec, TrainSeries, TrainSpec};

/// Most origins of the validation stretch.
const MOST_VALIDATION: usize = 512;
/// Targets lie within so many scales; beyond it a single burst would steer the weights.
const MOST_TARGET: f32 = 50.0;
/// The first origin has at least so many horizons before it, within these bounds in seasons: the next hours can be learned
/// from days whose weeks are not known yet, the next day cannot.
const HORIZONS_BEFORE: usize = 7;
const SEASONS_BEFORE: (usize, usize) = (3, MIN_HISTORY_DAYS);
/// Most series of which origins are drawn, unless more origins are wanted; of more, evenly many are passed over, so that what
/// is held stays bounded.
const MOST_SERIES: usize = 10_000;
/// Bounds of the weight of a sample.
const WEIGHTS: (f32, f32) = (0.2, 5.0);

/// How much of the history a fit may learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// What lies before the cut; the rest judges and calibrates.
    BeforeCut,
    /// All of it; nothing is left to judge by.
    Whole,
}

/// What is known of a product's series besides their values.
#[derive(Debug)]
pub(crate) struct Known {
    /// Shape of the features.
    pub features: Features,
    /// What events did in what may be learned from.
    pub events: EventEffects,
    clock: LocalTime,
    /// How far the clock is ahead of UTC after the newest value: the offset that all series are aligned to.
    offset_ms: i64,
}

impl Known {
    /// Looks at the part of every series once that may be learned from.
    pub(crate) fn of(
        product: &ProductSpec,
        source: &dyn SeriesSource,
        (validation_share, part): (f64, Part),
        lanes: &Lanes,
    ) -> Result<Self, TrainError> {
        type Looked = Result<Option<(Timestamp, Vec<Occurrence>)>, HistoryError>;
        let spec = &product.forecast;
        let clock = LocalTime::new(&spec.zone, spec.step).map_err(|source| TrainError::Network {
            product: product.name.clone(),
            source: NetworkError::from(source),
        })?;
        let all: Vec<usize> = (0..source.count(&product.name)).collect();
        let looked = lanes.map(&all, |_, i| -> Looked {
            let one = source.get(&product.name, *i)?.filter(|s| s.series.step == spec.step);
            Ok(one.map(|s| {
                let end = s.series.time_of(s.usable.min(s.series.values.len()));
                let context = s.known();
                let n = context.values.len();
                let until = if part == Part::Whole { n } else { n - held_back(n, spec.horizon, validation_share) };
                let context = Context { values: context.values.get(..until).unwrap_or(context.values), ..context };
                (end, EventSource { context, season: spec.season_steps }.occurrences())
            }))
        });
        let looked: Vec<_> = looked.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let end = looked.iter().map(|(end, _)| *end).max();
        let events = EventEffects::fit(looked.into_iter().flat_map(|(_, occurrences)| occurrences));
        let offset_ms = end.map_or(0, |end| clock.offset_ms(end));
        Ok(Self { features: Features::new(spec), events, clock, offset_ms })
    }

    /// The first `len` values of a series without events, by the clock on the wall.
    fn prepared(&self, series: &TrainSeries, len: usize) -> Vec<f32> {
        let context = series.known();
        let context = Context { values: context.values.get(..len).unwrap_or(context.values), ..context };
        let quiet = self.events.removed(&context);
        self.clock.aligned(&quiet, context.start, self.offset_ms, 0).into_owned()
    }
}

impl TrainSeries {
    /// What may be learned from.
    fn known(&self) -> Context<'_> {
        let GridSeries { start, step, .. } = self.series;
        let values = self.series.window_up_to(self.usable);
        Context { shard: &self.shard, metric: self.metric, start, step, values, events: Some(&self.events) }
    }
}

/// What is known of a series that can be learned from, without its values.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Its place in the source.
    index: usize,
    pub shard: ShardId,
    pub metric: Metric,
    pub start: Timestamp,
    /// The same on the wall.
    wall: Timestamp,
    /// How many values may be looked at.
    pub len: usize,
    /// Targets of training lie before it, those of validation at or after it.
    pub cut: usize,
    /// First origin that may be learned from.
    pub first: usize,
}

/// The values of a series while they are looked at: without events, by the clock on the wall.
#[derive(Debug)]
pub(crate) struct Values {
    pub raw: Vec<f32>,
    pub filled: Filled,
}

/// Features, targets and weights of some origins.
#[derive(Debug)]
pub(crate) struct Table {
    features: FeatureTable,
    /// origins x horizon in z; `NaN` where nothing was observed.
    targets: Vec<f32>,
    weights: Vec<f32>,
    horizon: usize,
    calendar: bool,
}

/// A batch with what should come out.
#[derive(Debug)]
pub(crate) struct Example {
    pub batch: Batch,
    /// (origins x steps) in z, 0 where unknown.
    pub targets: Vec<f32>,
    /// (origins x steps), 0 where unknown.
    pub weights: Vec<f32>,
}

/// Everything drawn for one product.
pub(crate) struct Samples<'a> {
    known: &'a Known,
    source: &'a dyn SeriesSource,
    product: &'a str,
    series: Vec<Ready>,
    pub train: Table,
    pub validation: Table,
}

/// The origins of one series.
struct Drawn<'a> {
    series: &'a Ready,
    train: Vec<usize>,
    validation: Vec<usize>,
}

impl<'a> Samples<'a> {
    /// Draws origins: equally many for each series, uniformly over its time before the cut or up to its end. Each thread
    /// holds the values of one series at a time.
    pub(crate) fn draw(
        product: &'a ProductSpec,
        source: &'a dyn SeriesSource,
        spec: &TrainSpec,
        known: &'a Known,
        part: Part,
        lanes: &Lanes,
    ) -> Result<Self, TrainError> {
        let features = known.features;
        let count = source.count(&product.name);
        let looked = lanes.map(&(0..count).collect::<Vec<_>>(), |_, i| -> Result<Option<Ready>, HistoryError> {
            let one = source.get(&product.name, *i)?.filter(|s| s.series.step == product.forecast.step);
            Ok(one.and_then(|s| Ready::new(*i, &s, known, spec.params().validation_share, part)))
        });
        let ready: Vec<Ready> = looked.into_iter().filter_map(Result::transpose).collect::<Result<_, _>>()?;
        let drawn = draw_origins(&ready, &features, spec);
        let mut samples = Self {
            known,
            source,
            product: &product.name,
            train: Table::empty(features, spec.params().calendar),
            validation: Table::empty(features, spec.params().calendar),
            series: Vec::new(),
        };
        samples.fill(&drawn, lanes)?;
        if samples.train.len() == 0 {
            let day = features.season.max(1);
            let days = (least_context(&features) + 4 * features.horizon).div_ceil(day);
            return Err(TrainError::TooLittleHistory { product: product.name.clone(), series: count, days });
        }
        drop(drawn);
        samples.series = ready;
        Ok(samples)
    }

    /// Computes features, targets and weights of what was drawn.
    fn fill(&mut self, drawn: &[Drawn<'_>], lanes: &Lanes) -> Result<(), TrainError> {
        let this = &*self;
        let parts = lanes.map(drawn, |_, one| -> Result<[Table; 2], HistoryError> {
            let values = this.values(one.series)?;
            let table = |origins: &[usize]| {
                Table::new(this.known.features, (one.series, &values), origins, this.train.calendar)
            };
            Ok([table(&one.train), table(&one.validation)])
        });
        let mut all = Vec::with_capacity(parts.len());
        for part in parts {
            all.push(part?);
        }
        if all.iter().all(|[train, _]| train.len() == 0) {
            return Ok(());
        }
        for which in 0..2 {
            let odd = drawn.iter().zip(&all).find(|(_, tables)| !tables[which].can_be_scaled());
            if let Some((one, _)) = odd {
                return Err(TrainError::TooLarge { series: Box::new((one.series.shard.clone(), one.series.metric)) });
            }
        }
        for [train, validation] in all {
            self.train.append(train);
            self.validation.append(validation);
        }
        Ok(())
    }

    /// The values of a series, read anew.
    pub(crate) fn values(&self, series: &Ready) -> Result<Values, HistoryError> {
        let one = self.source.get(self.product, series.index)?;
        let raw = one.map(|s| self.known.prepared(&s, series.len)).unwrap_or_default();
        Ok(Values { filled: Filled::new(&raw, self.features().season), raw })
    }

    /// The series that can be learned from.
    pub(crate) fn series(&self) -> &[Ready] {
        &self.series
    }

    /// Days that the encoder reads.
    pub(crate) fn patches(&self) -> usize {
        PATCHES
    }

    /// The shape of the features.
    pub(crate) fn features(&self) -> &Features {
        &self.known.features
    }
}

/// How many of so many values judge and calibrate before the cut; fewer than all of them.
fn held_back(n: usize, horizon: usize, validation_share: f64) -> usize {
    ((n as f64 * validation_share) as usize).max(2 * horizon).min(n / 4)
}

/// Fewest values before an origin that is learned from.
fn least_context(features: &Features) -> usize {
    let (fewest, most) = SEASONS_BEFORE;
    (features.horizon * HORIZONS_BEFORE).clamp(features.season * fewest, features.season * most)
}

/// Draws the origins of each series, from one stream of random numbers in the order of the series.
fn draw_origins<'a>(ready: &'a [Ready], features: &Features, spec: &TrainSpec) -> Vec<Drawn<'a>> {
    let mut rng = ChaCha8Rng::seed_from_u64(spec.params().seed);
    let most = spec.params().origins.min((spec.params().rows / features.horizon.max(1)).max(1));
    let every = ready.len().div_ceil(MOST_SERIES.max(most)).max(1);
    let count = ready.len().div_ceil(every);
    let draw = |one: &'a Ready| {
        let wanted = most.div_ceil(count.max(1));
        let last = one.cut.saturating_sub(features.horizon);
        let drawn = (0..wanted).map(|_| rng.random_range(one.first..=last.max(one.first)));
        let train = drawn.filter(|o| *o <= last).collect();
        let (from, to) = (one.cut, one.len.saturating_sub(features.horizon));
        let wanted = (MOST_VALIDATION / count.max(1)).max(1);
        let spaced = (0..wanted).map(|k| from + (to.saturating_sub(from)) * (k + 1) / wanted);
        Drawn { series: one, train, validation: spaced.filter(|o| *o <= to).collect() }
    };
    ready.iter().step_by(every).map(draw).collect()
}

impl Ready {
    /// `None` if the series is too short or too empty.
    fn new(index: usize, series: &TrainSeries, known: &Known, validation_share: f64, part: Part) -> Option<Self> {
        let features = &known.features;
        let raw = known.prepared(series, usize::MAX);
        let (n, horizon) = (raw.len(), features.horizon);
        let held_back = held_back(n, horizon, validation_share);
        let cut = n - held_back;
        let least = least_context(features);
        // Long series leave out their first weeks, whose features would have to be extended backwards.
        let first = (n / 3).clamp(least, features.season * 2 * MIN_HISTORY_DAYS);
        let observed = raw.iter().filter(|v| v.is_finite()).count();
        if held_back < horizon || cut < first + horizon || observed * 2 < n {
            return None;
        }
        // The same series take part whatever the part, so that what was found before the cut holds for the whole.
        let cut = if part == Part::Whole { n } else { cut };
        let (shard, metric, start) = (series.shard.clone(), series.metric, series.series.start);
        Some(Self { index, shard, metric, start, wall: start.plus_ms(known.offset_ms), len: n, cut, first })
    }

    /// Time of an index on the wall.
    pub(crate) fn wall(&self, index: usize, features: &Features) -> Timestamp {
        self.wall.plus_steps(i64::try_from(index).unwrap_or(i64::MAX), features.step)
    }

    /// Grid time of an index.
    pub(crate) fn time_of(&self, index: usize, features: &Features) -> Timestamp {
        self.start.plus_steps(i64::try_from(index).unwrap_or(i64::MAX), features.step)
    }
}

impl Values {
    /// The values from an origin on.
    pub(crate) fn truth(&self, origin: usize, horizon: usize) -> &[f32] {
        self.raw.get(origin..origin.saturating_add(horizon)).unwrap_or(&[])
    }

    pub(crate) fn mostly_known(&self, origin: usize, horizon: usize) -> bool {
        let truth = self.truth(origin, horizon);
        !truth.is_empty() && truth.iter().filter(|v| v.is_finite()).count() * 2 >= truth.len()
    }
}

impl Table {
    fn empty(features: Features, calendar: bool) -> Self {
        let table = FeatureTable::here(features, &[]);
        Self { features: table, targets: Vec::new(), weights: Vec::new(), horizon: features.horizon, calendar }
    }

    /// Features, targets and weights of those origins of one series that are followed by enough known values.
    fn new(features: Features, (series, values): (&Ready, &Values), origins: &[usize], calendar: bool) -> Self {
        let chosen = origins.iter().copied().filter(|o| values.mostly_known(*o, features.horizon));
        let chosen: Vec<_> = chosen.map(|o| (&values.filled, o, series.wall(o, &features))).collect();
        let table = FeatureTable::here(features, &chosen);
        let mut targets = Vec::with_capacity(chosen.len() * features.horizon);
        for (row, (_, origin, _)) in chosen.iter().enumerate() {
            let (loc, scale) = table.scaling(row);
            let z = values.truth(*origin, features.horizon).iter().map(|x| (x - loc) / scale);
            targets.extend(z.map(|z| if z.is_finite() { z.clamp(-MOST_TARGET, MOST_TARGET) } else { f32::NAN }));
        }
        let weights = weights(&table);
        Self { features: table, targets, weights, horizon: features.horizon, calendar }
    }

    /// Whether the values before every origin have a mean and a deviation.
    fn can_be_scaled(&self) -> bool {
        (0..self.len()).all(|row| self.features.can_be_scaled(row))
    }

    fn append(&mut self, other: Self) {
        self.features.append(other.features);
        self.targets.extend(other.targets);
        self.weights.extend(other.weights);
    }

    /// How many origins.
    pub(crate) fn len(&self) -> usize {
        self.features.len()
    }

    /// The example of some origins at some steps; origins for which `hide` is true show no quantiles.
    pub(crate) fn example(&self, origins: &[usize], steps: &[usize], hide: impl Fn(usize) -> bool) -> Example {
        let mut batch = self.features.batch(origins, steps, hide);
        if !self.calendar {
            batch.step_inputs.chunks_exact_mut(STEP_INPUTS).for_each(|row| row[CALENDAR].fill(0.0));
        }
        let mut targets = Vec::with_capacity(origins.len() * steps.len());
        let mut weights = Vec::with_capacity(origins.len() * steps.len());
        for origin in origins {
            let weight = self.weights.get(*origin).copied().unwrap_or(0.0);
            for step in steps {
                let target = self.targets.get(origin * self.horizon + step).copied().unwrap_or(f32::NAN);
                targets.push(if target.is_finite() { target } else { 0.0 });
                weights.push(if target.is_finite() { weight } else { 0.0 });
            }
        }
        Example { batch, targets, weights }
    }
}

/// Weight of each origin of one series: its scale over the mean scale, so that the busy times of a series count as they do
/// in raw units while no series rules because of its unit.
fn weights(table: &FeatureTable) -> Vec<f32> {
    let mut weights: Vec<f32> = (0..table.len()).map(|row| table.scaling(row).1).collect();
    let mean = weights.iter().map(|w| f64::from(*w)).sum::<f64>() / weights.len().max(1) as f64;
    weights.iter_mut().for_each(|w| *w = ((f64::from(*w) / mean) as f32).clamp(WEIGHTS.0, WEIGHTS.1));
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::Product;
    use foreshard_model::ForecastSpec;

    #[test]
    fn near_horizons_are_learned_from_less_context() {
        let days = |product| {
            let features = Features::new(&ForecastSpec::of_product(product));
            least_context(&features) as f64 / features.season as f64
        };
        assert_eq!((days(Product::NextHours), days(Product::NextDay)), (3.0, 7.0));
    }
}
