//! From scores to quantiles, and from the gradient of quantiles to that of scores; lanes are rows.

use super::block::ROWS;
use super::pack::{INCREMENTS, INCREMENTS_AT, LEVELS, OFFSET_AT, SPREADS_AT};
use crate::features::{ANCHORS, SPREADS};
use crate::fused::simd::Vector;
use crate::network::{LEAST_SPREAD, MEDIAN, MIXTURE_GAIN};

/// A softmax mixture: its weights times `total`, and the mixed value.
struct Mixture<V, const N: usize> {
    shares: [V; N],
    value: V,
}

impl<V: Vector, const N: usize> Mixture<V, N> {
    /// Of N rows of `scores` from row `from` on, with as many of `values`.
    #[inline(always)]
    fn new(scores: &[V::Number], from: usize, values: &[V::Number], lane: usize) -> Self {
        let gain = V::constant(MIXTURE_GAIN as f32);
        let mut shares = [V::constant(0.0); N];
        let mut most = V::constant(f32::MIN);
        for (i, share) in shares.iter_mut().enumerate() {
            *share = V::read(scores, (from + i) * ROWS + lane).mul(gain);
            most = most.max(*share);
        }
        let (mut total, mut sum) = (V::constant(0.0), V::constant(0.0));
        for (i, share) in shares.iter_mut().enumerate() {
            *share = share.sub(most).exp();
            total = total.add(*share);
            sum = share.mul_add(V::read(values, i * ROWS + lane), sum);
        }
        let each = V::constant(1.0).div(total);
        for share in &mut shares {
            *share = share.mul(each);
        }
        Self { shares, value: sum.mul(each) }
    }

    /// Writes the gradient of the scores in their place, given that of the mixed value.
    #[inline(always)]
    fn back(&self, by_value: V, scores: &mut [V::Number], from: usize, values: &[V::Number], lane: usize) {
        let by_value = by_value.mul(V::constant(MIXTURE_GAIN as f32));
        for (i, share) in self.shares.iter().enumerate() {
            let apart = V::read(values, i * ROWS + lane).sub(self.value);
            share.mul(apart).mul(by_value).write(scores, (from + i) * ROWS + lane);
        }
    }
}

/// The head of WIDTH rows.
pub(super) struct Head<V> {
    anchors: Mixture<V, ANCHORS>,
    spreads: Mixture<V, SPREADS>,
    /// Mixed spread and the least one.
    spread: V,
    offset: V,
    /// Scores of the increments.
    raw: [V; INCREMENTS],
    /// Distance of each level from the median, in units of the spread.
    outward: [V; LEVELS],
}

impl<V: Vector> Head<V> {
    /// Of the rows from `lane` on; `scores`, `anchors` and `spreads` hold [`ROWS`] numbers for each column.
    #[inline(always)]
    pub(super) fn new(scores: &[V::Number], anchors: &[V::Number], spreads: &[V::Number], lane: usize) -> Self {
        let anchors = Mixture::new(scores, 0, anchors, lane);
        let spreads = Mixture::new(scores, SPREADS_AT, spreads, lane);
        let spread = V::add(spreads.value, V::constant(LEAST_SPREAD as f32));
        let mut raw = [V::constant(0.0); INCREMENTS];
        let mut outward = [V::constant(0.0); LEVELS];
        let (mut down, mut up) = (V::constant(0.0), V::constant(0.0));
        for (i, raw) in raw.iter_mut().enumerate() {
            *raw = V::read(scores, (INCREMENTS_AT + i) * ROWS + lane);
        }
        for i in 0..MEDIAN {
            down = down.sub(softplus(raw[i]));
            up = up.add(softplus(raw[MEDIAN + i]));
            outward[MEDIAN - 1 - i] = down;
            outward[MEDIAN + 1 + i] = up;
        }
        let offset = V::read(scores, OFFSET_AT * ROWS + lane);
        Self { anchors, spreads, spread, offset, raw, outward }
    }

    /// The quantile of a level.
    #[inline(always)]
    pub(super) fn quantile(&self, level: usize) -> V {
        let median = self.offset.mul_add(self.spread, self.anchors.value);
        self.outward[level].mul_add(self.spread, median)
    }

    /// Writes gradients of the scores in their place, given those of the quantiles.
    #[inline(always)]
    pub(super) fn back(
        &self,
        by_quantiles: &[V; LEVELS],
        scores: &mut [V::Number],
        anchors: &[V::Number],
        spreads: &[V::Number],
        lane: usize,
    ) {
        let (mut by_median, mut by_spread) = (V::constant(0.0), V::constant(0.0));
        for (by, outward) in by_quantiles.iter().zip(&self.outward) {
            by_median = by_median.add(*by);
            by_spread = by.mul_add(*outward, by_spread);
        }
        by_spread = by_median.mul_add(self.offset, by_spread);
        self.anchors.back(by_median, scores, 0, anchors, lane);
        self.spreads.back(by_spread, scores, SPREADS_AT, spreads, lane);
        by_median.mul(self.spread).write(scores, OFFSET_AT * ROWS + lane);
        // Increment i moves all levels beyond it.
        let (mut below, mut above) = (V::constant(0.0), V::constant(0.0));
        for i in (0..MEDIAN).rev() {
            below = below.sub(by_quantiles[MEDIAN - 1 - i]);
            above = above.add(by_quantiles[MEDIAN + 1 + i]);
            for (increment, by) in [(i, below), (MEDIAN + i, above)] {
                let by = by.mul(self.spread).mul(self.raw[increment].sigmoid());
                by.write(scores, (INCREMENTS_AT + increment) * ROWS + lane);
            }
        }
    }
}

/// ln(1 + e^x) without overflow.
#[inline(always)]
fn softplus<V: Vector>(x: V) -> V {
    let zero = V::constant(0.0);
    let away = zero.sub(zero.sub(x).max(x));
    zero.max(x).add(away.exp().ln_1p())
}
