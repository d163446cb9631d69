//! Histories in and out: round trips, last wins, folders against files, the grid against a naive reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use foreshard_datasets::{
    History, HistoryError, HistoryFolder, ReadFilter, read_history, stream_history, write_history,
};
use foreshard_domain::{Metric, NodeId, Observation, ShardId, Step, Timestamp};
use proptest::prelude::*;

const MINUTE: i64 = 60_000;

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

fn row(name: &str, minute: i64, cpu: Option<f64>) -> Observation {
    let mut row = Observation::empty(shard(name), Timestamp::from_ms(minute * MINUTE));
    row.cpu_util = cpu;
    row
}

fn read(path: &Path) -> History {
    read_history(path, &ReadFilter::default()).unwrap()
}

/// Rows of three shards over four days in any order, with repetitions, gaps and missing values.
fn rows() -> impl Strategy<Value = Vec<Observation>> {
    let value = || prop_oneof![1 => Just(None), 4 => (0.0..100.0f64).prop_map(Some)];
    let one =
        (0..3usize, 0..1152i64, value(), value(), prop::option::of(0..2usize)).prop_map(|(s, at, cpu, io, node)| {
            let mut row = row(["a", "b/c", "ü"][s], at * 5, cpu);
            row.io_ops = io;
            row.data_bytes = io.map(|v| v * 1e9);
            row.node = node.map(|n| NodeId::new(["n1", "n2"][n]).unwrap());
            row
        });
    prop::collection::vec(one, 1..300)
}

/// What must be left of rows: the last of each shard and time, in order.
fn reference(rows: &[Observation]) -> Vec<Observation> {
    let kept: BTreeMap<_, _> = rows.iter().map(|r| ((r.shard.clone(), r.ts), r.clone())).collect();
    kept.into_values().collect()
}

fn naive_grid(rows: &[Observation], native: i64, step: i64) -> Option<(i64, Vec<f32>)> {
    let known: Vec<(i64, f64)> = rows.iter().filter_map(|r| Some((r.ts.as_ms(), r.cpu_util?))).collect();
    let (first, last) = (known.first()?.0, known.last()?.0);
    let mut bins = Vec::new();
    let mut bin = first.div_euclid(step) * step;
    while bin <= last {
        // A bin counts if its first and its last sample place lie within the samples.
        if bin >= first && bin + step - native <= last {
            let inside: Vec<f64> =
                known.iter().filter(|(t, _)| (bin..bin + step).contains(t)).map(|(_, v)| *v).collect();
            let mean = inside.iter().sum::<f64>() / inside.len() as f64;
            bins.push((bin, mean as f32));
        }
        bin += step;
    }
    Some((bins.first()?.0, bins.iter().map(|(_, v)| *v).collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn last_row_of_a_shard_and_time_wins(rows in rows()) {
        let history = History::from_observations(rows.clone()).unwrap();
        let expected = reference(&rows);
        prop_assert_eq!(history.report().duplicates as usize, rows.len() - expected.len());
        prop_assert_eq!(history.rows() as usize, expected.len());
        prop_assert_eq!(history.observations().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn folder_with_compaction_equals_one_file(rows in rows(), cuts in prop::collection::vec(0..300usize, 0..6), compact_at in 0..6usize) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.parquet");
        write_history(&file, reference(&rows).into_iter()).unwrap();
        let folder_path = dir.path().join("folder");
        let folder = HistoryFolder::open(&folder_path, "test").unwrap();
        let bounds: BTreeSet<usize> = cuts.into_iter().filter(|c| *c < rows.len()).chain([0, rows.len()]).collect();
        let bounds: Vec<usize> = bounds.into_iter().collect();
        for (i, part) in bounds.windows(2).enumerate() {
            folder.append(&rows[part[0]..part[1]]).unwrap();
            if i == compact_at {
                folder.compact(Timestamp::from_ms(2 * 1440 * MINUTE)).unwrap();
            }
        }
        let whole = read(&file);
        prop_assert_eq!(read(&folder_path).fingerprint(), whole.fingerprint());
        folder.compact(Timestamp::from_ms(9 * 1440 * MINUTE)).unwrap();
        let compacted = read(&folder_path);
        prop_assert_eq!(compacted.fingerprint(), whole.fingerprint());
        prop_assert_eq!(compacted.report().duplicates, 0);
        prop_assert_eq!(compacted.observations().collect::<Vec<_>>(), reference(&rows));
    }

    #[test]
    fn grid_equals_a_naive_reference(rows in rows(), width in 1..13i64) {
        let history = History::from_observations(rows.clone()).unwrap();
        let step = Step::from_ms(width * 5 * MINUTE).unwrap();
        let Some(native) = history.native_step() else { return Ok(()) };
        for name in ["a", "b/c", "ü"] {
            let of_shard: Vec<_> = reference(&rows).into_iter().filter(|r| r.shard.as_str() == name).collect();
            let expected = naive_grid(&of_shard, native.as_ms(), step.as_ms());
            let got = history.grid(&shard(name), Metric::CpuUtil, step);
            let got = got.map(|g| (g.start.as_ms(), g.values));
            // Compared as bits, so that missing equals missing.
            let bits = |g: Option<(i64, Vec<f32>)>| g.map(|(s, v)| (s, v.iter().map(|x| if x.is_nan() { None } else { Some(x.to_bits()) }).collect::<Vec<_>>()));
            prop_assert_eq!(bits(got), bits(expected));
        }
    }

    #[test]
    fn filters_and_before_agree_with_the_rows(rows in rows(), from in 0..5760i64, length in 0..5760i64) {
        let dir = tempfile::tempdir().unwrap();
        let folder = HistoryFolder::open(dir.path(), "test").unwrap();
        folder.append(&rows).unwrap();
        let (from, to) = (Timestamp::from_ms(from * MINUTE), Timestamp::from_ms((from + length) * MINUTE));
        let wanted = BTreeSet::from([shard("a"), shard("ü")]);
        let filter = ReadFilter { shards: Some(wanted.clone()), from: Some(from), to: Some(to), ..ReadFilter::default() };
        let expected: Vec<_> =
            reference(&rows).into_iter().filter(|r| wanted.contains(&r.shard) && r.ts >= from && r.ts < to).collect();
        let got: Vec<_> = read_history(dir.path(), &filter).unwrap().observations().collect();
        prop_assert_eq!(&got, &expected);
        let mut streamed = Vec::new();
        stream_history(dir.path(), &filter, &mut |rows| { streamed.extend_from_slice(rows); Ok(()) }).unwrap();
        streamed.sort_by(|a, b| (&a.shard, a.ts).cmp(&(&b.shard, b.ts)));
        prop_assert_eq!(&streamed, &expected);
        let early: Vec<_> = reference(&rows).into_iter().filter(|r| r.ts < to).collect();
        let history = History::from_observations(rows).unwrap().before(to);
        prop_assert_eq!(history.observations().collect::<Vec<_>>(), early.clone());
        prop_assert_eq!(history.fingerprint(), History::from_observations(early).unwrap().fingerprint());
    }
}

#[test]
fn file_round_trip_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.parquet");
    let mut full = row("a", 5, Some(1.5));
    full.node = NodeId::new("n1").ok();
    full.mem_util = Some(2.5);
    full.io_ops = Some(3.5);
    full.latency_ms = Some(4.5);
    full.txn_rate = Some(5.5);
    full.data_bytes = Some(1e12);
    full.write_bytes_per_s = Some(7.5);
    let rows = vec![row("a", 0, None), full, row("b", 0, Some(-1.0))];
    assert_eq!(write_history(&path, rows.clone().into_iter()).unwrap(), 3);
    let history = read(&path);
    assert_eq!(history.observations().collect::<Vec<_>>(), rows);
    assert!(history.report().is_clean());
    let a = shard("a");
    assert_eq!(history.metrics_of(&a).len(), 5);
    assert_eq!(history.last_data_bytes(&a), Some(1e12));
    assert_eq!(history.last_write_bytes_per_s(&a), Some(7.5));
    assert_eq!(history.last_node(&a).unwrap().as_str(), "n1");
    assert_eq!(history.last_node(&shard("b")), None);
    assert_eq!(history.native_step(), Some(Step::FIVE_MINUTES));
    let only_cpu = ReadFilter { metrics: Some(BTreeSet::from([Metric::CpuUtil])), ..ReadFilter::default() };
    assert_eq!(read_history(&path, &only_cpu).unwrap().metrics_of(&a), vec![Metric::CpuUtil]);
}

#[test]
fn written_rows_must_be_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.parquet");
    for rows in [[row("b", 0, None), row("a", 0, None)], [row("a", 5, None), row("a", 5, None)]] {
        let refused = write_history(&path, rows.into_iter());
        assert!(matches!(refused, Err(HistoryError::NotSorted { row: 1, .. })), "{refused:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn empty_histories_are_histories() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.parquet");
    write_history(&path, std::iter::empty()).unwrap();
    for history in [read(&path), History::default()] {
        assert_eq!((history.rows(), history.span(), history.native_step()), (0, None, None));
        assert_eq!(history.fingerprint(), History::default().fingerprint());
    }
    let folder = dir.path().join("folder");
    HistoryFolder::open(&folder, "w").unwrap();
    assert_eq!(read(&folder).rows(), 0);
}

#[test]
fn streaming_stops_where_the_consumer_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h.parquet");
    write_history(&path, (0..10).map(|i| row("a", i, Some(1.0)))).unwrap();
    let stop = stream_history(&path, &ReadFilter::default(), &mut |_| Err(HistoryError::Consumer("full".into())));
    assert!(matches!(stop, Err(HistoryError::Consumer(_))));
}
