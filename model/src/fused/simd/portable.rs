//! Plain numbers, four at a time: what every machine has, and what a checked build can follow.

use super::Vector;

macro_rules! plain {
    ($(#[$about:meta])* $name:ident, $number:ty, $power_of_two:expr $(, $exact:item)*) => {
        $(#[$about])*
        #[derive(Clone, Copy)]
        pub(in crate::fused) struct $name([$number; 4]);

        impl $name {
            #[inline(always)]
            fn each(self, b: Self, f: impl Fn($number, $number) -> $number) -> Self {
                let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (self.0, b.0);
                Self([f(a0, b0), f(a1, b1), f(a2, b2), f(a3, b3)])
            }
        }

        impl Vector for $name {
            type Number = $number;
            const WIDTH: usize = 4;
            const ROWS: usize = 2;

            #[inline(always)]
            fn splat(number: $number) -> Self {
                Self([number; 4])
            }
            #[inline(always)]
            fn constant(number: f32) -> Self {
                Self([<$number>::from(number); 4])
            }
            #[inline(always)]
            unsafe fn load(from: *const $number) -> Self {
                // SAFETY: the caller says that four numbers can be read there.
                Self(unsafe { from.cast::<[$number; 4]>().read() })
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut $number) {
                // SAFETY: the caller says that four numbers can be written there.
                unsafe { to.cast::<[$number; 4]>().write(self.0) }
            }
            #[inline(always)]
            fn add(self, b: Self) -> Self {
                self.each(b, |a, b| a + b)
            }
            #[inline(always)]
            fn sub(self, b: Self) -> Self {
                self.each(b, |a, b| a - b)
            }
            #[inline(always)]
            fn mul(self, b: Self) -> Self {
                self.each(b, |a, b| a * b)
            }
            #[inline(always)]
            fn div(self, b: Self) -> Self {
                self.each(b, |a, b| a / b)
            }
            // Rounded twice: without the instruction, rounding once is a call of a library function.
            #[inline(always)]
            fn mul_add(self, b: Self, c: Self) -> Self {
                self.mul(b).add(c)
            }
            #[inline(always)]
            fn clamp(self, low: Self, high: Self) -> Self {
                self.each(low, |a, b| if a < b { b } else { a }).each(high, |a, b| if a > b { b } else { a })
            }
            #[inline(always)]
            fn max(self, b: Self) -> Self {
                self.each(b, |a, b| if a > b { a } else { b })
            }
            #[inline(always)]
            fn power_of_two(self) -> Self {
                Self(self.0.map($power_of_two))
            }
            $($exact)*
        }
    };
}

plain!(
    /// Single precision.
    Single,
    f32,
    // The exponent's bits; what is no number gives some number.
    |n: f32| f32::from_bits(((n as i32 + 127) as u32) << 23)
);

#[cfg(test)]
plain!(
    /// Double precision with the library's functions: derivatives can be compared with differences.
    Double,
    f64,
    f64::exp2,
    fn tanh(self) -> Self {
        Self(self.0.map(f64::tanh))
    },
    fn exp(self) -> Self {
        Self(self.0.map(f64::exp))
    },
    fn ln_1p(self) -> Self {
        Self(self.0.map(f64::ln_1p))
    }
);
