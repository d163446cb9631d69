//! Time of day and week as smooth features.

use foreshard_domain::Timestamp;

const DAY_MS: i64 = 86_400_000;
/// The epoch was a Thursday; weeks of the features begin on Monday.
const EPOCH_OFFSET_DAYS: i64 = 3;

/// Sine and cosine of the time of day and of the time of the week, of a time on the wall ([`crate::LocalTime`]).
pub(crate) fn cycle(wall: Timestamp) -> [f32; 4] {
    let day = wall.as_ms().rem_euclid(DAY_MS) as f64 / DAY_MS as f64;
    let week_ms = (wall.as_ms().saturating_add(EPOCH_OFFSET_DAYS * DAY_MS)).rem_euclid(7 * DAY_MS);
    let week = week_ms as f64 / (7 * DAY_MS) as f64;
    let turn = std::f64::consts::TAU;
    [(day * turn).sin() as f32, (day * turn).cos() as f32, (week * turn).sin() as f32, (week * turn).cos() as f32]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_midnight_and_on_monday() {
        // 1970-01-05 was a Monday.
        let monday = cycle(Timestamp::from_ms(4 * DAY_MS));
        assert_eq!(monday, [0.0, 1.0, 0.0, 1.0]);
        let noon = cycle(Timestamp::from_ms(4 * DAY_MS + DAY_MS / 2));
        assert!((noon[1] + 1.0).abs() < 1e-6);
        let before_epoch = cycle(Timestamp::from_ms(-3 * DAY_MS));
        assert_eq!(before_epoch, monday);
    }
}
