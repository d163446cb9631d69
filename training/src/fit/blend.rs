//! Which share linear maps get in what the networks say: the one that serves best behind the cut.

use foreshard_model::{Lanes, NetworkError, Ridge, TENSOR_LEVELS, WeightTensors, Weights, averaged};

use super::sampling::Samples;

/// Shares that are tried, besides none.
const SHARES: [f32; 8] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9];
/// What a share has to take off the loss: less is chance, and not worth a second model.
const LEAST_GAIN: f64 = 0.01;
/// Origins whose rows are looked at together.
const ORIGINS: usize = 64;

/// Mean pinball losses in z on the held-back stretch: of the networks alone, and with each share of the maps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Losses {
    pub alone: f64,
    pub shared: [f64; SHARES.len()],
}

impl Losses {
    pub(super) fn of(
        samples: &Samples<'_>,
        networks: &[Weights],
        ridge: &Ridge,
        lanes: &Lanes,
    ) -> Result<Self, NetworkError> {
        let networks = networks.iter().map(WeightTensors::frozen).collect::<Result<Vec<_>, _>>()?;
        let steps: Vec<usize> = (0..samples.features().horizon).collect();
        let origins: Vec<usize> = (0..samples.validation.len()).collect();
        let pieces: Vec<&[usize]> = origins.chunks(ORIGINS).collect();
        let parts = lanes.map(&pieces, |_, piece| -> Result<Sums, NetworkError> {
            let example = samples.validation.example(piece, &steps, |_| false);
            let (ours, maps) = (averaged(&networks, &example.batch)?, ridge.rows(&example.batch));
            let mut sums = Sums::default();
            for ((ours, maps), (target, weight)) in
                ours.iter().zip(&maps).zip(example.targets.iter().zip(&example.weights))
            {
                sums.add(ours, maps, *target, f64::from(*weight));
            }
            Ok(sums)
        });
        let mut total = Sums::default();
        for part in parts {
            total.append(&part?);
        }
        let mean = |sum: f64| sum / total.weight;
        Ok(Self { alone: mean(total.alone), shared: total.shared.map(mean) })
    }

    /// The share with the least loss and that loss, if it is worth it.
    pub(super) fn best(&self) -> Option<(f32, f64)> {
        let all = SHARES.iter().copied().zip(self.shared);
        let (share, loss) = all.min_by(|a, b| a.1.total_cmp(&b.1))?;
        (loss < self.alone * (1.0 - LEAST_GAIN)).then_some((share, loss))
    }
}

#[derive(Default)]
struct Sums {
    weight: f64,
    alone: f64,
    shared: [f64; SHARES.len()],
}

impl Sums {
    fn add(&mut self, ours: &[f32; TENSOR_LEVELS.len()], maps: &[f32; TENSOR_LEVELS.len()], target: f32, weight: f64) {
        if weight <= 0.0 {
            return;
        }
        let loss = |share: f32| {
            let of_level = |((ours, map), level): ((&f32, &f32), f64)| {
                let over = f64::from(target - (ours + share * (map - ours)));
                (level * over).max((level - 1.0) * over)
            };
            let levels = ours.iter().zip(maps).zip(TENSOR_LEVELS).map(of_level);
            weight * levels.sum::<f64>() / TENSOR_LEVELS.len() as f64
        };
        self.weight += weight;
        self.alone += loss(0.0);
        self.shared.iter_mut().zip(SHARES).for_each(|(sum, share)| *sum += loss(share));
    }

    fn append(&mut self, other: &Self) {
        self.weight += other.weight;
        self.alone += other.alone;
        self.shared.iter_mut().zip(other.shared).for_each(|(sum, more)| *sum += more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(errors: impl Fn(usize) -> (f32, f32)) -> Losses {
        let mut sums = Sums::default();
        for i in 0..200 {
            let (ours, maps) = errors(i);
            sums.add(&[10.0 + ours; 13], &[10.0 + maps; 13], 10.0, 1.0);
            sums.add(&[f32::MAX; 13], &[0.0; 13], 0.0, 0.0);
        }
        Losses { alone: sums.alone / sums.weight, shared: sums.shared.map(|sum| sum / sums.weight) }
    }

    #[test]
    fn maps_get_a_share_only_where_they_take_something_off_the_loss() {
        let sign = |i: usize, every: usize| if (i / every).is_multiple_of(2) { 1.0 } else { -1.0 };
        // Errors of one size that know nothing of each other: half of each is best.
        let (share, loss) = losses(|i| (sign(i, 1), sign(i, 2))).best().unwrap();
        assert!(share == 0.5 && loss < losses(|i| (sign(i, 1), sign(i, 2))).alone, "{share} {loss}");
        assert_eq!(losses(|i| (sign(i, 1), sign(i, 1))).best(), None, "the same errors");
        assert_eq!(losses(|i| (0.1 * sign(i, 1), 3.0 * sign(i, 2))).best(), None, "far larger ones");
        let none = Losses { alone: f64::NAN, shared: [f64::NAN; SHARES.len()] };
        assert_eq!(none.best(), None, "nothing was held back");
    }
}
