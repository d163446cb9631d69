//! The holder over its Unix socket: embedded nodes in memory, a store on disk, real gRPC.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_api::{ClientError, ControlClient, Migration, StartMigration};
use foreshard_control::{ControlServer, HolderError, HolderParts, HolderSettings, SocketError, details, migrations};
use foreshard_domain::{Clock, Consistency, Epoch, MigrationId, NodeId, Owner, ShardId, SystemClock};
use foreshard_migrator::embedded::{
    EmbeddedBackend, EmbeddedEngine, EngineSettings, KvStore, MemoryStore, MoveSettings,
};
use foreshard_migrator::{DriverConfig, RedbStore, StoreError};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Rows of each shard, of 100 bytes each; ten pieces of a copy.
const ROWS: u64 = 640;

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn to(shard_name: &str, target: &str) -> StartMigration {
    let (shard, target) = (shard(shard_name), node(target));
    StartMigration { shard, source: None, target, consistency: Consistency::Strict }
}

/// Everything that outlives a holder.
struct World {
    engine: Arc<EmbeddedEngine>,
    folder: tempfile::TempDir,
}

impl World {
    /// Three nodes; shards `a` and `b` on the first, in nobody's shard map.
    async fn new() -> Self {
        let on = |name: &str| (node(name), Arc::new(MemoryStore::default()) as Arc<dyn KvStore>, 0.0);
        let nodes = vec![on("n1"), on("n2"), on("n3")];
        let engine = Arc::new(EmbeddedEngine::new(nodes, Arc::new(SystemClock), EngineSettings::default()).unwrap());
        for name in ["a", "b"] {
            engine.create_shard(&shard(name), &node("n1"), Epoch(1)).await.unwrap();
            for n in 0..ROWS {
                engine.put(&shard(name), &n.to_be_bytes(), &[7; 92], u128::from(n)).await.unwrap();
            }
        }
        Self { engine, folder: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("state.redb")
    }

    /// A holder whose copies take `copy_s` seconds.
    async fn hold(&self, copy_s: f64, keep_up_every: Option<Duration>) -> ControlServer {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let settings = MoveSettings { chunk_bytes: 1, ..MoveSettings::default() };
        let pace_bytes_per_s = (copy_s > 0.0).then_some(ROWS as f64 * 100.0 / copy_s);
        let parts = HolderParts {
            store: Arc::new(self.opened().await),
            backend: Arc::new(EmbeddedBackend::new(Arc::clone(&self.engine), settings, Arc::clone(&clock))),
            clock,
            driver: DriverConfig { retention_ms: 0, pace_bytes_per_s, ..DriverConfig::default() },
        };
        let settings = HolderSettings {
            name: "test".into(),
            socket: self.socket(),
            keep_up_every,
            patience: Duration::from_secs(5),
        };
        ControlServer::start(parts, settings).await.unwrap()
    }

    /// The store, once the holder before has let go of it.
    async fn opened(&self) -> RedbStore {
        for _ in 0..100 {
            match RedbStore::open(&self.store()) {
                Err(StoreError::Held { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                opened => return opened.unwrap(),
            }
        }
        panic!("the store is still held");
    }

    async fn client(&self) -> ControlClient {
        ControlClient::connect(&self.socket()).await.unwrap()
    }

    fn owner(&self, name: &str) -> Owner {
        self.engine.owners().get(&shard(name)).cloned().flatten().unwrap()
    }
}

/// Waits for a moment of a migration.
async fn until(client: &ControlClient, id: &MigrationId, what: &str, is: impl Fn(&Migration) -> bool) -> Migration {
    for _ in 0..400 {
        let migration = client.show(id).await.unwrap().migration;
        if is(&migration) {
            return migration;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{id} is never {what}: {:?}", client.show(id).await.unwrap());
}

async fn at_rest(client: &ControlClient, id: &MigrationId) -> Migration {
    until(client, id, "at rest", |m| m.at_rest && !m.carried).await
}

fn code(error: &ClientError) -> Option<tonic::Code> {
    error.code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_move_by_hand_there_and_back_and_there_for_good() {
    let world = World::new().await;
    let holder = world.hold(0.0, None).await;
    let (client, other) = (world.client().await, world.client().await);
    assert!(client.list().await.unwrap().is_empty());

    let begun = client.start(&to("a", "n2")).await.unwrap();
    assert_eq!((begun.source.as_str(), begun.epoch), ("n1", Epoch(1)), "adopted where the engine has it");
    let moved = at_rest(&other, &begun.id).await;
    assert_eq!(moved.state, "reversible", "{moved:?}");
    assert_eq!((moved.progress.rows, moved.progress.fences), (ROWS, 1), "{moved:?}");
    assert_eq!(world.owner("a"), Owner { node: node("n2"), epoch: Epoch(2) });
    assert!(moved.undo.contains(&format!("foreshard migrate rollback {}", begun.id)), "{}", moved.undo);

    client.rollback(&begun.id).await.unwrap();
    assert_eq!(at_rest(&client, &begun.id).await.state, "rolled_back");
    assert_eq!(world.owner("a"), Owner { node: node("n1"), epoch: Epoch(3) });

    let again = client.start(&to("a", "n3")).await.unwrap();
    assert_ne!(again.id, begun.id);
    assert_eq!(at_rest(&client, &again.id).await.state, "reversible");
    other.finish(&again.id, None).await.unwrap();
    let done = at_rest(&client, &again.id).await;
    assert_eq!((done.state.as_str(), done.ended), ("done", true));
    let shown = client.show(&again.id).await.unwrap();
    assert!(shown.objects.is_empty(), "M6: {:?}", shown.objects);
    assert_eq!(shown.journal.last().map(|line| line.event.as_str()), Some("finished"));
    let listed: Vec<_> = client.list().await.unwrap().into_iter().map(|m| m.id).collect();
    assert_eq!(listed, [begun.id, again.id]);
    let map = client.shard_map().await.unwrap();
    assert_eq!(map.len(), 1, "only what was moved is in the shard map: {map:?}");
    assert_eq!(map[0].owner, Owner { node: node("n3"), epoch: Epoch(4) });
    holder.shutdown().await;
    assert!(!world.socket().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_on_a_running_move() {
    let world = World::new().await;
    let holder = world.hold(3.0, None).await;
    let client = world.client().await;
    let id = client.start(&to("a", "n2")).await.unwrap().id;
    let second = client.start(&to("a", "n3")).await.unwrap_err();
    assert_eq!(code(&second), Some(tonic::Code::FailedPrecondition), "{second:?}");

    let seen = until(&client, &id, "well under way", |m| m.progress.rows >= ROWS / 2).await;
    assert_eq!((seen.state.as_str(), seen.carried), ("copying", true));
    assert!(seen.copied_by.is_some_and(|at| at > seen.since), "its end can be told: {seen:?}");
    let paused = client.pause(&id).await.unwrap();
    assert_eq!(paused.state, "paused");
    let still = at_rest(&client, &id).await;
    assert!(still.next_step.contains(&format!("foreshard migrate resume {id}")), "{}", still.next_step);
    assert_eq!(still.copied_by, None);
    let not_now = client.rollback(&id).await.unwrap_err();
    assert_eq!(code(&not_now), Some(tonic::Code::FailedPrecondition));
    assert!(not_now.unknown_shards().is_empty());

    client.resume(&id).await.unwrap();
    client.cancel(&id).await.unwrap();
    let cancelled = at_rest(&client, &id).await;
    assert_eq!((cancelled.state.as_str(), cancelled.ended), ("cancelled", true));
    assert_eq!(world.owner("a"), Owner { node: node("n1"), epoch: Epoch(1) });
    assert!(client.show(&id).await.unwrap().objects.is_empty(), "M6");
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_is_refused_by_name() {
    let world = World::new().await;
    let holder = world.hold(0.0, None).await;
    let client = world.client().await;
    let nobody = client.start(&to("no-such", "n2")).await.unwrap_err();
    assert_eq!(code(&nobody), Some(tonic::Code::NotFound), "{nobody:?}");
    let not_there = StartMigration { source: Some(node("n3")), ..to("a", "n2") };
    assert_eq!(code(&client.start(&not_there).await.unwrap_err()), Some(tonic::Code::NotFound));
    let nowhere = client.start(&to("a", "n1")).await.unwrap_err();
    assert_eq!(code(&nowhere), Some(tonic::Code::InvalidArgument), "{nowhere:?}");
    let eventual = StartMigration { consistency: Consistency::Eventual, ..to("a", "n2") };
    assert_eq!(code(&client.start(&eventual).await.unwrap_err()), Some(tonic::Code::InvalidArgument));
    let unknown = MigrationId::new("m-unknown").unwrap();
    assert_eq!(code(&client.show(&unknown).await.unwrap_err()), Some(tonic::Code::NotFound));
    assert_eq!(code(&client.pause(&unknown).await.unwrap_err()), Some(tonic::Code::NotFound));
    // A node that does not exist is found by the checks: the migration is recorded and has failed.
    let failed = client.start(&to("a", "n9")).await.unwrap().id;
    let failed = at_rest(&client, &failed).await;
    assert_eq!(failed.state, "failed");
    assert!(failed.last_error.as_deref().is_some_and(|why| why.contains("n9")), "{failed:?}");
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_names_what_the_move_then_makes() {
    let world = World::new().await;
    let holder = world.hold(0.0, None).await;
    let client = world.client().await;
    let before = std::fs::read(world.store()).unwrap();
    let told = client.dry_run(&to("a", "n2")).await.unwrap();
    assert_eq!(told.migration.state, "reversible");
    assert!(told.steps.iter().any(|line| line.starts_with("adopt") && line.contains("n1")), "{:#?}", told.steps);
    assert_eq!(client.dry_run(&to("a", "n2")).await.unwrap().steps, told.steps);
    assert!(client.list().await.unwrap().is_empty() && client.shard_map().await.unwrap().is_empty());
    assert_eq!(std::fs::read(world.store()).unwrap(), before, "the store's file is as it was");
    let id = client.start(&to("a", "n2")).await.unwrap().id;
    assert_eq!(id, told.migration.id);
    at_rest(&client, &id).await;
    for object in client.show(&id).await.unwrap().objects {
        assert!(told.steps.iter().any(|line| line.contains(&object)), "{object} was not told: {:#?}", told.steps);
    }
    holder.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_holder_takes_up_what_was_left() {
    let world = World::new().await;
    let first = world.hold(3.0, None).await;
    let client = world.client().await;
    let id = client.start(&to("a", "n2")).await.unwrap().id;
    let kept = client.start(&to("b", "n2")).await.unwrap().id;
    until(&client, &id, "under way", |m| m.progress.rows > 0).await;
    drop(first);
    assert!(ControlClient::connect(&world.socket()).await.is_err());
    // A killed process leaves its socket behind.
    drop(std::os::unix::net::UnixListener::bind(world.socket()).unwrap());

    drop(world.opened().await);
    let state = RedbStore::look(&world.store()).unwrap();
    let looked = details(&state, &id, SystemClock.model()).unwrap();
    assert_eq!((looked.migration.state.as_str(), looked.migration.carried), ("copying", false));
    assert!(!looked.objects.is_empty());
    assert_eq!(migrations(&state, SystemClock.model()).len(), 2);

    // One that lives as long as one command carries what it is asked to; the other stays as it is.
    let second = world.hold(0.0, None).await;
    let client = world.client().await;
    assert!(!client.show(&id).await.unwrap().migration.carried);
    client.resume(&id).await.unwrap();
    assert_eq!(at_rest(&client, &id).await.state, "reversible");
    assert_eq!(client.show(&kept).await.unwrap().migration.state, "copying");
    second.shutdown().await;

    // One that keeps up carries all, and removes the copies whose retention is over.
    let third = world.hold(0.0, Some(Duration::from_millis(50))).await;
    let client = world.client().await;
    for id in [&id, &kept] {
        assert_eq!(until(&client, id, "done", |m| m.ended).await.state, "done");
    }
    let second = Box::pin(ControlServer::start(
        HolderParts {
            store: Arc::new(foreshard_migrator::MemoryStore::new()),
            backend: Arc::new(EmbeddedBackend::new(
                Arc::clone(&world.engine),
                MoveSettings::default(),
                Arc::new(SystemClock),
            )),
            clock: Arc::new(SystemClock),
            driver: DriverConfig::default(),
        },
        HolderSettings {
            name: "intruder".into(),
            socket: world.socket(),
            keep_up_every: None,
            patience: Duration::ZERO,
        },
    ))
    .await;
    assert!(matches!(second, Err(HolderError::Socket(SocketError::InUse { .. }))));
    third.shutdown().await;
}
