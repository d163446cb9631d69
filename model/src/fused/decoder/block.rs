//! A block of rows on its way through the decoder and back.

use super::head::Head;
use super::pack::{DecoderShape, HEAD, LEVELS, Matrices, Turned, turn};
use super::{DecoderGoals, DecoderRows};
use crate::features::{ANCHORS, SPREADS};
use crate::fused::activation::{gelu, gelu_slope};
use crate::fused::products::add_product;
use crate::fused::shape::Aligned;
use crate::fused::simd::{Left, Number, Right, Vector};

/// Rows of a block: whole tiles and whole vectors on every machine, and all that they need stays near the core.
pub(super) const ROWS: usize = 48;

/// Memory of one block; what a name says, [`ROWS`] rows of it. Rows that fill the last block have inputs and weights of zero,
/// so that nothing of them reaches a gradient or an answer.
#[derive(Debug)]
pub(super) struct Block<T> {
    shape: DecoderShape,
    inputs: Aligned<T>,
    masks: Aligned<T>,
    /// The first layer before its activation, tanh of it, and after activation and dropout. On the way back the gradient takes
    /// the first place; so with the second layer.
    first: Aligned<T>,
    first_tanh: Aligned<T>,
    hidden: Aligned<T>,
    second: Aligned<T>,
    second_tanh: Aligned<T>,
    /// Both layers added.
    both: Aligned<T>,
    by_both: Aligned<T>,
    head: Aligned<T>,
    /// Columns of the head, of anchors and of spreads: [`ROWS`] numbers each.
    scores: Aligned<T>,
    anchors: Aligned<T>,
    spreads: Aligned<T>,
    quantiles: Aligned<T>,
}

impl<T: Number> Block<T> {
    pub(super) fn new(shape: DecoderShape, learns: bool) -> Self {
        let layer = || Aligned::zeros(ROWS * shape.width());
        let learning = |size: usize| Aligned::zeros(if learns { size } else { 0 });
        Self {
            shape,
            inputs: Aligned::zeros(ROWS * shape.pitch()),
            masks: learning(ROWS * shape.width()),
            first: layer(),
            first_tanh: layer(),
            hidden: layer(),
            second: layer(),
            second_tanh: layer(),
            both: layer(),
            by_both: learning(ROWS * shape.width()),
            head: Aligned::zeros(ROWS * HEAD),
            scores: Aligned::zeros(ROWS * HEAD),
            anchors: Aligned::zeros(ROWS * ANCHORS),
            spreads: Aligned::zeros(ROWS * SPREADS),
            quantiles: Aligned::zeros(ROWS * LEVELS),
        }
    }

    /// Scores of the rows `from..from + count`, in columns.
    #[inline(always)]
    pub(super) fn forward<V: Vector<Number = T>>(
        &mut self,
        weights: &Matrices<T>,
        whole: &[T],
        rows: &DecoderRows<'_, T>,
        (from, count): (usize, usize),
    ) {
        let (inputs, units) = (self.shape.inputs, self.shape.units);
        let (pitch, width) = (self.shape.pitch(), self.shape.width());
        copy_rows(&rows.inputs[from * inputs..(from + count) * inputs], inputs, &mut self.inputs, pitch);
        for (row, to) in self.first.chunks_exact_mut(width).enumerate() {
            to.fill(T::default());
            if row < count {
                let of_origin = (from + row) / rows.steps * units;
                to[..units].copy_from_slice(&whole[of_origin..of_origin + units]);
            }
        }
        let left = Left { from: &self.inputs, row: pitch, depth: 1 };
        let right = Right { from: &weights.step, depth: width };
        add_product::<V, false>(inputs, left, right, &mut self.first, width);
        if let Some(masks) = rows.masks {
            copy_rows(&masks[from * units..(from + count) * units], units, &mut self.masks, width);
        }
        let mut at = 0;
        while at < ROWS * width {
            let (tanh, value) = gelu(V::read(&self.first, at));
            tanh.write(&mut self.first_tanh, at);
            let value = if rows.masks.is_some() { value.mul(V::read(&self.masks, at)) } else { value };
            value.write(&mut self.hidden, at);
            at += V::WIDTH;
        }
        self.second.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(&weights.hidden_bias));
        let left = Left { from: &self.hidden, row: width, depth: 1 };
        let right = Right { from: &weights.hidden, depth: width };
        add_product::<V, false>(width, left, right, &mut self.second, width);
        let mut at = 0;
        while at < ROWS * width {
            let (tanh, value) = gelu(V::read(&self.second, at));
            tanh.write(&mut self.second_tanh, at);
            value.add(V::read(&self.hidden, at)).write(&mut self.both, at);
            at += V::WIDTH;
        }
        self.head.chunks_exact_mut(HEAD).for_each(|row| row.copy_from_slice(&weights.head_bias));
        let left = Left { from: &self.both, row: width, depth: 1 };
        let right = Right { from: &weights.head, depth: HEAD };
        add_product::<V, false>(width, left, right, &mut self.head, HEAD);
        turn(&self.head, HEAD, &mut self.scores, ROWS);
        turn_rows(&rows.anchors[from * ANCHORS..(from + count) * ANCHORS], ANCHORS, &mut self.anchors);
        turn_rows(&rows.spreads[from * SPREADS..(from + count) * SPREADS], SPREADS, &mut self.spreads);
    }

    /// Quantiles from the scores, in rows: `out` holds [`LEVELS`] for each.
    #[inline(always)]
    pub(super) fn quantiles<V: Vector<Number = T>>(&mut self, out: &mut [T]) {
        let mut lane = 0;
        while lane < ROWS {
            let head = Head::<V>::new(&self.scores, &self.anchors, &self.spreads, lane);
            for level in 0..LEVELS {
                head.quantile(level).write(&mut self.quantiles, level * ROWS + lane);
            }
            lane += V::WIDTH;
        }
        for (row, out) in out.chunks_exact_mut(LEVELS).enumerate() {
            for (out, level) in out.iter_mut().zip(self.quantiles.chunks_exact(ROWS)) {
                *out = level[row];
            }
        }
    }

    /// Pinball losses of the rows, summed for each lane onto `losses`; gradients of the scores take the scores' place.
    #[inline(always)]
    pub(super) fn loss<V: Vector<Number = T>>(
        &mut self,
        goals: &DecoderGoals<'_, T>,
        (from, count): (usize, usize),
        mut losses: V,
    ) -> V {
        // The quantiles' memory is free here.
        let (targets, weights) = self.quantiles.split_at_mut(ROWS);
        let weights = &mut weights[..ROWS];
        for (to, from) in
            [(&mut *targets, goals.targets), (&mut *weights, goals.weights)].map(|(t, f)| (t, &f[from..from + count]))
        {
            to[..count].copy_from_slice(from);
            to[count..].fill(T::default());
        }
        let one = V::constant(1.0);
        let mut lane = 0;
        while lane < ROWS {
            let head = Head::<V>::new(&self.scores, &self.anchors, &self.spreads, lane);
            let (target, weight) = (V::read(targets, lane), V::read(weights, lane));
            let mut by_quantiles = [V::constant(0.0); LEVELS];
            for (level, (by, (share, counts))) in by_quantiles.iter_mut().zip(goals.levels).enumerate() {
                let error = target.sub(head.quantile(level));
                // 1 where the truth lies below the quantile, else 0.
                let below = error.mul(V::constant(-f32::MAX)).clamp(V::constant(0.0), one);
                let slope = V::constant(*share).sub(below).mul(weight).mul(V::constant(*counts));
                losses = error.mul_add(slope, losses);
                *by = V::constant(0.0).sub(slope);
            }
            head.back(&by_quantiles, &mut self.scores, &self.anchors, &self.spreads, lane);
            lane += V::WIDTH;
        }
        losses
    }

    /// From gradients of the scores to those of the weights and of `whole`, which are added to.
    #[inline(always)]
    pub(super) fn back<V: Vector<Number = T>>(
        &mut self,
        turned: &Turned<T>,
        gradients: &mut Matrices<T>,
        by_whole: &mut [T],
        rows: &DecoderRows<'_, T>,
        (from, count): (usize, usize),
    ) {
        let (units, pitch, width) = (self.shape.units, self.shape.pitch(), self.shape.width());
        turn(&self.scores, ROWS, &mut self.head, HEAD);
        let right = Right { from: &self.head, depth: HEAD };
        add_product::<V, true>(ROWS, Left { from: &self.both, row: 1, depth: width }, right, &mut gradients.head, HEAD);
        add_columns::<V>(&self.head, &mut gradients.head_bias);
        self.by_both.fill(T::default());
        let left = Left { from: &self.head, row: HEAD, depth: 1 };
        add_product::<V, false>(HEAD, left, Right { from: &turned.head, depth: width }, &mut self.by_both, width);
        let mut at = 0;
        while at < ROWS * width {
            let slope = gelu_slope(V::read(&self.second, at), V::read(&self.second_tanh, at));
            V::read(&self.by_both, at).mul(slope).write(&mut self.second, at);
            at += V::WIDTH;
        }
        let right = Right { from: &self.second, depth: width };
        let left = Left { from: &self.hidden, row: 1, depth: width };
        add_product::<V, true>(ROWS, left, right, &mut gradients.hidden, width);
        add_columns::<V>(&self.second, &mut gradients.hidden_bias);
        let left = Left { from: &self.second, row: width, depth: 1 };
        add_product::<V, false>(width, left, Right { from: &turned.hidden, depth: width }, &mut self.by_both, width);
        let mut at = 0;
        while at < ROWS * width {
            let slope = gelu_slope(V::read(&self.first, at), V::read(&self.first_tanh, at));
            let by = V::read(&self.by_both, at).mul(slope);
            let by = if rows.masks.is_some() { by.mul(V::read(&self.masks, at)) } else { by };
            by.write(&mut self.first, at);
            at += V::WIDTH;
        }
        let left = Left { from: &self.inputs, row: 1, depth: pitch };
        let right = Right { from: &self.first, depth: width };
        add_product::<V, true>(ROWS, left, right, &mut gradients.step, width);
        for (row, by) in self.first.chunks_exact(width).take(count).enumerate() {
            let of_origin = (from + row) / rows.steps * units;
            let sums = &mut by_whole[of_origin..of_origin + units];
            sums.iter_mut().zip(by).for_each(|(sum, by)| *sum += *by);
        }
    }
}

/// Copies rows of `width` to rows of `to_width`; what is left of a row or of the block becomes zeros.
#[inline(always)]
fn copy_rows<T: Number>(from: &[T], width: usize, to: &mut [T], to_width: usize) {
    let mut rows = from.chunks_exact(width);
    for to in to.chunks_exact_mut(to_width) {
        match rows.next() {
            Some(from) => {
                to[..width].copy_from_slice(from);
                to[width..].fill(T::default());
            }
            None => to.fill(T::default()),
        }
    }
}

/// Rows of `width` become columns; those that fill the block become zeros.
#[inline(always)]
fn turn_rows<T: Number>(from: &[T], width: usize, to: &mut [T]) {
    let count = from.len() / width;
    turn(from, width, to, ROWS);
    if count < ROWS {
        to.chunks_exact_mut(ROWS).for_each(|column| column[count..].fill(T::default()));
    }
}

/// Adds every row to `sums`.
#[inline(always)]
fn add_columns<V: Vector>(rows: &[V::Number], sums: &mut [V::Number]) {
    for row in rows.chunks_exact(sums.len()) {
        let mut at = 0;
        while at < sums.len() {
            V::read(sums, at).add(V::read(row, at)).write(sums, at);
            at += V::WIDTH;
        }
    }
}
