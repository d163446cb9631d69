//! Split-conformal correction of the widths: one factor for each eighth of the horizon and each level.

use serde::{Deserialize, Serialize};

use crate::TENSOR_LEVELS;
use crate::statistics::sorted_quantile;

/// Parts of the horizon that are corrected apart.
pub const BLOCKS: usize = 8;
const LEVELS: usize = TENSOR_LEVELS.len();
const MEDIAN: usize = LEVELS / 2;
/// Bounds of a full correction; what lies beyond says more about the cut than about the model.
const LEAST: f32 = 0.6;
const MOST: f32 = 2.5;
/// Share of the full correction that is applied: with few series a full one overshoots.
const STRENGTH: f32 = 0.5;
/// Fewest truths in a block from which a factor is read.
const FEWEST: usize = 100;

/// Factors by which the distance of each level from the median is multiplied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WidthFactors {
    /// By eighth of the horizon, then by learned level.
    factors: Vec<[f32; LEVELS]>,
}

/// One step of a past forecast and what then happened, in any unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WidthSample {
    /// The step, counted from 0.
    pub step: usize,
    /// Quantiles at the learned levels.
    pub quantiles: [f32; LEVELS],
    /// The value observed.
    pub truth: f32,
}

/// The part of the horizon that a step lies in.
pub fn block(step: usize, horizon: usize) -> usize {
    (step * BLOCKS / horizon.max(1)).min(BLOCKS - 1)
}

impl WidthFactors {
    /// Reads factors from a stretch that the network was not fitted on, at half strength.
    pub fn fit(samples: &[WidthSample], horizon: usize) -> Self {
        let mut ratios: Vec<[Vec<f32>; LEVELS]> = (0..BLOCKS).map(|_| Default::default()).collect();
        for sample in samples.iter().filter(|s| s.truth.is_finite()) {
            let Some(columns) = ratios.get_mut(block(sample.step, horizon)) else { continue };
            let median = sample.quantiles[MEDIAN];
            for (column, q) in columns.iter_mut().zip(sample.quantiles) {
                let width = q - median;
                // Where the truth fell, in widths of this level: 1 is on the quantile, negative on the other side.
                let ratio = (sample.truth - median) / width;
                if ratio.is_finite() && width.abs() > 1e-6 * median.abs().max(1e-6) {
                    column.push(ratio);
                }
            }
        }
        Self { factors: ratios.into_iter().map(factors_of_block).collect() }
    }

    /// Corrects the quantiles of one step in place; the median stays, and no order is changed.
    pub fn apply(&self, quantiles: &mut [f32; LEVELS], step: usize, horizon: usize) {
        let Some(factors) = self.factors.get(block(step, horizon)) else { return };
        let median = quantiles[MEDIAN];
        for (q, factor) in quantiles.iter_mut().zip(factors) {
            *q = median + (*q - median) * factor;
        }
        rise_outward(quantiles);
    }

    /// Whether every factor is a number that [`Self::fit`] could have given.
    pub fn is_sound(&self) -> bool {
        let strongest = 1.0 + STRENGTH * (MOST - 1.0) + 1e-3;
        self.factors.len() == BLOCKS && self.factors.iter().flatten().all(|f| *f > 0.0 && *f <= strongest)
    }
}

fn factors_of_block(columns: [Vec<f32>; LEVELS]) -> [f32; LEVELS] {
    let mut factors = [1.0; LEVELS];
    for ((factor, mut column), (i, level)) in factors.iter_mut().zip(columns).zip(TENSOR_LEVELS.iter().enumerate()) {
        if i == MEDIAN || column.len() < FEWEST {
            continue;
        }
        column.sort_unstable_by(f32::total_cmp);
        // A lower level is passed by the share 1 - level of the ratios, an upper one by the share level.
        let share = if i < MEDIAN { 1.0 - level } else { *level };
        *factor = 1.0 + STRENGTH * (sorted_quantile(&column, share).clamp(LEAST, MOST) - 1.0);
    }
    factors
}

/// Lets no level come closer to the median than the one inside of it.
pub(crate) fn rise_outward(quantiles: &mut [f32; LEVELS]) {
    for i in (0..MEDIAN).rev() {
        quantiles[i] = quantiles[i].min(quantiles[i + 1]);
    }
    for i in MEDIAN + 1..LEVELS {
        quantiles[i] = quantiles[i].max(quantiles[i - 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Quantiles of a uniform distribution on -1..1, `narrow` times too narrow.
    fn uniform(narrow: f32) -> [f32; LEVELS] {
        TENSOR_LEVELS.map(|l| (2.0 * l as f32 - 1.0) * narrow)
    }

    fn samples(narrow: f32) -> Vec<WidthSample> {
        let truths = (0..4800).map(|i| ((i * 7919) % 2000) as f32 / 1000.0 - 1.0);
        truths.enumerate().map(|(i, truth)| WidthSample { step: i % 48, quantiles: uniform(narrow), truth }).collect()
    }

    #[test]
    fn too_narrow_is_widened_by_half_of_what_lacks() {
        let factors = WidthFactors::fit(&samples(0.5), 48);
        let mut row = uniform(0.5);
        factors.apply(&mut row, 10, 48);
        // A full correction would reach .8 at level .9; half of it lies at .6.
        assert!((row[10] - 0.6).abs() < 0.02, "{row:?}");
        assert!((row[2] + 0.6).abs() < 0.02, "{row:?}");
        assert_eq!(row[6], 0.0);
        let right = WidthFactors::fit(&samples(1.0), 48);
        assert!(right.factors.iter().flatten().all(|f| (f - 1.0).abs() < 0.2), "{right:?}");
        assert!(factors.is_sound() && right.is_sound());
    }

    #[test]
    fn few_samples_change_nothing() {
        let factors = WidthFactors::fit(&samples(0.5)[..90], 48);
        assert!(factors.factors.iter().flatten().all(|f| *f == 1.0));
    }

    proptest! {
        #[test]
        fn f1_correction_never_reorders(raw in proptest::collection::vec(0.3f32..2.0, LEVELS),
                                        gaps in proptest::collection::vec(0f32..3.0, LEVELS), step in 0usize..48) {
            let mut row = [0.0; LEVELS];
            let mut at = -5.0;
            for (q, gap) in row.iter_mut().zip(&gaps) { at += gap; *q = at; }
            let mut factors = [1.0; LEVELS];
            factors.copy_from_slice(&raw);
            WidthFactors { factors: vec![factors; BLOCKS] }.apply(&mut row, step, 48);
            prop_assert!(row.windows(2).all(|p| p[0] <= p[1]));
        }
    }
}
