//! The migrations that a holder works on, each in a task of its own.

use foreshard_api::{DryRunReport, Migration, MigrationDetails, ShardOwner, StartMigration};
use foreshard_domain::{Clock, MigrationId, NodeId, ShardId};
use foreshard_migrator::{
    Backend, Driver, DriverConfig, DriverError, MigrationRecord, MigrationState, Request, State, StateStore, StoreError,
};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::by_hand::{self, ByHand, StartError, adoption};
use super::{reason, show};
use crate::View;

/// How often a stop looks whether an owner change under way has come through.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What a holder works with.
#[derive(Clone)]
pub struct HolderParts {
    /// The state store that it holds.
    pub store: Arc<dyn StateStore>,
    /// The engine.
    pub backend: Arc<dyn Backend>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// How moves are carried out.
    pub driver: DriverConfig,
}

/// Carries migrations; what it was asked to do is durable before it answers.
pub(crate) struct Carrier {
    parts: HolderParts,
    driver: Driver,
    stays: bool,
    tasks: TaskTracker,
    stop: CancellationToken,
    stopping: AtomicBool,
    kept: Mutex<Kept>,
}

/// What is known of tasks, beside what is durable.
#[derive(Default)]
struct Kept {
    /// How many tasks are at work, or wait for their turn, on a migration.
    carried: BTreeMap<MigrationId, usize>,
    /// Why the last task of a migration stopped, if it did with an error.
    errors: BTreeMap<MigrationId, String>,
}

impl Carrier {
    /// `stays` tells whether anybody reads the log: a holder that lasts as long as a command leaves the telling to it.
    pub(crate) fn new(parts: HolderParts, driver: Driver, stays: bool) -> Arc<Self> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Arc::new(Self { parts, driver, stays, tasks, stop, stopping: AtomicBool::new(false), kept: Mutex::default() })
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works on a migration in a task of its own until it is at rest. If another task works on it already, this one waits
    /// for it and then finds out whether something is left to do, so that no request falls between the two.
    pub(crate) fn carry(self: &Arc<Self>, id: MigrationId) {
        // What is asked while this process ends is durable, and for the next one to carry out.
        if self.stopping.load(Ordering::SeqCst) {
            return;
        }
        let at_work = AtWork::begin(Arc::clone(self), id.clone());
        self.tasks.spawn(async move {
            let carrier = Arc::clone(&at_work.carrier);
            tokio::select! {
                () = carrier.stop.cancelled() => {}
                ran = carrier.driver.run(&id) => carrier.note_end(&id, ran),
            }
            drop(at_work);
        });
    }

    fn note_end(&self, id: &MigrationId, ran: Result<MigrationRecord, DriverError>) {
        match ran {
            Ok(record) => {
                tracing::info!(migration = %id, state = record.state.name(), "at rest");
                self.kept().errors.remove(id);
            }
            Err(error) => {
                let error = reason(&error);
                if self.stays {
                    tracing::error!(migration = %id, error, "stopped; what is durable stays as it is");
                }
                self.kept().errors.insert(id.clone(), error);
            }
        }
    }

    /// Records a move and begins it.
    pub(crate) async fn start(self: &Arc<Self>, asked: &StartMigration) -> Result<Migration, StartError> {
        let state = self.read().await?;
        let ByHand { adopt, planned, plan } = by_hand::decide(&state, self.parts.backend.as_ref(), asked).await?;
        if let Some(owner) = adopt {
            self.adopt(&asked.shard, &owner)
                .await
                .map_err(|source| StartError::Adopt { shard: asked.shard.clone(), source: Box::new(source) })?;
        }
        let id = self.driver.start(planned, plan, asked.consistency).await?;
        self.carry(id.clone());
        Ok(self.migration(&id).await?)
    }

    /// What a start would do.
    pub(crate) async fn dry_run(&self, asked: &StartMigration) -> Result<DryRunReport, StartError> {
        let HolderParts { backend, clock, driver, .. } = self.parts.clone();
        by_hand::dry_run(self.read().await?, backend, clock, driver, asked).await
    }

    async fn adopt(&self, shard: &ShardId, owner: &foreshard_domain::Owner) -> Result<(), StoreError> {
        loop {
            let state = self.parts.store.read().await?;
            if state.owners.get(shard) == Some(owner) {
                return Ok(());
            }
            let changes = vec![adoption(shard, owner)];
            match self.parts.store.commit(state.revision, self.driver.term(), changes).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Records a request; the work that follows from it is done in a task.
    pub(crate) async fn ask(self: &Arc<Self>, id: &MigrationId, request: Request) -> Result<Migration, DriverError> {
        let record = self.driver.ask(id, request).await?;
        if !record.state.is_at_rest() {
            self.carry(id.clone());
        }
        self.migration(id).await
    }

    /// Records that a node is gone for good; the migration ends without it in a task, after one that still asks that node has
    /// given up.
    pub(crate) async fn give_up_node(
        self: &Arc<Self>,
        id: &MigrationId,
        node: &NodeId,
    ) -> Result<Migration, DriverError> {
        let record = self.driver.give_up_node(id, node).await?;
        if !record.state.is_at_rest() {
            self.carry(id.clone());
        }
        self.migration(id).await
    }

    pub(crate) async fn list(&self) -> Result<Vec<Migration>, DriverError> {
        let mut all = show::migrations(&self.read().await?, self.parts.clock.model());
        all.iter_mut().for_each(|m| self.add_tasks(m));
        Ok(all)
    }

    pub(crate) async fn show(&self, id: &MigrationId) -> Result<MigrationDetails, DriverError> {
        let found = show::details(&self.read().await?, id, self.parts.clock.model());
        let mut details = found.ok_or_else(|| DriverError::Unknown { id: id.clone() })?;
        self.add_tasks(&mut details.migration);
        Ok(details)
    }

    pub(crate) async fn shard_map(&self) -> Result<Vec<ShardOwner>, DriverError> {
        Ok(show::shard_map(&self.read().await?))
    }

    pub(crate) async fn view(&self) -> Result<View, DriverError> {
        Ok(View::of(&self.read().await?, self.parts.clock.model()))
    }

    async fn migration(&self, id: &MigrationId) -> Result<Migration, DriverError> {
        Ok(self.show(id).await?.migration)
    }

    fn add_tasks(&self, migration: &mut Migration) {
        let kept = self.kept();
        migration.carried = kept.carried.contains_key(&migration.id);
        if let Some(error) = kept.errors.get(&migration.id) {
            migration.last_error = Some(error.clone());
        }
    }

    async fn read(&self) -> Result<State, DriverError> {
        self.parts.store.read().await.map_err(|source| DriverError::Store { source })
    }

    /// Lets every task stand still when the guard is dropped, without waiting for anything.
    pub(crate) fn stop_guard(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }

    /// What time brings: copies whose retention is over are removed, what stopped with an error is tried again, what stands still
    /// and keeps back too much is given up, and what is long over is forgotten.
    pub(crate) async fn keep_up(self: &Arc<Self>) -> Result<(), DriverError> {
        let (state, now) = (self.read().await?, self.parts.clock.model());
        for record in state.migrations.values() {
            let due = matches!(record.state, MigrationState::Reversible { until } if until <= now);
            if due {
                // It may have been rolled back meanwhile: then there is nothing to finish.
                if let Err(error) = self.ask(&record.id, Request::Finish).await {
                    tracing::warn!(migration = %record.id, error = reason(&error), "could not be finished yet");
                }
            } else if !record.state.is_at_rest() && !self.kept().carried.contains_key(&record.id) {
                self.carry(record.id.clone());
            }
        }
        for broken in self.driver.guard_room().await? {
            self.carry(broken);
        }
        self.driver.forget_old().await.map(drop)
    }

    /// Waits until no task is at work.
    pub(crate) async fn settled(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Stops: owner changes under way have until `patience` is over to come through, since writes wait for them; everything
    /// else stands still at once and is taken up by the next holder.
    pub(crate) async fn stop(&self, patience: Duration) {
        self.stopping.store(true, Ordering::SeqCst);
        self.driver.begin_no_fences();
        let through = async {
            // A fence that was decided on a moment ago is in the store by then.
            tokio::time::sleep(LOOK_EVERY).await;
            while self.changes_owner().await {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(patience, through).await.is_err() {
            tracing::warn!("an owner change did not come through; the next process takes it up");
        }
        self.stop.cancel();
        self.settled().await;
    }

    /// Whether clients wait for a migration that a task works on.
    async fn changes_owner(&self) -> bool {
        let Ok(state) = self.read().await else { return false };
        let kept = self.kept();
        let mut carried = kept.carried.keys().filter_map(|id| state.migrations.get(id));
        carried.any(|record| record.fenced_since.is_some())
    }
}

/// Counts a task as long as it lives, however it ends.
struct AtWork {
    carrier: Arc<Carrier>,
    id: MigrationId,
}

impl AtWork {
    fn begin(carrier: Arc<Carrier>, id: MigrationId) -> Self {
        {
            let mut kept = carrier.kept();
            *kept.carried.entry(id.clone()).or_default() += 1;
            kept.errors.remove(&id);
        }
        Self { carrier, id }
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        let mut kept = self.carrier.kept();
        if let Some(count) = kept.carried.get_mut(&self.id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                kept.carried.remove(&self.id);
            }
        }
    }
}
