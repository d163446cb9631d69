//! Opening Parquet files that may be damaged: every fault is an error, also those at which the decoder panics.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaData;

/// Why a file could not be opened.
pub(crate) enum OpenFailure {
    Io(io::Error),
    Parquet(ParquetError),
}

/// Opens a file and checks that what its footer promises lies inside it.
pub(crate) fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, OpenFailure> {
    let file = File::open(path).map_err(OpenFailure::Io)?;
    let length = file.metadata().map_err(OpenFailure::Io)?.len();
    let builder = guarded(|| ParquetRecordBatchReaderBuilder::try_new(file)).map_err(OpenFailure::Parquet)?;
    check(builder.metadata(), length).map_err(OpenFailure::Parquet)?;
    Ok(builder)
}

fn check(metadata: &ParquetMetaData, length: u64) -> Result<(), ParquetError> {
    let corrupt = |what: &str| Err(ParquetError::General(format!("the footer is damaged: {what}")));
    for group in metadata.row_groups() {
        if group.num_rows() < 0 {
            return corrupt("a row group has a negative length");
        }
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
            let end = u64::try_from(start).ok().zip(u64::try_from(column.compressed_size()).ok());
            if end.and_then(|(start, size)| start.checked_add(size)).is_none_or(|end| end > length) {
                return corrupt("a column lies outside the file");
            }
        }
    }
    Ok(())
}

/// Runs the decoder; a panic inside it, which damaged data can cause, becomes an error.
fn guarded<T>(decode: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    let caught = catch_unwind(AssertUnwindSafe(decode));
    caught.unwrap_or_else(|_| Err(ParquetError::General("the decoder gave up on damaged data".into())))
}

/// The batches of a file.
pub(crate) struct Batches {
    reader: ParquetRecordBatchReader,
    broken: bool,
}

impl Batches {
    pub(crate) fn new(builder: ParquetRecordBatchReaderBuilder<File>) -> Result<Self, ParquetError> {
        Ok(Self { reader: guarded(|| builder.build())?, broken: false })
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.broken {
            return None;
        }
        let read = guarded(|| {
            self.reader.next().transpose().map_err(|e| match e {
                ArrowError::ParquetError(text) => ParquetError::General(text),
                other => ParquetError::ArrowError(other.to_string()),
            })
        });
        self.broken = read.is_err();
        read.transpose()
    }
}
