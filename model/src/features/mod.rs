//! What the network sees: lag features, near-term anchors, spreads and daily patches, all from values before the origin.
//!
//! Everything is in z = (x - loc) / scale, where loc is the mean of the last seven seasons and scale their deviation plus
//! floors from the longer context, so that idle and nearly constant series stay tame.

mod origin;
mod recent;
mod slots;
mod table;

pub use table::FeatureTable;

use foreshard_domain::Step;

use crate::ForecastSpec;

/// Inputs of one target step: ten lag and slot values, four of the calendar, five of the horizon, seven sorted slot values,
/// two drifts.
pub const STEP_INPUTS: usize = 28;
/// Which inputs of a step tell the time of the day and the week.
pub const CALENDAR: std::ops::Range<usize> = 10..14;
/// Which inputs of a step tell how far it is from the origin.
pub(crate) const HORIZON_TERMS: std::ops::Range<usize> = 14..19;
/// Inputs of one origin; the last [`ORIGIN_QUANTILES`] are quantiles of the last day and week.
pub const ORIGIN_INPUTS: usize = 24;
/// How many of the origin's inputs are quantiles, hidden from a random half of the training samples.
pub const ORIGIN_QUANTILES: usize = 10;
/// Anchors that differ by step: lags, slot means and their corrections.
pub const STEP_ANCHORS: usize = 8;
/// Anchors of the whole window: last value, recent means, medians.
pub const ORIGIN_ANCHORS: usize = 8;
/// All anchors of a step.
pub const ANCHORS: usize = STEP_ANCHORS + ORIGIN_ANCHORS;
/// Spreads that differ by step: of the slot, and the two drifts at this distance.
pub const STEP_SPREADS: usize = 3;
/// Spreads of the whole window.
pub const ORIGIN_SPREADS: usize = 5;
/// All spreads of a step.
pub const SPREADS: usize = STEP_SPREADS + ORIGIN_SPREADS;
/// Days that the encoder reads, one patch each.
pub const PATCHES: usize = 14;
/// Seasons of context that features reach back.
pub const REACH: usize = 28;
/// Most coarse values of a patch.
const MOST_SLOTS: usize = 96;
/// Extra values of a patch: share observed, deviation, maximum.
const PATCH_EXTRAS: usize = 3;

/// The shape of the features of one spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// Length of a step.
    pub step: Step,
    /// Number of steps forecast.
    pub horizon: usize,
    /// Steps in a season.
    pub season: usize,
    /// Steps averaged into one coarse value of a patch.
    pub coarse: usize,
}

impl Features {
    /// The shape for a spec; a season has at most 96 coarse values.
    pub fn new(spec: &ForecastSpec) -> Self {
        let season = spec.season_steps.max(1);
        let fits = |c: &usize| season.is_multiple_of(*c) && season / c <= MOST_SLOTS;
        let coarse = (1..=season).find(fits).unwrap_or(season);
        Self { step: spec.step, horizon: spec.horizon, season, coarse }
    }

    /// Coarse values in a patch.
    pub fn slots(&self) -> usize {
        self.season / self.coarse.max(1)
    }

    /// Values of a patch as the encoder sees it.
    pub fn patch_inputs(&self) -> usize {
        self.slots() + PATCH_EXTRAS
    }

    /// Values of context that features reach back; shorter contexts are extended with their own weeks or days.
    pub fn reach(&self) -> usize {
        self.season * REACH
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::Product;

    #[test]
    fn a_patch_has_at_most_96_values() {
        let hours = Features::new(&ForecastSpec::of_product(Product::NextHours));
        assert_eq!((hours.coarse, hours.slots(), hours.patch_inputs()), (3, 96, 99));
        let day = Features::new(&ForecastSpec::of_product(Product::NextDay));
        assert_eq!((day.coarse, day.slots()), (1, 96));
        let spec = ForecastSpec { season_steps: 24, horizon: 168, ..ForecastSpec::of_product(Product::NextDay) };
        assert_eq!(Features::new(&spec).slots(), 24);
        let odd = ForecastSpec { season_steps: 97, ..spec };
        assert_eq!(Features::new(&odd).slots(), 1);
    }
}
