//! AdamW with moments that can be saved, clipping, the schedule of the learning rate, and the average of the weights.

const BETA_1: f32 = 0.9;
const BETA_2: f32 = 0.999;
const EPSILON: f32 = 1e-8;
/// The learning rate ends at this share of its peak.
const LAST_SHARE: f64 = 0.02;
/// Decay of the weight average after its first steps.
const AVERAGE_DECAY: f64 = 0.99;

/// AdamW over a flat vector of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamW {
    /// First moments.
    pub first: Vec<f32>,
    /// Second moments.
    pub second: Vec<f32>,
    /// Steps taken.
    pub step: usize,
}

impl AdamW {
    /// For `n` weights.
    pub fn new(n: usize) -> Self {
        Self { first: vec![0.0; n], second: vec![0.0; n], step: 0 }
    }

    /// One step along `gradient`, with decoupled decay of the weights.
    pub fn step(&mut self, weights: &mut [f32], gradient: &[f32], rate: f64, decay: f64) {
        self.step += 1;
        let t = i32::try_from(self.step).unwrap_or(i32::MAX);
        let scale_1 = 1.0 / (1.0 - BETA_1.powi(t));
        let scale_2 = 1.0 / (1.0 - BETA_2.powi(t));
        let keep = (1.0 - rate * decay) as f32;
        let rate = rate as f32;
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((weight, g), (m, v)) in weights.iter_mut().zip(gradient).zip(moments) {
            *m = BETA_1 * *m + (1.0 - BETA_1) * g;
            *v = BETA_2 * *v + (1.0 - BETA_2) * g * g;
            let step = (*m * scale_1) / ((*v * scale_2).sqrt() + EPSILON);
            *weight = *weight * keep - rate * step;
        }
    }
}

/// Shortens a gradient to `longest`; gives its length before.
pub(crate) fn clip(gradient: &mut [f32], longest: f64) -> f64 {
    let length = gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>().sqrt();
    if length > longest {
        let factor = (longest / length) as f32;
        gradient.iter_mut().for_each(|g| *g *= factor);
    }
    length
}

/// Learning rate of a step (counted from 0): a straight rise to the peak, then a cosine down to 2 % of it.
pub fn learning_rate(peak: f64, step: usize, warm_up: usize, steps: usize) -> f64 {
    if step < warm_up {
        return peak * (step + 1) as f64 / warm_up as f64;
    }
    let rest = steps.saturating_sub(warm_up).max(1) as f64;
    let done = ((step - warm_up) as f64 / rest).min(1.0);
    let cosine = (1.0 + (std::f64::consts::PI * done).cos()) / 2.0;
    peak * (LAST_SHARE + (1.0 - LAST_SHARE) * cosine)
}

/// Moving average of the weights, short at first so that the start is soon forgotten.
#[derive(Debug, Clone, PartialEq)]
pub struct Average {
    /// The average.
    pub values: Vec<f32>,
}

impl Average {
    /// Begins with the given weights.
    pub fn new(weights: &[f32]) -> Self {
        Self { values: weights.to_vec() }
    }

    /// Takes in the weights after step `step` (counted from 0).
    pub fn update(&mut self, weights: &[f32], step: usize) {
        let decay = AVERAGE_DECAY.min((1.0 + step as f64) / (10.0 + step as f64)) as f32;
        for (average, weight) in self.values.iter_mut().zip(weights) {
            *average = *average * decay + weight * (1.0 - decay);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_bottom_of_a_bowl() {
        let mut weights = vec![5.0f32, -3.0];
        let mut adam = AdamW::new(2);
        for step in 0..500 {
            let gradient: Vec<f32> = weights.iter().map(|w| 2.0 * w).collect();
            adam.step(&mut weights, &gradient, learning_rate(0.1, step, 10, 500), 0.0);
        }
        assert!(weights.iter().all(|w| w.abs() < 0.02), "{weights:?}");
    }

    #[test]
    fn first_step_is_the_learning_rate_and_decay_is_decoupled() {
        let mut weights = vec![1.0f32];
        AdamW::new(1).step(&mut weights, &[123.0], 0.01, 0.5);
        assert!((weights[0] - (1.0 - 0.005 - 0.01)).abs() < 1e-6);
    }

    #[test]
    fn clips_by_length() {
        let mut gradient = vec![3.0, 4.0];
        assert_eq!(clip(&mut gradient, 1.0), 5.0);
        assert!((clip(&mut gradient, 1.0) - 1.0).abs() < 1e-6);
        assert!(clip(&mut [f32::NAN], 1.0).is_nan());
    }

    #[test]
    fn rate_rises_then_falls() {
        let rate = |step| learning_rate(1.0, step, 50, 500);
        assert_eq!((rate(0), rate(49), rate(50)), (0.02, 1.0, 1.0));
        assert!((rate(275) - 0.51).abs() < 1e-9 && (rate(500) - 0.02).abs() < 1e-9);
        assert_eq!(learning_rate(1.0, 0, 0, 1), 1.0);
    }

    #[test]
    fn average_forgets_its_start() {
        let mut average = Average::new(&[100.0]);
        (0..50).for_each(|step| average.update(&[1.0], step));
        assert!((average.values[0] - 1.0).abs() < 0.01, "{average:?}");
    }
}
