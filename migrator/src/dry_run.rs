//! What a move would do, without doing it: a backend that only checks and tells, and the driver run on a copy of the state.

use async_trait::async_trait;
use foreshard_domain::{
    BackendKind, Clock, Consistency, Epoch, LeaderTerm, NodeId, Observation, PlanId, RealTime, ShardId,
};
use foreshard_policy::Move;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::store::{MemoryStore, MigrationRecord, State, StateStore};
use crate::{
    Backend, BackendError, Capabilities, CopyProgress, Driver, DriverConfig, DriverError, Found, Lag, Left, MoveSpec,
    Position, Proof, SourceState, Verification,
};

/// A backend that really does the checks before a move, which only read, and of everything else only notes what the backend
/// behind it would do.
pub struct DryRun {
    inner: Arc<dyn Backend>,
    lines: Mutex<Vec<String>>,
}

/// What a rehearsal found.
#[derive(Debug, Clone, PartialEq)]
pub struct Rehearsal {
    /// The migration as it would end: `failed` if the checks refuse it, else `reversible`.
    pub record: MigrationRecord,
    /// What would be done, in order.
    pub steps: Vec<String>,
}

/// Carries a move out on a copy of the state, by the same driver as always, on a backend that only checks and tells.
///
/// # Errors
/// As [`Driver::start`] and [`Driver::run`]. A check that refuses the move is no error but the end of the rehearsal.
pub async fn rehearse(
    state: State,
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    config: DriverConfig,
    (planned, plan, consistency): (Move, PlanId, Consistency),
) -> Result<Rehearsal, DriverError> {
    let store = Arc::new(MemoryStore::holding(state));
    let term = store.take_leadership("dry run").await.map_err(|source| DriverError::Store { source })?;
    let dry = Arc::new(DryRun::new(backend));
    let driver = Driver::new(store, Arc::clone(&dry) as Arc<dyn Backend>, clock, config, term);
    let id = driver.start(planned, plan, consistency).await?;
    let record = driver.run(&id).await?;
    dry.let_go(&record.spec(crate::Way::There));
    Ok(Rehearsal { record, steps: dry.lines() })
}

impl DryRun {
    /// A dry run of the given backend.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, lines: Mutex::default() }
    }

    /// What would have been done so far, in order.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// What one step of a move does on an engine, for a person.
fn words(kind: BackendKind, step: Step, shard: &ShardId, (source, target): (&NodeId, &NodeId)) -> String {
    let text = match (step, kind) {
        (Step::Check, _) => format!("{source} and {target} were checked: nothing stands in the way"),
        (Step::Prepare, BackendKind::Postgres) => {
            format!("make database {shard} on {target}, closed to clients, with the schema of {source}")
        }
        (Step::Prepare, _) => format!("make a closed place for {shard} on {target}; keep {source}'s changes"),
        (Step::Copy, BackendKind::Postgres) => {
            format!("copy all rows of {shard} from one snapshot of {source}, then build keys and indexes")
        }
        (Step::Copy, _) => format!("copy all rows of {shard} from one snapshot of {source}"),
        (Step::CatchUp, BackendKind::Postgres) => {
            format!("apply what clients change meanwhile, by logical replication from {source} to {target}")
        }
        (Step::CatchUp, _) => format!("apply what clients change meanwhile to {target}"),
        (Step::Verify, _) => format!("compare {source} and {target} row by row while clients write"),
        (Step::TryWayBack, _) => format!("write a probe on {target}, see it on {source}, remove it"),
        (Step::Fence, BackendKind::Postgres) => {
            format!("pause {shard} at all poolers; {source} refuses writes until the fence ends by itself")
        }
        (Step::Fence, _) => format!("{source} refuses writes until the fence ends by itself; clients wait"),
        (Step::Prove, BackendKind::Postgres) => {
            format!("bring {target} up to the fence, set its sequences, compare what changed")
        }
        (Step::Prove, _) => format!("bring {target} up to the fence, compare what changed"),
        (Step::Seal, _) => format!("close {source} for good: the point of no return"),
        (Step::OpenTarget, _) => format!("enter {target} as owner into the shard map; {target} accepts writes"),
        (Step::Route, BackendKind::Postgres) => {
            format!("write {target} into the poolers' routes, reload and resume them: clients go on")
        }
        (Step::Route, _) => format!("send clients to {target}: they go on"),
        (Step::OpenWayBack, BackendKind::Postgres) => {
            format!("end replication from {source}; begin it from {target} to {source}")
        }
        (Step::OpenWayBack, _) => format!("keep {target}'s changes for {source}"),
    };
    format!("{:<14} {text}", step.name())
}

/// Steps of a move that is not interrupted, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Check,
    Prepare,
    Copy,
    CatchUp,
    Verify,
    TryWayBack,
    Fence,
    Prove,
    Seal,
    OpenTarget,
    Route,
    OpenWayBack,
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Check => "check",
            Self::Prepare => "prepare",
            Self::Copy => "copy",
            Self::CatchUp => "catch up",
            Self::Verify => "verify",
            Self::TryWayBack => "try way back",
            Self::Fence => "fence",
            Self::Prove => "prove",
            Self::Seal => "seal",
            Self::OpenTarget => "open",
            Self::Route => "route",
            Self::OpenWayBack => "open way back",
        }
    }
}

impl DryRun {
    fn say(&self, step: Step, spec: &MoveSpec) {
        self.tell(step, &spec.shard, (&spec.source, &spec.target));
    }

    fn tell(&self, step: Step, shard: &ShardId, ends: (&NodeId, &NodeId)) {
        let line = words(self.inner.kind(), step, shard, ends);
        // A step that the driver does more than once, such as catching up again before the fence, is told once.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
}

/// The driver does not ask for these on a move that nothing interrupts.
fn unexpected(what: &str) -> BackendError {
    BackendError::Bug { what: format!("a dry run was asked for {what}") }
}

fn nothing_compared() -> Verification {
    Verification { ranges: 0, rows: 0, differing: Vec::new(), up_to: Position(0), next: None }
}

#[async_trait]
impl Backend for DryRun {
    fn kind(&self) -> BackendKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        self.inner.external_objects(spec)
    }

    async fn take_over(&self, _term: LeaderTerm) -> Result<(), BackendError> {
        Ok(())
    }

    async fn find(&self, shard: &ShardId, on: Option<&NodeId>) -> Result<Vec<Found>, BackendError> {
        self.inner.find(shard, on).await
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.inner.preflight(spec).await?;
        self.say(Step::Check, spec);
        Ok(())
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.say(Step::Prepare, spec);
        let mut objects = self.inner.external_objects(spec);
        objects.sort();
        for object in objects {
            self.note(format!("{:<14} may make {object}, noted in the state store before", ""));
        }
        Ok(())
    }

    async fn copy(&self, spec: &MoveSpec, _cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        self.say(Step::Copy, spec);
        Ok(CopyProgress { next: None, snapshot_at: Position(0), rows: 0, bytes: 0 })
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.say(Step::CatchUp, spec);
        Ok(Lag { changes: 0, applied: Position(0) })
    }

    async fn verify(&self, spec: &MoveSpec, _so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        self.say(Step::Verify, spec);
        Ok(nothing_compared())
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.say(Step::TryWayBack, spec);
        Ok(())
    }

    async fn fence(&self, spec: &MoveSpec, _deadline: RealTime) -> Result<Position, BackendError> {
        self.say(Step::Fence, spec);
        Ok(Position(0))
    }

    async fn unfence(&self, _spec: &MoveSpec) -> Result<(), BackendError> {
        Ok(())
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, _seen: &Verification) -> Result<Proof, BackendError> {
        self.say(Step::Prove, spec);
        Ok(Proof { fence_at, applied: fence_at, verification: nothing_compared() })
    }

    async fn seal(&self, spec: &MoveSpec, _proof: &Proof) -> Result<(), BackendError> {
        self.say(Step::Seal, spec);
        Ok(())
    }

    async fn source_state(&self, _spec: &MoveSpec) -> Result<SourceState, BackendError> {
        Ok(SourceState::Open)
    }

    async fn open_target(&self, spec: &MoveSpec, _epoch: Epoch) -> Result<(), BackendError> {
        self.say(Step::OpenTarget, spec);
        Ok(())
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, _epoch: Epoch) -> Result<(), BackendError> {
        self.tell(Step::Route, shard, (owner, owner));
        Ok(())
    }

    async fn open_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        self.say(Step::OpenWayBack, spec);
        Ok(())
    }

    async fn reverse_catch_up(&self, _spec: &MoveSpec) -> Result<Lag, BackendError> {
        Err(unexpected("a rollback"))
    }

    async fn undo(&self, _spec: &MoveSpec) -> Result<Left, BackendError> {
        Err(unexpected("an undo"))
    }

    async fn finish(&self, _spec: &MoveSpec) -> Result<Left, BackendError> {
        Err(unexpected("a finish"))
    }

    fn let_go(&self, spec: &MoveSpec) {
        self.inner.let_go(spec);
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        Ok(Vec::new())
    }

    fn call_timeout(&self) -> Duration {
        self.inner.call_timeout()
    }
}
