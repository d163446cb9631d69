//! A queue of requests, bounded by their rows.

use foreshard_domain::{Product, RealTime};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::Finish;
use crate::context::SeriesKey;

/// A request that waits to be computed.
pub(crate) struct Job {
    pub(crate) product: Product,
    pub(crate) keys: Vec<SeriesKey>,
    pub(crate) deadline: Option<RealTime>,
    pub(crate) finish: Box<dyn Finish>,
}

impl Job {
    fn rows(&self) -> usize {
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
    },
    /// The server is stopping.
    Closed,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    rows: usize,
    closed: bool,
}

/// First in, first out; bounded by rows.
pub(crate) struct RowQueue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    most_rows: usize,
}

impl RowQueue {
    pub(crate) fn new(most_rows: usize) -> Self {
        Self { waiting: Mutex::default(), changed: Condvar::new(), most_rows }
    }

    fn locked(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows that wait.
    pub(crate) fn rows(&self) -> usize {
        self.locked().rows
    }

    /// Lets a job wait, unless the rows would be too many. A job that is larger than the whole queue is taken when
    /// nothing else waits, since it could never be otherwise.
    pub(crate) fn push(&self, job: Job) -> Result<(), QueueFull> {
        let mut waiting = self.locked();
        if waiting.closed {
            return Err(QueueFull::Closed);
        }
        let rows = waiting.rows.saturating_add(job.rows());
        if rows > self.most_rows && !waiting.jobs.is_empty() {
            return Err(QueueFull::Full { waiting: waiting.rows });
        }
        waiting.rows = rows;
        waiting.jobs.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for jobs and takes the oldest with all later ones of its product, as far as they fit into `batch_rows`;
    /// `None` once the queue is closed and empty.
    pub(crate) fn pop(&self, batch_rows: usize) -> Option<Vec<Job>> {
        let mut waiting = self.locked();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        let first = waiting.jobs.pop_front()?;
        let (product, mut rows) = (first.product, first.rows());
        let mut batch = vec![first];
        let mut left = VecDeque::with_capacity(waiting.jobs.len());
        while let Some(job) = waiting.jobs.pop_front() {
            if job.product == product && rows.saturating_add(job.rows()) <= batch_rows {
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
        Job { product, keys, deadline: None, finish: Box::new(Nobody(false)) }
    }

    #[test]
    fn s1_a_full_queue_refuses_at_once_and_counts_rows() {
        let queue = RowQueue::new(10);
        assert_eq!(queue.push(job(Product::NextHours, 6)), Ok(()));
        assert_eq!(queue.push(job(Product::NextHours, 4)), Ok(()));
        assert_eq!(queue.push(job(Product::NextHours, 1)), Err(QueueFull::Full { waiting: 10 }));
        assert_eq!(queue.pop(100).unwrap().len(), 2);
        assert_eq!(queue.push(job(Product::NextHours, 50)), Ok(()), "alone, a larger one is taken");
        assert_eq!(queue.push(job(Product::NextHours, 1)), Err(QueueFull::Full { waiting: 50 }));
    }

    #[test]
    fn one_product_is_taken_together_up_to_a_batch() {
        let queue = RowQueue::new(100);
        for (product, rows) in
            [(Product::NextHours, 3), (Product::NextDay, 2), (Product::NextHours, 4), (Product::NextHours, 9)]
        {
            queue.push(job(product, rows)).unwrap();
        }
        let rows = |batch: Vec<Job>| batch.iter().map(Job::rows).collect::<Vec<_>>();
        assert_eq!(rows(queue.pop(8).unwrap()), [3, 4]);
        assert_eq!(rows(queue.pop(8).unwrap()), [2]);
        assert_eq!(rows(queue.pop(8).unwrap()), [9], "a job larger than a batch goes alone");
    }

    #[test]
    fn closing_hands_out_what_waits_and_then_ends() {
        let queue = RowQueue::new(10);
        queue.push(job(Product::NextDay, 1)).unwrap();
        queue.close();
        assert_eq!(queue.push(job(Product::NextDay, 1)), Err(QueueFull::Closed));
        assert!(queue.pop(1).is_some());
        assert!(queue.pop(1).is_none());
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
