//! The features of one origin.

use foreshard_domain::Timestamp;

use super::recent::{Recent, drift};
use super::slots::{SLOT_DAYS, Slots};
use super::{Features, PATCHES, STEP_ANCHORS, STEP_INPUTS, STEP_SPREADS};
use crate::Filled;
use crate::calendar::cycle;
use crate::forecaster::as_steps;
use crate::statistics::{deviation, mean, mean_abs, squash};

/// One row of step features: inputs, anchors, spreads.
pub(super) const STEP_ROW: usize = STEP_INPUTS + STEP_ANCHORS + STEP_SPREADS;
/// Least scale: keeps a series of zeros finite.
const LEAST_SCALE: f32 = 1e-6;

/// Everything computed for one origin.
#[derive(Debug)]
pub(super) struct OriginFeatures {
    /// horizon x [`STEP_ROW`].
    pub steps: Vec<f32>,
    pub recent: Recent,
    /// [`PATCHES`] x patch inputs, oldest first.
    pub patches: Vec<f32>,
    /// x = z * scale + loc.
    pub loc: f32,
    pub scale: f32,
}

/// Working memory that one thread keeps between origins.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    z: Vec<f32>,
    sums: Vec<f64>,
    slots: Slots,
    sort: Vec<f32>,
}

/// Stands for a scale that is no number, as squares of values from about 2e19 on make it.
pub(super) fn most_scale() -> f32 {
    f32::MAX.sqrt()
}

impl Features {
    /// Half width of the smoothing around a slot: about half an hour in steps of five minutes.
    fn half(&self) -> usize {
        (self.season / 48).max(1)
    }

    /// The features of the origin before index `origin` of a filled series; reads `filled[..origin]` only (D1).
    pub(super) fn of_origin(
        &self,
        filled: &Filled,
        origin: usize,
        window_start: Timestamp,
        scratch: &mut Scratch,
    ) -> OriginFeatures {
        let context = filled.values().get(..origin).unwrap_or(filled.values());
        let (loc, scale) = self.scaling(context);
        self.extend(context, &mut scratch.z);
        scratch.z.iter_mut().for_each(|v| *v = (*v - loc) / scale);
        let Scratch { z, sums, slots, sort } = scratch;
        slots.fill(z, self.season, self.half());
        running_sums(z, sums);
        let recent = Recent::new(z, self.season, slots, sort);
        let patches = self.patches(z, filled, context.len());
        let steps = self.step_rows(z, sums, slots, &recent, window_start);
        OriginFeatures { steps, recent, patches, loc, scale }
    }

    /// Mean of the last seven seasons, and their deviation with floors from up to 28 seasons.
    fn scaling(&self, context: &[f32]) -> (f32, f32) {
        let last = |n: usize| context.get(context.len().saturating_sub(n)..).unwrap_or(&[]);
        let (week, all) = (last(self.season * 7), last(self.reach()));
        let scale = deviation(week) + 0.05 * deviation(all) + 0.001 * mean_abs(all) + LEAST_SCALE;
        (mean(week), if scale.is_finite() { scale } else { most_scale() })
    }

    /// The last 28 seasons of the context; what is missing before its start repeats its first week, else its first day.
    fn extend(&self, context: &[f32], z: &mut Vec<f32>) {
        let reach = self.reach();
        let known = context.get(context.len().saturating_sub(reach)..).unwrap_or(&[]);
        let pad = reach - known.len();
        let period = [self.season * 7, self.season].into_iter().find(|p| known.len() >= *p).unwrap_or(1);
        z.clear();
        z.resize(pad, 0.0);
        z.extend_from_slice(known);
        for i in (0..pad).rev() {
            let copy = z.get(i + period).copied().unwrap_or(0.0);
            if let Some(v) = z.get_mut(i) {
                *v = copy;
            }
        }
    }

    /// One patch a day: coarse means through asinh, share observed, deviation and maximum.
    fn patches(&self, z: &[f32], filled: &Filled, origin: usize) -> Vec<f32> {
        let mut patches = Vec::with_capacity(PATCHES * self.patch_inputs());
        let days = z.get(z.len().saturating_sub(self.season * PATCHES)..).unwrap_or(&[]);
        for (i, day) in days.chunks_exact(self.season).enumerate() {
            patches
                .extend(day.chunks_exact(self.coarse).map(|slot| squash(slot.iter().sum::<f32>() / slot.len() as f32)));
            let end = origin.saturating_sub((PATCHES - 1 - i) * self.season);
            let observed = filled.observed(end.saturating_sub(self.season), end) as f32 / self.season as f32;
            let highest = day.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            patches.extend([observed, squash(deviation(day)), squash(highest)]);
        }
        patches
    }

    fn step_rows(&self, z: &[f32], sums: &[f64], slots: &Slots, recent: &Recent, window_start: Timestamp) -> Vec<f32> {
        let (season, n) = (self.season, z.len());
        let at = |i: usize| z.get(i).copied().unwrap_or(0.0);
        // The newest index of this slot that is a whole number of periods before the target and lies before the origin.
        let lag = |h: usize, period: usize| (n + h).saturating_sub((h / period + 1) * period);
        let mut rows = Vec::with_capacity(self.horizon * STEP_ROW);
        for h in 0..self.horizon {
            let phase = h % season;
            let day = lag(h, season);
            let lags = [day, lag(h, 2 * season), lag(h, 7 * season), lag(h, 14 * season)].map(at);
            let weeks = (0..4).map(|k| at(lag(h, 7 * season).saturating_sub(k * 7 * season)));
            let weekday = weeks.sum::<f32>() / 4.0;
            let smooth_lag = smoothed(sums, day, self.half());
            let smooth_slot = slots.smooth.get(phase).copied().unwrap_or(0.0);
            let of = |column: &[f32]| column.get(phase).copied().unwrap_or(0.0);
            let (slot, spread) = (slots.mean_at(phase), of(&slots.spread));
            let mut seven = [0.0f32; SLOT_DAYS];
            for (k, v) in seven.iter_mut().enumerate() {
                *v = at(day.saturating_sub(k * season));
            }
            seven.sort_unstable_by(f32::total_cmp);
            let drifts = [drift(z, h + 1, season * 7), drift(z, h + 1, season)];

            let values = [
                lags[0],
                lags[1],
                lags[2],
                lags[3],
                slot,
                spread,
                of(&slots.highest),
                weekday,
                smooth_lag,
                smooth_slot,
            ];
            rows.extend(values.map(squash));
            rows.extend(cycle(window_start.plus_steps(as_steps(h), self.step)));
            rows.extend(horizon_terms(h, self.horizon));
            rows.extend(seven.map(squash));
            rows.extend(drifts.map(squash));
            rows.extend([lags[0], lags[2], slot, weekday, smooth_lag, smooth_slot]);
            rows.extend([smooth_slot + recent.residual, smooth_lag + recent.level]);
            rows.extend([spread, drifts[0], drifts[1]]);
        }
        rows
    }
}

/// Where a step lies in the window, on scales from one step to the whole.
fn horizon_terms(h: usize, horizon: usize) -> [f32; 5] {
    let x = h as f32;
    [x / horizon.max(1) as f32, x.ln_1p(), (-x / 3.0).exp(), (-x / 12.0).exp(), (-x / 36.0).exp()]
}

fn running_sums(z: &[f32], sums: &mut Vec<f64>) {
    sums.clear();
    sums.push(0.0);
    let mut total = 0.0f64;
    for v in z {
        total += f64::from(*v);
        sums.push(total);
    }
}

/// Mean of the values around index `centre`, cut off at the origin.
fn smoothed(sums: &[f64], centre: usize, half: usize) -> f32 {
    let (from, to) = (centre.saturating_sub(half), (centre + half + 1).min(sums.len().saturating_sub(1)));
    match (sums.get(from), sums.get(to)) {
        (Some(a), Some(b)) if to > from => ((b - a) / (to - from) as f64) as f32,
        _ => 0.0,
    }
}
