//! A failure or a crash at every call and every commit.

use foreshard_migrator::{BackendError, DriverError, FaultyStore, StateStore as _, StoreFault};
use std::sync::Arc;

use crate::faulty_backend::{CallFault, FaultyBackend};
use crate::rig::{FENCE_LIMIT_MS, Goal, Rig, calls_of, end, pursue};

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
