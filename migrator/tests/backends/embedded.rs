//! The contract on the embedded engine, in memory and on disk.

use async_trait::async_trait;
use foreshard_domain::{Clock, Epoch, ManualClock, NodeId, RealTime, ShardId, Timestamp};
use foreshard_migrator::Backend;
use foreshard_migrator::embedded::{
    Batch, EmbeddedBackend, EmbeddedEngine, EngineSettings, FjallStore, Keyspace, KvStore, MemoryStore, MoveSettings,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use crate::contract::{self, Bench, Rows, WithClock, node};

struct EmbeddedBench {
    clock: Arc<ManualClock>,
    engine: Arc<EmbeddedEngine>,
    backend: EmbeddedBackend,
    stores: BTreeMap<NodeId, Arc<dyn KvStore>>,
}

impl EmbeddedBench {
    async fn new(store: impl Fn(&str) -> Arc<dyn KvStore>) -> Self {
        let clock = Arc::new(ManualClock::new(Timestamp::from_ms(0), RealTime::from_ms(1_000_000)));
        let stores = ["source", "target"].map(|name| (node(name), store(name))).into();
        let bench = Self::on(clock, stores);
        bench.engine.create_shard(&shard(), &node("source"), Epoch(1)).await.unwrap();
        bench
    }

    /// A process that starts on these stores.
    fn on(clock: Arc<ManualClock>, stores: BTreeMap<NodeId, Arc<dyn KvStore>>) -> Self {
        let nodes = stores.iter().map(|(id, store)| (id.clone(), Arc::clone(store), f64::INFINITY)).collect();
        // A window shorter than the number of writes, so that identifiers are forgotten on the way.
        let settings = EngineSettings { write_id_window: 64, ..EngineSettings::default() };
        let engine = Arc::new(EmbeddedEngine::new(nodes, clock.clone(), settings).unwrap());
        let settings = MoveSettings { chunk_bytes: 256, apply_changes: 7, range_rows: 8, ..small() };
        let backend = EmbeddedBackend::new(Arc::clone(&engine), settings, clock.clone());
        Self { clock, engine, backend, stores }
    }

    /// Keys of a keyspace that belong to the shard, without its prefix.
    fn pairs(&self, node: &NodeId, keyspace: Keyspace) -> Rows {
        let pairs =
            self.stores[node].snapshot().unwrap().range(keyspace, b"shard\0", b"shard\x01", usize::MAX).unwrap();
        pairs.into_iter().map(|(key, value)| (key[b"shard\0".len()..].to_vec(), value)).collect()
    }
}

/// Everything takes several calls.
fn small() -> MoveSettings {
    MoveSettings { verify_bytes: 512, verify_changes: 10, remove_rows: 40, ..MoveSettings::default() }
}

fn shard() -> ShardId {
    ShardId::new("shard").unwrap()
}

#[async_trait]
impl Bench for EmbeddedBench {
    fn backend(&self) -> &dyn Backend {
        &self.backend
    }

    fn now(&self) -> RealTime {
        self.clock.real()
    }

    async fn pass(&self, ms: i64) {
        self.clock.advance_ms(ms);
    }

    async fn write(&self, node: &NodeId, epoch: Epoch, key: &[u8], value: Option<&[u8]>, write_id: u128) -> bool {
        self.engine.node(node).unwrap().write(&shard(), epoch, write_id, key, value).is_ok()
    }

    async fn rows(&self, node: &NodeId) -> Rows {
        self.pairs(node, Keyspace::Rows)
    }

    async fn plant(&self, node: &NodeId, key: &[u8], value: Option<&[u8]>) {
        let mut batch = Batch::new();
        let key = [b"shard\0", key].concat();
        match value {
            Some(value) => batch.put(Keyspace::Rows, key, value.to_vec()),
            None => batch.remove(Keyspace::Rows, key),
        }
        self.stores[node].commit(batch).unwrap();
    }

    async fn things(&self, node: &NodeId) -> usize {
        Keyspace::ALL.into_iter().map(|keyspace| self.pairs(node, keyspace).len()).sum()
    }
}

impl WithClock for EmbeddedBench {
    fn clock(&self) -> &ManualClock {
        &self.clock
    }
}

async fn in_memory() -> EmbeddedBench {
    EmbeddedBench::new(|_| Arc::new(MemoryStore::default())).await
}

async fn on_disk(folder: &Path) -> EmbeddedBench {
    EmbeddedBench::new(|name| Arc::new(FjallStore::open(&folder.join(name)).unwrap())).await
}

macro_rules! keeps_the_contract {
    ($($clause:ident)*) => {
        mod memory {
            $(#[tokio::test]
            async fn $clause() {
                super::contract::$clause(&super::in_memory().await).await;
            })*
        }

        mod disk {
            $(#[tokio::test]
            async fn $clause() {
                let folder = tempfile::tempdir().unwrap();
                super::contract::$clause(&super::on_disk(folder.path()).await).await;
            })*
        }
    };
}

keeps_the_contract! {
    resumed_copy_equals_uninterrupted_copy
    m1_a_retry_after_the_cut_over_is_made_once
    m2_write_with_old_epoch_is_refused
    m3_the_target_opens_only_in_a_new_epoch
    m4_a_comparison_in_pieces_misses_nothing
    m4_a_planted_difference_stops_the_seal
    m5_a_large_copy_is_removed_in_pieces
    m5_finish_removes_the_source_and_the_log
    m7_a_clock_set_back_does_not_lengthen_a_fence
    m7_fence_expires_by_itself
    m7_writes_go_on_after_a_fence_whatever_the_wall_clock_says
    m8_the_way_back_is_tried_without_a_trace
    another_migration_cannot_use_the_fence
    preflight_tells_everything_at_once
    rollback_brings_back_every_change
    undo_twice_is_undo_once
}

#[tokio::test]
async fn m7_after_a_restart_a_fence_lasts_no_longer_than_it_was_meant_to() {
    let bench = in_memory().await;
    let moving = contract::Moving::new(&bench, 20).await;
    moving.prepare().await;
    moving.fence(100).await;
    let restarted = || EmbeddedBench::on(Arc::clone(&bench.clock), bench.stores.clone());
    let writes = async |bench: &EmbeddedBench| bench.write(&node("source"), Epoch(1), b"k", None, 1 << 64).await;
    bench.clock.advance_ms(60);
    let again = restarted();
    assert!(!writes(&again).await, "the stored deadline has not passed");
    // Set back by an hour: nothing but its length tells when the fence is over.
    bench.clock.set_real(RealTime::from_ms(bench.clock.real().as_ms() - 3_600_000));
    let again = restarted();
    bench.clock.advance_ms(99);
    assert!(!writes(&again).await);
    bench.clock.advance_ms(1);
    assert!(writes(&again).await);
    let again = restarted();
    assert!(writes(&again).await, "the write took the fence away");
}

#[tokio::test]
async fn m7_after_a_restart_a_fence_is_counted_from_the_start_of_the_node() {
    let bench = in_memory().await;
    let moving = contract::Moving::new(&bench, 20).await;
    moving.prepare().await;
    moving.fence(100).await;
    bench.clock.set_real(RealTime::from_ms(0));
    let again = EmbeddedBench::on(Arc::clone(&bench.clock), bench.stores.clone());
    bench.clock.advance_ms(100);
    assert!(again.write(&node("source"), Epoch(1), b"k", None, 1 << 64).await, "nobody asked before");
    // By the stored deadline.
    let bench = in_memory().await;
    let moving = contract::Moving::new(&bench, 20).await;
    moving.prepare().await;
    moving.fence(100).await;
    bench.clock.advance_ms(100);
    let again = EmbeddedBench::on(Arc::clone(&bench.clock), bench.stores.clone());
    assert!(again.write(&node("source"), Epoch(1), b"k", None, 1 << 64).await);
}

#[tokio::test]
async fn a_long_comparison_leaves_little_to_the_proof() {
    let bench = in_memory().await;
    let mut moving = contract::Moving::new(&bench, 300).await;
    moving.prepare().await;
    moving.copy_from(None).await;
    moving.catch_up().await;
    let mut found = bench.backend.verify(&moving.spec, None).await.unwrap();
    let begun = found.up_to;
    let mut written = 0;
    while found.next.is_some() {
        moving.write(4).await;
        written += 4;
        found = bench.backend.verify(&moving.spec, Some(&found)).await.unwrap();
    }
    let (_, newest) = bench.engine.node(&node("source")).unwrap().status(&shard()).unwrap().unwrap();
    assert_eq!(newest.0, begun.0 + written);
    assert!(written > 40 && newest.0 - found.up_to.0 <= small().verify_changes, "{written} written, {found:?}");
}

#[tokio::test]
async fn a_comparison_that_the_source_outruns_comes_to_an_end() {
    let bench = in_memory().await;
    let mut moving = contract::Moving::new(&bench, 300).await;
    moving.prepare().await;
    moving.copy_from(None).await;
    moving.catch_up().await;
    let mut found = bench.backend.verify(&moving.spec, None).await.unwrap();
    let mut pieces = 0;
    while found.next.is_some() {
        moving.write(50).await;
        found = bench.backend.verify(&moving.spec, Some(&found)).await.unwrap();
        pieces += 1;
        assert!(pieces < 500, "{found:?}");
    }
    let fence_at = moving.fence(1000).await;
    moving.prove(fence_at, &found).await;
}
