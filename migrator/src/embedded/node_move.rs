//! What a move asks of a node. Every call may be repeated.

use foreshard_domain::{Epoch, MigrationId, RealTime, ShardId};
use std::sync::Arc;

use super::apply::{Cell, SCAN_ROWS};
use super::fence_end::FenceEnd;
use super::keys::{self, Entry};
use super::kv::{Batch, Keyspace, KvSnapshot, Pairs};
use super::node::{EmbeddedNode, NodeError};
use super::shard::{Refusal, Removable, ShardMeta, ShardState};
use crate::{Left, Position, SourceState, Way};

impl EmbeddedNode {
    /// Makes the node the first owner of a new, empty shard.
    ///
    /// # Errors
    /// [`NodeError::Refused`] if the node holds a copy in another state or epoch.
    pub fn create(&self, shard: &ShardId, epoch: Epoch) -> Result<(), NodeError> {
        self.with_cell(shard, |cell| match &cell.meta {
            Some(meta) => Ok(meta.serves(epoch)?),
            None => {
                let mut staged = self.staged(shard, cell);
                staged.meta(ShardMeta::open(epoch))?;
                staged.commit()
            }
        })
    }

    /// Changes the state of a shard that must exist; `None` from `decide` leaves it as it is.
    fn change(
        &self,
        shard: &ShardId,
        decide: impl FnOnce(&ShardMeta, Position) -> Result<Option<ShardMeta>, Refusal>,
    ) -> Result<(), NodeError> {
        self.with_shard(shard, |cell, meta| {
            let Some(next) = decide(&meta, cell.position)? else { return Ok(()) };
            let mut staged = self.staged(shard, cell);
            staged.meta(next)?;
            staged.commit()
        })
    }

    /// Keeps the log from here on until `migration` no longer needs it.
    pub(super) fn start_capture(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
    ) -> Result<(), NodeError> {
        self.change(shard, |meta, position| {
            meta.serves(epoch)?;
            if meta.captures.contains_key(migration) {
                return Ok(None);
            }
            let mut next = meta.clone();
            next.captures.insert(migration.clone(), position);
            Ok(Some(next))
        })
    }

    /// `migration` needs the log only after `upto` (`None`: not at all); of what nobody needs, as much is removed as `piece`
    /// allows.
    pub(super) fn release_log(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        upto: Option<Position>,
        piece: &mut usize,
    ) -> Result<Left, NodeError> {
        let unneeded = self.with_cell(shard, |cell| {
            let Some(meta) = cell.meta.clone() else { return Ok(Position(u64::MAX)) };
            let mut next = meta.clone();
            match (next.captures.get(migration).copied(), upto) {
                (Some(from), Some(upto)) if upto > from => {
                    next.captures.insert(migration.clone(), upto);
                }
                (Some(_), None) => {
                    next.captures.remove(migration);
                }
                _ => {}
            }
            let unneeded = next.log_from().unwrap_or(cell.position);
            if next != meta {
                let mut staged = self.staged(shard, cell);
                staged.meta(next)?;
                staged.commit()?;
            }
            Ok(unneeded)
        })?;
        let end = match unneeded {
            Position(u64::MAX) => keys::end(shard),
            Position(last) => keys::at(shard, Position(last + 1)),
        };
        self.remove_range(shard, Keyspace::Log, &end, piece)
    }

    /// Removes a shard's pairs below `end`, up to `piece` of them, which is lessened by as many. The last batch makes all of
    /// them durable.
    fn remove_range(
        &self,
        shard: &ShardId,
        keyspace: Keyspace,
        end: &[u8],
        piece: &mut usize,
    ) -> Result<Left, NodeError> {
        let failed = |source| NodeError::store("removing rows of", shard, source);
        let snapshot = self.store.snapshot().map_err(failed)?;
        let mut from = keys::first(shard);
        loop {
            let most = SCAN_ROWS.min(*piece);
            let pairs = snapshot.range(keyspace, &from, end, most.max(1)).map_err(failed)?;
            let Some((last, _)) = pairs.last() else { return Ok(Left::Nothing) };
            if most == 0 {
                return Ok(Left::More);
            }
            from = keys::after(last);
            let more = pairs.len() == most;
            *piece -= pairs.len();
            let mut batch = if more { Batch::buffered() } else { Batch::new() };
            for (key, _) in pairs {
                batch.remove(keyspace, key);
            }
            self.store.commit(batch).map_err(failed)?;
            if !more {
                return Ok(Left::Nothing);
            }
        }
    }

    /// Makes an empty place that `migration` will fill.
    pub(super) fn prepare_import(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
    ) -> Result<(), NodeError> {
        self.with_cell(shard, |cell| match &cell.meta {
            Some(ShardMeta { state: ShardState::Importing { migration: by, .. }, .. }) if by == migration => Ok(()),
            Some(meta) => Err(Refusal::State {
                state: meta.state.name(),
                why: "the node holds a copy already; finish the migration that it belongs to first".to_owned(),
            }
            .into()),
            None => {
                let state = ShardState::Importing { migration: migration.clone(), copy_from: None };
                let mut staged = self.staged(shard, cell);
                staged.meta(ShardMeta { state, ..ShardMeta::open(epoch) })?;
                staged.commit()
            }
        })
    }

    /// Begins to fill a copy from position `at` of its source, or goes on from where it was begun: the rows may be read at
    /// any later position, since replaying the log from this one makes them what they are at its end.
    pub(super) fn begin_copy(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        at: Position,
    ) -> Result<Position, NodeError> {
        self.with_shard(shard, |cell, meta| match &meta.state {
            ShardState::Importing { migration: by, copy_from: Some(from) } if by == migration => Ok(*from),
            ShardState::Importing { migration: by, copy_from: None } if by == migration => {
                let state = ShardState::Importing { migration: migration.clone(), copy_from: Some(at) };
                let mut staged = self.staged(shard, cell);
                staged.meta(ShardMeta { state, position: at, ..meta })?;
                staged.commit()?;
                Ok(at)
            }
            other => {
                Err(Refusal::State { state: other.name(), why: format!("migration {migration} does not fill it") }
                    .into())
            }
        })
    }

    /// Puts copied rows (keys without the shard) and identifiers of writes into a copy being filled.
    pub(super) fn fill(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        rows: &Pairs,
        write_ids: &[(Position, u128)],
    ) -> Result<(), NodeError> {
        self.with_shard(shard, |cell, meta| {
            meta.follows(migration)?;
            if !matches!(meta.state, ShardState::Importing { .. }) {
                let why = "rows are copied only into a copy that never was the owner".to_owned();
                return Err(Refusal::State { state: meta.state.name(), why }.into());
            }
            let mut staged = self.staged(shard, cell);
            for (key, value) in rows {
                staged.row(key, Some(value))?;
            }
            for (position, write_id) in write_ids {
                staged.write_id(*position, *write_id);
            }
            staged.commit()
        })
    }

    /// Up to `limit` changes after a position and not beyond `upto`, and the shard's newest position.
    pub(super) fn log_after(
        &self,
        shard: &ShardId,
        after: Position,
        upto: Position,
        limit: usize,
    ) -> Result<(Vec<Entry>, Position), NodeError> {
        let (newest, snapshot) = self.snapshot_at(shard)?;
        let upto = upto.min(newest);
        let entries = read_log(shard, snapshot.as_ref(), after, upto, limit)?;
        if entries.is_empty() && after < upto {
            return Err(NodeError::Gap { shard: shard.clone(), after, next: upto });
        }
        Ok((entries, newest))
    }

    /// Makes changes of another node's log on this copy, in order; those that it has are skipped.
    pub(super) fn apply(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        entries: &[Entry],
    ) -> Result<Position, NodeError> {
        self.with_shard(shard, |cell, meta| {
            meta.follows(migration)?;
            let had = cell.position;
            let mut staged = self.staged(shard, cell);
            let mut position = had;
            for entry in entries.iter().filter(|entry| entry.position > had) {
                if entry.position.0 != position.0.saturating_add(1) {
                    return Err(NodeError::Gap { shard: shard.clone(), after: position, next: entry.position });
                }
                staged.entry(entry, false)?;
                position = entry.position;
            }
            if position > had {
                staged.meta(ShardMeta { position, ..meta })?;
                staged.commit()?;
            }
            Ok(position)
        })
    }

    /// Refuses writes until `deadline`; returns where they stopped.
    pub(super) fn fence(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
        deadline: RealTime,
    ) -> Result<Position, NodeError> {
        self.with_shard(shard, |cell, meta| {
            // The new deadline was chosen by the wall clock, the end of another fence is told by both.
            let meta = meta.without_ended_fence(self.now(cell));
            let next = meta.fence(migration, epoch, deadline, self.clock().real(), cell.position)?;
            let fence_end = FenceEnd::begin(&next, self.clock());
            let mut staged = self.staged(shard, cell);
            staged.meta(next)?;
            staged.commit()?;
            cell.fence_end = fence_end;
            Ok(cell.position)
        })
    }

    /// Lifts the fence.
    pub(super) fn unfence(&self, shard: &ShardId, migration: &MigrationId) -> Result<(), NodeError> {
        self.change(shard, |meta, _| Ok(meta.unfence(migration)))
    }

    /// Closes the shard for good, in one conditional batch.
    pub(super) fn seal(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
        proven: Position,
    ) -> Result<(), NodeError> {
        self.with_shard(shard, |cell, meta| {
            let Some(next) = meta.seal(migration, epoch, proven, self.now(cell), cell.position)? else { return Ok(()) };
            let mut staged = self.staged(shard, cell);
            staged.meta(next)?;
            staged.commit()
        })
    }

    /// Makes a filled copy the owner.
    pub(super) fn take_over(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
        way: Way,
    ) -> Result<(), NodeError> {
        self.change(shard, |meta, at| meta.take_over(migration, epoch, at, way))
    }

    /// What the node says of a shard that it owns or owned.
    pub(super) fn source_state(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        epoch: Epoch,
    ) -> Result<SourceState, NodeError> {
        self.with_shard(shard, |cell, meta| Ok(meta.source_state(migration, epoch, self.now(cell))?))
    }

    /// The shard's position and the state of the store at exactly that position.
    pub(super) fn snapshot_at(&self, shard: &ShardId) -> Result<(Position, Arc<dyn KvSnapshot>), NodeError> {
        self.with_shard(shard, |cell, _| {
            let snapshot = self.store.snapshot().map_err(|source| NodeError::store("reading", shard, source))?;
            Ok((cell.position, Arc::from(snapshot)))
        })
    }

    /// Removes a copy and all that belongs to it, as much as `piece` allows; nothing happens if there is none.
    pub(super) fn purge(
        &self,
        shard: &ShardId,
        migration: &MigrationId,
        only: Removable,
        piece: &mut usize,
    ) -> Result<Left, NodeError> {
        if self.status(shard)?.is_none() {
            return Ok(Left::Nothing);
        }
        self.change(shard, |meta, _| meta.purge(migration, only))?;
        for keyspace in [Keyspace::Rows, Keyspace::WriteIds, Keyspace::Log] {
            if self.remove_range(shard, keyspace, &keys::end(shard), piece)? == Left::More {
                return Ok(Left::More);
            }
        }
        self.with_cell(shard, |cell| {
            let ours =
                |meta: &ShardMeta| matches!(&meta.state, ShardState::Purging { migration: by } if by == migration);
            // If it is not, somebody else has ended this removal, and what is here now is another's.
            if cell.meta.as_ref().is_some_and(ours) {
                let mut batch = Batch::new();
                batch.remove(Keyspace::Meta, keys::first(shard));
                self.store.commit(batch).map_err(|source| NodeError::store("removing", shard, source))?;
                *cell = Cell::default();
            }
            Ok(Left::Nothing)
        })
    }

    /// Writes a probe of the way back.
    pub(super) fn put_probe(&self, shard: &ShardId, migration: &MigrationId, says: &[u8]) -> Result<(), NodeError> {
        let mut batch = Batch::new();
        batch.put(Keyspace::Probe, keys::of(shard, migration.as_str().as_bytes()), says.to_vec());
        self.store.commit(batch).map_err(|source| NodeError::store("writing a probe of", shard, source))
    }

    /// Reads a probe.
    pub(super) fn probe(&self, shard: &ShardId, migration: &MigrationId) -> Result<Option<Vec<u8>>, NodeError> {
        self.store
            .get(Keyspace::Probe, &keys::of(shard, migration.as_str().as_bytes()))
            .map_err(|source| NodeError::store("reading a probe of", shard, source))
    }

    /// Removes a probe if it is there.
    pub(super) fn remove_probe(&self, shard: &ShardId, migration: &MigrationId) -> Result<(), NodeError> {
        if self.probe(shard, migration)?.is_none() {
            return Ok(());
        }
        let mut batch = Batch::new();
        batch.remove(Keyspace::Probe, keys::of(shard, migration.as_str().as_bytes()));
        self.store.commit(batch).map_err(|source| NodeError::store("removing a probe of", shard, source))
    }
}

/// Changes with `after < position <= upto`, without a gap.
pub(super) fn read_log(
    shard: &ShardId,
    snapshot: &dyn KvSnapshot,
    after: Position,
    upto: Position,
    limit: usize,
) -> Result<Vec<Entry>, NodeError> {
    if after >= upto {
        return Ok(Vec::new());
    }
    let (from, to) = (keys::at(shard, Position(after.0.saturating_add(1))), keys::after(&keys::at(shard, upto)));
    let pairs = snapshot
        .range(Keyspace::Log, &from, &to, limit)
        .map_err(|source| NodeError::store("reading the log of", shard, source))?;
    let mut last = after;
    let mut entries = Vec::with_capacity(pairs.len());
    for (key, value) in pairs {
        let entry = keys::position_of(shard, &key)
            .and_then(|position| Entry::decode(position, &value))
            .ok_or_else(|| NodeError::corrupt(shard, Keyspace::Log))?;
        if entry.position.0 != last.0.saturating_add(1) {
            return Err(NodeError::Gap { shard: shard.clone(), after: last, next: entry.position });
        }
        last = entry.position;
        entries.push(entry);
    }
    Ok(entries)
}

/// Identifiers of writes after `after` and up to `upto`.
pub(super) fn read_write_ids(
    shard: &ShardId,
    snapshot: &dyn KvSnapshot,
    after: Option<Position>,
    upto: Position,
    limit: usize,
) -> Result<Vec<(Position, u128)>, NodeError> {
    let from = after.map_or_else(|| keys::first(shard), |after| keys::after(&keys::at(shard, after)));
    let pairs = snapshot
        .range(Keyspace::WriteIds, &from, &keys::after(&keys::at(shard, upto)), limit)
        .map_err(|source| NodeError::store("reading the write ids of", shard, source))?;
    pairs
        .iter()
        .map(|(key, value)| Some((keys::position_of(shard, key)?, keys::write_id_of(value)?)))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| NodeError::corrupt(shard, Keyspace::WriteIds))
}

#[cfg(test)]
mod tests {
    use foreshard_domain::{ManualClock, NodeId, RealTime, Timestamp};
    use std::sync::{Mutex, OnceLock};

    use super::super::kv::{KvError, KvStore};
    use super::super::kv_memory::MemoryStore;
    use super::*;

    type Hook = Box<dyn FnOnce() + Send>;

    /// Calls the hook in its first commit that removes rows.
    #[derive(Default)]
    struct Hooked {
        store: MemoryStore,
        hook: Mutex<Option<Hook>>,
    }

    impl KvStore for Hooked {
        fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
            self.store.get(keyspace, key)
        }

        fn snapshot(&self) -> Result<Box<dyn KvSnapshot>, KvError> {
            self.store.snapshot()
        }

        fn commit(&self, batch: Batch) -> Result<(), KvError> {
            let rows = |change: &super::super::kv::Change| {
                matches!(change, super::super::kv::Change::Remove(Keyspace::Rows, _))
            };
            let due = batch.changes.iter().any(rows).then(|| self.hook.lock().unwrap().take()).flatten();
            if let Some(hook) = due {
                hook();
            }
            self.store.commit(batch)
        }

        fn waits_for_device(&self) -> bool {
            false
        }
    }

    #[test]
    fn m5_a_removal_that_was_overtaken_takes_nothing_of_the_next_migration() {
        let (shard, first, second) =
            (ShardId::new("s").unwrap(), MigrationId::new("m1").unwrap(), MigrationId::new("m2").unwrap());
        let store = Arc::new(Hooked::default());
        let clock = Arc::new(ManualClock::new(Timestamp::default(), RealTime::default()));
        let node = Arc::new(EmbeddedNode::new(NodeId::new("n").unwrap(), store.clone(), clock, 8));
        node.prepare_import(&shard, &first, Epoch(1)).unwrap();
        node.begin_copy(&shard, &first, Position(0)).unwrap();
        node.fill(&shard, &first, &vec![(b"k".to_vec(), b"v".to_vec())], &[]).unwrap();
        let overtakes: Arc<OnceLock<()>> = Arc::default();
        let (again, done) = (Arc::clone(&node), Arc::clone(&overtakes));
        let (s, m1, m2) = (shard.clone(), first.clone(), second.clone());
        *store.hook.lock().unwrap() = Some(Box::new(move || {
            assert_eq!(again.purge(&s, &m1, Removable::Import, &mut 100).unwrap(), Left::Nothing);
            again.prepare_import(&s, &m2, Epoch(1)).unwrap();
            done.set(()).unwrap();
        }));
        assert_eq!(node.purge(&shard, &first, Removable::Import, &mut 100).unwrap(), Left::Nothing);
        assert!(overtakes.get().is_some());
        let importing = ShardState::Importing { migration: second, copy_from: None };
        assert_eq!(node.status(&shard).unwrap().unwrap().0.state, importing);
        assert_eq!(node.shards().unwrap()[&shard].state, importing, "in the store as well");
    }
}
