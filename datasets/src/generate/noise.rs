//! Random numbers by place instead of by order: the value at any time is known without those before it.

use foreshard_domain::Timestamp;

/// A stream of random numbers that depends on nothing but its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream(u64);

/// The mixing function of SplitMix64.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The stream of a purpose (and, within it, of a number): independent of all others.
    pub(crate) fn of(self, purpose: &str, number: usize) -> Self {
        let named = purpose.bytes().fold(self.0, |key, byte| mix(key ^ u64::from(byte)));
        Self(mix(named ^ (number as u64).rotate_left(17)))
    }

    /// Uniform in (0, 1).
    pub(crate) fn uniform(self, index: i64) -> f64 {
        let bits = mix(self.0 ^ mix(index.cast_unsigned())) >> 11;
        (bits as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Uniform between two numbers.
    pub(crate) fn between(self, index: i64, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform(index)
    }

    /// Standard normal (Box and Muller).
    pub(crate) fn normal(self, index: i64) -> f64 {
        let (u, v) = (self.uniform(index.wrapping_mul(2)), self.uniform(index.wrapping_mul(2).wrapping_add(1)));
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    /// A continuous path of standard normal values that forgets itself over about `scale_ms`.
    pub(crate) fn smooth(self, ts: Timestamp, scale_ms: i64) -> f64 {
        let place = ts.as_ms().div_euclid(scale_ms);
        let share = ts.as_ms().rem_euclid(scale_ms) as f64 / scale_ms as f64;
        // Weights whose squares add up to one keep the variance the same between the knots.
        let angle = share * std::f64::consts::FRAC_PI_2;
        self.normal(place) * angle.cos() + self.normal(place.wrapping_add(1)) * angle.sin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_the_distributions() {
        let stream = Stream::new(1).of("test", 0);
        let n = 20_000;
        let mean = |f: &dyn Fn(i64) -> f64| (0..n).map(f).sum::<f64>() / n as f64;
        assert!((mean(&|i| stream.uniform(i)) - 0.5).abs() < 0.01);
        assert!(mean(&|i| stream.normal(i)).abs() < 0.03);
        assert!((mean(&|i| stream.normal(i).powi(2)) - 1.0).abs() < 0.04);
        let path = |i| stream.smooth(Timestamp::from_ms(i * 700), 1000);
        assert!((mean(&|i| path(i).powi(2)) - 1.0).abs() < 0.06);
        // Independent after a while, nearly equal at once.
        assert!(mean(&|i| path(i) * path(i + 10)).abs() < 0.05);
        assert!(
            (stream.smooth(Timestamp::from_ms(-1), 1000) - stream.smooth(Timestamp::from_ms(0), 1000)).abs() < 0.02
        );
    }

    #[test]
    fn streams_differ() {
        let root = Stream::new(1);
        assert_ne!(root.of("a", 0), root.of("a", 1));
        assert_ne!(root.of("a", 0), root.of("b", 0));
        assert_ne!(root.of("a", 0), Stream::new(2).of("a", 0));
    }
}
