//! Files that are read again when they change.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Pause before a file that has just changed is looked at once more.
pub(crate) const SETTLES_IN: Duration = Duration::from_millis(200);

/// A file's state, as far as it tells whether the file is another one now: what a rename, a write, or a restored time of
/// change leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What a look at a file found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is what it was when it was last used; or it is gone, which means that it is being replaced.
    Same,
    /// It differs from the last look, so somebody may be writing it at this moment: look again after [`SETTLES_IN`].
    Settling,
    /// It is another one, and has not changed since the last look: it is to be used now.
    Changed,
}

#[derive(Debug, Default)]
struct Seen {
    used: Option<State>,
    last: Option<State>,
    /// Why it could not be used, as it was told.
    told: Option<String>,
}

/// A file and what it looked like when it was last looked at.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seen: Mutex<Seen>,
}

impl Watched {
    /// A file whose state is that of now.
    pub(crate) fn new(path: PathBuf) -> Self {
        let now = state(&path);
        Self { path, seen: Mutex::new(Seen { used: now, last: now, told: None }) }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is another one since it was last used, or named. A file that is written in place would be read half if it
    /// were used as soon as it changes, so a change counts when two looks found the same.
    pub(crate) fn look(&self) -> Look {
        let now = state(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = seen.last == now;
        seen.last = now;
        if now.is_none() || seen.used == now {
            return Look::Same;
        }
        if !stands {
            return Look::Settling;
        }
        seen.used = now;
        Look::Changed
    }

    /// What was seen was used.
    pub(crate) fn used(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).told = None;
    }

    /// What was seen could not be used: the next look finds it changed again. True if `why` was not told yet.
    pub(crate) fn try_again(&self, why: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.used = None;
        let new = seen.told.as_deref() != Some(why);
        seen.told = Some(why.to_owned());
        new
    }

    /// What was seen has to wait for another file: the next look finds it changed again.
    pub(crate) fn wait(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).used = None;
    }
}

fn state(path: &Path) -> Option<State> {
    let found = fs::metadata(path).ok()?;
    Some(State {
        device: found.dev(),
        inode: found.ino(),
        bytes: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(file: &Watched) -> [Look; 3] {
        [file.look(), file.look(), file.look()]
    }

    const CHANGED: [Look; 3] = [Look::Settling, Look::Changed, Look::Same];

    #[test]
    fn a_change_is_told_once_when_it_has_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "a").unwrap();
        let file = Watched::new(path.clone());
        assert_eq!(file.look(), Look::Same);
        fs::write(&path, "bc").unwrap();
        assert_eq!(looks(&file), CHANGED);
        fs::write(&path, "half").unwrap();
        assert_eq!(file.look(), Look::Settling);
        fs::write(&path, "half and the rest").unwrap();
        assert_eq!(looks(&file), CHANGED, "half of it is never used");
        fs::remove_file(&path).unwrap();
        assert_eq!(looks(&file), [Look::Same; 3]);
        fs::write(&path, "def").unwrap();
        assert_eq!(looks(&file), CHANGED);
    }

    #[test]
    fn what_could_not_be_used_is_tried_again_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "a").unwrap();
        let file = Watched::new(path);
        assert!(file.try_again("damaged"));
        assert_eq!(file.look(), Look::Changed);
        assert!(!file.try_again("damaged") && file.try_again("gone"));
        file.used();
        assert!(file.try_again("gone"));
        assert_eq!(file.look(), Look::Changed);
        file.wait();
        assert_eq!([file.look(), file.look()], [Look::Changed, Look::Same]);
    }

    #[test]
    fn a_replaced_file_of_the_same_size_and_time_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        fs::write(&path, "old").unwrap();
        let file = Watched::new(path.clone());
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&other, "new").unwrap();
        fs::File::options().write(true).open(&other).unwrap().set_modified(time).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(looks(&file), CHANGED);
    }
}
