//! Tables and properties of the accounting.

use super::*;
use crate::postgres::observe::machine::ProcessUse;
use crate::postgres::observe::sample::{Role, Sizes};
use foreshard_domain::{Metric, RealTime, Timestamp};
use proptest::prelude::*;

const GIB: f64 = 1_073_741_824.0;

fn node() -> NodeId {
    NodeId::new("n").unwrap()
}

fn shards(names: &[&str]) -> BTreeSet<ShardId> {
    names.iter().map(|name| ShardId::new(*name).unwrap()).collect()
}

fn database(name: &str, transactions: u64, active_ms: f64) -> Database {
    let counters = Counters { transactions, active_ms, ..Counters::default() };
    Database { name: Some(name.to_owned()), counters, backends: 10, ..Database::default() }
}

fn process(cpu_s: f64, private_bytes: f64) -> ProcessUse {
    ProcessUse { started: 1, cpu_s, private_bytes }
}

fn usage(cpu_s: f64, processes: BTreeMap<u32, ProcessUse>) -> Usage {
    let incarnation = "1 1".to_owned();
    Usage { incarnation, cpu_s, shared_bytes: GIB, processes, cores: 4.0, memory_bytes: 16.0 * GIB }
}

/// Two seconds in which `a` and `b` were active 1 : 3, `other` not at all; of 4.5 s of CPU the checkpointer took 0.5.
fn two() -> (Sample, Sample) {
    let start = [("a", 1, 5, 100.0), ("b", 2, 5, 900.0), ("other", 3, 0, 0.0)];
    let databases = start.map(|(name, oid, transactions, active)| (oid, database(name, transactions, active)));
    let role = |database, serves| Role { database, serves };
    let roles = BTreeMap::from([(20, role(0, false)), (30, role(1, true)), (40, role(2, false))]);
    let sizes =
        Sizes { at: RealTime::from_ms(0), bytes: BTreeMap::from([(1, 6.0 * GIB), (2, GIB), (3, GIB)]), buffers: None };
    let processes = BTreeMap::from([(20, process(1.0, 0.0)), (30, process(2.0, GIB)), (40, process(0.0, GIB))]);
    let before = Sample {
        ts: Timestamp::from_ms(60_000),
        at: RealTime::from_ms(1000),
        era: "e".to_owned(),
        databases: databases.into_iter().collect(),
        writes: 100,
        log_bytes: 1000.0,
        roles,
        sizes,
        usage: Some(usage(10.0, processes)),
    };
    let mut after = before.clone();
    (after.ts, after.at) = (Timestamp::from_ms(120_000), RealTime::from_ms(3000));
    (after.writes, after.log_bytes) = (180, 9000.0);
    let a = &mut after.databases.get_mut(&1).unwrap().counters;
    (a.transactions, a.active_ms, a.rows_changed, a.blocks_read) = (25, 600.0, 30, 6);
    let b = &mut after.databases.get_mut(&2).unwrap().counters;
    (b.transactions, b.active_ms, b.rows_changed, b.temporary_blocks) = (5, 2400.0, 10, 4);
    let use_ = after.usage.as_mut().unwrap();
    use_.cpu_s = 14.5;
    use_.processes.get_mut(&20).unwrap().cpu_s = 1.5;
    (before, after)
}

fn tell(before: &Sample, after: &Sample, names: &[&str]) -> BTreeMap<String, Observation> {
    let rows = account(&node(), before, after, &shards(names), &Machine::default());
    rows.into_iter().map(|row| (row.shard.to_string(), row)).collect()
}

fn close(value: Option<f64>, expected: f64) {
    assert!(value.is_some_and(|v| (v - expected).abs() < 1e-9), "{value:?} is not {expected}");
}

#[test]
fn splits_what_is_known_of_the_node_only() {
    let (before, after) = two();
    let rows = tell(&before, &after, &["a", "b"]);
    let (a, b, rest) = (&rows["a"], &rows["b"], &rows["@node/n"]);
    assert_eq!((a.ts, &a.node, rest.ts), (before.ts, &Some(node()), before.ts), "named by where it begins");
    // 4 s of 8 s in which four cores could work, split 1 : 3; and 0.5 s of the checkpointer.
    close(a.cpu_util, 12.5);
    close(b.cpu_util, 37.5);
    close(rest.cpu_util, 6.25);
    // 80 writes are split 3 : 1; own are 6 blocks read, and 4 temporary ones both ways.
    close(a.io_ops, 33.0);
    close(b.io_ops, 14.0);
    close(rest.io_ops, 0.0);
    // A GiB is shared, 6 : 1 : 1 by size, and one is the session's; the session of `b` is a walsender, the node's own.
    close(a.mem_util, 1.75 / 16.0 * 100.0);
    close(b.mem_util, 0.125 / 16.0 * 100.0);
    close(rest.mem_util, 1.125 / 16.0 * 100.0);
    close(a.write_bytes_per_s, 3000.0);
    close(b.write_bytes_per_s, 1000.0);
    close(a.txn_rate, 10.0);
    close(a.latency_ms, 25.0);
    assert_eq!((b.txn_rate, b.latency_ms), (Some(0.0), None), "no transaction, no latency");
    assert_eq!((a.data_bytes, rest.data_bytes), (Some(6.0 * GIB), None));
}

#[test]
fn what_is_no_shard_here_is_the_residual() {
    let (before, after) = two();
    let rows = tell(&before, &after, &["a", "elsewhere"]);
    assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), ["@node/n", "a"]);
    close(rows["a"].cpu_util, 12.5);
    close(rows["@node/n"].cpu_util, 43.75);
    close(rows["@node/n"].io_ops, 14.0);
}

#[test]
fn buffers_go_before_sizes_and_machines_before_what_is_found() {
    let (before, mut after) = two();
    after.sizes.buffers = Some(BTreeMap::from([(0, GIB), (1, GIB), (2, 2.0 * GIB)]));
    let machine = Machine { cores: Some(8.0), speed: 3.0, memory_bytes: Some(100.0 * GIB) };
    let rows = account(&node(), &before, &after, &shards(&["a", "b"]), &machine);
    let load = |at: usize| (rows[at].cpu_util, rows[at].mem_util);
    close(load(0).0, 12.5 / 2.0 * 3.0);
    close(load(0).1, 2.0);
    close(load(1).1, 2.0);
    // Buffers in huge pages are more than what is resident: 4 GiB, one of them nobody's, and the walsender's own.
    close(load(2).1, 2.0);
    let odd = Machine { cores: Some(0.0), speed: f64::NAN, memory_bytes: Some(-1.0) };
    let rows = account(&node(), &before, &after, &shards(&["a"]), &odd);
    close(rows[0].cpu_util, 12.5);
}

/// What each kind of gap hides: metrics of `a`, of `b` and of the residual that are still told.
#[test]
fn gaps_hide_what_cannot_be_told_and_no_more() {
    use Metric::{CpuUtil, IoOps, LatencyMs, MemUtil, TxnRate};
    type Change = fn(&mut Sample, &mut Sample);
    type Case = (&'static str, Change, Vec<Metric>, Vec<Metric>, Vec<Metric>);
    let all = vec![CpuUtil, MemUtil, IoOps, LatencyMs, TxnRate];
    let own = vec![MemUtil, LatencyMs, TxnRate];
    let cases: [Case; 8] = [
        ("nothing", |_, _| {}, all.clone(), all.clone(), vec![CpuUtil, MemUtil, IoOps]),
        (
            "counters of b reset",
            |_, after| after.databases.get_mut(&2).unwrap().reset = Some(7.0),
            own.clone(),
            vec![MemUtil],
            vec![MemUtil],
        ),
        (
            "counters of a database that is no shard fell",
            |before, _| before.databases.get_mut(&3).unwrap().counters.blocks_read = 1,
            own.clone(),
            own,
            vec![MemUtil],
        ),
        ("all reset", |_, after| after.era = "f".into(), vec![MemUtil], vec![MemUtil], vec![MemUtil]),
        (
            "counters of writes reset",
            |_, after| after.writes = 5,
            vec![CpuUtil, MemUtil, LatencyMs, TxnRate],
            vec![CpuUtil, MemUtil, LatencyMs, TxnRate],
            vec![CpuUtil, MemUtil],
        ),
        (
            "started again",
            |_, after| after.usage.as_mut().unwrap().incarnation = "2 2".into(),
            vec![MemUtil, IoOps, LatencyMs, TxnRate],
            vec![MemUtil, IoOps, LatencyMs, TxnRate],
            vec![MemUtil, IoOps],
        ),
        (
            "on another machine",
            |before, after| (before.usage, after.usage) = (None, None),
            vec![IoOps, LatencyMs, TxnRate],
            vec![IoOps, LatencyMs, TxnRate],
            vec![IoOps],
        ),
        (
            "not seen before",
            |before, _| before.usage = None,
            vec![MemUtil, IoOps, LatencyMs, TxnRate],
            vec![MemUtil, IoOps, LatencyMs, TxnRate],
            vec![MemUtil, IoOps],
        ),
    ];
    for (what, change, a, b, rest) in cases {
        let (mut before, mut after) = two();
        after.databases.get_mut(&2).unwrap().counters.transactions = 6;
        change(&mut before, &mut after);
        let rows = tell(&before, &after, &["a", "b"]);
        for (shard, told) in [("a", a), ("b", b), ("@node/n", rest)] {
            let found: Vec<_> = Metric::ALL.into_iter().filter(|m| rows[shard].get(*m).is_some()).collect();
            assert_eq!(found, told, "{what}: {shard}");
        }
    }
}

#[test]
fn databases_that_came_are_not_told_but_take_their_part() {
    let (mut before, after) = two();
    before.databases.remove(&2);
    let rows = tell(&before, &after, &["a", "b"]);
    assert!(!rows.contains_key("b"));
    // All 2400 ms of `b` were since then.
    close(rows["a"].cpu_util, 50.0 * 500.0 / 2900.0);
    let (before, mut after) = two();
    let again = after.databases.remove(&2).unwrap();
    after.databases.insert(9, again);
    assert!(!tell(&before, &after, &["a", "b"]).contains_key("b"), "dropped and made again is another one");
    let (before, mut after) = two();
    after.databases.remove(&2);
    close(tell(&before, &after, &["a", "b"])["a"].cpu_util, 50.0);
}

#[test]
fn running_statements_count_while_they_run() {
    let (before, mut after) = two();
    // `other` has run one statement all the time, and none has ended.
    after.databases.get_mut(&3).unwrap().running_ms = 2000.0;
    let rows = tell(&before, &after, &["a", "other"]);
    close(rows["a"].cpu_util, 50.0 * 500.0 / 4000.0);
    close(rows["other"].cpu_util, 25.0);
    // It ends half a second later: what was told is not told again.
    let mut later = after.clone();
    later.at = RealTime::from_ms(3500);
    later.usage.as_mut().unwrap().cpu_s += 1.0;
    let other = later.databases.get_mut(&3).unwrap();
    (other.running_ms, other.counters.active_ms) = (0.0, 2500.0);
    later.databases.get_mut(&1).unwrap().counters.active_ms += 500.0;
    let rows = tell(&after, &later, &["a", "other"]);
    close(rows["a"].cpu_util, 25.0);
    close(rows["other"].cpu_util, 25.0);
    // An open transaction hides an hour of statements, which come at once: not more than its sessions could do.
    let other = later.databases.get_mut(&3).unwrap();
    (other.backends, other.counters.active_ms) = (10, 3_600_000.0);
    assert!(super::done(after.databases.get(&3), &later.databases[&3], 0.5).unwrap().active_ms <= 5000.0);
    // A statement that was cut off is never counted, and takes nothing from what comes.
    let other = later.databases.get_mut(&3).unwrap();
    other.counters.active_ms = 0.0;
    let rows = tell(&after, &later, &["a", "other"]);
    close(rows["a"].cpu_util, 50.0);
    close(rows["other"].cpu_util, 0.0);
}

#[test]
fn no_time_no_rows() {
    let (before, mut after) = two();
    for ms in [1000, 500] {
        after.at = RealTime::from_ms(ms);
        assert!(tell(&before, &after, &["a"]).is_empty());
    }
}

prop_compose! {
    fn any_database(oid: u32)(n in proptest::array::uniform4(0u64..1000), ms in 0.0..1e6, running_ms in 0.0..1e5, backends in 0u64..50)
        -> Database {
        let [transactions, blocks_read, temporary_blocks, rows_changed] = n;
        let counters = Counters { transactions, blocks_read, temporary_blocks, rows_changed, active_ms: ms, sessions: 0 };
        Database { name: Some(format!("d{oid}")), counters, reset: None, running_ms, backends }
    }
}

prop_compose! {
    fn any_sample(at: i64)(
        databases in proptest::option::weighted(0.9, (any_database(1), any_database(2), any_database(3))),
        processes in proptest::collection::btree_map(1u32..8, (0.0..50.0, 0.0..1e9), 0..6),
        roles in proptest::collection::btree_map(1u32..8, (0u32..5, any::<bool>()), 0..6),
        sizes in proptest::collection::btree_map(0u32..5, 0.0..1e10, 0..5),
        buffers in proptest::option::of(proptest::collection::btree_map(0u32..5, 0.0..1e9, 0..5)),
        numbers in (0u64..10_000, 0.0..1e9, 0.0..100.0),
    ) -> Sample {
        let (writes, log_bytes, reaped) = numbers;
        let databases = databases.into_iter().flat_map(|(a, b, c)| [(1, a), (2, b), (3, c)]).collect();
        let processes: BTreeMap<_, _> = processes.into_iter().map(|(pid, (cpu, bytes))| (pid, process(cpu, bytes))).collect();
        let cpu_s = reaped + processes.values().map(|p| p.cpu_s).sum::<f64>();
        Sample {
            ts: Timestamp::from_ms(at),
            at: RealTime::from_ms(at),
            era: String::new(),
            databases,
            writes,
            log_bytes,
            roles: roles.into_iter().map(|(pid, (database, serves))| (pid, Role { database, serves })).collect(),
            sizes: Sizes { at: RealTime::from_ms(at), bytes: sizes, buffers },
            usage: Some(usage(cpu_s, processes)),
        }
    }
}

/// What the node did, by itself.
fn node_load(before: &Sample, after: &Sample, seconds: f64) -> (f64, f64, f64) {
    let (b, a) = (before.usage.as_ref().unwrap(), after.usage.as_ref().unwrap());
    let cpu = (a.cpu_s - b.cpu_s).max(0.0) / seconds / 4.0 * 100.0;
    let buffers: f64 = after.sizes.buffers.iter().flat_map(BTreeMap::values).sum();
    let private: f64 = a.processes.values().map(|p| p.private_bytes).sum();
    let memory = (buffers.max(GIB) + private) / (16.0 * GIB) * 100.0;
    let io_of = |sample: &Sample| -> u64 {
        // What a dropped database did last is lost.
        let there = sample.databases.iter().filter(|(oid, _)| after.databases.contains_key(oid));
        let own = there.map(|(_, d)| d.counters.blocks_read + 2 * d.counters.temporary_blocks);
        own.sum::<u64>() + sample.writes
    };
    (cpu, memory, (io_of(after) as f64 - io_of(before) as f64) / seconds)
}

proptest! {
    #[test]
    fn shards_and_residual_are_the_node_and_nothing_is_negative(
        before in any_sample(0), mut after in any_sample(2500), chosen in proptest::collection::btree_set(0usize..4, 0..4),
        grows in proptest::bool::weighted(0.7),
    ) {
        if grows {
            // Counters that only grow, as they do between resets.
            for (oid, database) in &mut after.databases {
                let Some(earlier) = before.databases.get(oid) else { continue };
                let (a, b) = (&mut database.counters, &earlier.counters);
                a.transactions += b.transactions;
                a.blocks_read += b.blocks_read;
                a.temporary_blocks += b.temporary_blocks;
                a.rows_changed += b.rows_changed;
                a.active_ms += b.active_ms;
            }
            after.writes += before.writes;
            after.log_bytes += before.log_bytes;
        }
        let names: Vec<String> = chosen.into_iter().map(|n| format!("d{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rows = account(&node(), &before, &after, &shards(&names), &Machine::default());
        let (cpu, memory, io) = node_load(&before, &after, 2.5);
        for (metric, whole) in [(Metric::CpuUtil, cpu), (Metric::MemUtil, memory), (Metric::IoOps, io)] {
            let values: Vec<_> = rows.iter().map(|row| row.get(metric)).collect();
            let told: Vec<f64> = values.iter().copied().flatten().collect();
            prop_assert!(told.is_empty() || told.len() == values.len(), "{metric:?} told of some only");
            prop_assert!(!grows || !told.is_empty());
            if !told.is_empty() {
                let sum: f64 = told.iter().sum();
                prop_assert!((sum - whole).abs() <= 1e-9 * whole.max(1.0), "{metric:?}: {sum} is not {whole}");
            }
        }
        for row in &rows {
            for value in Metric::ALL.iter().filter_map(|m| row.get(*m)).chain(row.data_bytes).chain(row.write_bytes_per_s) {
                prop_assert!(value.is_finite() && value >= 0.0, "{row:?}");
            }
        }
    }
}
