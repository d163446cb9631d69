//! Bringing data of other programs into the form of a history.

use std::collections::BTreeMap;
use std::path::Path;

use foreshard_domain::{Metric, NodeId, Observation, ShardId, Timestamp};
use serde::Serialize;

use crate::columns::{NODE, SHARD, TS};
use crate::table::parse_time;
use crate::{History, HistoryError, ReadFilter, ReadReport, TableError, read_history};

/// How to bring a file in.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// What to take.
    pub filter: ReadFilter,
    /// By node, its CPU speed relative to the reference node: measured utilisation times this is load. Rows of other
    /// nodes, or without one, stay as they are.
    pub speeds: BTreeMap<NodeId, f64>,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ImportReport {
    /// Rows written.
    pub rows: u64,
    /// Shards written.
    pub shards: usize,
    /// What was odd while reading.
    pub read: ReadReport,
    /// SHA-256 of the content.
    pub fingerprint: String,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The source cannot be read, or the history not written.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The source is a text file with something wrong in it.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A node's speed is no positive number.
    #[error("speed of node {node} must be a positive finite number, not {speed}")]
    Speed {
        /// The node.
        node: NodeId,
        /// What was given.
        speed: f64,
    },
}

/// Reads `from` (Parquet file or dated folder in the long layout, wide Parquet file, or a `.csv` file in the long layout),
/// converts CPU utilisation of known nodes to load, and writes one sorted history file without repetitions.
///
/// # Errors
/// [`ImportError`]; then nothing is written.
pub fn import(from: &Path, to: &Path, options: &ImportOptions) -> Result<ImportReport, ImportError> {
    let wrong = options.speeds.iter().find(|(_, speed)| !(speed.is_finite() && **speed > 0.0));
    if let Some((node, speed)) = wrong {
        return Err(ImportError::Speed { node: node.clone(), speed: *speed });
    }
    let csv = from.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    let mut history = if csv { read_csv(from, &options.filter)? } else { read_history(from, &options.filter)? };
    if !options.speeds.is_empty() {
        history.scale_cpu(&options.speeds);
    }
    let rows = history.write(to)?;
    let (shards, fingerprint) = (history.shards().count(), history.fingerprint());
    Ok(ImportReport { rows, shards, read: history.report().clone(), fingerprint })
}

/// Reads a CSV file in the long layout: a header with `shard_id`, `ts` (RFC 3339; without zone it is UTC) and metrics,
/// and where there are some `node_id`, `data_bytes`, `write_bytes_per_s`. Empty fields are missing values.
fn read_csv(path: &Path, filter: &ReadFilter) -> Result<History, ImportError> {
    let csv = |source| TableError::Csv { path: path.into(), source };
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_path(path).map_err(csv)?;
    let columns = CsvColumns::of(path, reader.headers().map_err(csv)?)?;
    let mut report = ReadReport { files: 1, ..ReadReport::default() };
    report.unknown_columns.extend(columns.unknown.iter().cloned());
    let mut rows = Vec::new();
    for (i, record) in reader.records().enumerate() {
        let row = columns.row(path, i, &record.map_err(csv)?)?;
        if filter.wants_shard(&row.shard) && filter.wants_time(row.ts.as_ms()) {
            rows.push(without_unwanted(row, filter));
        }
    }
    let mut history = History::from_observations(rows)?;
    history.note(report);
    Ok(history)
}

fn without_unwanted(mut row: Observation, filter: &ReadFilter) -> Observation {
    for metric in Metric::ALL.into_iter().filter(|m| !filter.wants_metric(*m)) {
        row.set(metric, None);
    }
    row
}

/// A column of numbers: its name and how it is put into a row.
type Number = (&'static str, fn(&mut Observation, f64));

const NUMBERS: [Number; 7] = [
    ("cpu_util", |row, v| row.cpu_util = Some(v)),
    ("mem_util", |row, v| row.mem_util = Some(v)),
    ("io_ops", |row, v| row.io_ops = Some(v)),
    ("latency_ms", |row, v| row.latency_ms = Some(v)),
    ("txn_rate", |row, v| row.txn_rate = Some(v)),
    ("data_bytes", |row, v| row.data_bytes = Some(v)),
    ("write_bytes_per_s", |row, v| row.write_bytes_per_s = Some(v)),
];

/// Where the columns of a CSV file are.
struct CsvColumns {
    shard: usize,
    ts: usize,
    node: Option<usize>,
    numbers: Vec<(usize, Number)>,
    unknown: Vec<String>,
}

impl CsvColumns {
    fn of(path: &Path, header: &csv::StringRecord) -> Result<Self, HistoryError> {
        let place = |name: &str| header.iter().position(|h| h == name);
        let found = || header.iter().collect::<Vec<_>>().join(", ");
        let need = |column: &'static str| {
            place(column).ok_or_else(|| HistoryError::MissingColumn { path: path.into(), column, found: found() })
        };
        let numbers: Vec<_> = NUMBERS.into_iter().filter_map(|n| Some((place(n.0)?, n))).collect();
        let is_metric = |(_, (name, _)): &(usize, Number)| name.parse::<Metric>().is_ok();
        let columns = Self {
            shard: need(SHARD)?,
            ts: need(TS)?,
            node: place(NODE),
            unknown: header.iter().filter(|h| !known(h)).map(str::to_owned).collect(),
            numbers,
        };
        if !columns.numbers.iter().any(is_metric) {
            let expected = Metric::ALL.map(Metric::name).join(", ");
            return Err(HistoryError::NoMetric { path: path.into(), found: found(), expected });
        }
        Ok(columns)
    }

    fn row(&self, path: &Path, i: usize, record: &csv::StringRecord) -> Result<Observation, ImportError> {
        let field = |at: usize| record.get(at).filter(|text| !text.is_empty());
        let row = i as u64;
        let need = |at, column| field(at).ok_or(HistoryError::NullKey { path: path.into(), row, column });
        let bad = |column: &str, text: &str, why: String| {
            let (column, text) = (column.to_owned(), text.to_owned());
            TableError::BadValue { path: path.into(), row: i, column, text, why }
        };
        let id = |column, source| HistoryError::BadId { path: path.into(), row, column, source };
        let shard = ShardId::new(need(self.shard, SHARD)?).map_err(|e| id(SHARD, e))?;
        let text = need(self.ts, TS)?;
        let ts: Timestamp = parse_time(text).map_err(|why| bad(TS, text, why))?;
        let mut observation = Observation::empty(shard, ts);
        if let Some(node) = self.node.and_then(field) {
            observation.node = Some(NodeId::new(node).map_err(|e| id(NODE, e))?);
        }
        for (at, (name, put)) in &self.numbers {
            if let Some(text) = field(*at) {
                let value = text.parse().map_err(|_| bad(name, text, "expected a number or nothing".to_owned()))?;
                put(&mut observation, value);
            }
        }
        Ok(observation)
    }
}

fn known(name: &str) -> bool {
    [SHARD, NODE, TS].contains(&name) || NUMBERS.iter().any(|(number, _)| *number == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "ts,shard_id,node_id,cpu_util,note\n\
        2024-05-01T10:05:00Z,b,n2,20,x\n\
        2024-05-01T10:00:00Z,a,n1,10,\n\
        2024-05-01T10:05:00Z,a,n1,,\n\
        2024-05-01T10:05:00Z,b,n2,40,\n";

    fn bring(text: &str, options: &ImportOptions) -> Result<(ImportReport, History), ImportError> {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("in.csv"), dir.path().join("out.parquet"));
        std::fs::write(&from, text).unwrap();
        let report = import(&from, &to, options).inspect_err(|_| assert!(!to.exists()))?;
        Ok((report, read_history(&to, &ReadFilter::default()).unwrap()))
    }

    #[test]
    fn csv_becomes_a_sorted_history_in_units_of_load() {
        let speeds = BTreeMap::from([(NodeId::new("n2").unwrap(), 2.5)]);
        let (report, history) = bring(TEXT, &ImportOptions { speeds, ..ImportOptions::default() }).unwrap();
        assert_eq!((report.rows, report.shards, report.read.duplicates), (3, 2, 1));
        assert!(report.read.unknown_columns.contains("note"));
        assert_eq!(report.fingerprint, history.fingerprint());
        let cpu: Vec<_> = history.observations().map(|r| r.cpu_util).collect();
        assert_eq!(cpu, [Some(10.0), None, Some(100.0)]);
    }

    #[test]
    fn errors_name_row_and_column() {
        let error = |text: &str| bring(text, &ImportOptions::default()).unwrap_err().to_string();
        assert!(error(&TEXT.replace("40", "many")).contains("row 3"));
        assert!(error(&TEXT.replace("10:00:00Z", "ten")).contains("row 1"));
        assert!(error(&TEXT.replace("shard_id", "shard")).contains("shard_id"));
        assert!(error(&TEXT.replace("cpu_util", "cpu")).contains("no metric column"));
        assert!(error(&TEXT.replace(",b,", ",,")).contains("no shard_id"));
        let speeds = BTreeMap::from([(NodeId::new("n2").unwrap(), 0.0)]);
        let options = ImportOptions { speeds, ..ImportOptions::default() };
        assert!(matches!(bring(TEXT, &options), Err(ImportError::Speed { .. })));
    }

    #[test]
    fn parquet_keeps_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("in.parquet"), dir.path().join("out.parquet"));
        let (_, history) = bring(TEXT, &ImportOptions::default()).unwrap();
        history.write(&from).unwrap();
        let report = import(&from, &to, &ImportOptions::default()).unwrap();
        assert_eq!(report.fingerprint, history.fingerprint());
    }
}
