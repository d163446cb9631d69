//! Rhythms: the day, the week, and how a passing rise looks.

use super::noise::Stream;
use crate::CalendarPoint;

/// Minutes of a day.
const DAY: usize = 1440;
/// Half the width of the passage from one day's level to the next, in minutes.
const DUSK: f64 = 90.0;

/// How much a tenant does at which time of which day; mean about 1.
#[derive(Debug, Clone)]
pub(crate) struct Rhythm {
    /// By minute of the day; mean 1.
    day: Vec<f64>,
    /// By weekday from Monday.
    week: [f64; 7],
}

/// A bump around an hour of the day, 1 at its top.
fn bump(minute: usize, peak_hour: f64, sharpness: f64) -> f64 {
    let angle = std::f64::consts::TAU * (minute as f64 / 60.0 - peak_hour) / 24.0;
    (sharpness * (angle.cos() - 1.0)).exp()
}

impl Rhythm {
    /// The rhythm of tenant `k` of `n`. Peaks lie around the clock, so that the hot spot wanders over the tenants in the
    /// course of each day; each tenant also has a hot weekday, so that it wanders over the week too.
    pub(crate) fn of_tenant(stream: Stream, k: usize, n: usize) -> Self {
        let even = 24.0 * k as f64 / n.max(1) as f64;
        let peak = (9.5 + even + stream.between(0, -0.75, 0.75)).rem_euclid(24.0);
        let sharpness = stream.between(1, 2.0, 3.2);
        let second = (peak + stream.between(2, 4.5, 7.0)).rem_euclid(24.0);
        let second_height = stream.between(3, 0.2, 0.4);
        let trough = stream.between(4, 0.18, 0.3);
        let raw: Vec<f64> = (0..DAY)
            .map(|minute| trough + bump(minute, peak, sharpness) + second_height * bump(minute, second, 6.0))
            .collect();
        let mean = raw.iter().sum::<f64>() / DAY as f64;
        let mut week = std::array::from_fn(|day: usize| {
            let weekend = day >= 5;
            if weekend { stream.between(10, 0.7, 0.95) } else { stream.between(20 + day as i64, 0.97, 1.03) }
        });
        week[k % 5] *= stream.between(11, 1.1, 1.2);
        Self { day: raw.into_iter().map(|v| v / mean).collect(), week }
    }

    /// The level at a moment; `minute` is the minute of the day with its fraction.
    pub(crate) fn level(&self, point: CalendarPoint, minute: f64) -> f64 {
        // The calendar counts 0 to 1439.
        let whole = point.minute_of_day as usize;
        let (a, b) = (self.day[whole % DAY], self.day[(whole + 1) % DAY]);
        let day = a + (b - a) * (minute - minute.floor());
        day * self.week_level(usize::from(point.weekday), minute)
    }

    /// Days pass into each other around midnight instead of jumping.
    fn week_level(&self, weekday: usize, minute: f64) -> f64 {
        let today = self.week[weekday % 7];
        let left = DAY as f64 - minute;
        if minute < DUSK {
            let before = self.week[(weekday + 6) % 7];
            before + (today - before) * smoothstep(0.5 + minute / DUSK / 2.0)
        } else if left < DUSK {
            let after = self.week[(weekday + 1) % 7];
            after + (today - after) * smoothstep(0.5 + left / DUSK / 2.0)
        } else {
            today
        }
    }
}

/// From 0 to 1 without corners.
pub(crate) fn smoothstep(x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// Height of a passing rise at `share` of its length: up in the first `rise`, down in the last `fall`, 1 between, 0
/// outside.
pub(crate) fn plateau(share: f64, rise: f64, fall: f64) -> f64 {
    if !(0.0..1.0).contains(&share) {
        return 0.0;
    }
    smoothstep(share / rise).min(smoothstep((1.0 - share) / fall))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_weeks_join_without_a_jump() {
        let rhythm = Rhythm::of_tenant(Stream::new(7), 2, 6);
        for weekday in 0..7u8 {
            let at = |weekday, minute: f64| {
                let point = CalendarPoint { minute_of_day: minute as u32, weekday, holiday: false };
                rhythm.level(point, minute)
            };
            let (night, morning) = (at(weekday, 1439.9), at((weekday + 1) % 7, 0.0));
            assert!((night - morning).abs() < 0.02 * night, "{weekday}: {night} {morning}");
        }
    }

    #[test]
    fn tenants_peak_around_the_clock() {
        let root = Stream::new(3);
        let peaks: Vec<usize> = (0..6)
            .map(|k| {
                let day = Rhythm::of_tenant(root.of("tenant", k), k, 6).day;
                (0..DAY).max_by(|a, b| day[*a].total_cmp(&day[*b])).unwrap() / 240
            })
            .collect();
        let different: std::collections::BTreeSet<_> = peaks.iter().collect();
        assert!(different.len() >= 4, "{peaks:?}");
    }

    #[test]
    fn plateau_begins_and_ends_at_nothing() {
        assert_eq!(plateau(0.5, 0.2, 0.2), 1.0);
        assert_eq!((plateau(0.0, 0.2, 0.2), plateau(-0.1, 0.2, 0.2), plateau(1.0, 0.2, 0.2)), (0.0, 0.0, 0.0));
        assert!(plateau(0.99, 0.2, 0.5) < 0.01);
    }
}
