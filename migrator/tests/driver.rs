//! The driver on a scripted engine: whole lives of a migration, with a failure at every call and every commit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/faulty_backend.rs"]
mod faulty_backend;
#[path = "common/world.rs"]
mod world;

use common::{mv, node, plan, shard};
use faulty_backend::{CallFault, FaultyBackend};
use foreshard_domain::{Consistency, Epoch, MigrationId, OutcomeResult, Owner, PlanId, Timestamp};
use foreshard_migrator::{
    Backend, BackendError, Change, Driver, DriverConfig, DriverError, FaultyStore, MemoryStore, MigrationRecord,
    MigrationState, StateStore, StoreFault, outcome,
};
use std::sync::Arc;
use std::time::Duration;
use world::{RETENTION_MS, World, check_owner};

const FENCE_LIMIT_MS: i64 = 1_000;

fn config() -> DriverConfig {
    DriverConfig {
        fence_limit: Duration::from_millis(1_000),
        more_fences: 2,
        near_changes: 1,
        catch_up_rounds: 100,
        retries: 2,
        first_backoff: Duration::ZERO,
        retention_ms: RETENTION_MS,
        ..DriverConfig::default()
    }
}

/// What a migration is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Finished,
    RolledBack,
}

struct Rig {
    memory: Arc<MemoryStore>,
    world: Arc<World>,
}

impl Rig {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut World)) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let mut world = World::new(memory.clone());
        change(&mut world);
        let term = memory.take_leadership("setup").await.unwrap();
        let at = memory.read().await.unwrap().revision;
        let owner = Owner { node: node(0), epoch: Epoch(1) };
        let changes = vec![
            Change::SetOwner { shard: shard(0), expected: None, owner },
            Change::PutPlan { plan: Arc::new(plan("p0", None)) },
        ];
        memory.commit(at, term, changes).await.unwrap();
        Self { memory, world: Arc::new(world) }
    }

    async fn driver_on(&self, store: Arc<dyn StateStore>, backend: Arc<dyn Backend>) -> Arc<Driver> {
        let term = store.take_leadership("test").await.unwrap();
        Arc::new(Driver::new(store, backend, self.world.clock.clone(), config(), term))
    }

    async fn driver(&self) -> Arc<Driver> {
        self.driver_on(self.memory.clone(), self.world.clone()).await
    }

    async fn record(&self) -> MigrationRecord {
        self.memory.read().await.unwrap().migrations.values().next().unwrap().as_ref().clone()
    }

    /// A new controller after a crash, a while later.
    async fn recover(&self, goal: Goal, after_ms: i64) -> Result<MigrationRecord, DriverError> {
        self.world.clock.advance_ms(after_ms);
        let driver = self.driver().await;
        for id in driver.recover().await? {
            driver.run(&id).await?;
        }
        pursue(&driver, &self.world, goal).await
    }

    /// What must hold whenever a migration stands still, whatever happened on the way.
    async fn check(&self, context: &str) {
        let state = self.memory.read().await.unwrap();
        for record in state.migrations.values() {
            assert!(record.state.is_at_rest(), "{context}: {:?}", record.state);
            let owner = record.owner();
            assert_eq!(state.owners[&shard(0)], owner, "{context}");
            check_owner(&self.world, &owner, context);
            let inner = self.world.look();
            let rows: Vec<_> = state.objects.keys().cloned().collect();
            let there: Vec<_> = inner.objects.iter().cloned().collect();
            assert_eq!(rows, there, "{context}: M6");
            let copies = if record.state.is_terminal() { 1 } else { 2 };
            assert_eq!(inner.copies.len(), copies, "{context}: {:?}", record.state);
        }
    }
}

/// Works towards the goal from wherever the migration stands.
async fn pursue(driver: &Driver, world: &World, goal: Goal) -> Result<MigrationRecord, DriverError> {
    let id = driver.start(mv(0, 0, 1), PlanId::new("p0").unwrap(), Consistency::Strict).await;
    let id = match id {
        Ok(id) => id,
        // Already moved by a migration that has been recorded under its name.
        Err(DriverError::NotOwner { .. }) => panic!("a repeated start must find its migration"),
        Err(other) => return Err(other),
    };
    let record = driver.run(&id).await?;
    match (goal, &record.state) {
        (Goal::Finished, MigrationState::Reversible { .. }) => {
            world.clock.advance_ms(RETENTION_MS);
            driver.finish(&id).await
        }
        (Goal::RolledBack, MigrationState::Reversible { .. }) => driver.rollback(&id).await,
        _ => Ok(record),
    }
}

fn end(goal: Goal) -> &'static str {
    match goal {
        Goal::Finished => "done",
        Goal::RolledBack => "rolled_back",
    }
}

async fn calls_of(goal: Goal) -> (u64, u64) {
    let rig = Rig::new().await;
    let backend = Arc::new(FaultyBackend::new(rig.world.clone(), None));
    let store = Arc::new(FaultyStore::new(rig.memory.clone(), StoreFault::None));
    let driver = rig.driver_on(store.clone(), backend.clone()).await;
    let record = pursue(&driver, &rig.world, goal).await.unwrap();
    assert_eq!(record.state.name(), end(goal));
    rig.check("without a fault").await;
    (backend.calls(), store.commits())
}

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
async fn m7_a_failure_at_every_call() {
    for goal in [Goal::Finished, Goal::RolledBack] {
        let (calls, _) = calls_of(goal).await;
        assert!(calls > 14, "{calls}");
        for at in 0..calls {
            for fault in [CallFault::Transient, CallFault::AnswerLost, CallFault::Permanent] {
                let context = format!("{goal:?}, {fault:?} at call {at} of {calls}");
                let rig = Rig::new().await;
                let backend = Arc::new(FaultyBackend::new(rig.world.clone(), Some((at, fault))));
                let driver = rig.driver_on(rig.memory.clone(), backend).await;
                let mut record = pursue(&driver, &rig.world, goal).await;
                if let Err(DriverError::Stuck { source: BackendError::Permanent { .. }, .. }) = &record {
                    // Where nothing can be given up, the next try goes on.
                    record = pursue(&driver, &rig.world, goal).await;
                }
                let record = record.unwrap_or_else(|e| panic!("{context}: {e:?}"));
                rig.check(&context).await;
                if fault == CallFault::Permanent {
                    let ends = [end(goal), "failed", "reversible"];
                    assert!(ends.contains(&record.state.name()), "{context}: {:?}", record.state);
                } else {
                    assert_eq!(record.state.name(), end(goal), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn m7_a_crash_at_every_call_is_recovered_from() {
    for goal in [Goal::Finished, Goal::RolledBack] {
        let (calls, _) = calls_of(goal).await;
        for at in 0..calls {
            for fault in [CallFault::CrashBefore, CallFault::CrashAfter] {
                for after_ms in [0, FENCE_LIMIT_MS + 1] {
                    let context = format!("{goal:?}, {fault:?} at call {at} of {calls}, {after_ms} ms later");
                    let rig = Rig::new().await;
                    let backend = Arc::new(FaultyBackend::new(rig.world.clone(), Some((at, fault))));
                    let driver = rig.driver_on(rig.memory.clone(), backend).await;
                    let died = pursue(&driver, &rig.world, goal).await;
                    assert!(matches!(died, Err(DriverError::Stuck { .. })), "{context}: {died:?}");
                    let record = rig.recover(goal, after_ms).await.unwrap_or_else(|e| panic!("{context}: {e:?}"));
                    rig.check(&context).await;
                    assert_eq!(record.state.name(), end(goal), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn m7_a_second_crash_while_recovering_is_recovered_from() {
    for goal in [Goal::Finished, Goal::RolledBack] {
        let (calls, _) = calls_of(goal).await;
        for first in 0..calls {
            for second in 0..calls {
                let context = format!("{goal:?}, crash at call {first}, then at call {second} of the recovery");
                let rig = Rig::new().await;
                let backend = FaultyBackend::new(rig.world.clone(), Some((first, CallFault::CrashAfter)));
                let driver = rig.driver_on(rig.memory.clone(), Arc::new(backend)).await;
                pursue(&driver, &rig.world, goal).await.unwrap_err();
                let backend = FaultyBackend::new(rig.world.clone(), Some((second, CallFault::CrashAfter)));
                let driver = rig.driver_on(rig.memory.clone(), Arc::new(backend)).await;
                // Ends well if fewer calls were left.
                let left = driver.recover().await.unwrap();
                if left.is_empty() || driver.run(&left[0]).await.is_ok() {
                    let _ = pursue(&driver, &rig.world, goal).await;
                }
                let record = rig.recover(goal, 0).await.unwrap_or_else(|e| panic!("{context}: {e:?}"));
                rig.check(&context).await;
                assert_eq!(record.state.name(), end(goal), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn m7_a_failure_or_crash_at_every_commit_is_recovered_from() {
    for goal in [Goal::Finished, Goal::RolledBack] {
        let (_, commits) = calls_of(goal).await;
        assert!(commits > 15, "{commits}");
        for at in 0..commits {
            for fault in [
                StoreFault::FailBefore(at),
                StoreFault::FailAfter(at),
                StoreFault::CrashBefore(at),
                StoreFault::CrashAfter(at),
            ] {
                for after_ms in [0, FENCE_LIMIT_MS + 1] {
                    let context = format!("{goal:?}, {fault:?} of {commits}, {after_ms} ms later");
                    let rig = Rig::new().await;
                    let store = Arc::new(FaultyStore::new(rig.memory.clone(), fault));
                    let driver = rig.driver_on(store.clone(), rig.world.clone()).await;
                    let outcome = pursue(&driver, &rig.world, goal).await;
                    assert_eq!(outcome.is_err(), store.crashed(), "{context}: {outcome:?}");
                    let record = match outcome {
                        Ok(record) => record,
                        Err(_) => rig.recover(goal, after_ms).await.unwrap_or_else(|e| panic!("{context}: {e:?}")),
                    };
                    rig.check(&context).await;
                    assert_eq!(record.state.name(), end(goal), "{context}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_deposed_driver_stops_wherever_it_is() {
    for goal in [Goal::Finished, Goal::RolledBack] {
        let (calls, _) = calls_of(goal).await;
        for at in 0..calls {
            let context = format!("{goal:?}, another leader during call {at} of {calls}");
            let rig = Rig::new().await;
            let backend = Arc::new(FaultyBackend::new(rig.world.clone(), None));
            let memory = rig.memory.clone();
            let take_over = move || -> futures::future::BoxFuture<'static, ()> {
                Box::pin(async move {
                    memory.take_leadership("another").await.unwrap();
                })
            };
            backend.during(at, Box::new(take_over));
            let driver = rig.driver_on(rig.memory.clone(), backend.clone()).await;
            let stopped = pursue(&driver, &rig.world, goal).await;
            assert!(matches!(stopped, Err(DriverError::Deposed { .. })), "{context}: {stopped:?}");
            assert_eq!(backend.calls(), at + 1, "{context}: it went on");
            assert!(matches!(driver.recover().await, Err(DriverError::Deposed { .. })), "{context}");
            let record = rig.recover(goal, 0).await.unwrap();
            rig.check(&context).await;
            assert_eq!(record.state.name(), end(goal), "{context}");
        }
    }
}

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
            world.look().copy(&node(0)).unwrap().mode = world::Mode::Sealed;
            Box::pin(async {})
        }),
    );
    let stopped = pursue(&driver, &rig.world, Goal::Finished).await.unwrap_err();
    assert!(matches!(&stopped, DriverError::Contradiction { what, .. } if what.contains("no proof")), "{stopped}");
    assert_eq!(rig.record().await.owner().node, node(0));
}

/// Asks the driver that is at work for something while a call is under way; the answer comes when the work has stopped.
async fn ask_during(
    at: u64,
    goal: Goal,
    cancel: bool,
) -> Option<(Rig, Arc<Driver>, Result<MigrationRecord, DriverError>)> {
    let rig = Rig::new().await;
    let backend = Arc::new(FaultyBackend::new(rig.world.clone(), None));
    let driver = rig.driver_on(rig.memory.clone(), backend.clone()).await;
    let (asked, answer) = tokio::sync::oneshot::channel();
    let (asker, memory) = (driver.clone(), rig.memory.clone());
    let ask = move || -> futures::future::BoxFuture<'static, ()> {
        Box::pin(async move {
            let id = memory.read().await.unwrap().migrations.keys().next().unwrap().clone();
            tokio::spawn(async move {
                let answer = if cancel { asker.cancel(&id).await } else { asker.pause(&id).await };
                let _ = asked.send(answer);
            });
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
        })
    };
    backend.during(at, Box::new(ask));
    let record = pursue(&driver, &rig.world, goal).await.unwrap();
    assert!(record.state.is_at_rest());
    Some((rig, driver, answer.await.ok()?))
}

#[tokio::test]
async fn a_move_can_be_paused_at_every_call_before_the_fence() {
    let (calls, _) = calls_of(Goal::Finished).await;
    let mut paused = 0;
    for at in 0..calls {
        let (rig, driver, answer) = ask_during(at, Goal::Finished, false).await.unwrap();
        let record = rig.record().await;
        if answer.is_ok() {
            paused += 1;
            assert_eq!(record.state.name(), "paused", "call {at}");
            assert!(driver.recover().await.unwrap().is_empty(), "a paused migration stays paused");
            driver.resume(&record.id).await.unwrap();
        }
        let record = pursue(&driver, &rig.world, Goal::Finished).await.unwrap();
        assert_eq!(record.state.name(), "done", "call {at}");
        rig.check(&format!("paused at call {at}")).await;
    }
    assert!(paused > 8 && paused < calls, "{paused} of {calls}");
}

#[tokio::test]
async fn a_move_can_be_cancelled_at_every_call_before_the_seal() {
    let (calls, _) = calls_of(Goal::RolledBack).await;
    let (mut cancelled, mut kept) = (0, 0);
    for at in 0..calls {
        let (rig, _, answer) = ask_during(at, Goal::RolledBack, true).await.unwrap();
        let state = rig.record().await.state;
        match (answer, state.name()) {
            (Ok(_), "cancelled") => cancelled += 1,
            (Ok(_), "reversible") => kept += 1,
            (Err(DriverError::Illegal { .. }), "rolled_back") => {}
            (answer, state) => panic!("call {at}: {state}, {answer:?}"),
        }
        rig.check(&format!("cancelled at call {at}")).await;
    }
    assert!(cancelled > 10 && kept > 4, "{cancelled} moves cancelled, {kept} rollbacks given up, of {calls}");
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
