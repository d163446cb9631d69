//! Client tasks: real reads and writes that follow the modelled day.
//!
//! One dispatcher a shard turns the modelled demand of each minute into requests, spread over the minute and each bearing its
//! part of the minute's work, and hands them to client tasks whether or not earlier ones were answered: a slow node gets no
//! relief from its clients. Latency counts from the moment a request was wanted.

use foreshard_domain::{Clock, Epoch, ShardId, Step, Timestamp};
use foreshard_migrator::embedded::{Cost, EmbeddedEngine, LoadScale, WriteError};
use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::clock::DayClock;
use super::held::{Held, HeldBack};
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
const LOST: f64 = 1.0 / 8.0;
/// Share of those whose writes are sent again only after their shard has moved.
const HELD_BACK: f64 = 0.5;

/// What the clients of a day know when it is over.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Every key that was written, with what its client was told.
    pub keys: BTreeMap<(ShardId, Vec<u8>), KeyLedger>,
    /// Answered requests.
    pub samples: Vec<Sample>,
    /// Writes sent a second time on purpose.
    pub repeated: u64,
    /// Of those, sent again to another owner than the one that had acknowledged them.
    pub repeated_after_move: u64,
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
        self.repeated_after_move += other.repeated_after_move;
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
    /// How many of a shard's last writes the engine recognises when they are repeated.
    pub write_id_window: u64,
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
    again: Again,
}

/// When a write is sent a second time, as if its acknowledgement had been lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Never,
    AtOnce,
    AfterMove,
}

impl Again {
    fn draw(rng: &mut ChaCha8Rng) -> Self {
        match (rng.random_bool(LOST), rng.random_bool(HELD_BACK)) {
            (false, _) => Again::Never,
            (true, false) => Again::AtOnce,
            (true, true) => Again::AfterMove,
        }
    }
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
    let shard = SharedShard {
        engine: Arc::clone(&day.engine),
        shard: day.scenario.shards[index].clone(),
        sent: Arc::default(),
        write_id_window: day.write_id_window,
    };
    for number in 0..CLIENTS {
        let (desk, requests) = mpsc::channel(PATIENCE);
        let client = Client::new(shard.clone(), index, number);
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
            let (write, again) = (rng.random_bool(WRITES), Again::draw(&mut rng));
            let request = Request { asked_at, asked: Instant::now(), cost, write, again };
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

/// What the clients of one shard share.
#[derive(Debug, Clone)]
struct SharedShard {
    engine: Arc<EmbeddedEngine>,
    shard: ShardId,
    /// Writes that any of them has sent.
    sent: Arc<AtomicU64>,
    write_id_window: u64,
}

impl SharedShard {
    /// The epoch of the owner that clients are sent to; `None` while that is being found out.
    fn epoch(&self) -> Option<Epoch> {
        self.engine.owners().remove(&self.shard).flatten().map(|owner| owner.epoch)
    }
}

/// One client task: sole writer of its keys, one request after the other.
struct Client {
    shared: SharedShard,
    prefix: WriteId,
    sent: u64,
    keys: Vec<Key>,
    held: HeldBack,
    traffic: Traffic,
}

/// A key and what its only writer believes it to hold.
struct Key {
    name: Vec<u8>,
    list: Vec<u8>,
    ledger: KeyLedger,
}

impl Client {
    fn new(shared: SharedShard, index: usize, number: usize) -> Self {
        let key = |i: usize| Key {
            name: format!("client-{number:03}/{i}").into_bytes(),
            list: Vec::new(),
            ledger: KeyLedger::default(),
        };
        let prefix = (index as WriteId) << 96 | (number as WriteId) << 64;
        let keys = (0..KEYS).map(key).collect();
        let held = HeldBack::new(shared.write_id_window);
        Self { shared, prefix, sent: 0, keys, held, traffic: Traffic::default() }
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
                self.traffic.samples.push(Sample { shard: self.shared.shard.clone(), asked_at, latency_ms });
            } else {
                self.traffic.refused += 1;
            }
            if !self.held.is_empty() {
                let due = self.held.due(self.shared.epoch(), self.shared.sent.load(Ordering::Relaxed));
                self.repeat(due).await;
            }
        }
        let rest = self.held.rest();
        self.repeat(rest).await;
        let shard = self.shared.shard;
        let keys = self.keys.into_iter().map(|key| ((shard.clone(), key.name), key.ledger));
        self.traffic.keys = keys.collect();
        self.traffic
    }

    /// Appends to a key's list; whether the store said that it is durable.
    async fn write(&mut self, turn: usize, request: &Request) -> bool {
        self.sent += 1;
        let sent_before = self.shared.sent.fetch_add(1, Ordering::Relaxed);
        let id = self.prefix | WriteId::from(self.sent);
        let Some(key) = self.keys.get_mut(turn) else { return false };
        let value = append(&key.list, id);
        let SharedShard { engine, shard, .. } = &self.shared;
        match engine.write(shard, &key.name, Some(&value), id, request.cost).await {
            Ok(epoch) => {
                key.ledger.acknowledge(id);
                key.list = value;
                let write = Held { turn, id, epoch, sent_before };
                match request.again {
                    Again::Never => {}
                    Again::AtOnce => self.repeat(vec![write]).await,
                    Again::AfterMove => self.held.hold(write),
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

    /// Sends writes a second time that were acknowledged.
    async fn repeat(&mut self, writes: Vec<Held>) {
        for Held { turn, id, epoch, .. } in writes {
            self.traffic.repeated += 1;
            let answered = self.write_again(turn, id).await;
            self.traffic.repeated_after_move += u64::from(answered.is_some_and(|now| now > epoch));
        }
    }

    /// What a client does that got no acknowledgement: looks what is there, and sends the same write again. It does not look
    /// whether its write is there already; to know that is the store's part. Returns the epoch in which it was acknowledged.
    async fn write_again(&mut self, turn: usize, id: WriteId) -> Option<Epoch> {
        let key = self.keys.get_mut(turn)?;
        let SharedShard { engine, shard, .. } = &self.shared;
        let free = Cost { service: 0.0, io: 0.0, transactions: 0.0 };
        let found = engine.read(shard, &key.name, free).await.ok()?;
        let value = append(found.as_deref().unwrap_or_default(), id);
        let repeated = engine.write(shard, &key.name, Some(&value), id, free).await.ok();
        if repeated.is_some() {
            key.ledger.acknowledge(id);
        }
        // Whatever came of it, what the store holds is what the next write builds on.
        if let Ok(now) = engine.read(shard, &key.name, free).await {
            key.list = now.unwrap_or_default();
        }
        repeated
    }

    /// Reads a key; whether an answer came. One that misses an acknowledged write is stale: nobody else writes this key.
    async fn read(&mut self, turn: usize, cost: Cost) -> bool {
        let Some(key) = self.keys.get(turn) else { return false };
        let SharedShard { engine, shard, .. } = &self.shared;
        let Ok(value) = engine.read(shard, &key.name, cost).await else { return false };
        self.traffic.reads += 1;
        self.traffic.stale += u64::from(key.ledger.compare(value.as_deref()).lost > 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{NodeId, SystemClock};
    use foreshard_migrator::embedded::{EngineSettings, MemoryStore};

    /// One client that writes each of its keys ten times, with all repetitions held back to the end; what its ledgers say.
    async fn written_by(store_remembers: u64, client_believes: u64) -> (Traffic, u64) {
        let (node, shard) = (NodeId::new("n").unwrap(), ShardId::new("s").unwrap());
        let settings = EngineSettings { write_id_window: store_remembers, ..EngineSettings::default() };
        let nodes = vec![(node.clone(), Arc::new(MemoryStore::default()) as Arc<_>, f64::INFINITY)];
        let engine = Arc::new(EmbeddedEngine::new(nodes, Arc::new(SystemClock), settings).unwrap());
        engine.create_shard(&shard, &node, Epoch(1)).await.unwrap();
        let (sent, write_id_window) = (Arc::default(), client_believes);
        let shared = SharedShard { engine: Arc::clone(&engine), shard, sent, write_id_window };
        let (desk, requests) = mpsc::channel(64);
        let cost = Cost { service: 0.0, io: 0.0, transactions: 0.0 };
        for _ in 0..10 * KEYS {
            let (asked_at, asked) = (Timestamp::from_ms(0), Instant::now());
            desk.send(Request { asked_at, asked, cost, write: true, again: Again::AfterMove }).await.unwrap();
        }
        drop(desk);
        let traffic = Client::new(shared, 0, 0).serve(requests).await;
        let mut doubled = 0;
        for ((shard, key), ledger) in &traffic.keys {
            doubled += ledger.compare(engine.get(shard, key).await.unwrap().as_deref()).doubled;
        }
        (traffic, doubled)
    }

    #[tokio::test]
    async fn m1_a_store_that_forgets_ids_is_caught_by_writes_that_were_held_back() {
        let (traffic, doubled) = written_by(4096, 4096).await;
        assert_eq!((traffic.repeated, traffic.repeated_after_move, traffic.refused, doubled), (20, 0, 0, 0));
        let (traffic, doubled) = written_by(1, 4096).await;
        assert!(traffic.repeated == 20 && doubled > 0, "{doubled} doubled");
    }

    #[tokio::test]
    async fn writes_are_not_held_back_for_longer_than_the_store_remembers_them() {
        let (traffic, doubled) = written_by(8, 8).await;
        assert_eq!((traffic.repeated, doubled), (20, 0));
    }
}
