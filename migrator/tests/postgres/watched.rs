//! A backend that stops before or after a named call until the test lets it go on, or fails it.

use async_trait::async_trait;
use foreshard_domain::{BackendKind, Epoch, LeaderTerm, MigrationId, NodeId, Observation, RealTime, ShardId};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, Left, MoveSpec, Position, Proof, Room, SourceState, Swept,
    Verification,
};
use std::future::Future;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// On which side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

/// Every call that a move makes, in its order.
pub const CALLS: [&str; 12] = [
    "preflight",
    "prepare",
    "copy",
    "catch_up",
    "verify",
    "try_way_back",
    "fence",
    "prove",
    "seal",
    "open_target",
    "route",
    "open_way_back",
];

/// A place where the backend stops once.
pub struct Stop {
    call: &'static str,
    when: When,
    reached: Notify,
    go_on: Notify,
}

impl Stop {
    /// Waits until the call is there.
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.go_on.notify_one();
    }
}

pub struct Watched<B> {
    inner: B,
    stop: Mutex<Option<Arc<Stop>>>,
}

impl<B: Backend> Watched<B> {
    pub fn new(inner: B) -> Self {
        Self { inner, stop: Mutex::new(None) }
    }

    /// Stops at the next such call.
    pub fn stop_at(&self, call: &'static str, when: When) -> Arc<Stop> {
        assert!(CALLS.contains(&call), "{call} is no call of a move");
        let stop = Arc::new(Stop { call, when, reached: Notify::new(), go_on: Notify::new() });
        *self.stop.lock().unwrap() = Some(stop.clone());
        stop
    }

    async fn pass<T>(&self, call: &'static str, doing: impl Future<Output = T>) -> T {
        let due = |when| self.stop.lock().unwrap().take_if(|stop| stop.call == call && stop.when == when);
        if let Some(stop) = due(When::Before) {
            stop.reached.notify_one();
            stop.go_on.notified().await;
        }
        let done = doing.await;
        if let Some(stop) = due(When::After) {
            stop.reached.notify_one();
            stop.go_on.notified().await;
        }
        done
    }
}

#[async_trait]
impl<B: Backend> Backend for Watched<B> {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        self.inner.external_objects(spec)
    }

    async fn take_over(&self, term: LeaderTerm) -> Result<(), BackendError> {
        self.inner.take_over(term).await
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass("preflight", self.inner.preflight(spec)).await
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass("prepare", self.inner.prepare(spec)).await
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        self.pass("copy", self.inner.copy(spec, cursor)).await
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.pass("catch_up", self.inner.catch_up(spec)).await
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        self.pass("verify", self.inner.verify(spec, so_far)).await
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass("try_way_back", self.inner.try_way_back(spec)).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        self.pass("fence", self.inner.fence(spec, deadline)).await
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.unfence(spec).await
    }

    async fn prove(&self, spec: &MoveSpec, at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        self.pass("prove", self.inner.prove(spec, at, verified)).await
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        self.pass("seal", self.inner.seal(spec, proof)).await
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        self.inner.source_state(spec).await
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        self.pass("open_target", self.inner.open_target(spec, epoch)).await
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        self.pass("route", self.inner.route(shard, owner, epoch)).await
    }

    async fn open_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass("open_way_back", self.inner.open_way_back(spec)).await
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.inner.reverse_catch_up(spec).await
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.inner.undo(spec).await
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.inner.finish(spec).await
    }

    async fn clear_owner(&self, spec: &MoveSpec, owner: &NodeId) -> Result<Left, BackendError> {
        self.inner.clear_owner(spec, owner).await
    }

    async fn room(&self, spec: &MoveSpec) -> Result<Room, BackendError> {
        self.inner.room(spec).await
    }

    async fn close_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.close_way_back(spec).await
    }

    async fn sweep(&self, known: &[MigrationId]) -> Result<Swept, BackendError> {
        self.inner.sweep(known).await
    }

    fn let_go(&self, spec: &MoveSpec) {
        self.inner.let_go(spec);
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.inner.observe().await
    }

    fn call_timeout(&self) -> std::time::Duration {
        self.inner.call_timeout()
    }
}
