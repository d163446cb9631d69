//! Servers, a pooler and links in which one cell after another takes place.

use super::cell::{Cell, End, Fault, Journey};
use super::process::{ControllerProcess, Orders};
use super::travel;
use crate::cluster::{Cluster, SHOP, config, node};
use crate::harness::checker::{Checker, CheckerOptions, create_tables};
use crate::harness::proxy::Proxy;
use crate::harness::server::{PgServer, ServerOptions};
use crate::harness::small_disk::SmallDisk;
use crate::watched::{Stop, Watched, When};
use foreshard_domain::MigrationId;
use foreshard_migrator::{Driver, MigrationRecord, MigrationState, RedbStore, Request, Way};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long servers are away.
const AWAY: Duration = Duration::from_millis(1500);
/// After so long a move that has not ended is stuck.
const PATIENCE: Duration = Duration::from_secs(150);
/// A cluster needs about 70 MB, and its log grows.
const DISK_MEGABYTES: u32 = 400;

/// Rows, about 5 MB, without which copying would be over before anything could go wrong.
const BALLAST: &str = "SET ROLE app; CREATE TABLE ballast (n int PRIMARY KEY, t text); \
                       INSERT INTO ballast SELECT n, repeat(md5(n::text), 3) FROM generate_series(1, 40000) n";

pub struct World {
    cluster: Cluster,
    /// Before source and target of the first move; the next one goes the other way.
    links: [Proxy; 2],
    /// Under both, where mounting is allowed.
    disks: Option<[SmallDisk; 2]>,
    moves: usize,
    /// Where the migration under way began.
    began_on_target: bool,
}

impl World {
    pub async fn new() -> Self {
        let disks = SmallDisk::mount(DISK_MEGABYTES).zip(SmallDisk::mount(DISK_MEGABYTES));
        let disks = disks.map(|(one, other)| [one, other]);
        let options = |n: usize| ServerOptions {
            base: disks.as_ref().map(|disks| disks[n].path().to_path_buf()),
            settings: vec![("max_wal_size", "'64MB'".into()), ("wal_recycle", "off".into())],
            ..ServerOptions::fast()
        };
        let mut cluster = Cluster::start_on([&options(0), &options(1)], 1).await;
        create_tables(&cluster.source.app_address(SHOP), CheckerOptions::default().accounts).await;
        cluster.source.sql(SHOP, BALLAST).await;
        // Copying takes several pieces and most of a second.
        cluster.settings.copy_piece_bytes = 1 << 20;
        cluster.settings.copy_bytes_per_s = Some(8e6);
        let links = [Proxy::to(cluster.source.port()).await, Proxy::to(cluster.target.port()).await];
        for (name, server, link) in [("source", &cluster.source, &links[0]), ("target", &cluster.target, &links[1])] {
            let address = cluster.settings.nodes.get_mut(&node(name)).unwrap();
            address.peer_port = Some(server.port());
            address.port = link.port();
        }
        Self { cluster, links, disks, moves: 0, began_on_target: false }
    }

    /// Whether it can run out of disk.
    pub fn has_small_disks(&self) -> bool {
        self.disks.is_some()
    }

    /// Lets a cell take place; what came of it, in words.
    pub async fn cell(&mut self, cell: &Cell, random: &mut ChaCha8Rng) -> String {
        self.moves += 1;
        let options = CheckerOptions {
            rate: 40.0,
            first_client: i32::try_from(self.moves * 100).unwrap(),
            ..CheckerOptions::default()
        };
        let checker = Checker::start(&[self.cluster.poolers[0].app_address(SHOP)], &options);
        let id = self.set_out(cell.journey).await;
        let delay = match cell.when {
            // Calls take from a millisecond to seconds: as often one length of delay as another.
            When::Within => Duration::from_millis(1).mul_f64(2_f64.powf(random.random_range(-2.0..9.0))),
            When::Before | When::After => Duration::ZERO,
        };
        match cell.fault {
            Fault::ControllerIsKilled | Fault::ControllerIsStopped => self.by_a_process(cell, &id, delay).await,
            _ => self.by_a_task(cell, &id, delay).await,
        }
        let other = self.cluster.controller().await;
        let record = finish(&other, &self.cluster, &id).await;
        checker.acknowledges(20).await;
        let owning = self.cluster.owning().await.app_address(SHOP);
        let report = checker.finish(&owning).await;
        report.assert_nothing_lost();
        self.cluster.assert_clean().await;
        format!(
            "{} ({} fences, {} and {} ms), {} acknowledged, longest wait {:.1?}{}",
            record.state.name(),
            record.progress.fences,
            record.fence_ms,
            record.fence_back_ms,
            report.acknowledged,
            report.latencies.longest(),
            record.why.as_deref().map(|why| format!("; {why}")).unwrap_or_default()
        )
    }

    /// Brings a migration to where the journey begins.
    async fn set_out(&mut self, journey: Journey) -> MigrationId {
        self.began_on_target = self.cluster.owner().await.node == node("target");
        let backend = Arc::new(Watched::new(self.cluster.backend()));
        let driver = self.cluster.controller_with(backend.clone()).await;
        let id = self.cluster.start_move(&driver, self.moves).await;
        match journey {
            Journey::Move => {}
            Journey::Undo => up_to(&driver, &id, backend.stop_at("try_way_back", When::Before)).await,
            Journey::Finish | Journey::RollBack | Journey::Release => {
                let record = driver.run(&id).await.unwrap();
                assert!(matches!(record.state, MigrationState::Reversible { .. }), "{:?}", record.why);
            }
        }
        if journey == Journey::Release {
            driver.ask(&id, Request::RollBack).await.unwrap();
            up_to(&driver, &id, backend.stop_on(Way::Back, "verify", When::Before)).await;
        }
        id
    }

    /// What befalls a controller that is a process.
    async fn by_a_process(&mut self, cell: &Cell, id: &MigrationId, delay: Duration) {
        self.cluster.close_store().await;
        let mut controller = ControllerProcess::start(&Orders {
            settings: self.cluster.settings.clone(),
            store: self.cluster.store_file(),
            migration: id.clone(),
            journey: cell.journey,
            call: cell.call.to_owned(),
            when: cell.when,
        });
        controller.reached().await;
        sleep(delay).await;
        if cell.fault == Fault::ControllerIsKilled {
            controller.kill9().await;
        } else {
            controller.stop_for(config().fence_limit * 2).await;
            controller.ends(PATIENCE).await;
        }
        self.cluster.open_store().await;
    }

    /// What befalls everything else, with a controller in this process.
    async fn by_a_task(&mut self, cell: &Cell, id: &MigrationId, delay: Duration) {
        let backend = Arc::new(Watched::new(self.cluster.backend()));
        let stop = backend.stop_on(cell.journey.way(), cell.call, cell.when);
        let driver = self.cluster.controller_with(backend).await;
        let (name, journey) = (id.clone(), cell.journey);
        let mut running = tokio::spawn(async move { travel(&driver, &name, journey).await });
        tokio::select! {
            biased;
            reached = timeout(PATIENCE, stop.reached()) => reached.expect("the call was never made"),
            ended = &mut running => panic!("it ended before the call: {ended:?}"),
        }
        sleep(delay).await;
        match cell.fault {
            Fault::ControllerIsKilled | Fault::ControllerIsStopped => unreachable!("that is done to a process"),
            Fault::ControllerIsReplaced => {
                let other = self.cluster.controller().await;
                finish(&other, &self.cluster, id).await;
                stop.go_on();
                let woken = timeout(PATIENCE, &mut running).await.unwrap().unwrap();
                // Either it is told that its term is over, or it finds that there is nothing left to do.
                if let Ok(record) = &woken {
                    let ended = self.cluster.record(id).await;
                    assert!(record.state.is_terminal() && record.state == ended.state, "it went on: {woken:?}");
                }
                return;
            }
            Fault::ServerIsKilled(end) => {
                let server = self.server(cell, end);
                server.kill9();
                stop.go_on();
                sleep(AWAY).await;
                server.start_again().await;
            }
            Fault::PoolerIsKilled => {
                self.cluster.poolers[0].kill9();
                stop.go_on();
                sleep(AWAY).await;
                self.cluster.poolers[0].start_again().await;
            }
            Fault::LinkIsCut(end) => {
                self.link(cell, end).cut();
                stop.go_on();
                sleep(AWAY).await;
                self.link(cell, end).heal();
            }
            Fault::LinkHangs(end) => {
                self.link(cell, end).hang();
                stop.go_on();
                sleep(config().fence_limit + AWAY).await;
                self.link(cell, end).heal();
            }
            Fault::DiskIsFull | Fault::DiskIsFullForItsLog => {
                // A server without disk takes no new connections.
                let target = self.server(cell, End::Target).connect("postgres").await;
                let full = self.disks.as_ref().map(|disks| disks[self.nth(cell, End::Target)].fill()).unwrap();
                if cell.fault == Fault::DiskIsFullForItsLog {
                    // It ends itself over this, unless somebody who writes was faster.
                    let _ended = target.batch_execute("SELECT pg_switch_wal(); SELECT txid_current()").await;
                }
                stop.go_on();
                let _in_time = timeout(AWAY * 2, &mut running).await;
                drop(full);
                self.server(cell, End::Target).comes_back().await;
            }
        }
        if !running.is_finished() {
            let _ended = timeout(PATIENCE, running).await.expect("the move hangs");
        }
    }

    /// Which of the two servers is at an end of the owner change under way.
    fn nth(&self, cell: &Cell, end: End) -> usize {
        let turns = [self.began_on_target, cell.journey.way() == Way::Back, end == End::Target];
        turns.into_iter().filter(|turned| *turned).count() % 2
    }

    fn server(&mut self, cell: &Cell, end: End) -> &mut PgServer {
        if self.nth(cell, end) == 0 { &mut self.cluster.source } else { &mut self.cluster.target }
    }

    fn link(&self, cell: &Cell, end: End) -> &Proxy {
        &self.links[self.nth(cell, end)]
    }

    /// What is known of the last migration, for a cell that failed.
    pub async fn tell(&self) {
        // A cell with a process fails with the store closed.
        let state = match RedbStore::look(&self.cluster.store_file()) {
            Ok(state) => state,
            Err(_) => self.cluster.store.read().await.unwrap_or_default(),
        };
        if let Some(record) = state.migrations.values().max_by_key(|record| record.created_at) {
            println!("-- migration {} from {} is {:?}", record.id, record.planned.source, record.state);
            for row in state.journal.get(&record.id).iter().flat_map(|rows| rows.iter()) {
                let note = row.note.as_deref().unwrap_or_default();
                println!("  {:?} term {}: {} -> {} {note}", row.at, row.term, row.event, row.state);
            }
        }
        for server in [&self.cluster.source, &self.cluster.target] {
            println!("-- the last of {}'s log\n{}", server.name(), server.log_tail());
        }
        println!("-- the last of the pooler's log\n{}", self.cluster.poolers[0].log_tail());
    }
}

/// Runs a migration up to a call, and gives it up there.
async fn up_to(driver: &Arc<Driver>, id: &MigrationId, stop: Arc<Stop>) {
    let (runner, name) = (driver.clone(), id.clone());
    let mut running = tokio::spawn(async move { runner.run(&name).await });
    tokio::select! {
        reached = timeout(PATIENCE, stop.reached()) => reached.expect("the call was never made"),
        ended = &mut running => panic!("it ended before the call: {ended:?}"),
    }
    running.abort();
    let _aborted = running.await;
}

/// Brings a migration to its end, with new tries as the control loop makes them.
async fn finish(driver: &Driver, cluster: &Cluster, id: &MigrationId) -> MigrationRecord {
    let began = Instant::now();
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
        sleep(Duration::from_millis(100)).await;
    }
}
