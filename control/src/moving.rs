//! Start what is due, gather what has ended, remove what was kept long enough, write the logs.

use foreshard_domain::{MigrationId, Timestamp};
use foreshard_migrator::{Driver, DriverError, MigrationRecord};
use foreshard_policy::Move;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use tokio::task::{self, JoinSet};

use crate::ControlError;
use crate::control_loop::{ControlLoop, keep_or_stop};
use crate::report::TickReport;
use crate::schedule::{Situation, StartLimits, due};
use crate::settings::Mode;
use crate::view::View;

/// What a task did for a migration.
#[derive(Debug)]
enum Ended {
    /// Ran it until it stood still.
    Ran(MigrationId, Result<MigrationRecord, DriverError>),
    /// Removed what was kept for the way back.
    Finished(MigrationId, Result<MigrationRecord, DriverError>),
}

/// The migrations that this process carries, each in a task of its own. Dropping it stops them where they are; recovery
/// takes them up again.
#[derive(Debug, Default)]
pub(crate) struct Running {
    tasks: JoinSet<Ended>,
    /// Which task carries which migration.
    carried: BTreeMap<MigrationId, task::Id>,
    /// Migrations whose task ended with an error, and until when they are left alone.
    resting: BTreeMap<MigrationId, Timestamp>,
    ended: Vec<Result<Ended, tokio::task::JoinError>>,
}

impl Running {
    /// Carries a migration until it stands still.
    pub(crate) fn spawn(&mut self, driver: &Arc<Driver>, id: MigrationId) {
        let driver = Arc::clone(driver);
        if let Entry::Vacant(free) = self.carried.entry(id.clone()) {
            let task = self.tasks.spawn(async move {
                let ran = driver.run(&id).await;
                Ended::Ran(id, ran)
            });
            free.insert(task.id());
        }
    }

    /// Whether a migration that should be under way is carried by nobody and has rested enough.
    fn is_left(&self, id: &MigrationId, now: Timestamp) -> bool {
        !self.carried.contains_key(id) && self.resting.get(id).is_none_or(|until| now >= *until)
    }

    /// Removes what a migration kept for the way back.
    fn spawn_finish(&mut self, driver: &Arc<Driver>, id: MigrationId) {
        let driver = Arc::clone(driver);
        if let Entry::Vacant(free) = self.carried.entry(id.clone()) {
            let task = self.tasks.spawn(async move {
                let finished = driver.finish(&id).await;
                Ended::Finished(id, finished)
            });
            free.insert(task.id());
        }
    }

    /// Waits until one of them stands still; for ever if there is none.
    pub(crate) async fn any_ended(&mut self) {
        match self.tasks.join_next().await {
            Some(ended) => self.ended.push(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits until none runs.
    pub(crate) async fn all_ended(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            self.ended.push(ended);
        }
    }

    /// Tasks that ended since the last time; those that ended with an error are left alone until `rested`.
    fn take_ended(&mut self, rested: Timestamp) -> Vec<Result<Ended, tokio::task::JoinError>> {
        while let Some(ended) = self.tasks.try_join_next() {
            self.ended.push(ended);
        }
        for ended in &self.ended {
            let (id, well) = match ended {
                Ok(Ended::Ran(id, result) | Ended::Finished(id, result)) => (Some(id.clone()), result.is_ok()),
                Err(died) => {
                    (self.carried.iter().find(|(_, task)| **task == died.id()).map(|(id, _)| id.clone()), false)
                }
            };
            let Some(id) = id else { continue };
            self.carried.remove(&id);
            if well {
                self.resting.remove(&id);
            } else {
                self.resting.insert(id, rested);
            }
        }
        std::mem::take(&mut self.ended)
    }
}

impl ControlLoop {
    /// Gathers the migrations that stand still; the outcomes of those that came to a result are kept for the log.
    pub(crate) fn gather(&mut self, report: &mut TickReport) -> Result<(), ControlError> {
        let rested = report.now.plus_ms(self.settings.observe_every_ms);
        for ended in self.running.take_ended(rested) {
            let result = match ended {
                Err(source) => Err(ControlError::Task(source)),
                Ok(Ended::Ran(migration, result)) => {
                    result.map(Some).map_err(|source| ControlError::Run { migration, source })
                }
                Ok(Ended::Finished(migration, result)) => {
                    result.map(|_| None).map_err(|source| ControlError::Finish { migration, source })
                }
            };
            let record = keep_or_stop(result, report)?.flatten();
            if let Some(outcome) = record.and_then(|record| foreshard_migrator::outcome(&record)) {
                report.ended.push(outcome.clone());
                self.unlogged_outcomes.push(outcome);
            }
        }
        Ok(())
    }

    /// Starts the moves of the plan in force that are due and ends retentions that have passed; in `advise` neither.
    pub(crate) async fn move_due(&mut self, now: Timestamp, report: &mut TickReport) -> Result<(), ControlError> {
        if self.settings.mode == Mode::Advise {
            return Ok(());
        }
        let state = self.parts.store.read().await.map_err(ControlError::ReadState)?;
        let view = View::of(&state, now);
        for id in &view.to_finish {
            self.running.spawn_finish(&self.driver, id.clone());
        }
        keep_or_stop(self.driver.forget_old().await.map_err(ControlError::Forget), report)?;
        // What is broken by this goes on with the rest.
        keep_or_stop(self.driver.guard_room().await.map_err(ControlError::Guard), report)?;
        // What stopped with an error goes on: past the seal a shard stays closed until somebody finishes it (M7).
        let unfinished = state.migrations.values().filter(|m| !m.state.is_terminal() && !m.state.is_at_rest());
        for record in unfinished.filter(|m| self.running.is_left(&m.id, now)).collect::<Vec<_>>() {
            tracing::info!(migration = %record.id, state = record.state.name(), "taken up again");
            self.running.spawn(&self.driver, record.id.clone());
        }
        let Some(plan) = self.plan.clone() else { return Ok(()) };
        if view.plan.as_ref() != Some(&plan.id) {
            // Somebody put another plan into force: what this one says is void.
            self.plan = None;
            return Ok(());
        }
        let situation = Situation {
            now,
            topology: &self.parts.topology,
            placement: &view.placement,
            in_flight: &view.in_flight,
            begun: &self.begun,
            retained: &view.retained,
            limits: StartLimits {
                in_flight: self.settings.policy.moves_in_flight,
                per_node: self.settings.policy.moves_per_node,
                lateness_ms: self.settings.lateness_ms,
            },
        };
        let starts = due(&plan, &situation).into_iter().filter(|verdict| verdict.outcome.is_ok());
        let starts: Vec<Move> = starts.map(|verdict| verdict.planned.clone()).collect();
        for planned in starts {
            let started = self.start_move(planned, &plan).await;
            let started = keep_or_stop(started, report)?;
            report.started.extend(started);
        }
        Ok(())
    }

    async fn start_move(&mut self, planned: Move, plan: &foreshard_policy::Plan) -> Result<MigrationId, ControlError> {
        let shard = planned.shard.clone();
        // Begun even if it fails to start: the next plan decides anew, this one does not try again and again.
        self.begun.insert(shard.clone());
        let started = self.driver.start(planned, plan.id.clone(), self.settings.consistency).await;
        let id = started.map_err(|source| ControlError::Start { shard, source })?;
        self.running.spawn(&self.driver, id.clone());
        Ok(id)
    }

    /// Writes outcomes and decisions; what cannot be written is kept for the next turn.
    pub(crate) fn write_logs(&mut self, report: &mut TickReport) {
        if !self.unlogged_outcomes.is_empty() {
            match self.parts.outcomes.append(&self.unlogged_outcomes) {
                Ok(_) => self.unlogged_outcomes.clear(),
                Err(source) => {
                    report.note(ControlError::LogOutcomes { count: self.unlogged_outcomes.len(), source });
                }
            }
        }
        if !self.unlogged_decisions.is_empty() {
            match self.parts.decisions.append(&self.unlogged_decisions) {
                Ok(_) => self.unlogged_decisions.clear(),
                Err(source) => {
                    report.note(ControlError::LogDecisions { count: self.unlogged_decisions.len(), source });
                }
            }
        }
    }
}
