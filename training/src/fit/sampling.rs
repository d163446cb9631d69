//! Which origins a fit learns from, and which it is judged on.

use foreshard_datasets::GridSeries;
use foreshard_domain::{Metric, ShardId, Timestamp};
use foreshard_model::{
    Batch, CALENDAR, Context, EventEffects, EventSource, FeatureTable, Features, Filled, Lanes, LocalTime,
    MIN_HISTORY_DAYS, NetworkError, PATCHES, STEP_INPUTS,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::spec::{ProductSpec, TrainSeries, TrainSpec};

/// Most origins of the validation stretch.
const MOST_VALIDATION: usize = 512;
/// Targets lie within so many scales; beyond it a single burst would steer the weights.
const MOST_TARGET: f32 = 50.0;
/// The first origin has at least so many horizons before it, within these bounds in seasons: the next hours can be learned
/// from days whose weeks are not known yet, the next day cannot.
const HORIZONS_BEFORE: usize = 7;
const SEASONS_BEFORE: (usize, usize) = (3, MIN_HISTORY_DAYS);
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
    pub(crate) fn of(product: &ProductSpec, series: &[TrainSeries]) -> Result<Self, TrainError> {
        let spec = &product.forecast;
        let clock = LocalTime::new(&spec.zone, spec.step).map_err(|source| TrainError::Network {
            product: product.name.clone(),
            source: NetworkError::from(source),
        })?;
        let own = || series.iter().filter(|s| s.series.step == spec.step);
        let ends = own().map(|s| s.series.time_of(s.usable.min(s.series.values.len())));
        let offset_ms = ends.max().map_or(0, |end| clock.offset_ms(end));
        let sources: Vec<EventSource<'_>> =
            own().map(|s| EventSource { context: s.known(), season: spec.season_steps }).collect();
        Ok(Self { features: Features::new(spec), events: EventEffects::fit(&sources), clock, offset_ms })
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

/// One series made ready: without events, by the clock on the wall.
#[derive(Debug)]
pub(crate) struct Ready {
    pub shard: ShardId,
    pub metric: Metric,
    pub start: Timestamp,
    /// The same on the wall.
    wall: Timestamp,
    pub raw: Vec<f32>,
    pub filled: Filled,
    /// Targets of training lie before it, those of validation at or after it.
    pub cut: usize,
    /// First origin that may be learned from.
    pub first: usize,
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
#[derive(Debug)]
pub(crate) struct Samples {
    features: Features,
    series: Vec<Ready>,
    pub train: Table,
    pub validation: Table,
}

impl Samples {
    /// Draws origins: equally many for each series, uniformly over its time before the cut or up to its end.
    pub(crate) fn draw(
        product: &ProductSpec,
        series: &[TrainSeries],
        spec: &TrainSpec,
        known: &Known,
        part: Part,
        lanes: &Lanes,
    ) -> Result<Self, TrainError> {
        let usable: Vec<&TrainSeries> = series.iter().filter(|s| s.series.step == product.forecast.step).collect();
        let features = known.features;
        let ready = lanes.map(&usable, |_, s| Ready::new(s, known, spec.params().validation_share, part));
        let ready: Vec<Ready> = ready.into_iter().flatten().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(spec.params().seed);
        let most = spec.params().origins.min((spec.params().rows / features.horizon.max(1)).max(1));
        let mut train = Vec::new();
        let mut validation = Vec::new();
        for (i, one) in ready.iter().enumerate() {
            let wanted = most.div_ceil(ready.len().max(1));
            let last = one.cut.saturating_sub(features.horizon);
            let drawn = (0..wanted).map(|_| rng.random_range(one.first..=last.max(one.first)));
            train.extend(drawn.filter(|o| *o <= last && one.mostly_known(*o, features.horizon)).map(|o| (i, o)));
            let (from, to) = (one.cut, one.raw.len().saturating_sub(features.horizon));
            let wanted = (MOST_VALIDATION / ready.len().max(1)).max(1);
            let spaced = (0..wanted).map(|k| from + (to.saturating_sub(from)) * (k + 1) / wanted);
            validation.extend(spaced.filter(|o| *o <= to && one.mostly_known(*o, features.horizon)).map(|o| (i, o)));
        }
        if train.is_empty() {
            let day = features.season.max(1);
            let days = (least_context(&features) + 4 * features.horizon).div_ceil(day);
            return Err(TrainError::TooLittleHistory { product: product.name.clone(), series: series.len(), days });
        }
        let table = |chosen: &[(usize, usize)]| {
            Table::new(features, &ready, chosen, spec.params().calendar, lanes)
                .map_err(|one| TrainError::TooLarge { series: Box::new((one.shard.clone(), one.metric)) })
        };
        let (train, validation) = (table(&train)?, table(&validation)?);
        Ok(Self { features, series: ready, train, validation })
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
        &self.features
    }
}

/// Fewest values before an origin that is learned from.
fn least_context(features: &Features) -> usize {
    let (fewest, most) = SEASONS_BEFORE;
    (features.horizon * HORIZONS_BEFORE).clamp(features.season * fewest, features.season * most)
}

impl Ready {
    /// `None` if the series is too short or too empty.
    fn new(series: &TrainSeries, known: &Known, validation_share: f64, part: Part) -> Option<Self> {
        let Known { features, events, clock, offset_ms } = known;
        let without_events = events.removed(&series.known());
        let raw = clock.aligned(&without_events, series.series.start, *offset_ms, 0).into_owned();
        let (n, horizon) = (raw.len(), features.horizon);
        let held_back = ((n as f64 * validation_share) as usize).max(2 * horizon).min(n / 4);
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
        let filled = Filled::new(&raw, features.season);
        Some(Self {
            shard: series.shard.clone(),
            metric: series.metric,
            start: series.series.start,
            wall: series.series.start.plus_ms(*offset_ms),
            raw,
            filled,
            cut,
            first,
        })
    }

    /// The values from an origin on.
    pub(crate) fn truth(&self, origin: usize, horizon: usize) -> &[f32] {
        self.raw.get(origin..origin.saturating_add(horizon)).unwrap_or(&[])
    }

    pub(crate) fn mostly_known(&self, origin: usize, horizon: usize) -> bool {
        let truth = self.truth(origin, horizon);
        !truth.is_empty() && truth.iter().filter(|v| v.is_finite()).count() * 2 >= truth.len()
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

impl Table {
    /// Features, targets and weights of the chosen (series, origin) pairs; or the first series whose values cannot be scaled.
    fn new<'a>(
        features: Features,
        series: &'a [Ready],
        chosen: &[(usize, usize)],
        calendar: bool,
        lanes: &Lanes,
    ) -> Result<Self, &'a Ready> {
        let known = |(i, o): &(usize, usize)| Some((series.get(*i)?, *o));
        let chosen: Vec<(&Ready, usize)> = chosen.iter().filter_map(known).collect();
        let origins: Vec<_> = chosen.iter().map(|(s, o)| (&s.filled, *o, s.wall(*o, &features))).collect();
        let table = FeatureTable::new(features, &origins, lanes);
        let mut targets = Vec::with_capacity(chosen.len() * features.horizon);
        for (row, (one, origin)) in chosen.iter().enumerate() {
            let (loc, scale) = table.scaling(row);
            if !table.can_be_scaled(row) {
                return Err(one);
            }
            let z = one.truth(*origin, features.horizon).iter().map(|x| (x - loc) / scale);
            targets.extend(z.map(|z| if z.is_finite() { z.clamp(-MOST_TARGET, MOST_TARGET) } else { f32::NAN }));
        }
        let weights = weights(&table, &chosen);
        Ok(Self { features: table, targets, weights, horizon: features.horizon, calendar })
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

/// Weight of each origin: its scale over the mean scale of its series, so that the busy times of a series count as they
/// do in raw units while no series rules because of its unit.
fn weights(table: &FeatureTable, chosen: &[(&Ready, usize)]) -> Vec<f32> {
    let mut weights: Vec<f32> = (0..chosen.len()).map(|row| table.scaling(row).1).collect();
    let mut from = 0;
    while let Some((series, _)) = chosen.get(from) {
        let same = chosen.iter().skip(from).take_while(|(s, _)| std::ptr::eq(*s, *series)).count();
        if let Some(own) = weights.get_mut(from..from + same) {
            let mean = own.iter().map(|w| f64::from(*w)).sum::<f64>() / same.max(1) as f64;
            own.iter_mut().for_each(|w| *w = ((f64::from(*w) / mean) as f32).clamp(WEIGHTS.0, WEIGHTS.1));
        }
        from += same.max(1);
    }
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
