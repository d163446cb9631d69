//! Pause and cancel, asked for while the driver is at work.

use foreshard_migrator::{Driver, DriverError, MigrationRecord, StateStore as _};
use std::sync::Arc;

use crate::faulty_backend::FaultyBackend;
use crate::rig::{Goal, Rig, calls_of, pursue};

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
