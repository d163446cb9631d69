//! The redb store on a disk that fails: after every failure the store opened again shows the state before or after the commit
//! under way, and everything that was acknowledged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{migration, node, plan, shard};
use foreshard_domain::{Epoch, Owner, PlanId};
use foreshard_migrator::{Change, MigrationState, RedbStore, State, StateStore, StoreError};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use redb::StorageBackend;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// What the disk does at its n-th changing operation and ever after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Writes fail with an I/O error.
    Write,
    /// Syncing fails with an I/O error; writes go on into a cache that is never written.
    Sync,
    /// There is no room left: growing the file and writing fail.
    Full,
    /// The n-th operation alone fails; the disk is fine afterwards.
    Once,
}

#[derive(Debug, Default)]
struct Disk {
    /// What would survive a loss of power.
    durable: Vec<u8>,
    /// What the process sees.
    seen: Vec<u8>,
    /// Writes since the last sync, in order; a new length is one without data.
    unsynced: Vec<(u64, Option<Vec<u8>>)>,
    operations: u64,
    fault: Option<(u64, Fault)>,
}

impl Disk {
    fn check(&mut self, writes: bool) -> io::Result<()> {
        let n = self.operations;
        self.operations += 1;
        let Some((at, fault)) = self.fault.filter(|(at, _)| n >= *at) else { return Ok(()) };
        match fault {
            Fault::Write if writes => Err(io::Error::other("injected write error")),
            Fault::Full if writes => Err(io::Error::from(io::ErrorKind::StorageFull)),
            Fault::Sync if !writes => Err(io::Error::other("injected sync error")),
            Fault::Once if n == at => Err(io::Error::other("injected single error")),
            Fault::Write | Fault::Full | Fault::Sync | Fault::Once => Ok(()),
        }
    }

    /// What a machine finds after losing power: all that was synced, and of the rest what happened to reach the disk.
    fn after_power_loss(&self, keep: &mut dyn FnMut() -> bool) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, data) in &self.unsynced {
            if keep() {
                put(&mut bytes, *offset, data.as_deref());
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, offset: u64, data: Option<&[u8]>) {
    let offset = usize::try_from(offset).unwrap();
    match data {
        None => bytes.resize(offset, 0),
        Some(data) => {
            if bytes.len() < offset + data.len() {
                bytes.resize(offset + data.len(), 0);
            }
            bytes[offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

#[derive(Debug, Clone, Default)]
struct SharedDisk(Arc<Mutex<Disk>>);

impl SharedDisk {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }

    fn holding(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Disk { durable: bytes.clone(), seen: bytes, ..Disk::default() })))
    }
}

impl StorageBackend for SharedDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let disk = self.lock();
        let from = usize::try_from(offset).unwrap();
        let bytes = disk.seen.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.lock();
        disk.check(true)?;
        put(&mut disk.seen, len, None);
        disk.unsynced.push((len, None));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.lock();
        disk.check(false)?;
        disk.durable = disk.seen.clone();
        disk.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.lock();
        disk.check(true)?;
        put(&mut disk.seen, offset, Some(data));
        disk.unsynced.push((offset, Some(data.to_vec())));
        Ok(())
    }
}

/// Commits of every table, the larger ones growing the file.
fn commits() -> Vec<Vec<Change>> {
    let mut commits = Vec::new();
    for n in 0..4usize {
        let owner = Owner { node: node(n % 2), epoch: Epoch(1) };
        let mut long = plan(&format!("p{n}"), None);
        long.input_fingerprint = "f".repeat(n * 40_000);
        commits.push(vec![
            Change::SetOwner { shard: shard(n), expected: None, owner: owner.clone() },
            Change::PutOverride { shard: shard(n), owner },
            Change::PutPlan { plan: Arc::new(long) },
        ]);
        let record = migration(&format!("m{n}"), n, n % 2, 2, Epoch(1));
        commits.push(vec![Change::PutMigration {
            record: Box::new(foreshard_migrator::MigrationRecord { state: MigrationState::Planned, ..record }),
        }]);
    }
    commits.push(vec![Change::ForgetPlan { id: PlanId::new("p3").unwrap() }]);
    commits
}

/// Commits until one fails; the states before and after that one (the same if none failed), and the failure.
async fn run(store: &RedbStore) -> (State, State, Option<StoreError>) {
    let term = match store.take_leadership("x").await {
        Ok(term) => term,
        Err(error) => {
            let after = State { revision: foreshard_domain::Revision(1), ..State::default() };
            let after = State { term: foreshard_domain::LeaderTerm(1), leader: Some("x".into()), ..after };
            return (State::default(), after, Some(error));
        }
    };
    let mut state = store.read().await.unwrap();
    for changes in commits() {
        let after = foreshard_migrator::apply(&state, &changes).unwrap();
        if let Err(error) = store.commit(state.revision, term, changes).await {
            return (state, after, Some(error));
        }
        state = after;
    }
    (state.clone(), state, None)
}

/// An empty store. The making of one is not part of this test: a file gets its name only when it is whole.
fn fresh() -> Vec<u8> {
    let disk = SharedDisk::default();
    drop(RedbStore::open_on(disk.clone(), "fresh").unwrap());
    disk.lock().durable.clone()
}

async fn check(empty: &[u8], at: u64, fault: Fault) -> bool {
    let context = format!("fault {fault:?} at operation {at}");
    let disk = SharedDisk::holding(empty.to_vec());
    disk.lock().fault = Some((at, fault));
    let (before, after, failure) = match RedbStore::open_on(disk.clone(), "faulty") {
        Err(error) => {
            assert!(matches!(error, StoreError::Io { .. }), "{context}: {error:?}");
            (State::default(), State::default(), Some(error))
        }
        Ok(store) => {
            let outcome = run(&store).await;
            if let Some(error) = &outcome.2 {
                assert!(matches!(error, StoreError::Io { .. }), "{context}: {error:?}");
                assert!(error.to_string().contains("failed on state store faulty"), "{context}: {error}");
                let refused = store.read().await.unwrap_err();
                assert!(refused.to_string().contains("must be opened again"), "{context}: {refused}");
                assert!(store.take_leadership("y").await.is_err(), "{context}");
            }
            outcome
        }
    };
    let mut random = ChaCha8Rng::seed_from_u64(at);
    let images = {
        let disk = disk.lock();
        [
            ("the process died", disk.seen.clone()),
            ("power was lost at once", disk.after_power_loss(&mut || false)),
            ("power was lost later", disk.after_power_loss(&mut || random.random())),
        ]
    };
    for (what, bytes) in images {
        let again = RedbStore::open_on(SharedDisk::holding(bytes), "again");
        let found = again.unwrap_or_else(|e| panic!("{context}, {what}: {e:?}")).read().await.unwrap();
        assert!(found == before || found == after, "{context}, {what}: revision {}", found.revision);
    }
    failure.is_some()
}

#[tokio::test]
async fn every_failure_leaves_the_state_before_or_after() {
    let empty = fresh();
    for fault in [Fault::Write, Fault::Sync, Fault::Full, Fault::Once] {
        let mut failed = 0;
        for at in 0.. {
            if !check(&empty, at, fault).await {
                break;
            }
            failed += 1;
        }
        assert!(failed > 30, "{fault:?}: only {failed} operations failed");
    }
}
