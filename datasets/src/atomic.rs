//! Files that appear whole or not at all: written beside their place, synced, then renamed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Ending of names that readers ignore.
const TEMPORARY: &str = ".tmp";

/// Whether a file name is that of an unfinished file.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.')
}

/// Where the unfinished form of `path` is written; in the same folder, so that the rename is atomic.
fn temporary(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no file name"))?;
    Ok(path.with_file_name(format!(".{}{TEMPORARY}", name.to_string_lossy())))
}

/// Writes `path` through `fill`; on any error nothing is left behind and an older file of that name is untouched.
///
/// # Errors
/// Whatever `fill` returns, or the I/O error through `wrap` with what was tried.
pub(crate) fn write_atomically<T, E>(
    path: &Path,
    wrap: impl Fn(&'static str, io::Error) -> E,
    fill: impl FnOnce(&File) -> Result<T, E>,
) -> Result<T, E> {
    let unfinished = temporary(path).map_err(|e| wrap("write", e))?;
    let written = write_unfinished(&unfinished, &wrap, fill).and_then(|value| {
        fs::rename(&unfinished, path).map_err(|e| wrap("rename into place", e))?;
        Ok(value)
    });
    if written.is_err() {
        // The first error is the one to report; a left-over is ignored by readers and removed by the next writer.
        let _ = fs::remove_file(&unfinished);
    }
    let value = written?;
    sync_folder(path).map_err(|e| wrap("sync the folder of", e))?;
    Ok(value)
}

fn write_unfinished<T, E>(
    unfinished: &Path,
    wrap: &impl Fn(&'static str, io::Error) -> E,
    fill: impl FnOnce(&File) -> Result<T, E>,
) -> Result<T, E> {
    let file = File::create(unfinished).map_err(|e| wrap("create", e))?;
    let value = fill(&file)?;
    file.sync_all().map_err(|e| wrap("sync", e))?;
    Ok(value)
}

/// Makes the entry of `path` in its folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn failure_leaves_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write_atomically(&path, |_, e| e, |mut f| f.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |_, e| e, |_| Err::<(), _>(io::Error::other("disk full")));
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
