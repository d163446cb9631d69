//! A queue of requests, bounded by their rows and by how long they would wait.
//!
//! Rows bound the memory. They do not bound the wait: a queue that is worked off more slowly than it fills makes every
//! request wait until it has expired, and nothing is ever answered. So a request is refused as well if what is before it
//! would take longer, at the pace of the last batches, than it may wait.

use foreshard_domain::{Product, RealTime, Timestamp};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::pace::Pace;
use super::{EngineCounts, Finish};
use crate::context::SeriesKey;

/// A request that waits to be computed.
pub(crate) struct Job {
    pub(crate) product: Product,
    /// The step that the contexts end at; the last complete one unless it is named.
    pub(crate) origin: Option<Timestamp>,
    pub(crate) keys: Vec<SeriesKey>,
    pub(crate) deadline: Option<RealTime>,
    /// When it came, on the steady clock.
    pub(crate) queued: Duration,
    pub(crate) finish: Box<dyn Finish>,
}

impl Job {
    pub(crate) fn rows(&self) -> usize {
        self.keys.len().max(1)
    }

    /// Whether somebody still waits for the answer.
    pub(crate) fn wanted(&self, now: RealTime) -> bool {
        self.deadline.is_none_or(|deadline| now < deadline) && !self.finish.abandoned()
    }
}

/// The queue has no room, or is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueFull {
    /// This many rows wait already.
    Full {
        /// Rows that wait.
        waiting: usize,
        /// How long they will take; zero if that is not known yet.
        wait: Duration,
    },
    /// It would wait too long.
    Slow {
        /// How long.
        wait: Duration,
    },
    /// The server is stopping.
    Closed,
}

/// How much may wait, and how it is worked off.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueLimits {
    /// Rows that may wait.
    pub(crate) rows: usize,
    /// How long a request may wait.
    pub(crate) wait: Duration,
    /// Rows of one batch.
    pub(crate) batch_rows: usize,
    /// Threads that take batches.
    pub(crate) threads: usize,
}

/// A moment, on both clocks: deadlines are moments of real time, and what took how long is read from the steady clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) real: RealTime,
    pub(crate) steady: Duration,
}

/// Jobs that may be looked through whenever room is short; longer queues only once in [`SWEEP_EVERY`], since refusing has to
/// cost next to nothing when there is too much of everything.
const SWEPT_AT_ONCE: usize = 64;

/// How often a long queue is looked through for jobs that nobody waits for any more.
const SWEEP_EVERY: Duration = Duration::from_millis(10);

/// A batch that is being computed.
#[derive(Debug, Clone, Copy)]
struct Running {
    rows: usize,
    since: Duration,
}

/// A batch that was taken from the queue, to be told as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket(u64);

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    rows: usize,
    closed: bool,
    swept: Option<Duration>,
    running: BTreeMap<u64, Running>,
    batches: u64,
    pace: Pace,
}

impl Waiting {
    /// Why a job of `rows` that may wait for `patience` cannot be taken; `None` if it can.
    fn refusal(&self, rows: usize, patience: Duration, limits: &QueueLimits, now: Duration) -> Option<QueueFull> {
        let wait = self.wait(limits, now);
        if self.rows.saturating_add(rows) > limits.rows && !self.jobs.is_empty() {
            return Some(QueueFull::Full { waiting: self.rows, wait });
        }
        (wait > patience).then_some(QueueFull::Slow { wait })
    }

    /// Takes out the jobs that nobody waits for any more, so that they keep no place from others.
    fn sweep(&mut self, now: Now) -> Vec<Job> {
        let recently = self.swept.is_some_and(|swept| now.steady.saturating_sub(swept) < SWEEP_EVERY);
        if recently && self.jobs.len() > SWEPT_AT_ONCE {
            return Vec::new();
        }
        self.swept = Some(now.steady);
        if self.jobs.iter().all(|job| job.wanted(now.real)) {
            return Vec::new();
        }
        let (live, dead): (VecDeque<Job>, VecDeque<Job>) =
            std::mem::take(&mut self.jobs).into_iter().partition(|job| job.wanted(now.real));
        self.rows = live.iter().map(Job::rows).fold(0, usize::saturating_add);
        self.jobs = live;
        dead.into()
    }

    /// How long whatever comes now would wait.
    fn wait(&self, limits: &QueueLimits, now: Duration) -> Duration {
        let left = |running: &Running| {
            let whole = self.pace.estimate(running.rows, limits.batch_rows);
            whole.saturating_sub(now.saturating_sub(running.since))
        };
        let running = self.running.values().map(left).fold(Duration::ZERO, Duration::saturating_add);
        let before = self.pace.estimate(self.rows, limits.batch_rows).saturating_add(running);
        before / u32::try_from(limits.threads.max(1)).unwrap_or(u32::MAX)
    }
}

/// First in, first out; bounded by rows and by time.
pub(crate) struct RowQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    limits: QueueLimits,
    counts: Arc<EngineCounts>,
}

impl RowQueue {
    /// An empty queue; jobs that it takes out since nobody waits for them count as expired.
    pub(crate) fn new(limits: QueueLimits, counts: Arc<EngineCounts>) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), limits, counts }
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows that wait.
    pub(crate) fn rows(&self) -> usize {
        self.locked().rows
    }

    /// Drops what was swept, outside the lock: whoever waits is told by that.
    fn bury(&self, dead: Vec<Job>) {
        self.counts.expired.fetch_add(dead.len() as u64, Ordering::Relaxed);
        drop(dead);
    }

    /// How long a request that came now would wait; `None` if it would be refused.
    pub(crate) fn wait(&self, now: Now) -> Option<Duration> {
        let mut waiting = self.locked();
        let limits = &self.limits;
        let room = |waiting: &Waiting| {
            let wait = waiting.wait(limits, now.steady);
            (waiting.rows < limits.rows && wait <= limits.wait && !waiting.closed).then_some(wait)
        };
        if let Some(wait) = room(&waiting) {
            return Some(wait);
        }
        let dead = waiting.sweep(now);
        let wait = room(&waiting);
        drop(waiting);
        self.bury(dead);
        wait
    }

    /// Lets a job wait, unless the rows would be too many or it would wait too long; those that expired or were given up do
    /// not count. A job that is larger than the whole queue is taken when nothing else waits, since it could never be
    /// otherwise.
    pub(crate) fn push(&self, job: Job, now: Now) -> Result<(), QueueFull> {
        let mut waiting = self.locked();
        if waiting.closed {
            return Err(QueueFull::Closed);
        }
        let patience = job.deadline.map_or(Duration::MAX, |deadline| deadline.since(now.real)).min(self.limits.wait);
        let refusal = |waiting: &Waiting| waiting.refusal(job.rows(), patience, &self.limits, now.steady);
        let (mut dead, mut refused) = (Vec::new(), refusal(&waiting));
        if refused.is_some() {
            dead = waiting.sweep(now);
            if !dead.is_empty() {
                refused = refusal(&waiting);
            }
        }
        if refused.is_none() {
            waiting.rows = waiting.rows.saturating_add(job.rows());
            waiting.jobs.push_back(job);
            self.changed.notify_one();
        }
        drop(waiting);
        self.bury(dead);
        refused.map_or(Ok(()), Err)
    }

    /// Waits for jobs and takes the oldest with all later ones of its product and origin, as far as they fit into a batch; `None`
    /// once the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<Vec<Job>> {
        let mut waiting = self.locked();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let first = waiting.jobs.pop_front()?;
        let (product, origin, mut rows) = (first.product, first.origin, first.rows());
        let mut batch = vec![first];
        let mut left = VecDeque::with_capacity(waiting.jobs.len());
        while let Some(job) = waiting.jobs.pop_front() {
            let alike = job.product == product && job.origin == origin;
            if alike && rows.saturating_add(job.rows()) <= self.limits.batch_rows {
                rows += job.rows();
                batch.push(job);
            } else {
                left.push_back(job);
            }
        }
        waiting.jobs = left;
        waiting.rows = waiting.rows.saturating_sub(rows);
        Some(batch)
    }

    /// Says that `rows` begin to be computed.
    pub(crate) fn begin(&self, rows: usize, now: Now) -> Ticket {
        let mut waiting = self.locked();
        waiting.batches += 1;
        let number = waiting.batches;
        waiting.running.insert(number, Running { rows, since: now.steady });
        Ticket(number)
    }

    /// Says that they are computed, and returns how long they took.
    pub(crate) fn end(&self, ticket: Ticket, now: Now) -> Duration {
        let mut waiting = self.locked();
        let Some(Running { rows, since }) = waiting.running.remove(&ticket.0) else { return Duration::ZERO };
        let took = now.steady.saturating_sub(since);
        if rows > 0 {
            waiting.pace.learn(rows, took);
        }
        took
    }

    /// Takes no more jobs; those that wait are still handed out.
    pub(crate) fn close(&self) {
        self.locked().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Bench;
    use super::*;
    use foreshard_domain::{Metric, SeriesForecast, ShardId};

    struct Nobody(bool);

    impl Finish for Nobody {
        fn abandoned(&self) -> bool {
            self.0
        }
        fn finish(self: Box<Self>, _: &Bench, _: Product, _: Vec<SeriesForecast>) {}
    }

    fn job(product: Product, rows: usize) -> Job {
        let shard = ShardId::new("s").unwrap();
        let keys = vec![(shard, Metric::CpuUtil); rows];
        Job { product, origin: None, keys, deadline: None, queued: Duration::ZERO, finish: Box::new(Nobody(false)) }
    }

    fn queue(rows: usize, batch_rows: usize) -> RowQueue {
        RowQueue::new(QueueLimits { rows, wait: Duration::from_secs(1), batch_rows, threads: 1 }, Arc::default())
    }

    fn at(ms: u64) -> Now {
        Now { real: RealTime::from_ms(1_000_000 + i64::try_from(ms).unwrap()), steady: Duration::from_millis(ms) }
    }

    #[test]
    fn s1_a_full_queue_refuses_at_once_and_counts_rows() {
        let queue = queue(10, 100);
        let full = |waiting| Err(QueueFull::Full { waiting, wait: Duration::ZERO });
        assert_eq!(queue.push(job(Product::NextHours, 6), at(0)), Ok(()));
        assert_eq!(queue.push(job(Product::NextHours, 4), at(0)), Ok(()));
        assert_eq!(queue.push(job(Product::NextHours, 1), at(0)), full(10));
        assert_eq!(queue.wait(at(0)), None);
        assert_eq!(queue.pop().unwrap().len(), 2);
        assert_eq!(queue.wait(at(0)), Some(Duration::ZERO));
        assert_eq!(queue.push(job(Product::NextHours, 50), at(0)), Ok(()), "alone, a larger one is taken");
        assert_eq!(queue.push(job(Product::NextHours, 1), at(0)), full(50));
    }

    #[test]
    fn one_product_is_taken_together_up_to_a_batch() {
        let queue = queue(100, 8);
        for (product, rows) in
            [(Product::NextHours, 3), (Product::NextDay, 2), (Product::NextHours, 4), (Product::NextHours, 9)]
        {
            queue.push(job(product, rows), at(0)).unwrap();
        }
        let rows = |batch: Vec<Job>| batch.iter().map(Job::rows).collect::<Vec<_>>();
        assert_eq!(rows(queue.pop().unwrap()), [3, 4]);
        assert_eq!(rows(queue.pop().unwrap()), [2]);
        assert_eq!(rows(queue.pop().unwrap()), [9], "a job larger than a batch goes alone");
    }

    #[test]
    fn closing_hands_out_what_waits_and_then_ends() {
        let queue = queue(10, 1);
        queue.push(job(Product::NextDay, 1), at(0)).unwrap();
        queue.close();
        assert_eq!(queue.push(job(Product::NextDay, 1), at(0)), Err(QueueFull::Closed));
        assert!(queue.pop().is_some());
        assert!(queue.pop().is_none());
    }

    /// A queue whose batches take 1 ms as such and 10 ms a row.
    fn paced() -> RowQueue {
        let queue = queue(10_000, 50);
        for (i, rows) in [1, 10, 50, 3].into_iter().enumerate() {
            let start = 10_000 * i as u64;
            let ticket = queue.begin(rows, at(start));
            let took = queue.end(ticket, at(start + 1 + 10 * rows as u64));
            assert_eq!(took, Duration::from_millis(1 + 10 * rows as u64));
        }
        queue
    }

    #[test]
    fn s1_what_would_wait_too_long_is_refused_at_once() {
        let queue = paced();
        let now = at(100_000);
        queue.push(job(Product::NextDay, 90), now).unwrap();
        let wait = queue.wait(now).unwrap();
        assert!((900..906).contains(&wait.as_millis()), "{wait:?}");
        queue.push(job(Product::NextDay, 90), now).unwrap();
        let refused = queue.push(job(Product::NextDay, 1), now).unwrap_err();
        let QueueFull::Slow { wait } = refused else { panic!("{refused:?}") };
        assert!((1800..1810).contains(&wait.as_millis()), "{wait:?}");
        assert_eq!(queue.wait(now), None);
    }

    #[test]
    fn s1_a_request_is_refused_if_it_would_expire_while_it_waits() {
        let queue = paced();
        let now = at(100_000);
        queue.push(job(Product::NextDay, 20), now).unwrap();
        let due = |ms| Job { deadline: Some(now.real.plus(Duration::from_millis(ms))), ..job(Product::NextDay, 1) };
        assert!(matches!(queue.push(due(100), now), Err(QueueFull::Slow { .. })));
        assert_eq!(queue.push(due(300), now), Ok(()));
    }

    #[test]
    fn what_is_being_computed_counts_as_far_as_it_is_left() {
        let queue = paced();
        let ticket = queue.begin(50, at(100_000));
        let wait = |ms| queue.wait(at(ms)).unwrap().as_millis();
        assert!((498..505).contains(&wait(100_000)), "{}", wait(100_000));
        assert!((98..105).contains(&wait(100_400)), "{}", wait(100_400));
        assert_eq!(wait(109_000), 0, "it takes longer than it should");
        queue.end(ticket, at(109_000));
    }

    #[test]
    fn s1_jobs_that_nobody_waits_for_keep_no_place() {
        let queue = queue(10, 100);
        let due = |ms| Job { deadline: Some(at(0).real.plus(Duration::from_millis(ms))), ..job(Product::NextDay, 3) };
        let left = || Job { finish: Box::new(Nobody(true)), ..job(Product::NextDay, 3) };
        for job in [due(5), left(), job(Product::NextDay, 4)] {
            queue.push(job, at(0)).unwrap();
        }
        assert_eq!(queue.wait(at(0)), Some(Duration::ZERO), "who was given up keeps no place");
        assert_eq!((queue.rows(), queue.counts.expired()), (7, 1));
        queue.push(left(), at(0)).unwrap();
        assert_eq!(queue.push(job(Product::NextDay, 6), at(5)), Ok(()), "nor who expired");
        assert_eq!((queue.rows(), queue.counts.expired()), (10, 3));
        let full = Err(QueueFull::Full { waiting: 10, wait: Duration::ZERO });
        assert_eq!(queue.push(job(Product::NextDay, 1), at(5)), full);
        assert_eq!(queue.pop().unwrap().len(), 2);
    }

    #[test]
    fn s1_a_long_queue_is_not_looked_through_at_every_refusal() {
        let queue = queue(100, 100);
        for _ in 0..100 {
            let left = Job { finish: Box::new(Nobody(true)), ..job(Product::NextDay, 1) };
            queue.push(left, at(0)).unwrap();
        }
        assert_eq!(queue.push(job(Product::NextDay, 1), at(0)), Ok(()));
        assert_eq!((queue.rows(), queue.counts.expired()), (1, 100));
        for _ in 0..99 {
            let left = Job { finish: Box::new(Nobody(true)), ..job(Product::NextDay, 1) };
            queue.push(left, at(0)).unwrap();
        }
        assert!(queue.push(job(Product::NextDay, 1), at(9)).is_err());
        assert_eq!(queue.push(job(Product::NextDay, 1), at(10)), Ok(()));
        assert_eq!((queue.rows(), queue.counts.expired()), (2, 199));
    }

    #[test]
    fn s1_expired_and_abandoned_jobs_are_not_wanted() {
        let mut waiting = job(Product::NextDay, 1);
        assert!(waiting.wanted(RealTime::from_ms(5)));
        waiting.deadline = Some(RealTime::from_ms(5));
        assert!(waiting.wanted(RealTime::from_ms(4)));
        assert!(!waiting.wanted(RealTime::from_ms(5)));
        waiting.deadline = None;
        waiting.finish = Box::new(Nobody(true));
        assert!(!waiting.wanted(RealTime::from_ms(0)));
    }
}
