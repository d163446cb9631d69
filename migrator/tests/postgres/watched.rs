//! A backend that stops before or after a named call until the test lets it go on, or fails it.

use async_trait::async_trait;
use foreshard_domain::{BackendKind, Epoch, LeaderTerm, MigrationId, NodeId, Observation, RealTime, ShardId};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, Left, MoveSpec, Position, Proof, Room, SourceState, Swept,
    Verification, Way,
};
use serde::{Deserialize, Serialize};
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

/// On which side of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    Before,
    /// It goes on at once; whoever waits for it is told as it begins.
    Within,
    After,
}

/// Every call that a move makes, in its order; `near` is the `catch_up` that follows the comparison.
pub const CALLS: [&str; 13] = [
    "preflight",
    "prepare",
    "copy",
    "catch_up",
    "verify",
    "try_way_back",
    "near",
    "fence",
    "prove",
    "seal",
    "open_target",
    "route",
    "open_way_back",
];

/// Every call that a rollback makes, in its order.
pub const CALLS_BACK: [&str; 9] =
    ["reverse_catch_up", "verify", "near", "fence", "prove", "seal", "open_target", "route", "finish"];

/// Calls of the other ends of a move.
const ENDINGS: [&str; 3] = ["undo", "finish", "unfence"];

/// A place where the backend stops once.
pub struct Stop {
    way: Way,
    call: String,
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
    /// Which way the last call was, for the one that does not say it.
    is_back: AtomicBool,
    /// Whether all has been compared since the last fence.
    is_compared: AtomicBool,
}

impl<B: Backend> Watched<B> {
    pub fn new(inner: B) -> Self {
        Self { inner, stop: Mutex::new(None), is_back: AtomicBool::new(false), is_compared: AtomicBool::new(false) }
    }

    /// Stops at the next such call on the way there.
    pub fn stop_at(&self, call: &str, when: When) -> Arc<Stop> {
        self.stop_on(Way::There, call, when)
    }

    /// Stops at the next such call.
    pub fn stop_on(&self, way: Way, call: &str, when: When) -> Arc<Stop> {
        let known = if way == Way::There { &CALLS[..] } else { &CALLS_BACK[..] };
        assert!(known.contains(&call) || ENDINGS.contains(&call), "{call} is no call of a move {way:?}");
        let call = call.to_owned();
        let stop = Arc::new(Stop { way, call, when, reached: Notify::new(), go_on: Notify::new() });
        *self.stop.lock().unwrap() = Some(stop.clone());
        stop
    }

    async fn pass<T>(&self, way: Way, call: &'static str, doing: impl Future<Output = T>) -> T {
        self.is_back.store(way == Way::Back, Ordering::SeqCst);
        let due = |when| {
            let mut stop = self.stop.lock().unwrap();
            stop.take_if(|stop| stop.way == way && stop.call == call && stop.when == when)
        };
        if let Some(stop) = due(When::Within) {
            stop.reached.notify_one();
        }
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

    /// The name of a call that brings the target nearer: before the comparison or after it.
    fn nearer(&self, first: &'static str) -> &'static str {
        if self.is_compared.load(Ordering::SeqCst) { "near" } else { first }
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
        self.pass(spec.way, "preflight", self.inner.preflight(spec)).await
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(spec.way, "prepare", self.inner.prepare(spec)).await
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        self.pass(spec.way, "copy", self.inner.copy(spec, cursor)).await
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.pass(spec.way, self.nearer("catch_up"), self.inner.catch_up(spec)).await
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        let found = self.pass(spec.way, "verify", self.inner.verify(spec, so_far)).await;
        if found.as_ref().is_ok_and(|found| found.next.is_none()) {
            self.is_compared.store(true, Ordering::SeqCst);
        }
        found
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(spec.way, "try_way_back", self.inner.try_way_back(spec)).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        self.is_compared.store(false, Ordering::SeqCst);
        self.pass(spec.way, "fence", self.inner.fence(spec, deadline)).await
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(spec.way, "unfence", self.inner.unfence(spec)).await
    }

    async fn prove(&self, spec: &MoveSpec, at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        self.pass(spec.way, "prove", self.inner.prove(spec, at, verified)).await
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        self.pass(spec.way, "seal", self.inner.seal(spec, proof)).await
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        self.inner.source_state(spec).await
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        self.pass(spec.way, "open_target", self.inner.open_target(spec, epoch)).await
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        let way = if self.is_back.load(Ordering::SeqCst) { Way::Back } else { Way::There };
        self.pass(way, "route", self.inner.route(shard, owner, epoch)).await
    }

    async fn open_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(spec.way, "open_way_back", self.inner.open_way_back(spec)).await
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.pass(Way::Back, self.nearer("reverse_catch_up"), self.inner.reverse_catch_up(spec)).await
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.pass(spec.way, "undo", self.inner.undo(spec)).await
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.pass(spec.way, "finish", self.inner.finish(spec)).await
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
