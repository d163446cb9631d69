//! The checker of writes: it knows every write that a client was told is durable, and reads the stores' answer only to
//! compare.
//!
//! Each key belongs to one client and holds the list of all writes to it: a write reads the key, appends its id and puts the
//! whole list back under that id. A write that vanished is missing from the list, a write that was applied twice stands
//! in it twice. To make the second possible at all, clients treat some acknowledgements as lost on the way: they read the
//! key again, append the same id again and put it again, as a retrying client does; some at once, some only after their
//! shard has changed its owner. Only a store that recognises the id keeps such a list free of doubles, and for the late ones
//! the ids must have travelled with the shard.

use std::collections::{BTreeMap, BTreeSet};

/// Identity of one write, unique in the whole run.
pub type WriteId = u128;

/// Bytes of an id in a list.
const ID_BYTES: usize = 16;

/// The list of ids that a value holds, in the order of writing; `None` if it is no such list.
pub fn decode(value: &[u8]) -> Option<Vec<WriteId>> {
    if !value.len().is_multiple_of(ID_BYTES) {
        return None;
    }
    let ids = value.chunks_exact(ID_BYTES).map(|chunk| <[u8; ID_BYTES]>::try_from(chunk).map(WriteId::from_be_bytes));
    ids.collect::<Result<_, _>>().ok()
}

/// The list with `id` appended.
pub fn append(list: &[u8], id: WriteId) -> Vec<u8> {
    let mut list = list.to_vec();
    list.extend_from_slice(&id.to_be_bytes());
    list
}

/// What a client knows of its writes to one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyLedger {
    acknowledged: BTreeSet<WriteId>,
    unknown: BTreeSet<WriteId>,
}

impl KeyLedger {
    /// The store said that the write is durable.
    pub fn acknowledge(&mut self, id: WriteId) {
        self.unknown.remove(&id);
        self.acknowledged.insert(id);
    }

    /// The write was sent and nobody knows what became of it: it may stand in the list once, or not.
    pub fn doubt(&mut self, id: WriteId) {
        if !self.acknowledged.contains(&id) {
            self.unknown.insert(id);
        }
    }

    /// Compares with what the key's owner holds.
    pub fn compare(&self, value: Option<&[u8]>) -> WriteCheck {
        let acknowledged = self.acknowledged.len() as u64;
        let Some(list) = decode(value.unwrap_or_default()) else {
            return WriteCheck { acknowledged, lost: acknowledged, doubled: 0, foreign: 1 };
        };
        let mut counts: BTreeMap<WriteId, u64> = BTreeMap::new();
        for id in list {
            *counts.entry(id).or_default() += 1;
        }
        let lost = self.acknowledged.iter().filter(|id| !counts.contains_key(id)).count() as u64;
        let doubled = counts.values().map(|n| n.saturating_sub(1)).sum();
        let own = |id: &WriteId| self.acknowledged.contains(id) || self.unknown.contains(id);
        let foreign = counts.keys().filter(|id| !own(id)).count() as u64;
        WriteCheck { acknowledged, lost, doubled, foreign }
    }
}

/// The checker's finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteCheck {
    /// Writes that clients were told are durable.
    pub acknowledged: u64,
    /// Of those, the ones that the owner does not hold.
    pub lost: u64,
    /// Applications beyond the first.
    pub doubled: u64,
    /// Things in the store that no client sent to this key.
    pub foreign: u64,
}

impl std::ops::AddAssign for WriteCheck {
    fn add_assign(&mut self, other: Self) {
        self.acknowledged += other.acknowledged;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.foreign += other.foreign;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl WriteCheck {
        fn is_clean(&self) -> bool {
            self.lost == 0 && self.doubled == 0 && self.foreign == 0
        }
    }

    fn list(ids: &[WriteId]) -> Vec<u8> {
        ids.iter().fold(Vec::new(), |value, id| append(&value, *id))
    }

    fn ledger(acknowledged: &[WriteId], unknown: &[WriteId]) -> KeyLedger {
        let mut ledger = KeyLedger::default();
        unknown.iter().for_each(|id| ledger.doubt(*id));
        acknowledged.iter().for_each(|id| ledger.acknowledge(*id));
        ledger
    }

    #[test]
    fn m1_a_missing_write_is_lost_and_a_repeated_one_doubled() {
        let ledger = ledger(&[1, 2, 3], &[]);
        let check = |ids: &[WriteId]| ledger.compare(Some(&list(ids)));
        assert!(check(&[1, 2, 3]).is_clean());
        assert_eq!(check(&[1, 3]), WriteCheck { acknowledged: 3, lost: 1, doubled: 0, foreign: 0 });
        assert_eq!(check(&[1, 2, 2, 2, 3]), WriteCheck { acknowledged: 3, lost: 0, doubled: 2, foreign: 0 });
        assert_eq!(check(&[1, 2, 3, 9]).foreign, 1);
        assert_eq!(ledger.compare(None).lost, 3);
        assert_eq!(ledger.compare(Some(b"torn")), WriteCheck { acknowledged: 3, lost: 3, doubled: 0, foreign: 1 });
    }

    #[test]
    fn a_write_in_doubt_may_be_there_once() {
        let ledger = ledger(&[1], &[1, 2]);
        assert!(ledger.compare(Some(&list(&[1]))).is_clean());
        assert!(ledger.compare(Some(&list(&[1, 2]))).is_clean());
        assert_eq!(ledger.compare(Some(&list(&[1, 2, 2]))).doubled, 1);
    }

    #[test]
    fn an_untouched_key_is_clean() {
        assert!(KeyLedger::default().compare(None).is_clean());
    }
}
