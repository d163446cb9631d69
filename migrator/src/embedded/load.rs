//! What shards and nodes did since they were last looked at, and what that is in units of load.

use foreshard_domain::{NodeId, Observation, ShardId, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What one operation takes from its node. An operation may stand for many of the modelled system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Units of service; a node has a fixed number of them a real second.
    pub service: f64,
    /// I/O operations.
    pub io: f64,
    /// Transactions.
    pub transactions: f64,
}

impl Default for Cost {
    /// One of each.
    fn default() -> Self {
        Self { service: 1.0, io: 1.0, transactions: 1.0 }
    }
}

/// From what happens in real time on this machine to the load that it stands for. Rates count by *real* seconds: a
/// demonstration that runs a day in a minute still fills a node by what it does in each of its own seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadScale {
    /// CPU load of one unit of service a real second (100 = all CPU of a reference node).
    pub cpu: f64,
    /// I/O operations per second that one of [`Cost::io`] a real second stands for.
    pub io: f64,
    /// Transactions per second that one of [`Cost::transactions`] a real second stands for.
    pub transactions: f64,
    /// Bytes that one stored byte stands for.
    pub data: f64,
    /// Bytes written per second that one byte written a real second stands for.
    pub written: f64,
    /// Memory load of one GiB of data (after `data`); 100 = all memory of a reference node.
    pub memory_per_gib: f64,
}

impl Default for LoadScale {
    /// Everything stands for itself; a reference node serves 1000 units a second and is full with 64 GiB.
    fn default() -> Self {
        Self { cpu: 0.1, io: 1.0, transactions: 1.0, data: 1.0, written: 1.0, memory_per_gib: 100.0 / 64.0 }
    }
}

impl LoadScale {
    /// Units of service a real second that a node must have so that it is full at a CPU load of `capacity`.
    pub fn service_capacity(&self, capacity: f64) -> f64 {
        capacity / self.cpu
    }
}

/// What has happened since the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Tally {
    pub service: f64,
    pub io: f64,
    pub transactions: f64,
    pub bytes_written: f64,
    pub latency_ms: f64,
    pub operations: u64,
}

#[derive(Debug, Default)]
struct Tallies {
    since: Timestamp,
    shards: BTreeMap<ShardId, Tally>,
    nodes: BTreeMap<NodeId, Tally>,
    scales: BTreeMap<ShardId, LoadScale>,
}

/// All tallies of an engine.
#[derive(Debug)]
pub(super) struct Ledger {
    scale: LoadScale,
    tallies: Mutex<Tallies>,
}

/// What the ledger cannot know of a shard.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Held {
    pub node: Option<NodeId>,
    pub bytes: u64,
}

impl Ledger {
    pub fn new(scale: LoadScale, since: Timestamp) -> Self {
        Self { scale, tallies: Mutex::new(Tallies { since, ..Tallies::default() }) }
    }

    fn tallies(&self) -> MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A scale of its own for a shard.
    pub fn set_scale(&self, shard: ShardId, scale: LoadScale) {
        self.tallies().scales.insert(shard, scale);
    }

    /// An operation that its node has served, whether it was accepted or not: the node has done the work.
    pub fn served(&self, shard: &ShardId, cost: Cost) {
        let mut tallies = self.tallies();
        let tally = tallies.shards.entry(shard.clone()).or_default();
        tally.service += cost.service;
        tally.io += cost.io;
    }

    /// An operation that was answered.
    pub fn answered(&self, shard: &ShardId, cost: Cost, bytes_written: usize, latency: Duration) {
        let mut tallies = self.tallies();
        let tally = tallies.shards.entry(shard.clone()).or_default();
        tally.transactions += cost.transactions;
        tally.bytes_written += bytes_written as f64;
        tally.latency_ms += latency.as_secs_f64() * 1000.0;
        tally.operations += 1;
    }

    /// Work that a node did for moves.
    pub fn worked(&self, node: &NodeId, service: f64, io: f64) {
        let mut tallies = self.tallies();
        let tally = tallies.nodes.entry(node.clone()).or_default();
        tally.service += service;
        tally.io += io;
    }

    /// Rows of load since the last call, each shard of `held` and each node's residual, named by the time of that call;
    /// none if no time has passed.
    /// `real` converts model milliseconds into real time.
    pub fn observe(
        &self,
        held: &BTreeMap<ShardId, Held>,
        nodes: &[NodeId],
        now: Timestamp,
        real: impl Fn(i64) -> Duration,
    ) -> Vec<Observation> {
        let mut tallies = self.tallies();
        let seconds = real(now.since_ms(tallies.since)).as_secs_f64();
        if seconds <= 0.0 {
            return Vec::new();
        }
        // A row bears the time at which what it sums began, as the bins of a history do.
        let from = std::mem::replace(&mut tallies.since, now);
        let done = std::mem::take(&mut tallies.shards);
        let worked = std::mem::take(&mut tallies.nodes);
        let mut rows = Vec::with_capacity(held.len() + nodes.len());
        for (shard, held) in held {
            let scale = tallies.scales.get(shard).unwrap_or(&self.scale);
            let tally = done.get(shard).copied().unwrap_or_default();
            rows.push(row(shard.clone(), held, &tally, scale, from, seconds));
        }
        for node in nodes {
            let tally = worked.get(node).copied().unwrap_or_default();
            let mut row = Observation::empty(ShardId::residual(node), from);
            row.node = Some(node.clone());
            row.cpu_util = Some(tally.service / seconds * self.scale.cpu);
            row.mem_util = Some(0.0);
            row.io_ops = Some(tally.io / seconds * self.scale.io);
            rows.push(row);
        }
        rows
    }
}

fn row(shard: ShardId, held: &Held, tally: &Tally, scale: &LoadScale, from: Timestamp, seconds: f64) -> Observation {
    let data_bytes = held.bytes as f64 * scale.data;
    Observation {
        shard,
        node: held.node.clone(),
        ts: from,
        cpu_util: Some(tally.service / seconds * scale.cpu),
        mem_util: Some(data_bytes / f64::from(1 << 30) * scale.memory_per_gib),
        io_ops: Some(tally.io / seconds * scale.io),
        latency_ms: (tally.operations > 0).then(|| tally.latency_ms / tally.operations as f64),
        txn_rate: Some(tally.transactions / seconds * scale.transactions),
        data_bytes: Some(data_bytes),
        write_bytes_per_s: Some(tally.bytes_written / seconds * scale.written),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_by_real_seconds_and_since_the_last_look() {
        let (shard, node) = (ShardId::new("s").unwrap(), NodeId::new("n").unwrap());
        let scale = LoadScale { data: 1024.0, ..LoadScale::default() };
        let ledger = Ledger::new(scale, Timestamp::from_ms(0));
        let cost = Cost { service: 5.0, io: 2.0, transactions: 3.0 };
        for _ in 0..100 {
            ledger.served(&shard, cost);
            ledger.answered(&shard, cost, 10, Duration::from_millis(4));
        }
        ledger.worked(&node, 50.0, 1.0);
        let held = BTreeMap::from([(shard.clone(), Held { node: Some(node.clone()), bytes: 1 << 20 })]);
        // Model time runs 600 times as fast: five minutes are half a second.
        let real = |ms: i64| Duration::from_micros(u64::try_from(ms).unwrap() * 1000 / 600);
        let look = |ms| ledger.observe(&held, std::slice::from_ref(&node), Timestamp::from_ms(ms), real);
        assert!(look(0).is_empty(), "no time has passed");
        let rows = look(300_000);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].ts, Timestamp::from_ms(0), "named by where it begins");
        assert!((rows[0].cpu_util.unwrap() - 100.0).abs() < 1e-9, "500 units in half a second: a full node");
        assert!((rows[0].txn_rate.unwrap() - 600.0).abs() < 1e-9);
        assert!((rows[0].mem_util.unwrap() - 100.0 / 64.0).abs() < 1e-9);
        assert_eq!((rows[0].latency_ms, rows[0].write_bytes_per_s), (Some(4.0), Some(2000.0)));
        assert_eq!(rows[1].shard.residual_node(), Some(node.clone()));
        assert!((rows[1].cpu_util.unwrap() - 10.0).abs() < 1e-9);
        let rows = look(600_000);
        assert_eq!((rows[0].cpu_util, rows[0].latency_ms), (Some(0.0), None), "what was told is not told again");
    }
}
