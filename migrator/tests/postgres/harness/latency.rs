//! How long operations took, and when.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// One operation. Times count from the start of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When its turn was: later than that it began only if its client was still busy.
    pub due: Duration,
    /// When it began.
    pub began: Duration,
    /// From its beginning to its acknowledgement, all repeats included.
    pub took: Duration,
}

impl Sample {
    /// What a user who came when it was due had to wait: a stall counts for all that came while it lasted.
    pub fn waited(&self) -> Duration {
        (self.began + self.took).saturating_sub(self.due)
    }
}

/// All operations of a run.
#[derive(Debug, Clone, Default)]
pub struct Latencies(pub Vec<Sample>);

impl Latencies {
    /// The wait that this share of the operations did not exceed, by nearest rank; zero when there was none.
    pub fn percentile(&self, share: f64) -> Duration {
        let mut waits: Vec<_> = self.0.iter().map(Sample::waited).collect();
        waits.sort_unstable();
        let rank = (share * waits.len() as f64).ceil() as usize;
        waits.get(rank.clamp(1, waits.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// The longest that one operation itself took.
    pub fn longest(&self) -> Duration {
        self.0.iter().map(|sample| sample.took).max().unwrap_or_default()
    }

    /// The same on a time line that began so much earlier.
    pub fn shifted(&self, by: Duration) -> Self {
        let later = |s: &Sample| Sample { due: s.due + by, began: s.began + by, took: s.took };
        Self(self.0.iter().map(later).collect())
    }

    /// Those that were due in a part of the run.
    pub fn between(&self, part: Range<Duration>) -> Self {
        Self(self.0.iter().filter(|sample| part.contains(&sample.due)).copied().collect())
    }
}

impl fmt::Display for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| self.percentile(share));
        write!(
            f,
            "{} operations, p50 {p50:.1?}, p95 {p95:.1?}, p99 {p99:.1?}, longest {:.1?}",
            self.0.len(),
            self.longest()
        )
    }
}

#[test]
fn percentiles_count_a_stall_for_all_who_came_while_it_lasted() {
    let ms = Duration::from_millis;
    let quick = (0..98).map(|n| Sample { due: ms(n), began: ms(n), took: ms(1) });
    let stalled = Sample { due: ms(98), began: ms(98), took: ms(500) };
    let behind = Sample { due: ms(99), began: ms(598), took: ms(1) };
    let all = Latencies(quick.chain([stalled, behind]).collect());
    assert_eq!((all.percentile(0.5), all.percentile(0.98)), (ms(1), ms(1)));
    assert_eq!((all.percentile(0.99), all.percentile(1.0)), (ms(500), ms(500)));
    assert_eq!(all.between(ms(99)..ms(100)).longest(), ms(1));
    assert_eq!(Latencies::default().percentile(0.99), Duration::ZERO);
}
