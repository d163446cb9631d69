//! AVX2 with FMA, and AVX-512.
//!
//! The safety argument of every intrinsic here: a value of these types exists only within [`on_avx2`] or [`on_avx512`],
//! into which everything is inlined, and whose callers know that the instructions are there. Loads and stores ask for no
//! alignment beyond that of a number; that the memory is there is the caller's promise.

use std::arch::x86_64::*;

use super::{Vector, Work};

macro_rules! vector {
    ($(#[$about:meta])* $name:ident, $raw:ty, $width:literal x $rows:literal, $splat:ident, $load:ident, $store:ident,
     $add:ident, $sub:ident, $mul:ident, $div:ident, $mul_add:ident, $min:ident, $max:ident,
     $whole:ident, $splat_whole:ident, $add_whole:ident, $shift:ident, $bits:ident) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub(super) struct $name($raw);

        // SAFETY of all blocks: see the head of this file.
        impl Vector for $name {
            type Number = f32;
            const WIDTH: usize = $width;
            const ROWS: usize = $rows;

            #[inline(always)]
            fn splat(number: f32) -> Self {
                Self(unsafe { $splat(number) })
            }
            #[inline(always)]
            fn constant(number: f32) -> Self {
                Self::splat(number)
            }
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                Self(unsafe { $load(from) })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { $store(to, self.0) }
            }
            #[inline(always)]
            fn add(self, b: Self) -> Self {
                Self(unsafe { $add(self.0, b.0) })
            }
            #[inline(always)]
            fn sub(self, b: Self) -> Self {
                Self(unsafe { $sub(self.0, b.0) })
            }
            #[inline(always)]
            fn mul(self, b: Self) -> Self {
                Self(unsafe { $mul(self.0, b.0) })
            }
            #[inline(always)]
            fn div(self, b: Self) -> Self {
                Self(unsafe { $div(self.0, b.0) })
            }
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                Self(unsafe { $mul_add(self.0, b.0, c.0) })
            }
            // Both instructions give their second operand if either is not a number.
            #[inline(always)]
            fn clamp(self, low: Self, high: Self) -> Self {
                Self(unsafe { $max(low.0, $min(high.0, self.0)) })
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                Self(unsafe { $max(self.0, b.0) })
            }
            // The exponent's bits.
            #[inline(always)]
            fn power_of_two(self) -> Self {
                let n = unsafe { $add_whole($whole(self.0), $splat_whole(127)) };
                Self(unsafe { $bits($shift::<23>(n)) })
            }
        }
    };
}

vector!(
    /// Eight numbers; sixteen registers hold 3 x 4 sums.
    Avx2, __m256, 8 x 3, _mm256_set1_ps, _mm256_loadu_ps, _mm256_storeu_ps,
    _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_div_ps, _mm256_fmadd_ps, _mm256_min_ps, _mm256_max_ps,
    _mm256_cvtps_epi32, _mm256_set1_epi32, _mm256_add_epi32, _mm256_slli_epi32, _mm256_castsi256_ps
);
vector!(
    /// Sixteen numbers; 32 registers hold 6 x 4 sums.
    Avx512, __m512, 16 x 6, _mm512_set1_ps, _mm512_loadu_ps, _mm512_storeu_ps,
    _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_div_ps, _mm512_fmadd_ps, _mm512_min_ps, _mm512_max_ps,
    _mm512_cvtps_epi32, _mm512_set1_epi32, _mm512_add_epi32, _mm512_slli_epi32, _mm512_castsi512_ps
);

/// # Safety
/// The machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn on_avx2<W: Work<f32>>(work: W) -> W::Done {
    work.on::<Avx2>()
}

/// # Safety
/// The machine has the foundation of AVX-512.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn on_avx512<W: Work<f32>>(work: W) -> W::Done {
    work.on::<Avx512>()
}
