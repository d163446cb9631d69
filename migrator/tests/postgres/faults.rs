//! Every call of a move x every fault: clients lose nothing, the move ends finished or back at the start, and nothing is left.
//!
//! `scripts/test` runs a seeded dozen; `FORESHARD_FAULTS=all` (`scripts/nightly`) runs every cell.

use crate::cluster::{Cluster, SHOP, config};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::proxy::Proxy;
use crate::harness::server::ServerOptions;
use crate::watched::{CALLS, Watched, When};
use foreshard_migrator::{Driver, MigrationRecord, MigrationState};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::sync::Arc;
use std::time::Duration;

/// What goes wrong while a call waits to begin, or has just ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The controller is gone; another takes over.
    ControllerDies,
    /// The controller sleeps for longer than any fence lasts, and goes on.
    ControllerSleeps,
    /// Another controller takes over while the first sleeps; then the first wakes up.
    ControllerIsReplaced,
    SourceIsKilled,
    TargetIsKilled,
    PoolerIsKilled,
    /// Connections of the controller to the source are cut, and refused for a while.
    LinkIsCut,
    /// Connections of the controller to the target stay, and carry nothing for a while.
    LinkHangs,
}

const FAULTS: [Fault; 8] = [
    Fault::ControllerDies,
    Fault::ControllerSleeps,
    Fault::ControllerIsReplaced,
    Fault::SourceIsKilled,
    Fault::TargetIsKilled,
    Fault::PoolerIsKilled,
    Fault::LinkIsCut,
    Fault::LinkHangs,
];

/// How long servers and links are away.
const AWAY: Duration = Duration::from_millis(1500);
/// After so long a move that has not ended is stuck.
const PATIENCE: Duration = Duration::from_secs(150);

struct World {
    cluster: Cluster,
    to_source: Proxy,
    to_target: Proxy,
    moves: usize,
}

impl World {
    async fn new() -> Self {
        let mut cluster = Cluster::start(&ServerOptions::fast(), 1).await;
        create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
        let (to_source, to_target) = (Proxy::to(cluster.source.port()).await, Proxy::to(cluster.target.port()).await);
        for (name, server, proxy) in [("source", &cluster.source, &to_source), ("target", &cluster.target, &to_target)]
        {
            let address = cluster.settings.nodes.get_mut(&crate::cluster::node(name)).unwrap();
            address.peer_port = Some(server.port());
            address.port = proxy.port();
        }
        Self { cluster, to_source, to_target, moves: 0 }
    }

    async fn cell(&mut self, call: &'static str, when: When, fault: Fault) {
        self.moves += 1;
        let options = CheckerOptions {
            rate: 40.0,
            first_client: i32::try_from(self.moves * 100).unwrap(),
            ..CheckerOptions::default()
        };
        let checker = Checker::start(&[self.cluster.poolers[0].app_address(SHOP)], &options);
        let backend = Arc::new(Watched::new(self.cluster.backend()));
        let stop = backend.stop_at(call, when);
        let driver = self.cluster.controller_with(backend).await;
        let id = self.cluster.start_move(&driver, self.moves).await;
        let (runner, name) = (driver.clone(), id.clone());
        let mut running = tokio::spawn(async move { runner.run(&name).await });
        tokio::select! {
            () = stop.reached() => {}
            ended = &mut running => panic!("{call} was never called: {ended:?}"),
        }
        match fault {
            Fault::ControllerDies => {
                running.abort();
                drop(driver);
            }
            Fault::ControllerSleeps => {
                tokio::time::sleep(config().fence_limit * 2).await;
                stop.go_on();
            }
            Fault::ControllerIsReplaced => {
                let other = self.cluster.controller().await;
                finish(&other, &self.cluster, &id).await;
                stop.go_on();
                let woken = tokio::time::timeout(PATIENCE, &mut running).await.unwrap().unwrap();
                // Either it is told that its term is over, or it finds that there is nothing left to do.
                if let Ok(record) = &woken {
                    let ended = self.cluster.record(&id).await;
                    assert!(record.state.is_terminal() && record.state == ended.state, "it went on: {woken:?}");
                }
            }
            Fault::SourceIsKilled => {
                self.cluster.source.kill9();
                stop.go_on();
                tokio::time::sleep(AWAY).await;
                self.cluster.source.start_again().await;
            }
            Fault::TargetIsKilled => {
                self.cluster.target.kill9();
                stop.go_on();
                tokio::time::sleep(AWAY).await;
                self.cluster.target.start_again().await;
            }
            Fault::PoolerIsKilled => {
                self.cluster.poolers[0].kill9();
                stop.go_on();
                tokio::time::sleep(AWAY).await;
                self.cluster.poolers[0].start_again().await;
            }
            Fault::LinkIsCut => {
                self.to_source.cut();
                stop.go_on();
                tokio::time::sleep(AWAY).await;
                self.to_source.heal();
            }
            Fault::LinkHangs => {
                self.to_target.hang();
                stop.go_on();
                tokio::time::sleep(AWAY).await;
                self.to_target.heal();
            }
        }
        if !running.is_finished() && fault != Fault::ControllerDies {
            let _ended = tokio::time::timeout(PATIENCE, running).await.expect("the move hangs");
        }
        let other = self.cluster.controller().await;
        let record = finish(&other, &self.cluster, &id).await;
        let again = checker.acknowledged();
        checker.acknowledges(20).await;
        assert!(checker.acknowledged() > again);
        let owning = self.cluster.owning().await.app_address(SHOP);
        let report = checker.finish(&owning).await;
        println!(
            "{call} {when:?} {fault:?}: {} ({} fences, {} ms), {} acknowledged, longest wait {:?}{}",
            record.state.name(),
            record.progress.fences,
            record.fence_ms,
            report.acknowledged,
            report.latencies.longest(),
            record.why.as_deref().map(|why| format!("; {why}")).unwrap_or_default()
        );
        report.assert_nothing_lost();
        self.cluster.assert_clean().await;
    }
}

/// Brings a migration to its end, with new tries as the control loop makes them.
async fn finish(driver: &Driver, cluster: &Cluster, id: &foreshard_domain::MigrationId) -> MigrationRecord {
    let began = tokio::time::Instant::now();
    loop {
        let done = match cluster.record(id).await.state {
            MigrationState::Reversible { .. } => driver.finish(id).await,
            _ => driver.run(id).await,
        };
        let record = cluster.record(id).await;
        if record.state.is_terminal() {
            return record;
        }
        assert!(began.elapsed() < PATIENCE, "{:?} is stuck: {done:?}", record.state);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_to_m8_a_fault_at_any_call_loses_nothing_and_leaves_nothing() {
    let mut cells: Vec<(&'static str, When, Fault)> = Vec::new();
    for call in CALLS {
        for fault in FAULTS {
            cells.push((call, When::Before, fault));
            cells.push((call, When::After, fault));
        }
    }
    if std::env::var("FORESHARD_FAULTS").as_deref() != Ok("all") {
        let seed = std::env::var("FORESHARD_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(7);
        cells.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
        cells.truncate(12);
        println!("a dozen of seed {seed}");
    }
    let mut world = World::new().await;
    for (call, when, fault) in cells {
        println!("-- {call} {when:?} {fault:?}");
        world.cell(call, when, fault).await;
    }
}
