//! A history in memory: for each shard its rows, column by column.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use foreshard_domain::{Metric, NodeId, Observation, ShardId, Step, Timestamp};
use serde::Serialize;

use crate::columns::{self, DATA_BYTES, VALUE_NAMES, WRITE_BYTES};
use crate::grid::{ExactGrid, GridSeries, to_grid};
use crate::rows::{Run, ShardRows};
use crate::{HistoryError, fingerprint};

/// Which part of a history to read; the default is everything.
#[derive(Debug, Clone, Default)]
pub struct ReadFilter {
    /// Only these shards.
    pub shards: Option<BTreeSet<ShardId>>,
    /// Only these metrics; stored and written bytes are always read.
    pub metrics: Option<BTreeSet<Metric>>,
    /// Only rows at or after this time.
    pub from: Option<Timestamp>,
    /// Only rows before this time.
    pub to: Option<Timestamp>,
}

impl ReadFilter {
    pub(crate) fn wants_shard(&self, shard: &ShardId) -> bool {
        self.shards.as_ref().is_none_or(|wanted| wanted.contains(shard))
    }

    pub(crate) fn wants_metric(&self, metric: Metric) -> bool {
        self.metrics.as_ref().is_none_or(|wanted| wanted.contains(&metric))
    }

    pub(crate) fn wants_time(&self, ms: i64) -> bool {
        self.from.is_none_or(|from| from.as_ms() <= ms) && self.to.is_none_or(|to| ms < to.as_ms())
    }
}

/// What was noticed while reading: nothing that hinders, everything that should not pass silently.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ReadReport {
    /// Files read.
    pub files: u64,
    /// Rows kept.
    pub rows: u64,
    /// Rows that a later row of the same shard and time replaced.
    pub duplicates: u64,
    /// By column, how many values were NaN or infinite and count as missing.
    pub not_finite: BTreeMap<String, u64>,
    /// Columns that a history does not know and that were passed over.
    pub unknown_columns: BTreeSet<String>,
}

impl ReadReport {
    /// Whether there is nothing to tell.
    pub fn is_clean(&self) -> bool {
        self.duplicates == 0 && self.not_finite.is_empty() && self.unknown_columns.is_empty()
    }
}

/// A load history in memory. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct History {
    shards: BTreeMap<ShardId, Arc<ShardRows>>,
    report: ReadReport,
}

/// Collects rows in any order.
#[derive(Debug, Default)]
pub(crate) struct HistoryBuilder {
    shards: BTreeMap<ShardId, ShardRows>,
    pub(crate) report: ReadReport,
}

impl HistoryBuilder {
    /// Takes some rows in; returns how many bytes more it holds since.
    pub(crate) fn push_run(&mut self, run: &Run<'_>) -> usize {
        if let Some(rows) = self.shards.get_mut(run.shard) {
            let before = rows.bytes();
            rows.push_run(run);
            rows.bytes().saturating_sub(before)
        } else {
            let rows = self.shards.entry(run.shard.clone()).or_default();
            rows.push_run(run);
            rows.bytes()
        }
    }

    /// Hands out all rows that it holds, by shard, and holds none then.
    pub(crate) fn take_rows(&mut self) -> BTreeMap<ShardId, ShardRows> {
        std::mem::take(&mut self.shards)
    }

    pub(crate) fn push(&mut self, row: &Observation) {
        for (name, value) in VALUE_NAMES.iter().zip(given(row)) {
            if value.is_some_and(|v| !v.is_finite()) {
                *self.report.not_finite.entry((*name).to_owned()).or_default() += 1;
            }
        }
        if let Some(rows) = self.shards.get_mut(&row.shard) {
            rows.push(row);
        } else {
            self.shards.entry(row.shard.clone()).or_default().push(row);
        }
    }

    pub(crate) fn finish(self) -> History {
        let mut report = self.report;
        let mut shards = BTreeMap::new();
        for (shard, rows) in self.shards {
            let (rows, duplicates) = rows.finish();
            report.duplicates += duplicates;
            report.rows += rows.len() as u64;
            shards.insert(shard, Arc::new(rows));
        }
        History { shards, report }
    }
}

/// The numbers of a row as given, in the order of the columns.
fn given(row: &Observation) -> [Option<f64>; columns::VALUES] {
    let metric = |m| row.get(m);
    let [a, b, c, d, e, f] = Metric::ALL.map(metric);
    [a, b, c, d, e, f, row.data_bytes, row.write_bytes_per_s]
}

impl History {
    /// Takes rows in any order; of two rows of one shard and time the last wins. What is not finite counts as missing.
    ///
    /// # Errors
    /// [`HistoryError::TimeOutside`] if a time cannot be that of a measurement.
    pub fn from_observations(rows: impl IntoIterator<Item = Observation>) -> Result<Self, HistoryError> {
        let mut builder = HistoryBuilder::default();
        for (i, row) in rows.into_iter().enumerate() {
            if !columns::plausible(row.ts.as_ms()) {
                let place = "the given observations".to_owned();
                return Err(HistoryError::TimeOutside { place, row: i as u64, ts: row.ts });
            }
            builder.push(&row);
        }
        Ok(builder.finish())
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = (&ShardId, &ShardRows)> {
        self.shards.iter().map(|(shard, rows)| (shard, rows.as_ref()))
    }

    /// A history of one shard whose rows are in order already.
    pub(crate) fn of_shard(shard: ShardId, rows: Arc<ShardRows>) -> Self {
        let report = ReadReport { rows: rows.len() as u64, ..ReadReport::default() };
        Self { shards: BTreeMap::from([(shard, rows)]), report }
    }

    /// The rows of one shard, shared.
    pub(crate) fn shared(&self, shard: &ShardId) -> Option<Arc<ShardRows>> {
        self.shards.get(shard).cloned()
    }

    /// Adds what a reader noticed that the rows do not tell.
    pub(crate) fn note(&mut self, report: ReadReport) {
        self.report.files += report.files;
        self.report.unknown_columns.extend(report.unknown_columns);
    }

    /// Multiplies the CPU of rows of these nodes by the node's speed: from utilisation to load.
    pub(crate) fn scale_cpu(&mut self, speeds: &BTreeMap<NodeId, f64>) {
        for rows in self.shards.values_mut() {
            Arc::make_mut(rows).scale(columns::slot(Metric::CpuUtil), |node| speeds.get(node).copied());
        }
    }

    /// What was noticed while reading.
    pub fn report(&self) -> &ReadReport {
        &self.report
    }

    /// The shards, in order.
    pub fn shards(&self) -> impl Iterator<Item = &ShardId> {
        self.shards.keys()
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.shards.values().map(|rows| rows.len() as u64).sum()
    }

    /// How many rows a shard has.
    pub fn rows_of(&self, shard: &ShardId) -> usize {
        self.shards.get(shard).map_or(0, |rows| rows.len())
    }

    /// The smallest distance between two rows of one shard.
    pub fn native_step(&self) -> Option<Step> {
        self.shards.values().filter_map(|rows| rows.smallest_gap()).min().and_then(Step::from_ms)
    }

    /// The first and the last time of any row.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        let first = self.shards.values().filter_map(|rows| rows.ts.first()).min()?;
        let last = self.shards.values().filter_map(|rows| rows.ts.last()).max()?;
        Some((Timestamp::from_ms(*first), Timestamp::from_ms(*last)))
    }

    /// The first and the last time of a shard's rows.
    pub fn span_of(&self, shard: &ShardId) -> Option<(Timestamp, Timestamp)> {
        let rows = self.shards.get(shard)?;
        Some((Timestamp::from_ms(*rows.ts.first()?), Timestamp::from_ms(*rows.ts.last()?)))
    }

    /// The metrics of which a shard has any value.
    pub fn metrics_of(&self, shard: &ShardId) -> Vec<Metric> {
        let Some(rows) = self.shards.get(shard) else { return Vec::new() };
        rows.metrics()
    }

    /// The values of one metric of one shard with their times, in order; missing ones are left out.
    pub fn samples(&self, shard: &ShardId, metric: Metric) -> impl Iterator<Item = (Timestamp, f64)> {
        let rows = self.shards.get(shard);
        let column = rows.and_then(|rows| rows.values[columns::slot(metric)].as_deref()).unwrap_or_default();
        let times = rows.map(|rows| rows.ts.as_slice()).unwrap_or_default();
        let both = times.iter().zip(column).filter(|(_, v)| !v.is_nan());
        both.map(|(ts, v)| (Timestamp::from_ms(*ts), *v))
    }

    /// One metric of one shard on the regular grid of `step`, counted from the epoch.
    ///
    /// A bin is named by its start and holds the mean of the samples in it; a bin without samples is NaN. A first or last
    /// bin that the samples do not cover in full (judged by the smallest distance between rows of this history) is cut
    /// off. `None` if no full bin is left.
    pub fn grid(&self, shard: &ShardId, metric: Metric, step: Step) -> Option<GridSeries> {
        self.grid_with(shard, metric, step, self.native_step()?)
    }

    /// [`Self::grid`] where the distance of the samples is known already.
    pub(crate) fn grid_with(&self, shard: &ShardId, metric: Metric, step: Step, native: Step) -> Option<GridSeries> {
        Some(self.exact_grid(shard, metric, step, native)?.rounded())
    }

    /// [`Self::grid`] before rounding, where the distance of the samples is known already.
    pub(crate) fn exact_grid(&self, shard: &ShardId, metric: Metric, step: Step, native: Step) -> Option<ExactGrid> {
        let rows = self.shards.get(shard)?;
        let column = rows.values[columns::slot(metric)].as_ref()?;
        to_grid(&rows.ts, column, step, native)
    }

    /// The rows before a time.
    #[must_use]
    pub fn before(&self, ts: Timestamp) -> History {
        let mut shards = BTreeMap::new();
        for (shard, rows) in &self.shards {
            let end = rows.ts.partition_point(|t| *t < ts.as_ms());
            if end == rows.len() {
                shards.insert(shard.clone(), Arc::clone(rows));
            } else if end > 0 {
                shards.insert(shard.clone(), Arc::new(rows.slice(0..end)));
            }
        }
        let mut history = History { shards, report: self.report.clone() };
        history.report.rows = history.rows();
        history
    }

    /// The newest stored bytes of a shard.
    pub fn last_data_bytes(&self, shard: &ShardId) -> Option<f64> {
        self.shards.get(shard)?.last(DATA_BYTES)
    }

    /// The newest write rate of a shard in bytes per second.
    pub fn last_write_bytes_per_s(&self, shard: &ShardId) -> Option<f64> {
        self.shards.get(shard)?.last(WRITE_BYTES)
    }

    /// The newest value of a metric of a shard.
    pub fn last_value(&self, shard: &ShardId, metric: Metric) -> Option<f64> {
        self.shards.get(shard)?.last(columns::slot(metric))
    }

    /// The node that carried a shard last, as far as its rows tell.
    pub fn last_node(&self, shard: &ShardId) -> Option<NodeId> {
        self.shards.get(shard)?.last_node().cloned()
    }

    /// SHA-256 of the content as hexadecimal text; the same for the same rows in whatever files they lie.
    pub fn fingerprint(&self) -> String {
        fingerprint::of(self.parts())
    }

    /// All rows, by shard, then time. Series of a wide file have no place in an [`Observation`]: their rows are empty.
    pub fn observations(&self) -> impl Iterator<Item = Observation> {
        self.parts().flat_map(|(shard, rows)| (0..rows.len()).filter_map(move |i| rows.observation(shard, i)))
    }
}
