//! Reading a history: one file, a dated folder of pieces, or a wide file.

use std::io::ErrorKind;
use std::path::Path;

use foreshard_domain::Observation;

use crate::decode::{Decoder, Layout};
use crate::folder::Piece;
use crate::groups::may_hold;
use crate::history::{HistoryBuilder, ReadFilter, ReadReport};
use crate::rows::Run;
use crate::source::{OpenFailure, Source};
use crate::{History, HistoryError, folder};

/// Rows decoded at a time.
const BATCH_ROWS: usize = 32_768;

/// Reads a history into memory.
///
/// `path` is a Parquet file in the long layout (`shard_id`, `ts`, metrics), a folder of `date=YYYY-MM-DD` folders (of
/// rows of one shard and time the last written wins), or a wide file (`ts` and one column a series): its columns become
/// series named `<file stem>/<column>` of the metric `value`. What was odd but readable is in [`History::report`].
///
/// # Errors
/// [`HistoryError`]: unreadable or damaged files, missing columns, wrong types, rows without shard or time.
pub fn read_history(path: &Path, filter: &ReadFilter) -> Result<History, HistoryError> {
    let history = collect(path, filter, &HistoryBuilder::default)?.finish();
    warn_of(path, history.report());
    Ok(history)
}

/// Takes the rows of files in, in their order.
pub(crate) trait Collector {
    /// Takes some rows of one shard.
    fn push_run(&mut self, run: &Run<'_>) -> Result<(), HistoryError>;

    /// Where what is odd is noted.
    fn report(&mut self) -> &mut ReadReport;
}

impl Collector for HistoryBuilder {
    fn push_run(&mut self, run: &Run<'_>) -> Result<(), HistoryError> {
        self.push_run(run);
        Ok(())
    }

    fn report(&mut self) -> &mut ReadReport {
        &mut self.report
    }
}

/// Reads a file or a dated folder into a collector.
pub(crate) fn collect<C: Collector>(
    path: &Path,
    filter: &ReadFilter,
    fresh: &dyn Fn() -> C,
) -> Result<C, HistoryError> {
    if path.is_dir() {
        return read_steadily(|| folder::pieces(path), filter, fresh);
    }
    let mut collector = fresh();
    read_into(path, filter, &mut collector)?;
    Ok(collector)
}

/// How often a listing is read again because compaction replaced its pieces meanwhile.
const ATTEMPTS: usize = 64;

/// Reads the pieces of a listing; again, if compaction replaced some of them before all were read.
fn read_steadily<C: Collector>(
    list: impl Fn() -> Result<Vec<Piece>, HistoryError>,
    filter: &ReadFilter,
    fresh: &dyn Fn() -> C,
) -> Result<C, HistoryError> {
    let mut attempt = 1;
    loop {
        let pieces = list()?;
        let mut collector = fresh();
        let mut wanted = pieces.iter().filter(|piece| piece.may_hold(filter));
        let read = wanted.try_for_each(|piece| read_into(&piece.path, filter, &mut collector));
        let replaced = match &read {
            Ok(()) => folder::compacted_since(&pieces, &list()?),
            Err(HistoryError::Io { source, .. }) => source.kind() == ErrorKind::NotFound,
            Err(_) => false,
        };
        if !replaced || attempt == ATTEMPTS {
            return read.map(|()| collector);
        }
        attempt += 1;
    }
}

/// Logs what was odd. Repeated rows are counted when a history is finished, not before.
pub(crate) fn warn_of(path: &Path, report: &ReadReport) {
    if !report.is_clean() {
        tracing::warn!(
            path = %path.display(), duplicates = report.duplicates, not_finite = ?report.not_finite,
            unknown_columns = ?report.unknown_columns, "the history has oddities; they count as missing or are passed over"
        );
    }
}

/// Reads a file into a collector that may hold rows of other files already.
pub(crate) fn read_into<C: Collector>(path: &Path, filter: &ReadFilter, into: &mut C) -> Result<(), HistoryError> {
    let mut report = std::mem::take(into.report());
    let read = scan(path, filter, &mut report, &mut |run| into.push_run(run));
    *into.report() = report;
    read
}

/// Hands the rows of a history on in batches, so that any length fits in memory.
///
/// Rows of a file come in its order, at most some ten thousand at once; rows of a dated folder come day by day, each day
/// sorted by shard and time with the last written row of each. In a single file a repeated row is not removed: the later
/// one comes later.
///
/// # Errors
/// As [`read_history`], and whatever `on_rows` returns.
pub fn stream_history(
    path: &Path,
    filter: &ReadFilter,
    on_rows: &mut dyn FnMut(&[Observation]) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let mut report = ReadReport::default();
    if !path.is_dir() {
        scan(path, filter, &mut report, &mut |run| {
            let rows: Vec<Observation> = (0..run.ts.len()).filter_map(|i| run.observation(i)).collect();
            on_rows(&rows)
        })?;
        warn_of(path, &report);
        return Ok(());
    }
    let mut pieces = folder::pieces(path)?;
    pieces.retain(|piece| piece.may_hold(filter));
    for day in pieces.chunk_by(|a, b| a.day == b.day) {
        let Some(first) = day.first() else { continue };
        let list = || folder::pieces_of(path, first.day);
        let history = read_steadily(list, filter, &HistoryBuilder::default)?.finish();
        // A day of many shards is large as columns and several times as large as rows.
        let mut rows = history.observations();
        loop {
            let part: Vec<Observation> = rows.by_ref().take(BATCH_ROWS).collect();
            if part.is_empty() {
                break;
            }
            on_rows(&part)?;
        }
    }
    Ok(())
}

/// Decodes one file, row group by row group; those that cannot hold what the filter wants are passed over.
fn scan(
    path: &Path,
    filter: &ReadFilter,
    report: &mut ReadReport,
    take: &mut dyn FnMut(&Run<'_>) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let source = Source::open(path).map_err(|failure| match failure {
        OpenFailure::Io(source) => HistoryError::Io { doing: "open", path: path.into(), source },
        OpenFailure::Parquet(source) => HistoryError::Parquet { path: path.into(), source },
    })?;
    let layout = Layout::of(path, source.schema(), filter, report)?;
    report.files += 1;
    let wanted = layout.wanted();
    let mut decoder = Decoder { path, layout: &layout, filter, offset: 0 };
    for (group, metadata) in source.groups().iter().enumerate() {
        let next = decoder.offset + u64::try_from(metadata.num_rows()).unwrap_or(0);
        if may_hold(metadata, source.schema(), filter) {
            let damaged = |source| HistoryError::RowGroup { path: path.into(), group, source };
            for batch in source.batches_of(group, &wanted, BATCH_ROWS).map_err(damaged)? {
                decoder.batch(&batch.map_err(damaged)?, report, take)?;
            }
        }
        decoder.offset = next;
    }
    Ok(())
}
