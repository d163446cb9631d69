//! A history of any length within a budget of memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foreshard_domain::{Metric, ShardId, Step, Timestamp};

use crate::columns::{self, VALUES};
use crate::fingerprint::Fingerprint;
use crate::history::{HistoryBuilder, ReadFilter, ReadReport};
use crate::read::{Collector, collect, warn_of};
use crate::rows::Run;
use crate::scratch::Scratch;
use crate::{History, HistoryError};

/// How much of a history may lie in memory, and where the rest does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Most bytes of rows held at once. One shard is always held as a whole.
    pub bytes: usize,
    /// Folder in which a file without a name takes the rows of a history that is larger, 8 bytes for each of its values. It
    /// should not be in memory itself, as /tmp is on many machines.
    pub scratch: PathBuf,
}

/// A history from which shards are taken one at a time. Cloning is cheap.
///
/// One that fits into the budget lies in memory; a larger one in a scratch file, from which the rows of a shard are read
/// when they are asked for. What a shard holds is the same either way, to the bit.
#[derive(Debug, Clone)]
pub struct BoundedHistory {
    held: Held,
}

#[derive(Debug, Clone)]
enum Held {
    Memory(History),
    Scratch(Arc<OnDisk>),
}

#[derive(Debug)]
struct OnDisk {
    scratch: Scratch,
    folder: PathBuf,
    shards: BTreeMap<ShardId, Vec<Metric>>,
    report: ReadReport,
    native: Option<Step>,
    span: Option<(i64, i64)>,
    fingerprint: String,
}

impl From<History> for BoundedHistory {
    fn from(history: History) -> Self {
        Self { held: Held::Memory(history) }
    }
}

fn io_error(doing: &'static str, folder: &Path) -> impl Fn(std::io::Error) -> HistoryError {
    let path = folder.join("(scratch)");
    move |source| HistoryError::Io { doing, path: path.clone(), source }
}

/// Collects rows in memory and empties itself into a scratch file when they become too many.
struct Spilling<'a> {
    rows: HistoryBuilder,
    bytes: usize,
    budget: &'a MemoryBudget,
    scratch: Option<Scratch>,
}

impl Collector for Spilling<'_> {
    fn push_run(&mut self, run: &Run<'_>) -> Result<(), HistoryError> {
        self.bytes += self.rows.push_run(run);
        if self.bytes > self.budget.bytes { self.spill() } else { Ok(()) }
    }

    fn report(&mut self) -> &mut ReadReport {
        &mut self.rows.report
    }
}

impl Spilling<'_> {
    fn spill(&mut self) -> Result<(), HistoryError> {
        let folder = &self.budget.scratch;
        let scratch = match &mut self.scratch {
            Some(scratch) => scratch,
            none => none.insert(Scratch::new(folder).map_err(io_error("create", folder))?),
        };
        for (shard, rows) in self.rows.take_rows() {
            scratch.append(&shard, &rows).map_err(io_error("write", folder))?;
        }
        self.bytes = 0;
        scratch.flush().map_err(io_error("write", folder))
    }

    fn finish(mut self) -> Result<BoundedHistory, HistoryError> {
        if self.scratch.is_some() {
            self.spill()?;
        }
        let held = match self.scratch {
            None => Held::Memory(self.rows.finish()),
            Some(scratch) => {
                let (folder, report) = (self.budget.scratch.clone(), self.rows.report);
                Held::Scratch(Arc::new(OnDisk::survey(scratch, folder, report)?))
            }
        };
        Ok(BoundedHistory { held })
    }
}

impl OnDisk {
    /// Looks at every shard once: what a history in memory tells by itself.
    fn survey(scratch: Scratch, folder: PathBuf, mut report: ReadReport) -> Result<Self, HistoryError> {
        let mut fingerprint = Fingerprint::default();
        let (mut shards, mut gap, mut span) = (BTreeMap::new(), None::<i64>, None::<(i64, i64)>);
        for shard in scratch.shards() {
            let rows = scratch.rows(shard, true, [true; VALUES]).map_err(io_error("read", &folder))?;
            let (rows, duplicates) = rows.finish();
            report.duplicates += duplicates;
            report.rows += rows.len() as u64;
            fingerprint.add(shard, &rows);
            gap = gap.into_iter().chain(rows.smallest_gap()).min();
            if let (Some(first), Some(last)) = (rows.ts.first(), rows.ts.last()) {
                span = Some(span.map_or((*first, *last), |(a, b)| (a.min(*first), b.max(*last))));
            }
            shards.insert(shard.clone(), rows.metrics());
        }
        let (native, fingerprint) = (gap.and_then(Step::from_ms), fingerprint.finish());
        Ok(Self { scratch, folder, shards, report, native, span, fingerprint })
    }

    fn shard(&self, shard: &ShardId, metrics: &[Metric]) -> Result<History, HistoryError> {
        let mut wanted = [false; VALUES];
        metrics.iter().for_each(|metric| wanted[columns::slot(*metric)] = true);
        let rows = self.scratch.rows(shard, false, wanted).map_err(io_error("read", &self.folder))?;
        Ok(History::of_shard(shard.clone(), Arc::new(rows.finish().0)))
    }
}

impl BoundedHistory {
    /// Reads a history as [`crate::read_history`] does, but holds no more rows in memory than the budget allows.
    ///
    /// # Errors
    /// As [`crate::read_history`], and I/O on the scratch file.
    pub fn read(path: &Path, filter: &ReadFilter, budget: &MemoryBudget) -> Result<Self, HistoryError> {
        let fresh = || Spilling { rows: HistoryBuilder::default(), bytes: 0, budget, scratch: None };
        let history = collect(path, filter, &fresh)?.finish()?;
        warn_of(path, history.report());
        Ok(history)
    }

    /// Whether its rows lie in a scratch file rather than in memory.
    pub fn is_on_disk(&self) -> bool {
        matches!(self.held, Held::Scratch(_))
    }

    /// The history of one shard alone; of a shard that is not there it is empty. At least the wanted metrics are in it;
    /// nodes, bytes and other metrics may be left out.
    ///
    /// # Errors
    /// [`HistoryError::Io`] if the scratch file cannot be read.
    pub fn shard(&self, shard: &ShardId, metrics: &[Metric]) -> Result<History, HistoryError> {
        match &self.held {
            Held::Memory(history) => {
                let rows = history.shared(shard).unwrap_or_default();
                Ok(History::of_shard(shard.clone(), rows))
            }
            Held::Scratch(disk) => disk.shard(shard, metrics),
        }
    }

    /// The shards, in order, with the metrics of which each has any value.
    pub fn shards(&self) -> Box<dyn Iterator<Item = (&ShardId, Vec<Metric>)> + '_> {
        match &self.held {
            Held::Memory(history) => Box::new(history.shards().map(|shard| (shard, history.metrics_of(shard)))),
            Held::Scratch(disk) => Box::new(disk.shards.iter().map(|(shard, metrics)| (shard, metrics.clone()))),
        }
    }

    /// What was noticed while reading.
    pub fn report(&self) -> &ReadReport {
        match &self.held {
            Held::Memory(history) => history.report(),
            Held::Scratch(disk) => &disk.report,
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        match &self.held {
            Held::Memory(history) => history.rows(),
            Held::Scratch(disk) => disk.report.rows,
        }
    }

    /// The smallest distance between two rows of one shard.
    pub fn native_step(&self) -> Option<Step> {
        match &self.held {
            Held::Memory(history) => history.native_step(),
            Held::Scratch(disk) => disk.native,
        }
    }

    /// The first and the last time of any row.
    pub fn span(&self) -> Option<(Timestamp, Timestamp)> {
        match &self.held {
            Held::Memory(history) => history.span(),
            Held::Scratch(disk) => disk.span.map(|(a, b)| (Timestamp::from_ms(a), Timestamp::from_ms(b))),
        }
    }

    /// SHA-256 of the content, as [`History::fingerprint`].
    pub fn fingerprint(&self) -> String {
        match &self.held {
            Held::Memory(history) => history.fingerprint(),
            Held::Scratch(disk) => disk.fingerprint.clone(),
        }
    }
}
