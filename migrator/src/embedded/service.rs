//! Hard limits of rate: what is over the limit waits its turn, so that overload is real queueing latency.

use foreshard_domain::Clock;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The queue is longer than the caller may wait.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("the queue is {backlog:?} long, more than the {limit:?} allowed; send less, or later")]
pub struct Overloaded {
    /// How long one would have to wait.
    pub backlog: Duration,
    /// How long one may wait.
    pub limit: Duration,
}

/// A server of fixed capacity with one queue: work of cost `c` is done `c / capacity` seconds after all work before it.
#[derive(Debug)]
pub struct NodeService {
    clock: Arc<dyn Clock>,
    /// Units per real millisecond; `None` for no limit.
    per_ms: Option<f64>,
    longest_wait: Duration,
    /// When all work taken so far will be done, in milliseconds of monotonic time: a wall clock that is set back must not make
    /// the queue look longer than it is.
    busy_until_ms: Mutex<f64>,
}

impl NodeService {
    /// A server of `capacity` units per real second (no limit unless positive and finite), at which nobody waits longer than
    /// `longest_wait`.
    pub fn new(capacity: f64, longest_wait: Duration, clock: Arc<dyn Clock>) -> Self {
        let per_ms = Some(capacity / 1000.0).filter(|rate| rate.is_finite() && *rate > 0.0);
        Self { clock, per_ms, longest_wait, busy_until_ms: Mutex::new(0.0) }
    }

    /// Takes its turn and waits until work of this cost is done.
    ///
    /// # Errors
    /// [`Overloaded`] at once if the wait would be too long; nothing was taken.
    pub async fn serve(&self, cost: f64) -> Result<(), Overloaded> {
        let wait = self.take(cost, Some(self.longest_wait))?;
        // Timers are no finer than a millisecond. What is shorter is not waited for but stays taken, so that the capacity
        // holds over many pieces of work.
        if wait >= Duration::from_millis(1) {
            tokio::time::sleep(wait).await;
        }
        Ok(())
    }

    /// Takes capacity without waiting for it: for work that must not wait, such as that behind a fence.
    pub fn charge(&self, cost: f64) {
        // Without a limit of time there is nothing to be refused.
        let _ = self.take(cost, None);
    }

    /// How long work that came now would wait.
    pub fn backlog(&self) -> Duration {
        self.take(0.0, None).unwrap_or_default()
    }

    fn take(&self, cost: f64, limit: Option<Duration>) -> Result<Duration, Overloaded> {
        let Some(per_ms) = self.per_ms else { return Ok(Duration::ZERO) };
        let cost = if cost.is_finite() { cost.max(0.0) } else { 0.0 };
        let now = self.clock.monotonic().as_secs_f64() * 1000.0;
        let mut busy_until = self.busy_until_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = busy_until.max(now);
        let backlog = Duration::from_secs_f64(((begin - now) / 1000.0).clamp(0.0, 1e9));
        if let Some(limit) = limit.filter(|limit| backlog > *limit) {
            return Err(Overloaded { backlog, limit });
        }
        let done = begin + cost / per_ms;
        *busy_until = done;
        Ok(Duration::from_secs_f64(((done - now) / 1000.0).clamp(0.0, 1e9)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{ManualClock, RealTime, Timestamp};

    fn service(capacity: f64) -> (Arc<ManualClock>, NodeService) {
        let clock = Arc::new(ManualClock::new(Timestamp::default(), RealTime::from_ms(1_000_000)));
        (Arc::clone(&clock), NodeService::new(capacity, Duration::from_secs(1), clock))
    }

    #[test]
    fn work_over_the_capacity_waits_its_turn() {
        let (clock, service) = service(1000.0);
        service.charge(300.0);
        service.charge(200.0);
        assert_eq!(service.backlog(), Duration::from_millis(500));
        clock.advance_ms(400);
        assert_eq!(service.backlog(), Duration::from_millis(100));
        clock.advance_ms(400);
        assert_eq!(service.backlog(), Duration::ZERO, "capacity that nobody used is gone");
    }

    #[test]
    fn a_clock_set_back_lengthens_no_queue() {
        let (clock, service) = service(1000.0);
        clock.advance_ms(5000);
        service.charge(300.0);
        clock.set_real(RealTime::from_ms(0));
        clock.advance_ms(100);
        assert_eq!(service.backlog().as_millis(), 200);
        clock.set_real(RealTime::from_ms(9_000_000));
        assert_eq!(service.backlog().as_millis(), 200, "nor does one set forward shorten it");
    }

    #[test]
    fn small_work_adds_up() {
        let (_, service) = service(1000.0);
        for _ in 0..10_000 {
            service.charge(0.05);
        }
        assert_eq!(service.backlog().as_millis(), 500);
    }

    #[tokio::test]
    async fn too_long_a_queue_refuses_at_once() {
        let (_, service) = service(10.0);
        service.charge(20.0);
        assert!(service.serve(1.0).await.is_err());
        assert_eq!(service.backlog(), Duration::from_secs(2), "what is refused takes nothing");
    }

    #[tokio::test]
    async fn nonsense_means_no_limit() {
        for capacity in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let (_, service) = service(capacity);
            service.serve(1e12).await.unwrap();
            service.serve(f64::NAN).await.unwrap();
        }
    }
}
