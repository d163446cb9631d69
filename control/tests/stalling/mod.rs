//! An engine that cannot open a new owner until it is let.

use async_trait::async_trait;
use foreshard_domain::{BackendKind, Epoch, NodeId, Observation, RealTime, ShardId};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, Left, MoveSpec, Position, Proof, SourceState, Verification,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Hands every call on, but refuses to open a target while it is stalled.
pub struct Stalling {
    pub inner: Arc<dyn Backend>,
    pub stalled: AtomicBool,
}

#[async_trait]
impl Backend for Stalling {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        self.inner.external_objects(spec)
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.preflight(spec).await
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.prepare(spec).await
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        self.inner.copy(spec, cursor).await
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.inner.catch_up(spec).await
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        self.inner.verify(spec, so_far).await
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.try_way_back(spec).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        self.inner.fence(spec, deadline).await
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.unfence(spec).await
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        self.inner.prove(spec, fence_at, verified).await
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        self.inner.seal(spec, proof).await
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        self.inner.source_state(spec).await
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        if self.stalled.load(Ordering::SeqCst) {
            let doing = "opening the new owner".to_owned();
            return Err(BackendError::Permanent { doing, why: "its disk is away".to_owned() });
        }
        self.inner.open_target(spec, epoch).await
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        self.inner.route(shard, owner, epoch).await
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

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.inner.observe().await
    }
}
