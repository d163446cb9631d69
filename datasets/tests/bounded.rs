//! Histories beyond the budget of memory: shard by shard they are what they are in memory; damage and pruning by row group.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use foreshard_datasets::{
    BoundedHistory, History, HistoryError, HistoryFolder, MemoryBudget, ReadFilter, Workload, WorkloadSpec,
    read_history, stream_history, write_history,
};
use foreshard_domain::{Metric, NodeId, Observation, ShardId, Step, Timestamp};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::properties::WriterProperties;

fn budget(bytes: usize, scratch: &Path) -> MemoryBudget {
    MemoryBudget { bytes, scratch: scratch.to_owned() }
}

fn rows() -> Vec<Observation> {
    Workload::new(WorkloadSpec { shards: 7, days: 3, tenants: 3, ..WorkloadSpec::default() }).unwrap().rows().collect()
}

/// Both tell the same of everything.
fn assert_same(bounded: &BoundedHistory, whole: &History) {
    assert_eq!(bounded.report(), whole.report());
    assert_eq!((bounded.rows(), bounded.span()), (whole.rows(), whole.span()));
    assert_eq!((bounded.native_step(), bounded.fingerprint()), (whole.native_step(), whole.fingerprint()));
    let shards: Vec<_> = bounded.shards().map(|(shard, metrics)| (shard.clone(), metrics)).collect();
    assert_eq!(shards, whole.shards().map(|s| (s.clone(), whole.metrics_of(s))).collect::<Vec<_>>());
    let native = whole.native_step().unwrap();
    for (shard, metrics) in shards {
        for metric in metrics {
            let alone = bounded.shard(&shard, &[metric]).unwrap();
            let samples: Vec<_> = alone.samples(&shard, metric).collect();
            assert_eq!(samples, whole.samples(&shard, metric).collect::<Vec<_>>());
            for step in [native, Step::from_ms(900_000).unwrap()] {
                let bits = |h: &History| {
                    h.grid(&shard, metric, step)
                        .map(|g| (g.start, g.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()))
                };
                assert_eq!(bits(&alone), bits(whole));
            }
        }
    }
}

#[test]
fn a_file_beyond_the_budget_is_the_same_shard_by_shard() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.parquet");
    write_history(&path, rows().into_iter()).unwrap();
    let whole = read_history(&path, &ReadFilter::default()).unwrap();
    for bytes in [0, 100_000, 200_000] {
        let bounded = BoundedHistory::read(&path, &ReadFilter::default(), &budget(bytes, dir.path())).unwrap();
        assert!(bounded.is_on_disk());
        assert_same(&bounded, &whole);
    }
    let large = BoundedHistory::read(&path, &ReadFilter::default(), &budget(1 << 30, dir.path())).unwrap();
    assert!(!large.is_on_disk());
    assert_same(&large, &whole);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the history lies there");
    let nobody = ShardId::new("nobody").unwrap();
    let bounded = BoundedHistory::read(&path, &ReadFilter::default(), &budget(0, dir.path())).unwrap();
    assert_eq!(bounded.shard(&nobody, &[Metric::CpuUtil]).unwrap().rows(), 0);
}

#[test]
fn pieces_of_a_folder_are_merged_and_the_last_wins() {
    let dir = tempfile::tempdir().unwrap();
    let folder = HistoryFolder::open(dir.path().join("history"), "test").unwrap();
    let mut rows = rows();
    folder.append(&rows).unwrap();
    // Rows that come late, in the middle, replace what was there; some lose their value, some name another node.
    for row in rows.iter_mut().step_by(5) {
        row.cpu_util = row.cpu_util.map(|v| v + 1.0);
        row.mem_util = None;
        row.node = NodeId::new("elsewhere").ok();
    }
    folder.append(&rows.iter().step_by(5).cloned().collect::<Vec<_>>()).unwrap();
    let whole = read_history(folder.dir(), &ReadFilter::default()).unwrap();
    assert!(whole.report().duplicates > 1000);
    for bytes in [0, 100_000, 1 << 30] {
        let bounded = BoundedHistory::read(folder.dir(), &ReadFilter::default(), &budget(bytes, dir.path())).unwrap();
        assert_eq!(bounded.is_on_disk(), bytes < 1 << 30);
        assert_same(&bounded, &whole);
    }
}

#[test]
fn a_scratch_folder_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.parquet");
    write_history(&path, rows().into_iter()).unwrap();
    let nowhere = dir.path().join("nowhere");
    let error = BoundedHistory::read(&path, &ReadFilter::default(), &budget(0, &nowhere)).unwrap_err();
    assert!(error.to_string().contains("nowhere"), "{error}");
}

/// Four shards of 50 rows each, one a row group.
fn in_groups(dir: &Path) -> PathBuf {
    let path = dir.join("groups.parquet");
    let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..200).map(|i| format!("s{}", i / 50))));
    let times = (0..200).map(|i| i % 50 * 300_000);
    let times: ArrayRef = Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"));
    let loads: ArrayRef = Arc::new(Float64Array::from_iter_values((0..200).map(|i| f64::from(i).sqrt())));
    let batch = RecordBatch::try_from_iter([("shard_id", names), ("ts", times), ("cpu_util", loads)]).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(50)).build();
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

#[test]
fn a_damaged_row_group_is_named_and_the_others_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = in_groups(dir.path());
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.metadata().num_row_groups(), 4);
    let column = reader.metadata().row_group(2).column(2);
    let start = usize::try_from(column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[start..start + usize::try_from(column.compressed_size()).unwrap()].fill(0xff);
    fs::write(&path, bytes).unwrap();
    let all = ReadFilter::default();
    let bounded = BoundedHistory::read(&path, &all, &budget(0, dir.path())).map(|_| ());
    let streamed = stream_history(&path, &all, &mut |_| Ok(()));
    for read in [read_history(&path, &all).map(|_| ()), bounded, streamed] {
        let error = read.unwrap_err();
        assert!(matches!(error, HistoryError::RowGroup { group: 2, .. }), "{error:?}");
        assert!(error.to_string().contains("row group 2") && error.to_string().contains("groups.parquet"), "{error}");
    }
    // Whoever wants other shards does not come near it.
    let others = |names: &[&str]| ReadFilter {
        shards: Some(names.iter().map(|n| ShardId::new(*n).unwrap()).collect()),
        ..ReadFilter::default()
    };
    assert_eq!(read_history(&path, &others(&["s0", "s1", "s3"])).unwrap().rows(), 150);
    assert!(read_history(&path, &others(&["s0", "s2"])).is_err());
}

#[test]
fn row_groups_outside_of_the_wanted_time_are_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = in_groups(dir.path());
    let until = |minutes: i64| ReadFilter { to: Some(Timestamp::from_ms(minutes * 60_000)), ..ReadFilter::default() };
    assert_eq!(read_history(&path, &until(0)).unwrap().rows(), 0);
    assert_eq!(read_history(&path, &until(1)).unwrap().rows(), 4);
    let from = ReadFilter { from: Some(Timestamp::from_ms(49 * 300_000)), ..ReadFilter::default() };
    assert_eq!(read_history(&path, &from).unwrap().rows(), 4);
    let after = ReadFilter { from: Some(Timestamp::from_ms(49 * 300_000 + 1)), ..ReadFilter::default() };
    assert_eq!(read_history(&path, &after).unwrap().rows(), 0);
}
