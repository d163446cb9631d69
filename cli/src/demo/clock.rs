//! A clock that stands at the beginning of the day until the stage is set, and then runs fast.

use foreshard_domain::{Clock, RealTime, ScaledClock, SystemClock, Timestamp};
use std::sync::OnceLock;
use std::time::Duration;

/// Model time stands still at `start` until [`DayClock::run`]; from then on it runs `factor` times as fast as the wall clock.
#[derive(Debug)]
pub struct DayClock {
    start: Timestamp,
    factor: f64,
    running: OnceLock<ScaledClock>,
}

impl DayClock {
    /// A clock that stands at `start`.
    pub fn standing_at(start: Timestamp, factor: f64) -> Self {
        Self { start, factor, running: OnceLock::new() }
    }

    /// Lets it run from here on; a second call changes nothing.
    pub fn run(&self) {
        self.running.get_or_init(|| ScaledClock::starting_at(self.start, self.factor));
    }

    /// Waits until model time `ts`; at once if that is past.
    pub async fn reach(&self, ts: Timestamp) {
        loop {
            let ahead = ts.since_ms(self.model());
            if ahead <= 0 {
                return;
            }
            // Timers are no finer than a millisecond; a shorter wait would only spin.
            tokio::time::sleep(self.real_duration(ahead).max(Duration::from_millis(1))).await;
        }
    }
}

impl Clock for DayClock {
    fn model(&self) -> Timestamp {
        self.running.get().map_or(self.start, ScaledClock::model)
    }

    fn real(&self) -> RealTime {
        SystemClock.real()
    }

    fn monotonic(&self) -> Duration {
        SystemClock.monotonic()
    }

    fn real_duration(&self, model_ms: i64) -> Duration {
        Duration::from_secs_f64((model_ms.max(0) as f64 / self.factor.max(1e-9) / 1000.0).min(1e9))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stands_until_it_runs() {
        let start = Timestamp::from_ms(1_000_000);
        let clock = DayClock::standing_at(start, 1000.0);
        assert_eq!(clock.model(), start);
        assert_eq!(clock.real_duration(60_000), Duration::from_millis(60));
        clock.run();
        clock.reach(start.plus_ms(20_000)).await;
        assert!(clock.model() >= start.plus_ms(20_000));
    }
}
