//! When to train: a cron expression on the wall clock of a zone.

use croner::Cron;
use croner::errors::CronError;
use foreshard_domain::Timestamp;
use jiff::tz::TimeZone;
use std::str::FromStr;

/// Due times. Those that the clock leaps over in spring are due right after the leap, those that come twice in autumn once,
/// unless the expression says "every" (as Vixie cron does).
#[derive(Debug, Clone)]
pub struct Schedule {
    cron: Cron,
    zone: TimeZone,
}

/// Why a schedule cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Not a cron expression.
    #[error(
        "{text:?} is no cron expression; write minute, hour, day of month, month and day of week, such as \"30 2 * * *\" for half past two every night"
    )]
    Expression {
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: CronError,
    },
    /// An unknown zone.
    #[error("{zone:?} is no time zone; use an IANA name such as \"Europe/Berlin\"")]
    Zone {
        /// What was given.
        zone: String,
        /// What was said.
        #[source]
        source: jiff::Error,
    },
    /// It is never due, such as on the 30th of February.
    #[error("{text:?} is never due")]
    Never {
        /// The expression.
        text: String,
    },
}

impl Schedule {
    /// Reads an expression of five fields (or six, seconds first). `now` only serves to make sure that it is ever due.
    ///
    /// # Errors
    /// [`ScheduleError`]
    pub fn new(text: &str, zone: &str, now: Timestamp) -> Result<Self, ScheduleError> {
        let cron =
            Cron::from_str(text).map_err(|source| ScheduleError::Expression { text: text.to_owned(), source })?;
        let zone = TimeZone::get(zone).map_err(|source| ScheduleError::Zone { zone: zone.to_owned(), source })?;
        let schedule = Self { cron, zone };
        let never = || ScheduleError::Never { text: text.to_owned() };
        schedule.next_after(now).map(|_| schedule).ok_or_else(never)
    }

    /// The first due time after a moment; `None` if there is none that can be expressed.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let zoned = jiff::Timestamp::from_millisecond(moment.as_ms()).ok()?.to_zoned(self.zone.clone());
        let next = self.cron.find_next_occurrence(&zoned, false).ok()?;
        Some(Timestamp::from_ms(next.timestamp().as_millisecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn due_times_follow_the_clock_on_the_wall() {
        // Expression, zone, moment, the two due times after it.
        let table = [
            ("30 2 * * *", "UTC", "2024-05-01T02:29:59Z", ["2024-05-01T02:30:00Z", "2024-05-02T02:30:00Z"]),
            ("30 2 * * *", "UTC", "2024-05-01T02:30:00Z", ["2024-05-02T02:30:00Z", "2024-05-03T02:30:00Z"]),
            ("0 3 * * SUN", "Europe/Berlin", "2024-05-01T00:00:00Z", ["2024-05-05T01:00:00Z", "2024-05-12T01:00:00Z"]),
            // Half past two is leapt over on 31 March: due when the clock shows three.
            ("30 2 * * *", "Europe/Berlin", "2024-03-30T12:00:00Z", ["2024-03-31T01:00:00Z", "2024-04-01T00:30:00Z"]),
            // It comes twice on 27 October: due the first time only.
            ("30 2 * * *", "Europe/Berlin", "2024-10-26T12:00:00Z", ["2024-10-27T00:30:00Z", "2024-10-28T01:30:00Z"]),
            ("*/20 * * * * *", "UTC", "2024-05-01T00:00:10.5Z", ["2024-05-01T00:00:20Z", "2024-05-01T00:00:40Z"]),
        ];
        for (text, zone, moment, due) in table {
            let schedule = Schedule::new(text, zone, at(moment)).unwrap();
            let first = schedule.next_after(at(moment)).unwrap();
            let second = schedule.next_after(first).unwrap();
            assert_eq!([first.to_string(), second.to_string()], due, "{text} {zone}");
        }
    }

    #[test]
    fn what_is_never_due_or_no_schedule_is_refused() {
        let new = |text, zone| Schedule::new(text, zone, Timestamp::from_ms(0)).unwrap_err();
        for text in ["", "often", "61 * * * *", "* * * *", "@fortnightly"] {
            assert!(matches!(new(text, "UTC"), ScheduleError::Expression { .. }), "{text}");
        }
        assert!(matches!(new("0 0 30 2 *", "UTC"), ScheduleError::Never { .. } | ScheduleError::Expression { .. }));
        assert!(matches!(new("0 0 * * *", "Europe/Nowhere"), ScheduleError::Zone { .. }));
    }
}
