//! From two samples of a server to rows of load: who took how much of what the node gave.
//!
//! What is known of a whole node only is split among its databases by what is known of each:
//!
//! - **CPU**: time of processes that serve clients, by `active_time`. Time of all others (checkpointer, log writer,
//!   autovacuum, walsenders, the server itself) belongs to the residual. Processes that came and went between two
//!   samples count as serving.
//! - **I/O**: blocks read and temporary blocks (each written and read once) are counted by database; blocks of data
//!   written and writes of the log are split by changed rows. A block read may come from the operating system's cache.
//! - **Memory**: private memory of serving processes by their database; shared memory by buffers held where
//!   `pg_buffercache` is installed in the maintenance database, else by stored bytes.
//! - **Bytes written**: bytes of log, by changed rows; large rows count too little and small ones too much.
//!
//! Shards and residual sum up to the node. What cannot be told is absent: a reset of one database's counters hides its
//! share, and with it those of all others.

use foreshard_domain::{NodeId, Observation, ShardId};
use std::collections::{BTreeMap, BTreeSet};

use super::machine::Usage;
use super::sample::{Counters, Database, Sample};
use crate::postgres::settings::Machine;

/// What a database did between two samples.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Done {
    transactions: f64,
    /// I/O operations that are its own.
    io: f64,
    rows_changed: f64,
    active_ms: f64,
}

/// Load of a node, or of a part of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Load {
    /// 100 = all CPU of a reference node.
    pub cpu: Option<f64>,
    /// 100 = all memory of a reference node.
    pub memory: Option<f64>,
    /// I/O operations per second.
    pub io: Option<f64>,
}

/// Rows of `shards` that were on `node` all the time from one sample to the other, and of the node's residual: all that the
/// node did for nobody of them. None if no time has passed.
pub(super) fn account(
    node: &NodeId,
    before: &Sample,
    after: &Sample,
    shards: &BTreeSet<ShardId>,
    machine: &Machine,
) -> Vec<Observation> {
    let Some(interval) = Interval::new(before, after, machine) else { return Vec::new() };
    let whole = interval.load();
    let mut rest = whole;
    let mut rows = Vec::new();
    for (oid, database) in &after.databases {
        let same = before.databases.get(oid).filter(|earlier| earlier.name == database.name);
        let shard = database.name.as_deref().and_then(|name| shards.iter().find(|shard| shard.as_str() == name));
        let (Some(_), Some(shard)) = (same, shard) else { continue };
        let part = interval.part(*oid);
        rest = rest.less(&part);
        let done = interval.done.get(oid).copied().flatten();
        let mut row = row(shard.clone(), node, before, &part);
        row.write_bytes_per_s = interval.written(*oid);
        row.data_bytes = after.sizes.bytes.get(oid).copied();
        row.txn_rate = done.map(|done| done.transactions / interval.seconds);
        let busy = done.filter(|done| done.transactions > 0.0);
        row.latency_ms = busy.map(|done| done.active_ms / done.transactions);
        rows.push(row);
    }
    rows.push(row(ShardId::residual(node), node, before, &rest));
    rows
}

/// A row bears the time at which what it sums began, as the bins of a history do.
fn row(shard: ShardId, node: &NodeId, before: &Sample, load: &Load) -> Observation {
    let mut row = Observation::empty(shard, before.ts);
    row.node = Some(node.clone());
    (row.cpu_util, row.mem_util, row.io_ops) = (load.cpu, load.memory, load.io);
    row
}

impl Load {
    /// What is left of it; rounding must not make it negative.
    fn less(self, part: &Load) -> Load {
        let less = |whole: Option<f64>, part: Option<f64>| Some((whole? - part?).max(0.0));
        Load { cpu: less(self.cpu, part.cpu), memory: less(self.memory, part.memory), io: less(self.io, part.io) }
    }
}

/// The time between two samples.
struct Interval<'a> {
    after: &'a Sample,
    seconds: f64,
    /// What each database did; `None` where its counters were reset.
    done: BTreeMap<u32, Option<Done>>,
    /// Sums of all databases; `None` unless all are known.
    sum: Option<Done>,
    /// CPU load of the node, and of its processes that serve.
    cpu: Option<(f64, f64)>,
    /// Blocks of data written and writes of the log.
    writes: Option<f64>,
    log_bytes: Option<f64>,
    /// Memory load of one byte.
    per_byte: Option<f64>,
}

impl<'a> Interval<'a> {
    fn new(before: &Sample, after: &'a Sample, machine: &Machine) -> Option<Self> {
        let seconds = after.at.since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return None;
        }
        let same_era = before.era == after.era;
        let done: BTreeMap<_, _> = after
            .databases
            .iter()
            .map(|(oid, database)| {
                let done = done(before.databases.get(oid), database, seconds).filter(|_| same_era);
                (*oid, done)
            })
            .collect();
        let known: Option<Vec<Done>> = done.values().copied().collect();
        let sum = known.map(|known| known.iter().fold(Done::NONE, Done::plus));
        let grown = |before: f64, after: f64| (same_era && after >= before).then_some(after - before);
        let per_byte = after.usage.as_ref().and_then(|usage| {
            let whole = positive(machine.memory_bytes).or(positive(Some(usage.memory_bytes)))?;
            Some(100.0 / whole)
        });
        Some(Self {
            after,
            seconds,
            done,
            sum,
            cpu: cpu(before, after, seconds, machine),
            writes: grown(before.writes as f64, after.writes as f64),
            log_bytes: grown(before.log_bytes, after.log_bytes),
            per_byte,
        })
    }

    /// The node's load. What could not be split is left out: the residual would have to bear what is the shards'.
    fn load(&self) -> Load {
        Load {
            cpu: self.sum.and(self.cpu).map(|(node, _)| node),
            memory: self.per_byte.and_then(|per_byte| Some(memory(self.after)? * per_byte)),
            io: self.sum.and_then(|sum| Some((sum.io + self.writes?) / self.seconds)),
        }
    }

    /// The part of it that is one database's.
    fn part(&self, oid: u32) -> Load {
        let serving = self.cpu.map(|(_, serving)| serving);
        let own = self.done.get(&oid).copied().flatten().map(|done| done.io);
        let writes = self.share(oid, self.writes, |done| done.rows_changed);
        Load {
            cpu: self.share(oid, serving, |done| done.active_ms),
            memory: self.per_byte.and_then(|per_byte| Some(memory_of(self.after, oid)? * per_byte)),
            io: own.zip(writes).map(|(own, writes)| (own + writes) / self.seconds),
        }
    }

    /// Bytes per second that one database writes.
    fn written(&self, oid: u32) -> Option<f64> {
        self.share(oid, self.log_bytes, |done| done.rows_changed).map(|bytes| bytes / self.seconds)
    }

    /// The part of something of the whole node that is one database's.
    fn share(&self, oid: u32, whole: Option<f64>, by: fn(&Done) -> f64) -> Option<f64> {
        let done = self.done.get(&oid).copied().flatten()?;
        Some(whole? * ratio(by(&done), by(&self.sum?)))
    }
}

impl Done {
    const NONE: Done = Done { transactions: 0.0, io: 0.0, rows_changed: 0.0, active_ms: 0.0 };

    fn plus(self, other: &Done) -> Done {
        Done {
            transactions: self.transactions + other.transactions,
            io: self.io + other.io,
            rows_changed: self.rows_changed + other.rows_changed,
            active_ms: self.active_ms + other.active_ms,
        }
    }
}

/// What a database did, `None` if its counters were reset. One that was not there before began at zero.
fn done(before: Option<&Database>, after: &Database, seconds: f64) -> Option<Done> {
    let none = Database { reset: after.reset, ..Database::default() };
    let before = before.unwrap_or(&none);
    let (b, a) = (&before.counters, &after.counters);
    if before.reset != after.reset || fell(b, a) {
        return None;
    }
    let grown = |before: u64, after: u64| after.saturating_sub(before) as f64;
    // Statements are counted when they, or their transactions, end: what they have run so far is known of those that run.
    // An open transaction hides its earlier statements until it ends; then they come all at once, and no session can have
    // been active for longer than there was time.
    let sessions = before.backends.max(after.backends) as f64 + grown(b.sessions, a.sessions);
    let active = a.active_ms + after.running_ms - b.active_ms - before.running_ms;
    Some(Done {
        transactions: grown(b.transactions, a.transactions),
        io: grown(b.blocks_read, a.blocks_read) + 2.0 * grown(b.temporary_blocks, a.temporary_blocks),
        rows_changed: grown(b.rows_changed, a.rows_changed),
        active_ms: active.clamp(0.0, sessions.max(1.0) * seconds * 1000.0),
    })
}

fn fell(before: &Counters, after: &Counters) -> bool {
    after.transactions < before.transactions
        || after.blocks_read < before.blocks_read
        || after.temporary_blocks < before.temporary_blocks
        || after.rows_changed < before.rows_changed
        || after.active_ms < before.active_ms
        || after.sessions < before.sessions
}

/// CPU load of the node, and of its processes that serve clients; `None` if it is not known, or the server was started
/// meanwhile.
fn cpu(before: &Sample, after: &Sample, seconds: f64, machine: &Machine) -> Option<(f64, f64)> {
    let (b, a) = before.usage.as_ref().zip(after.usage.as_ref())?;
    if b.incarnation != a.incarnation {
        return None;
    }
    let cores = positive(machine.cores).or(positive(Some(a.cores)))?;
    let load = 100.0 / cores / seconds * positive(Some(machine.speed)).unwrap_or(1.0);
    let total = (a.cpu_s - b.cpu_s).max(0.0);
    let background: f64 = a
        .processes
        .iter()
        .filter(|(pid, _)| !after.roles.get(pid).is_some_and(|role| role.serves))
        .map(|(pid, process)| {
            let earlier = b.processes.get(pid).filter(|earlier| earlier.started == process.started);
            (process.cpu_s - earlier.map_or(0.0, |earlier| earlier.cpu_s)).max(0.0)
        })
        .sum();
    Some((total * load, (total - background).max(0.0) * load))
}

/// Bytes that the processes share. Buffers in huge pages are not counted as resident.
fn shared(sample: &Sample, usage: &Usage) -> f64 {
    let buffers = sample.sizes.buffers.as_ref().map_or(0.0, |buffers| buffers.values().sum());
    usage.shared_bytes.max(buffers)
}

/// Bytes of memory of the node.
fn memory(sample: &Sample) -> Option<f64> {
    let usage = sample.usage.as_ref()?;
    Some(usage.memory() - usage.shared_bytes + shared(sample, usage))
}

/// The part of it that is one database's.
fn memory_of(sample: &Sample, oid: u32) -> Option<f64> {
    let usage = sample.usage.as_ref()?;
    let of = |map: &BTreeMap<u32, f64>| map.get(&oid).copied().unwrap_or(0.0);
    let held = match &sample.sizes.buffers {
        Some(buffers) => of(buffers),
        None => shared(sample, usage) * ratio(of(&sample.sizes.bytes), sample.sizes.bytes.values().sum()),
    };
    let serves = |pid: &u32| sample.roles.get(pid).is_some_and(|role| role.serves && role.database == oid);
    let private: f64 = usage.processes.iter().filter(|(pid, _)| serves(pid)).map(|(_, p)| p.private_bytes).sum();
    Some(held + private)
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

fn positive(value: Option<f64>) -> Option<f64> {
    value.filter(|v| v.is_finite() && *v > 0.0)
}

#[cfg(test)]
#[path = "account_tests.rs"]
mod tests;
