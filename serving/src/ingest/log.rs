//! The log that every accepted row is in before it is acknowledged.
//!
//! A folder of segments `ingest-<number>.log`. The newest one grows; a segment is removed once its rows lie in pieces of
//! the history. After a crash the segments that are left are read again, which does no harm to rows that lie in pieces
//! already.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use super::frames;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process holds the log.
    #[error("{} is in use by another serving process; stop it or give this one its own log", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// A record in the middle is broken although whole ones follow, so acknowledged rows would be lost.
    #[error(
        "log {} is damaged at byte {offset}, and whole records follow; restore it, or move it away to start without \
         its rows",
        path.display()
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// A record is whole but holds no rows that this program understands.
    #[error("log {} holds a record that is no batch of rows; was it written by a newer program", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: RecordError,
    },
    /// A write failed and could not be taken back.
    #[error("the log could not be brought back to a sound state after a failed write; mend the disk and restart")]
    Stopped,
    /// A batch is longer than a record can be.
    #[error("a batch of {bytes} bytes is longer than a record can be; send smaller batches")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { doing, path, source }
}

/// Why a whole record is no batch of rows.
type RecordError = Box<dyn std::error::Error + Send + Sync>;

/// What takes the payload of each record when a log is opened.
type OnRecord<'a> = dyn FnMut(&[u8]) -> Result<(), RecordError> + 'a;

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    file: File,
    /// Bytes of acknowledged records.
    sound: u64,
}

/// The open log; one process holds it.
#[derive(Debug)]
pub(crate) struct Log {
    dir: PathBuf,
    _lock: File,
    current: Option<Segment>,
    sealed: Vec<PathBuf>,
    next: u64,
    stopped: bool,
}

impl Log {
    /// Opens the log in `dir` (made if it is not there) and hands the payload of each record to `on_record`, oldest
    /// first. The torn end of a segment is cut off: nothing in it was ever acknowledged.
    pub(crate) fn open(dir: &Path, on_record: &mut OnRecord<'_>) -> Result<Self, LogError> {
        fs::create_dir_all(dir).map_err(io_error("create", dir))?;
        let path = dir.join(".lock");
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::Busy { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
        }
        let segments = segments(dir)?;
        for (_, path) in &segments {
            replay(path, on_record)?;
        }
        let next = segments.last().map_or(1, |(number, _)| number.saturating_add(1));
        let sealed = segments.into_iter().map(|(_, path)| path).collect();
        Ok(Self { dir: dir.to_owned(), _lock: lock, current: None, sealed, next, stopped: false })
    }

    /// Writes a record; it is on disk when this returns.
    ///
    /// After an error nothing of the record remains, or the log refuses everything from then on.
    pub(crate) fn append(&mut self, payload: &[u8]) -> Result<(), LogError> {
        if self.stopped {
            return Err(LogError::Stopped);
        }
        let record = frames::encode(payload).ok_or(LogError::TooLong { bytes: payload.len() })?;
        let mut segment = match self.current.take() {
            Some(segment) => segment,
            None => self.create()?,
        };
        let written = segment.file.write_all(&record).and_then(|()| segment.file.sync_data());
        match written {
            Ok(()) => {
                segment.sound += record.len() as u64;
                self.current = Some(segment);
                Ok(())
            }
            Err(source) => {
                // What a failed write or sync left behind is unknown: the segment ends before it, the next record opens
                // another.
                let error = io_error("write", &segment.path)(source);
                let mended = segment.file.set_len(segment.sound).and_then(|()| segment.file.sync_data());
                self.stopped = mended.is_err();
                self.sealed.push(segment.path);
                Err(error)
            }
        }
    }

    fn create(&mut self) -> Result<Segment, LogError> {
        let path = self.dir.join(format!("ingest-{:08}.log", self.next));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let mut file = file.map_err(io_error("create", &path))?;
        self.next = self.next.saturating_add(1);
        file.seek(SeekFrom::Start(0)).map_err(io_error("write", &path))?;
        sync_folder(&self.dir)?;
        Ok(Segment { path, file, sound: 0 })
    }

    /// Ends the growing segment and returns all ended ones: those whose rows the caller now puts into the history.
    pub(crate) fn seal(&mut self) -> Vec<PathBuf> {
        self.sealed.extend(self.current.take().map(|segment| segment.path));
        self.sealed.clone()
    }

    /// Removes ended segments, once their rows are in the history for good.
    pub(crate) fn remove(&mut self, segments: &[PathBuf]) -> Result<(), LogError> {
        for path in segments {
            match fs::remove_file(path) {
                Ok(()) => {}
                Err(source) if source.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(io_error("remove", path)(source)),
            }
            self.sealed.retain(|sealed| sealed != path);
        }
        sync_folder(&self.dir)
    }
}

fn sync_folder(dir: &Path) -> Result<(), LogError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync", dir))
}

/// The segments of a folder by rising number.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let number = name.and_then(|name| name.strip_prefix("ingest-")?.strip_suffix(".log")?.parse().ok());
        segments.extend(number.map(|number| (number, path.clone())));
    }
    segments.sort();
    Ok(segments)
}

fn replay(path: &Path, on_record: &mut OnRecord<'_>) -> Result<(), LogError> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    let found = frames::scan(&bytes);
    if let Some(offset) = found.beyond {
        tracing::error!(log = %path.display(), broken = found.whole, whole_again = offset, "log is damaged");
        return Err(LogError::Damaged { path: path.to_owned(), offset: found.whole });
    }
    for payload in found.payloads.iter().filter_map(|range| bytes.get(range.clone())) {
        on_record(payload).map_err(|source| LogError::Record { path: path.to_owned(), source })?;
    }
    let torn = bytes.len() - found.whole;
    if torn > 0 {
        tracing::warn!(log = %path.display(), torn_bytes = torn, records = found.payloads.len(), "torn end cut off");
        let file = OpenOptions::new().write(true).open(path).map_err(io_error("open", path))?;
        let cut = file.set_len(found.whole as u64).and_then(|()| file.sync_all());
        cut.map_err(io_error("cut the torn end off", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(dir: &Path) -> Result<(Log, Vec<Vec<u8>>), LogError> {
        let mut records = Vec::new();
        let log = Log::open(dir, &mut |payload| {
            records.push(payload.to_vec());
            Ok(())
        })?;
        Ok((log, records))
    }

    #[test]
    fn records_survive_until_they_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, records) = read(dir.path()).unwrap();
        assert!(records.is_empty());
        log.append(b"one").unwrap();
        let first = log.seal();
        log.append(b"two").unwrap();
        drop(log);
        let (mut log, records) = read(dir.path()).unwrap();
        assert_eq!(records, [b"one", b"two"]);
        log.remove(&first).unwrap();
        log.append(b"three").unwrap();
        drop(log);
        let (mut log, records) = read(dir.path()).unwrap();
        assert_eq!(records, [b"two".to_vec(), b"three".to_vec()]);
        let all = log.seal();
        log.remove(&all).unwrap();
        drop(log);
        assert!(read(dir.path()).unwrap().1.is_empty());
    }

    #[test]
    fn torn_end_is_cut_off_and_the_log_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = read(dir.path()).unwrap();
        log.append(b"whole").unwrap();
        log.append(b"torn by a crash").unwrap();
        let path = log.seal().remove(0);
        drop(log);
        let length = fs::metadata(&path).unwrap().len();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 4).unwrap();
        let (mut log, records) = read(dir.path()).unwrap();
        assert_eq!(records, [b"whole"]);
        log.append(b"next").unwrap();
        drop(log);
        assert_eq!(read(dir.path()).unwrap().1, [b"whole".to_vec(), b"next".to_vec()]);
    }

    #[test]
    fn damage_is_an_error_that_names_the_place() {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = read(dir.path()).unwrap();
        log.append(b"first").unwrap();
        log.append(b"second").unwrap();
        let path = log.seal().remove(0);
        drop(log);
        let mut bytes = fs::read(&path).unwrap();
        bytes[17] ^= 0xff;
        fs::write(&path, bytes).unwrap();
        assert!(matches!(read(dir.path()), Err(LogError::Damaged { offset: 0, .. })));
    }

    #[test]
    fn one_process_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let _held = read(dir.path()).unwrap();
        assert!(matches!(read(dir.path()), Err(LogError::Busy { .. })));
    }
}
