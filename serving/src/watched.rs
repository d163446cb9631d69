//! Files that are read again when they change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// A file's state, as far as it tells whether the file is another one now.
type Seen = (Option<SystemTime>, u64);

/// A file and what it looked like when it was last looked at.
#[derive(Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    seen: Mutex<Option<Seen>>,
}

impl Watched {
    /// A file whose state is that of now.
    pub(crate) fn new(path: PathBuf) -> Self {
        let seen = Mutex::new(state(&path));
        Self { path, seen }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has changed since the last look, or since it was named. One that is gone counts as unchanged: it is being
    /// replaced.
    pub(crate) fn changed(&self) -> bool {
        let now = state(&self.path);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if now.is_none() || *seen == now {
            return false;
        }
        *seen = now;
        true
    }

    /// What was seen could not be used: the next look finds it changed again.
    pub(crate) fn try_again(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn state(path: &Path) -> Option<Seen> {
    let found = fs::metadata(path).ok()?;
    Some((found.modified().ok(), found.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "a").unwrap();
        let file = Watched::new(path.clone());
        assert!(!file.changed());
        fs::write(&path, "bc").unwrap();
        assert!(file.changed() && !file.changed());
        file.try_again();
        assert!(file.changed() && !file.changed());
        fs::remove_file(&path).unwrap();
        assert!(!file.changed());
        fs::write(&path, "def").unwrap();
        assert!(file.changed());
    }
}
