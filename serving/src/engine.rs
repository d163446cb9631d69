//! Computing answers, away from the threads that talk to clients.
//!
//! Requests wait in a queue that is measured in rows (one row is the forecast of one series). A full queue refuses at once,
//! so that a caller learns in microseconds that it must wait, and what expired or was given up while it waited is never
//! computed. Waiting requests of one product are computed together; a series that several of them want is computed once.

mod answer;
mod queue;
mod slot;

pub(crate) use answer::{Bench, MAX_SCENARIO_VALUES, risks, scenarios};
pub(crate) use slot::Slot;

use foreshard_domain::{Clock, Product, RealTime, SeriesForecast};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

use crate::context::SeriesKey;
use answer::forecasts;
pub(crate) use queue::QueueFull;
use queue::{Job, RowQueue};

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
}

/// How much an engine takes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineLimits {
    /// Rows that may wait.
    pub(crate) queue_rows: usize,
    /// Rows that are computed together.
    pub(crate) batch_rows: usize,
    /// Threads that compute.
    pub(crate) threads: usize,
}

impl Engine {
    /// Starts the threads.
    pub(crate) fn start(bench: &Arc<Bench>, limits: EngineLimits) -> std::io::Result<Self> {
        let queue = Arc::new(RowQueue::new(limits.queue_rows));
        let counts = Arc::new(EngineCounts::default());
        let mut threads = Vec::new();
        for i in 0..limits.threads.max(1) {
            let worker = Worker { queue: Arc::clone(&queue), counts: Arc::clone(&counts), bench: Arc::clone(bench) };
            let thread = std::thread::Builder::new().name(format!("compute-{i}"));
            threads.push(thread.spawn(move || worker.run(limits.batch_rows))?);
        }
        Ok(Self { queue, counts, threads: Mutex::new(threads) })
    }

    /// Counts since the start.
    pub(crate) fn counts(&self) -> &EngineCounts {
        &self.counts
    }

    /// Rows that wait to be computed.
    pub(crate) fn waiting_rows(&self) -> usize {
        self.queue.rows()
    }

    /// Queues the forecasts of `keys`; `make` turns them into the answer on a compute thread. The receiver fails if the
    /// request expired, the engine stopped, or computing it went wrong.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        product: Product,
        keys: Vec<SeriesKey>,
        deadline: Option<RealTime>,
        make: impl FnOnce(&Bench, Product, Vec<SeriesForecast>) -> T + Send + 'static,
    ) -> Result<oneshot::Receiver<T>, QueueFull> {
        let (sender, receiver) = oneshot::channel();
        let job = Job { product, keys, deadline, finish: Box::new(Reply { sender, make }) };
        match self.queue.push(job) {
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

struct Worker {
    queue: Arc<RowQueue>,
    counts: Arc<EngineCounts>,
    bench: Arc<Bench>,
}

impl Worker {
    fn run(&self, batch_rows: usize) {
        while let Some(jobs) = self.queue.pop(batch_rows) {
            let now = self.bench.clock.real();
            let (live, late): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| job.wanted(now));
            self.counts.expired.fetch_add(late.len() as u64, Ordering::Relaxed);
            drop(late);
            let computed = live.len() as u64;
            // Counted before the answers leave, so that whoever has one sees it counted.
            self.counts.computed.fetch_add(computed, Ordering::Relaxed);
            if catch_unwind(AssertUnwindSafe(|| self.compute(live))).is_err() {
                tracing::error!(requests = computed, "computing a batch panicked; its requests fail, others go on");
            }
        }
    }

    fn compute(&self, jobs: Vec<Job>) {
        let Some(product) = jobs.first().map(|job| job.product) else { return };
        let mut keys: Vec<SeriesKey> = jobs.iter().flat_map(|job| job.keys.iter().cloned()).collect();
        keys.sort();
        keys.dedup();
        let made = forecasts(&self.bench, product, &keys);
        for job in jobs.into_iter().filter(|job| !job.finish.abandoned()) {
            let find = |key: &SeriesKey| keys.binary_search(key).ok().and_then(|i| made.get(i)).cloned();
            let own = job.keys.iter().filter_map(find).collect();
            job.finish.finish(&self.bench, product, own);
        }
    }
}

/// When a request that arrives now and may take `timeout` expires.
pub(crate) fn deadline(clock: &dyn Clock, timeout: Option<std::time::Duration>) -> Option<RealTime> {
    timeout.map(|timeout| clock.real().plus(timeout))
}
