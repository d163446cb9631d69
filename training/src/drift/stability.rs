//! Population stability: where values lie among those of the same times of the week before.
//!
//! Each value is put into the decile that it would have had among the values of its own series in the weeks before, at the
//! same times of the week, so that neither the size of a shard nor the day on which it is looked at matters. Without drift
//! every decile gets a tenth. The index is the sum of (p - .1) ln(p / .1) over deciles; it grows with whatever moves: level,
//! spread, shape.

use foreshard_datasets::{BoundedHistory, HistoryError};
use foreshard_domain::{Metric, Step, Timestamp};

use super::Stability;

/// Steps on which values are compared.
const STEP: Step = Step::QUARTER_HOUR;
const DAY_MS: i64 = 86_400_000;
const WEEK_MS: i64 = 7 * DAY_MS;
/// Most days that are looked at, and most weeks that they are compared with.
const MOST_DAYS: i64 = 28;
const WEEKS: i64 = 4;
/// Least values before, of one series.
const LEAST_BEFORE: usize = 48;
const BINS: usize = 10;
/// Least share of a bin: an empty one must not make the index infinite.
const LEAST_SHARE: f64 = 1e-3;

/// The index of a metric over all shards. `learned_until` and `since`: what lies at or after the former was not learned from,
/// what lies at or after the latter was not known when the version was made.
pub(super) fn stability(
    history: &BoundedHistory,
    metric: Metric,
    (learned_until, since): (Timestamp, Timestamp),
    until: Timestamp,
) -> Result<Stability, HistoryError> {
    let mut bins = [0.0; BINS];
    let from = since.max(until.plus_ms(-MOST_DAYS * DAY_MS));
    if until.since_ms(from) >= DAY_MS {
        for (shard, metrics) in history.shards() {
            if !metrics.contains(&metric) {
                continue;
            }
            let Some(grid) = history.shard(shard, &[metric])?.grid(shard, metric, STEP) else { continue };
            let values = grid.values.iter().enumerate().map(|(i, v)| (grid.time_of(i), f64::from(*v)));
            let known: Vec<(Timestamp, f64)> = values.filter(|(_, v)| v.is_finite()).collect();
            add(&mut bins, &known, (from, until), learned_until);
        }
    }
    let all: f64 = bins.iter().sum();
    Ok(Stability { metric, index: (all > 0.0).then(|| index(&bins, all)) })
}

fn index(bins: &[f64; BINS], all: f64) -> f64 {
    let even = 1.0 / BINS as f64;
    let part = |count: &f64| {
        let share = (count / all).max(LEAST_SHARE);
        (share - even) * (share / even).ln()
    };
    bins.iter().map(part).sum()
}

/// Puts the values of a series since `from` into the deciles of its values whole weeks earlier.
fn add(
    bins: &mut [f64; BINS],
    known: &[(Timestamp, f64)],
    (from, until): (Timestamp, Timestamp),
    learned_until: Timestamp,
) {
    let same_time = |ts: Timestamp| {
        (1..=WEEKS + MOST_DAYS / 7).any(|k| {
            let later = ts.plus_ms(k * WEEK_MS);
            later >= from && later < until
        })
    };
    let before = known.iter().filter(|(ts, _)| *ts < learned_until && *ts < from && same_time(*ts));
    let mut before: Vec<f64> = before.map(|(_, v)| *v).collect();
    if before.len() < LEAST_BEFORE {
        return;
    }
    before.sort_by(f64::total_cmp);
    let n = before.len() as f64;
    for (_, value) in known.iter().filter(|(ts, _)| *ts >= from && *ts < until) {
        let below = before.partition_point(|v| v < value) as f64 / n;
        let up_to = before.partition_point(|v| v <= value) as f64 / n;
        spread(bins, below, up_to);
    }
}

/// A value that equals a stretch of those before is shared out over it.
fn spread(bins: &mut [f64; BINS], below: f64, up_to: f64) {
    if up_to - below < 1e-9 {
        let bin = ((below * BINS as f64) as usize).min(BINS - 1);
        bins[bin] += 1.0;
        return;
    }
    for (i, bin) in bins.iter_mut().enumerate() {
        let (low, high) = (i as f64 / BINS as f64, (i + 1) as f64 / BINS as f64);
        *bin += (up_to.min(high) - below.max(low)).max(0.0) / (up_to - below);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(i: i64) -> Timestamp {
        Timestamp::from_ms(i * STEP.as_ms())
    }

    /// Five weeks of a daily rhythm with noise; the last week as `change` makes it.
    fn index_of(change: impl Fn(f64) -> f64) -> f64 {
        let (week, all) = (7 * 96, 5 * 7 * 96);
        let noise = |i: i64| ((i * 7919) % 101) as f64 / 10.0;
        let value = |i: i64| 50.0 + 20.0 * ((i % 96) as f64 / 96.0 * std::f64::consts::TAU).sin() + noise(i);
        let known: Vec<(Timestamp, f64)> =
            (0..all).map(|i| (at(i), if i < all - week { value(i) } else { change(value(i)) })).collect();
        let mut bins = [0.0; BINS];
        add(&mut bins, &known, (at(all - week), at(all)), at(all - week));
        index(&bins, bins.iter().sum())
    }

    #[test]
    fn what_moves_shows_and_what_stays_does_not() {
        assert!(index_of(|v| v) < 0.02, "{}", index_of(|v| v));
        assert!(index_of(|v| v + 30.0) > 0.25);
        assert!(index_of(|v| v * 0.6) > 0.25);
        assert!(index_of(|v| 50.0 + (v - 50.0) * 2.5) > 0.25, "a wider spread at the same level");
    }

    #[test]
    fn a_constant_that_stays_is_stable_and_one_that_moves_is_not() {
        let of = |now: f64| {
            let known: Vec<(Timestamp, f64)> =
                (0..14 * 96).map(|i| (at(i), if i < 7 * 96 { 3.0 } else { now })).collect();
            let mut bins = [0.0; BINS];
            add(&mut bins, &known, (at(7 * 96), at(14 * 96)), at(7 * 96));
            index(&bins, bins.iter().sum())
        };
        assert!(of(3.0) < 1e-9);
        assert!(of(4.0) > 1.0);
    }
}
