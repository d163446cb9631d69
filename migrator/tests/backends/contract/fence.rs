//! Who may write when: epochs, fences and their ends, the cut-over.

use foreshard_domain::{Clock as _, Epoch, MigrationId, RealTime};
use foreshard_migrator::{MoveSpec, SourceState};
use std::time::Duration;

use super::{Bench, Moving, WithClock, is_fenced, node};

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
