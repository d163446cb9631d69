//! Carries out migrations: writes the intent, acts, writes the outcome.
//!
//! The state of a migration in the store says what is to be done next; the driver does it and commits what followed. Every
//! action is idempotent, so a driver that dies anywhere is replaced by another that reads the store and does the stored
//! state's actions again. Each commit names the leader term: a driver that has been replaced can commit nothing, and stops.
//!
//! Requests (`pause`, `cancel`, ..) are commits too. A driver that finds its migration in another state than it left it
//! drops what it has just done and goes on from there; what that left outside is removed by the actions of the new state.

mod act;
mod calls;
mod config;
mod cut_over;
mod follow;
mod forget;
mod guard_room;
mod recover;
mod requests;

use foreshard_domain::{Clock, Consistency, LeaderTerm, MigrationId, PlanId};
use foreshard_policy::Move;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use config::{DriverConfig, DriverError};
pub use cut_over::{CutOver, CutOverLimits, CutOverObservation, decide_cut_over};

pub use requests::Request;

use crate::store::{Change, MigrationRecord, Progress, State, StateStore, StoreError};
use crate::transition::{Event, MigrationState};
use crate::{Backend, MoveSpec, Way};
use follow::{Figures, Moment, follow};

/// Carries out migrations on one engine.
pub struct Driver {
    store: Arc<dyn StateStore>,
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    config: DriverConfig,
    term: LeaderTerm,
    deposed: AtomicBool,
    no_fences: AtomicBool,
    /// One migration is worked on by one task of this driver at a time.
    at_work: Mutex<BTreeMap<MigrationId, Arc<tokio::sync::Mutex<()>>>>,
}

impl Driver {
    /// A driver that commits in the given leader term; take it with [`StateStore::take_leadership`], then call
    /// [`Driver::recover`].
    pub fn new(
        store: Arc<dyn StateStore>,
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        config: DriverConfig,
        term: LeaderTerm,
    ) -> Self {
        Self {
            store,
            backend,
            clock,
            config,
            term,
            deposed: AtomicBool::new(false),
            no_fences: AtomicBool::new(false),
            at_work: Mutex::default(),
        }
    }

    /// From now on begins no fence: migrations come near and stay there, so that this process can end without clients waiting
    /// for it.
    pub fn begin_no_fences(&self) {
        self.no_fences.store(true, Ordering::SeqCst);
    }

    /// The leader term in which it commits.
    pub fn term(&self) -> LeaderTerm {
        self.term
    }

    /// Records a migration that carries out a move; [`Driver::run`] does the work. The name follows from plan and move, so
    /// that asking again for the same move of the same plan finds the same migration, whatever has become of it.
    ///
    /// # Errors
    /// [`DriverError::NotOwner`], [`DriverError::SameNode`] and [`DriverError::Unsupported`] for a move that cannot be;
    /// [`DriverError::Store`] if the shard already moves or the store fails.
    pub async fn start(
        &self,
        planned: Move,
        plan: PlanId,
        consistency: Consistency,
    ) -> Result<MigrationId, DriverError> {
        let id = name_of(&planned, &plan)?;
        let planned = Arc::new(planned);
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            if state.migrations.contains_key(&id) {
                return Ok(id);
            }
            let record = Box::new(self.record(&state, id.clone(), &planned, plan.clone(), consistency)?);
            let changes = vec![Change::PutMigration { record }];
            if self.committed(&state, changes, &mut failures).await? {
                return Ok(id);
            }
        }
    }

    fn record(
        &self,
        state: &State,
        id: MigrationId,
        planned: &Arc<Move>,
        plan: PlanId,
        consistency: Consistency,
    ) -> Result<MigrationRecord, DriverError> {
        let owner = self.check(state, planned, consistency)?;
        let now = self.clock.model();
        let spec = MoveSpec {
            migration: id.clone(),
            shard: planned.shard.clone(),
            source: planned.source.clone(),
            target: planned.target.clone(),
            epoch: owner,
            consistency,
            way: Way::There,
        };
        Ok(MigrationRecord {
            id,
            planned_at: state.plans.get(&plan).map_or(now, |p| p.created_at),
            plan,
            planned: Arc::clone(planned),
            backend: self.backend.kind(),
            consistency,
            epoch: owner,
            objects: self.backend.external_objects(&spec),
            state: MigrationState::Planned,
            progress: Progress::default(),
            created_at: now,
            started_at: None,
            moved_at: None,
            ended_at: None,
            fenced_since: None,
            fence_ms: 0,
            fence_back_ms: 0,
            proof: None,
            why: None,
            lost: None,
        })
    }

    /// Whether a move can be at all; returns the epoch of its source.
    fn check(
        &self,
        state: &State,
        planned: &Move,
        consistency: Consistency,
    ) -> Result<foreshard_domain::Epoch, DriverError> {
        if planned.source == planned.target {
            return Err(DriverError::SameNode { shard: planned.shard.clone(), node: planned.source.clone() });
        }
        if !self.backend.capabilities().consistency.contains(&consistency) {
            return Err(DriverError::Unsupported { backend: self.backend.kind(), consistency });
        }
        match state.owners.get(&planned.shard) {
            Some(owner) if owner.node == planned.source => Ok(owner.epoch),
            owner => Err(DriverError::NotOwner {
                shard: planned.shard.clone(),
                from: planned.source.clone(),
                owner: owner.cloned(),
            }),
        }
    }

    /// Works on a migration until it has ended, is paused, or waits for the end of its retention; returns how it stands. If
    /// another task works on it, waits for that one first.
    ///
    /// # Errors
    /// [`DriverError::Stuck`] if an action that cannot be given up does not succeed, [`DriverError::Deposed`] if another
    /// controller has taken over, [`DriverError::Store`] if the store fails. Call again, or recover, to go on.
    pub async fn run(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        let turn = self.turn(id);
        let _working = turn.lock().await;
        loop {
            let record = self.known(&self.read().await?, id)?;
            if record.state.is_at_rest() {
                if record.state.is_terminal() {
                    self.backend.let_go(&record.spec(Way::There));
                }
                self.forget_turn(&record);
                return Ok(record);
            }
            let performed = self.act(&record).await?;
            self.settle(&record, performed).await?;
        }
    }

    /// Commits what followed in the state of `seen`; if the state has changed meanwhile, what followed is void.
    async fn settle(&self, seen: &MigrationRecord, performed: act::Performed) -> Result<(), DriverError> {
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            let record = self.known(&state, &seen.id)?;
            if record.state != seen.state {
                return Ok(());
            }
            if self.follow_and_commit(&state, &record, &performed.events, &performed.figures, &mut failures).await? {
                return Ok(());
            }
        }
    }

    /// One try to commit events; `false` if the state must be read again first.
    async fn follow_and_commit(
        &self,
        state: &State,
        record: &MigrationRecord,
        events: &[Event],
        figures: &Figures,
        failures: &mut u32,
    ) -> Result<bool, DriverError> {
        let (_, changes) = follow(record, events, figures, self.now())
            .map_err(|source| DriverError::Illegal { id: record.id.clone(), source })?;
        self.committed(state, changes, failures).await
    }

    /// One try to commit; `false` if somebody else was first or it is not known what happened, so that the state must be
    /// read again.
    async fn committed(&self, state: &State, changes: Vec<Change>, failures: &mut u32) -> Result<bool, DriverError> {
        match self.store.commit(state.revision, self.term, changes).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(StoreError::Io { .. }) if *failures < self.config.retries => {
                tokio::time::sleep(self.config.backoff(*failures)).await;
                *failures += 1;
                Ok(false)
            }
            Err(error) => Err(self.store_failed(error)),
        }
    }

    async fn read(&self) -> Result<State, DriverError> {
        if self.deposed.load(Ordering::SeqCst) {
            return Err(DriverError::Deposed { term: self.term });
        }
        self.store.read().await.map_err(|source| DriverError::Store { source })
    }

    /// Fails if another controller has taken over, without a commit.
    async fn still_in_charge(&self) -> Result<(), DriverError> {
        let current = self.read().await?.term;
        if current == self.term {
            return Ok(());
        }
        Err(self.store_failed(StoreError::StaleTerm { term: self.term, current }))
    }

    fn store_failed(&self, error: StoreError) -> DriverError {
        if matches!(error, StoreError::StaleTerm { .. }) {
            self.deposed.store(true, Ordering::SeqCst);
            return DriverError::Deposed { term: self.term };
        }
        DriverError::Store { source: error }
    }

    fn known(&self, state: &State, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        state
            .migrations
            .get(id)
            .map(|record| record.as_ref().clone())
            .ok_or_else(|| DriverError::Unknown { id: id.clone() })
    }

    fn now(&self) -> Moment {
        Moment { real: self.clock.real(), model: self.clock.model(), term: self.term }
    }

    fn turn(&self, id: &MigrationId) -> Arc<tokio::sync::Mutex<()>> {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(at_work.entry(id.clone()).or_default())
    }

    fn forget_turn(&self, record: &MigrationRecord) {
        if record.state.is_terminal() {
            self.at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&record.id);
        }
    }
}

/// A name that follows from plan and move, short enough for a label on every engine.
fn name_of(planned: &Move, plan: &PlanId) -> Result<MigrationId, DriverError> {
    let parts = [plan.as_str(), planned.shard.as_str(), planned.source.as_str(), planned.target.as_str()];
    let text = format!("{}\0{}", parts.join("\0"), planned.start.as_ms());
    let hash = xxhash_rust::xxh3::xxh3_64(text.as_bytes());
    MigrationId::new(format!("m-{hash:016x}")).map_err(|source| DriverError::Name { source })
}
