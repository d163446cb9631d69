//! A disk of a few megabytes, for servers that run out of it.

use super::process::own;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A small disk in memory, unmounted at the end.
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts one; none where that is not allowed, as for anybody but root: say so and skip.
    pub fn mount(megabytes: u32) -> Option<Self> {
        let folder = tempfile::Builder::new().prefix("foreshard-disk-").tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if !mounted.is_ok_and(|out| out.status.success()) {
            return None;
        }
        own(folder.path());
        Some(Self { folder })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves no byte free until what this returns is dropped.
    pub fn fill(&self) -> Filled {
        let filled = Filled { file: self.folder.path().join("filler") };
        let mut file = std::fs::File::create(&filled.file).unwrap();
        for piece in [vec![0_u8; 1 << 20], vec![0; 4096]] {
            let full = std::iter::repeat_with(|| file.write_all(&piece)).find_map(Result::err).unwrap();
            assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
        }
        filled
    }
}

/// A disk that is full.
pub struct Filled {
    file: PathBuf,
}

impl Drop for Filled {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that was killed may still have files open.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).output();
    }
}
