//! The pieces in which a shard is copied.

use foreshard_domain::ShardId;

use super::keys;
use super::kv::{Keyspace, Pairs};
use super::node::{EmbeddedNode, NodeError};
use super::node_move::read_write_ids;
use crate::Position;

/// Where a copy goes on: at this row. The identifiers of writes come with the first piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cursor {
    /// A full key.
    pub row: Vec<u8>,
}

impl Cursor {
    /// Before all rows of a shard.
    pub fn first(shard: &ShardId) -> Self {
        Self { row: keys::first(shard) }
    }

    /// As hexadecimal digits.
    pub fn text(&self) -> String {
        self.row.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn parse(shard: &ShardId, text: &str) -> Option<Self> {
        if !text.is_ascii() || !text.len().is_multiple_of(2) {
            return None;
        }
        let pairs = (0..text.len()).step_by(2).map(|at| text.get(at..at + 2));
        let row = pairs.map(|pair| u8::from_str_radix(pair?, 16).ok()).collect::<Option<Vec<u8>>>()?;
        row.starts_with(&keys::first(shard)).then_some(Self { row })
    }
}

/// What one call copies.
pub(super) struct Piece {
    pub rows: Pairs,
    pub write_ids: Vec<(Position, u128)>,
    pub next: Option<Cursor>,
}

impl Piece {
    pub fn bytes(&self) -> u64 {
        let rows: usize = self.rows.iter().map(|(key, value)| key.len() + value.len()).sum();
        (rows + self.write_ids.len() * 24) as u64
    }
}

/// Rows read at once while a piece is put together.
const READ_ROWS: usize = 64;

/// The next piece from the source as it is now. Only identifiers up to `copy_from` are taken; later ones come with the log.
pub(super) fn read_piece(
    node: &EmbeddedNode,
    shard: &ShardId,
    cursor: Option<Cursor>,
    copy_from: Position,
    most_bytes: usize,
) -> Result<Piece, NodeError> {
    let (_, snapshot) = node.snapshot_at(shard)?;
    let mut piece = Piece { rows: Vec::new(), write_ids: Vec::new(), next: None };
    let mut from = match cursor {
        None => {
            piece.write_ids = read_write_ids(shard, snapshot.as_ref(), None, copy_from, usize::MAX)?;
            keys::first(shard)
        }
        Some(Cursor { row }) => row,
    };
    let end = keys::end(shard);
    let mut bytes = 0;
    while bytes < most_bytes {
        let rows = snapshot
            .range(Keyspace::Rows, &from, &end, READ_ROWS)
            .map_err(|source| NodeError::store("copying", shard, source))?;
        let Some((last, _)) = rows.last() else { return Ok(piece) };
        from = keys::after(last);
        bytes += rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        for (key, value) in rows {
            let key = keys::rest(shard, &key).ok_or_else(|| NodeError::corrupt(shard, Keyspace::Rows))?;
            piece.rows.push((key.to_vec(), value));
        }
    }
    piece.next = Some(Cursor { row: from });
    Ok(piece)
}
