//! Client tasks: real reads and writes that follow the modelled day.
//!
//! One dispatcher a shard turns the modelled demand of each minute into requests, spread over the minute and each bearing its
//! part of the minute's work, and hands them to client tasks whether or not earlier ones were answered: a slow node gets no
//! relief from its clients. Latency counts from the moment a request was wanted.

use foreshard_domain::{Clock, ShardId, Step, Timestamp};
use foreshard_migrator::embedded::{Cost, EmbeddedEngine, LoadScale, WriteError};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::clock::DayClock;
use super::latency::Sample;
use super::ledger::{KeyLedger, WriteId, append};
use super::scenario::{Scenario, loads};

/// Client tasks of each shard: more than ever wait at once but in deep overload.
const CLIENTS: usize = 24;
/// Keys of each client; no other client writes them.
const KEYS: usize = 2;
/// Requests that may wait for a client before further ones are given up.
const PATIENCE: usize = 32;
/// Requests a modelled minute of a shard at the mean of its history.
const MEAN_REQUESTS: f64 = 2.0;
/// Requests a modelled minute of a shard at least, so that a minute's work arrives in its minute and in small pieces.
const LEAST_REQUESTS: f64 = 2.0;
/// Requests a modelled minute of a shard at most: beyond it each one brings more work instead.
const MOST_REQUESTS: f64 = 8.0;
/// Share of writes.
const WRITES: f64 = 0.2;
/// Share of acknowledgements that are treated as lost on the way.
const REPEATED: f64 = 1.0 / 16.0;

/// What the clients of a day know when it is over.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Every key that was written, with what its client was told.
    pub keys: BTreeMap<(ShardId, Vec<u8>), KeyLedger>,
    /// Answered requests.
    pub samples: Vec<Sample>,
    /// Writes sent a second time on purpose.
    pub repeated: u64,
    /// Requests that were turned away or given up.
    pub refused: u64,
    /// Reads answered.
    pub reads: u64,
    /// Reads that missed an acknowledged write.
    pub stale: u64,
}

impl Traffic {
    fn absorb(&mut self, other: Traffic) {
        self.keys.extend(other.keys);
        self.samples.extend(other.samples);
        self.repeated += other.repeated;
        self.refused += other.refused;
        self.reads += other.reads;
        self.stale += other.stale;
    }
}

/// What the dispatchers and clients of a day share.
#[derive(Debug, Clone)]
pub struct Day {
    /// The engine under load.
    pub engine: Arc<EmbeddedEngine>,
    /// The demand.
    pub scenario: Arc<Scenario>,
    /// Time.
    pub clock: Arc<DayClock>,
    /// What a unit of work is in load.
    pub scale: LoadScale,
    /// End of the day.
    pub until: Timestamp,
    /// Seed of the order of reads and writes.
    pub seed: u64,
}

/// One request on its way to a client task.
#[derive(Debug)]
struct Request {
    asked_at: Timestamp,
    asked: Instant,
    cost: Cost,
    write: bool,
    repeat: bool,
}

/// Lives the day: returns when it is over and all requests are answered or given up.
///
/// # Errors
/// [`JoinError`] if a task died.
pub async fn live(day: &Day) -> Result<Traffic, JoinError> {
    let mut tasks = JoinSet::new();
    for index in 0..day.scenario.shards.len() {
        tasks.spawn(shard_day(day.clone(), index));
    }
    let mut all = Traffic::default();
    while let Some(traffic) = tasks.join_next().await {
        all.absorb(traffic??);
    }
    Ok(all)
}

/// The day of one shard: its dispatcher, here, and its clients.
async fn shard_day(day: Day, index: usize) -> Result<Traffic, JoinError> {
    let mut clients = JoinSet::new();
    let mut desks = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        let (desk, requests) = mpsc::channel(PATIENCE);
        let client = Client::new(&day, index, number);
        clients.spawn(client.serve(requests));
        desks.push(desk);
    }
    let given_up = dispatch(&day, index, &desks).await;
    drop(desks);
    let mut all = Traffic { refused: given_up, ..Traffic::default() };
    while let Some(traffic) = clients.join_next().await {
        all.absorb(traffic?);
    }
    Ok(all)
}

/// Sends the requests of every minute; returns how many were given up because no client was free to take them.
async fn dispatch(day: &Day, index: usize, desks: &[mpsc::Sender<Request>]) -> u64 {
    let mut rng = ChaCha8Rng::seed_from_u64(day.seed.wrapping_mul(1000).wrapping_add(index as u64));
    let mean_rate = mean_transactions(&day.scenario, index);
    let (mut given_up, mut sent, mut owed) = (0, 0u64, 0.0f64);
    let mut minute = day.scenario.day;
    while minute < day.until {
        let row = day.scenario.workload.at(index, Step::FIVE_MINUTES.floor(minute));
        let rate = row.txn_rate.unwrap_or(0.0) / mean_rate.max(1e-9);
        owed += (MEAN_REQUESTS * rate).clamp(0.0, MOST_REQUESTS);
        let requests = owed.floor().max(LEAST_REQUESTS);
        owed = (owed - requests).max(-LEAST_REQUESTS);
        let cost = share_of_minute(day, &row, requests);
        for i in 0..requests as i64 {
            let asked_at = minute.plus_ms((2 * i + 1) * Step::MINUTE.as_ms() / (2 * requests as i64));
            day.clock.reach(asked_at).await;
            sent += 1;
            let (write, repeat) = (rng.random_bool(WRITES), rng.random_bool(REPEATED));
            let request = Request { asked_at, asked: Instant::now(), cost, write, repeat };
            let turn = usize::try_from(sent).unwrap_or(0) % desks.len().max(1);
            let taken = desks.get(turn).is_some_and(|desk| desk.try_send(request).is_ok());
            given_up += u64::from(!taken);
        }
        minute = minute.plus_steps(1, Step::MINUTE);
    }
    given_up
}

/// Mean of the shard's transactions per second over the week before the day.
fn mean_transactions(scenario: &Scenario, index: usize) -> f64 {
    let hours = 7 * 24;
    let rate = |hour: i64| {
        let ts = scenario.day.plus_ms(-hour * 3_600_000);
        scenario.workload.at(index, ts).txn_rate.unwrap_or(0.0)
    };
    (1..=hours).map(rate).sum::<f64>() / hours as f64
}

/// What each of a minute's requests brings, so that together they are the modelled load of that minute.
fn share_of_minute(day: &Day, row: &foreshard_domain::Observation, requests: f64) -> Cost {
    let real_seconds = day.clock.real_duration(Step::MINUTE.as_ms()).as_secs_f64();
    let load = loads(row);
    let part = |amount: f64, scale: f64| amount * real_seconds / scale / requests;
    Cost {
        service: part(load.cpu, day.scale.cpu),
        io: part(load.io, day.scale.io),
        transactions: part(row.txn_rate.unwrap_or(0.0), day.scale.transactions),
    }
}

/// One client task: sole writer of its keys, one request after the other.
struct Client {
    engine: Arc<EmbeddedEngine>,
    shard: ShardId,
    prefix: WriteId,
    sent: u64,
    keys: Vec<Key>,
    traffic: Traffic,
}

/// A key and what its only writer believes it to hold.
struct Key {
    name: Vec<u8>,
    list: Vec<u8>,
    ledger: KeyLedger,
}

impl Client {
    fn new(day: &Day, index: usize, number: usize) -> Self {
        let shard = day.scenario.shards[index].clone();
        let key = |i: usize| Key {
            name: format!("client-{number:03}/{i}").into_bytes(),
            list: Vec::new(),
            ledger: KeyLedger::default(),
        };
        let prefix = (index as WriteId) << 96 | (number as WriteId) << 64;
        let keys = (0..KEYS).map(key).collect();
        Self { engine: Arc::clone(&day.engine), shard, prefix, sent: 0, keys, traffic: Traffic::default() }
    }

    async fn serve(mut self, mut requests: mpsc::Receiver<Request>) -> Traffic {
        let mut turn = 0;
        while let Some(request) = requests.recv().await {
            turn = (turn + 1) % self.keys.len().max(1);
            let answered =
                if request.write { self.write(turn, &request).await } else { self.read(turn, request.cost).await };
            if answered {
                let latency_ms = request.asked.elapsed().as_secs_f64() * 1000.0;
                let asked_at = request.asked_at;
                self.traffic.samples.push(Sample { shard: self.shard.clone(), asked_at, latency_ms });
            } else {
                self.traffic.refused += 1;
            }
        }
        let shard = self.shard;
        let keys = self.keys.into_iter().map(|key| ((shard.clone(), key.name), key.ledger));
        self.traffic.keys = keys.collect();
        self.traffic
    }

    /// Appends to a key's list; whether the store said that it is durable.
    async fn write(&mut self, turn: usize, request: &Request) -> bool {
        self.sent += 1;
        let id = self.prefix | WriteId::from(self.sent);
        let Some(key) = self.keys.get_mut(turn) else { return false };
        let value = append(&key.list, id);
        match self.engine.write(&self.shard, &key.name, Some(&value), id, request.cost).await {
            Ok(_) => {
                key.ledger.acknowledge(id);
                key.list = value;
                if request.repeat {
                    self.traffic.repeated += 1;
                    self.write_again(turn, id).await;
                }
                true
            }
            // Certainly not made.
            Err(WriteError::UnknownShard { .. } | WriteError::Busy { .. } | WriteError::Invalid { .. }) => false,
            Err(WriteError::Unknown { .. }) => {
                key.ledger.doubt(id);
                self.write_again(turn, id).await;
                false
            }
        }
    }

    /// What a client does that got no acknowledgement: looks what is there, and sends the same write again. It does not look
    /// whether its write is there already; to know that is the store's part.
    async fn write_again(&mut self, turn: usize, id: WriteId) {
        let Some(key) = self.keys.get_mut(turn) else { return };
        let free = Cost { service: 0.0, io: 0.0, transactions: 0.0 };
        let Ok(found) = self.engine.read(&self.shard, &key.name, free).await else { return };
        let value = append(found.as_deref().unwrap_or_default(), id);
        let repeated = self.engine.write(&self.shard, &key.name, Some(&value), id, free).await.is_ok();
        if repeated {
            key.ledger.acknowledge(id);
        }
        // Whatever came of it, what the store holds is what the next write builds on.
        if let Ok(now) = self.engine.read(&self.shard, &key.name, free).await {
            key.list = now.unwrap_or_default();
        }
    }

    /// Reads a key; whether an answer came. One that misses an acknowledged write is stale: nobody else writes this key.
    async fn read(&mut self, turn: usize, cost: Cost) -> bool {
        let Some(key) = self.keys.get(turn) else { return false };
        let Ok(value) = self.engine.read(&self.shard, &key.name, cost).await else { return false };
        self.traffic.reads += 1;
        self.traffic.stale += u64::from(key.ledger.compare(value.as_deref()).lost > 0);
        true
    }
}
