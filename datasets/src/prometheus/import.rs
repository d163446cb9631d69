//! A range of Prometheus's past as a history.

use foreshard_domain::{NodeId, Observation, Step, Timestamp};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

use super::MappingError;
use super::pulled::{PulledCounts, PulledRows, PulledSeries};
use super::source::{PrometheusSource, SourceError};
use crate::{History, HistoryError};

/// What is imported.
#[derive(Debug, Clone)]
pub struct RangeImport {
    /// Queries, and what the series that they give become.
    pub series: Vec<PulledSeries>,
    /// From here ...
    pub from: Timestamp,
    /// ... to before there.
    pub to: Timestamp,
    /// Distance of the values. Times are multiples of it, as those of a history on a grid.
    pub step: Step,
    /// By node, its CPU speed relative to the reference node: measured utilisation times this is load.
    pub speeds: BTreeMap<NodeId, f64>,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RangeReport {
    /// Rows written.
    pub rows: u64,
    /// Shards written.
    pub shards: usize,
    /// What became of the values.
    pub values: PulledCounts,
    /// Why the first of those was left out that should not have been there.
    pub left_out: Option<String>,
    /// SHA-256 of the content.
    pub fingerprint: String,
}

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum RangeImportError {
    /// A mapping cannot be used.
    #[error("{query:?} cannot be imported")]
    Mapping {
        /// Its query.
        query: String,
        /// Why not.
        #[source]
        source: MappingError,
    },
    /// There is no time between the ends.
    #[error("nothing lies between {from} and {to}; the end must be later")]
    Range {
        /// The beginning.
        from: Timestamp,
        /// The end.
        to: Timestamp,
    },
    /// Prometheus did not tell.
    #[error("nothing was imported")]
    Source(#[from] SourceError),
    /// No query gave a value.
    #[error(
        "no query gave a value between {from} and {to}; does Prometheus keep its data so long, and do the queries name what it has"
    )]
    Nothing {
        /// The beginning.
        from: Timestamp,
        /// The end.
        to: Timestamp,
    },
    /// The history cannot be written.
    #[error("what Prometheus told cannot be written")]
    History(#[from] HistoryError),
}

/// Asks for all of `what` and writes it as one sorted history file. `told` hears of each query before it is asked.
///
/// # Errors
/// [`RangeImportError`]; then nothing is written.
pub fn import_range(
    source: &PrometheusSource,
    what: &RangeImport,
    to_file: &Path,
    told: &mut dyn FnMut(&PulledSeries),
) -> Result<RangeReport, RangeImportError> {
    let step = what.step;
    // The first multiple of the step that is not before the beginning.
    let from = step.floor(what.from.plus_ms(step.as_ms() - 1));
    if from >= what.to {
        return Err(RangeImportError::Range { from: what.from, to: what.to });
    }
    for series in &what.series {
        series.check().map_err(|source| RangeImportError::Mapping { query: series.query.clone(), source })?;
    }
    let mut rows = PulledRows::default();
    for series in &what.series {
        told(series);
        source.range(&series.query, (from, what.to, step), &mut |answer| rows.add(series, &answer))?;
    }
    let (values, left_out) = (rows.counts(), rows.example().map(str::to_owned));
    let rows: Vec<Observation> = rows.into_rows().collect();
    if rows.is_empty() {
        return Err(RangeImportError::Nothing { from: what.from, to: what.to });
    }
    let mut history = History::from_observations(rows)?;
    if !what.speeds.is_empty() {
        history.scale_cpu(&what.speeds);
    }
    let rows = history.write(to_file)?;
    let (shards, fingerprint) = (history.shards().count(), history.fingerprint());
    Ok(RangeReport { rows, shards, values, left_out, fingerprint })
}
