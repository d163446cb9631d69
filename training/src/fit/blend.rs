//! Which share linear maps get in what the networks say: the one that serves best behind the cut.

use foreshard_model::{Lanes, NetworkError, Ridge, TENSOR_LEVELS, WeightTensors, Weights, averaged};

use super::sampling::Samples;

/// Shares that are tried, besides none.
const SHARES: [f32; 8] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9];
/// What a share has to take off the loss, in standard errors over the origins: less is chance, of eight tries the best.
const LEAST_GAIN: f64 = 2.0;
/// Origins whose rows are looked at together.
const ORIGINS: usize = 64;

/// Mean pinball losses in z on the held-back stretch: of the networks alone, and with each share of the maps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Losses {
    pub alone: f64,
    pub shared: [f64; SHARES.len()],
    /// Standard error of what each share takes off, with the origins for independent.
    errors: [f64; SHARES.len()],
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
        let parts = lanes.map(&pieces, |_, piece| -> Result<Vec<Sums>, NetworkError> {
            let example = samples.validation.example(piece, &steps, |_| false);
            let (ours, maps) = (averaged(&networks, &example.batch)?, ridge.rows(&example.batch));
            let mut by_origin = vec![Sums::default(); piece.len()];
            let rows = ours.iter().zip(&maps).zip(example.targets.iter().zip(&example.weights));
            for (i, ((ours, maps), (target, weight))) in rows.enumerate() {
                if let Some(sums) = by_origin.get_mut(i / steps.len().max(1)) {
                    sums.add(ours, maps, *target, f64::from(*weight));
                }
            }
            Ok(by_origin)
        });
        let by_origin: Vec<Vec<Sums>> = parts.into_iter().collect::<Result<_, _>>()?;
        Ok(Self::from(&by_origin.concat()))
    }

    fn from(by_origin: &[Sums]) -> Self {
        let mut total = Sums::default();
        by_origin.iter().for_each(|origin| total.append(origin));
        let mean = |sum: f64| sum / total.weight;
        let (alone, shared) = (mean(total.alone), total.shared.map(mean));
        let mut squares = [0.0; SHARES.len()];
        for origin in by_origin {
            for ((square, own), all) in squares.iter_mut().zip(origin.shared).zip(shared) {
                // How far what it takes off here is from what it takes off on the whole.
                *square += ((origin.alone - own) - (alone - all) * origin.weight).powi(2);
            }
        }
        Self { alone, shared, errors: squares.map(|square| mean(square.sqrt())) }
    }

    /// The share with the least loss and that loss, if it is worth it.
    pub(super) fn best(&self) -> Option<(f32, f64)> {
        let all = SHARES.iter().copied().zip(self.shared).zip(self.errors);
        let ((share, loss), error) = all.min_by(|((_, a), _), ((_, b), _)| a.total_cmp(b))?;
        (self.alone - loss > LEAST_GAIN * error).then_some((share, loss))
    }
}

#[derive(Clone, Copy, Default)]
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
        let origins = (0..200).map(|i| {
            let (mut sums, (ours, maps)) = (Sums::default(), errors(i));
            sums.add(&[10.0 + ours; 13], &[10.0 + maps; 13], 10.0, 1.0);
            sums.add(&[f32::MAX; 13], &[0.0; 13], 0.0, 0.0);
            sums
        });
        Losses::from(&origins.collect::<Vec<_>>())
    }

    #[test]
    fn maps_get_a_share_only_where_they_take_something_off_the_loss() {
        let sign = |i: usize, every: usize| if (i / every).is_multiple_of(2) { 1.0 } else { -1.0 };
        // Errors of one size that know nothing of each other: half of each is best.
        let (share, loss) = losses(|i| (sign(i, 1), sign(i, 2))).best().unwrap();
        assert!(share == 0.5 && loss < losses(|i| (sign(i, 1), sign(i, 2))).alone, "{share} {loss}");
        assert_eq!(losses(|i| (sign(i, 1), sign(i, 1))).best(), None, "the same errors");
        assert_eq!(losses(|i| (0.1 * sign(i, 1), 3.0 * sign(i, 2))).best(), None, "far larger ones");
        // Better on the whole by what two origins of two hundred make of it.
        let chance = losses(|i| if i < 2 { (3.0, 2.0) } else { (sign(i, 1), 1.009 * sign(i, 1)) });
        assert!(chance.shared[7] < chance.alone && chance.best().is_none(), "{chance:?}");
        assert_eq!(Losses::from(&[]).best(), None, "nothing was held back");
    }
}
