//! The decoder with its pinball loss as one operation of the tensor library.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Storage, Tensor, bail};

use super::block::{Block, ROWS};
use super::pack::{DecoderShape, Matrices, Turned};
use super::{DecoderGoals, DecoderRows};
use crate::fused::shape::{BLOCK, expect_length};
use crate::fused::simd::{Number, Vector, Work};
use crate::fused::{FusedError, Instructions};
use crate::network::slice;

/// A decoder whose weights learn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderTraining {
    shape: DecoderShape,
    instructions: Instructions,
}

impl DecoderTraining {
    /// A decoder that computes on these instructions, on the calling thread.
    pub(crate) fn new(shape: DecoderShape, instructions: Instructions) -> std::result::Result<Self, FusedError> {
        shape.check()?;
        Ok(Self { shape, instructions })
    }

    /// The weighted sum of the pinball losses of all rows, from `whole`, (origins, units), and a flat list of weights as
    /// [`DecoderShape`] says. Gradients of both are worked out on the way and kept for the way back.
    ///
    /// # Errors
    /// If the tensors are not f32 on the CPU or lists do not fit each other.
    pub(crate) fn loss(
        &self,
        whole: &Tensor,
        weights: &Tensor,
        rows: DecoderRows<'_>,
        goals: DecoderGoals<'_>,
    ) -> Result<Tensor> {
        let (whole, weights) = (whole.contiguous()?, weights.contiguous()?);
        let known = {
            let ((whole, whole_layout), (weights, weights_layout)) =
                (whole.storage_and_layout(), weights.storage_and_layout());
            let (Storage::Cpu(whole), Storage::Cpu(weights)) = (&*whole, &*weights) else {
                bail!("the fused decoder computes on the CPU alone");
            };
            let done = self.work_out(slice(whole, whole_layout)?, slice(weights, weights_layout)?, rows, goals);
            done.map_err(candle_core::Error::wrap)?
        };
        whole.apply_op2(&weights, known)
    }

    fn work_out(
        &self,
        whole: &[f32],
        weights: &[f32],
        rows: DecoderRows<'_>,
        goals: DecoderGoals<'_>,
    ) -> std::result::Result<Known, FusedError> {
        let count = rows.count(&self.shape, whole)?;
        expect_length("targets", count, goals.targets.len())?;
        expect_length("weights of targets", count, goals.weights.len())?;
        let weights = Matrices::pack(self.shape, weights)?;
        let turned = Turned::new(&weights);
        let mut done = self.instructions.run(Learning {
            shape: self.shape,
            weights: &weights,
            turned: &turned,
            whole,
            rows,
            goals,
        });
        Ok(Known { loss: done.loss, by_whole: done.by_whole, by_weights: done.by_weights.flatten() })
    }
}

/// All rows there and back.
pub(super) struct Learning<'a, T> {
    pub shape: DecoderShape,
    pub weights: &'a Matrices<T>,
    pub turned: &'a Turned<T>,
    pub whole: &'a [T],
    pub rows: DecoderRows<'a, T>,
    pub goals: DecoderGoals<'a, T>,
}

/// Loss and gradients.
pub(super) struct Learned<T> {
    pub loss: T,
    pub by_whole: Vec<T>,
    pub by_weights: Matrices<T>,
}

impl<T: Number> Work<T> for Learning<'_, T> {
    type Done = Learned<T>;

    #[inline(always)]
    fn on<V: Vector<Number = T>>(self) -> Learned<T> {
        let Self { shape, weights, turned, whole, rows, goals } = self;
        let mut block = Block::new(shape, true);
        let mut by_weights = Matrices::zeros(shape);
        let mut by_whole = vec![T::default(); whole.len()];
        let mut losses = V::constant(0.0);
        let count = goals.targets.len();
        for from in (0..count).step_by(ROWS) {
            let range = (from, (count - from).min(ROWS));
            block.forward::<V>(weights, whole, &rows, range);
            losses = block.loss::<V>(&goals, range, losses);
            block.back::<V>(turned, &mut by_weights, &mut by_whole, &rows, range);
        }
        let mut lanes = [T::default(); BLOCK];
        losses.write(&mut lanes, 0);
        let mut loss = T::default();
        lanes.into_iter().for_each(|own| loss += own);
        Learned { loss, by_whole, by_weights }
    }
}

/// A loss whose gradients are known already.
struct Known {
    loss: f32,
    by_whole: Vec<f32>,
    by_weights: Vec<f32>,
}

impl CustomOp2 for Known {
    fn name(&self) -> &'static str {
        "decoder-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.loss]), ().into()))
    }

    fn bwd(
        &self,
        whole: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let factor = f64::from(gradient.to_scalar::<f32>()?);
        let scaled = |numbers: &[f32], like: &Tensor| {
            Tensor::from_slice(numbers, like.shape(), like.device())?.affine(factor, 0.0)
        };
        Ok((Some(scaled(&self.by_whole, whole)?), Some(scaled(&self.by_weights, weights)?)))
    }
}
