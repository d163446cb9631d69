//! A disk of a few megabytes, for servers that run out of it.

use super::process::own;
use std::path::Path;
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
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a server that was killed may still have files open.
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).output();
    }
}
