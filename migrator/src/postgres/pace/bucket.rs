//! Holds all connections of a move to bytes per second that they share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Longest sleep before the pace is looked at again: it may have been changed.
const LOOK: Duration = Duration::from_millis(200);
/// The same while nothing flows.
const RESTS: Duration = Duration::from_millis(20);
/// What may be saved up, in seconds of the pace: what comes at once keeps clients waiting as long as it takes.
const BURST_S: f64 = 0.05;
/// What may be owed when the pace is set anew, in seconds of it.
const DEBT_S: f64 = 5.0;

/// Bytes per second that all connections of a move share.
#[derive(Debug)]
pub(crate) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    bytes_per_s: Option<f64>,
    /// May be negative: the next one waits.
    credit: f64,
    at: Instant,
    /// Nothing flows for now.
    rests: bool,
    /// All bytes let through.
    taken: u64,
}

impl State {
    /// How long to wait before anything may be sent.
    fn refill(&mut self, now: Instant) -> Option<Duration> {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        if self.rests {
            return Some(RESTS);
        }
        let rate = self.bytes_per_s?;
        self.credit = (self.credit + passed * rate).min(rate * BURST_S);
        (self.credit < 0.0)
            .then(|| Duration::try_from_secs_f64(-self.credit / rate).map_or(LOOK, |wait| wait.min(LOOK)))
    }
}

fn sane(bytes_per_s: Option<f64>) -> Option<f64> {
    // Nothing at all would be a copy that never ends; that is what pausing a migration is for.
    bytes_per_s.filter(|rate| !rate.is_nan()).map(|rate| rate.max(1.0))
}

impl Pace {
    pub fn new(bytes_per_s: Option<f64>) -> Self {
        let at = Instant::now();
        Self(Mutex::new(State { bytes_per_s: sane(bytes_per_s), credit: 0.0, at, rests: false, taken: 0 }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the most bytes per second; no limit if `None`. Holds from the next chunk on.
    pub fn set(&self, bytes_per_s: Option<f64>) {
        let mut state = self.state();
        let _wait = state.refill(Instant::now());
        state.bytes_per_s = sane(bytes_per_s);
        // What was taken in advance is waited for, but not for longer than it was worth at a pace that has just fallen.
        if let Some(rate) = state.bytes_per_s {
            state.credit = state.credit.clamp(-DEBT_S * rate, BURST_S * rate);
        } else {
            state.credit = 0.0;
        }
    }

    /// Lets nothing flow, or go on at the pace that is set.
    pub fn rest(&self, rests: bool) {
        let mut state = self.state();
        let _wait = state.refill(Instant::now());
        state.rests = rests;
    }

    /// All bytes that were let through so far.
    pub fn taken(&self) -> u64 {
        self.state().taken
    }

    /// The pace that is set, also while nothing flows.
    pub fn get(&self) -> Option<f64> {
        self.state().bytes_per_s
    }

    /// Waits until `bytes` may be sent.
    pub async fn take(&self, bytes: usize) {
        loop {
            let wait = {
                let mut state = self.state();
                let wait = state.refill(Instant::now());
                if wait.is_none() {
                    state.taken = state.taken.saturating_add(bytes as u64);
                    if state.bytes_per_s.is_some() {
                        state.credit -= bytes as f64;
                    }
                }
                wait
            };
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes to send `chunks` of `bytes` if nothing else does.
    fn takes(state: &mut State, chunks: u32, bytes: f64) -> f64 {
        let began = state.at;
        let mut now = began;
        for _ in 0..chunks {
            while let Some(wait) = state.refill(now) {
                now += wait + Duration::from_nanos(1);
            }
            state.credit -= bytes;
        }
        (now - began).as_secs_f64()
    }

    #[test]
    fn bytes_flow_at_the_pace_that_is_set() {
        let pace = Pace::new(Some(1e6));
        let took = takes(&mut pace.state(), 100, 50_000.0);
        assert!((4.9..=5.0).contains(&took), "5 MB at 1 MB/s took {took} s");
        pace.set(Some(1e7));
        let took = takes(&mut pace.state(), 100, 50_000.0);
        assert!((0.45..=0.51).contains(&took), "5 MB at 10 MB/s, and what was owed, took {took} s");
    }

    #[tokio::test]
    async fn nothing_flows_while_it_rests() {
        let pace = Pace::new(None);
        pace.take(10).await;
        pace.rest(true);
        assert!(tokio::time::timeout(LOOK, pace.take(10)).await.is_err());
        pace.rest(false);
        pace.take(10).await;
        assert_eq!((pace.taken(), pace.get()), (20, None));
    }

    #[tokio::test]
    async fn without_a_pace_nothing_waits() {
        let pace = Pace::new(Some(1.0));
        pace.set(None);
        let all = async {
            for _ in 0..1_000 {
                pace.take(usize::MAX >> 11).await;
            }
        };
        tokio::time::timeout(LOOK, all).await.unwrap();
        assert_eq!(Pace::new(Some(f64::NAN)).get(), None);
        assert_eq!(Pace::new(Some(-5.0)).get(), Some(1.0));
    }
}
