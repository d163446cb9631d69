//! Writing a history file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder};
use arrow::datatypes::{Schema, SchemaRef};
use foreshard_domain::{Metric, Observation, ShardId, Timestamp};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::atomic::write_atomically;
use crate::columns::{self, TS, VALUE_NAMES, VALUES};
use crate::{History, HistoryError};

/// Rows of a row group: what a reader holds in memory at a time.
const ROW_GROUP: usize = 131_072;
/// Rows encoded at a time.
const BATCH_ROWS: usize = 16_384;

/// Writes rows to one file (zstd), which appears whole or not at all. Returns how many there were. Values that are not
/// finite are written as missing.
///
/// # Errors
/// [`HistoryError::NotSorted`] unless each row comes after the one before it by (shard, time);
/// [`HistoryError::TimeOutside`] for times that no reader would accept; [`HistoryError::Io`] and
/// [`HistoryError::Encode`].
pub fn write_history(path: &Path, rows: impl Iterator<Item = Observation>) -> Result<u64, HistoryError> {
    write_file(
        path,
        false,
        rows.map(|row| {
            let numbers = columns::numbers(&row);
            (row, numbers)
        }),
    )
}

impl History {
    /// Writes everything to one file as [`write_history`] does; series of a wide file keep their values in a column
    /// `value`.
    ///
    /// # Errors
    /// As [`write_history`].
    pub fn write(&self, path: &Path) -> Result<u64, HistoryError> {
        let slot = columns::slot(Metric::Value);
        let with_value = self.parts().any(|(_, rows)| rows.values[slot].is_some());
        let rows = self.parts().flat_map(|(shard, rows)| {
            (0..rows.len()).filter_map(move |i| {
                let row = rows.observation(shard, i)?;
                let mut numbers = columns::numbers(&row);
                numbers[slot] = rows.values[slot].as_ref().and_then(|v| v.get(i)).copied().unwrap_or(f64::NAN);
                Some((row, numbers))
            })
        });
        write_file(path, with_value, rows)
    }
}

fn write_file(
    path: &Path,
    with_value: bool,
    rows: impl Iterator<Item = (Observation, [f64; VALUES])>,
) -> Result<u64, HistoryError> {
    let wrap = |doing, source| HistoryError::Io { doing, path: path.into(), source };
    write_atomically(path, wrap, |file| {
        let encode = |source| HistoryError::Encode { path: path.into(), source };
        let mut batch = BatchBuilder::new(with_value);
        let mut writer = writer(file, batch.schema.clone()).map_err(encode)?;
        let mut before: Option<(ShardId, Timestamp)> = None;
        let mut count = 0;
        for (row, numbers) in rows {
            check(path, count, &row, before.as_ref())?;
            batch.push(&row, &numbers);
            before = Some((row.shard, row.ts));
            count += 1;
            if batch.rows == BATCH_ROWS {
                let full = batch.finish().map_err(|source| HistoryError::Arrow { path: path.into(), source })?;
                writer.write(&full).map_err(encode)?;
            }
        }
        let rest = batch.finish().map_err(|source| HistoryError::Arrow { path: path.into(), source })?;
        writer.write(&rest).map_err(encode)?;
        writer.close().map_err(encode)?;
        Ok(count)
    })
}

fn check(path: &Path, row: u64, next: &Observation, before: Option<&(ShardId, Timestamp)>) -> Result<(), HistoryError> {
    if !columns::plausible(next.ts.as_ms()) {
        return Err(HistoryError::TimeOutside { place: path.display().to_string(), row, ts: next.ts });
    }
    match before {
        Some((shard, ts)) if (shard, ts) >= (&next.shard, &next.ts) => {
            Err(HistoryError::NotSorted { row, shard: next.shard.clone(), ts: next.ts })
        }
        _ => Ok(()),
    }
}

/// How all files of this crate are compressed.
pub(crate) fn compression() -> Compression {
    Compression::ZSTD(ZstdLevel::default())
}

fn writer(file: &File, schema: SchemaRef) -> Result<ArrowWriter<io::BufWriter<&File>>, ParquetError> {
    let mut properties = WriterProperties::builder()
        .set_compression(compression())
        .set_max_row_group_row_count(Some(ROW_GROUP))
        .set_column_dictionary_enabled(TS.into(), false)
        .set_column_encoding(TS.into(), Encoding::DELTA_BINARY_PACKED);
    for name in VALUE_NAMES {
        // Measured numbers hardly repeat; their bytes in streams of equal weight compress best.
        properties = properties
            .set_column_dictionary_enabled(name.into(), false)
            .set_column_encoding(name.into(), Encoding::BYTE_STREAM_SPLIT);
    }
    ArrowWriter::try_new(io::BufWriter::new(file), schema, Some(properties.build()))
}

struct BatchBuilder {
    schema: SchemaRef,
    rows: usize,
    shard: StringBuilder,
    node: StringBuilder,
    ts: TimestampMillisecondBuilder,
    /// Slot and builder of each number column.
    values: Vec<(usize, Float64Builder)>,
}

impl BatchBuilder {
    fn new(with_value: bool) -> Self {
        let hidden = if with_value { None } else { Some(columns::slot(Metric::Value)) };
        let slots = (0..VALUES).filter(|slot| Some(*slot) != hidden);
        Self {
            schema: Arc::new(Schema::new(columns::fields(with_value))),
            rows: 0,
            shard: StringBuilder::new(),
            node: StringBuilder::new(),
            ts: TimestampMillisecondBuilder::new().with_data_type(columns::ts_type()),
            values: slots.map(|slot| (slot, Float64Builder::new())).collect(),
        }
    }

    fn push(&mut self, row: &Observation, numbers: &[f64; VALUES]) {
        self.shard.append_value(row.shard.as_str());
        self.node.append_option(row.node.as_ref().map(|n| n.as_str()));
        self.ts.append_value(row.ts.as_ms());
        for (slot, column) in &mut self.values {
            column.append_option(numbers.get(*slot).copied().filter(|v| v.is_finite()));
        }
        self.rows += 1;
    }

    fn finish(&mut self) -> Result<RecordBatch, arrow::error::ArrowError> {
        self.rows = 0;
        let mut arrays: Vec<ArrayRef> =
            vec![Arc::new(self.shard.finish()), Arc::new(self.node.finish()), Arc::new(self.ts.finish())];
        for (_, column) in &mut self.values {
            arrays.push(Arc::new(column.finish()));
        }
        RecordBatch::try_new(self.schema.clone(), arrays)
    }
}
