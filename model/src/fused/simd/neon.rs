//! NEON.
//!
//! The safety argument of every intrinsic here: a value of this type exists only within [`on_neon`], into which everything
//! is inlined, and whose caller knows that the instructions are there. Loads and stores ask for no alignment beyond that
//! of a number; that the memory is there is the caller's promise.

use std::arch::aarch64::*;

use super::{Vector, Work};

/// Four numbers; 32 registers hold 6 x 4 sums.
#[derive(Clone, Copy)]
pub(super) struct Neon(float32x4_t);

// SAFETY of all blocks: see the head of this file.
impl Vector for Neon {
    type Number = f32;
    const WIDTH: usize = 4;
    const ROWS: usize = 6;

    #[inline(always)]
    fn splat(number: f32) -> Self {
        Self(unsafe { vdupq_n_f32(number) })
    }
    #[inline(always)]
    fn constant(number: f32) -> Self {
        Self::splat(number)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { vld1q_f32(from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { vst1q_f32(to, self.0) }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        Self(unsafe { vaddq_f32(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        Self(unsafe { vsubq_f32(self.0, b.0) })
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        Self(unsafe { vmulq_f32(self.0, b.0) })
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        Self(unsafe { vdivq_f32(self.0, b.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        Self(unsafe { vfmaq_f32(c.0, self.0, b.0) })
    }
    // Both instructions give what is not a number if either operand is none.
    #[inline(always)]
    fn clamp(self, low: Self, high: Self) -> Self {
        Self(unsafe { vmaxq_f32(low.0, vminq_f32(high.0, self.0)) })
    }
    // This one gives what is not a number if either is none; whoever calls it adds up to the same.
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        Self(unsafe { vmaxq_f32(self.0, b.0) })
    }
    // The exponent's bits.
    #[inline(always)]
    fn power_of_two(self) -> Self {
        let n = unsafe { vaddq_s32(vcvtnq_s32_f32(self.0), vdupq_n_s32(127)) };
        Self(unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(n)) })
    }
}

/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn on_neon<W: Work<f32>>(work: W) -> W::Done {
    work.on::<Neon>()
}
