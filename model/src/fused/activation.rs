//! The smooth gate x Phi(x) by its usual tanh form (Hendrycks and Gimpel, 2016), and its slope.

use super::simd::Vector;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;
const CUBE: f32 = 0.044_715;

/// tanh within the activation, and x Phi(x) in its usual form with it.
#[inline(always)]
pub(super) fn gelu<V: Vector>(x: V) -> (V, V) {
    let one = V::constant(1.0);
    let inner = x.mul(V::constant(SQRT_2_OVER_PI)).mul(x.mul(x).mul_add(V::constant(CUBE), one));
    let tanh = inner.tanh();
    (tanh, x.mul(V::constant(0.5)).mul(tanh.add(one)))
}

/// The slope of the activation, by x and the tanh within. From 5 on the tanh is flat but for its last digits, which x squared
/// must not make large.
#[inline(always)]
pub(super) fn gelu_slope<V: Vector>(x: V, tanh: V) -> V {
    let (one, half) = (V::constant(1.0), V::constant(0.5));
    let x = x.clamp(V::constant(-5.0), V::constant(5.0));
    let inner = x.mul(x).mul_add(V::constant(3.0 * CUBE), one).mul(V::constant(SQRT_2_OVER_PI));
    let steep = one.sub(tanh.mul(tanh)).mul(inner).mul(x);
    tanh.add(one).add(steep).mul(half)
}
