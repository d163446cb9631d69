//! Small tables: columns of text, numbers and times in Parquet, or the same in CSV.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Schema};
use foreshard_domain::Timestamp;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;

use crate::atomic::write_atomically;
use crate::columns::ts_type;
use crate::decode::{as_ms, as_numbers, as_text, is_number, is_text};
use crate::source::{OpenFailure, Source};
use crate::write::compression;

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file system refused.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
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
    /// A column cannot be decoded or encoded.
    #[error("cannot convert a column of {path}")]
    Arrow {
        /// The file.
        path: PathBuf,
        /// Why.
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
    /// The file is no CSV.
    #[error("cannot read {path} as CSV")]
    Csv {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: csv::Error,
    },
    /// A needed column is not there.
    #[error("{path} has no column {column}; it has {found}")]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The columns that are there.
        found: String,
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
    /// A row lacks a needed value.
    #[error("row {row} of {path} has no {column}")]
    MissingValue {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// The column.
        column: String,
    },
    /// A value cannot be.
    #[error("row {row} of {path} has {text:?} as {column}: {why}")]
    BadValue {
        /// The file.
        path: PathBuf,
        /// The row, counted from 0.
        row: usize,
        /// The column.
        column: String,
        /// The value.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Collects the columns of a table to be written.
#[derive(Default)]
pub(crate) struct TableBuilder {
    fields: Vec<Field>,
    arrays: Vec<ArrayRef>,
}

impl TableBuilder {
    fn column(mut self, name: impl Into<String>, array: ArrayRef) -> Self {
        self.fields.push(Field::new(name.into(), array.data_type().clone(), array.null_count() > 0));
        self.arrays.push(array);
        self
    }

    pub(crate) fn text<'a>(self, name: &str, values: impl Iterator<Item = Option<&'a str>>) -> Self {
        let array: StringArray = values.collect();
        self.column(name, Arc::new(array))
    }

    /// Numbers; what is not finite is written as absent.
    pub(crate) fn numbers(self, name: &str, values: impl Iterator<Item = Option<f64>>) -> Self {
        let array: Float64Array = values.map(|v| v.filter(|v| v.is_finite())).collect();
        self.column(name, Arc::new(array))
    }

    pub(crate) fn floats(self, name: String, values: impl Iterator<Item = Option<f32>>) -> Self {
        let array: Float32Array = values.map(|v| v.filter(|v| v.is_finite())).collect();
        self.column(name, Arc::new(array))
    }

    pub(crate) fn integers(self, name: &str, values: impl Iterator<Item = Option<i64>>) -> Self {
        let array: Int64Array = values.collect();
        self.column(name, Arc::new(array))
    }

    pub(crate) fn times(self, name: &str, values: impl Iterator<Item = Option<Timestamp>>) -> Self {
        let array: TimestampMillisecondArray = values.map(|v| v.map(Timestamp::as_ms)).collect();
        self.column(name, Arc::new(array.with_data_type(ts_type())))
    }

    /// Writes the table; it appears whole or not at all.
    pub(crate) fn write(self, path: &Path) -> Result<(), TableError> {
        let wrap = |doing, source| TableError::Io { doing, path: path.into(), source };
        let encode = |source| TableError::Encode { path: path.into(), source };
        let schema = Arc::new(Schema::new(self.fields));
        let batch = RecordBatch::try_new(schema.clone(), self.arrays)
            .map_err(|source| TableError::Arrow { path: path.into(), source })?;
        let properties = WriterProperties::builder().set_compression(compression()).build();
        write_atomically(path, wrap, |file| {
            let buffered = io::BufWriter::new(file);
            let mut writer = ArrowWriter::try_new(buffered, schema, Some(properties)).map_err(encode)?;
            writer.write(&batch).map_err(encode)?;
            writer.close().map_err(encode)?;
            Ok(())
        })
    }
}

/// A table that was read.
#[derive(Debug)]
pub(crate) struct Table {
    path: PathBuf,
    batch: RecordBatch,
    /// Everything is text, because the file was.
    from_text: bool,
}

impl Table {
    /// Reads a table, as CSV if the file is named `.csv`, else as Parquet.
    pub(crate) fn read(path: &Path) -> Result<Self, TableError> {
        let csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
        let batch = if csv { read_csv(path)? } else { read_parquet(path)? };
        Ok(Self { path: path.to_owned(), batch, from_text: csv })
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.batch.schema_ref().fields().iter().map(|f| f.name().clone()).collect()
    }

    fn array(&self, name: &str) -> Result<&ArrayRef, TableError> {
        let missing = || TableError::MissingColumn {
            path: self.path.clone(),
            column: name.to_owned(),
            found: self.names().join(", "),
        };
        self.batch.column_by_name(name).ok_or_else(missing)
    }

    fn wrong_type(&self, name: &str, found: &DataType, expected: &'static str) -> TableError {
        let (path, column) = (self.path.clone(), name.to_owned());
        TableError::ColumnType { path, column, found: found.to_string(), expected }
    }

    fn arrow(&self, source: arrow::error::ArrowError) -> TableError {
        TableError::Arrow { path: self.path.clone(), source }
    }

    pub(crate) fn bad(&self, row: usize, column: &str, text: &str, why: String) -> TableError {
        let (path, column, text) = (self.path.clone(), column.to_owned(), text.to_owned());
        TableError::BadValue { path, row, column, text, why }
    }

    pub(crate) fn text<'a>(&'a self, name: &'a str) -> Result<TextColumn<'a>, TableError> {
        let array = self.array(name)?;
        if array.data_type().is_null() {
            return Ok(TextColumn { table: self, name, array: StringArray::new_null(array.len()) });
        }
        if !is_text(array.data_type()) {
            return Err(self.wrong_type(name, array.data_type(), "text"));
        }
        let array = as_text(array).map_err(|e| self.arrow(e))?;
        Ok(TextColumn { table: self, name, array })
    }

    /// A column of text, all absent if the column is not there.
    pub(crate) fn text_or_none<'a>(&'a self, name: &'a str) -> Result<TextColumn<'a>, TableError> {
        match self.batch.column_by_name(name) {
            Some(_) => self.text(name),
            None => Ok(TextColumn { table: self, name, array: StringArray::new_null(self.rows()) }),
        }
    }

    pub(crate) fn numbers<'a>(&'a self, name: &'a str) -> Result<Column<'a, f64>, TableError> {
        let array = self.array(name)?;
        let t = array.data_type();
        let values = if self.from_text {
            self.parsed(name, |text| text.parse::<f64>().map_err(|e| e.to_string()))?
        } else if is_number(t) || t.is_null() {
            let (values, _) = as_numbers(array).map_err(|e| self.arrow(e))?;
            values.into_iter().map(|v| (!v.is_nan()).then_some(v)).collect()
        } else {
            return Err(self.wrong_type(name, t, "a number"));
        };
        Ok(Column { table: self, name, values })
    }

    /// A column of numbers, all absent if the column is not there.
    pub(crate) fn numbers_or_none<'a>(&'a self, name: &'a str) -> Result<Column<'a, f64>, TableError> {
        match self.batch.column_by_name(name) {
            Some(_) => self.numbers(name),
            None => Ok(Column { table: self, name, values: vec![None; self.rows()] }),
        }
    }

    pub(crate) fn integers<'a>(&'a self, name: &'a str) -> Result<Column<'a, i64>, TableError> {
        let array = self.array(name)?;
        if !array.data_type().is_integer() {
            return Err(self.wrong_type(name, array.data_type(), "an integer"));
        }
        let plain = arrow::compute::cast(array, &DataType::Int64).map_err(|e| self.arrow(e))?;
        Ok(Column { table: self, name, values: Int64Array::from(plain.to_data()).iter().collect() })
    }

    pub(crate) fn times<'a>(&'a self, name: &'a str) -> Result<Column<'a, Timestamp>, TableError> {
        let array = self.array(name)?;
        let t = array.data_type();
        let values = if self.from_text {
            self.parsed(name, parse_time)?
        } else if matches!(t, DataType::Timestamp(..)) {
            as_ms(array).map_err(|e| self.arrow(e))?.iter().map(|ms| ms.map(Timestamp::from_ms)).collect()
        } else {
            return Err(self.wrong_type(name, t, "a timestamp"));
        };
        Ok(Column { table: self, name, values })
    }

    fn parsed<T>(&self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<Option<T>>, TableError> {
        let column = self.text(name)?;
        let one = |row: usize| match column.get(row) {
            None => Ok(None),
            Some(text) => parse(text).map(Some).map_err(|why| self.bad(row, name, text, why)),
        };
        (0..self.rows()).map(one).collect()
    }
}

/// A time of a text file: RFC 3339, or the same without zone, which is UTC.
pub(crate) fn parse_time(text: &str) -> Result<Timestamp, String> {
    if let Ok(ts) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_ms(ts.as_millisecond()));
    }
    let civil: jiff::civil::DateTime =
        text.parse().map_err(|_| "expected a time like 2024-05-01T10:00:00Z".to_owned())?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
    Ok(Timestamp::from_ms(zoned.timestamp().as_millisecond()))
}

/// A column of text.
pub(crate) struct TextColumn<'a> {
    table: &'a Table,
    name: &'a str,
    array: StringArray,
}

impl TextColumn<'_> {
    /// Empty text of a text file is absent.
    pub(crate) fn get(&self, row: usize) -> Option<&str> {
        let there = row < self.array.len() && !self.array.is_null(row);
        there.then(|| self.array.value(row)).filter(|text| !(self.table.from_text && text.is_empty()))
    }

    pub(crate) fn need(&self, row: usize) -> Result<&str, TableError> {
        let (path, column) = (&self.table.path, self.name);
        self.get(row).ok_or_else(|| TableError::MissingValue { path: path.clone(), row, column: column.to_owned() })
    }

    /// The value as an identifier, a metric or whatever else is written as text.
    pub(crate) fn parse<T: FromStr<Err: std::fmt::Display>>(&self, row: usize) -> Result<T, TableError> {
        let text = self.need(row)?;
        text.parse().map_err(|e: T::Err| self.table.bad(row, self.name, text, e.to_string()))
    }

    pub(crate) fn parse_optional<T: FromStr<Err: std::fmt::Display>>(
        &self,
        row: usize,
    ) -> Result<Option<T>, TableError> {
        self.get(row).map(|_| self.parse(row)).transpose()
    }

    /// The one of `known` whose name stands in the row.
    pub(crate) fn one_of<T: Copy>(
        &self,
        row: usize,
        known: &[T],
        name: impl Fn(T) -> &'static str,
    ) -> Result<T, TableError> {
        let text = self.need(row)?;
        let names = || known.iter().map(|k| name(*k)).collect::<Vec<_>>().join(", ");
        let found = known.iter().copied().find(|k| name(*k) == text);
        found.ok_or_else(|| self.table.bad(row, self.name, text, format!("expected one of {}", names())))
    }
}

/// A column of numbers or times.
pub(crate) struct Column<'a, T> {
    table: &'a Table,
    name: &'a str,
    values: Vec<Option<T>>,
}

impl<T: Copy> Column<'_, T> {
    pub(crate) fn get(&self, row: usize) -> Option<T> {
        self.values.get(row).copied().flatten()
    }

    pub(crate) fn need(&self, row: usize) -> Result<T, TableError> {
        let (path, column) = (&self.table.path, self.name);
        self.get(row).ok_or_else(|| TableError::MissingValue { path: path.clone(), row, column: column.to_owned() })
    }
}

fn read_parquet(path: &Path) -> Result<RecordBatch, TableError> {
    let parquet = |source| TableError::Parquet { path: path.into(), source };
    let source = Source::open(path).map_err(|failure| match failure {
        OpenFailure::Io(source) => TableError::Io { doing: "open", path: path.into(), source },
        OpenFailure::Parquet(source) => parquet(source),
    })?;
    let schema = source.schema().clone();
    let batches = source.batches().map_err(parquet)?.collect::<Result<Vec<_>, _>>().map_err(parquet)?;
    arrow::compute::concat_batches(&schema, &batches).map_err(|source| TableError::Arrow { path: path.into(), source })
}

fn read_csv(path: &Path) -> Result<RecordBatch, TableError> {
    let csv = |source| TableError::Csv { path: path.into(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(csv)?;
    let names: Vec<String> = reader.headers().map_err(csv)?.iter().map(str::to_owned).collect();
    let mut columns: Vec<Vec<String>> = vec![Vec::new(); names.len()];
    for record in reader.records() {
        let record = record.map_err(csv)?;
        for (column, text) in columns.iter_mut().zip(&record) {
            column.push(text.to_owned());
        }
    }
    let schema = Schema::new(names.iter().map(|n| Field::new(n, DataType::Utf8, true)).collect::<Vec<_>>());
    let arrays = columns.into_iter().map(|c| Arc::new(StringArray::from(c)) as ArrayRef).collect();
    RecordBatch::try_new(Arc::new(schema), arrays).map_err(|source| TableError::Arrow { path: path.into(), source })
}
