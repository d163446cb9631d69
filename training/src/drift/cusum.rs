//! Cumulative sums (E. S. Page, "Continuous inspection schemes", Biometrika 41, 1954): small lasting changes add up, chance
//! does not.

use crate::statistics::mean;

/// What may be above the usual at each step without adding up, in deviations: half of the least shift worth finding.
const SLACK: f64 = 0.5;
/// Least deviation of a mean logarithm of losses. Few windows may look alike by chance; a tenth more loss is no alarm.
const LEAST_DEVIATION: f64 = 0.1;
/// Least usual values to know what is usual.
const LEAST_USUAL: usize = 3;

/// The sum, at the end of `values`, of how far they lie above the mean of `usual`, in deviations of `usual`; what is past and
/// made up for counts no more. `None` if there are too few usual ones.
pub(super) fn cusum(usual: &[f64], values: &[f64]) -> Option<f64> {
    if usual.len() < LEAST_USUAL {
        return None;
    }
    let centre = mean(usual)?;
    let n = usual.len() as f64;
    let variance = usual.iter().map(|v| (v - centre).powi(2)).sum::<f64>() / (n - 1.0);
    // Wider by what is not known of the mean of so few.
    let deviation = (variance * (1.0 + 1.0 / n)).sqrt().max(LEAST_DEVIATION);
    Some(values.iter().fold(0.0, |sum: f64, value| (sum + (value - centre) / deviation - SLACK).max(0.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lasting_changes_add_up_and_chance_does_not() {
        let usual = [0.0, 0.2, -0.2, 0.1, -0.1, 0.0, 0.2, -0.2];
        let noise: Vec<f64> = usual.iter().cycle().take(200).copied().collect();
        assert!(cusum(&usual, &noise).unwrap() < 2.0);
        let shifted: Vec<f64> = noise.iter().map(|v| v + 0.3).collect();
        assert!(cusum(&usual, &shifted).unwrap() > 5.0);
        // One bad day alone is no alarm, and better than usual is none either.
        let mut spike = noise.clone();
        spike[20] += 0.6;
        assert!(cusum(&usual, &spike).unwrap() < 5.0);
        let better: Vec<f64> = noise.iter().map(|v| v - 1.0).collect();
        assert_eq!(cusum(&usual, &better), Some(0.0));
        // A bad week that is over is over.
        let over: Vec<f64> = [vec![1.0; 10], noise.clone()].concat();
        assert!(cusum(&usual, &over[..10]).unwrap() > 5.0 && cusum(&usual, &over).unwrap() < 2.0);
    }

    #[test]
    fn too_little_is_said_to_be() {
        assert_eq!(cusum(&[0.1, 0.2], &[9.0]), None);
        assert_eq!(cusum(&[0.1; 3], &[]), Some(0.0));
        // All alike by chance: a tenth of the loss is the least deviation.
        assert!(cusum(&[0.0; 5], &[0.05; 50]).unwrap() < 1e-9);
    }
}
