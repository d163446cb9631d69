//! Files as other programs write them, well and badly: what is accepted, and how the rest is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, DictionaryArray, Float32Array, Float64Array, Int32Array, LargeStringArray, NullArray, RecordBatch,
    StringArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
};
use arrow::datatypes::Int32Type;
use foreshard_datasets::{History, HistoryError, ReadFilter, read_history};
use foreshard_domain::{Metric, ShardId, Step, Timestamp};
use parquet::arrow::ArrowWriter;

fn write(dir: &Path, columns: Vec<(&str, ArrayRef)>) -> PathBuf {
    let path = dir.join("given.parquet");
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    let mut writer = ArrowWriter::try_new(File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    path
}

fn read(columns: Vec<(&str, ArrayRef)>) -> Result<History, HistoryError> {
    let dir = tempfile::tempdir().unwrap();
    read_history(&write(dir.path(), columns), &ReadFilter::default())
}

fn names() -> ArrayRef {
    Arc::new(StringArray::from(vec!["a", "a", "b"]))
}

fn times() -> ArrayRef {
    Arc::new(TimestampMillisecondArray::from(vec![0, 300_000, 0]).with_timezone("UTC"))
}

fn floats() -> ArrayRef {
    Arc::new(Float64Array::from(vec![Some(1.0), None, Some(3.0)]))
}

/// The error with all its causes.
fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", told(cause)),
        None => error.to_string(),
    }
}

#[test]
fn types_of_other_writers_are_accepted() {
    let plain = read(vec![("shard_id", names()), ("ts", times()), ("cpu_util", floats())]).unwrap();
    let dictionary: DictionaryArray<Int32Type> = vec!["a", "a", "b"].into_iter().collect();
    let texts: Vec<ArrayRef> = vec![Arc::new(dictionary), Arc::new(LargeStringArray::from(vec!["a", "a", "b"]))];
    let micros: Vec<i64> = vec![0, 300_000_000, 0];
    let nanos: Vec<i64> = vec![0, 300_000_000_999, 0];
    let stamps: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from(vec![0, 300_000, 0])),
        Arc::new(TimestampMicrosecondArray::from(micros).with_timezone("+00:00")),
        Arc::new(TimestampNanosecondArray::from(nanos)),
    ];
    let values: Vec<ArrayRef> = vec![
        Arc::new(Float32Array::from(vec![Some(1.0), None, Some(3.0)])),
        Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])),
    ];
    for text in &texts {
        for stamp in &stamps {
            for value in &values {
                let columns = vec![("ts", stamp.clone()), ("cpu_util", value.clone()), ("shard_id", text.clone())];
                assert_eq!(read(columns).unwrap().fingerprint(), plain.fingerprint());
            }
        }
    }
    let nulls: ArrayRef = Arc::new(NullArray::new(3));
    let columns = vec![
        ("shard_id", names()),
        ("node_id", nulls.clone()),
        ("ts", times()),
        ("cpu_util", floats()),
        ("io_ops", nulls),
    ];
    let history = read(columns).unwrap();
    assert_eq!(history.metrics_of(&ShardId::new("a").unwrap()), vec![Metric::CpuUtil]);
    assert_eq!(history.fingerprint(), plain.fingerprint());
}

#[test]
fn missing_columns_are_named_with_what_there_is() {
    let no_shard = read(vec![("ts", times()), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(no_shard, HistoryError::MissingColumn { column: "shard_id", .. }));
    let text = no_shard.to_string();
    assert!(text.contains("shard_id") && text.contains("given.parquet") && text.contains("ts, cpu_util"), "{text}");
    let no_ts = read(vec![("shard_id", names()), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(no_ts, HistoryError::MissingColumn { column: "ts", .. }));
    let no_metric = read(vec![("shard_id", names()), ("ts", times()), ("cpu", floats())]).unwrap_err();
    assert!(no_metric.to_string().contains("cpu_util"), "{no_metric}");
}

#[test]
fn wrong_types_are_named() {
    for (column, array, expected) in [
        ("cpu_util", names(), "a number"),
        ("ts", floats(), "a timestamp"),
        ("shard_id", floats(), "text"),
        ("node_id", floats(), "text"),
    ] {
        let mut columns = vec![("shard_id", names()), ("ts", times()), ("cpu_util", floats())];
        columns.retain(|(name, _)| *name != column);
        columns.push((column, array));
        let text = read(columns).unwrap_err().to_string();
        assert!(text.contains(column) && text.contains(expected), "{text}");
    }
}

#[test]
fn rows_without_key_are_named() {
    let holed: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b")]));
    let error = read(vec![("shard_id", holed), ("ts", times()), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(error, HistoryError::NullKey { row: 1, column: "shard_id", .. }), "{error:?}");
    let holed: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![Some(0), Some(1), None]));
    let error = read(vec![("shard_id", names()), ("ts", holed), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(error, HistoryError::NullKey { row: 2, column: "ts", .. }), "{error:?}");
    let empty: ArrayRef = Arc::new(StringArray::from(vec!["a", "", "b"]));
    let error = read(vec![("shard_id", empty), ("ts", times()), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(error, HistoryError::BadId { row: 1, column: "shard_id", .. }), "{error:?}");
    assert!(told(&error).contains("must not be empty"), "{}", told(&error));
    // Seconds that were written as milliseconds would be fine; microseconds that were are not.
    let micros: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![0, 1, 1_700_000_000_000_000]));
    let error = read(vec![("shard_id", names()), ("ts", micros), ("cpu_util", floats())]).unwrap_err();
    assert!(matches!(error, HistoryError::TimeOutside { row: 2, .. }), "{error:?}");
}

#[test]
fn odd_values_count_as_missing_and_are_counted() {
    let odd: ArrayRef = Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(f64::INFINITY), None]));
    let columns = vec![
        ("shard_id", Arc::new(StringArray::from(vec!["a", "a", "a"])) as ArrayRef),
        ("ts", Arc::new(TimestampMillisecondArray::from(vec![0, 300_000, 300_000])) as ArrayRef),
        ("cpu_util", odd),
        ("io_ops", floats()),
        ("cpu_utl", floats()),
    ];
    let history = read(columns).unwrap();
    let report = history.report();
    assert_eq!(report.not_finite.get("cpu_util"), Some(&2));
    assert_eq!((report.duplicates, report.rows, report.files), (1, 2, 1));
    assert!(report.unknown_columns.contains("cpu_utl"));
    let shard = ShardId::new("a").unwrap();
    assert_eq!(history.metrics_of(&shard), vec![Metric::IoOps]);
    let samples: Vec<_> = history.samples(&shard, Metric::IoOps).collect();
    assert_eq!(samples, vec![(Timestamp::from_ms(0), 1.0), (Timestamp::from_ms(300_000), 3.0)]);
}

#[test]
fn damaged_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), vec![("shard_id", names()), ("ts", times()), ("cpu_util", floats())]);
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = read_history(&path, &ReadFilter::default()).unwrap_err();
        assert!(matches!(error, HistoryError::Parquet { .. }), "{error:?}");
        assert!(error.to_string().contains("truncated"), "{error}");
    }
    std::panic::set_hook(Box::new(|_| {}));
    for at in 4..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x55;
        std::fs::write(&path, &flipped).unwrap();
        // Either refused or read; never a panic.
        let _ = read_history(&path, &ReadFilter::default());
    }
    let _ = std::panic::take_hook();
    let absent = read_history(&dir.path().join("absent.parquet"), &ReadFilter::default()).unwrap_err();
    assert!(matches!(absent, HistoryError::Io { doing: "open", .. }));
}

#[test]
fn wide_files_become_series() {
    let hours: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![0, 3_600_000, 7_200_000]));
    let columns = vec![("ts", hours), ("OT", floats()), ("LOAD", floats()), ("note", names())];
    let history = read(columns).unwrap();
    let shards: Vec<_> = history.shards().map(ShardId::as_str).collect();
    assert_eq!(shards, ["given/LOAD", "given/OT"]);
    let shard = ShardId::new("given/OT").unwrap();
    assert_eq!(history.metrics_of(&shard), vec![Metric::Value]);
    let hour = Step::from_ms(3_600_000).unwrap();
    let series = history.grid(&shard, Metric::Value, hour).unwrap();
    assert_eq!(series.values.len(), 3);
    assert!(series.values[1].is_nan());
    // Written in the long layout, the values stay.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("long.parquet");
    history.write(&path).unwrap();
    assert_eq!(read_history(&path, &ReadFilter::default()).unwrap().fingerprint(), history.fingerprint());
}
