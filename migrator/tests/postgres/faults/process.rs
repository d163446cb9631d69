//! A controller that is a process: this test binary again, told by a file what to do, so that it can be killed and stopped.

use super::cell::Journey;
use super::travel;
use crate::cluster::config;
use crate::harness::process::{PATIENCE, Tree, start, tail, words};
use crate::watched::{Watched, When};
use foreshard_domain::{MigrationId, SystemClock};
use foreshard_migrator::postgres::{PostgresBackend, PostgresSettings};
use foreshard_migrator::{Driver, RedbStore, StateStore};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Names the file of [`Orders`] in the process's environment.
const ORDERS: &str = "FORESHARD_CONTROLLER_ORDERS";
const REACHED: &str = "reached";
const GO_ON: &str = "go-on";

/// What the process is to do, and where to stop.
#[derive(Serialize, Deserialize)]
pub struct Orders {
    pub settings: PostgresSettings,
    pub store: PathBuf,
    pub migration: MigrationId,
    pub journey: Journey,
    pub call: String,
    pub when: When,
}

/// A running controller.
pub struct ControllerProcess {
    tree: Tree,
    folder: tempfile::TempDir,
}

impl ControllerProcess {
    pub fn start(orders: &Orders) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orders.json");
        std::fs::write(&file, serde_json::to_vec(orders).unwrap()).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "--nocapture", "faults::process::controller_process"]);
        command.env(ORDERS, file).stdin(Stdio::null());
        let tree = Tree::new(start(command, &folder.path().join("log")));
        Self { tree, folder }
    }

    /// Waits until its call is there.
    pub async fn reached(&mut self) {
        let until = Instant::now() + PATIENCE;
        while !self.folder.path().join(REACHED).exists() {
            let ended = self.tree.ended();
            assert!(ended.is_none(), "the controller {} before the call\n{}", words(ended), self.said());
            assert!(Instant::now() < until, "the call was never made\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets it go on with the call.
    pub fn go_on(&self) {
        std::fs::write(self.folder.path().join(GO_ON), "").unwrap();
    }

    /// `kill -9` of it alone: programs that it has started go on. It may have done all that it was to do.
    pub async fn kill9(&mut self) {
        self.tree.signal(Signal::KILL);
        let ended = self.tree.wait(PATIENCE).await;
        let killed = ended.is_some_and(|status| status.success() || status.signal().is_some());
        assert!(killed, "the controller {}\n{}", words(ended), self.said());
    }

    /// Stops it where it is for a while.
    pub async fn stop_for(&mut self, time: Duration) {
        self.tree.signal(Signal::STOP);
        self.go_on();
        tokio::time::sleep(time).await;
        self.tree.signal(Signal::CONT);
    }

    /// Waits until it has done what it was ordered, with or without success.
    pub async fn ends(&mut self, patience: Duration) {
        let ended = self.tree.wait(patience).await;
        assert!(ended.is_some_and(|status| status.success()), "the controller {}\n{}", words(ended), self.said());
    }

    /// The last that it said.
    pub fn said(&self) -> String {
        tail(&self.folder.path().join("log"), 20)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is the controller's process of the matrix of faults: cargo test --release --workspace --test postgres m1_to_m8_a_fault starts it"]
async fn controller_process() {
    let Some(file) = std::env::var_os(ORDERS) else { return };
    let file = Path::new(&file);
    let orders: Orders = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let sign = |name: &str| file.with_file_name(name);
    let (reached, go_on) = (sign(REACHED), sign(GO_ON));

    let clock = Arc::new(SystemClock);
    let backend = Arc::new(Watched::new(PostgresBackend::new(orders.settings, clock.clone())));
    let stop = backend.stop_on(orders.journey.way(), &orders.call, orders.when);
    tokio::spawn(async move {
        stop.reached().await;
        std::fs::write(reached, "").unwrap();
        while !go_on.exists() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.go_on();
    });
    let store = Arc::new(RedbStore::open(&orders.store).unwrap());
    let term = store.take_leadership("a process").await.unwrap();
    let driver = Driver::new(store, backend, clock, config(), term);
    driver.recover().await.unwrap();
    let ended = travel(&driver, &orders.migration, orders.journey).await;
    println!("{ended:?}");
}
