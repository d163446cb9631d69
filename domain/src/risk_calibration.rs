//! Correction of probabilities that say too much or too little.

use serde::{Deserialize, Serialize};

/// No probability is told nearer to 0 or 1 by counting alone: some hundred moments cannot know better.
const LEAST: f64 = 0.005;
/// What is as good as 0 on the scale of log odds.
const NEVER: f64 = 1e-12;
/// How many samples the expectation that nothing needs correction is worth.
const PRIOR: f64 = 200.0;
/// Least slope: more risk before the correction is more risk after it.
const LEAST_SLOPE: f64 = 0.05;
const ROUNDS: usize = 50;

/// A straight line on the scale of log odds: logit(p') = bias + slope * logit(p) (Cox 1958, Platt 1999). The default changes
/// nothing but what is nearer to certainty than anybody can know.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskCalibration {
    /// Added to the log odds.
    pub bias: f64,
    /// What the log odds are multiplied by; positive.
    pub slope: f64,
}

impl Default for RiskCalibration {
    fn default() -> Self {
        Self { bias: 0.0, slope: 1.0 }
    }
}

/// The corrections of a forecaster: for one series, and for sums over several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RiskCalibrations {
    /// Of the probability that one series is over a limit at any step.
    pub series: RiskCalibration,
    /// The same of the sum of some series that share a node.
    pub groups: RiskCalibration,
}

impl RiskCalibration {
    /// The line that makes what was said (a probability) fit what came (whether it did) best, drawn towards no correction as
    /// if 200 samples had needed none.
    pub fn fit(samples: &[(f64, bool)]) -> Self {
        let points: Vec<(f64, f64)> = samples
            .iter()
            .filter(|(p, _)| p.is_finite())
            .map(|(p, came)| (logit(*p), f64::from(u8::from(*came))))
            .collect();
        let mut line = Self::default();
        for _ in 0..ROUNDS {
            // Newton's step of the log likelihood with its prior; two unknowns.
            let mut gradient = (PRIOR * line.bias, PRIOR * (line.slope - 1.0));
            let (mut aa, mut ab, mut bb) = (PRIOR, 0.0, PRIOR);
            for (x, came) in &points {
                let p = sigmoid(line.bias + line.slope * x);
                let weight = p * (1.0 - p);
                gradient.0 += p - came;
                gradient.1 += (p - came) * x;
                aa += weight;
                ab += weight * x;
                bb += weight * x * x;
            }
            let determinant = aa * bb - ab * ab;
            let step =
                ((bb * gradient.0 - ab * gradient.1) / determinant, (aa * gradient.1 - ab * gradient.0) / determinant);
            line = Self { bias: line.bias - step.0, slope: (line.slope - step.1).max(LEAST_SLOPE) };
            if step.0.abs().max(step.1.abs()) < 1e-9 {
                break;
            }
        }
        if line.is_sound() { line } else { Self::default() }
    }

    /// A probability corrected.
    pub fn apply(&self, p: f64) -> f64 {
        if p.is_finite() { sigmoid(self.bias + self.slope * logit(p)).clamp(LEAST, 1.0 - LEAST) } else { p }
    }

    /// A probability corrected, where it cannot be more than `most` before the correction: however little that is, it is not
    /// passed, so that risk goes on falling where counting has come to its end.
    pub fn apply_within(&self, p: f64, most: f64) -> f64 {
        let most = most.clamp(NEVER, 1.0 - NEVER);
        self.apply(p).min(sigmoid(self.bias + self.slope * (most / (1.0 - most)).ln()))
    }

    /// Whether both numbers are such as [`Self::fit`] could have given.
    pub fn is_sound(&self) -> bool {
        self.bias.is_finite() && self.slope.is_finite() && self.slope > 0.0
    }
}

fn logit(p: f64) -> f64 {
    let p = p.clamp(LEAST, 1.0 - LEAST);
    (p / (1.0 - p)).ln()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` samples each of some probabilities, of which the true share comes.
    fn samples(n: usize, truth: impl Fn(f64) -> f64) -> Vec<(f64, bool)> {
        let said = [0.05, 0.2, 0.4, 0.6, 0.8, 0.95];
        said.iter()
            .flat_map(|p| (0..n).map(|i| (*p, (i as f64 + 0.5) / (n as f64) < truth(*p))).collect::<Vec<_>>())
            .collect()
    }

    #[test]
    fn what_says_too_much_is_taken_back() {
        let twice = |p: f64| sigmoid(0.5 * logit(p) - 0.8);
        let line = RiskCalibration::fit(&samples(20_000, twice));
        for p in [0.05, 0.3, 0.6, 0.9] {
            assert!((line.apply(p) - twice(p)).abs() < 0.01, "{p}: {} {}", line.apply(p), twice(p));
        }
        assert!(line.apply(0.3) < line.apply(0.31));
    }

    #[test]
    fn what_is_right_and_what_is_not_known_stays() {
        let right = RiskCalibration::fit(&samples(2_000, |p| p));
        assert!((right.slope - 1.0).abs() < 0.02 && right.bias.abs() < 0.02, "{right:?}");
        assert_eq!(RiskCalibration::fit(&[]), RiskCalibration::default());
        // Three samples are no reason to believe that all is otherwise.
        let few = RiskCalibration::fit(&[(0.9, false), (0.9, false), (0.9, false)]);
        assert!((few.apply(0.9) - 0.9).abs() < 0.03, "{few:?}");
        assert!((RiskCalibration::default().apply(0.0) - LEAST).abs() < 1e-12);
        assert!((RiskCalibration::default().apply(0.37) - 0.37).abs() < 1e-12);
        assert!(RiskCalibration::default().apply(f64::NAN).is_nan());
    }

    #[test]
    fn a_bound_is_kept_however_small() {
        let line = RiskCalibration { bias: 0.4, slope: 0.8 };
        assert_eq!(line.apply_within(0.3, 0.9), line.apply(0.3));
        let falling = [0.01, 1e-3, 1e-5, 1e-9].map(|most| line.apply_within(0.0, most));
        assert!(falling.windows(2).all(|pair| pair[1] < pair[0]) && falling[3] < 1e-6, "{falling:?}");
        assert!((0.0..=1.0).contains(&line.apply_within(1.0, 0.0)) && line.apply_within(0.5, 7.0) > 0.5);
    }

    #[test]
    fn contrary_and_endless_samples_leave_a_sound_line() {
        let contrary = RiskCalibration::fit(&samples(5_000, |p| 1.0 - p));
        assert!(contrary.is_sound() && contrary.apply(0.9) >= contrary.apply(0.1), "{contrary:?}");
        for certain in [true, false] {
            let line = RiskCalibration::fit(&vec![(0.5, certain); 10_000]);
            assert!(line.is_sound());
            assert_eq!(line.apply(0.5) > 0.5, certain);
        }
        assert_eq!(RiskCalibration::fit(&[(f64::NAN, true)]), RiskCalibration::default());
    }
}
