//! What every backend must keep to, whatever it moves shards on.

use async_trait::async_trait;
use foreshard_domain::{Consistency, Epoch, ManualClock, MigrationId, NodeId, RealTime, ShardId};
use foreshard_migrator::{Backend, BackendError, Left, MoveSpec, Position, Proof, Verification, Way};
use std::collections::BTreeMap;
use std::time::Duration;

mod content;
mod ends;
mod fence;
pub use content::*;
pub use ends::*;
pub use fence::*;

/// Rows of a copy.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// An engine with two empty nodes, `source` and `target`, and the shard `shard` open on the source in epoch 1.
#[async_trait]
pub trait Bench: Send + Sync {
    /// The backend under test.
    fn backend(&self) -> &dyn Backend;
    /// Real time as whoever drives the backend reads it.
    fn now(&self) -> RealTime;
    /// Lets so many milliseconds pass for whoever judges deadlines, times [`Bench::slowness`].
    async fn pass(&self, ms: i64);
    /// How much longer than on an engine within this process everything takes: lengths of fences are multiplied by it.
    fn slowness(&self) -> u64 {
        1
    }
    /// Waits until everything written so far has come over, without any of it being compared.
    async fn carried_over(&self, spec: &MoveSpec) {
        while self.backend().catch_up(spec).await.unwrap().changes > 0 {}
    }
    /// Writes at one node, believing in one epoch; tells whether it was accepted.
    async fn write(&self, node: &NodeId, epoch: Epoch, key: &[u8], value: Option<&[u8]>, write_id: u128) -> bool;
    /// All rows of a node's copy.
    async fn rows(&self, node: &NodeId) -> Rows;
    /// Changes one row of a node's copy behind everybody's back.
    async fn plant(&self, node: &NodeId, key: &[u8], value: Option<&[u8]>);
    /// How many things of any kind a node keeps for the shard.
    async fn things(&self, node: &NodeId) -> usize;
    /// How many pieces the whole copy is made in at least, so that it can be interrupted in between.
    fn pieces(&self) -> usize {
        3
    }
}

/// An engine whose judge of deadlines reads a clock that can be set.
pub trait WithClock: Bench {
    /// The clock.
    fn clock(&self) -> &ManualClock;
}

pub fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub fn spec() -> MoveSpec {
    MoveSpec {
        migration: MigrationId::new("m").unwrap(),
        shard: ShardId::new("shard").unwrap(),
        source: node("source"),
        target: node("target"),
        epoch: Epoch(1),
        consistency: Consistency::Strict,
        way: Way::There,
    }
}

/// The key of the n-th write: scattered, and coming again.
fn key_of(n: u32) -> String {
    format!("key-{:04}", n * 7919 % 307)
}

/// One move, step by step, with a writer that never stops.
pub struct Moving<'a> {
    pub bench: &'a dyn Bench,
    pub spec: MoveSpec,
    written: u32,
    expected: Rows,
}

impl<'a> Moving<'a> {
    pub async fn new(bench: &'a dyn Bench, rows: u32) -> Self {
        let mut moving = Self { bench, spec: spec(), written: 0, expected: Rows::new() };
        moving.write(rows).await;
        moving
    }

    pub fn backend(&self) -> &'a dyn Backend {
        self.bench.backend()
    }

    /// Some puts over many keys, every third of which is deleted again later, all accepted by the owner.
    pub async fn write(&mut self, writes: u32) {
        for _ in 0..writes {
            self.written += 1;
            let n = self.written;
            let (key, value) = (key_of(n), format!("value {n}"));
            let value = (!n.is_multiple_of(3)).then_some(value.as_bytes());
            let (node, epoch) = (self.spec.source.clone(), self.spec.epoch);
            assert!(self.bench.write(&node, epoch, key.as_bytes(), value, u128::from(n)).await, "write {n}");
            match value {
                Some(value) => self.expected.insert(key.into_bytes(), value.to_vec()),
                None => self.expected.remove(key.as_bytes()),
            };
        }
    }

    pub async fn prepare(&self) {
        self.backend().preflight(&self.spec).await.unwrap();
        self.backend().prepare(&self.spec).await.unwrap();
    }

    pub async fn copy_from(&self, mut cursor: Option<String>) {
        loop {
            cursor = self.backend().copy(&self.spec, cursor.as_deref()).await.unwrap().next;
            if cursor.is_none() {
                return;
            }
        }
    }

    pub async fn catch_up(&self) {
        while self.backend().catch_up(&self.spec).await.unwrap().changes > 0 {}
    }

    pub async fn verify(&self) -> Verification {
        let verified = self.compare().await;
        assert_eq!(verified.differing, Vec::<String>::new());
        verified
    }

    /// All pieces of the comparison before the fence.
    pub async fn compare(&self) -> Verification {
        let mut found = self.backend().verify(&self.spec, None).await.unwrap();
        while found.next.is_some() {
            found = self.backend().verify(&self.spec, Some(&found)).await.unwrap();
        }
        found
    }

    /// Undoes the move; how many calls that takes.
    pub async fn undo(&self) -> usize {
        let mut calls = 1;
        while self.backend().undo(&self.spec).await.unwrap() == Left::More {
            calls += 1;
        }
        calls
    }

    pub async fn fence(&self, limit_ms: u64) -> Position {
        let deadline = self.bench.now().plus(Duration::from_millis(limit_ms * self.bench.slowness()));
        self.backend().fence(&self.spec, deadline).await.unwrap()
    }

    pub async fn prove(&self, fence_at: Position, verified: &Verification) -> Proof {
        let proof = self.backend().prove(&self.spec, fence_at, verified).await.unwrap();
        assert_eq!(proof.verification.differing, Vec::<String>::new());
        assert!(proof.applied >= fence_at);
        proof
    }

    /// Up to the verification, with writes in between.
    pub async fn up_to_verified(&mut self) -> Verification {
        self.prepare().await;
        self.write(10).await;
        self.copy_from(None).await;
        self.write(10).await;
        self.catch_up().await;
        self.verify().await
    }

    /// From the fence to the new owner; from then on the writer writes there.
    pub async fn cut_over(&mut self, verified: &Verification) {
        self.write(10).await;
        let fence_at = self.fence(1000).await;
        let proof = self.prove(fence_at, verified).await;
        let backend = self.backend();
        backend.seal(&self.spec, &proof).await.unwrap();
        backend.seal(&self.spec, &proof).await.expect("sealing again what is sealed succeeds");
        let epoch = self.spec.epoch.next();
        for _ in 0..2 {
            backend.open_target(&self.spec, epoch).await.unwrap();
            backend.route(&self.spec.shard, &self.spec.target, epoch).await.unwrap();
        }
        self.spec = self.spec.reversed(epoch);
        assert_eq!(self.bench.rows(&self.spec.source).await, self.expected, "the new owner has everything");
    }
}

/// Finishes a move; how many calls that takes.
async fn finish(bench: &dyn Bench, spec: &MoveSpec) -> usize {
    let mut calls = 1;
    while bench.backend().finish(spec).await.unwrap() == Left::More {
        calls += 1;
    }
    calls
}

fn is_fenced<T: std::fmt::Debug>(result: Result<T, BackendError>) {
    assert!(matches!(result, Err(BackendError::Fenced { .. })), "{result:?}");
}
