//! The wall clock of a zone: daily rhythms follow people, and people follow the clock.
//!
//! Lags and slots count steps, so a day has to have as many of them as any other. Where daylight saving begins or ends within
//! a series, what lies before is moved by the hour that the clock was moved by, and the same place of a day is the same time on
//! the wall throughout: an hour that the clock leapt over is missing, of an hour that came twice the second stands. A zone
//! whose clock never changes changes nothing, to the bit.

use std::borrow::Cow;
use std::ops::Range;

use foreshard_datasets::{Calendar, CalendarError};
use foreshard_domain::{Step, Timestamp};

use crate::forecaster::as_steps;

/// The clock of a zone on a grid of steps.
#[derive(Debug, Clone)]
pub struct LocalTime {
    calendar: Calendar,
    step: Step,
    steps_a_day: usize,
    utc: bool,
}

/// Steps of a window that share one offset of the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stretch {
    /// Which steps.
    pub(crate) steps: Range<usize>,
    /// How far the wall clock is ahead of UTC, in milliseconds.
    pub(crate) offset_ms: i64,
}

impl LocalTime {
    /// The clock of the IANA zone `zone` on a grid of `step`.
    ///
    /// # Errors
    /// [`CalendarError`] for an unknown zone.
    pub fn new(zone: &str, step: Step) -> Result<Self, CalendarError> {
        let calendar = Calendar::new(zone, Vec::new())?;
        // At least one step; a step is positive.
        let steps_a_day = usize::try_from(Step::DAY.as_ms() / step.as_ms().max(1)).unwrap_or(1).max(1);
        Ok(Self { calendar, step, steps_a_day, utc: zone == "UTC" })
    }

    /// How far the wall clock is ahead of UTC at a moment, in milliseconds.
    pub fn offset_ms(&self, ts: Timestamp) -> i64 {
        if self.utc { 0 } else { self.calendar.offset_ms(ts) }
    }

    /// `steps` steps from `start` on, cut where the offset changes; at least one stretch, all of them in order.
    pub(crate) fn stretches(&self, start: Timestamp, steps: usize) -> Vec<Stretch> {
        let at = |i: usize| self.offset_ms(start.plus_steps(as_steps(i), self.step));
        let mut found = Vec::with_capacity(1);
        let (mut from, mut i, mut offset_ms) = (0, 0, at(0));
        // A clock is not changed twice within a day, so one look a day finds every change.
        while !self.utc && i + 1 < steps {
            let next = (i + self.steps_a_day).min(steps - 1);
            if at(next) != offset_ms {
                let (mut same, mut other) = (i, next);
                while other - same > 1 {
                    let middle = same.midpoint(other);
                    if at(middle) == offset_ms { same = middle } else { other = middle }
                }
                found.push(Stretch { steps: from..other, offset_ms });
                (from, i, offset_ms) = (other, other, at(other));
            } else {
                i = next;
            }
        }
        found.push(Stretch { steps: from..steps, offset_ms });
        found
    }

    /// Values on the clock that is ahead of UTC by `offset_ms`; the newest `keep` of them stay where they are.
    ///
    /// With the offset at its end a series keeps its newest values. With one that comes into force only later (a window in
    /// which the clock is changed), what happened just before the origin happened just before it all the same, and `keep`
    /// says how much of that stays in its place.
    pub fn aligned<'a>(&self, values: &'a [f32], start: Timestamp, offset_ms: i64, keep: usize) -> Cow<'a, [f32]> {
        let kept = values.len().saturating_sub(keep);
        let mut pieces: Vec<(Range<usize>, i64)> = Vec::new();
        for Stretch { steps, offset_ms: own } in self.stretches(start, values.len()) {
            let shift = (own - offset_ms) / self.step.as_ms().max(1);
            pieces.push((steps.start..steps.end.min(kept), shift));
            pieces.push((steps.start.max(kept)..steps.end, 0));
        }
        pieces.retain(|(steps, _)| !steps.is_empty());
        if pieces.iter().all(|(_, shift)| *shift == 0) {
            return Cow::Borrowed(values);
        }
        let mut moved = vec![f32::NAN; values.len()];
        for (steps, shift) in pieces {
            for (i, value) in steps.clone().zip(values.get(steps).unwrap_or(&[])) {
                let place = usize::try_from(as_steps(i).saturating_add(shift)).ok();
                if let Some(target) = place.and_then(|place| moved.get_mut(place)) {
                    *target = *value;
                }
            }
        }
        Cow::Owned(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    fn ts(text: &str) -> Timestamp {
        Timestamp::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    fn berlin() -> LocalTime {
        LocalTime::new("Europe/Berlin", Step::from_ms(HOUR_MS).unwrap()).unwrap()
    }

    /// The hour of the wall clock at every step.
    fn wall(time: &LocalTime, start: Timestamp, steps: usize) -> Vec<f32> {
        let hour = |i: usize| {
            let at = start.plus_ms(i as i64 * HOUR_MS);
            (at.plus_ms(time.offset_ms(at)).as_ms().rem_euclid(24 * HOUR_MS) / HOUR_MS) as f32
        };
        (0..steps).map(hour).collect()
    }

    #[test]
    fn both_changes_of_a_year_are_found_to_the_step() {
        let start = ts("2024-03-20T00:00:00Z");
        let found = berlin().stretches(start, 24 * 240);
        let ends: Vec<Timestamp> = found.iter().map(|s| start.plus_ms(s.steps.end as i64 * HOUR_MS)).collect();
        assert_eq!(ends[..2], [ts("2024-03-31T01:00:00Z"), ts("2024-10-27T01:00:00Z")]);
        assert_eq!(found.iter().map(|s| s.offset_ms / HOUR_MS).collect::<Vec<_>>(), [1, 2, 1]);
        assert_eq!(berlin().stretches(start, 0), [Stretch { steps: 0..0, offset_ms: HOUR_MS }]);
    }

    #[test]
    fn after_either_change_a_place_of_the_day_is_one_time_on_the_wall() {
        for start in ["2024-03-25T00:00:00Z", "2024-10-21T00:00:00Z"].map(ts) {
            let time = berlin();
            let values = wall(&time, start, 24 * 12);
            let end = start.plus_ms(24 * 12 * HOUR_MS);
            let moved = time.aligned(&values, start, time.offset_ms(end), 0);
            let last_day = &values[24 * 11..];
            for day in moved.chunks(24) {
                for (v, expected) in day.iter().zip(last_day) {
                    assert!(v.is_nan() || v == expected, "{day:?}");
                }
            }
            // Spring: one hour never was, and the first one of all has left. Autumn: an hour has to make room, as was the first.
            assert_eq!(moved.iter().filter(|v| v.is_nan()).count(), 1);
            assert_eq!(moved[24 * 7..], values[24 * 7..]);
        }
    }

    #[test]
    fn before_a_change_the_newest_values_stay_in_their_place() {
        // The window from midnight on has the clock changed at one (UTC).
        for (start, window) in
            [("2024-03-20T00:00:00Z", "2024-03-31T00:00:00Z"), ("2024-10-16T00:00:00Z", "2024-10-27T00:00:00Z")]
        {
            let time = berlin();
            let (start, window) = (ts(start), ts(window));
            let values = wall(&time, start, 24 * 11);
            let stretches = time.stretches(window, 24);
            assert_eq!((stretches.len(), stretches[1].steps.clone()), (2, 1..24));
            let later = stretches[1].offset_ms;
            let moved = time.aligned(&values, start, later, 12);
            assert_eq!(moved[24 * 11 - 12..], values[24 * 11 - 12..]);
            // A day earlier at the same place is the same time on the wall as the target's.
            let target = wall(&time, window, 24);
            for step in (1..24).filter(|step| *step < 11) {
                assert_eq!(moved[24 * 10 + step], target[step], "step {step}");
            }
            // Where nothing has to stay, every place of yesterday is; but the last, which an autumn has not seen yet.
            let moved = time.aligned(&values, start, later, 0);
            for step in 1..24 {
                let v = moved[24 * 10 + step];
                assert!(v == target[step] || (step == 23 && v.is_nan()), "step {step}: {v}");
            }
        }
    }

    #[test]
    fn a_clock_that_never_changes_changes_nothing() {
        let values = [1.0, f32::NAN, 3.0];
        for zone in ["UTC", "Asia/Tokyo"] {
            let time = LocalTime::new(zone, Step::FIVE_MINUTES).unwrap();
            let start = ts("2024-03-31T00:00:00Z");
            assert!(matches!(time.aligned(&values, start, time.offset_ms(start), 0), Cow::Borrowed(_)), "{zone}");
            assert_eq!(time.stretches(start, 3000).len(), 1);
        }
        assert!(LocalTime::new("Mars/Base", Step::FIVE_MINUTES).is_err());
    }
}
