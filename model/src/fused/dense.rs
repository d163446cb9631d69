//! A dense layer with its activation as one operation: rows times weights, gelu, dropout. What goes in does not learn.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};

use super::activation::{gelu, gelu_slope};
use super::products::{ROW_STEP, add_product};
use super::shape::{Aligned, BLOCK, expect_length};
use super::simd::{Instructions, Left, Right, Vector, Work};
use crate::network::{slice, values};

/// Rows that go through together; a multiple of 12.
const ROWS: usize = 48;

/// gelu(x W + b), times `masks` if there are any: x is rows x inputs, row by row, `weight` (inputs, units), `bias` (1, units),
/// masks rows x units. Gradients of weight and bias can be asked for.
///
/// # Errors
/// If the tensors are not f32 on the CPU or lists do not fit them.
pub(crate) fn dense(
    instructions: Instructions,
    x: Arc<Vec<f32>>,
    weight: &Tensor,
    bias: &Tensor,
    masks: Option<Vec<f32>>,
) -> Result<Tensor> {
    let (inputs, units) = weight.dims2()?;
    let sizes = Sizes { rows: x.len() / inputs.max(1), inputs, units };
    expect_length("inputs of a dense layer", sizes.rows * inputs, x.len()).map_err(candle_core::Error::wrap)?;
    if let Some(masks) = &masks {
        let want = sizes.rows * units;
        expect_length("masks of a dense layer", want, masks.len()).map_err(candle_core::Error::wrap)?;
    }
    weight.contiguous()?.apply_op2(&bias.contiguous()?, Dense { instructions, sizes, x, masks })
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    rows: usize,
    inputs: usize,
    units: usize,
}

impl Sizes {
    fn width(&self) -> usize {
        self.units.next_multiple_of(BLOCK)
    }

    /// Weights with the bias as their last row, filled up to whole vectors.
    fn pack(&self, weight: &[f32], bias: &[f32]) -> Aligned<f32> {
        let width = self.width();
        let mut packed = Aligned::zeros((self.inputs + 1) * width);
        let rows = weight.chunks_exact(self.units).chain(bias.chunks_exact(self.units));
        packed.chunks_exact_mut(width).zip(rows).for_each(|(to, from)| to[..self.units].copy_from_slice(from));
        packed
    }
}

struct Dense {
    instructions: Instructions,
    sizes: Sizes,
    x: Arc<Vec<f32>>,
    masks: Option<Vec<f32>>,
}

impl CustomOp2 for Dense {
    fn name(&self) -> &'static str {
        "dense-gelu"
    }

    fn cpu_fwd(
        &self,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let packed = self.sizes.pack(slice(weight, weight_layout)?, slice(bias, bias_layout)?);
        let mut out = vec![0.0; self.sizes.rows * self.sizes.units];
        self.instructions.run(Forward { own: self, packed: &packed, out: &mut out });
        Ok((CpuStorage::F32(out), (self.sizes.rows, self.sizes.units).into()))
    }

    fn bwd(
        &self,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let packed = self.sizes.pack(&values(weight)?, &values(bias)?);
        let by_out = values(gradient)?;
        let by_packed = self.instructions.run(Backward { own: self, packed: &packed, by_out: &by_out });
        let rows = by_packed.chunks_exact(self.sizes.width()).map(|row| &row[..self.sizes.units]);
        let mut flat: Vec<f32> = rows.take(self.sizes.inputs + 1).flatten().copied().collect();
        let by_bias = flat.split_off(self.sizes.inputs * self.sizes.units);
        let device = weight.device();
        let by_weight = Tensor::from_vec(flat, weight.shape(), device)?;
        Ok((Some(by_weight), Some(Tensor::from_vec(by_bias, bias.shape(), device)?)))
    }
}

impl Dense {
    /// The rows `from..from + count` before their activation; the rest of the block is of no meaning.
    #[inline(always)]
    fn block<V: Vector<Number = f32>>(
        &self,
        packed: &[f32],
        (from, count): (usize, usize),
        pre: &mut [f32],
        x: &mut [f32],
    ) {
        let (inputs, width) = (self.sizes.inputs, self.sizes.width());
        let (weights, bias) = packed.split_at(inputs * width);
        let given = &self.x[from * inputs..(from + count) * inputs];
        let pitch = x.len() / ROWS;
        for (to, from) in x.chunks_exact_mut(pitch).zip(given.chunks_exact(inputs)) {
            to[..inputs].copy_from_slice(from);
        }
        x[count * pitch..].fill(0.0);
        pre.chunks_exact_mut(width).for_each(|row| row.copy_from_slice(bias));
        let left = Left { from: x, row: pitch, depth: 1 };
        add_product::<V, false>(inputs, left, Right { from: weights, depth: width }, pre, width);
    }
}

struct Forward<'a> {
    own: &'a Dense,
    packed: &'a [f32],
    out: &'a mut [f32],
}

impl Work<f32> for Forward<'_> {
    type Done = ();

    #[inline(always)]
    fn on<V: Vector<Number = f32>>(self) {
        let Self { own, packed, out } = self;
        let (units, width) = (own.sizes.units, own.sizes.width());
        let (mut pre, mut x) = (Aligned::zeros(ROWS * width), Aligned::zeros(ROWS * own.sizes.inputs));
        for (block, out) in out.chunks_mut(ROWS * units).enumerate() {
            let (from, count) = (block * ROWS, out.len() / units);
            own.block::<V>(packed, (from, count), &mut pre, &mut x);
            for at in (0..pre.len()).step_by(V::WIDTH) {
                gelu(V::read(&pre, at)).1.write(&mut pre, at);
            }
            for (out, row) in out.chunks_exact_mut(units).zip(pre.chunks_exact(width)) {
                out.copy_from_slice(&row[..units]);
            }
            if let Some(masks) = &own.masks {
                out.iter_mut().zip(&masks[from * units..]).for_each(|(out, factor)| *out *= factor);
            }
        }
    }
}

struct Backward<'a> {
    own: &'a Dense,
    packed: &'a [f32],
    by_out: &'a [f32],
}

impl Work<f32> for Backward<'_> {
    /// Gradients of the packed weights.
    type Done = Aligned<f32>;

    #[inline(always)]
    fn on<V: Vector<Number = f32>>(self) -> Aligned<f32> {
        let Self { own, packed, by_out } = self;
        let Sizes { inputs, units, .. } = own.sizes;
        // A column of ones for the bias, and zeros for whole tiles.
        let (width, pitch) = (own.sizes.width(), (inputs + 1).next_multiple_of(ROW_STEP));
        let (mut pre, mut by) = (Aligned::zeros(ROWS * width), Aligned::zeros(ROWS * width));
        let (mut x, mut by_packed) = (Aligned::zeros(ROWS * pitch), Aligned::zeros(pitch * width));
        for (block, by_out) in by_out.chunks(ROWS * units).enumerate() {
            let (from, count) = (block * ROWS, by_out.len() / units);
            own.block::<V>(packed, (from, count), &mut pre, &mut x);
            x.chunks_exact_mut(pitch).for_each(|row| row[inputs] = 1.0);
            by.fill(0.0);
            for (row, (to, given)) in by.chunks_exact_mut(width).zip(by_out.chunks_exact(units)).enumerate() {
                to[..units].copy_from_slice(given);
                if let Some(masks) = &own.masks {
                    let masks = &masks[(from + row) * units..(from + row + 1) * units];
                    to.iter_mut().zip(masks).for_each(|(to, factor)| *to *= factor);
                }
            }
            for at in (0..pre.len()).step_by(V::WIDTH) {
                let value = V::read(&pre, at);
                V::read(&by, at).mul(gelu_slope(value, gelu(value).0)).write(&mut by, at);
            }
            let left = Left { from: &x, row: 1, depth: pitch };
            add_product::<V, true>(ROWS, left, Right { from: &by, depth: width }, &mut by_packed, width);
        }
        by_packed
    }
}
