//! The Unix socket of the process that holds the state store.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process serves there.
    #[error("socket {} is served by another process: send the command to it, or give this one another store.socket", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// Something else is there; it is not removed.
    #[error("{} is there and is no socket: move it away, or set another store.socket", path.display())]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("{doing} of socket {} failed", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A socket that belongs to this process until it is dropped.
///
/// Who serves there is decided by a lock on a file beside it, which the operating system lifts when the process dies, however
/// it dies. Only who has that lock removes a socket that was left behind. The file of the lock stays: removing it would let two
/// processes lock two files of one name.
#[derive(Debug)]
pub(crate) struct Socket {
    path: PathBuf,
    owner: u32,
    _lock: File,
}

impl Socket {
    /// Makes the socket, for this user alone, in the place of one that a dead process left.
    ///
    /// # Errors
    /// [`SocketError`].
    pub(crate) fn bind(path: &Path) -> Result<(Self, UnixListener), SocketError> {
        let failed = |doing: &'static str| move |source| SocketError::Io { path: path.to_owned(), doing, source };
        let lock = locked(path)?;
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket { path: path.to_owned() });
            }
            // A process that knows nothing of the lock may serve there.
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => return Err(SocketError::InUse { path: path.to_owned() }),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path).map_err(failed("removing what a dead process left"))?;
                }
                Err(error) => return Err(failed("asking who serves")(error)),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(failed("looking")(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed("making"))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("closing to others"))?;
        let owner = std::fs::symlink_metadata(path).map_err(failed("looking"))?.uid();
        Ok((Self { path: path.to_owned(), owner, _lock: lock }, listener))
    }

    /// Which user a client must be: who connected between the making and the closing to others is turned away as well.
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }
}

/// Whether a client may talk: this user, or the superuser, who could anyway.
pub(crate) fn may_talk(client: &UnixStream, owner: u32) -> bool {
    match client.peer_cred() {
        Ok(cred) => cred.uid() == owner || cred.uid() == 0,
        Err(error) => {
            tracing::warn!(%error, "a client that cannot be told was turned away");
            false
        }
    }
}

fn locked(path: &Path) -> Result<File, SocketError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".lock");
    let lock = path.with_file_name(name);
    let io = |source| SocketError::Io { path: path.to_owned(), doing: "locking", source };
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SocketError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(io(source)),
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held: nobody else can have made a socket there meanwhile.
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_process_loses_its_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let (socket, listener) = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })), "the lock is held");
        drop((socket, listener));
        assert!(!path.exists(), "a clean end removes it");

        // What a killed process leaves: a socket that nobody listens on, and no lock.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let taken = Socket::bind(&path).unwrap();
        drop(taken);

        // A process that does not know the lock is alive.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse { .. })));
        assert!(path.exists());
        drop(other);
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("precious");
        std::fs::write(&path, b"data").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::NoSocket { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
        let nowhere = Socket::bind(&folder.path().join("missing/s.sock"));
        assert!(matches!(nowhere, Err(SocketError::Io { .. })), "{nowhere:?}");
    }
}
