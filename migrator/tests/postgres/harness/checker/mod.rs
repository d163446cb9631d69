//! Clients that write all the time and remember what they were acknowledged, and the comparison with a database.

mod client;
mod operation;
mod self_test;
mod verdict;

pub use operation::create_tables;
pub use verdict::Report;

use super::address::{Address, Session};
use client::{Memory, Worker};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// What the clients do and how patient they are.
#[derive(Debug, Clone)]
pub struct CheckerOptions {
    pub clients: usize,
    /// The number of the first client. Two checkers on one database need numbers apart.
    pub first_client: i32,
    /// Operations a second, of all clients together, one tenth of them reads.
    pub rate: f64,
    /// As many as were made with the tables.
    pub accounts: i32,
    /// Notes of each client.
    pub notes: i64,
    pub seed: u64,
    /// After so long without an answer a client gives its connection up and asks what became of its write.
    pub attempt_timeout: Duration,
    /// How long clients go on to find out what became of their writes after the checker is stopped.
    pub settle: Duration,
}

impl Default for CheckerOptions {
    fn default() -> Self {
        Self {
            clients: 8,
            first_client: 1,
            rate: 200.0,
            accounts: 50,
            notes: 20,
            seed: 1,
            attempt_timeout: Duration::from_secs(60),
            settle: Duration::from_secs(60),
        }
    }
}

/// Clients at work.
pub struct Checker {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<(i32, Memory)>>,
}

/// What the clients and their checker tell each other.
struct Shared {
    began: Instant,
    stopped: OnceLock<Instant>,
    stop: Notify,
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stopped.get().is_some()
    }

    async fn until_stopped(&self) {
        let notified = self.stop.notified();
        tokio::pin!(notified);
        notified.as_mut().enable(); // a stop between the look and the wait is not missed
        if !self.stopped() {
            notified.await;
        }
    }

    fn out_of_patience(&self, settle: Duration) -> bool {
        self.stopped.get().is_some_and(|stopped| stopped.elapsed() > settle)
    }
}

impl Checker {
    /// Starts the clients. They reach the database at `addresses`, each at the next one in turn, and go on to another
    /// when theirs fails.
    pub fn start(addresses: &[Address], options: &CheckerOptions) -> Self {
        assert!(!addresses.is_empty() && options.clients > 0 && options.accounts > 1 && options.rate > 0.0);
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stopped: OnceLock::new(),
            stop: Notify::new(),
            acknowledged: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        let worker = |nth| Worker::new(nth, addresses.to_vec(), options.clone(), Arc::clone(&shared));
        let clients = (0..options.clients).map(|nth| tokio::spawn(worker(nth).run())).collect();
        Self { shared, clients }
    }

    /// Time since the start: the time line of all samples and errors.
    pub fn elapsed(&self) -> Duration {
        self.shared.began.elapsed()
    }

    /// Writes acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::SeqCst)
    }

    /// Operations so far in which a client was shown an error; counted when they have ended.
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::SeqCst)
    }

    /// Waits until so many more writes are acknowledged.
    pub async fn acknowledges(&self, more: u64) {
        let goal = self.acknowledged() + more;
        let waits = async {
            while self.acknowledged() < goal {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = timeout(super::process::PATIENCE, waits).await;
        assert!(waited.is_ok(), "clients are acknowledged nothing: {} of {goal}", self.acknowledged());
    }

    /// Ends the clients once they know what became of their writes.
    pub async fn stop(mut self) -> History {
        let _ = self.shared.stopped.set(Instant::now());
        self.shared.stop.notify_waiters();
        let mut clients = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            clients.push(client.await.unwrap());
        }
        History { clients }
    }

    /// Ends the clients and compares what they were told with a database, by a connection of its own.
    pub async fn finish(self, database: &Address) -> Report {
        let history = self.stop().await;
        history.check(&database.connect().await.unwrap()).await
    }
}

/// Clients do not outlive a test that has failed.
impl Drop for Checker {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

/// What the clients of a checker did and were told.
pub struct History {
    clients: Vec<(i32, Memory)>,
}

impl History {
    /// Compares it with a database, which nobody else may be writing to: this is the truth for the accounts of all
    /// checkers that wrote to it, and for the other tables of this one.
    pub async fn check(&self, session: &Session) -> Report {
        verdict::check(&self.clients, session).await
    }
}
