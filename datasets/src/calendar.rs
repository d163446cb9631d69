//! Time of day, weekday and holidays in a configured time zone.

use std::collections::BTreeSet;

use foreshard_domain::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Why there is no such calendar.
#[derive(Debug, thiserror::Error)]
pub enum CalendarError {
    /// No time zone has this name.
    #[error("unknown time zone {name:?}; use an IANA name such as Europe/Berlin or UTC")]
    Zone {
        /// What was given.
        name: String,
        /// What the database says.
        #[source]
        source: jiff::Error,
    },
    /// A holiday is no date.
    #[error("holiday {year}-{month}-{day} is no date")]
    Holiday {
        /// Its year.
        year: i16,
        /// Its month, from 1.
        month: i8,
        /// Its day, from 1.
        day: i8,
        /// Why.
        #[source]
        source: jiff::Error,
    },
}

/// A moment as people in the zone see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CalendarPoint {
    /// Minutes of the wall clock since midnight, 0 to 1439; repeats or jumps where daylight saving changes.
    pub minute_of_day: u32,
    /// 0 = Monday to 6 = Sunday.
    pub weekday: u8,
    /// Whether the day is a configured holiday.
    pub holiday: bool,
}

/// A time zone with holidays.
#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
    holidays: BTreeSet<Date>,
}

impl Calendar {
    /// A calendar of the IANA zone `zone` (database of this binary, so that results do not depend on the machine) with
    /// holidays as (year, month, day).
    ///
    /// # Errors
    /// [`CalendarError`] for an unknown zone or an impossible date.
    pub fn new(zone: &str, holidays: Vec<(i16, i8, i8)>) -> Result<Self, CalendarError> {
        let bundled = jiff::tz::TimeZoneDatabase::bundled();
        let zone = bundled.get(zone).map_err(|source| CalendarError::Zone { name: zone.to_owned(), source })?;
        let date = |(year, month, day)| {
            Date::new(year, month, day).map_err(|source| CalendarError::Holiday { year, month, day, source })
        };
        let holidays = holidays.into_iter().map(date).collect::<Result<_, _>>()?;
        Ok(Self { zone, holidays })
    }

    /// How far the wall clock of the zone is ahead of UTC at a moment, in milliseconds.
    pub fn offset_ms(&self, ts: Timestamp) -> i64 {
        i64::from(self.zone.to_offset(moment(ts)).seconds()) * 1000
    }

    /// UTC without holidays.
    pub fn utc() -> Self {
        Self { zone: TimeZone::UTC, holidays: BTreeSet::new() }
    }

    /// The moment in this calendar; times beyond what a calendar can express count as its ends.
    pub fn at(&self, ts: Timestamp) -> CalendarPoint {
        let local = self.zone.to_datetime(moment(ts));
        CalendarPoint {
            minute_of_day: u32::from(local.hour().unsigned_abs()) * 60 + u32::from(local.minute().unsigned_abs()),
            weekday: local.weekday().to_monday_zero_offset().unsigned_abs(),
            holiday: !self.holidays.is_empty() && self.holidays.contains(&local.date()),
        }
    }
}

/// The same moment as the calendar's library has it; times beyond what it can express count as its ends.
fn moment(ts: Timestamp) -> jiff::Timestamp {
    let ends = jiff::Timestamp::MIN.as_millisecond() + 86_400_000..jiff::Timestamp::MAX.as_millisecond() - 86_400_000;
    let ms = ts.as_ms().clamp(ends.start, ends.end);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ts(text: &str) -> Timestamp {
        Timestamp::from_ms(text.parse::<jiff::Timestamp>().unwrap().as_millisecond())
    }

    #[test]
    fn follows_daylight_saving() {
        let berlin = Calendar::new("Europe/Berlin", vec![(2024, 12, 25)]).unwrap();
        let winter = berlin.at(ts("2024-03-30T08:00:00Z"));
        let summer = berlin.at(ts("2024-03-31T08:00:00Z"));
        assert_eq!((winter.minute_of_day, winter.weekday), (9 * 60, 5));
        assert_eq!((summer.minute_of_day, summer.weekday), (10 * 60, 6));
        // The hour that the clock goes back occurs twice.
        let before = berlin.at(ts("2024-10-27T00:30:00Z"));
        let after = berlin.at(ts("2024-10-27T01:30:00Z"));
        assert_eq!(before.minute_of_day, after.minute_of_day);
        let hours = |text: &str| berlin.offset_ms(ts(text)) / 3_600_000;
        assert_eq!((hours("2024-10-27T00:59:59Z"), hours("2024-10-27T01:00:00Z")), (2, 1));
        assert!(berlin.at(ts("2024-12-24T23:30:00Z")).holiday);
        assert!(!berlin.at(ts("2024-12-25T23:30:00Z")).holiday);
    }

    #[test]
    fn refuses_unknown_zones_and_dates() {
        assert!(matches!(Calendar::new("Mars/Base", vec![]), Err(CalendarError::Zone { .. })));
        assert!(matches!(Calendar::new("UTC", vec![(2024, 2, 30)]), Err(CalendarError::Holiday { .. })));
    }

    #[test]
    fn utc_agrees_with_arithmetic_before_the_epoch_and_at_the_ends() {
        let point = Calendar::utc().at(ts("1969-12-31T23:59:00Z"));
        assert_eq!((point.minute_of_day, point.weekday), (1439, 2));
        Calendar::utc().at(Timestamp::from_ms(i64::MAX));
        Calendar::new("Pacific/Auckland", vec![]).unwrap().at(Timestamp::from_ms(i64::MIN));
    }
}
