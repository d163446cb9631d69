//! A dated folder of immutable pieces: `date=YYYY-MM-DD/<writer>-<seq>.parquet`, days in UTC.
//!
//! Pieces are only ever added; of rows of one shard and time the one in the piece with the highest sequence number wins.
//! Numbers rise over all writers of a day. Compaction replaces the pieces of a day by one that bears their highest number
//! and comes before the others of that number: a crash between writing it and removing them leaves the same rows.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use foreshard_domain::{Observation, Step, Timestamp};

use crate::atomic;
use crate::history::{HistoryBuilder, ReadFilter};
use crate::read::read_into;
use crate::{HistoryError, write_history};

/// Under which name compaction writes.
const COMPACTED: &str = "compact";
/// What the folders of days begin with.
const DATE: &str = "date=";

/// One file of a dated folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First moment of its day.
    pub(crate) day: i64,
    seq: u64,
    /// Compacted pieces come before others of their number.
    not_compacted: bool,
    writer: String,
    pub(crate) path: PathBuf,
}

impl Piece {
    /// Whether its day can have rows that the filter wants.
    pub(crate) fn may_hold(&self, filter: &ReadFilter) -> bool {
        let end = self.day.saturating_add(Step::DAY.as_ms());
        filter.from.is_none_or(|from| from.as_ms() < end) && filter.to.is_none_or(|to| self.day < to.as_ms())
    }

    fn order(&self) -> (i64, u64, bool, &str) {
        (self.day, self.seq, self.not_compacted, &self.writer)
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> HistoryError {
    let path = path.to_owned();
    move |source| HistoryError::Io { doing, path: path.clone(), source }
}

/// The names in a folder, sorted, without unfinished files.
fn names(dir: &Path) -> Result<Vec<String>, HistoryError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !atomic::is_temporary(&name) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The pieces of a folder in the order in which later ones win.
///
/// # Errors
/// [`HistoryError::StrayPiece`] for a Parquet file beside the days, or I/O.
pub(crate) fn pieces(dir: &Path) -> Result<Vec<Piece>, HistoryError> {
    let mut pieces = Vec::new();
    for name in names(dir)? {
        match name.strip_prefix(DATE).and_then(day_of) {
            Some(day) => pieces.extend(pieces_of_day(&dir.join(&name), day)?),
            None if name.ends_with(".parquet") => return Err(HistoryError::StrayPiece { path: dir.join(name) }),
            None => {}
        }
    }
    pieces.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(pieces)
}

/// The pieces of one day.
pub(crate) fn pieces_of(dir: &Path, day: i64) -> Result<Vec<Piece>, HistoryError> {
    let mut pieces = pieces_of_day(&dir.join(day_folder(Timestamp::from_ms(day))), day)?;
    pieces.sort_by(|a, b| a.order().cmp(&b.order()));
    Ok(pieces)
}

/// Whether compaction wrote a piece between two listings, so that the earlier one may lack rows.
pub(crate) fn compacted_since(earlier: &[Piece], later: &[Piece]) -> bool {
    later.iter().any(|piece| !piece.not_compacted && !earlier.contains(piece))
}

/// First moment of the newest day of which a dated folder holds a piece; `None` if it holds none.
///
/// # Errors
/// As [`crate::read_history`] of a folder.
pub fn newest_day(dir: &Path) -> Result<Option<Timestamp>, HistoryError> {
    Ok(pieces(dir)?.last().map(|piece| Timestamp::from_ms(piece.day)))
}

fn pieces_of_day(dir: &Path, day: i64) -> Result<Vec<Piece>, HistoryError> {
    let mut pieces = Vec::new();
    for name in names(dir)? {
        let Some(stem) = name.strip_suffix(".parquet") else { continue };
        // Pieces of other programs may bear any name; they count as written first.
        let numbered = stem.rsplit_once('-').and_then(|(w, seq)| seq.parse().ok().map(|seq| (w, seq)));
        let (writer, seq) = numbered.unwrap_or((stem, 0));
        let not_compacted = writer != COMPACTED;
        pieces.push(Piece { day, seq, not_compacted, writer: writer.to_owned(), path: dir.join(&name) });
    }
    Ok(pieces)
}

/// First moment of the UTC day `YYYY-MM-DD`.
fn day_of(text: &str) -> Option<i64> {
    let date: jiff::civil::Date = text.parse().ok()?;
    let start = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(start.timestamp().as_millisecond())
}

/// The name of the folder of the day that `ts` lies in.
fn day_folder(day: Timestamp) -> String {
    let text = day.to_string();
    format!("{DATE}{}", text.split('T').next().unwrap_or(&text))
}

/// A dated folder open for writing. One writer name is held by one owner at a time, across processes.
#[derive(Debug)]
pub struct HistoryFolder {
    dir: PathBuf,
    writer: String,
    /// Serialises numbering; the lock of the file keeps other processes out.
    writing: Mutex<()>,
    _lock: File,
}

impl HistoryFolder {
    /// Opens a folder (made if it is not there) for a writer; removes what an interrupted earlier run of this writer left
    /// unfinished. Numbers go on where they ended.
    ///
    /// # Errors
    /// [`HistoryError::WriterName`], [`HistoryError::WriterBusy`] or [`HistoryError::Io`].
    pub fn open(dir: impl Into<PathBuf>, writer: &str) -> Result<Self, HistoryError> {
        let dir = dir.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if writer.is_empty() || writer.len() > 60 || !writer.chars().all(allowed) || writer == COMPACTED {
            return Err(HistoryError::WriterName { name: writer.to_owned() });
        }
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        let path = dir.join(format!(".{writer}.lock"));
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(HistoryError::WriterBusy { name: writer.to_owned(), path: dir });
            }
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        let folder = Self { dir, writer: writer.to_owned(), writing: Mutex::new(()), _lock: lock };
        folder.remove_unfinished()?;
        Ok(folder)
    }

    /// Where it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn remove_unfinished(&self) -> Result<(), HistoryError> {
        let prefix = format!(".{}-", self.writer);
        for day in names(&self.dir)?.iter().filter(|name| name.starts_with(DATE)) {
            let day = self.dir.join(day);
            for entry in fs::read_dir(&day).map_err(io_error("list", &day))? {
                let path = entry.map_err(io_error("list", &day))?.path();
                let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if name.starts_with(&prefix) {
                    fs::remove_file(&path).map_err(io_error("remove", &path))?;
                }
            }
        }
        Ok(())
    }

    /// Writes rows in any order as new pieces, one for each UTC day, and returns their paths. Each piece is on disk for
    /// good when this returns. Of rows of one shard and time the last wins, here and over all earlier pieces.
    ///
    /// # Errors
    /// As [`write_history`]. Days written before the error stay; appending the same rows again does no harm.
    pub fn append(&self, rows: &[Observation]) -> Result<Vec<PathBuf>, HistoryError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut days: BTreeMap<Timestamp, BTreeMap<_, &Observation>> = BTreeMap::new();
        for row in rows {
            days.entry(Step::DAY.floor(row.ts)).or_default().insert((&row.shard, row.ts), row);
        }
        let mut written = Vec::new();
        for (day, rows) in days {
            let dir = self.dir.join(day_folder(day));
            if !dir.is_dir() {
                fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
                atomic::sync_folder(&dir).map_err(io_error("sync the folder of", &dir))?;
            }
            let newest = pieces_of_day(&dir, day.as_ms())?.iter().map(|p| p.seq).max().unwrap_or(0);
            let path = dir.join(format!("{}-{:06}.parquet", self.writer, newest.saturating_add(1)));
            write_history(&path, rows.into_values().cloned())?;
            written.push(path);
        }
        Ok(written)
    }

    /// Merges the pieces of each day that ended at or before `before` into one; returns how many days changed. Safe to
    /// interrupt at any moment and to run again.
    ///
    /// # Errors
    /// As reading and writing a history. A day that failed keeps its pieces.
    pub fn compact(&self, before: Timestamp) -> Result<usize, HistoryError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let all = pieces(&self.dir)?;
        let mut days = 0;
        for day in all.chunk_by(|a, b| a.day == b.day) {
            let ended = day.first().is_some_and(|p| p.day.saturating_add(Step::DAY.as_ms()) <= before.as_ms());
            if ended && day.len() > 1 {
                let merged = merge(day)?;
                remove_others(day, &merged)?;
                days += 1;
            }
        }
        Ok(days)
    }
}

/// Writes one piece with the rows of all; the pieces stay.
fn merge(day: &[Piece]) -> Result<PathBuf, HistoryError> {
    let mut builder = HistoryBuilder::default();
    for piece in day {
        read_into(&piece.path, &ReadFilter::default(), &mut builder)?;
    }
    let seq = day.iter().map(|p| p.seq).max().unwrap_or(0);
    let dir = day.first().and_then(|p| p.path.parent()).unwrap_or(Path::new("."));
    let path = dir.join(format!("{COMPACTED}-{seq:06}.parquet"));
    builder.finish().write(&path)?;
    Ok(path)
}

fn remove_others(day: &[Piece], merged: &Path) -> Result<(), HistoryError> {
    for piece in day.iter().filter(|piece| piece.path != merged) {
        fs::remove_file(&piece.path).map_err(io_error("remove", &piece.path))?;
    }
    atomic::sync_folder(merged).map_err(io_error("sync the folder of", merged))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_history;
    use foreshard_domain::{NodeId, ShardId};

    fn row(shard: &str, minute: i64, cpu: f64) -> Observation {
        let mut row = Observation::empty(ShardId::new(shard).unwrap(), Timestamp::from_ms(minute * 60_000));
        row.cpu_util = Some(cpu);
        row.node = NodeId::new("n1").ok();
        row
    }

    fn all(dir: &Path) -> Vec<Observation> {
        read_history(dir, &ReadFilter::default()).unwrap().observations().collect()
    }

    #[test]
    fn crash_between_merge_and_removal_leaves_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        let folder = HistoryFolder::open(dir.path(), "serving").unwrap();
        folder.append(&[row("a", 0, 1.0), row("b", 5, 2.0)]).unwrap();
        folder.append(&[row("a", 0, 3.0), row("a", 10, 4.0)]).unwrap();
        let before = all(dir.path());
        assert_eq!(before[0].cpu_util, Some(3.0));
        merge(&pieces(dir.path()).unwrap()).unwrap();
        assert_eq!(pieces(dir.path()).unwrap().len(), 3);
        assert_eq!(all(dir.path()), before);
        assert_eq!(folder.compact(Timestamp::from_ms(86_400_000)).unwrap(), 1);
        assert_eq!(pieces(dir.path()).unwrap().len(), 1);
        assert_eq!(all(dir.path()), before);
        folder.append(&[row("a", 0, 9.0)]).unwrap();
        assert_eq!(all(dir.path())[0].cpu_util, Some(9.0));
    }

    #[test]
    fn readers_miss_nothing_while_days_are_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = HistoryFolder::open(dir.path(), "serving").unwrap();
        let rows: Vec<_> = (0..40).map(|i| row("a", i * 60, i as f64)).collect();
        folder.append(&rows).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for part in rows.chunks(2) {
                    folder.append(part).unwrap();
                    folder.compact(Timestamp::from_ms(i64::MAX)).unwrap();
                }
            });
            while !writer.is_finished() {
                assert_eq!(all(dir.path()), rows);
                let mut streamed = Vec::new();
                let mut take = |part: &[Observation]| {
                    streamed.extend_from_slice(part);
                    Ok(())
                };
                crate::stream_history(dir.path(), &ReadFilter::default(), &mut take).unwrap();
                assert_eq!(streamed, rows);
            }
        });
    }

    #[test]
    fn running_day_is_not_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = HistoryFolder::open(dir.path(), "serving").unwrap();
        folder.append(&[row("a", 0, 1.0)]).unwrap();
        folder.append(&[row("a", 5, 1.0)]).unwrap();
        assert_eq!(folder.compact(Timestamp::from_ms(86_399_999)).unwrap(), 0);
    }

    #[test]
    fn numbers_continue_and_unfinished_files_are_ignored_then_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = HistoryFolder::open(dir.path(), "serving").unwrap();
        assert!(matches!(HistoryFolder::open(dir.path(), "serving"), Err(HistoryError::WriterBusy { .. })));
        folder.append(&[row("a", 0, 1.0)]).unwrap();
        drop(folder);
        let unfinished = dir.path().join("date=1970-01-01/.serving-000002.parquet.tmp");
        fs::write(&unfinished, b"PAR1").unwrap();
        assert_eq!(all(dir.path()).len(), 1);
        let folder = HistoryFolder::open(dir.path(), "serving").unwrap();
        assert!(!unfinished.exists());
        let written = folder.append(&[row("a", 5, 1.0)]).unwrap();
        assert!(written[0].ends_with("date=1970-01-01/serving-000002.parquet"));
        folder.append(&[row("a", 3 * 24 * 60 + 7, 1.0)]).unwrap();
        assert_eq!(newest_day(dir.path()).unwrap(), Some(Timestamp::from_ms(3 * 86_400_000)));
    }

    #[test]
    fn two_writers_share_a_day() {
        let dir = tempfile::tempdir().unwrap();
        let one = HistoryFolder::open(dir.path(), "one").unwrap();
        let two = HistoryFolder::open(dir.path(), "two").unwrap();
        two.append(&[row("a", 0, 1.0)]).unwrap();
        one.append(&[row("a", 0, 2.0)]).unwrap();
        assert_eq!(all(dir.path())[0].cpu_util, Some(2.0));
        two.append(&[row("a", 0, 3.0)]).unwrap();
        assert_eq!(all(dir.path())[0].cpu_util, Some(3.0));
    }

    #[test]
    fn refuses_what_is_not_its_own() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(HistoryFolder::open(dir.path(), "compact"), Err(HistoryError::WriterName { .. })));
        assert!(matches!(HistoryFolder::open(dir.path(), "../x"), Err(HistoryError::WriterName { .. })));
        write_history(&dir.path().join("x.parquet"), [row("a", 0, 1.0)].into_iter()).unwrap();
        let read = read_history(dir.path(), &ReadFilter::default());
        assert!(matches!(read, Err(HistoryError::StrayPiece { .. })));
    }
}
