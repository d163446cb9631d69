//! Features of many origins, in plain slices.

use std::sync::Arc;

use foreshard_domain::Timestamp;

use super::origin::{OriginFeatures, STEP_ROW, Scratch, most_scale};
use super::{ANCHORS, Features, ORIGIN_ANCHORS, ORIGIN_INPUTS, ORIGIN_QUANTILES, PATCHES};
use super::{ORIGIN_SPREADS, SPREADS, STEP_ANCHORS, STEP_INPUTS, STEP_SPREADS};
use crate::{Batch, Filled, Lanes};

/// Origins that one piece of work covers.
const PIECE: usize = 32;

/// Features of many origins; rows of a batch are copied out of it.
#[derive(Debug)]
pub struct FeatureTable {
    features: Features,
    rows: Vec<OriginFeatures>,
}

impl FeatureTable {
    /// Computes the features of each (series, origin, time of the first target step). An origin is the index of the first
    /// target step; only values before it are read (D1).
    pub fn new(features: Features, origins: &[(&Filled, usize, Timestamp)], lanes: &Lanes) -> Self {
        let pieces: Vec<_> = origins.chunks(PIECE).collect();
        let computed = lanes.map(&pieces, |_, piece| Self::here(features, piece).rows);
        Self { features, rows: computed.into_iter().flatten().collect() }
    }

    /// The same on the calling thread.
    pub fn here(features: Features, origins: &[(&Filled, usize, Timestamp)]) -> Self {
        let mut scratch = Scratch::default();
        let of = |(filled, origin, start): &(&Filled, usize, Timestamp)| {
            features.of_origin(filled, *origin, *start, &mut scratch)
        };
        Self { features, rows: origins.iter().map(of).collect() }
    }

    /// Puts the origins of another table of the same features behind its own.
    pub fn append(&mut self, other: Self) {
        self.rows.extend(other.rows);
    }

    /// How many origins.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no origin.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The shape of the features.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Centre and scale of an origin: x = z * scale + centre. (0, 1) past the end.
    pub fn scaling(&self, origin: usize) -> (f32, f32) {
        self.rows.get(origin).map_or((0.0, 1.0), |row| (row.loc, row.scale))
    }

    /// Whether mean and deviation of the values before an origin are numbers; where they are not, its scale is made up.
    pub fn can_be_scaled(&self, origin: usize) -> bool {
        let (loc, scale) = self.scaling(origin);
        loc.is_finite() && scale < most_scale()
    }

    /// The inputs of `origins` at `steps`, in that order; origins for which `hide` is true show no quantiles.
    /// Indices past the end are zeros.
    pub fn batch(&self, origins: &[usize], steps: &[usize], hide: impl Fn(usize) -> bool) -> Batch {
        let n = origins.len() * steps.len();
        let width = self.features.patch_inputs();
        let mut batch = Batch {
            origins: origins.len(),
            steps: steps.len(),
            patch_inputs: width,
            step_inputs: Vec::with_capacity(n * STEP_INPUTS),
            origin_inputs: Vec::with_capacity(origins.len() * ORIGIN_INPUTS),
            anchors: Vec::with_capacity(n * ANCHORS),
            spreads: Vec::with_capacity(n * SPREADS),
            patches: Arc::default(),
        };
        let mut patches = vec![0.0; PATCHES * origins.len() * width];
        for (i, origin) in origins.iter().enumerate() {
            if let Some(row) = self.rows.get(*origin) {
                append(&mut batch, row, steps, hide(i));
                // Days come first, so that the encoder reads one after the other.
                let days = patches.chunks_exact_mut(origins.len() * width).zip(row.patches.chunks_exact(width));
                days.for_each(|(day, patch)| day[i * width..(i + 1) * width].copy_from_slice(patch));
            } else {
                append_zeros(&mut batch, steps.len());
            }
        }
        batch.patches = Arc::new(patches);
        batch
    }
}

fn append(batch: &mut Batch, row: &OriginFeatures, steps: &[usize], hide: bool) {
    const ANCHORS_END: usize = STEP_INPUTS + STEP_ANCHORS;
    for step in steps {
        let zeros = [0.0; STEP_ROW];
        let row_of_step = row.steps.chunks_exact(STEP_ROW).nth(*step).unwrap_or(&zeros);
        let (inputs, rest) = row_of_step.split_at(STEP_INPUTS);
        let (anchors, spreads) = rest.split_at(ANCHORS_END - STEP_INPUTS);
        batch.step_inputs.extend_from_slice(inputs);
        batch.anchors.extend_from_slice(anchors);
        batch.anchors.extend_from_slice(&row.recent.anchors);
        batch.spreads.extend_from_slice(spreads);
        batch.spreads.extend_from_slice(&row.recent.spreads);
    }
    let shown = if hide { ORIGIN_INPUTS - ORIGIN_QUANTILES } else { ORIGIN_INPUTS };
    batch.origin_inputs.extend(row.recent.inputs.iter().take(shown));
    batch.origin_inputs.extend(std::iter::repeat_n(0.0, ORIGIN_INPUTS - shown));
}

fn append_zeros(batch: &mut Batch, steps: usize) {
    batch.step_inputs.extend(std::iter::repeat_n(0.0, steps * STEP_INPUTS));
    batch.anchors.extend(std::iter::repeat_n(0.0, steps * (STEP_ANCHORS + ORIGIN_ANCHORS)));
    batch.spreads.extend(std::iter::repeat_n(0.0, steps * (STEP_SPREADS + ORIGIN_SPREADS)));
    batch.origin_inputs.extend(std::iter::repeat_n(0.0, ORIGIN_INPUTS));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ForecastSpec;
    use foreshard_domain::{Product, QuantileLevels, Step};

    fn specs() -> [ForecastSpec; 3] {
        let hourly = ForecastSpec {
            step: Step::from_ms(3_600_000).unwrap(),
            horizon: 168,
            season_steps: 24,
            levels: QuantileLevels::standard(),
            ..ForecastSpec::of_product(Product::NextDay)
        };
        [ForecastSpec::of_product(Product::NextHours), ForecastSpec::of_product(Product::NextDay), hourly]
    }

    fn wave(n: usize) -> Vec<f32> {
        (0..n)
            .map(|i| if i % 41 == 7 { f32::NAN } else { 50.0 + (i as f32 / 30.0).sin() * 20.0 + (i % 13) as f32 })
            .collect()
    }

    fn bits(batch: &Batch) -> Vec<u32> {
        let patches = batch.patches.as_ref();
        let parts = [&batch.step_inputs, &batch.origin_inputs, &batch.anchors, &batch.spreads, patches];
        parts.into_iter().flatten().map(|v| v.to_bits()).collect()
    }

    #[test]
    fn d1_features_do_not_see_the_future() {
        let lanes = Lanes::new(1).unwrap();
        for spec in specs() {
            let features = Features::new(&spec);
            let n = spec.season_steps * 16;
            let origin = n - spec.horizon;
            let honest = wave(n);
            let steps: Vec<usize> = (0..spec.horizon).collect();
            let made = |values: &[f32]| {
                let filled = Filled::new(values, spec.season_steps);
                let table = FeatureTable::new(features, &[(&filled, origin, Timestamp::from_ms(0))], &lanes);
                (bits(&table.batch(&[0], &steps, |_| false)), table.scaling(0))
            };
            let expected = made(&honest);
            for junk in [f32::NAN, 1e9, f32::NEG_INFINITY] {
                let mut corrupt = honest.clone();
                corrupt[origin..].fill(junk);
                assert_eq!(made(&corrupt), expected);
            }
            assert_eq!(made(&honest[..origin]), expected);
        }
    }

    #[test]
    fn features_are_finite_at_any_length() {
        let lanes = Lanes::new(2).unwrap();
        for spec in specs() {
            let features = Features::new(&spec);
            for n in [0, 1, 30, spec.season_steps, spec.season_steps * 9] {
                for values in [wave(n), vec![0.0; n], vec![f32::NAN; n], vec![1e30; n]] {
                    let filled = Filled::new(&values, spec.season_steps);
                    let table = FeatureTable::new(features, &[(&filled, n, Timestamp::from_ms(0))], &lanes);
                    let batch = table.batch(&[0, 9], &[0, spec.horizon - 1], |i| i == 0);
                    assert!(bits(&batch).iter().all(|b| f32::from_bits(*b).is_finite()), "{n}");
                    assert_eq!(batch.step_inputs.len(), 4 * STEP_INPUTS);
                    assert_eq!(batch.anchors.len(), 4 * ANCHORS);
                    assert_eq!(batch.spreads.len(), 4 * SPREADS);
                    assert_eq!(batch.patches.len(), 2 * PATCHES * features.patch_inputs());
                }
            }
        }
    }

    #[test]
    fn lags_are_where_they_should_be() {
        let lanes = Lanes::new(1).unwrap();
        let spec = ForecastSpec { season_steps: 24, horizon: 30, ..specs()[2].clone() };
        let features = Features::new(&spec);
        let values: Vec<f32> = (0..24 * 30).map(|i| i as f32).collect();
        let filled = Filled::new(&values, 24);
        let origin = 24 * 29;
        let table = FeatureTable::new(features, &[(&filled, origin, Timestamp::from_ms(0))], &lanes);
        let (loc, scale) = table.scaling(0);
        let batch = table.batch(&[0], &[0, 29], |_| false);
        let raw = |z: f32| (z * scale + loc).round() as usize;
        // Step 0: a day and a week earlier; step 29: the newest earlier value of its slot is two days back.
        assert_eq!((raw(batch.anchors[0]), raw(batch.anchors[1])), (origin - 24, origin - 168));
        let second = &batch.anchors[ANCHORS..];
        assert_eq!((raw(second[0]), raw(second[1])), (origin + 29 - 48, origin + 29 - 168));
        assert_eq!(raw(second[STEP_ANCHORS + 2]), origin - 1);
    }
}
