//! Calls of the embedded backend that were given up while a device still worked for them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{Clock, Consistency, Epoch, MigrationId, NodeId, ShardId, SystemClock};
use foreshard_migrator::embedded::{
    Batch, EmbeddedBackend, EmbeddedEngine, EngineSettings, Keyspace, KvError, KvSnapshot, KvStore, MemoryStore,
    MoveSettings,
};
use foreshard_migrator::{Backend, Left, MoveSpec, SourceState, Verification, Way};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// A store one commit of which hangs until it is let go.
#[derive(Default)]
struct HangingStore {
    store: MemoryStore,
    hang: Mutex<Hang>,
    changed: Condvar,
}

#[derive(Default)]
struct Hang {
    /// How many more commits are made until one hangs.
    after: Option<u32>,
    hangs: bool,
}

impl HangingStore {
    fn hang_after(&self, commits: u32) {
        self.hang.lock().unwrap().after = Some(commits);
    }

    /// Waits until a commit hangs.
    async fn hangs(&self) {
        while !self.hang.lock().unwrap().hangs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn let_go(&self) {
        let hangs = std::mem::take(&mut self.hang.lock().unwrap().hangs);
        assert!(hangs, "nothing hangs");
        self.changed.notify_all();
    }
}

impl KvStore for HangingStore {
    fn get(&self, keyspace: Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.store.get(keyspace, key)
    }

    fn snapshot(&self) -> Result<Box<dyn KvSnapshot>, KvError> {
        self.store.snapshot()
    }

    fn commit(&self, batch: Batch) -> Result<(), KvError> {
        let mut hang = self.hang.lock().unwrap();
        let hangs = hang.after == Some(0);
        hang.after = hang.after.and_then(|after| after.checked_sub(1));
        if hangs {
            hang.hangs = true;
            drop(self.changed.wait_while(hang, |hang| hang.hangs).unwrap());
        } else {
            drop(hang);
        }
        self.store.commit(batch)
    }

    fn waits_for_device(&self) -> bool {
        true
    }
}

const SOON: Duration = Duration::from_millis(100);

fn spec() -> MoveSpec {
    MoveSpec {
        migration: MigrationId::new("m").unwrap(),
        shard: ShardId::new("shard").unwrap(),
        source: NodeId::new("source").unwrap(),
        target: NodeId::new("target").unwrap(),
        epoch: Epoch(1),
        consistency: Consistency::Strict,
        way: Way::There,
    }
}

struct Bench {
    source: Arc<HangingStore>,
    target: Arc<HangingStore>,
    backend: Arc<EmbeddedBackend>,
}

impl Bench {
    /// A shard with some rows, and its move up to the comparison.
    async fn verified() -> (Self, Verification) {
        let (source, target) = (Arc::new(HangingStore::default()), Arc::new(HangingStore::default()));
        let nodes: Vec<(NodeId, Arc<dyn KvStore>, f64)> =
            vec![(spec().source, source.clone(), f64::INFINITY), (spec().target, target.clone(), f64::INFINITY)];
        let engine = Arc::new(EmbeddedEngine::new(nodes, Arc::new(SystemClock), EngineSettings::default()).unwrap());
        engine.create_shard(&spec().shard, &spec().source, Epoch(1)).await.unwrap();
        for n in 0..50u8 {
            engine.put(&spec().shard, &[n], b"v", u128::from(n)).await.unwrap();
        }
        let backend = Arc::new(EmbeddedBackend::new(engine, MoveSettings::default(), Arc::new(SystemClock)));
        backend.prepare(&spec()).await.unwrap();
        assert_eq!(backend.copy(&spec(), None).await.unwrap().next, None);
        let verified = backend.verify(&spec(), None).await.unwrap();
        (Self { source, target, backend }, verified)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_call_waits_for_the_work_of_one_that_was_given_up() {
    let (bench, _) = Bench::verified().await;
    let rows = || bench.target.snapshot().unwrap().range(Keyspace::Rows, &[], &[255], 100).unwrap().len();
    // The removal hangs after the copy was marked, in the middle of its rows, where it holds no lock of the node.
    bench.target.hang_after(1);
    let backend = bench.backend.clone();
    let given_up = tokio::spawn(async move { backend.undo(&spec()).await });
    bench.target.hangs().await;
    given_up.abort();
    assert!(given_up.await.is_err(), "it hung");
    assert_eq!(rows(), 50);
    assert!(tokio::time::timeout(SOON, bench.backend.undo(&spec())).await.is_err(), "it waits");
    assert!(tokio::time::timeout(SOON, bench.backend.source_state(&spec())).await.is_err(), "and so does any other");
    bench.target.let_go();
    assert_eq!(bench.backend.undo(&spec()).await.unwrap(), Left::Nothing);
    assert_eq!(rows(), 0);
    assert_eq!(bench.backend.source_state(&spec()).await.unwrap(), SourceState::Open);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m7_a_seal_that_was_given_up_has_ended_when_the_source_is_asked() {
    let (bench, verified) = Bench::verified().await;
    let fence_at = bench.backend.fence(&spec(), SystemClock.real().plus(Duration::from_secs(60))).await.unwrap();
    let proof = bench.backend.prove(&spec(), fence_at, &verified).await.unwrap();
    bench.source.hang_after(0);
    let backend = bench.backend.clone();
    let given_up = tokio::spawn(async move { backend.seal(&spec(), &proof).await });
    bench.source.hangs().await;
    given_up.abort();
    assert!(given_up.await.is_err(), "it hung");
    let (_, state) = futures::join!(
        async {
            tokio::time::sleep(SOON).await;
            bench.source.let_go();
        },
        async {
            bench.backend.unfence(&spec()).await.unwrap();
            bench.backend.source_state(&spec()).await.unwrap()
        }
    );
    assert_eq!(state, SourceState::Sealed, "not open, to be sealed later");
}
