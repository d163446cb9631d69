//! From the columns of a Parquet batch to runs of rows of one shard.

use std::path::Path;

use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use foreshard_domain::{Metric, NodeId, ShardId, Timestamp};

use crate::HistoryError;
use crate::columns::{self, NODE, SHARD, TS, VALUE_NAMES, VALUES};
use crate::history::{ReadFilter, ReadReport};
use crate::rows::Run;

/// Which columns of a file hold what.
#[derive(Debug)]
pub(crate) enum Layout {
    /// One row for each shard and time.
    Long {
        /// Whether rows name their node.
        node: bool,
        /// Slots of the number columns that are there and wanted.
        slots: Vec<usize>,
    },
    /// One row for each time, one column for each series.
    Wide {
        /// Column names and the series that they become.
        series: Vec<(String, ShardId)>,
    },
}

impl Layout {
    /// Finds the layout of a file from its schema, and notes the columns that are passed over.
    pub(crate) fn of(
        path: &Path,
        schema: &Schema,
        filter: &ReadFilter,
        report: &mut ReadReport,
    ) -> Result<Self, HistoryError> {
        let has = |name: &str| schema.fields().iter().any(|f| f.name() == name);
        let missing = |column| HistoryError::MissingColumn { path: path.into(), column, found: names(schema) };
        let looks_long = has(NODE) || VALUE_NAMES.iter().any(|name| has(name));
        if !has(SHARD) && looks_long {
            return Err(missing(SHARD));
        }
        if !has(TS) {
            return Err(missing(TS));
        }
        check_type(path, schema, TS, |t| matches!(t, DataType::Timestamp(..)), "a timestamp")?;
        if has(SHARD) { Self::long(path, schema, filter, report) } else { Self::wide(path, schema, filter, report) }
    }

    fn long(path: &Path, schema: &Schema, filter: &ReadFilter, report: &mut ReadReport) -> Result<Self, HistoryError> {
        let has = |name: &str| schema.fields().iter().any(|f| f.name() == name);
        check_type(path, schema, SHARD, is_text, "text")?;
        let node = has(NODE);
        if node {
            check_type(path, schema, NODE, |t| is_text(t) || t.is_null(), "text")?;
        }
        let mut slots = Vec::new();
        let mut any_metric = false;
        for (slot, name) in VALUE_NAMES.iter().enumerate().filter(|(_, name)| has(name)) {
            check_type(path, schema, name, |t| is_number(t) || t.is_null(), "a number (float64)")?;
            let metric = columns::metric_at(slot);
            any_metric |= metric.is_some();
            if metric.is_none_or(|m| filter.wants_metric(m)) {
                slots.push(slot);
            }
        }
        if !any_metric {
            let expected = Metric::ALL.map(Metric::name).join(", ");
            return Err(HistoryError::NoMetric { path: path.into(), found: names(schema), expected });
        }
        let known = |name: &str| [SHARD, NODE, TS].contains(&name) || VALUE_NAMES.contains(&name);
        let unknown = schema.fields().iter().map(|f| f.name()).filter(|name| !known(name)).cloned();
        report.unknown_columns.extend(unknown);
        Ok(Layout::Long { node, slots })
    }

    fn wide(path: &Path, schema: &Schema, filter: &ReadFilter, report: &mut ReadReport) -> Result<Self, HistoryError> {
        let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let mut series = Vec::new();
        let mut numeric = false;
        for field in schema.fields().iter().filter(|f| f.name() != TS) {
            if !is_number(field.data_type()) {
                report.unknown_columns.insert(field.name().clone());
                continue;
            }
            numeric = true;
            let column = field.name().clone();
            let shard = ShardId::new(format!("{stem}/{column}")).map_err(|source| HistoryError::BadSeriesName {
                path: path.into(),
                column: column.clone(),
                source,
            })?;
            if filter.wants_shard(&shard) && filter.wants_metric(Metric::Value) {
                series.push((column, shard));
            }
        }
        if !numeric {
            let expected = "any column of numbers".to_owned();
            return Err(HistoryError::NoMetric { path: path.into(), found: names(schema), expected });
        }
        Ok(Layout::Wide { series })
    }

    /// Names of the columns to decode.
    pub(crate) fn wanted(&self) -> Vec<&str> {
        match self {
            Layout::Long { node, slots } => {
                let mut wanted = vec![SHARD, TS];
                wanted.extend(node.then_some(NODE));
                wanted.extend(slots.iter().filter_map(|slot| VALUE_NAMES.get(*slot)));
                wanted
            }
            Layout::Wide { series } => {
                std::iter::once(TS).chain(series.iter().map(|(column, _)| column.as_str())).collect()
            }
        }
    }
}

fn names(schema: &Schema) -> String {
    schema.fields().iter().map(|f| f.name().as_str()).collect::<Vec<_>>().join(", ")
}

fn check_type(
    path: &Path,
    schema: &Schema,
    column: &str,
    good: impl Fn(&DataType) -> bool,
    expected: &'static str,
) -> Result<(), HistoryError> {
    match schema.fields().iter().find(|f| f.name() == column) {
        Some(field) if !good(field.data_type()) => Err(HistoryError::ColumnType {
            path: path.into(),
            column: column.to_owned(),
            found: field.data_type().to_string(),
            expected,
        }),
        _ => Ok(()),
    }
}

/// Text in any of its forms, also by dictionary.
pub(crate) fn is_text(t: &DataType) -> bool {
    match t {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        DataType::Dictionary(_, values) => is_text(values),
        _ => false,
    }
}

/// Numbers in any of their forms.
pub(crate) fn is_number(t: &DataType) -> bool {
    t.is_integer() || t.is_floating()
}

/// Text of any form as plain strings.
pub(crate) fn as_text(array: &ArrayRef) -> Result<StringArray, arrow::error::ArrowError> {
    let plain = arrow::compute::cast(array, &DataType::Utf8)?;
    Ok(StringArray::from(plain.to_data()))
}

/// Times of any unit in milliseconds, rounded down; absent ones are `None`.
pub(crate) fn as_ms(array: &ArrayRef) -> Result<Int64Array, arrow::error::ArrowError> {
    let (per_ms, ms_per) = match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => (1, 1000),
        DataType::Timestamp(TimeUnit::Microsecond, _) => (1000, 1),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => (1_000_000, 1),
        _ => (1, 1),
    };
    if let Some(ms) = array.as_any().downcast_ref::<TimestampMillisecondArray>() {
        return Ok(Int64Array::new(ms.values().clone(), ms.nulls().cloned()));
    }
    let raw = Int64Array::from(arrow::compute::cast(array, &DataType::Int64)?.to_data());
    Ok(raw.unary(|v| v.div_euclid(per_ms).saturating_mul(ms_per)))
}

/// Numbers of any form; absent ones are NaN. Also how many are there but not finite; those become NaN as well.
pub(crate) fn as_numbers(array: &ArrayRef) -> Result<(Vec<f64>, u64), arrow::error::ArrowError> {
    let plain = match array.data_type() {
        DataType::Float64 => array.clone(),
        _ => arrow::compute::cast(array, &DataType::Float64)?,
    };
    let floats = Float64Array::from(plain.to_data());
    let mut values = floats.values().to_vec();
    if let Some(nulls) = floats.nulls() {
        for (i, value) in values.iter_mut().enumerate() {
            if nulls.is_null(i) {
                *value = f64::NAN;
            }
        }
    }
    let odd = values.iter().filter(|v| !v.is_finite()).count().saturating_sub(floats.null_count());
    if odd > 0 {
        values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = f64::NAN);
    }
    Ok((values, odd as u64))
}

/// Decodes the batches of one file.
pub(crate) struct Decoder<'a> {
    pub(crate) path: &'a Path,
    pub(crate) layout: &'a Layout,
    pub(crate) filter: &'a ReadFilter,
    /// Rows decoded so far, for messages.
    pub(crate) offset: u64,
}

impl Decoder<'_> {
    /// Checks one batch and hands on its wanted rows, run by run.
    pub(crate) fn batch(
        &mut self,
        batch: &RecordBatch,
        report: &mut ReadReport,
        take: &mut dyn FnMut(&Run<'_>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let arrow = |source| HistoryError::Arrow { path: self.path.into(), source };
        let column = |name: &'static str| {
            let missing = || HistoryError::MissingColumn {
                path: self.path.into(),
                column: name,
                found: names(batch.schema_ref()),
            };
            batch.column_by_name(name).ok_or_else(missing)
        };
        let ts = as_ms(column(TS)?).map_err(arrow)?;
        self.check_times(&ts)?;
        match self.layout {
            Layout::Long { node, slots } => {
                let shards = as_text(column(SHARD)?).map_err(arrow)?;
                let nodes = if *node { Some(as_text(column(NODE)?).map_err(arrow)?) } else { None };
                let mut values: [Option<Vec<f64>>; VALUES] = std::array::from_fn(|_| None);
                for slot in slots {
                    let (Some(name), Some(place)) = (VALUE_NAMES.get(*slot), values.get_mut(*slot)) else { continue };
                    *place = Some(self.numbers(batch, name, report)?);
                }
                self.long_runs(&shards, nodes.as_ref(), ts.values(), &values, take)?;
            }
            Layout::Wide { series } => {
                for (name, shard) in series {
                    let column = self.numbers(batch, name, report)?;
                    let mut values: [Option<&[f64]>; VALUES] = [None; VALUES];
                    values[columns::slot(Metric::Value)] = Some(&column);
                    self.wanted_parts(&Run { shard, nodes: &[], ts: ts.values(), values }, take)?;
                }
            }
        }
        self.offset += batch.num_rows() as u64;
        Ok(())
    }

    fn numbers(&self, batch: &RecordBatch, name: &str, report: &mut ReadReport) -> Result<Vec<f64>, HistoryError> {
        let Some(array) = batch.column_by_name(name) else { return Ok(vec![f64::NAN; batch.num_rows()]) };
        let (values, odd) =
            as_numbers(array).map_err(|source| HistoryError::Arrow { path: self.path.into(), source })?;
        if odd > 0 {
            *report.not_finite.entry(name.to_owned()).or_default() += odd;
        }
        Ok(values)
    }

    fn check_times(&self, ts: &Int64Array) -> Result<(), HistoryError> {
        if let Some(i) = (0..ts.len()).find(|i| ts.is_null(*i)) {
            return Err(HistoryError::NullKey { path: self.path.into(), row: self.offset + i as u64, column: TS });
        }
        match ts.values().iter().enumerate().find(|(_, ms)| !columns::plausible(**ms)) {
            Some((i, ms)) => Err(HistoryError::TimeOutside {
                place: self.path.display().to_string(),
                row: self.offset + i as u64,
                ts: Timestamp::from_ms(*ms),
            }),
            None => Ok(()),
        }
    }

    fn long_runs(
        &self,
        shards: &StringArray,
        nodes: Option<&StringArray>,
        ts: &[i64],
        values: &[Option<Vec<f64>>; VALUES],
        take: &mut dyn FnMut(&Run<'_>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let mut start = 0;
        while start < ts.len() {
            if shards.is_null(start) {
                let row = self.offset + start as u64;
                return Err(HistoryError::NullKey { path: self.path.into(), row, column: SHARD });
            }
            let name = shards.value(start);
            let same = |i: &usize| !shards.is_null(*i) && shards.value(*i) == name;
            let end = start + 1 + (start + 1..ts.len()).take_while(same).count();
            let shard = ShardId::new(name).map_err(|source| self.bad_id(start, SHARD, source))?;
            if self.filter.wants_shard(&shard) {
                let nodes = self.node_names(nodes, start..end)?;
                let part = |slot: usize| values.get(slot)?.as_deref()?.get(start..end);
                let values = std::array::from_fn(part);
                let ts = ts.get(start..end).unwrap_or_default();
                self.wanted_parts(&Run { shard: &shard, nodes: &nodes, ts, values }, take)?;
            }
            start = end;
        }
        Ok(())
    }

    fn node_names(
        &self,
        nodes: Option<&StringArray>,
        range: std::ops::Range<usize>,
    ) -> Result<Vec<Option<NodeId>>, HistoryError> {
        let Some(nodes) = nodes.filter(|nodes| nodes.null_count() < nodes.len()) else { return Ok(Vec::new()) };
        let mut names: Vec<Option<NodeId>> = Vec::with_capacity(range.len());
        for i in range {
            if nodes.is_null(i) {
                names.push(None);
                continue;
            }
            let text = nodes.value(i);
            let recent = names.last().and_then(|n| n.as_ref()).filter(|n| n.as_str() == text).cloned();
            let name = match recent {
                Some(name) => name,
                None => NodeId::new(text).map_err(|source| self.bad_id(i, NODE, source))?,
            };
            names.push(Some(name));
        }
        Ok(names)
    }

    fn bad_id(&self, i: usize, column: &'static str, source: foreshard_domain::IdError) -> HistoryError {
        HistoryError::BadId { path: self.path.into(), row: self.offset + i as u64, column, source }
    }

    /// Hands on the stretches of a run that lie in the wanted span of time.
    fn wanted_parts(
        &self,
        run: &Run<'_>,
        take: &mut dyn FnMut(&Run<'_>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        if self.filter.from.is_none() && self.filter.to.is_none() {
            return take(run);
        }
        let mut start = 0;
        while start < run.ts.len() {
            let wanted = |i: usize| run.ts.get(i).is_some_and(|ms| self.filter.wants_time(*ms));
            let keep = wanted(start);
            let end = start + 1 + (start + 1..run.ts.len()).take_while(|i| wanted(*i) == keep).count();
            if keep {
                take(&Run {
                    shard: run.shard,
                    nodes: run.nodes.get(start..end).unwrap_or_default(),
                    ts: run.ts.get(start..end).unwrap_or_default(),
                    values: run.values.map(|v| v.and_then(|v| v.get(start..end))),
                })?;
            }
            start = end;
        }
        Ok(())
    }
}
