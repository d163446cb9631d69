//! What can be wrong with a history.

use std::path::PathBuf;

use foreshard_domain::{IdError, Metric, ShardId, Timestamp};

/// Why a history could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file system refused.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The file is no Parquet, or is cut short or damaged.
    #[error("cannot read {path} as Parquet; it may be truncated, damaged or in another format")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A row group of the file is damaged.
    #[error(
        "cannot read row group {group} of {path}; the file is damaged there: copy it again from its source, or write it \
         anew without the rows of that group"
    )]
    RowGroup {
        /// The file.
        path: PathBuf,
        /// The row group, counted from 0.
        group: usize,
        /// What the decoder says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A column's data cannot be decoded.
    #[error("cannot decode a column of {path}")]
    Arrow {
        /// The file.
        path: PathBuf,
        /// What the decoder says.
        #[source]
        source: arrow::error::ArrowError,
    },
    /// The file could not be encoded.
    #[error("cannot write {path} as Parquet")]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder says.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A column that a history must have is not there.
    #[error("{path} has no column {column}; it has {found}; a history needs shard_id, ts and metrics")]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
        /// The columns that are there.
        found: String,
    },
    /// No column holds a metric.
    #[error("{path} has no metric column; it has {found}; expected at least one of {expected}")]
    NoMetric {
        /// The file.
        path: PathBuf,
        /// The columns that are there.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A column has a type that cannot hold what it should.
    #[error("column {column} of {path} is of type {found}; expected {expected}")]
    ColumnType {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// A row lacks its shard or its time.
    #[error("row {row} of {path} has no {column}; remove the row or fill it in")]
    NullKey {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: u64,
        /// `shard_id` or `ts`.
        column: &'static str,
    },
    /// A name is no identifier.
    #[error("row {row} of {path} has an invalid {column}")]
    BadId {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: u64,
        /// `shard_id` or `node_id`.
        column: &'static str,
        /// Why.
        #[source]
        source: IdError,
    },
    /// A column's name gives no series name.
    #[error("column {column} of {path} cannot name a series")]
    BadSeriesName {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Why.
        #[source]
        source: IdError,
    },
    /// A time lies where no measurement can; most often a wrong unit.
    #[error("row {row} of {place} is of {ts}, outside the years 1900 to 2200; check the unit of ts")]
    TimeOutside {
        /// The file, or what else was read.
        place: String,
        /// The row, counted from 0.
        row: u64,
        /// The time.
        ts: Timestamp,
    },
    /// Rows to be written are not in order.
    #[error(
        "row {row} ({shard}, {ts}) is not after the row before it; sort rows by shard_id, then ts, without repetition"
    )]
    NotSorted {
        /// The row, counted from 0.
        row: u64,
        /// Its shard.
        shard: ShardId,
        /// Its time.
        ts: Timestamp,
    },
    /// A file lies where only dated folders belong.
    #[error("{path} lies outside a date=YYYY-MM-DD folder; move it into one or name the file itself as the history")]
    StrayPiece {
        /// The file.
        path: PathBuf,
    },
    /// A writer's name cannot be part of a file name.
    #[error("writer name {name:?} must be 1 to 60 letters, digits, - or _ and not `compact`")]
    WriterName {
        /// What was given.
        name: String,
    },
    /// Another process, or another part of this one, writes under the same name.
    #[error("writer {name} already writes to {path}; stop it or choose another writer name")]
    WriterBusy {
        /// The writer.
        name: String,
        /// The folder.
        path: PathBuf,
    },
    /// A series that was there is not there any more.
    #[error("series {series} of {metric} is no longer what it was when the history was first read; train again")]
    Changed {
        /// Its place among the series of its metric.
        series: usize,
        /// Its metric.
        metric: Metric,
    },
    /// Whoever took the rows stopped the reading.
    #[error("reading was stopped by its consumer")]
    Consumer(#[source] Box<dyn std::error::Error + Send + Sync>),
}
