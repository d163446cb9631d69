//! Whole lives without a crash, and what ends them early.

use foreshard_domain::{Consistency, Epoch, MigrationId, OutcomeResult, Owner, PlanId, Timestamp};
use foreshard_migrator::{Change, Driver, DriverConfig, DriverError, MigrationState, StateStore as _, outcome};
use std::sync::Arc;

use crate::common::{mv, node, plan, shard};
use crate::faulty_backend::{CallFault, FaultyBackend};
use crate::rig::{Goal, Rig, config, pursue};
use crate::world::RETENTION_MS;

#[tokio::test]
async fn a_move_is_done_and_finished() {
    let rig = Rig::new().await;
    let driver = rig.driver().await;
    let id = driver.start(mv(0, 0, 1), PlanId::new("p0").unwrap(), Consistency::Strict).await.unwrap();
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?}", record.state);
    rig.check("reversible").await;
    assert_eq!((rig.world.look().verify_pieces, record.progress.verified_rows), (3, 8));
    let done = outcome(&record).unwrap();
    assert_eq!((done.result, done.rows, done.hour, &done.why), (OutcomeResult::Done, 8, 3, &None));
    assert_eq!(done.planned_at, Timestamp::from_ms(3_600_000));
    // Fence, proof, seal, opening and routing: one millisecond a call, the first of which is before writes stop.
    assert_eq!(done.actual_fence_ms, 5.0);
    assert!(done.actual_duration_ms > 10 && done.actual_duration_ms < 100, "{done:?}");
    let early = driver.finish(&id).await.unwrap_err();
    assert!(matches!(early, DriverError::Illegal { .. }), "{early}");
    assert!(driver.finish_due().await.unwrap().is_empty());
    rig.world.clock.advance_ms(RETENTION_MS);
    let finished = driver.finish_due().await.unwrap();
    assert_eq!(finished[0].state, MigrationState::Done);
    assert_eq!(outcome(&finished[0]).unwrap(), done, "the retention changes nothing about what the move cost");
    rig.check("done").await;
    let state = rig.memory.read().await.unwrap();
    assert_eq!(state.overrides[&shard(0)], Owner { node: node(1), epoch: Epoch(2) });
    let events: Vec<&str> = state.journal[&id].iter().map(|row| row.event.as_str()).collect();
    assert_eq!(
        events,
        [
            "admitted",
            "prepared",
            "copied",
            "caught_up",
            "verified",
            "way_back_tried",
            "near",
            "fenced",
            "proved",
            "source_sealed",
            "owner_switched",
            "target_opened",
            "routed",
            "way_back_opened",
            "finish",
            "finished",
        ]
    );
}

#[tokio::test]
async fn a_rollback_loses_nothing_that_the_target_took() {
    let rig = Rig::new().await;
    let driver = rig.driver().await;
    let record = pursue(&driver, &rig.world, Goal::RolledBack).await.unwrap();
    assert_eq!(record.state, MigrationState::RolledBack);
    assert_eq!(record.owner(), Owner { node: node(0), epoch: Epoch(3) });
    assert!(record.fence_back_ms > 0 && record.fence_ms > 0);
    assert_eq!(outcome(&record).unwrap().result, OutcomeResult::RolledBack);
    rig.check("rolled back").await;
    assert!(driver.rollback(&record.id).await.is_ok(), "asking twice is asking once");
    assert!(matches!(driver.cancel(&record.id).await, Err(DriverError::Illegal { .. })));
}

#[tokio::test]
async fn a_copy_that_cannot_resume_begins_again() {
    let rig = Rig::with(|world| world.resumable = false).await;
    let backend = Arc::new(FaultyBackend::new(rig.world.clone(), Some((4, CallFault::CrashBefore))));
    let driver = rig.driver_on(rig.memory.clone(), backend).await;
    pursue(&driver, &rig.world, Goal::Finished).await.unwrap_err();
    let before = rig.record().await;
    assert!(matches!(&before.state, MigrationState::Copying { cursor: Some(_), .. }), "{:?}", before.state);
    let record = rig.recover(Goal::Finished, 0).await.unwrap();
    assert_eq!((record.state.name(), record.progress.rows), ("done", before.progress.rows + 8));
    rig.check("copied again").await;
}

#[tokio::test]
async fn a_target_that_never_comes_near_is_given_up() {
    let rig = Rig::new().await;
    let term = rig.memory.take_leadership("test").await.unwrap();
    let config = DriverConfig { catch_up_rounds: 3, ..config() };
    let mut slow = FaultyBackend::new(rig.world.clone(), None);
    slow.always_behind = Some(2);
    let driver = Driver::new(rig.memory.clone(), Arc::new(slow), rig.world.clock.clone(), config, term);
    let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
    let MigrationState::Failed { why } = &record.state else { panic!("{:?}", record.state) };
    assert!(why.contains("after 3 rounds the target is still"), "{why}");
    rig.check("never near").await;
}

#[tokio::test]
async fn what_cannot_be_moved_is_refused() {
    let rig = Rig::with(|world| world.reverse_log = false).await;
    let driver = rig.driver().await;
    let start = |m, c| driver.start(m, PlanId::new("p0").unwrap(), c);
    let not_owner = start(mv(0, 1, 0), Consistency::Strict).await.unwrap_err();
    assert_eq!(not_owner.to_string(), "shard s0 cannot move from n1: it is owned by n0");
    assert!(matches!(start(mv(0, 0, 0), Consistency::Strict).await, Err(DriverError::SameNode { .. })));
    assert!(matches!(start(mv(0, 0, 1), Consistency::Eventual).await, Err(DriverError::Unsupported { .. })));
    let id = start(mv(0, 0, 1), Consistency::Strict).await.unwrap();
    assert_eq!(start(mv(0, 0, 1), Consistency::Strict).await.unwrap(), id, "asking twice is asking once");
    assert!(matches!(start(mv(0, 0, 2), Consistency::Strict).await, Err(DriverError::Store { .. })));
    driver.run(&id).await.unwrap();
    assert!(matches!(driver.rollback(&id).await, Err(DriverError::NoReverseLog { .. })));
    let unknown = MigrationId::new("nobody").unwrap();
    assert!(matches!(driver.run(&unknown).await, Err(DriverError::Unknown { .. })));
}

#[tokio::test]
async fn what_is_long_over_is_forgotten_but_not_the_last_ones() {
    let rig = Rig::new().await;
    let term = rig.memory.take_leadership("test").await.unwrap();
    let config = DriverConfig { keep_ms: 10_000, keep_newest: 1, ..config() };
    let driver = Driver::new(rig.memory.clone(), rig.world.clone(), rig.world.clock.clone(), config, term);
    let at = rig.memory.read().await.unwrap().revision;
    let plans = ["p1", "p2", "p3"].map(|name| Change::PutPlan { plan: Arc::new(plan(name, None)) });
    rig.memory.commit(at, term, plans.into()).await.unwrap();
    let mut ids = Vec::new();
    for name in ["p0", "p1", "p2"] {
        let id = driver.start(mv(0, 0, 1), PlanId::new(name).unwrap(), Consistency::Strict).await.unwrap();
        driver.cancel(&id).await.unwrap();
        rig.world.clock.advance_ms(1_000);
        ids.push(id);
    }
    let accept = Change::AcceptPlan { id: PlanId::new("p0").unwrap(), expected_parent: None };
    let at = rig.memory.read().await.unwrap().revision;
    rig.memory.commit(at, term, vec![accept]).await.unwrap();
    let known = async || {
        let state = rig.memory.read().await.unwrap();
        assert_eq!(state.migrations.len(), state.journal.len(), "journals go with their migrations");
        let of = |id: &MigrationId| state.migrations.contains_key(id);
        (ids.iter().map(of).collect::<Vec<_>>(), state.plans.keys().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(driver.forget_old().await.unwrap(), 1, "a plan that nothing refers to is old enough");
    assert_eq!(known().await, (vec![true; 3], vec!["p0".into(), "p1".into(), "p2".into()]));
    rig.world.clock.advance_ms(7_999);
    // The first is old enough, but its plan is in force: its move would look as if it were still to be made.
    assert_eq!(driver.forget_old().await.unwrap(), 0);
    rig.world.clock.advance_ms(100_000);
    assert_eq!(driver.forget_old().await.unwrap(), 2, "a migration and its plan");
    assert_eq!(known().await, (vec![true, false, true], vec!["p0".into(), "p2".into()]));
    assert_eq!(driver.forget_old().await.unwrap(), 0, "the last one stays, however old");
    assert!(matches!(driver.run(&ids[1]).await, Err(DriverError::Unknown { .. })));
}
