//! How a move ends: refused, undone, rolled back, finished.

use foreshard_domain::{Consistency, Epoch, MigrationId};
use foreshard_migrator::{Left, MoveSpec, SourceState, Way};

use super::{Bench, Moving, finish, node, spec};

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
