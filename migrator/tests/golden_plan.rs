//! The golden plan of the planner, carried out on the embedded engine: it ends where the independent checker says.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{Clock, Consistency, Epoch, ManualClock, Owner, Placement, RealTime};
use foreshard_migrator::embedded::{self, EmbeddedBackend, EmbeddedEngine, EngineSettings, KvStore, MoveSettings};
use foreshard_migrator::{Change, Driver, DriverConfig, MemoryStore, StateStore};
use foreshard_policy::{PlanningInput, check, plan};
use std::sync::Arc;

/// Rows of each shard: enough for several pieces of a copy.
const ROWS: u32 = 300;

fn golden() -> PlanningInput {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../policy/tests/golden/input.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A cluster of the input's nodes with its shards where the input has them, and the store that says so.
async fn cluster(input: &PlanningInput, clock: &Arc<dyn Clock>) -> (Arc<EmbeddedEngine>, Arc<MemoryStore>) {
    let disk = || Arc::new(embedded::MemoryStore::default()) as Arc<dyn KvStore>;
    let nodes = input.topology.nodes.iter().map(|n| (n.id.clone(), disk(), f64::INFINITY)).collect();
    let engine = Arc::new(EmbeddedEngine::new(nodes, Arc::clone(clock), EngineSettings::default()).unwrap());
    let store = Arc::new(MemoryStore::default());
    let term = store.take_leadership("set-up").await.unwrap();
    let mut changes = Vec::new();
    for (shard, node) in input.placement.iter() {
        engine.create_shard(shard, node, Epoch(1)).await.unwrap();
        for row in 0..ROWS {
            let key = row.to_be_bytes();
            engine.put(shard, &key, shard.as_str().as_bytes(), u128::from(row)).await.unwrap();
        }
        let owner = Owner { node: node.clone(), epoch: Epoch(1) };
        changes.push(Change::SetOwner { shard: shard.clone(), expected: None, owner });
    }
    let revision = store.read().await.unwrap().revision;
    store.commit(revision, term, changes).await.unwrap();
    (engine, store)
}

#[tokio::test]
async fn the_golden_plan_ends_in_the_placement_that_the_checker_predicted() {
    let input = golden();
    let plan = plan(&input).unwrap().plan;
    let predicted = check(&input, &plan).unwrap_or_else(|v| panic!("{v:#?}")).placement;
    assert!(!plan.moves.is_empty() && predicted != input.placement, "the golden plan must move something");

    let manual = Arc::new(ManualClock::new(input.now, RealTime::from_ms(1_000)));
    let clock: Arc<dyn Clock> = manual.clone();
    let (engine, store) = cluster(&input, &clock).await;
    let backend = Arc::new(EmbeddedBackend::new(Arc::clone(&engine), MoveSettings::default(), Arc::clone(&clock)));
    let term = store.take_leadership("golden").await.unwrap();
    let as_store = Arc::clone(&store) as Arc<dyn StateStore>;
    let driver = Driver::new(as_store, backend, Arc::clone(&clock), DriverConfig::default(), term);
    for planned in &plan.moves {
        manual.set_model(planned.start.max(clock.model()));
        let id = driver.start(planned.clone(), plan.id.clone(), Consistency::Strict).await.unwrap();
        let record = driver.run(&id).await.unwrap();
        assert!(record.moved_at.is_some(), "{} did not move: {record:?}", planned.shard);
    }

    let owners = store.read().await.unwrap().owners;
    let reached: Placement = owners.iter().map(|(shard, owner)| (shard.clone(), owner.node.clone())).collect();
    assert_eq!(reached, predicted);
    for (shard, owner) in owners.iter() {
        let moved = plan.moves.iter().filter(|m| m.shard == *shard).count() as u64;
        assert_eq!(owner.epoch, Epoch(1 + moved), "epoch of {shard}");
        for row in 0..ROWS {
            let found = engine.get(shard, &row.to_be_bytes()).await.unwrap();
            assert_eq!(found.as_deref(), Some(shard.as_str().as_bytes()), "row {row} of {shard}");
        }
    }
}
