//! What every backend must keep to, whatever it moves shards on.

use async_trait::async_trait;
use foreshard_domain::{Clock as _, Consistency, Epoch, ManualClock, MigrationId, NodeId, RealTime, ShardId};
use foreshard_migrator::{Backend, BackendError, Left, MoveSpec, Position, Proof, SourceState, Verification, Way};
use std::collections::BTreeMap;
use std::time::Duration;

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

/// A copy that is interrupted, repeated and begun again ends with the same rows.
pub async fn resumed_copy_equals_uninterrupted_copy(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 300).await;
    moving.prepare().await;
    let first = bench.backend().copy(&moving.spec, None).await.unwrap();
    moving.write(20).await;
    let mut cursor = first.next.expect("more than one piece");
    for _ in 0..bench.pieces() - 2 {
        let again = bench.backend().copy(&moving.spec, Some(&cursor)).await.unwrap();
        cursor = again.next.expect("more pieces");
        assert_eq!(again.snapshot_at, first.snapshot_at);
        moving.write(5).await;
    }
    // The cursor is lost: from the beginning, and once more from the middle, after changes were applied.
    moving.copy_from(None).await;
    moving.catch_up().await;
    moving.write(20).await;
    moving.copy_from(Some(cursor)).await;
    moving.catch_up().await;
    let verified = moving.verify().await;
    assert!(verified.ranges > 1 && verified.rows > 0, "{verified:?}");
    assert_eq!(bench.rows(&moving.spec.target).await, moving.expected);
    assert!(bench.backend().copy(&moving.spec, Some("no cursor")).await.is_err());
}

/// A node refuses a writer who believes in another epoch than its own (M2).
pub async fn m2_write_with_old_epoch_is_refused(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 20).await;
    let (source, target) = (node("source"), node("target"));
    assert!(!bench.write(&source, Epoch(2), b"k", Some(b"v"), 1 << 64).await, "an epoch that is still to come");
    assert!(!bench.write(&target, Epoch(1), b"k", Some(b"v"), 1 << 64).await, "a node that is not the owner");
    let verified = moving.up_to_verified().await;
    assert!(!bench.write(&target, Epoch(1), b"k", Some(b"v"), 1 << 64).await, "a copy being filled");
    moving.cut_over(&verified).await;
    for epoch in [Epoch(1), Epoch(2)] {
        assert!(!bench.write(&source, epoch, b"k", Some(b"v"), 1 << 64).await, "a sealed source");
    }
    assert!(!bench.write(&target, Epoch(1), b"k", Some(b"v"), 1 << 64).await, "the old epoch at the new owner");
    assert!(bench.write(&target, Epoch(2), b"k", Some(b"v"), 1 << 64).await);
    let moved = MoveSpec { epoch: Epoch(1), ..moving.spec.reversed(Epoch(1)) };
    assert_eq!(bench.backend().source_state(&moved).await.unwrap(), SourceState::Sealed);
    is_fenced(bench.backend().fence(&moved, bench.now().plus(Duration::from_secs(bench.slowness()))).await);
    is_fenced(bench.backend().route(&moved.shard, &moved.source, Epoch(1)).await);
}

/// A fence ends at its deadline with nobody's help (M7).
pub async fn m7_fence_expires_by_itself(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 20).await;
    let verified = moving.up_to_verified().await;
    let fence_at = moving.fence(100).await;
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Fenced);
    let source = moving.spec.source.clone();
    assert!(!bench.write(&source, Epoch(1), b"k", Some(b"v"), 1 << 64).await);
    let proof = moving.prove(fence_at, &verified).await;
    bench.pass(100).await;
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open);
    is_fenced(bench.backend().seal(&moving.spec, &proof).await);
    moving.write(1).await;
    // Whoever slept through its own fence must not seal a later one with its old proof.
    moving.fence(100).await;
    is_fenced(bench.backend().seal(&moving.spec, &proof).await);
    bench.backend().unfence(&moving.spec).await.unwrap();
    bench.backend().unfence(&moving.spec).await.unwrap();
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open);
    moving.write(1).await;
    let past = bench.now();
    is_fenced(bench.backend().fence(&moving.spec, past).await);
}

/// A fence lasts no longer than it was meant to, whoever sets the clock back meanwhile (M7).
pub async fn m7_a_clock_set_back_does_not_lengthen_a_fence(bench: &dyn WithClock) {
    let mut moving = Moving::new(bench, 20).await;
    let verified = moving.up_to_verified().await;
    // One that is over already stays so.
    let fence_at = moving.fence(100).await;
    let proof = moving.prove(fence_at, &verified).await;
    bench.pass(100).await;
    moving.write(1).await;
    bench.clock().advance_ms(-50);
    is_fenced(bench.backend().seal(&moving.spec, &proof).await);
    moving.write(1).await;
    bench.clock().advance_ms(50);
    let fence_at = moving.fence(100).await;
    let proof = moving.prove(fence_at, &verified).await;
    bench.clock().advance_ms(40);
    let back = RealTime::from_ms(bench.clock().real().as_ms() - 50_000);
    bench.clock().set_real(back);
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Fenced);
    bench.clock().advance_ms(60);
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open);
    is_fenced(bench.backend().seal(&moving.spec, &proof).await);
    // A new fence, with a deadline long before that of the old one, is as good as any, for anybody.
    let other = MoveSpec { migration: MigrationId::new("other").unwrap(), ..moving.spec.clone() };
    let deadline = bench.clock().real().plus(Duration::from_millis(10));
    bench.backend().fence(&other, deadline).await.unwrap();
    bench.backend().unfence(&other).await.unwrap();
    let fence_at = moving.fence(100).await;
    let proof = moving.prove(fence_at, &verified).await;
    bench.clock().advance_ms(99);
    bench.backend().seal(&moving.spec, &proof).await.unwrap();
    let (shard, source) = (moving.spec.shard.clone(), moving.spec.source.clone());
    assert!(!bench.write(&source, Epoch(1), b"k", Some(b"v"), 1 << 64).await, "{shard} is sealed");
}

/// The first write after the fence is over is accepted even if the wall clock says that it is not.
pub async fn m7_writes_go_on_after_a_fence_whatever_the_wall_clock_says(bench: &dyn WithClock) {
    let mut moving = Moving::new(bench, 20).await;
    moving.up_to_verified().await;
    moving.fence(100).await;
    bench.clock().set_real(RealTime::from_ms(0));
    bench.clock().advance_ms(99);
    assert!(!bench.write(&moving.spec.source, Epoch(1), b"k", Some(b"v"), 1 << 64).await);
    bench.clock().advance_ms(1);
    moving.write(1).await;
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open);
}

/// A fence stands only against its own migration's seal.
pub async fn another_migration_cannot_use_the_fence(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 20).await;
    let verified = moving.up_to_verified().await;
    let fence_at = moving.fence(1000).await;
    let proof = moving.prove(fence_at, &verified).await;
    let other = MoveSpec { migration: MigrationId::new("other").unwrap(), ..moving.spec.clone() };
    is_fenced(bench.backend().seal(&other, &proof).await);
    is_fenced(bench.backend().fence(&other, bench.now().plus(Duration::from_secs(9))).await);
    bench.backend().unfence(&other).await.unwrap();
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Fenced);
    assert!(bench.backend().preflight(&other).await.is_err(), "the target is taken");
    bench.backend().seal(&moving.spec, &proof).await.unwrap();
}

/// One row that differs is found before and under the fence, and nothing seals over it (M4).
pub async fn m4_a_planted_difference_stops_the_seal(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 300).await;
    moving.up_to_verified().await;
    let (key, value) = moving.expected.iter().nth(20).map(|(k, v)| (k.clone(), v.clone())).unwrap();
    for planted in [Some(b"another value".as_slice()), None] {
        bench.plant(&moving.spec.target, &key, planted).await;
        let found = moving.compare().await;
        assert_eq!(found.differing.len(), 1, "{found:?}");
        let fence_at = moving.fence(1000).await;
        assert!(bench.backend().prove(&moving.spec, fence_at, &found).await.is_err());
        bench.backend().unfence(&moving.spec).await.unwrap();
    }
    bench.plant(&moving.spec.target, &key, Some(&value)).await;
    moving.verify().await;
    bench.plant(&moving.spec.target, b"one too many", Some(b"v")).await;
    assert_eq!(moving.compare().await.differing.len(), 1);
    bench.plant(&moving.spec.target, b"one too many", None).await;
    let verified = moving.verify().await;

    // A row that is changed between verification and fence and goes wrong on the way.
    moving.write(30).await;
    bench.carried_over(&moving.spec).await;
    let last = key_of(moving.written);
    bench.plant(&moving.spec.target, last.as_bytes(), Some(b"gone wrong")).await;
    let fence_at = moving.fence(1000).await;
    let proof = bench.backend().prove(&moving.spec, fence_at, &verified).await.unwrap();
    assert_eq!(proof.verification.differing.len(), 1, "{proof:?}");
    assert!(bench.backend().seal(&moving.spec, &proof).await.is_err());
    assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Fenced);
    // Nor does one of a comparison that is not complete.
    let mut part = proof.clone();
    part.verification.differing.clear();
    part.verification.next = Some("somewhere".to_owned());
    assert!(bench.backend().seal(&moving.spec, &part).await.is_err());
    // Nor does a proof that does not reach the fence.
    let mut short = proof.clone();
    short.verification.differing.clear();
    short.applied = Position(fence_at.0 - 1);
    assert!(bench.backend().seal(&moving.spec, &short).await.is_err());
}

/// The way back can be tried at any time and leaves nothing (M8).
pub async fn m8_the_way_back_is_tried_without_a_trace(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 20).await;
    moving.up_to_verified().await;
    let before = (bench.things(&moving.spec.source).await, bench.things(&moving.spec.target).await);
    for _ in 0..2 {
        bench.backend().try_way_back(&moving.spec).await.unwrap();
    }
    let after = (bench.things(&moving.spec.source).await, bench.things(&moving.spec.target).await);
    assert_eq!(before, after);
}

/// Undoing at any stage before the seal, twice, leaves the source as it was and nothing on the target.
pub async fn undo_twice_is_undo_once(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 100).await;
    let clean = bench.things(&moving.spec.source).await;
    for stage in 0..5 {
        if stage > 0 {
            moving.prepare().await;
        }
        if stage > 1 {
            bench.backend().copy(&moving.spec, None).await.unwrap();
        }
        if stage > 2 {
            moving.copy_from(None).await;
            moving.catch_up().await;
            moving.verify().await;
        }
        if stage > 3 {
            moving.fence(1_000_000).await;
        }
        for _ in 0..2 {
            moving.undo().await;
            assert_eq!(bench.things(&moving.spec.target).await, 0, "stage {stage}");
            assert_eq!(bench.things(&moving.spec.source).await, clean, "stage {stage}");
        }
        assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open, "stage {stage}");
        assert_eq!(bench.rows(&moving.spec.source).await, moving.expected);
    }
    moving.write(5).await;
}

/// There, back with the changes made there, and nothing of it is left when both are over.
pub async fn rollback_brings_back_every_change(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 100).await;
    let verified = moving.up_to_verified().await;
    let there = moving.spec.clone();
    moving.cut_over(&verified).await;
    assert!(bench.backend().undo(&there).await.is_err(), "past the point of no return");
    moving.write(40).await;
    while bench.backend().reverse_catch_up(&there).await.unwrap().changes > 0 {}
    assert_eq!(bench.rows(&there.source).await, moving.expected, "the old source follows");
    moving.write(40).await;
    let verified = moving.verify().await;
    moving.write(10).await;
    while bench.backend().reverse_catch_up(&there).await.unwrap().changes > 0 {}
    let back = moving.spec.clone();
    moving.cut_over(&verified).await;
    assert_eq!(moving.spec.source, there.source);
    for _ in 0..2 {
        finish(bench, &back).await;
        assert_eq!(bench.things(&back.source).await, 0, "rollback twice is rollback once");
    }
    moving.write(10).await;
    assert_eq!(bench.rows(&there.source).await, moving.expected);
}

/// The source's copy goes when the move is finished, not before the target owns the shard (M5), and only once.
pub async fn m5_finish_removes_the_source_and_the_log(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 100).await;
    assert!(bench.backend().finish(&moving.spec).await.is_err(), "an owner is not removed");
    let verified = moving.up_to_verified().await;
    assert!(bench.backend().finish(&moving.spec).await.is_err(), "an owner is not removed");
    let there = moving.spec.clone();
    let fence_at = moving.fence(1000).await;
    let proof = moving.prove(fence_at, &verified).await;
    bench.backend().seal(&there, &proof).await.unwrap();
    assert!(bench.backend().finish(&there).await.is_err(), "the only copy is not removed");
    bench.backend().open_target(&there, Epoch(2)).await.unwrap();
    moving.spec = there.reversed(Epoch(2));
    moving.write(20).await;
    for _ in 0..2 {
        finish(bench, &there).await;
        assert_eq!(bench.things(&there.source).await, 0);
    }
    moving.write(10).await;
    assert_eq!(bench.rows(&there.target).await, moving.expected);
    // And the shard can come back as a new move.
    moving.spec = MoveSpec {
        migration: MigrationId::new("m2").unwrap(),
        source: there.target,
        target: there.source,
        way: Way::There,
        ..moving.spec
    };
    let verified = moving.up_to_verified().await;
    moving.cut_over(&verified).await;
}

/// A write that is repeated after the owner has changed, because its answer was lost, is not made again (M1).
pub async fn m1_a_retry_after_the_cut_over_is_made_once(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 30).await;
    let (source, target) = (node("source"), node("target"));
    assert!(bench.write(&source, Epoch(1), b"before", Some(b"first"), 7 << 64).await);
    moving.expected.insert(b"before".to_vec(), b"first".to_vec());
    let verified = moving.up_to_verified().await;
    assert!(bench.write(&source, Epoch(1), b"during", Some(b"first"), 8 << 64).await);
    moving.expected.insert(b"during".to_vec(), b"first".to_vec());
    assert!(bench.write(&source, Epoch(1), b"during", Some(b"second"), 8 << 64).await, "told again, made once");
    moving.cut_over(&verified).await;
    assert!(bench.write(&target, Epoch(2), b"before", Some(b"second"), 7 << 64).await);
    assert!(bench.write(&target, Epoch(2), b"during", Some(b"second"), 8 << 64).await);
    assert_eq!(bench.rows(&target).await, moving.expected);
}

/// A target opens only when the source is sealed, in a new epoch, and an open target is opened again without harm (M3).
pub async fn m3_the_target_opens_only_in_a_new_epoch(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 30).await;
    let verified = moving.up_to_verified().await;
    is_fenced(bench.backend().open_target(&moving.spec, Epoch(2)).await);
    let fence_at = moving.fence(1000).await;
    let proof = moving.prove(fence_at, &verified).await;
    is_fenced(bench.backend().open_target(&moving.spec, Epoch(2)).await);
    bench.backend().seal(&moving.spec, &proof).await.unwrap();
    is_fenced(bench.backend().open_target(&moving.spec, Epoch(1)).await);
    bench.backend().open_target(&moving.spec, Epoch(2)).await.unwrap();
    assert!(bench.write(&node("target"), Epoch(2), b"k", Some(b"v"), 1 << 64).await);
    bench.backend().open_target(&moving.spec, Epoch(2)).await.unwrap();
    assert!(bench.backend().open_target(&moving.spec, Epoch(3)).await.is_err());
}

/// All that speaks against a move is told at once, before anything is changed.
pub async fn preflight_tells_everything_at_once(bench: &dyn Bench) {
    let bad = MoveSpec { epoch: Epoch(5), consistency: Consistency::Eventual, ..spec() };
    let error = bench.backend().preflight(&bad).await.unwrap_err().to_string();
    assert!(error.contains("consistency") && error.contains("epoch"), "{error}");
    assert!(bench.backend().preflight(&MoveSpec { target: node("source"), ..spec() }).await.is_err());
    assert!(bench.backend().preflight(&MoveSpec { target: node("nowhere"), ..spec() }).await.is_err());
    assert!(
        bench
            .backend()
            .preflight(&MoveSpec { source: node("target"), target: node("source"), ..spec() })
            .await
            .is_err()
    );
    let objects = bench.backend().external_objects(&spec());
    assert!(!objects.is_empty() && objects.iter().all(|name| name.contains("shard")), "{objects:?}");
}

/// A comparison goes on where it stopped, in however many calls, while writes go on before and behind its cursor; what they
/// change is found by it or by the proof.
pub async fn m4_a_comparison_in_pieces_misses_nothing(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 300).await;
    moving.prepare().await;
    moving.copy_from(None).await;
    moving.catch_up().await;
    let whole = moving.verify().await;
    let mut pieces = 1;
    let mut found = bench.backend().verify(&moving.spec, None).await.unwrap();
    let first = found.clone();
    while found.next.is_some() {
        moving.write(3).await;
        // A piece whose answer was lost is compared again, with the same result.
        for _ in 0..2 {
            let again = bench.backend().verify(&moving.spec, Some(&found)).await.unwrap();
            assert!(again.ranges > found.ranges && again.up_to >= found.up_to, "{found:?}, {again:?}");
            assert_eq!(again.differing, Vec::<String>::new());
            if pieces % 2 == 0 {
                found = again;
                break;
            }
        }
        pieces += 1;
        assert!(pieces < 10_000, "it comes to an end");
    }
    assert!(pieces >= bench.pieces(), "{pieces} pieces");
    assert!(first.rows < whole.rows && found.rows >= whole.rows, "{first:?}, {found:?}, {whole:?}");
    assert!(
        bench
            .backend()
            .verify(&moving.spec, Some(&Verification { next: Some("x".into()), ..found.clone() }))
            .await
            .is_err()
    );

    // What is proven is all that has changed since: a fault behind the cursor is found as well.
    let fence_at = moving.fence(1000).await;
    moving.prove(fence_at, &found).await;
    assert!(bench.backend().prove(&moving.spec, fence_at, &first).await.is_err(), "half a comparison proves nothing");
    bench.backend().unfence(&moving.spec).await.unwrap();
    let first = bench.backend().verify(&moving.spec, None).await.unwrap();
    moving.write(307).await;
    moving.catch_up().await;
    let key = moving.expected.keys().next().unwrap().clone();
    bench.plant(&moving.spec.target, &key, Some(b"gone wrong")).await;
    let mut found = first;
    while found.next.is_some() {
        found = bench.backend().verify(&moving.spec, Some(&found)).await.unwrap();
    }
    let fence_at = moving.fence(1000).await;
    let proof = bench.backend().prove(&moving.spec, fence_at, &found).await;
    assert!(proof.is_err() || proof.is_ok_and(|proof| !proof.verification.differing.is_empty()));
}

/// What is removed is removed in pieces, each of which leaves less (M5).
pub async fn m5_a_large_copy_is_removed_in_pieces(bench: &dyn Bench) {
    let mut moving = Moving::new(bench, 300).await;
    let clean = bench.things(&moving.spec.source).await;
    moving.prepare().await;
    moving.copy_from(None).await;
    moving.write(100).await;
    moving.catch_up().await;
    let things = async || bench.things(&moving.spec.source).await + bench.things(&moving.spec.target).await;
    let mut left = things().await;
    while bench.backend().undo(&moving.spec).await.unwrap() == Left::More {
        let now = things().await;
        assert!(now < left, "{now} of {left} are left");
        assert_eq!(bench.backend().source_state(&moving.spec).await.unwrap(), SourceState::Open);
        left = now;
    }
    assert!(bench.things(&moving.spec.target).await == 0 && bench.things(&moving.spec.source).await >= clean);
    let verified = moving.up_to_verified().await;
    assert!(moving.undo().await >= bench.pieces(), "{verified:?}");
    let verified = moving.up_to_verified().await;
    let there = moving.spec.clone();
    moving.cut_over(&verified).await;
    moving.write(100).await;
    assert!(finish(bench, &there).await >= bench.pieces());
    assert_eq!(bench.things(&there.source).await, 0);
    assert_eq!(bench.rows(&there.target).await, moving.expected);
}
