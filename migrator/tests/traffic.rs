//! Clients at work on stores on disk while their shard goes to and fro: they see latency, and nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{Clock, Consistency, Epoch, MigrationId, NodeId, ShardId, SystemClock};
use foreshard_migrator::embedded::{
    EmbeddedBackend, EmbeddedEngine, EngineSettings, FjallStore, KvStore, MemoryStore, MoveSettings, WriteError,
};
use foreshard_migrator::{Backend, Left, MoveSpec, Way};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const CLIENTS: u64 = 6;
const MOVES: u64 = 4;

fn shard() -> ShardId {
    ShardId::new("shard").unwrap()
}

fn node(n: u64) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn engine(stores: [Arc<dyn KvStore>; 2], settings: EngineSettings) -> Arc<EmbeddedEngine> {
    let nodes = stores.into_iter().zip(0..).map(|(store, n)| (node(n), store, f64::INFINITY)).collect();
    Arc::new(EmbeddedEngine::new(nodes, Arc::new(SystemClock), settings).unwrap())
}

fn on_disk(folder: &Path) -> [Arc<dyn KvStore>; 2] {
    [0, 1].map(|n| -> Arc<dyn KvStore> { Arc::new(FjallStore::open(&folder.join(n.to_string())).unwrap()) })
}

fn spec(move_number: u64) -> MoveSpec {
    MoveSpec {
        migration: MigrationId::new(format!("m-{move_number}")).unwrap(),
        shard: shard(),
        source: node(move_number % 2),
        target: node((move_number + 1) % 2),
        epoch: Epoch(move_number + 1),
        consistency: Consistency::Strict,
        way: Way::There,
    }
}

/// One whole move, up to the removal of the old copy.
async fn move_once(backend: &EmbeddedBackend, spec: &MoveSpec) {
    backend.preflight(spec).await.unwrap();
    backend.prepare(spec).await.unwrap();
    let mut cursor = None;
    loop {
        cursor = backend.copy(spec, cursor.as_deref()).await.unwrap().next;
        if cursor.is_none() {
            break;
        }
    }
    while backend.catch_up(spec).await.unwrap().changes > 20 {}
    let mut verified = backend.verify(spec, None).await.unwrap();
    while verified.next.is_some() {
        verified = backend.verify(spec, Some(&verified)).await.unwrap();
    }
    backend.try_way_back(spec).await.unwrap();
    let fence_at = backend.fence(spec, SystemClock.real().plus(Duration::from_secs(20))).await.unwrap();
    let proof = backend.prove(spec, fence_at, &verified).await.unwrap();
    backend.seal(spec, &proof).await.unwrap();
    let epoch = spec.epoch.next();
    backend.open_target(spec, epoch).await.unwrap();
    backend.route(&spec.shard, &spec.target, epoch).await.unwrap();
    while backend.reverse_catch_up(spec).await.unwrap().changes > 20 {}
    while backend.finish(spec).await.unwrap() == Left::More {}
}

/// Writes a key of its own, number after number, and reads it back; returns how many writes were acknowledged.
async fn client(engine: Arc<EmbeddedEngine>, me: u64, stop: Arc<AtomicBool>) -> u64 {
    let key = format!("client-{me}").into_bytes();
    let mut n = 0u64;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let id = (u128::from(me) << 64) | u128::from(n);
        engine.put(&shard(), &key, &n.to_be_bytes(), id).await.expect("no client sees an error");
        let read = engine.get(&shard(), &key).await.expect("no client sees an error");
        assert_eq!(read.as_deref(), Some(n.to_be_bytes().as_slice()), "a client reads its own last write");
    }
    n
}

/// Reads all clients' keys: what was seen once never goes back.
async fn reader(engine: Arc<EmbeddedEngine>, stop: Arc<AtomicBool>) {
    let mut seen = vec![0u64; usize::try_from(CLIENTS).unwrap()];
    while !stop.load(Ordering::SeqCst) {
        for (seen, me) in seen.iter_mut().zip(0u64..) {
            let read = engine.get(&shard(), format!("client-{me}").as_bytes()).await.unwrap();
            let now = read.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
            assert!(now >= *seen, "client {me}: {now} after {seen}");
            *seen = now;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn m1_clients_see_only_latency_while_their_shard_moves() {
    let folder = tempfile::tempdir().unwrap();
    let settings = EngineSettings { queue_for: Duration::from_secs(30), ..EngineSettings::default() };
    let engine = engine(on_disk(folder.path()), settings);
    engine.create_shard(&shard(), &node(0), Epoch(1)).await.unwrap();
    for n in 0..500u64 {
        engine.put(&shard(), format!("row-{n}").as_bytes(), &[7; 100], (1 << 100) + u128::from(n)).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(reader(Arc::clone(&engine), Arc::clone(&stop)));
    let clients: Vec<_> =
        (0..CLIENTS).map(|me| tokio::spawn(client(Arc::clone(&engine), me, Arc::clone(&stop)))).collect();
    let settings = MoveSettings {
        chunk_bytes: 8 * 1024,
        verify_bytes: 8 * 1024,
        verify_changes: 50,
        remove_rows: 100,
        ..MoveSettings::default()
    };
    let backend = EmbeddedBackend::new(Arc::clone(&engine), settings, Arc::new(SystemClock));
    for n in 0..MOVES {
        move_once(&backend, &spec(n)).await;
    }
    stop.store(true, Ordering::SeqCst);
    reader.await.unwrap();
    let mut acknowledged = 500;
    for (client, me) in clients.into_iter().zip(0u64..) {
        let last = client.await.unwrap();
        let stored = engine.get(&shard(), format!("client-{me}").as_bytes()).await.unwrap();
        assert_eq!(stored.as_deref(), Some(last.to_be_bytes().as_slice()));
        acknowledged += last;
    }
    let (meta, position) = engine.node(&node(MOVES % 2)).unwrap().status(&shard()).unwrap().unwrap();
    assert_eq!(position.0, acknowledged, "every acknowledged write is one change, and no other is");
    assert_eq!(meta.epoch, Epoch(MOVES + 1));
    assert_eq!(engine.node(&node((MOVES + 1) % 2)).unwrap().status(&shard()).unwrap(), None);
}

#[tokio::test]
async fn the_queue_behind_a_fence_is_bounded_in_number_and_time() {
    let stores = [0, 1].map(|_| -> Arc<dyn KvStore> { Arc::new(MemoryStore::default()) });
    let settings =
        EngineSettings { queue_operations: 2, queue_for: Duration::from_millis(50), ..EngineSettings::default() };
    let engine = engine(stores, settings);
    engine.create_shard(&shard(), &node(0), Epoch(1)).await.unwrap();
    let backend = EmbeddedBackend::new(Arc::clone(&engine), MoveSettings::default(), Arc::new(SystemClock));
    backend.prepare(&spec(0)).await.unwrap();
    backend.fence(&spec(0), SystemClock.real().plus(Duration::from_secs(600))).await.unwrap();
    let busy = AtomicU64::new(0);
    let writes = (0..5u8).map(|n| {
        let (engine, busy) = (&engine, &busy);
        async move {
            let written = engine.put(&shard(), &[n], b"v", u128::from(n)).await;
            assert!(matches!(written, Err(WriteError::Busy { .. })), "{written:?}");
            busy.fetch_add(1, Ordering::SeqCst);
        }
    });
    futures::future::join_all(writes).await;
    assert_eq!(busy.load(Ordering::SeqCst), 5);
    assert_eq!(engine.get(&shard(), &[0]).await.unwrap(), None, "reads go on, and nothing was written");
    // A place in the queue that is given up is free again, and whoever waits goes on when the fence is lifted.
    let (shard, spec) = (shard(), spec(0));
    let (written, lifted) = futures::join!(engine.put(&shard, b"k", b"v", 100), backend.unfence(&spec));
    lifted.unwrap();
    assert_eq!(written.unwrap(), Epoch(1));
}

#[tokio::test]
async fn a_restarted_engine_knows_its_shards() {
    let folder = tempfile::tempdir().unwrap();
    {
        let engine = engine(on_disk(folder.path()), EngineSettings::default());
        engine.create_shard(&shard(), &node(1), Epoch(3)).await.unwrap();
        engine.put(&shard(), b"k", b"first", 1).await.unwrap();
    }
    let engine = engine(on_disk(folder.path()), EngineSettings::default());
    let owner = engine.owners()[&shard()].clone().unwrap();
    assert_eq!((owner.node, owner.epoch), (node(1), Epoch(3)));
    assert_eq!(engine.put(&shard(), b"k", b"second", 1).await.unwrap(), Epoch(3), "a retry across the restart");
    assert_eq!(engine.get(&shard(), b"k").await.unwrap(), Some(b"first".to_vec()));
    assert_eq!(engine.size(&shard()).await.unwrap(), (1, 6));
    assert!(engine.create_shard(&shard(), &node(1), Epoch(4)).await.is_err());
    assert!(engine.get(&ShardId::new("other").unwrap(), b"k").await.is_err());
}
