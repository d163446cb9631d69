//! How sure it is that one forecaster is better than another: whether other shards and other days would say the same.

use foreshard_domain::{LossRatio, SeriesClass};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::scores::SeriesScores;

/// Resamples.
const RESAMPLES: usize = 500;
/// The interval leaves out so much on each side.
const TAIL: f64 = 0.05;
/// The same draws for every comparison.
const SEED: u64 = 20_241;

/// The loss of `ours` over that of `theirs` on the same series and windows, with the interval of a two-way bootstrap: series are
/// drawn with replacement, and whole windows across all series, since what happens in one of them happens to many (A. B. Owen,
/// "The pigeonhole bootstrap", 2007). `None` if they were not scored alike, or nothing was lost.
pub(crate) fn loss_ratio(ours: &[SeriesScores], theirs: &[SeriesScores]) -> Option<LossRatio> {
    let pairs: Option<Vec<_>> = pairs(ours, theirs)?.into_iter().collect();
    of_pairs(&pairs?)
}

/// The same of the series of one class alone.
pub(crate) fn class_loss_ratio(
    ours: &[SeriesScores],
    theirs: &[SeriesScores],
    class: SeriesClass,
) -> Option<LossRatio> {
    let of = |all: &[SeriesScores]| all.iter().filter(|s| s.class == class).cloned().collect::<Vec<_>>();
    loss_ratio(&of(ours), &of(theirs))
}

type Losses<'a> = (&'a [f64], &'a [f64]);

fn pairs<'a>(ours: &'a [SeriesScores], theirs: &'a [SeriesScores]) -> Option<Vec<Option<Losses<'a>>>> {
    let same = |(a, b): (&'a SeriesScores, &'a SeriesScores)| {
        let alike = a.shard == b.shard && a.metric == b.metric && a.loss_by_window.len() == b.loss_by_window.len();
        alike.then_some((a.loss_by_window.as_slice(), b.loss_by_window.as_slice()))
    };
    (ours.len() == theirs.len() && !ours.is_empty()).then(|| ours.iter().zip(theirs).map(same).collect())
}

fn of_pairs(pairs: &[Losses<'_>]) -> Option<LossRatio> {
    let windows = pairs.iter().map(|(a, _)| a.len()).max().unwrap_or(0);
    let ratio = |of_series: &[f64], of_window: &[f64]| {
        let (mut ours, mut theirs) = (0.0, 0.0);
        for ((a, b), times) in pairs.iter().zip(of_series).filter(|(_, times)| **times > 0.0) {
            for ((a, b), weight) in a.iter().zip(*b).zip(of_window) {
                ours += times * weight * a;
                theirs += times * weight * b;
            }
        }
        (theirs > 0.0 && ours.is_finite()).then(|| ours / theirs)
    };
    let all = ratio(&vec![1.0; pairs.len()], &vec![1.0; windows])?;
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |n: usize| {
        let mut times = vec![0.0; n];
        for _ in 0..n {
            times[random.random_range(0..n)] += 1.0;
        }
        times
    };
    // Draws in which nothing was lost say nothing.
    let mut drawn: Vec<f64> = (0..RESAMPLES).filter_map(|_| ratio(&draw(pairs.len()), &draw(windows))).collect();
    drawn.sort_by(f64::total_cmp);
    let at = |level| foreshard_datasets::quantile(&drawn, level);
    (!drawn.is_empty()).then(|| LossRatio { ratio: all, low: at(TAIL), high: at(1.0 - TAIL) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Metric, ShardId};

    fn series(name: usize, class: SeriesClass, losses: Vec<f64>) -> SeriesScores {
        SeriesScores {
            shard: ShardId::new(format!("s{name}")).unwrap(),
            metric: Metric::CpuUtil,
            class,
            points: 1,
            wql: None,
            sql: None,
            mase: None,
            coverage_80: None,
            share_of_wql: 0.0,
            scale: None,
            threshold: None,
            events: 0,
            wql_by_window: Vec::new(),
            loss_by_window: losses,
        }
    }

    /// Losses between 1 and 2 that are not those of another series, window or seed.
    fn losses(name: usize, seed: usize) -> Vec<f64> {
        (0..12).map(|w| 1.0 + ((name * 31 + w * 17 + seed * 101) % 97) as f64 / 97.0).collect()
    }

    fn all(seed: usize, factor: f64) -> Vec<SeriesScores> {
        let one = |i: usize| {
            let class = if i < 20 { SeriesClass::Rhythmic } else { SeriesClass::Erratic };
            series(i, class, losses(i, seed).into_iter().map(|l| l * factor).collect())
        };
        (0..40).map(one).collect()
    }

    #[test]
    fn a_lasting_difference_is_sure_and_chance_is_not() {
        let same = loss_ratio(&all(1, 1.0), &all(2, 1.0)).unwrap();
        assert!(same.low < 1.0 && same.high > 1.0, "{same:?}");
        let better = loss_ratio(&all(1, 0.8), &all(2, 1.0)).unwrap();
        assert!(better.high < 1.0 && (0.75..0.85).contains(&better.ratio), "{better:?}");
        assert!(better.low < better.ratio && better.ratio < better.high);
        // One series with nearly all of the loss: whether it is drawn decides, and the interval says so.
        let mut ours = all(1, 0.8);
        ours[0].loss_by_window = vec![1000.0; 12];
        assert!(loss_ratio(&ours, &all(1, 1.0)).unwrap().high > 20.0);
    }

    #[test]
    fn classes_are_compared_alone() {
        let mut ours = all(1, 1.0);
        ours.iter_mut().skip(20).for_each(|s| s.loss_by_window.iter_mut().for_each(|l| *l *= 1.5));
        let of = |class| class_loss_ratio(&ours, &all(1, 1.0), class);
        assert_eq!(of(SeriesClass::Rhythmic).map(|r| (r.ratio, r.low, r.high)), Some((1.0, 1.0, 1.0)));
        assert!(of(SeriesClass::Erratic).is_some_and(|r| r.low > 1.49));
        assert_eq!(of(SeriesClass::Young), None);
    }

    #[test]
    fn what_was_not_scored_alike_is_not_compared() {
        let mut other = all(1, 1.0);
        other[3].loss_by_window.pop();
        assert_eq!(loss_ratio(&all(1, 1.0), &other), None);
        assert_eq!(loss_ratio(&all(1, 1.0), &all(1, 1.0)[1..]), None);
        assert_eq!(loss_ratio(&[], &[]), None);
        assert_eq!(loss_ratio(&all(1, 1.0), &all(1, 0.0)), None, "nothing lost");
    }
}
