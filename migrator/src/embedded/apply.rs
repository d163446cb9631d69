//! A shard's working state in memory, and how changes of it become one batch.

use foreshard_domain::ShardId;
use std::collections::{BTreeMap, VecDeque};

use super::fence_end::FenceEnd;
use super::keys::{self, Entry};
use super::kv::{Batch, Keyspace, KvError, KvSnapshot, KvStore};
use super::node::NodeError;
use super::shard::ShardMeta;
use crate::Position;

/// Rows read at once when a shard is loaded or removed.
pub(super) const SCAN_ROWS: usize = 1024;

/// The last writes of a shard by their identifiers, so that a retry is found.
#[derive(Debug, Default)]
pub(super) struct WriteIds {
    by_id: BTreeMap<u128, Position>,
    in_order: VecDeque<(Position, u128)>,
}

impl WriteIds {
    /// Where a write stands, if it is one of the last.
    pub fn position(&self, write_id: u128) -> Option<Position> {
        self.by_id.get(&write_id).copied()
    }

    fn last(&self) -> Option<Position> {
        self.in_order.back().map(|(position, _)| *position)
    }

    /// Adds a write beyond all that are known; returns whether it is.
    fn insert(&mut self, position: Position, write_id: u128) -> bool {
        let new = self.last().is_none_or(|last| last < position);
        if new {
            self.by_id.insert(write_id, position);
            self.in_order.push_back((position, write_id));
        }
        new
    }

    /// Takes away what is `window` or more positions behind `newest`; returns the positions.
    fn forget(&mut self, newest: Position, window: u64) -> Vec<Position> {
        let mut forgotten = Vec::new();
        while let Some((position, write_id)) = self.in_order.front().copied() {
            if newest.0.saturating_sub(position.0) < window {
                break;
            }
            self.in_order.pop_front();
            if self.by_id.get(&write_id) == Some(&position) {
                self.by_id.remove(&write_id);
            }
            forgotten.push(position);
        }
        forgotten
    }
}

/// Rows and bytes of a copy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub rows: u64,
    pub bytes: u64,
}

impl Size {
    fn add(&mut self, key: usize, value: usize) {
        self.rows += 1;
        self.bytes += (key + value) as u64;
    }

    fn remove(&mut self, key: usize, value: usize) {
        self.rows = self.rows.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub((key + value) as u64);
    }
}

/// What a node keeps of a shard in memory: always equal to what is in the store, or thrown away and loaded again.
#[derive(Debug, Default)]
pub(super) struct Cell {
    pub meta: Option<ShardMeta>,
    pub position: Position,
    pub ids: WriteIds,
    pub size: Size,
    /// Of the fence, if there is one.
    pub fence_end: Option<FenceEnd>,
}

impl Cell {
    /// Reads a shard's state from its store.
    pub fn load(shard: &ShardId, snapshot: &dyn KvSnapshot) -> Result<Self, NodeError> {
        let reading = |source: KvError| NodeError::store("reading the state of", shard, source);
        let Some(bytes) = snapshot.get(Keyspace::Meta, &keys::first(shard)).map_err(reading)? else {
            return Ok(Self::default());
        };
        let meta: ShardMeta =
            serde_json::from_slice(&bytes).map_err(|source| NodeError::Meta { shard: shard.clone(), source })?;
        let mut cell = Self { position: meta.position, meta: Some(meta), ..Self::default() };
        scan(shard, snapshot, Keyspace::WriteIds, |key, value| {
            let position = keys::position_of(shard, key)?;
            cell.ids.insert(position, keys::write_id_of(value)?);
            Some(())
        })?;
        scan(shard, snapshot, Keyspace::Rows, |key, value| {
            cell.size.add(keys::rest(shard, key)?.len(), value.len());
            Some(())
        })?;
        cell.position = cell.position.max(cell.ids.last().unwrap_or_default());
        Ok(cell)
    }
}

/// Calls `each` with every pair of a shard; `None` from it means that the pair cannot be read.
fn scan(
    shard: &ShardId,
    snapshot: &dyn KvSnapshot,
    keyspace: Keyspace,
    mut each: impl FnMut(&[u8], &[u8]) -> Option<()>,
) -> Result<(), NodeError> {
    let (mut from, to) = (keys::first(shard), keys::end(shard));
    loop {
        let pairs = snapshot
            .range(keyspace, &from, &to, SCAN_ROWS)
            .map_err(|source| NodeError::store("reading the state of", shard, source))?;
        for (key, value) in &pairs {
            each(key, value).ok_or_else(|| NodeError::corrupt(shard, keyspace))?;
        }
        match pairs.last() {
            Some((last, _)) if pairs.len() == SCAN_ROWS => from = keys::after(last),
            _ => return Ok(()),
        }
    }
}

/// Changes of one shard on their way into one batch. The cell is changed at once; if the commit fails, it is thrown away.
pub(super) struct Staged<'a> {
    shard: &'a ShardId,
    store: &'a dyn KvStore,
    cell: &'a mut Cell,
    window: u64,
    batch: Batch,
    /// Rows that this batch changes already: length of the value, if any.
    changed: BTreeMap<Vec<u8>, Option<usize>>,
}

impl<'a> Staged<'a> {
    /// Nothing yet.
    pub fn new(shard: &'a ShardId, store: &'a dyn KvStore, cell: &'a mut Cell, window: u64) -> Self {
        Self { shard, store, cell, window, batch: Batch::new(), changed: BTreeMap::new() }
    }

    /// A row as the client sees it.
    pub fn row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), NodeError> {
        let full = keys::of(self.shard, key);
        let before = match self.changed.get(key) {
            Some(length) => *length,
            None => self
                .store
                .get(Keyspace::Rows, &full)
                .map_err(|source| NodeError::store("reading a row of", self.shard, source))?
                .map(|value| value.len()),
        };
        if let Some(length) = before {
            self.cell.size.remove(key.len(), length);
        }
        self.changed.insert(key.to_vec(), value.map(<[u8]>::len));
        match value {
            Some(value) => {
                self.cell.size.add(key.len(), value.len());
                self.batch.put(Keyspace::Rows, full, value.to_vec());
            }
            None => self.batch.remove(Keyspace::Rows, full),
        }
        Ok(())
    }

    /// The identifier of the write at a position; identifiers that have become too old are forgotten, and what is copied a
    /// second time must not bring them back.
    pub fn write_id(&mut self, position: Position, write_id: u128) {
        if !self.cell.ids.insert(position, write_id) {
            return;
        }
        self.batch.put(Keyspace::WriteIds, keys::at(self.shard, position), write_id.to_be_bytes().to_vec());
        for old in self.cell.ids.forget(self.cell.position.max(position), self.window) {
            self.batch.remove(Keyspace::WriteIds, keys::at(self.shard, old));
        }
    }

    /// One change with all that belongs to it; logged if somebody captures.
    pub fn entry(&mut self, entry: &Entry, log: bool) -> Result<(), NodeError> {
        self.row(&entry.key, entry.value.as_deref())?;
        self.cell.position = entry.position;
        self.write_id(entry.position, entry.write_id);
        if log {
            self.batch.put(Keyspace::Log, keys::at(self.shard, entry.position), entry.encode());
        }
        Ok(())
    }

    /// The shard's new state.
    pub fn meta(&mut self, meta: ShardMeta) -> Result<(), NodeError> {
        let bytes =
            serde_json::to_vec(&meta).map_err(|source| NodeError::Meta { shard: self.shard.clone(), source })?;
        self.cell.position = self.cell.position.max(meta.position);
        self.batch.put(Keyspace::Meta, keys::first(self.shard), bytes);
        self.cell.meta = Some(meta);
        Ok(())
    }

    /// All of it, durable.
    pub fn commit(self) -> Result<(), NodeError> {
        self.store.commit(self.batch).map_err(|source| NodeError::store("committing a change of", self.shard, source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m1_the_last_writes_are_known_and_no_more() {
        let mut ids = WriteIds::default();
        let mut forgotten = Vec::new();
        for n in 1..=10u64 {
            ids.insert(Position(n), u128::from(n) * 100);
            forgotten.extend(ids.forget(Position(n), 4));
        }
        assert_eq!(forgotten, (1..=6).map(Position).collect::<Vec<_>>());
        assert_eq!(ids.position(700), Some(Position(7)));
        assert_eq!(ids.position(600), None);
    }
}
