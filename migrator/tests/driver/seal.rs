//! What may be sealed, and a seal whose answer was lost.

use foreshard_domain::{Epoch, OutcomeResult, Owner};
use foreshard_migrator::{DriverError, MigrationState, StateStore as _, outcome};
use std::sync::Arc;

use crate::common::node;
use crate::faulty_backend::{CallFault, FaultyBackend};
use crate::rig::{FENCE_LIMIT_MS, Goal, Rig, end, pursue};

#[tokio::test]
async fn m7_a_controller_that_sleeps_past_its_deadline_fails_at_the_seal() {
    let rig = Rig::new().await;
    rig.world.look().sleep_after_proof_ms = vec![FENCE_LIMIT_MS + 1];
    let driver = rig.driver().await;
    let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
    assert_eq!((record.state.name(), record.progress.fences), ("done", 2));
    assert!(record.why.unwrap().contains("the source is Open"), "the first fence had expired by itself");
    rig.check("slept once").await;
    let rig = Rig::new().await;
    rig.world.look().sleep_after_proof_ms = vec![FENCE_LIMIT_MS + 1; 9];
    let driver = rig.driver().await;
    let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
    assert_eq!((record.state.name(), record.progress.fences), ("failed", 3));
    assert!(record.why.as_deref().unwrap_or_default().contains("the source is Open"), "{:?}", record.why);
    assert_eq!(outcome(&record).unwrap().result, OutcomeResult::Failed);
    assert!(record.fence_ms <= 3 * 1_000, "an expired fence stops no writes: {} ms", record.fence_ms);
    rig.check("slept always").await;
}

#[tokio::test]
async fn m4_a_difference_stops_the_seal() {
    for call in ["copy", "verify", "prove"] {
        let rig = Rig::new().await;
        rig.world.look().damage_in = Some(call);
        let driver = rig.driver().await;
        let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
        let MigrationState::Failed { why } = &record.state else { panic!("{call}: {:?}", record.state) };
        assert!(why.contains("differ in 1 ranges, first: row 7"), "{call}: {why}");
        assert_eq!(record.owner(), Owner { node: node(0), epoch: Epoch(1) });
        rig.check(call).await;
    }
}

/// A quiet shard whose first seal comes through late, in the given call under the second fence.
async fn rig_with_late_seal(call: &'static str) -> Rig {
    let rig = Rig::new().await;
    rig.world.look().quiet = true;
    rig.world.look().late_seal = Some(call);
    rig
}

#[tokio::test]
async fn m4_a_seal_that_comes_through_late_is_recognised() {
    for call in ["fence", "prove"] {
        for goal in [Goal::Finished, Goal::RolledBack] {
            let rig = rig_with_late_seal(call).await;
            let record = pursue(&*rig.driver().await, &rig.world, goal).await.unwrap();
            assert_eq!((record.state.name(), record.proof), (end(goal), None), "{call}");
            let state = rig.memory.read().await.unwrap();
            let events: Vec<&str> = state.journal[&record.id].iter().map(|row| row.event.as_str()).collect();
            let found = events.iter().position(|event| *event == "seal_found").expect("it was found");
            assert_eq!(events[found + 1], "owner_switched", "{events:?}");
            rig.check(&format!("late seal in {call}")).await;
        }
    }
}

#[tokio::test]
async fn m4_a_seal_that_comes_through_late_is_recognised_after_a_crash_at_any_call() {
    for call in ["fence", "prove"] {
        let rig = rig_with_late_seal(call).await;
        let counted = Arc::new(FaultyBackend::new(rig.world.clone(), None));
        let driver = rig.driver_on(rig.memory.clone(), counted.clone()).await;
        pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
        for at in 0..counted.calls() {
            for fault in [CallFault::CrashBefore, CallFault::CrashAfter] {
                let context = format!("late seal in {call}, {fault:?} at call {at}");
                let rig = rig_with_late_seal(call).await;
                let backend = Arc::new(FaultyBackend::new(rig.world.clone(), Some((at, fault))));
                let driver = rig.driver_on(rig.memory.clone(), backend).await;
                // A refusal that is lost in a crash is none: then the call was no call.
                let _ = pursue(&driver, &rig.world, Goal::Finished).await;
                let record = rig.recover(Goal::Finished, 0).await.unwrap_or_else(|e| panic!("{context}: {e:?}"));
                assert_eq!(record.state.name(), "done", "{context}");
                rig.check(&context).await;
            }
        }
    }
}

#[tokio::test]
async fn m4_a_cancelled_move_that_turns_out_to_be_sealed_goes_forward() {
    let rig = rig_with_late_seal("unfence").await;
    let faulty = Arc::new(FaultyBackend::new(rig.world.clone(), None));
    let driver = rig.driver_on(rig.memory.clone(), faulty.clone()).await;
    // Cancelled while the second proof is made: the fence is to be lifted, and finds the seal.
    let (asker, memory, world) = (driver.clone(), rig.memory.clone(), rig.world.clone());
    faulty.at_proof(
        2,
        Box::new(move || {
            Box::pin(async move {
                assert!(world.look().copies.len() == 2);
                let id = memory.read().await.unwrap().migrations.keys().next().unwrap().clone();
                tokio::spawn(async move { asker.cancel(&id).await });
                for _ in 0..8 {
                    tokio::task::yield_now().await;
                }
            })
        }),
    );
    let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
    assert_eq!(record.state.name(), "done");
    let state = rig.memory.read().await.unwrap();
    let events: Vec<&str> = state.journal[&record.id].iter().map(|row| row.event.as_str()).collect();
    assert!(events.windows(2).any(|pair| pair == ["cancel", "seal_found"]), "{events:?}");
    rig.check("cancelled too late").await;
}

#[tokio::test]
async fn m4_a_sealed_source_without_a_proof_is_for_a_person_to_look_at() {
    let rig = Rig::new().await;
    let faulty = Arc::new(FaultyBackend::new(rig.world.clone(), None));
    let driver = rig.driver_on(rig.memory.clone(), faulty.clone()).await;
    let world = rig.world.clone();
    faulty.at_proof(
        1,
        Box::new(move || {
            world.look().copy(&node(0)).unwrap().mode = crate::world::Mode::Sealed;
            Box::pin(async {})
        }),
    );
    let stopped = pursue(&driver, &rig.world, Goal::Finished).await.unwrap_err();
    assert!(matches!(&stopped, DriverError::Contradiction { what, .. } if what.contains("no proof")), "{stopped}");
    assert_eq!(rig.record().await.owner().node, node(0));
}
