//! Quantiles without gradients: weights packed once.

use super::DecoderRows;
use super::block::{Block, ROWS};
use super::pack::{DecoderShape, LEVELS, Matrices};
use crate::features::{ANCHORS, SPREADS};
use crate::fused::shape::expect_length;
use crate::fused::simd::{Vector, Work};
use crate::fused::{FusedError, Instructions};

/// A decoder that only computes.
#[derive(Debug)]
pub(crate) struct DecoderInference {
    shape: DecoderShape,
    weights: Matrices<f32>,
    instructions: Instructions,
}

/// Memory that one thread computes in; made once, used for any number of calls.
#[derive(Debug)]
pub(crate) struct DecoderWorkspace(Block<f32>);

impl DecoderInference {
    /// Packs weights, which lie as [`DecoderShape`] says.
    pub(crate) fn new(shape: DecoderShape, weights: &[f32], instructions: Instructions) -> Result<Self, FusedError> {
        Ok(Self { shape, weights: Matrices::pack(shape, weights)?, instructions })
    }

    /// Memory for one thread.
    pub(crate) fn workspace(&self) -> DecoderWorkspace {
        DecoderWorkspace(Block::new(self.shape, false))
    }

    /// Quantiles of all rows, in z, from `whole`, (origins x units); masks are of no use here.
    pub(crate) fn quantiles(
        &self,
        whole: &[f32],
        rows: DecoderRows<'_>,
        workspace: &mut DecoderWorkspace,
    ) -> Result<Vec<f32>, FusedError> {
        let rows = DecoderRows { masks: None, ..rows };
        let count = rows.count(&self.shape, whole)?;
        let mut out = vec![0.0; count * LEVELS];
        let block = &mut workspace.0;
        self.instructions.run(Quantiles { weights: &self.weights, whole, rows, out: &mut out, block });
        Ok(out)
    }
}

impl<T> DecoderRows<'_, T> {
    /// How many rows there are, if all lists fit each other.
    pub(super) fn count(&self, shape: &DecoderShape, whole: &[T]) -> Result<usize, FusedError> {
        let origins = whole.len() / shape.units;
        let count = origins * self.steps;
        expect_length("rows of origins", origins * shape.units, whole.len())?;
        expect_length("inputs of steps", count * shape.inputs, self.inputs.len())?;
        expect_length("anchors", count * ANCHORS, self.anchors.len())?;
        expect_length("spreads", count * SPREADS, self.spreads.len())?;
        if let Some(masks) = self.masks {
            expect_length("masks of a decoder", count * shape.units, masks.len())?;
        }
        Ok(count)
    }
}

struct Quantiles<'a> {
    weights: &'a Matrices<f32>,
    whole: &'a [f32],
    rows: DecoderRows<'a>,
    out: &'a mut [f32],
    block: &'a mut Block<f32>,
}

impl Work<f32> for Quantiles<'_> {
    type Done = ();

    #[inline(always)]
    fn on<V: Vector<Number = f32>>(self) {
        let Self { weights, whole, rows, out, block } = self;
        for (number, out) in out.chunks_mut(ROWS * LEVELS).enumerate() {
            let range = (number * ROWS, out.len() / LEVELS);
            block.forward::<V>(weights, whole, &rows, range);
            block.quantiles::<V>(out);
        }
    }
}
