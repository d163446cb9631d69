//! What is copied, and how it is compared.

use foreshard_migrator::{Position, SourceState, Verification};

use super::{Bench, Moving, key_of};

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
