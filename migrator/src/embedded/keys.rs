//! How keys and log entries are laid out.
//!
//! Every key begins with the shard's name and a zero byte. A name holds no control character, so no name's prefix is part
//! of another's, and all keys of a shard lie between its name + 0 and its name + 1.
//!
//! | keyspace | rest of the key | value |
//! | --- | --- | --- |
//! | meta | - | the shard's state as JSON |
//! | rows | the client's key | the client's value |
//! | write ids | position, 8 bytes, most significant first | identifier of the write, 16 bytes |
//! | log | position, 8 bytes, most significant first | identifier (16), kind (1), length of key (4), key, value |
//! | probe | the migration | what the probe says |

use foreshard_domain::ShardId;

use crate::Position;

/// First key of a shard.
pub(super) fn first(shard: &ShardId) -> Vec<u8> {
    let mut key = shard.as_str().as_bytes().to_vec();
    key.push(0);
    key
}

/// First key after all of a shard's.
pub(super) fn end(shard: &ShardId) -> Vec<u8> {
    let mut key = shard.as_str().as_bytes().to_vec();
    key.push(1);
    key
}

/// A key of a shard.
pub(super) fn of(shard: &ShardId, rest: &[u8]) -> Vec<u8> {
    let mut key = first(shard);
    key.extend_from_slice(rest);
    key
}

/// The key of a position.
pub(super) fn at(shard: &ShardId, position: Position) -> Vec<u8> {
    of(shard, &position.0.to_be_bytes())
}

/// The least key greater than `key`.
pub(super) fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// The shard that a meta key belongs to.
pub(super) fn shard_of(key: &[u8]) -> Option<ShardId> {
    let name = key.strip_suffix(&[0])?;
    ShardId::new(std::str::from_utf8(name).ok()?).ok()
}

/// What follows the shard in a key.
pub(super) fn rest<'a>(shard: &ShardId, key: &'a [u8]) -> Option<&'a [u8]> {
    key.get(shard.as_str().len() + 1..)
}

/// The position in a key of the log or the write ids.
pub(super) fn position_of(shard: &ShardId, key: &[u8]) -> Option<Position> {
    Some(Position(u64::from_be_bytes(rest(shard, key)?.try_into().ok()?)))
}

/// The identifier in a row of the write ids.
pub(super) fn write_id_of(value: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(value.try_into().ok()?))
}

/// One change in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where it stands.
    pub position: Position,
    /// Identifier of the write.
    pub write_id: u128,
    /// The client's key.
    pub key: Vec<u8>,
    /// The new value; `None` if the row was deleted.
    pub value: Option<Vec<u8>>,
}

impl Entry {
    /// The value of its log row.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(21 + self.key.len() + self.value.as_ref().map_or(0, Vec::len));
        bytes.extend_from_slice(&self.write_id.to_be_bytes());
        bytes.push(u8::from(self.value.is_some()));
        // Keys are limited to far less than 4 GiB where they come in.
        bytes.extend_from_slice(&u32::try_from(self.key.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&self.key);
        bytes.extend_from_slice(self.value.as_deref().unwrap_or_default());
        bytes
    }

    /// Reads a log row; `None` if it is none.
    pub fn decode(position: Position, bytes: &[u8]) -> Option<Self> {
        let (write_id, bytes) = bytes.split_first_chunk::<16>()?;
        let (kind, bytes) = bytes.split_first()?;
        let (length, bytes) = bytes.split_first_chunk::<4>()?;
        let (key, value) = bytes.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        let value = match kind {
            0 if value.is_empty() => None,
            1 => Some(value.to_vec()),
            _ => return None,
        };
        Some(Self { position, write_id: u128::from_be_bytes(*write_id), key: key.to_vec(), value })
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        (self.key.len() + self.value.as_ref().map_or(0, Vec::len)) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(name: &str) -> ShardId {
        ShardId::new(name).unwrap()
    }

    #[test]
    fn no_shard_sees_anothers_keys() {
        let (a, ab) = (shard("a"), shard("ab"));
        let inside = |s: &ShardId, key: &[u8]| first(s).as_slice() <= key && key < end(s).as_slice();
        for key in [b"".as_slice(), b"\xff\xff", b"b", b"\0"] {
            assert!(inside(&a, &of(&a, key)) && !inside(&ab, &of(&a, key)));
            assert!(inside(&ab, &of(&ab, key)) && !inside(&a, &of(&ab, key)));
            assert_eq!(rest(&a, &of(&a, key)), Some(key));
        }
        assert_eq!(shard_of(&first(&ab)), Some(ab));
    }

    #[test]
    fn entries_come_back_and_broken_ones_do_not() {
        for value in [None, Some(Vec::new()), Some(b"value".to_vec())] {
            let entry = Entry { position: Position(7), write_id: 1 << 100, key: b"key".to_vec(), value };
            let bytes = entry.encode();
            assert_eq!(Entry::decode(Position(7), &bytes), Some(entry));
            for cut in 0..24 {
                assert_eq!(Entry::decode(Position(7), &bytes[..cut]), None, "cut to {cut}");
            }
        }
    }

    #[test]
    fn positions_sort_as_numbers() {
        let s = shard("s");
        assert!(at(&s, Position(255)) < at(&s, Position(256)));
        assert_eq!(position_of(&s, &at(&s, Position(256))), Some(Position(256)));
    }
}
