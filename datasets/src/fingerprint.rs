//! A name for the content of a history that does not depend on how it lies in files.

use foreshard_domain::ShardId;
use sha2::{Digest, Sha256};

use crate::rows::ShardRows;

/// Bits of NaN that stand for every missing value.
const MISSING: u64 = 0x7ff8_0000_0000_0000;

/// SHA-256 over shards in order: name, times, nodes by run, then each column that has a value.
pub(crate) fn of<'a>(parts: impl Iterator<Item = (&'a ShardId, &'a ShardRows)>) -> String {
    let mut fingerprint = Fingerprint::default();
    parts.for_each(|(shard, rows)| fingerprint.add(shard, rows));
    fingerprint.finish()
}

/// A fingerprint while shards are added, in their order.
#[derive(Default)]
pub(crate) struct Fingerprint {
    hash: Sha256,
}

impl Fingerprint {
    pub(crate) fn add(&mut self, shard: &ShardId, rows: &ShardRows) {
        if rows.len() == 0 {
            return;
        }
        let hash = &mut self.hash;
        text(hash, shard.as_str());
        numbers(hash, rows.ts.iter().map(|t| t.to_le_bytes()), rows.len());
        nodes(hash, rows);
        for (slot, column) in rows.values.iter().enumerate() {
            if let Some(column) = column.as_ref().filter(|c| c.iter().any(|v| !v.is_nan())) {
                hash.update([slot as u8]);
                let bits = column.iter().map(|v| if v.is_nan() { MISSING } else { v.to_bits() });
                numbers(hash, bits.map(u64::to_le_bytes), column.len());
            }
        }
        hash.update([0xff]);
    }

    pub(crate) fn finish(self) -> String {
        self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn text(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// Feeds numbers in larger pieces, because the hash is slow on eight bytes at a time.
fn numbers(hash: &mut Sha256, values: impl Iterator<Item = [u8; 8]>, len: usize) {
    hash.update((len as u64).to_le_bytes());
    let mut buffer = Vec::with_capacity(8192);
    for bytes in values {
        buffer.extend_from_slice(&bytes);
        if buffer.len() >= 8192 {
            hash.update(&buffer);
            buffer.clear();
        }
    }
    hash.update(&buffer);
}

fn nodes(hash: &mut Sha256, rows: &ShardRows) {
    let Some(column) = &rows.nodes else { return };
    let mut run = 0u64;
    for i in 0..rows.len() {
        run += 1;
        if i + 1 == rows.len() || column.get(i) != column.get(i + 1) {
            if let Some(node) = column.get(i) {
                hash.update([0xfe]);
                hash.update((i as u64 + 1 - run).to_le_bytes());
                hash.update(run.to_le_bytes());
                text(hash, node.as_str());
            }
            run = 0;
        }
    }
}
