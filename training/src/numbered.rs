//! Folders named by rising numbers, written once and never changed: what both registries are made of.
//!
//! A writer first reserves a number by creating the folder `.<number>.staging`: `create_dir` succeeds for one of several
//! writers only. It puts the content into the folder `content` in there and publishes it by renaming that to `<number>`. A
//! crash leaves a staging folder behind that nobody reads and whose number is not given out again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// An error of the file system with the path that it is about.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}", path.display())]
pub struct FileError {
    /// Such as "create folder".
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Attaches what was tried, and where, to an error of the file system.
pub(crate) fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> FileError + 'a {
    move |source| FileError { what, path: path.to_owned(), source }
}

/// What comes after a number in the name of a staging folder.
const STAGING: &str = ".staging";

/// What the folder to be published is called while it is written.
const CONTENT: &str = "content";

/// A number and the folder to write for it; dropped without being published, everything written is removed.
#[derive(Debug)]
pub struct Reservation {
    number: u64,
    parent: PathBuf,
    staging: PathBuf,
}

impl Reservation {
    /// Reserves the next free number of `parent`, which is created if need be.
    pub(crate) fn take(parent: &Path, least: u64) -> Result<Self, FileError> {
        fs::create_dir_all(parent).map_err(at("create folder", parent))?;
        let mut number = taken(parent)?.map_or(1, |n| n + 1).max(least);
        loop {
            let staging = parent.join(format!(".{number}{STAGING}"));
            match fs::create_dir(&staging) {
                Ok(()) => {
                    let reservation = Self { number, parent: parent.to_owned(), staging };
                    // Another writer may have published this number, and so freed its staging name, after we looked.
                    if !parent.join(number.to_string()).exists() {
                        return Ok(reservation);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at("create folder", &staging)(error)),
            }
            number += 1;
        }
    }

    /// The number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Name of the folder that the numbers belong to, such as the model's.
    pub(crate) fn name(&self) -> String {
        self.parent.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The folder to create and write; it does not exist yet.
    pub fn content(&self) -> PathBuf {
        self.staging.join(CONTENT)
    }

    /// Makes everything written durable and publishes it under its number.
    pub(crate) fn publish(self) -> Result<u64, FileError> {
        let path = self.parent.join(self.number.to_string());
        sync_tree(&self.content())?;
        fs::rename(self.content(), &path).map_err(at("publish", &path))?;
        sync_folder(&self.parent)?;
        Ok(self.number)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.staging) {
            tracing::warn!(path = %self.staging.display(), %error, "a staging folder is left behind");
        }
    }
}

/// The highest number that is published or reserved.
fn taken(parent: &Path) -> Result<Option<u64>, FileError> {
    let names = names(parent)?;
    let number = |name: &String| {
        let name = name.strip_prefix('.').and_then(|n| n.strip_suffix(STAGING)).unwrap_or(name);
        name.parse::<u64>().ok()
    };
    Ok(names.iter().filter_map(number).max())
}

/// The published numbers, rising. A folder that does not exist holds none.
pub(crate) fn published(parent: &Path) -> Result<Vec<u64>, FileError> {
    if !parent.exists() {
        return Ok(Vec::new());
    }
    let mut numbers: Vec<u64> = names(parent)?.iter().filter_map(|n| n.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Names of all entries that are UTF-8; others were not made by us.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(at("read folder", folder))? {
        let entry = entry.map_err(at("read folder", folder))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Writes a new file and makes its content durable.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> Result<(), FileError> {
    fs::write(path, content).map_err(at("write", path))?;
    File::open(path).and_then(|f| f.sync_all()).map_err(at("sync", path))
}

/// Replaces a file so that a reader, or a machine that comes back from a crash, sees the old content or the new.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let temporary = path.with_extension("tmp");
    write_file(&temporary, content)?;
    fs::rename(&temporary, path).map_err(at("replace", path))?;
    path.parent().map_or(Ok(()), sync_folder)
}

/// Makes the names in a folder durable.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), FileError> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(at("sync folder", folder))
}

fn sync_tree(folder: &Path) -> Result<(), FileError> {
    for name in names(folder)? {
        let path = folder.join(name);
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path).and_then(|f| f.sync_all()).map_err(at("sync", &path))?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn concurrent_writers_get_different_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let publish = |i: usize| {
            let reservation = Reservation::take(dir.path(), 1).unwrap();
            fs::create_dir(reservation.content()).unwrap();
            write_file(&reservation.content().join("who"), i.to_string().as_bytes()).unwrap();
            reservation.publish().unwrap()
        };
        let numbers: BTreeSet<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|t| scope.spawn(move || (0..5).map(|i| publish(t * 5 + i)).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(numbers.len(), 40);
        assert_eq!(published(dir.path()).unwrap(), numbers.into_iter().collect::<Vec<_>>());
        let whos: BTreeSet<String> = published(dir.path())
            .unwrap()
            .iter()
            .map(|n| fs::read_to_string(dir.path().join(n.to_string()).join("who")).unwrap())
            .collect();
        assert_eq!(whos.len(), 40);
    }

    #[test]
    fn a_crashed_writer_leaves_nothing_to_read_and_its_number_is_not_reused() {
        let dir = tempfile::tempdir().unwrap();
        let crashed = Reservation::take(dir.path(), 1).unwrap();
        fs::create_dir(crashed.content()).unwrap();
        write_file(&crashed.content().join("half"), b"written").unwrap();
        std::mem::forget(crashed);
        assert_eq!(published(dir.path()).unwrap(), Vec::<u64>::new());
        assert_eq!(Reservation::take(dir.path(), 1).unwrap().number(), 2);
    }

    #[test]
    fn a_reservation_that_is_dropped_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        drop(Reservation::take(dir.path(), 5).unwrap());
        assert_eq!(names(dir.path()).unwrap(), Vec::<String>::new());
        assert_eq!(Reservation::take(dir.path(), 5).unwrap().number(), 5);
    }
}
