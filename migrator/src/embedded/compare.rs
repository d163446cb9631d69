//! Comparing two copies of a shard at one position, range by range.

use foreshard_domain::ShardId;
use std::collections::BTreeSet;
use xxhash_rust::xxh3::Xxh3;

use super::keys;
use super::kv::{Keyspace, KvSnapshot};
use super::node::NodeError;
use super::node_move::{read_log, read_write_ids};
use crate::Position;

/// One compared range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Compared {
    /// Rows of the source in it.
    pub rows: u64,
    /// Bytes of the source in it.
    pub bytes: u64,
    /// Its name, if the two sides differ.
    pub differs: Option<String>,
    /// Where the next range begins; `None` after the last one.
    pub next: Option<Vec<u8>>,
}

/// Two copies of one shard.
pub(super) struct Copies<'a> {
    pub shard: &'a ShardId,
    pub source: &'a dyn KvSnapshot,
    pub target: &'a dyn KvSnapshot,
}

/// A hash of pairs that tells where one ends and the next begins.
fn hash_pair(hash: &mut Xxh3, key: &[u8], value: &[u8]) {
    for part in [key, value] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}

impl Copies<'_> {
    fn failed(&self) -> impl Fn(super::kv::KvError) -> NodeError + '_ {
        |source| NodeError::store("comparing", self.shard, source)
    }

    /// Compares the range of up to `rows` rows of the source that begins at `from` (a full key) and reaches to the next row
    /// of the source: rows that only the target has fall into it.
    pub fn rows(&self, from: &[u8], rows: usize) -> Result<Compared, NodeError> {
        let end = keys::end(self.shard);
        let source = self.source.range(Keyspace::Rows, from, &end, rows.saturating_add(1)).map_err(self.failed())?;
        let next = source.get(rows).map(|(key, _)| key.clone());
        let to = next.as_deref().unwrap_or(&end);
        let source = source.get(..rows).unwrap_or(&source);
        // One more than the source has is enough to tell that there are too many.
        let target = self.target.range(Keyspace::Rows, from, to, source.len() + 1).map_err(self.failed())?;
        let (mut ours, mut theirs, mut bytes) = (Xxh3::new(), Xxh3::new(), 0);
        for (key, value) in source {
            hash_pair(&mut ours, key, value);
            bytes += (key.len() + value.len()) as u64;
        }
        for (key, value) in &target {
            hash_pair(&mut theirs, key, value);
        }
        let equal = source.len() == target.len() && ours.digest128() == theirs.digest128();
        let differs = (!equal).then(|| format!("rows from {} to {}", self.readable(from), self.readable(to)));
        Ok(Compared { rows: source.len() as u64, bytes, differs, next })
    }

    /// Compares the identifiers of the last writes after `after` and up to `upto`; without them a retried write would be made
    /// twice.
    pub fn write_ids(&self, after: Option<Position>, upto: Position) -> Result<Compared, NodeError> {
        let source = read_write_ids(self.shard, self.source, after, upto, usize::MAX)?;
        let target = read_write_ids(self.shard, self.target, after, upto, usize::MAX)?;
        let differs = (source != target).then(|| "identifiers of the last writes".to_owned());
        Ok(Compared { rows: source.len() as u64, bytes: source.len() as u64 * 24, differs, next: None })
    }

    /// The keys that were changed after `after` and up to `upto`, by the source's log.
    pub fn changed(&self, after: Position, upto: Position) -> Result<BTreeSet<Vec<u8>>, NodeError> {
        let entries = read_log(self.shard, self.source, after, upto, usize::MAX)?;
        let reached = entries.last().map_or(after, |entry| entry.position);
        if reached < upto {
            return Err(NodeError::Gap { shard: self.shard.clone(), after: reached, next: upto });
        }
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Compares single rows, which `keys` (as the client sees them) names in order.
    pub fn named(&self, keys: &[Vec<u8>]) -> Result<Compared, NodeError> {
        let (mut ours, mut theirs, mut bytes) = (Xxh3::new(), Xxh3::new(), 0);
        for key in keys {
            let full = keys::of(self.shard, key);
            for (side, hash) in [(self.source, &mut ours), (self.target, &mut theirs)] {
                let value = side.get(Keyspace::Rows, &full).map_err(self.failed())?;
                bytes += value.as_ref().map_or(0, |value| (key.len() + value.len()) as u64);
                hash_pair(hash, &full, &[u8::from(value.is_some())]);
                hash_pair(hash, &full, value.as_deref().unwrap_or_default());
            }
        }
        let range = |key: Option<&Vec<u8>>| key.map_or_else(String::new, |key| text(key));
        let differs = (ours.digest128() != theirs.digest128())
            .then(|| format!("rows changed meanwhile, from {} to {}", range(keys.first()), range(keys.last())));
        Ok(Compared { rows: keys.len() as u64, bytes: bytes / 2, differs, next: None })
    }

    fn readable(&self, full: &[u8]) -> String {
        match keys::rest(self.shard, full) {
            _ if full == keys::end(self.shard) => "the end".to_owned(),
            Some([]) => "the beginning".to_owned(),
            Some(key) => text(key),
            None => text(full),
        }
    }
}

fn text(key: &[u8]) -> String {
    format!("'{}'", key.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::super::kv::{Batch, KvStore};
    use super::super::kv_memory::MemoryStore;
    use super::*;

    fn store(shard: &ShardId, rows: &[(&str, &str)]) -> MemoryStore {
        let store = MemoryStore::default();
        let mut batch = Batch::new();
        for (key, value) in rows {
            batch.put(Keyspace::Rows, keys::of(shard, key.as_bytes()), value.as_bytes().to_vec());
        }
        store.commit(batch).unwrap();
        store
    }

    /// Names of the differing ranges of two rows each.
    fn differing(source: &[(&str, &str)], target: &[(&str, &str)]) -> Vec<String> {
        let shard = ShardId::new("s").unwrap();
        let (source, target) = (store(&shard, source), store(&shard, target));
        let (source, target) = (source.snapshot().unwrap(), target.snapshot().unwrap());
        let copies = Copies { shard: &shard, source: source.as_ref(), target: target.as_ref() };
        let (mut from, mut names) = (Some(keys::first(&shard)), Vec::new());
        while let Some(at) = from {
            let compared = copies.rows(&at, 2).unwrap();
            names.extend(compared.differs);
            from = compared.next;
        }
        names
    }

    #[test]
    fn every_kind_of_difference_is_found_in_its_range() {
        let rows = [("a", "1"), ("b", "2"), ("c", "3"), ("d", "4"), ("e", "5")];
        assert_eq!(differing(&rows, &rows), Vec::<String>::new());
        let mut other = rows;
        other[3].1 = "x";
        assert_eq!(differing(&rows, &other), ["rows from 'c' to 'e'"]);
        assert_eq!(differing(&rows, &rows[..4]), ["rows from 'e' to the end"]);
        let more = [rows.as_slice(), &[("a0", "1"), ("z", "1")]].concat();
        assert_eq!(differing(&rows, &more), ["rows from the beginning to 'c'", "rows from 'e' to the end"]);
        assert_eq!(differing(&[], &[("q", "1")]), ["rows from the beginning to the end"]);
        assert_eq!(differing(&[("ab", "c")], &[("a", "bc")]).len(), 1, "bytes must not slide between key and value");
    }
}
