//! A dry run checks for real and changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{mv, node, shard};
use foreshard_domain::{Clock, Consistency, Epoch, ManualClock, NodeId, Owner, PlanId, RealTime, ShardId, Timestamp};
use foreshard_migrator::embedded::{
    EmbeddedBackend, EmbeddedEngine, EngineSettings, KvStore, MemoryStore, MoveSettings,
};
use foreshard_migrator::{
    Backend, Change, DriverConfig, DriverError, MigrationState, RedbStore, Rehearsal, StateStore, StoreError, rehearse,
};
use std::path::Path;
use std::sync::Arc;

fn by_hand() -> PlanId {
    PlanId::new("by-hand").unwrap()
}

/// Two nodes, with shard 0 on the first.
async fn engine(clock: Arc<dyn Clock>) -> Arc<EmbeddedEngine> {
    let on = |n: usize| (node(n), Arc::new(MemoryStore::default()) as Arc<dyn KvStore>, 0.0);
    let engine = EmbeddedEngine::new(vec![on(0), on(1)], clock, EngineSettings::default()).unwrap();
    engine.create_shard(&shard(0), &node(0), Epoch(1)).await.unwrap();
    engine.put(&shard(0), b"k", b"v", 1).await.unwrap();
    Arc::new(engine)
}

async fn fill(path: &Path) {
    let store = RedbStore::open(path).unwrap();
    let term = store.take_leadership("set-up").await.unwrap();
    let owner = Owner { node: node(0), epoch: Epoch(1) };
    let changes = vec![Change::SetOwner { shard: shard(0), expected: None, owner }];
    store.commit(store.read().await.unwrap().revision, term, changes).await.unwrap();
}

async fn rehearsal(engine: &Arc<EmbeddedEngine>, path: &Path, target: usize) -> Result<Rehearsal, DriverError> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(1_000)));
    let backend: Arc<dyn Backend> =
        Arc::new(EmbeddedBackend::new(Arc::clone(engine), MoveSettings::default(), Arc::clone(&clock)));
    let state = RedbStore::look(path).unwrap();
    let asked = (mv(0, 0, target), by_hand(), Consistency::Strict);
    rehearse(state, backend, clock, DriverConfig { retries: 0, ..DriverConfig::default() }, asked).await
}

fn holders(engine: &EmbeddedEngine, shard: &ShardId) -> Vec<NodeId> {
    engine.nodes().into_iter().filter(|n| engine.node(n).unwrap().status(shard).unwrap().is_some()).collect()
}

#[tokio::test]
async fn it_tells_every_step_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    fill(&path).await;
    let before = std::fs::read(&path).unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(1_000)));
    let engine = engine(clock).await;

    let found = rehearsal(&engine, &path, 1).await.unwrap();
    assert!(matches!(found.record.state, MigrationState::Reversible { .. }), "{:?}", found.record.state);
    let heads: Vec<&str> = found.steps.iter().map(|l| l[..14].trim()).filter(|h| !h.is_empty()).collect();
    let want = [
        "check",
        "prepare",
        "copy",
        "catch up",
        "verify",
        "try way back",
        "fence",
        "prove",
        "seal",
        "open",
        "route",
        "open way back",
    ];
    assert_eq!(heads, want, "{:#?}", found.steps);
    let objects: Vec<&String> = found.steps.iter().filter(|l| l.starts_with(' ')).collect();
    assert_eq!(objects.len(), found.record.objects.len());
    assert!(objects.is_sorted(), "{objects:?}");

    let again = rehearsal(&engine, &path, 1).await.unwrap();
    assert_eq!(found, again, "the same lines and names every time");
    assert_eq!(std::fs::read(&path).unwrap(), before, "the store is as it was");
    assert_eq!(holders(&engine, &shard(0)), [node(0)], "nothing was made on the target");
    assert_eq!(engine.put(&shard(0), b"k", b"w", 2).await.unwrap(), Epoch(1), "and the source serves");
}

#[tokio::test]
async fn it_ends_where_the_checks_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    fill(&path).await;
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(1_000)));
    let engine = engine(clock).await;
    let refused = rehearsal(&engine, &path, 9).await.unwrap();
    assert!(matches!(&refused.record.state, MigrationState::Failed { why } if why.contains("n9")), "{refused:?}");
    assert!(refused.steps.is_empty(), "{:?}", refused.steps);
    let not_there = rehearsal(&engine, &path, 0).await;
    assert!(matches!(not_there, Err(DriverError::SameNode { .. })), "{not_there:?}");
}

#[tokio::test]
async fn a_look_reads_what_was_committed_and_respects_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.redb");
    assert!(matches!(RedbStore::look(&path), Err(StoreError::Io { .. })), "there is nothing to look at");
    assert!(!path.exists(), "and looking makes nothing");
    fill(&path).await;
    let held = RedbStore::open(&path).unwrap();
    assert!(matches!(RedbStore::look(&path), Err(StoreError::Held { .. })));
    let state = held.read().await.unwrap();
    drop(held);
    assert_eq!(RedbStore::look(&path).unwrap(), state);
    std::fs::write(folder.path().join("junk"), b"not a store").unwrap();
    assert!(matches!(RedbStore::look(&folder.path().join("junk")), Err(StoreError::Corrupt { .. })));
}
