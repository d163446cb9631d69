//! The pace of a copy follows what clients feel and what the settings allow.

use crate::cluster::{Cluster, SHOP};
use crate::harness::bench::{self, Bench, BenchOptions};
use crate::harness::server::ServerOptions;
use crate::measure::phases::Phases;
use foreshard_migrator::MigrationState;
use foreshard_migrator::postgres::PaceSettings;
use std::time::Duration;

/// Seconds for which the rows of a database of about 30 MB (23 MB of them as they are copied) were copied, and compared.
async fn copied_in(pace: PaceSettings, with_clients: bool) -> (Duration, Duration) {
    let mut cluster = Cluster::start(&ServerOptions::fast(), 1).await;
    cluster.settings.pace = pace;
    bench::fill(&cluster.source, SHOP, 30).await;
    let load = BenchOptions { seconds: 100, rate: Some(40.0), ..BenchOptions::default() };
    let bench = with_clients.then(|| Bench::start(&cluster.poolers[0].app_address(SHOP), &load));
    let driver = cluster.controller().await;
    let id = cluster.start_move(&driver, 1).await;
    let phases = Phases::of(&cluster.store, &id).await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?} {:?}", record.state, record.why);
    drop(bench);
    println!("{with_clients} {pace:?}: {phases}");
    (phases.until("copying", "copying keys"), phases.between("verifying", "verifying"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_clients_feel_goes_on_at_the_least_pace() {
    // Nothing is ever quicker beside the copy than without it by so much: clients always suffer.
    let suffering = PaceSettings { latency_factor: 0.01, floor_bytes_per_s: 2e6, ..PaceSettings::default() };
    let (copy, comparison) = copied_in(suffering, true).await;
    // 8 MB/s for a moment, then half of it, and soon 2 MB/s.
    assert!(copy > Duration::from_secs(5), "{copy:?}");
    assert!(comparison > Duration::from_secs(5), "{comparison:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_asks_anything_only_the_caps_hold() {
    let slow = PaceSettings { latency_factor: 0.01, floor_bytes_per_s: 1e5, ..PaceSettings::default() };
    let capped = PaceSettings { total_bytes_per_s: Some(6e6), node_bytes_per_s: Some(4e6), ..slow };
    let (copy, comparison) = copied_in(capped, false).await;
    // 23 MB at 4 MB/s.
    assert!((5.0..20.0).contains(&copy.as_secs_f64()), "{copy:?}");
    assert!((5.0..25.0).contains(&comparison.as_secs_f64()), "{comparison:?}");
    let (copy, _) = copied_in(slow, false).await;
    assert!(copy < Duration::from_secs(15), "100 kB/s would take minutes: {copy:?}");
}
