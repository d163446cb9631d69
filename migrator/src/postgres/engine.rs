//! The trait: each call takes the migration's turn and does one step.

use async_trait::async_trait;
use foreshard_domain::{
    BackendKind, Consistency, Epoch, LeaderTerm, MigrationId, NodeId, Observation, RealTime, ShardId,
};
use std::time::Duration;

use super::backend::PostgresBackend;
use super::mutant::Mutant;
use super::names;
use crate::{
    Backend, BackendError, Capabilities, CopyProgress, Found, Lag, Left, MoveSpec, Position, Proof, Room, SourceState,
    Swept, Verification,
};

#[async_trait]
impl Backend for PostgresBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Postgres
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { consistency: vec![Consistency::Strict], reverse_log: true, resumable_copy: true }
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        let mut objects = names::external_objects(spec);
        objects.retain(|name| !(self.is(Mutant::ForgetSlots) && name.contains("/slot/")));
        objects
    }

    async fn take_over(&self, term: LeaderTerm) -> Result<(), BackendError> {
        self.take_charge(term).await
    }

    async fn find(&self, shard: &ShardId, on: Option<&NodeId>) -> Result<Vec<Found>, BackendError> {
        self.holders(shard, on).await
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.check(&mut live, spec).await
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.make_ready(&mut live, spec).await
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        let mut live = self.live(spec).await;
        self.copy_piece(&mut live, spec, cursor).await
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let mut live = self.live(spec).await;
        self.keep_up(&mut live, spec).await
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        let mut live = self.live(spec).await;
        self.compare_piece(&mut live, spec, so_far).await
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.probe_way_back(&mut live, spec).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        let mut live = self.live(spec).await;
        self.stop_writes(&mut live, spec, deadline).await
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.lift(&mut live, spec).await
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        let mut live = self.live(spec).await;
        self.proof(&mut live, spec, fence_at, verified).await
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.close(&mut live, spec, proof).await
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        let mut live = self.live(spec).await;
        self.ask_source(&mut live, spec).await
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.open_new_owner(&mut live, spec, epoch).await
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        self.send_clients(shard, owner, epoch).await
    }

    async fn open_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.start_way_back(&mut live, spec).await
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let mut live = self.live(spec).await;
        self.carry_back(&mut live, spec).await
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let mut live = self.live(spec).await;
        self.undo_move(&mut live, spec).await
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let mut live = self.live(spec).await;
        self.finish_move(&mut live, spec).await
    }

    async fn clear_owner(&self, spec: &MoveSpec, owner: &NodeId) -> Result<Left, BackendError> {
        let mut live = self.live(spec).await;
        self.end_alone(&mut live, spec, owner).await
    }

    async fn room(&self, spec: &MoveSpec) -> Result<Room, BackendError> {
        match self.idle(spec) {
            Some(mut live) => self.room_left(&mut live, spec).await,
            // A call is at work, and looks by itself.
            None => Ok(Room::Enough),
        }
    }

    async fn close_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut live = self.live(spec).await;
        self.give_up_way_back(&mut live, spec).await
    }

    async fn sweep(&self, known: &[MigrationId]) -> Result<Swept, BackendError> {
        self.sweep_all(known).await
    }

    fn let_go(&self, spec: &MoveSpec) {
        self.forget(spec);
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.observe_load().await
    }

    /// Copying a piece and building an index may take long; what may not has a limit of its own for every answer.
    fn call_timeout(&self) -> Duration {
        Duration::from_secs(3600)
    }
}
