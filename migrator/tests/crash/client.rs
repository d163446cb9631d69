//! A client that remembers everything it was told, and retries like a real one.

use foreshard_domain::{Epoch, ShardId};
use foreshard_migrator::embedded::{EmbeddedEngine, WriteError};
use std::collections::BTreeMap;

/// Keys that the client writes in turn, so that each is overwritten often.
const KEYS: u64 = 7;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Write {
    id: u128,
    key: Vec<u8>,
    value: Option<Vec<u8>>,
}

/// What the client knows.
#[derive(Debug, Default)]
pub struct Client {
    next: u64,
    /// Acknowledged writes, in order.
    acknowledged: Vec<Write>,
    /// A write whose outcome is unknown; it is tried again before anything else is written.
    unknown: Option<Write>,
    /// The newest epoch in which a write was acknowledged.
    epoch: Epoch,
    refused: u64,
}

impl Client {
    fn write(&mut self) -> Write {
        let n = self.next;
        self.next += 1;
        let value = (n % 5 != 4).then(|| format!("value {n}").into_bytes());
        Write { id: u128::from(n) + 1, key: format!("key {}", n % KEYS).into_bytes(), value }
    }

    /// One turn: the write whose outcome is unknown or a new one, then an old one once more.
    pub async fn turn(&mut self, engine: &EmbeddedEngine, shard: &ShardId) {
        let write = match self.unknown.take() {
            Some(write) => write,
            None => self.write(),
        };
        match send(engine, shard, &write).await {
            Ok(epoch) => {
                assert!(epoch >= self.epoch, "M3: acknowledged in {epoch} after {}", self.epoch);
                self.epoch = epoch;
                self.acknowledged.push(write);
            }
            // Not made: the client gives it up, and it must never be seen.
            Err(WriteError::Busy { .. }) => self.refused += 1,
            Err(WriteError::Unknown { .. }) => self.unknown = Some(write),
            Err(error) => panic!("{error}"),
        }
        // A write whose acknowledgement was delayed is sent again, after its key has been overwritten.
        if let Some(old) = self.acknowledged.iter().rev().nth(2 * usize::try_from(KEYS).unwrap()) {
            let _ = send(engine, shard, old).await;
        }
    }

    /// Settles what is unknown and compares what is stored with what was told: every acknowledged write is there once, in
    /// order, and no other is.
    pub async fn check(&mut self, engine: &EmbeddedEngine, shard: &ShardId) {
        if self.unknown.is_some() {
            self.turn(engine, shard).await;
        }
        assert_eq!(self.unknown, None, "a retry settles what was unknown");
        let mut expected: BTreeMap<&[u8], Option<&[u8]>> = BTreeMap::new();
        for write in &self.acknowledged {
            expected.insert(&write.key, write.value.as_deref());
        }
        for (key, value) in expected {
            let stored = engine.get(shard, key).await.unwrap();
            assert_eq!(stored.as_deref(), value, "M1: key {}", key.escape_ascii());
        }
        let owner = engine.owners().get(shard).cloned().flatten().expect("somebody owns the shard");
        let (_, position) = engine.node(&owner.node).unwrap().status(shard).unwrap().unwrap();
        assert_eq!(
            position.0,
            self.acknowledged.len() as u64,
            "M1: as many changes as acknowledged writes ({} refused)",
            self.refused
        );
        assert!(self.acknowledged.len() > 20, "the client did write: {}", self.acknowledged.len());
    }

    /// Whether a new write is acknowledged now.
    pub async fn can_write(&mut self, engine: &EmbeddedEngine, shard: &ShardId) -> bool {
        let before = self.acknowledged.len();
        self.turn(engine, shard).await;
        self.acknowledged.len() > before
    }
}

async fn send(engine: &EmbeddedEngine, shard: &ShardId, write: &Write) -> Result<Epoch, WriteError> {
    match &write.value {
        Some(value) => engine.put(shard, &write.key, value, write.id).await,
        None => engine.delete(shard, &write.key, write.id).await,
    }
}
