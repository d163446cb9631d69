//! Computing answers, away from the threads that talk to clients.
//!
//! Requests wait in a queue that is measured in rows (one row is the forecast of one series) and in time. A full queue, and
//! one that is worked off too slowly, refuses at once, so that a caller learns in microseconds that it must wait, and what
//! expired or was given up while it waited is never computed. Waiting requests of one product are computed together; a series that several of them want is computed once.

mod answer;
mod cache;
mod nodes;
mod pace;
mod queue;
mod slot;

pub(crate) use answer::{Bench, MAX_SCENARIO_VALUES, probability, risks, scenarios};
pub(crate) use cache::AnswerCache;
pub(crate) use nodes::{NodeQuestion, node_loads};
pub(crate) use slot::Slot;

use foreshard_domain::{Clock, Product, RealTime, SeriesForecast, Timestamp};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

use crate::context::SeriesKey;
use crate::metrics::BatchTimes;
use answer::forecasts;
pub(crate) use queue::QueueFull;
use queue::{Job, Now, QueueLimits, RowQueue};

/// How many requests went which way since the start.
#[derive(Debug, Default)]
pub struct EngineCounts {
    computed: AtomicU64,
    expired: AtomicU64,
    refused: AtomicU64,
}

impl EngineCounts {
    /// Requests that were answered.
    pub fn computed(&self) -> u64 {
        self.computed.load(Ordering::Relaxed)
    }

    /// Requests that expired or were given up while they waited, and were not computed.
    pub fn expired(&self) -> u64 {
        self.expired.load(Ordering::Relaxed)
    }

    /// Requests that a full queue refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// What a job does with its forecasts.
pub(crate) trait Finish: Send {
    /// Whether nobody waits for the answer any more.
    fn abandoned(&self) -> bool;
    /// Makes the answer and sends it.
    fn finish(self: Box<Self>, bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>);
}

struct Reply<T, F> {
    sender: oneshot::Sender<T>,
    make: F,
}

impl<T: Send, F: FnOnce(&Bench, Product, Vec<SeriesForecast>) -> T + Send> Finish for Reply<T, F> {
    fn abandoned(&self) -> bool {
        self.sender.is_closed()
    }

    fn finish(self: Box<Self>, bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>) {
        let answer = (self.make)(bench, product, forecasts);
        // A caller that left meanwhile wants no answer.
        _ = self.sender.send(answer);
    }
}

/// The threads that compute and the queue before them.
pub(crate) struct Engine {
    queue: Arc<RowQueue>,
    counts: Arc<EngineCounts>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    bench: Arc<Bench>,
}

/// How much an engine takes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineLimits {
    /// Rows that may wait.
    pub(crate) queue_rows: usize,
    /// How long a request may wait.
    pub(crate) queue_wait: Duration,
    /// Rows that are computed together.
    pub(crate) batch_rows: usize,
    /// Threads that compute.
    pub(crate) threads: usize,
}

impl Engine {
    /// Starts the threads.
    pub(crate) fn start(bench: &Arc<Bench>, limits: EngineLimits, times: &Arc<BatchTimes>) -> std::io::Result<Self> {
        let EngineLimits { queue_rows, queue_wait, batch_rows, threads: wanted } = limits;
        let limits = QueueLimits { rows: queue_rows, wait: queue_wait, batch_rows, threads: wanted.max(1) };
        let counts = Arc::new(EngineCounts::default());
        let queue = Arc::new(RowQueue::new(limits, Arc::clone(&counts)));
        let mut threads = Vec::new();
        for i in 0..limits.threads {
            let worker = Worker {
                queue: Arc::clone(&queue),
                counts: Arc::clone(&counts),
                bench: Arc::clone(bench),
                times: Arc::clone(times),
            };
            let thread = std::thread::Builder::new().name(format!("compute-{i}"));
            threads.push(thread.spawn(move || worker.run())?);
        }
        Ok(Self { queue, counts, threads: Mutex::new(threads), bench: Arc::clone(bench) })
    }

    /// Counts since the start.
    pub(crate) fn counts(&self) -> &EngineCounts {
        &self.counts
    }

    /// Rows that wait to be computed.
    pub(crate) fn waiting_rows(&self) -> usize {
        self.queue.rows()
    }

    /// Whether a request that came now would be taken.
    pub(crate) fn takes_more(&self) -> bool {
        self.queue.wait(now(self.bench.clock.as_ref())).is_some()
    }

    /// Whether there is a thread left that computes.
    pub(crate) fn computes(&self) -> bool {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        threads.iter().any(|thread| !thread.is_finished())
    }

    /// Queues the forecasts of `keys` from the last complete step, or from `origin` if it is named; `make` turns them into the answer on a compute thread. The receiver fails if the
    /// request expired, the engine stopped, or computing it went wrong.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        (product, origin): (Product, Option<Timestamp>),
        keys: Vec<SeriesKey>,
        deadline: Option<RealTime>,
        make: impl FnOnce(&Bench, Product, Vec<SeriesForecast>) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, QueueFull> {
        let (sender, receiver) = oneshot::channel();
        let now = now(self.bench.clock.as_ref());
        let job = Job { product, origin, keys, deadline, queued: now.steady, finish: Box::new(Reply { sender, make }) };
        match self.queue.push(job, now) {
            Ok(()) => Ok(receiver),
            Err(full) => {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
                Err(full)
            }
        }
    }

    /// Ends the threads once what waits is computed; blocks until they have ended.
    pub(crate) fn stop(&self) {
        self.queue.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a compute thread ended by a panic");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Threads that nobody joins end by themselves once the queue is closed.
        self.queue.close();
    }
}

fn now(clock: &dyn Clock) -> Now {
    Now { real: clock.real(), steady: clock.monotonic() }
}

struct Worker {
    queue: Arc<RowQueue>,
    counts: Arc<EngineCounts>,
    bench: Arc<Bench>,
    times: Arc<BatchTimes>,
}

impl Worker {
    fn run(&self) {
        while let Some(jobs) = self.queue.pop() {
            let start = self.now();
            let (live, late): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.wanted(start.real));
            self.counts.expired.fetch_add(late.len() as u64, Ordering::Relaxed);
            drop(late);
            live.iter().for_each(|job| self.times.waited(start.steady.saturating_sub(job.queued)));
            let computed = live.len() as u64;
            // Counted before the answers leave, so that whoever has one sees it counted.
            self.counts.computed.fetch_add(computed, Ordering::Relaxed);
            let rows = live.iter().map(Job::rows).sum();
            let ticket = self.queue.begin(rows, start);
            if catch_unwind(AssertUnwindSafe(|| self.compute(live))).is_err() {
                tracing::error!(requests = computed, "computing a batch panicked; its requests fail, others go on");
            }
            let took = self.queue.end(ticket, self.now());
            if rows > 0 {
                self.times.batch(rows, took);
            }
        }
    }

    fn now(&self) -> Now {
        now(self.bench.clock.as_ref())
    }

    fn compute(&self, jobs: Vec<Job>) {
        let Some((product, origin)) = jobs.first().map(|job| (job.product, job.origin)) else { return };
        let mut keys: Vec<SeriesKey> = jobs.iter().flat_map(|job| job.keys.iter().cloned()).collect();
        keys.sort();
        keys.dedup();
        let made = forecasts(&self.bench, (product, origin), &keys);
        self.times.made(&made);
        for job in jobs.into_iter().filter(|job| !job.finish.abandoned()) {
            let find = |key: &SeriesKey| keys.binary_search(key).ok().and_then(|i| made.get(i)).cloned();
            let own = job.keys.iter().filter_map(find).collect();
            job.finish.finish(&self.bench, product, own);
        }
    }
}

/// When a request that arrives now and may take `timeout` expires.
pub(crate) fn deadline(clock: &dyn Clock, timeout: Option<Duration>) -> Option<RealTime> {
    timeout.map(|timeout| clock.real().plus(timeout))
}
