//! The default state store: one redb file, held by one process.
//!
//! Every commit is one redb transaction with immediate durability: when `commit` returns, the rows are on the disk. The
//! present state is also kept in memory, so reading costs no I/O. After a failure of the disk the outcome of the last commit
//! is not known, so the store refuses everything until it is opened again; then it shows the state before or after that
//! commit, never anything between, because redb switches between two roots by one checksummed header write.

use ::redb::{Builder, Database, DatabaseError, Durability, ReadableDatabase, StorageBackend, StorageError};
use async_trait::async_trait;
use foreshard_domain::{LeaderTerm, Revision};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

use super::redb_rows::{self, FORMAT, RowError};
use super::{Change, State, StateStore, StoreError, advance, lead};
use crate::cause::with_causes;

/// The state is a few megabytes at most; redb's default of 1 GiB is meant for databases that are read.
const CACHE_BYTES: usize = 16 << 20;

/// Keeps the state in a redb file.
pub struct RedbStore {
    held: Arc<Held>,
}

struct Held {
    database: Database,
    path: String,
    kept: Mutex<Kept>,
    revision: watch::Sender<Revision>,
}

struct Kept {
    state: State,
    /// What failed, if the disk did.
    broken: Option<String>,
}

impl RedbStore {
    /// Opens the store, or makes an empty one where there is no file. The file's checksums are verified.
    ///
    /// # Errors
    /// [`StoreError::Held`] if another process (or this one) has it open, [`StoreError::Format`] if another version wrote it,
    /// [`StoreError::Corrupt`] if it is no state store or damaged, [`StoreError::Io`] if it cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        if !path.exists() {
            create_whole(path, &name)?;
        }
        Self::opened(builder().open(path), name)
    }

    /// The state that a store holds, without changing its file: for a look at a store that nobody holds. The file is read as a
    /// whole and opened in memory, so that its checksums are verified and what a crash left open is mended there.
    ///
    /// # Errors
    /// As [`RedbStore::open`]; [`StoreError::Io`] also if there is no such file.
    pub fn look(path: &Path) -> Result<State, StoreError> {
        let name = path.display().to_string();
        let failed = |source: std::io::Error| StoreError::Io {
            path: name.clone(),
            doing: "looking at the store",
            source: Box::new(source),
        };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        match file.try_lock_shared() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(StoreError::Held { path: name }),
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).map_err(failed)?;
        let memory = ::redb::backends::InMemoryBackend::new();
        memory.set_len(bytes.len() as u64).and_then(|()| memory.write(0, &bytes)).map_err(failed)?;
        let looked_at = Self::open_on(memory, &name)?;
        let state = looked_at.held.usable()?.state.clone();
        Ok(state)
    }

    /// The same on any storage, such as one that fails on purpose; `name` stands for the path in errors.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_on(storage: impl StorageBackend, name: &str) -> Result<Self, StoreError> {
        Self::opened(builder().create_with_backend(storage), name.to_owned())
    }

    fn opened(database: Result<Database, DatabaseError>, path: String) -> Result<Self, StoreError> {
        let database = database.map_err(|e| open_error(e, &path))?;
        let state = load_or_create(&database).map_err(|e| row_error(e, &path, "opening"))?;
        let revision = watch::Sender::new(state.revision);
        let kept = Mutex::new(Kept { state, broken: None });
        Ok(Self { held: Arc::new(Held { database, path, kept, revision }) })
    }

    /// Runs what waits for the disk where it holds up nobody else. It runs to its end even if the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        doing: &'static str,
        work: impl FnOnce(&Held) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let held = Arc::clone(&self.held);
        let path = self.held.path.clone();
        let done = tokio::task::spawn_blocking(move || work(&held)).await;
        done.map_err(|e| StoreError::Io { path, doing, source: Box::new(e) })?
    }
}

/// Makes an empty store beside `path` and gives it that name when it is on the disk: redb cannot open a file whose making was
/// interrupted. A link never replaces a store that another process has made meanwhile.
fn create_whole(path: &Path, name: &str) -> Result<(), StoreError> {
    let failed = |source: std::io::Error| StoreError::Io {
        path: name.to_owned(),
        doing: "making a new store",
        source: Box::new(source),
    };
    let mut file_name = path.file_name().unwrap_or_default().to_owned();
    file_name.push(format!(".{}.new", std::process::id()));
    let unfinished = path.with_file_name(file_name);
    let gone = |result: std::io::Result<()>| match result {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    gone(std::fs::remove_file(&unfinished)).map_err(failed)?;
    drop(RedbStore::opened(builder().create(&unfinished), name.to_owned())?);
    match std::fs::hard_link(&unfinished, path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    gone(std::fs::remove_file(&unfinished)).map_err(failed)?;
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

fn load_or_create(database: &Database) -> Result<State, RowError> {
    if let Some(state) = redb_rows::load(&database.begin_read()?)? {
        return Ok(state);
    }
    let mut txn = database.begin_write()?;
    txn.set_durability(Durability::Immediate)?;
    redb_rows::create(&txn)?;
    txn.commit()?;
    Ok(State::default())
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        // The state is replaced as a whole, so a panic elsewhere cannot have left half of one.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn usable(&self) -> Result<MutexGuard<'_, Kept>, StoreError> {
        let kept = self.lock();
        match &kept.broken {
            None => Ok(kept),
            Some(broken) => Err(StoreError::Io {
                path: self.path.clone(),
                doing: "using a store whose disk failed, which must be opened again,",
                source: broken.clone().into(),
            }),
        }
    }

    fn change(
        &self,
        doing: &'static str,
        changes: &[Change],
        next: impl FnOnce(&State) -> Result<State, StoreError>,
    ) -> Result<State, StoreError> {
        let mut kept = self.usable()?;
        let next = next(&kept.state)?;
        if let Err(error) = self.write(&next, changes) {
            let error = row_error(error, &self.path, doing);
            kept.broken = Some(with_causes(&error));
            return Err(error);
        }
        kept.state = next.clone();
        self.revision.send_replace(next.revision);
        Ok(next)
    }

    fn write(&self, next: &State, changes: &[Change]) -> Result<(), RowError> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        redb_rows::write(&txn, next, changes)?;
        Ok(txn.commit()?)
    }
}

fn open_error(error: DatabaseError, path: &str) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::Held { path },
        DatabaseError::UpgradeRequired(found) => {
            StoreError::Format { path, found: format!("{found} of redb"), known: FORMAT }
        }
        DatabaseError::Storage(StorageError::Io(source)) if source.kind() != std::io::ErrorKind::InvalidData => {
            StoreError::Io { path, doing: "opening", source: Box::new(source) }
        }
        other => StoreError::Corrupt { path, what: "the file".into(), source: Box::new(other) },
    }
}

fn row_error(error: RowError, path: &str, doing: &'static str) -> StoreError {
    let path = path.to_owned();
    match error {
        RowError::Redb(::redb::Error::Io(source)) => StoreError::Io { path, doing, source: Box::new(source) },
        RowError::Redb(::redb::Error::Corrupted(what)) => {
            StoreError::Corrupt { path, what: "a page".into(), source: what.into() }
        }
        RowError::Redb(other) => StoreError::Io { path, doing, source: Box::new(other) },
        RowError::Row { what, source } => StoreError::Corrupt { path, what, source },
        RowError::Format { found } => StoreError::Format { path, found, known: FORMAT },
    }
}

#[async_trait]
impl StateStore for RedbStore {
    async fn read(&self) -> Result<State, StoreError> {
        Ok(self.held.usable()?.state.clone())
    }

    async fn commit(&self, expected: Revision, term: LeaderTerm, changes: Vec<Change>) -> Result<Revision, StoreError> {
        self.blocking("committing", move |held| {
            let next = held.change("committing", &changes, |state| advance(state, expected, term, &changes))?;
            Ok(next.revision)
        })
        .await
    }

    async fn take_leadership(&self, holder: &str) -> Result<LeaderTerm, StoreError> {
        let holder = holder.to_owned();
        self.blocking("taking leadership", move |held| {
            Ok(held.change("taking leadership", &[], |state| Ok(lead(state, &holder)))?.term)
        })
        .await
    }

    fn watch(&self) -> watch::Receiver<Revision> {
        self.held.revision.subscribe()
    }
}
