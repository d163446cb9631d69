//! Which rows are taken.

use foreshard_api::v1;
use foreshard_domain::{Metric, Observation, Timestamp};
use std::time::Duration;

use crate::context::METRICS;

/// No load was measured before; earlier times come from broken clocks, and no day folder could be named after them.
const EARLIEST: Timestamp = Timestamp::from_ms(0);

/// When rows come, and what that allows them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    /// Model time.
    pub(crate) now: Timestamp,
    /// Milliseconds of model time that a row may lie ahead of it.
    pub(crate) ahead_at_most_ms: i64,
}

impl Arrival {
    fn check(self, row: &Observation) -> Result<(), String> {
        if row.ts < EARLIEST {
            return Err(format!("its time {} lies before 1970; check the clock that stamped it", row.ts));
        }
        let ahead_ms = row.ts.since_ms(self.now);
        if ahead_ms > self.ahead_at_most_ms {
            let span = |ms: i64| Duration::from_millis(ms.unsigned_abs());
            return Err(format!(
                "the time {} of shard {} lies {:?} ahead of {}, at most {:?} is taken; check the clock that stamped it",
                row.ts,
                row.shard,
                span(ahead_ms),
                self.now,
                span(self.ahead_at_most_ms)
            ));
        }
        Ok(())
    }
}

/// The row, or why it is not taken.
///
/// A row must name its shard and time, hold at least one measurement, hold no impossible one, and lie no further ahead
/// of the clock than allowed: a broken clock's rows would be read as observations once their time has come.
pub(crate) fn checked(row: v1::Observation, arrival: Arrival) -> Result<Observation, String> {
    let row = Observation::try_from(row).map_err(|error| reason(&error))?;
    sound(&row, arrival)?;
    Ok(row)
}

/// Whether a row may be taken.
///
/// # Errors
/// As [`checked`].
pub(crate) fn sound(row: &Observation, arrival: Arrival) -> Result<(), String> {
    arrival.check(row)?;
    let stored = [("data_bytes", row.data_bytes), ("write_bytes_per_s", row.write_bytes_per_s)];
    let measured = METRICS.iter().map(|metric| (metric.name(), row.get(*metric)));
    let mut any = false;
    for (name, value) in measured.chain(stored) {
        let Some(value) = value else { continue };
        any = true;
        if !value.is_finite() {
            return Err(format!("{name} is {value}, which is no finite number; leave it out if it was not measured"));
        }
        if value < lowest(name) {
            return Err(format!("{name} is {value}; it cannot be negative"));
        }
    }
    if any { Ok(()) } else { Err("it holds no measurement".to_owned()) }
}

fn lowest(column: &str) -> f64 {
    column.parse::<Metric>().map_or(Some(0.0), Metric::lower_bound).unwrap_or(f64::NEG_INFINITY)
}

/// An error with its causes in one line.
pub(crate) fn reason(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::ShardId;

    const ARRIVAL: Arrival = Arrival { now: Timestamp::from_ms(400_000), ahead_at_most_ms: 600_000 };

    #[test]
    fn a_row_too_far_ahead_is_told_how_far() {
        let told = refused(Observation { ts: Timestamp::from_ms(86_800_000), ..row() });
        for part in ["shard s", "1970-01-02T00:06:40Z", "86400s ahead of 1970-01-01T00:06:40Z", "at most 600s"] {
            assert!(told.contains(part), "{part} in {told}");
        }
    }

    #[test]
    fn times_of_broken_clocks_are_refused() {
        for ms in [i64::MIN, -1, 1_000_001, i64::MAX] {
            let mut row = row();
            row.ts = Timestamp::from_ms(ms);
            assert!(checked((&row).into(), ARRIVAL).is_err(), "{ms}");
        }
    }

    fn row() -> Observation {
        let mut row = Observation::empty(ShardId::new("s").unwrap(), Timestamp::from_ms(1_000_000));
        row.cpu_util = Some(1.0);
        row
    }

    fn refused(row: Observation) -> String {
        checked((&row).into(), ARRIVAL).unwrap_err()
    }

    #[test]
    fn good_rows_pass_unchanged() {
        let mut good = row();
        assert_eq!(checked((&good).into(), ARRIVAL), Ok(good.clone()));
        good.cpu_util = None;
        good.data_bytes = Some(0.0);
        assert_eq!(checked((&good).into(), ARRIVAL), Ok(good));
    }

    #[test]
    fn each_reason_says_what_is_wrong() {
        assert!(refused(Observation { cpu_util: Some(f64::NAN), ..row() }).contains("cpu_util is NaN"));
        assert!(refused(Observation { io_ops: Some(f64::INFINITY), ..row() }).contains("io_ops is inf"));
        assert!(
            refused(Observation { txn_rate: Some(-1.0), ..row() }).contains("txn_rate is -1; it cannot be negative")
        );
        assert!(refused(Observation { write_bytes_per_s: Some(-1.0), ..row() }).contains("write_bytes_per_s"));
        assert!(refused(Observation { cpu_util: None, ..row() }).contains("no measurement"));
        assert!(refused(Observation { ts: Timestamp::from_ms(1_000_001), ..row() }).contains("600.001s ahead"));
        let nameless = checked(v1::Observation::default(), ARRIVAL).unwrap_err();
        assert!(nameless.contains("shard_id") && nameless.contains("must not be empty"), "{nameless}");
    }
}
