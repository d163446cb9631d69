//! Vectors of numbers on whatever instructions the machine has, and the one loop that all products run through.
//!
//! This module and its children hold every `unsafe` block of the kernel. The rest of it is written once, generic over
//! [`Vector`], and inlined into an entry point per instruction set by [`Instructions::run`]. Why that is sound:
//!
//! * The vector types are private to this module. Code outside gets one only as the parameter of [`Work::on`], which is
//!   called by [`Instructions::run`] alone, and [`Instructions`] can be made only for what the machine was seen to have.
//!   So no instruction runs where it does not exist.
//! * Memory is read and written through [`Vector::read`], [`Vector::write`] and [`multiply_add`], which compare all
//!   offsets with the lengths of their slices first, once for a whole product.
//!
//! Every function that holds a vector is `#[inline(always)]`: one that stays a function of its own would be compiled for
//! the plainest machine, and lose all speed.
#![allow(unsafe_code)]

#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
pub(super) use portable::Double;

use super::FusedError;

/// Forces an instruction set: `scalar`, `avx2`, `avx512` or `neon`.
pub const SIMD_VARIABLE: &str = "FORESHARD_SIMD";

/// A number that weights and states consist of.
pub(super) trait Number:
    Copy + Default + Send + Sync + std::ops::AddAssign + std::ops::Mul<Output = Self>
{
    /// 1.
    const ONE: Self;
}

impl Number for f32 {
    const ONE: Self = 1.0;
}

#[cfg(test)]
impl Number for f64 {
    const ONE: Self = 1.0;
}

/// Numbers side by side, worked on at once.
pub(super) trait Vector: Copy {
    /// What it consists of.
    type Number: Number;
    /// How many; divides [`super::shape::BLOCK`].
    const WIDTH: usize;
    /// Rows of a tile of four vectors that the registers hold, at most [`MOST_ROWS`].
    const ROWS: usize;

    /// The same number everywhere.
    fn splat(number: Self::Number) -> Self;
    /// A constant everywhere.
    fn constant(number: f32) -> Self;
    /// Reads `WIDTH` numbers.
    ///
    /// # Safety
    /// They can be read there, aligned as numbers are.
    unsafe fn load(from: *const Self::Number) -> Self;
    /// Writes `WIDTH` numbers.
    ///
    /// # Safety
    /// They can be written there, aligned as numbers are.
    unsafe fn store(self, to: *mut Self::Number);
    /// self + b.
    fn add(self, b: Self) -> Self;
    /// self - b.
    fn sub(self, b: Self) -> Self;
    /// self b.
    fn mul(self, b: Self) -> Self;
    /// self / b.
    fn div(self, b: Self) -> Self;
    /// self b + c, rounded once where the machine can.
    fn mul_add(self, b: Self, c: Self) -> Self;
    /// Not below `low` nor above `high`; what is not a number stays so.
    fn clamp(self, low: Self, high: Self) -> Self;
    /// The larger one; if either is not a number, `b` or what is not one.
    fn max(self, b: Self) -> Self;
    /// 2 to the power of `self`, a whole number from -126 to 127.
    fn power_of_two(self) -> Self;

    /// tanh by a rational function, within 1e-6.
    #[inline(always)]
    fn tanh(self) -> Self {
        let x = self.clamp(Self::constant(-7.9), Self::constant(7.9));
        let s = x.mul(x);
        let above = Self::constant(-2.760_768_5e-16)
            .mul_add(s, Self::constant(2.000_188e-13))
            .mul_add(s, Self::constant(-8.604_672e-11))
            .mul_add(s, Self::constant(5.122_297e-8))
            .mul_add(s, Self::constant(1.485_722_4e-5))
            .mul_add(s, Self::constant(6.372_619e-4))
            .mul_add(s, Self::constant(4.893_525e-3));
        let below = Self::constant(1.198_258_4e-6)
            .mul_add(s, Self::constant(1.185_347_1e-4))
            .mul_add(s, Self::constant(2.268_434_6e-3))
            .mul_add(s, Self::constant(4.893_525e-3));
        above.mul(x).div(below)
    }

    /// 1 / (1 + e^-x).
    #[inline(always)]
    fn sigmoid(self) -> Self {
        let half = Self::constant(0.5);
        self.mul(half).tanh().mul_add(half, half)
    }

    /// e^x for x from -87 to 88, within 2e-7 of it; beyond them as at the ends.
    ///
    /// x = n ln 2 + r with a whole n: ln 2 is taken away in two parts, so that r keeps its last bits, and e^r is the
    /// polynomial of Moshier's Cephes library.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding and taking away 1.5 x 2^23 rounds to a whole number.
        let whole = Self::constant(12_582_912.0);
        let x = self.clamp(Self::constant(-87.0), Self::constant(88.0));
        let n = x.mul_add(Self::constant(std::f32::consts::LOG2_E), whole).sub(whole);
        let r = n.mul_add(Self::constant(-0.693_359_4), x);
        let r = n.mul_add(Self::constant(2.121_944_4e-4), r);
        let tail = Self::constant(1.987_569_1e-4)
            .mul_add(r, Self::constant(1.398_199_9e-3))
            .mul_add(r, Self::constant(8.333_452e-3))
            .mul_add(r, Self::constant(4.166_579_6e-2))
            .mul_add(r, Self::constant(1.666_666_5e-1))
            .mul_add(r, Self::constant(0.5));
        let one = Self::constant(1.0);
        tail.mul_add(r.mul(r), r.add(one)).mul(n.power_of_two())
    }

    /// ln(1 + x) for x from 0 to 1, within 2e-7 of it: 2 artanh(x / (2 + x)) by its series.
    #[inline(always)]
    fn ln_1p(self) -> Self {
        let z = self.div(self.add(Self::constant(2.0)));
        let s = z.mul(z);
        let series = Self::constant(2.0 / 13.0)
            .mul_add(s, Self::constant(2.0 / 11.0))
            .mul_add(s, Self::constant(2.0 / 9.0))
            .mul_add(s, Self::constant(2.0 / 7.0))
            .mul_add(s, Self::constant(2.0 / 5.0))
            .mul_add(s, Self::constant(2.0 / 3.0))
            .mul_add(s, Self::constant(2.0));
        series.mul(z)
    }

    /// The numbers from `at` on.
    #[inline(always)]
    fn read(from: &[Self::Number], at: usize) -> Self {
        let from = &from[at..at + Self::WIDTH];
        // SAFETY: the slice holds WIDTH numbers.
        unsafe { Self::load(from.as_ptr()) }
    }

    /// Puts the numbers to `at` and after.
    #[inline(always)]
    fn write(self, to: &mut [Self::Number], at: usize) {
        let to = &mut to[at..at + Self::WIDTH];
        // SAFETY: the slice holds WIDTH numbers, and nobody else has it.
        unsafe { self.store(to.as_mut_ptr()) }
    }
}

/// The most rows of a tile on any machine: 6 x 4 sums, 4 weights and an input fill the 32 registers of AVX-512 and NEON.
pub(super) const MOST_ROWS: usize = 6;

/// The left factor of a product: number (r, k) lies at r `row` + k `depth`.
#[derive(Clone, Copy)]
pub(super) struct Left<'a, T> {
    pub from: &'a [T],
    pub row: usize,
    pub depth: usize,
}

/// The right factor of a product: number (k, column) lies at k `depth` + column.
#[derive(Clone, Copy)]
pub(super) struct Right<'a, T> {
    pub from: &'a [T],
    pub depth: usize,
}

/// `sums` + left right over a depth of `n`: R rows by C vectors, held in registers all the way.
///
/// Every sum is built in the order of k, whatever the shape of the tile: how rows are divided into tiles never shows.
#[inline(always)]
pub(super) fn multiply_add<V: Vector, const R: usize, const C: usize>(
    mut sums: [[V; C]; R],
    n: usize,
    left: Left<'_, V::Number>,
    right: Right<'_, V::Number>,
) -> [[V; C]; R] {
    if n == 0 {
        return sums;
    }
    // The largest offsets of the loop below; beyond the slices they end the program here.
    let last_left = (R - 1).saturating_mul(left.row).saturating_add((n - 1).saturating_mul(left.depth));
    let last_right = (n - 1).saturating_mul(right.depth).saturating_add(C * V::WIDTH - 1);
    let (from_left, from_right) = (left.from[..=last_left].as_ptr(), right.from[..=last_right].as_ptr());
    let (mut at_left, mut at_right) = (0usize, 0usize);
    for _ in 0..n {
        debug_assert!(at_left + (R - 1) * left.row <= last_left && at_right + C * V::WIDTH <= last_right + 1);
        // SAFETY: in pass k at_left is k left.depth and at_right is k right.depth, k < n; so all offsets are at most
        // last_left, and at most last_right - (WIDTH - 1) for the first number of a vector, within the slices above.
        unsafe {
            // Inputs first: R of them and one weight leave most registers to the sums.
            let mut inputs = [V::splat(V::Number::default()); R];
            for (r, input) in inputs.iter_mut().enumerate() {
                *input = V::splat(*from_left.add(at_left.wrapping_add(r.wrapping_mul(left.row))));
            }
            for c in 0..C {
                let weight = V::load(from_right.add(at_right.wrapping_add(c * V::WIDTH)));
                for (sums, input) in sums.iter_mut().zip(inputs) {
                    sums[c] = input.mul_add(weight, sums[c]);
                }
            }
        }
        at_left = at_left.wrapping_add(left.depth);
        at_right = at_right.wrapping_add(right.depth);
    }
    sums
}

/// What can be run on any instruction set.
pub(super) trait Work<T> {
    /// What comes of it.
    type Done;
    /// Does it; implementations are `#[inline(always)]`.
    fn on<V: Vector<Number = T>>(self) -> Self::Done;
}

/// An instruction set that this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instructions(Set);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Scalar,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Instructions {
    /// All that this machine has, the fastest last; plain numbers are always among them.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Set::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            let fused = std::arch::is_x86_feature_detected!("fma");
            all.extend((std::arch::is_x86_feature_detected!("avx2") && fused).then_some(Set::Avx2));
            all.extend((std::arch::is_x86_feature_detected!("avx512f") && fused).then_some(Set::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(std::arch::is_aarch64_feature_detected!("neon").then_some(Set::Neon));
        all.into_iter().map(Self).collect()
    }

    /// The fastest that this machine has, or the one that the environment variable [`SIMD_VARIABLE`] names.
    ///
    /// # Errors
    /// [`FusedError::Instructions`] if it names one that this machine does not have.
    pub fn chosen() -> Result<Self, FusedError> {
        match std::env::var(SIMD_VARIABLE) {
            Ok(name) if !name.is_empty() => Self::named(&name),
            _ => Ok(Self::available().pop().unwrap_or(Self(Set::Scalar))),
        }
    }

    /// The instruction set of this name.
    ///
    /// # Errors
    /// [`FusedError::Instructions`] if this machine does not have it.
    pub fn named(name: &str) -> Result<Self, FusedError> {
        let found = Self::available().into_iter().find(|set| set.name() == name);
        let names = || Self::available().iter().map(|set| set.name()).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| FusedError::Instructions { name: name.to_owned(), available: names() })
    }

    /// Its name, as in [`SIMD_VARIABLE`].
    pub fn name(self) -> &'static str {
        match self.0 {
            Set::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
        }
    }

    /// Does the work on these instructions.
    pub(super) fn run<W: Work<f32>>(self, work: W) -> W::Done {
        match self.0 {
            Set::Scalar => work.on::<portable::Single>(),
            // SAFETY: `Instructions` is made for AVX2 only where AVX2 and FMA were detected.
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => unsafe { x86::on_avx2(work) },
            // SAFETY: `Instructions` is made for AVX-512 only where its foundation and FMA were detected.
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => unsafe { x86::on_avx512(work) },
            // SAFETY: `Instructions` is made for NEON only where it was detected.
            #[cfg(target_arch = "aarch64")]
            Set::Neon => unsafe { neon::on_neon(work) },
        }
    }
}
