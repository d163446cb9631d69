//! Opening Parquet files that may be damaged: every fault is an error, also those at which the decoder panics.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};

/// Why a file could not be opened.
pub(crate) enum OpenFailure {
    Io(io::Error),
    Parquet(ParquetError),
}

/// An open Parquet file whose footer was read.
pub(crate) struct Source {
    file: File,
    metadata: ArrowReaderMetadata,
}

impl Source {
    /// Opens a file and checks that what its footer promises lies inside it.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenFailure> {
        let file = File::open(path).map_err(OpenFailure::Io)?;
        let length = file.metadata().map_err(OpenFailure::Io)?.len();
        let options = ArrowReaderOptions::new();
        let metadata = guarded(|| ArrowReaderMetadata::load(&file, options)).map_err(OpenFailure::Parquet)?;
        check(metadata.metadata(), length).map_err(OpenFailure::Parquet)?;
        Ok(Self { file, metadata })
    }

    /// The columns.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.metadata.schema()
    }

    /// The row groups, in order.
    pub(crate) fn groups(&self) -> &[RowGroupMetaData] {
        self.metadata.metadata().row_groups()
    }

    fn builder(&self) -> Result<ParquetRecordBatchReaderBuilder<File>, ParquetError> {
        Ok(ParquetRecordBatchReaderBuilder::new_with_metadata(self.file.try_clone()?, self.metadata.clone()))
    }

    /// The batches of the whole file, all columns.
    pub(crate) fn batches(&self) -> Result<Batches, ParquetError> {
        Batches::new(self.builder()?)
    }

    /// The batches of one row group, of the columns of these names.
    pub(crate) fn batches_of(&self, group: usize, wanted: &[&str], rows: usize) -> Result<Batches, ParquetError> {
        let fields = self.schema().fields().iter().enumerate();
        let roots = fields.filter(|(_, f)| wanted.contains(&f.name().as_str())).map(|(i, _)| i);
        let mask = ProjectionMask::roots(self.metadata.parquet_schema(), roots);
        let builder = self.builder()?.with_row_groups(vec![group]).with_projection(mask).with_batch_size(rows);
        Batches::new(builder)
    }
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
    fn new(builder: ParquetRecordBatchReaderBuilder<File>) -> Result<Self, ParquetError> {
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
