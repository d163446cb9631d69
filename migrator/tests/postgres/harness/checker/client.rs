//! One client of the checker: does what is due, repeats what failed, and remembers what it was told.

use super::operation::{Attempt, Change, Note, Operation, asks_to_repeat, in_words, read_note};
use super::{CheckerOptions, Shared};
use crate::harness::address::{Address, Session};
use crate::harness::latency::Sample;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::Error;

/// Numbers of writes and notes of one client.
pub const IDS_PER_CLIENT: i64 = 1_000_000_000;

/// All that one client saw.
#[derive(Debug, Default)]
pub struct Memory {
    pub acknowledged: Vec<Operation>,
    /// Still of unknown outcome when the checker's patience ended.
    pub undecided: Vec<Operation>,
    /// Numbers given to writes so far, those included that were refused for good.
    pub issued: i64,
    /// The client's notes as it was last acknowledged.
    pub notes: BTreeMap<i64, Note>,
    pub reads: usize,
    pub samples: Vec<Sample>,
    /// Errors that the client was shown: since the start, and what it said.
    pub errors: Vec<(Duration, String)>,
    pub failed: usize,
    pub retried: usize,
    pub unknown_resolved: usize,
    /// Answers that cannot be.
    pub wrong: Vec<String>,
}

pub struct Worker {
    me: i32,
    addresses: Vec<Address>,
    /// Which of the addresses it uses now.
    at: usize,
    session: Option<Session>,
    options: CheckerOptions,
    shared: Arc<Shared>,
    random: ChaCha8Rng,
    memory: Memory,
}

/// How an operation ended for its client.
enum End {
    Acknowledged,
    /// Without effect.
    Without,
    Undecided,
}

impl Worker {
    pub fn new(nth: usize, addresses: Vec<Address>, options: CheckerOptions, shared: Arc<Shared>) -> Self {
        let me = options.first_client + i32::try_from(nth).unwrap();
        let random = ChaCha8Rng::seed_from_u64(options.seed ^ u64::try_from(me).unwrap());
        let at = nth % addresses.len();
        Self { me, addresses, at, session: None, options, shared, random, memory: Memory::default() }
    }

    /// Works until the checker is stopped.
    pub async fn run(mut self) -> (i32, Memory) {
        let interval = Duration::from_secs_f64(self.options.clients as f64 / self.options.rate);
        let mut due = self.shared.began + interval.mul_f64(self.random.random());
        while !self.shared.stopped() {
            tokio::select! {
                () = sleep_until(due) => {}
                () = self.shared.until_stopped() => break,
            }
            let began = Instant::now();
            let done = if self.random.random_ratio(1, 10) { self.read().await } else { self.write().await };
            if done {
                let took = began.elapsed();
                let [due, began] = [due, began].map(|time| time.duration_since(self.shared.began));
                self.memory.samples.push(Sample { due, began, took });
            }
            due += interval;
        }
        (self.me, self.memory)
    }

    /// One write up to its end; whether it was acknowledged.
    async fn write(&mut self) -> bool {
        let operation = self.next_operation();
        match self.perform(&operation).await {
            End::Acknowledged => {
                if let Change::Note { note, after, .. } = &operation.change {
                    match after {
                        Some(after) => drop(self.memory.notes.insert(*note, after.clone())),
                        None => drop(self.memory.notes.remove(note)),
                    }
                }
                self.memory.acknowledged.push(operation);
                self.shared.acknowledged.fetch_add(1, Ordering::SeqCst);
                true
            }
            End::Without => false,
            End::Undecided => {
                self.memory.undecided.push(operation);
                false
            }
        }
    }

    fn next_operation(&mut self) -> Operation {
        self.memory.issued += 1;
        let id = i64::from(self.me) * IDS_PER_CLIENT + self.memory.issued;
        let accounts = self.options.accounts;
        let account = self.random.random_range(0..accounts);
        let amount = self.random.random_range(1..1_000);
        let change = match self.random.random_range(0..10) {
            0..4 => Change::Deposit { account, amount },
            4..7 => {
                let to = (account + self.random.random_range(1..accounts)) % accounts;
                Change::Transfer { from: account, to, amount }
            }
            _ => self.next_note(),
        };
        Operation { id, client: self.me, change }
    }

    fn next_note(&mut self) -> Change {
        let note = self.pick_note();
        let before = self.memory.notes.get(&note).cloned();
        if before.is_some() && self.random.random_ratio(1, 4) {
            return Change::Note { note, before, after: None };
        }
        let version = i32::try_from(self.memory.issued).unwrap();
        let body = match self.random.random_range(0..4) {
            0 => None,
            1 => Some(String::new()),
            n => Some(format!("\\N\t'{}'\n\"ž\" ", self.memory.issued).repeat(n * 10)),
        };
        Change::Note { note, before, after: Some(Note { body, version }) }
    }

    fn pick_note(&mut self) -> i64 {
        i64::from(self.me) * IDS_PER_CLIENT + self.random.random_range(0..self.options.notes)
    }

    async fn perform(&mut self, operation: &Operation) -> End {
        let (mut failed, mut retried, mut unknown) = (false, false, false);
        let mut pause = Duration::from_millis(10);
        let end = loop {
            match self.attempt(operation).await {
                Attempt::Acknowledged => break End::Acknowledged,
                Attempt::Already if unknown => break End::Acknowledged,
                Attempt::Already => {
                    self.memory.wrong.push(format!("the number of {operation:?} was taken before it was sent"));
                    break End::Without;
                }
                Attempt::Wrong(said) => {
                    self.memory.wrong.push(said);
                    break End::Without;
                }
                Attempt::Refused(error) if asks_to_repeat(&error) => retried = true,
                Attempt::Refused(error) => {
                    failed = true;
                    self.saw(in_words(&error));
                }
                Attempt::Unknown(said) => {
                    (failed, unknown) = (true, true);
                    self.saw(said);
                }
            }
            self.leave();
            // The number is unique: an attempt that is still on its way cannot take effect beside a repeat. The search
            // only spares the repeat.
            if unknown && self.took_effect(operation).await == Some(true) {
                break End::Acknowledged;
            }
            if self.shared.out_of_patience(self.options.settle) {
                break if unknown { End::Undecided } else { End::Without };
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        };
        self.memory.failed += usize::from(failed);
        self.memory.retried += usize::from(retried);
        self.memory.unknown_resolved += usize::from(unknown && !matches!(end, End::Undecided));
        self.shared.failed.fetch_add(u64::from(failed), Ordering::SeqCst);
        end
    }

    async fn attempt(&mut self, operation: &Operation) -> Attempt {
        let patience = self.options.attempt_timeout;
        match self.connected().await {
            Err(Some(error)) => Attempt::Refused(error),
            Err(None) => Attempt::Unknown(format!("no connection after {patience:?}")),
            Ok(session) => match timeout(patience, operation.attempt(session)).await {
                Ok(attempt) => attempt,
                Err(_) => Attempt::Unknown(format!("no answer after {patience:?}")),
            },
        }
    }

    /// Looks for an operation of unknown outcome; none when there is no answer, which the client has seen enough of.
    async fn took_effect(&mut self, operation: &Operation) -> Option<bool> {
        let patience = self.options.attempt_timeout;
        let answer = match self.connected().await {
            Ok(session) => within(patience, operation.look_up(session)).await.ok(),
            Err(_) => None,
        };
        if answer.is_none() {
            self.leave();
        }
        answer
    }

    /// Reads a note of its own and compares it with the last that it was acknowledged; whether it was answered.
    async fn read(&mut self) -> bool {
        let note = self.pick_note();
        let mut failed = false;
        let answer = loop {
            match self.try_read(note).await {
                Ok(answer) => break Some(answer),
                Err(said) => {
                    failed = true;
                    self.saw(said);
                }
            }
            if self.shared.out_of_patience(self.options.settle) {
                break None;
            }
            sleep(Duration::from_millis(20)).await;
        };
        self.memory.failed += usize::from(failed);
        self.shared.failed.fetch_add(u64::from(failed), Ordering::SeqCst);
        let Some(answer) = answer else { return false };
        let expected = self.memory.notes.get(&note);
        if answer.as_ref() != expected {
            self.memory.wrong.push(format!("client {} reads {answer:?} after it wrote {expected:?}", self.me));
        }
        self.memory.reads += 1;
        true
    }

    async fn try_read(&mut self, note: i64) -> Result<Option<Note>, String> {
        let patience = self.options.attempt_timeout;
        let answer = match self.connected().await {
            Ok(session) => within(patience, read_note(session, note)).await,
            Err(None) => Err(format!("no connection after {patience:?}")),
            Err(Some(error)) => Err(in_words(&error)),
        };
        if answer.is_err() {
            self.leave();
        }
        answer
    }

    async fn connected(&mut self) -> Result<&Session, Option<Error>> {
        if self.session.is_none() {
            let connecting = timeout(self.options.attempt_timeout, self.addresses[self.at].connect()).await;
            self.session = Some(connecting.map_err(|_| None)?.map_err(Some)?);
        }
        self.session.as_ref().ok_or(None)
    }

    /// Drops its connection; the next is to the next address.
    fn leave(&mut self) {
        self.session = None;
        self.at = (self.at + 1) % self.addresses.len();
    }

    fn saw(&mut self, said: String) {
        self.memory.errors.push((self.shared.began.elapsed(), said));
    }
}

async fn within<T>(patience: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    match timeout(patience, answer).await {
        Ok(answer) => answer.map_err(|error| in_words(&error)),
        Err(_) => Err(format!("no answer after {patience:?}")),
    }
}
