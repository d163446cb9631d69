//! M7 for poolers: with no controller alive, clients are released when a fence has run out, and are held when the source is
//! sealed.

use crate::cluster::{Cluster, SHOP, config};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::server::ServerOptions;
use crate::watched::{Watched, When};
use foreshard_domain::MigrationId;
use foreshard_migrator::MigrationState;
use foreshard_migrator::postgres::Watchdog;
use std::sync::Arc;
use std::time::Duration;

/// A controller that dies at a call.
async fn die_at(cluster: &Cluster, n: usize, call: &'static str, when: When) -> MigrationId {
    let backend = Arc::new(Watched::new(cluster.backend()));
    let stop = backend.stop_at(call, when);
    let driver = cluster.controller_with(backend).await;
    let id = cluster.start_move(&driver, n).await;
    let name = id.clone();
    let running = tokio::spawn(async move { driver.run(&name).await });
    stop.reached().await;
    running.abort();
    let _aborted = running.await;
    id
}

/// Looks until something is resumed, at most so long.
async fn resumed(watchdog: &Watchdog, within: Duration) -> Vec<String> {
    let began = tokio::time::Instant::now();
    loop {
        let found = watchdog.look().await.unwrap();
        if !found.is_empty() || began.elapsed() > within {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m7_clients_are_released_with_no_controller_alive_unless_the_source_is_sealed() {
    let cluster = Cluster::start(&ServerOptions::fast(), 1).await;
    create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
    let checker = Checker::start(
        &[cluster.poolers[0].app_address(SHOP)],
        &CheckerOptions { rate: 50.0, ..CheckerOptions::default() },
    );
    checker.acknowledges(20).await;
    let watchdog = Watchdog::new(cluster.settings.clone(), config().fence_limit);
    assert!(watchdog.look().await.unwrap().is_empty(), "nothing is paused");

    let id = die_at(&cluster, 1, "prove", When::Before).await;
    assert_eq!(cluster.poolers[0].paused().await, [SHOP]);
    assert_eq!(resumed(&watchdog, Duration::from_secs(10)).await, ["shop at pooler p0"]);
    checker.acknowledges(30).await;
    let driver = cluster.controller().await;
    let record = driver.run(&id).await.unwrap();
    assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?}", record.why);
    driver.finish(&id).await.unwrap();

    let id = die_at(&cluster, 2, "seal", When::After).await;
    assert_eq!(resumed(&watchdog, Duration::from_secs(8)).await, Vec::<String>::new(), "it is sealed");
    assert_eq!(cluster.poolers[0].paused().await, [SHOP]);
    // The recovery of the next controller finishes it forward.
    let driver = cluster.controller().await;
    assert!(matches!(cluster.record(&id).await.state, MigrationState::Reversible { .. }));
    checker.acknowledges(30).await;
    driver.finish(&id).await.unwrap();
    checker.finish(&cluster.owning().await.app_address(SHOP)).await.assert_unnoticed();
    cluster.assert_clean().await;
}
