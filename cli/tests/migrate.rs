//! `foreshard migrate` without an engine that answers: what can be read of a store, and what is refused without a change.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use foreshard_control::{ControlServer, HolderParts, HolderSettings};
use foreshard_domain::{Clock, Consistency, Epoch, MovePrediction, NodeId, Owner, PerResource, PlanId, ShardId};
use foreshard_domain::{SystemClock, Timestamp};
use foreshard_migrator::embedded::{
    EmbeddedBackend, EmbeddedEngine, EngineSettings, KvStore, MemoryStore, MoveSettings,
};
use foreshard_migrator::{Backend, Change, Driver, DriverConfig, MigrationRecord, RedbStore, StateStore};
use foreshard_policy::{Move, Reason, RuleName};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use support::{json, run};

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn shard() -> ShardId {
    ShardId::new("orders").unwrap()
}

fn planned() -> Move {
    Move {
        shard: shard(),
        source: node("n1"),
        target: node("n2"),
        start: Timestamp::from_ms(0),
        reason: Reason {
            rule: RuleName::Constraint,
            resource: None,
            source_risk_before: 0.0,
            source_risk_after: 0.0,
            target_risk_before: 0.0,
            target_risk_after: 0.0,
            first_crossing: None,
            text: "a test".into(),
        },
        expected_gain: 0.0,
        expected_cost: 0.0,
        predicted: MovePrediction {
            duration_ms: 0,
            duration_p90_ms: 0,
            fence_ms: 0.0,
            extra_share: PerResource { cpu: 0.0, memory: 0.0, io: 0.0 },
        },
        data_bytes: 2048.0,
        write_bytes_per_s: 0.0,
        cpu_share: (0.0, 0.0),
        with: None,
    }
}

/// Two embedded nodes in this process, `orders` on the first.
async fn engine() -> Arc<dyn Backend> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let on = |name: &str| (node(name), Arc::new(MemoryStore::default()) as Arc<dyn KvStore>, 0.0);
    let engine = EmbeddedEngine::new(vec![on("n1"), on("n2")], Arc::clone(&clock), EngineSettings::default()).unwrap();
    engine.create_shard(&shard(), &node("n1"), Epoch(1)).await.unwrap();
    engine.put(&shard(), b"key", b"value", 1).await.unwrap();
    Arc::new(EmbeddedBackend::new(Arc::new(engine), MoveSettings::default(), clock))
}

/// A store in which `orders` has been moved from `n1` to `n2`; returns the migration.
async fn moved(folder: &Path) -> MigrationRecord {
    let store = Arc::new(RedbStore::open(&folder.join("foreshard.redb")).unwrap());
    let term = store.take_leadership("a test").await.unwrap();
    let owner = Owner { node: node("n1"), epoch: Epoch(1) };
    let changes = vec![Change::SetOwner { shard: shard(), expected: None, owner }];
    store.commit(store.read().await.unwrap().revision, term, changes).await.unwrap();
    let driver = Driver::new(store, engine().await, Arc::new(SystemClock), DriverConfig::default(), term);
    let id = driver.start(planned(), PlanId::new("p").unwrap(), Consistency::Strict).await.unwrap();
    driver.run(&id).await.unwrap()
}

fn text(folder: &Path, args: &[&str], code: i32) -> (String, String) {
    let output = run(folder, args, code);
    (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_nobody_holds_is_read_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let (nothing, _) = text(here, &["migrate", "list"], 0);
    assert!(nothing.contains("foreshard migrate start"), "{nothing}");
    assert!(!here.join("foreshard.redb").exists(), "looking makes no store");

    let record = moved(here).await;
    let before = std::fs::read(here.join("foreshard.redb")).unwrap();
    let id = record.id.as_str();
    let (list, _) = text(here, &["migrate", "list"], 0);
    assert!(list.contains(id) && list.contains("n1 -> n2") && list.contains("reversible"), "{list}");
    let listed = json(here, &["migrate", "list"], 0);
    assert_eq!(listed["migrations"][0]["id"], id, "{listed}");

    let (shown, _) = text(here, &["migrate", "show", id], 0);
    let undo = format!("foreshard migrate rollback {id}");
    for part in ["reversible since", "1 rows", "copied by    not known", "external objects", "owner_switched", &undo] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let shown = json(here, &["migrate", "show", id], 0);
    assert_eq!(shown["migration"]["state"], "reversible", "{shown}");
    assert_eq!(shown["objects"].as_array().map(Vec::len), Some(record.objects.len()), "{shown}");
    let (_, unknown) = text(here, &["migrate", "show", "m-0"], 2);
    assert!(unknown.contains("m-0") && unknown.contains("migrate list"), "{unknown}");

    let map = json(here, &["migrate", "ring"], 0);
    assert_eq!((&map["shards"][0]["node"], &map["shards"][0]["epoch"]), (&"n2".into(), &2.into()), "{map}");
    assert_eq!(map["shards"][0]["home"], serde_json::Value::Null, "{map}");
    let nodes: String = ["n1", "n2"]
        .map(|n| format!("[[nodes]]\nid = \"{n}\"\nzone = \"z\"\n[nodes.capacity]\ncpu = 100.0\n"))
        .concat();
    std::fs::write(here.join("topology.toml"), nodes).unwrap();
    let map = json(here, &["migrate", "ring"], 0);
    assert!(map["shards"][0]["home"].is_string(), "{map}");

    let (_, none) = text(here, &["migrate", "rollback", id], 2);
    assert!(none.contains("[postgres.nodes]"), "{none}");
    assert_eq!(std::fs::read(here.join("foreshard.redb")).unwrap(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_that_reaches_no_server_says_so_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    moved(here).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nodes =
        ["n1", "n2"].map(|n| format!("[postgres.nodes.{n}]\nhost = \"127.0.0.1\"\nport = {port}\nuser = \"x\"\n"));
    std::fs::write(here.join("foreshard.toml"), nodes.concat()).unwrap();
    let before = std::fs::read(here.join("foreshard.redb")).unwrap();

    let (_, moving) = text(here, &["migrate", "start", "orders", "--to", "n1", "--dry-run"], 2);
    assert!(moving.contains("already being moved"), "{moving}");
    let (_, nobody) = text(here, &["migrate", "start", "other", "--to", "n1", "--dry-run"], 2);
    assert!(nobody.contains("other is not in the shard map") && nobody.contains("n1"), "{nobody}");
    assert_eq!(std::fs::read(here.join("foreshard.redb")).unwrap(), before);
    assert!(!here.join("foreshard.sock").exists(), "a dry run holds nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_verb_goes_to_the_process_that_holds_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let parts = HolderParts {
        store: Arc::new(RedbStore::open(&here.join("foreshard.redb")).unwrap()),
        backend: engine().await,
        clock: Arc::new(SystemClock),
        driver: DriverConfig { retention_ms: 0, ..DriverConfig::default() },
    };
    let settings = HolderSettings {
        name: "a test".into(),
        socket: here.join("foreshard.sock"),
        keep_up_every: None,
        patience: Duration::from_secs(5),
    };
    let holder = ControlServer::start(parts, settings).await.unwrap();

    let told = json(here, &["migrate", "start", "orders", "--to", "n2", "--dry-run"], 0);
    assert!(told["steps"].as_array().is_some_and(|s| s.len() > 10) && told["refused"].is_null(), "{told}");
    let (_, refused) = text(here, &["migrate", "start", "orders", "--from", "n2", "--to", "n1"], 2);
    assert!(refused.contains("n2 does not hold it"), "{refused}");
    let (told, _) = text(here, &["migrate", "start", "orders", "--to", "n9", "--dry-run"], 1);
    assert!(told.contains("refused") && told.contains("n9"), "{told}");

    let (shown, progress) = text(here, &["migrate", "start", "orders", "--to", "n2"], 0);
    assert!(shown.contains("reversible since"), "{shown}");
    assert!(progress.contains(": reversible ("), "plain lines without a terminal: {progress}");
    let all = json(here, &["migrate", "list"], 0);
    let id = all["migrations"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(json(here, &["migrate", "rollback", &id], 0)["migration"]["state"], "rolled_back");
    run(here, &["migrate", "start", "orders", "--to", "n9"], 1);
    let (_, illegal) = text(here, &["migrate", "pause", &id], 2);
    assert!(illegal.contains("rolled_back does not allow pause"), "{illegal}");

    let again = json(here, &["migrate", "start", "orders", "--to", "n2"], 0);
    let id = again["migration"]["id"].as_str().unwrap().to_owned();
    assert_eq!(json(here, &["migrate", "show", &id, "--watch"], 0)["migration"]["state"], "reversible");
    assert_eq!(json(here, &["migrate", "finish", &id], 0)["migration"]["state"], "done");
    holder.shutdown().await;
    assert_eq!(json(here, &["migrate", "show", &id], 0)["migration"]["state"], "done", "read from the file again");
}
