//! What a series is like, so that figures of many do not hide how a kind of them fares.

use foreshard_domain::SeriesClass;

use crate::EvalSeries;
use crate::protocol::Protocol;

/// Days below which a series is young.
const YOUNG_DAYS: i64 = 14;
/// Days that are looked at.
const MOST_DAYS: i64 = 28;
const DAY_MS: i64 = 86_400_000;
/// A season changes less than this share of how far values lie from their middle. Noise alone has 1.4.
const REPEATS: f64 = 0.7;
/// The same of a step.
const MOVES_LITTLE: f64 = 0.35;

impl EvalSeries {
    /// The class of the series by its values before the first window.
    pub fn class(&self, protocol: &Protocol) -> SeriesClass {
        let steps = |days: i64| usize::try_from(days * DAY_MS / protocol.step.as_ms().max(1)).unwrap_or(1).max(1);
        let known = self.measured.get(..self.first).unwrap_or(&self.measured);
        let skipped = known.len().saturating_sub(steps(MOST_DAYS));
        class_of(known.get(skipped..).unwrap_or_default(), protocol.season_steps(), steps(YOUNG_DAYS))
    }
}

fn class_of(values: &[f64], season_steps: usize, young: usize) -> SeriesClass {
    if values.len() < young {
        return SeriesClass::Young;
    }
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = crate::quantile(&sorted, 0.5);
    let away = mean(values.iter().map(|v| (v - middle).abs()));
    let change = |steps: usize| {
        let later = values.get(steps..).unwrap_or_default();
        mean(later.iter().zip(values).map(|(a, b)| (a - b).abs()))
    };
    let season = change(season_steps);
    // What moves slowly changes less in part of a season than in a whole one; a rhythm does not.
    let within = change((season_steps / 2).max(1)).max(change((season_steps / 3).max(1)));
    // A constant repeats itself.
    if season <= REPEATS * away && season <= within {
        SeriesClass::Rhythmic
    } else if change(1) <= MOVES_LITTLE * away {
        SeriesClass::Wandering
    } else {
        SeriesClass::Erratic
    }
}

/// The mean of those that are numbers; 0 of none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.filter(|v| v.is_finite()).fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    if n > 0.0 { sum / n } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between -.5 and .5.
    fn random(i: usize) -> f64 {
        let mut noise = i as u64 + 7;
        for _ in 0..4 {
            noise ^= noise << 13;
            noise ^= noise >> 7;
            noise ^= noise << 17;
        }
        (noise % 1000) as f64 / 1000.0 - 0.5
    }

    fn class(value: impl Fn(usize) -> f64) -> SeriesClass {
        class_of(&(0..20 * 24).map(value).collect::<Vec<_>>(), 24, 14 * 24)
    }

    #[test]
    fn kinds_of_series_are_told_apart() {
        let rhythm = |i: usize| 10.0 * (i as f64 / 24.0 * std::f64::consts::TAU).sin();
        assert_eq!(class(|i| 50.0 + rhythm(i) + 4.0 * random(i)), SeriesClass::Rhythmic);
        assert_eq!(class(|i| 50.0 + 4.0 * random(i)), SeriesClass::Erratic);
        assert_eq!(class(|i| 50.0 + rhythm(2 * i) + 4.0 * random(i)), SeriesClass::Rhythmic, "twice a day");
        // Levels that go their own ways, within days and over weeks.
        assert_eq!(class(|i| 50.0 + 20.0 * (i as f64 / 9.1).sin()), SeriesClass::Wandering);
        assert_eq!(class(|i| 50.0 + 20.0 * (i as f64 / 150.0).sin()), SeriesClass::Wandering);
        assert_eq!(class(|_| 3.0), SeriesClass::Rhythmic);
        assert_eq!(class(|i| if i % 3 == 0 { f64::NAN } else { 50.0 + rhythm(i) }), SeriesClass::Rhythmic);
        assert_eq!(class(|_| f64::NAN), SeriesClass::Rhythmic);
        assert_eq!(class_of(&[1.0; 13 * 24], 24, 14 * 24), SeriesClass::Young);
    }
}
