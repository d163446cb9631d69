//! Sums and order statistics over slices, fast and in a fixed order so that equal input gives equal bits.

/// Independent accumulators of a sum; lets the compiler use vector registers.
const LANES: usize = 8;

fn folded(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    let mut total = 0.0f64;
    // Blocks keep the f32 partial sums short, so long windows lose no digits.
    for block in values.chunks(512) {
        let mut lanes = [0.0f32; LANES];
        let mut chunks = block.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, v) in lanes.iter_mut().zip(chunk) {
                *lane += f(*v);
            }
        }
        let rest: f32 = chunks.remainder().iter().map(|v| f(*v)).sum();
        total += f64::from(lanes.iter().sum::<f32>() + rest);
    }
    total
}

/// Mean; 0 of nothing.
pub(crate) fn mean(values: &[f32]) -> f32 {
    (folded(values, |v| v) / values.len().max(1) as f64) as f32
}

/// Mean absolute value; 0 of nothing.
pub(crate) fn mean_abs(values: &[f32]) -> f32 {
    (folded(values, f32::abs) / values.len().max(1) as f64) as f32
}

/// Standard deviation around the mean of the slice; 0 of nothing.
pub(crate) fn deviation(values: &[f32]) -> f32 {
    let centre = mean(values);
    let square = folded(values, |v| (v - centre) * (v - centre)) / values.len().max(1) as f64;
    square.max(0.0).sqrt() as f32
}

/// Mean of |a - b| over the pairs; 0 of nothing.
pub(crate) fn mean_abs_difference(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let mut total = 0.0f64;
    for (x, y) in a.chunks(512).zip(b.chunks(512)) {
        let mut lanes = [0.0f32; LANES];
        let mut xs = x.chunks_exact(LANES);
        let mut ys = y.chunks_exact(LANES);
        for (cx, cy) in (&mut xs).zip(&mut ys) {
            for ((lane, p), q) in lanes.iter_mut().zip(cx).zip(cy) {
                *lane += (p - q).abs();
            }
        }
        let rest: f32 = xs.remainder().iter().zip(ys.remainder()).map(|(p, q)| (p - q).abs()).sum();
        total += f64::from(lanes.iter().sum::<f32>() + rest);
    }
    (total / n.max(1) as f64) as f32
}

/// Quantile of values in rising order, linear between the two nearest; 0 of nothing.
pub(crate) fn sorted_quantile(sorted: &[f32], level: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = level.clamp(0.0, 1.0) * last as f64;
    let low = (at.floor() as usize).min(last);
    let high = (low + 1).min(last);
    let (a, b) = (sorted.get(low).copied().unwrap_or(0.0), sorted.get(high).copied().unwrap_or(0.0));
    a + (b - a) * (at - low as f64) as f32
}

/// The finite values in rising order.
pub(crate) fn sorted_finite(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut sorted: Vec<f32> = values.filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted
}

/// Inverse hyperbolic sine: the identity near 0, a logarithm far out, so that bursts cannot drown the rest.
pub(crate) fn squash(value: f32) -> f32 {
    let a = value.abs();
    (a + (a * a + 1.0).sqrt()).ln().copysign(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_definitions() {
        let values: Vec<f32> = (0..1000).map(|i| (i % 17) as f32 + 100.0).collect();
        let direct = values.iter().map(|v| f64::from(*v)).sum::<f64>() / 1000.0;
        assert!((f64::from(mean(&values)) - direct).abs() < 1e-4);
        let square = values.iter().map(|v| (f64::from(*v) - direct).powi(2)).sum::<f64>() / 1000.0;
        assert!((f64::from(deviation(&values)) - square.sqrt()).abs() < 1e-4);
        assert_eq!(mean_abs_difference(&values[1..], &values[..999]), {
            let sum: f32 = values.windows(2).map(|p| (p[1] - p[0]).abs()).sum();
            sum / 999.0
        });
        assert_eq!((mean(&[]), deviation(&[]), mean_abs_difference(&[], &[])), (0.0, 0.0, 0.0));
        assert_eq!(mean_abs(&[-2.0, 4.0]), 3.0);
    }

    #[test]
    fn quantiles_are_linear_between_ranks() {
        let sorted = [1.0, 2.0, 4.0];
        assert_eq!(sorted_quantile(&sorted, 0.5), 2.0);
        assert_eq!(sorted_quantile(&sorted, 0.75), 3.0);
        assert_eq!(sorted_quantile(&sorted, 1.0), 4.0);
        assert_eq!(sorted_quantile(&[], 0.5), 0.0);
        assert_eq!(sorted_finite([3.0, f32::NAN, 1.0].into_iter()), [1.0, 3.0]);
    }

    #[test]
    fn squash_is_asinh() {
        for v in [-1e6f32, -3.0, -0.1, 0.0, 0.1, 3.0, 1e6] {
            assert!((squash(v) - v.asinh()).abs() < 1e-3 * v.asinh().abs().max(1e-3), "{v}");
        }
    }
}
