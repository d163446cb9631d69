//! Between wire and domain; every way in is checked.

pub(crate) mod forecast;
pub(crate) mod migration;
mod names;
pub(crate) mod observation;
pub(crate) mod scenario;

pub use migration::migration_id_from_wire;
pub use names::product_from_wire;
pub(crate) use names::{limits_from_wire, metric_from_wire, resource_from_wire, shard_from_wire};

use foreshard_domain::{Step, Timestamp};

use crate::WireError;

const NANOS_PER_MS: i32 = 1_000_000;

/// A moment of model time as the wire wants it.
pub fn timestamp_to_wire(ts: Timestamp) -> prost_types::Timestamp {
    let nanos = i32::try_from(ts.as_ms().rem_euclid(1000)).unwrap_or(0) * NANOS_PER_MS;
    prost_types::Timestamp { seconds: ts.as_ms().div_euclid(1000), nanos }
}

/// A moment of model time from the wire; what is finer than a millisecond is cut off.
///
/// # Errors
/// [`WireError::Missing`] if there is none, [`WireError::Range`] if it cannot be expressed in milliseconds.
pub fn timestamp_from_wire(field: &'static str, ts: Option<prost_types::Timestamp>) -> Result<Timestamp, WireError> {
    let ts = ts.ok_or(WireError::Missing { field })?;
    let ms = (0..1_000_000_000)
        .contains(&ts.nanos)
        .then(|| ts.seconds.checked_mul(1000)?.checked_add(i64::from(ts.nanos / NANOS_PER_MS)))
        .flatten();
    ms.map(Timestamp::from_ms).ok_or_else(|| WireError::Range {
        field,
        value: format!("{} s and {} ns", ts.seconds, ts.nanos),
        expected: "a time in milliseconds, nanoseconds from 0 to 999999999",
    })
}

/// A step as the wire wants it.
pub fn duration_to_wire(step: Step) -> prost_types::Duration {
    let nanos = i32::try_from(step.as_ms().rem_euclid(1000)).unwrap_or(0) * NANOS_PER_MS;
    prost_types::Duration { seconds: step.as_ms().div_euclid(1000), nanos }
}

pub(crate) fn step_from_wire(field: &'static str, step: Option<prost_types::Duration>) -> Result<Step, WireError> {
    let step = step.ok_or(WireError::Missing { field })?;
    let whole = (0..1_000_000_000).contains(&step.nanos) && step.nanos % NANOS_PER_MS == 0;
    let ms = whole.then(|| step.seconds.checked_mul(1000)?.checked_add(i64::from(step.nanos / NANOS_PER_MS))).flatten();
    ms.and_then(Step::from_ms).ok_or_else(|| WireError::Range {
        field,
        value: format!("{} s and {} ns", step.seconds, step.nanos),
        expected: "a positive number of whole milliseconds",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_go_both_ways(ms in -62_000_000_000_000i64..62_000_000_000_000) {
            let ts = Timestamp::from_ms(ms);
            prop_assert_eq!(timestamp_from_wire("ts", Some(timestamp_to_wire(ts))), Ok(ts));
            if let Some(step) = Step::from_ms(ms) {
                prop_assert_eq!(step_from_wire("step", Some(duration_to_wire(step))), Ok(step));
            }
        }
    }

    #[test]
    fn impossible_times_are_refused() {
        let ts = |seconds, nanos| timestamp_from_wire("ts", Some(prost_types::Timestamp { seconds, nanos }));
        assert!(matches!(ts(i64::MAX, 0), Err(WireError::Range { .. })));
        assert!(matches!(ts(0, -1), Err(WireError::Range { .. })));
        assert!(matches!(ts(0, 1_000_000_000), Err(WireError::Range { .. })));
        assert_eq!(ts(1, 999_999), Ok(Timestamp::from_ms(1000)));
        assert_eq!(timestamp_from_wire("ts", None), Err(WireError::Missing { field: "ts" }));
        let step = |seconds, nanos| step_from_wire("step", Some(prost_types::Duration { seconds, nanos }));
        assert!(step(0, 0).is_err() && step(-1, 0).is_err() && step(1, 1).is_err());
    }
}
