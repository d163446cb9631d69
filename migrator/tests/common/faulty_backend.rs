//! A backend that passes every call on to another until its fault is due.

use async_trait::async_trait;
use foreshard_domain::{BackendKind, Epoch, LeaderTerm, NodeId, Observation, RealTime, ShardId};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, Left, MoveSpec, Position, Proof, SourceState, Verification,
};
use futures::future::BoxFuture;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// What goes wrong in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallFault {
    /// It fails for now and does nothing.
    Transient,
    /// It does its work, but the answer is lost.
    AnswerLost,
    /// It cannot be done.
    Permanent,
    /// The controller dies before it.
    CrashBefore,
    /// The controller dies after it.
    CrashAfter,
}

type Hook = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send>;

pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    fault: Option<(u64, CallFault)>,
    hook: Mutex<Option<(u64, Hook)>>,
    proof_hook: Mutex<Option<(u32, Hook)>>,
    calls: AtomicU64,
    /// What catching up says is left, whatever is.
    pub always_behind: Option<u64>,
}

impl FaultyBackend {
    pub fn new(inner: Arc<dyn Backend>, fault: Option<(u64, CallFault)>) -> Self {
        Self {
            inner,
            fault,
            hook: Mutex::new(None),
            proof_hook: Mutex::new(None),
            calls: AtomicU64::new(0),
            always_behind: None,
        }
    }

    /// Does something while a call is under way.
    pub fn during(&self, call: u64, hook: Hook) {
        *self.hook.lock().unwrap() = Some((call, hook));
    }

    /// Does something before the n-th proof, counted from 1.
    pub fn at_proof(&self, n: u32, hook: Hook) {
        *self.proof_hook.lock().unwrap() = Some((n, hook));
    }

    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    async fn pass<T>(&self, call: impl Future<Output = Result<T, BackendError>>) -> Result<T, BackendError> {
        let n = self.calls.fetch_add(1, Ordering::SeqCst);
        let due = self.hook.lock().unwrap().take_if(|(at, _)| *at == n);
        if let Some((_, hook)) = due {
            hook().await;
        }
        let lost = || BackendError::Transient { doing: "a test".into(), source: "injected".into() };
        // The driver stops at a bug without another commit, as if it had died here.
        let died = || BackendError::Bug { what: "injected crash".into() };
        match self.fault {
            Some((at, fault)) if at == n => match fault {
                CallFault::Transient => Err(lost()),
                CallFault::AnswerLost => call.await.and(Err(lost())),
                CallFault::Permanent => Err(BackendError::Permanent { doing: "a test".into(), why: "injected".into() }),
                CallFault::CrashBefore => Err(died()),
                CallFault::CrashAfter => call.await.and(Err(died())),
            },
            _ => call.await,
        }
    }
}

#[async_trait]
impl Backend for FaultyBackend {
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

    async fn open_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(self.inner.open_way_back(spec)).await
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(self.inner.preflight(spec)).await
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(self.inner.prepare(spec)).await
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        self.pass(self.inner.copy(spec, cursor)).await
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let lag = self.pass(self.inner.catch_up(spec)).await?;
        Ok(Lag { changes: self.always_behind.unwrap_or(lag.changes), ..lag })
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        self.pass(self.inner.verify(spec, so_far)).await
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(self.inner.try_way_back(spec)).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        self.pass(self.inner.fence(spec, deadline)).await
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.pass(self.inner.unfence(spec)).await
    }

    async fn prove(&self, spec: &MoveSpec, at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        let due = {
            let mut hook = self.proof_hook.lock().unwrap();
            if let Some((n, _)) = hook.as_mut() {
                *n -= 1;
            }
            hook.take_if(|(n, _)| *n == 0)
        };
        if let Some((_, hook)) = due {
            hook().await;
        }
        self.pass(self.inner.prove(spec, at, verified)).await
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        self.pass(self.inner.seal(spec, proof)).await
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        self.pass(self.inner.source_state(spec)).await
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        self.pass(self.inner.open_target(spec, epoch)).await
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        self.pass(self.inner.route(shard, owner, epoch)).await
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.pass(self.inner.reverse_catch_up(spec)).await
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.pass(self.inner.undo(spec)).await
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        self.pass(self.inner.finish(spec)).await
    }

    fn let_go(&self, spec: &MoveSpec) {
        self.inner.let_go(spec);
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.inner.observe().await
    }
}
