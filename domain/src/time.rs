//! Model time, real time and the one border between them.
//!
//! History, forecasts, plans and outcomes live in *model time* ([`Timestamp`]), which a demonstration or a rehearsal
//! runs faster than the wall clock. Fences, deadlines, timeouts and retries live in *real time* ([`RealTime`]). The
//! types do not mix; [`Clock::real_duration`] is the only conversion.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A moment of model time: milliseconds since 1970-01-01T00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

impl Timestamp {
    /// A moment from milliseconds since the epoch.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the epoch.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// This moment moved by `ms` milliseconds; stops at the ends of what can be expressed.
    #[must_use]
    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// This moment moved by `n` steps.
    #[must_use]
    pub const fn plus_steps(self, n: i64, step: Step) -> Self {
        Self(self.0.saturating_add(n.saturating_mul(step.as_ms())))
    }

    /// Milliseconds from `earlier` to this moment, negative if `earlier` is later.
    pub const fn since_ms(self, earlier: Timestamp) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, to the second (or millisecond where there are some).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, ms) = (self.0.div_euclid(86_400_000), self.0.rem_euclid(86_400_000));
        let (y, m, d) = civil(days);
        let (s, milli) = (ms / 1000, ms % 1000);
        let mut text = format!("{y:04}-{m:02}-{d:02}T{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
        if milli != 0 {
            text.push_str(&format!(".{milli:03}"));
        }
        text.push('Z');
        f.pad(&text)
    }
}

/// Year, month and day of a day number since the epoch (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days.saturating_add(719_468);
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// A positive interval of the grid on which a series lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "i64", into = "i64")]
pub struct Step(i64);

impl Step {
    /// One minute.
    pub const MINUTE: Step = Step(60_000);
    /// Five minutes: the step of *next hours*.
    pub const FIVE_MINUTES: Step = Step(300_000);
    /// Fifteen minutes: the step of *next day*.
    pub const QUARTER_HOUR: Step = Step(900_000);
    /// One day.
    pub const DAY: Step = Step(86_400_000);

    /// A step of `ms` milliseconds; `None` unless positive.
    pub const fn from_ms(ms: i64) -> Option<Self> {
        if ms > 0 { Some(Self(ms)) } else { None }
    }

    /// Its length in milliseconds.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// Its length in minutes.
    pub fn as_minutes(self) -> f64 {
        self.0 as f64 / 60_000.0
    }

    /// The grid time at or before `ts`; the grid is counted from the epoch.
    pub const fn floor(self, ts: Timestamp) -> Timestamp {
        Timestamp(ts.0.saturating_sub(ts.0.rem_euclid(self.0)))
    }

    /// How many of these steps make `span_ms`, rounded down.
    pub const fn count_in(self, span_ms: i64) -> i64 {
        span_ms.div_euclid(self.0)
    }
}

impl TryFrom<i64> for Step {
    type Error = String;
    fn try_from(ms: i64) -> Result<Self, String> {
        Self::from_ms(ms).ok_or_else(|| format!("a step must be positive, not {ms} ms"))
    }
}

impl From<Step> for i64 {
    fn from(step: Step) -> i64 {
        step.0
    }
}

/// A moment of real time: milliseconds of the wall clock since 1970-01-01T00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RealTime(i64);

impl RealTime {
    /// A moment from milliseconds since the epoch.
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the epoch.
    pub const fn as_ms(self) -> i64 {
        self.0
    }

    /// This moment moved forward.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: RealTime) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Where every part of foreshard gets the time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now, in model time.
    fn model(&self) -> Timestamp;

    /// Now, in real time; somebody may set it forward or back.
    fn real(&self) -> RealTime;

    /// Real time that has passed since some moment before the clock was first asked; nobody can set it, and it never goes back.
    /// It means nothing to another process or after a restart.
    fn monotonic(&self) -> Duration;

    /// How long `model_ms` of model time take in real time; zero if not positive. The only border between the two.
    fn real_duration(&self, model_ms: i64) -> Duration;
}

/// The wall clock: model time is real time.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// Reads the wall clock; the one place that may.
#[allow(clippy::disallowed_methods)]
fn wall_ms() -> i64 {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Reads the steady clock; the one place that may.
#[allow(clippy::disallowed_methods)]
fn steady() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

impl Clock for SystemClock {
    fn model(&self) -> Timestamp {
        Timestamp(wall_ms())
    }

    fn real(&self) -> RealTime {
        RealTime(wall_ms())
    }

    fn monotonic(&self) -> Duration {
        steady()
    }

    fn real_duration(&self, model_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(model_ms).unwrap_or(0))
    }
}

/// A clock whose model time runs `factor` times as fast as the wall clock, for demonstrations and rehearsals.
#[derive(Debug, Clone, Copy)]
pub struct ScaledClock {
    model_start: Timestamp,
    real_start: RealTime,
    factor: f64,
}

impl ScaledClock {
    /// A clock that shows `model_start` now and runs `factor` times as fast as the wall clock from here on; factors that
    /// are not positive and finite count as 1.
    pub fn starting_at(model_start: Timestamp, factor: f64) -> Self {
        let factor = if factor.is_finite() && factor > 0.0 { factor } else { 1.0 };
        Self { model_start, real_start: RealTime(wall_ms()), factor }
    }

    /// Model milliseconds that pass in one real millisecond.
    pub fn factor(&self) -> f64 {
        self.factor
    }
}

impl Clock for ScaledClock {
    fn model(&self) -> Timestamp {
        let real_ms = wall_ms().saturating_sub(self.real_start.0);
        // Saturating by the rules of `as` for floats; a span of model time stays far below 2^53 ms.
        self.model_start.plus_ms((real_ms as f64 * self.factor) as i64)
    }

    fn real(&self) -> RealTime {
        RealTime(wall_ms())
    }

    fn monotonic(&self) -> Duration {
        steady()
    }

    fn real_duration(&self, model_ms: i64) -> Duration {
        Duration::from_secs_f64((model_ms.max(0) as f64 / self.factor / 1000.0).min(1e9))
    }
}

/// A clock that a test or a simulation sets by hand.
#[derive(Debug, Default)]
pub struct ManualClock {
    model: AtomicI64,
    real: AtomicI64,
    monotonic_ms: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at the given moments.
    pub fn new(model: Timestamp, real: RealTime) -> Self {
        Self { model: AtomicI64::new(model.0), real: AtomicI64::new(real.0), monotonic_ms: AtomicU64::new(0) }
    }

    /// Lets `ms` of time pass. Negative: model and real time are set back, while monotonic time stands still.
    pub fn advance_ms(&self, ms: i64) {
        self.monotonic_ms.fetch_add(u64::try_from(ms).unwrap_or(0), Ordering::SeqCst);
        self.model.fetch_add(ms, Ordering::SeqCst);
        self.real.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets real time alone, as somebody who sets the wall clock does.
    pub fn set_real(&self, to: RealTime) {
        self.real.store(to.0, Ordering::SeqCst);
    }

    /// Sets model time alone.
    pub fn set_model(&self, ts: Timestamp) {
        self.model.store(ts.0, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn model(&self) -> Timestamp {
        Timestamp(self.model.load(Ordering::SeqCst))
    }

    fn real(&self) -> RealTime {
        RealTime(self.real.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }

    fn real_duration(&self, model_ms: i64) -> Duration {
        Duration::from_millis(u64::try_from(model_ms).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_rfc_3339() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_582_156_499_123, "2020-02-19T23:54:59.123Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_ms(ms).to_string(), text);
        }
    }

    #[test]
    fn floors_before_the_epoch_too() {
        let floor = |ms| Step::FIVE_MINUTES.floor(Timestamp::from_ms(ms)).as_ms();
        assert_eq!(floor(300_000), 300_000);
        assert_eq!(floor(299_999), 0);
        assert_eq!(floor(-1), -300_000);
    }

    #[test]
    fn monotonic_time_goes_on_whoever_sets_the_clock() {
        let clock = ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(5_000));
        clock.advance_ms(10);
        clock.set_real(RealTime::from_ms(1_000));
        clock.advance_ms(-500);
        clock.advance_ms(7);
        assert_eq!((clock.real(), clock.monotonic()), (RealTime::from_ms(507), Duration::from_millis(17)));
        let before = SystemClock.monotonic();
        assert!(ScaledClock::starting_at(Timestamp::default(), 9.0).monotonic() >= before);
    }

    #[test]
    fn scaled_clock_converts_at_one_border() {
        let clock = ScaledClock::starting_at(Timestamp::from_ms(0), 1000.0);
        assert_eq!(clock.real_duration(60_000), Duration::from_millis(60));
        assert_eq!(clock.real_duration(-5), Duration::ZERO);
    }
}
