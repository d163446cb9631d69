//! The loop: observe, hand over, look ahead, plan, check, accept, move, record.
//!
//! [`ControlLoop::tick`] is one turn of it and takes the time as an argument, so that a test or a simulation steps it; only
//! [`ControlLoop::run`] waits. What can fail without making the rest pointless is a problem of the turn and is logged once,
//! here; what makes going on wrong (another controller leads) ends the loop.

use foreshard_datasets::{DecisionLog, OutcomeLog};
use foreshard_domain::{
    Clock, CostModel, DecisionRecord, LeaderTerm, MigrationId, Outcome, ShardId, Timestamp, Topology,
};
use foreshard_migrator::{Backend, Driver, DriverConfig, StateStore};
use foreshard_policy::{Communication, Plan};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use crate::buffer::IngestBuffer;
use crate::moving::Running;
use crate::recent::Recent;
use crate::report::TickReport;
use crate::source::ForecastSource;
use crate::{ControlError, LoopSettings};

/// What the loop works with.
pub struct LoopParts {
    /// The engine; observed here, moved on by the driver.
    pub backend: Arc<dyn Backend>,
    /// Owners, plans, migrations.
    pub store: Arc<dyn StateStore>,
    /// How moves are carried out.
    pub driver: DriverConfig,
    /// Serving.
    pub source: Arc<dyn ForecastSource>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Nodes and rules.
    pub topology: Topology,
    /// Traffic between shards.
    pub communication: Vec<Communication>,
    /// What moves cost.
    pub cost_model: CostModel,
    /// Where outcomes go.
    pub outcomes: OutcomeLog,
    /// Where decisions go.
    pub decisions: DecisionLog,
}

/// The process that binds observation, forecast, plan and migration.
pub struct ControlLoop {
    pub(crate) parts: LoopParts,
    pub(crate) settings: LoopSettings,
    pub(crate) term: LeaderTerm,
    pub(crate) driver: Arc<Driver>,
    pub(crate) recent: Recent,
    pub(crate) buffer: IngestBuffer,
    pub(crate) observed_at: Option<Timestamp>,
    pub(crate) planned_at: Option<Timestamp>,
    pub(crate) rounds: u64,
    /// The plan that this process carries out; its moves start when they are due.
    pub(crate) plan: Option<Plan>,
    pub(crate) begun: BTreeSet<ShardId>,
    pub(crate) running: Running,
    pub(crate) unlogged_outcomes: Vec<Outcome>,
    pub(crate) unlogged_decisions: Vec<DecisionRecord>,
}

impl ControlLoop {
    /// Takes the lead and takes up what an earlier controller left half done. Returns the loop and the migrations taken up.
    ///
    /// Accepted plans of an earlier controller are not carried on: the first turn plans anew from what is true now.
    ///
    /// # Errors
    /// [`ControlError::Settings`], [`ControlError::Topology`], [`ControlError::Lead`], [`ControlError::Recover`].
    pub async fn start(parts: LoopParts, settings: LoopSettings) -> Result<(Self, Vec<MigrationId>), ControlError> {
        let problems = settings.problems();
        if !problems.is_empty() {
            return Err(ControlError::Settings { problems });
        }
        parts.topology.validate().map_err(ControlError::Topology)?;
        let term = parts.store.take_leadership(&settings.holder).await.map_err(|source| {
            let holder = settings.holder.clone();
            ControlError::Lead { holder, source: Box::new(source) }
        })?;
        let (store, backend, clock) = (Arc::clone(&parts.store), Arc::clone(&parts.backend), Arc::clone(&parts.clock));
        let driver = Arc::new(Driver::new(store, backend, clock, parts.driver.clone(), term));
        let taken_up = driver.recover().await.map_err(ControlError::Recover)?;
        let mut made = Self {
            buffer: IngestBuffer::new(settings.buffer_rows),
            parts,
            settings,
            term,
            driver,
            recent: Recent::default(),
            observed_at: None,
            planned_at: None,
            rounds: 0,
            plan: None,
            begun: BTreeSet::new(),
            running: Running::default(),
            unlogged_outcomes: Vec::new(),
            unlogged_decisions: Vec::new(),
        };
        for migration in &taken_up {
            made.running.spawn(&made.driver, migration.clone());
        }
        Ok((made, taken_up))
    }

    /// One turn at model time `now`: observes and plans if that is due, starts moves that are due, gathers those that ended.
    ///
    /// # Errors
    /// Only those that end the loop, see [`ControlError::is_final`]; others are in the report.
    pub async fn tick(&mut self, now: Timestamp) -> Result<TickReport, ControlError> {
        let mut report = TickReport { now, ..TickReport::default() };
        if due(self.observed_at, self.settings.observe_every_ms, now) {
            self.observed_at = Some(now);
            self.observe(&mut report).await;
        }
        self.gather(&mut report)?;
        if due(self.planned_at, self.settings.plan_every_ms, now) {
            self.planned_at = Some(now);
            let round = self.plan_round(now, &mut report).await;
            report.planned = keep_or_stop(round, &mut report)?.flatten();
        }
        let moved = self.move_due(now, &mut report).await;
        keep_or_stop(moved, &mut report)?;
        self.write_logs(&mut report);
        Ok(report)
    }

    /// Waits until no migration runs any more and records how they ended; starts none.
    ///
    /// # Errors
    /// Only those that end the loop, see [`ControlError::is_final`].
    pub async fn settle(&mut self) -> Result<TickReport, ControlError> {
        let mut report = TickReport { now: self.parts.clock.model(), ..TickReport::default() };
        self.running.all_ended().await;
        self.gather(&mut report)?;
        self.write_logs(&mut report);
        Ok(report)
    }

    /// Turns the loop until cancelled, a turn whenever something is due, then lets running migrations end.
    ///
    /// # Errors
    /// Those that end the loop.
    pub async fn run(
        &mut self,
        cancel: &CancellationToken,
        on_tick: &mut (dyn FnMut(&TickReport) + Send),
    ) -> Result<(), ControlError> {
        while !cancel.is_cancelled() {
            let now = self.parts.clock.model();
            on_tick(&self.tick(now).await?);
            let pause = self.parts.clock.real_duration(self.until_next(self.parts.clock.model()));
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.running.any_ended() => {}
            }
        }
        on_tick(&self.settle().await?);
        Ok(())
    }

    /// Model milliseconds until something is due.
    fn until_next(&self, now: Timestamp) -> i64 {
        let next = |last: Option<Timestamp>, every: i64| last.map_or(0, |last| next_after(last, every).since_ms(now));
        let observe = next(self.observed_at, self.settings.observe_every_ms);
        let plan = next(self.planned_at, self.settings.plan_every_ms);
        let ahead = self.plan.iter().flat_map(|plan| &plan.moves).filter(|m| !self.begun.contains(&m.shard));
        let start = ahead.map(|m| m.start.since_ms(now)).filter(|ms| *ms > 0).min().unwrap_or(i64::MAX);
        observe.min(plan).min(start).max(0)
    }
}

/// Rounds lie on the grid of their interval, so that a turn that came late does not shift all that follow.
fn next_after(last: Timestamp, every_ms: i64) -> Timestamp {
    last.plus_ms(every_ms - last.as_ms().rem_euclid(every_ms.max(1)))
}

fn due(last: Option<Timestamp>, every_ms: i64, now: Timestamp) -> bool {
    // A clock that was set back must not keep the loop from looking.
    last.is_none_or(|last| now < last || now >= next_after(last, every_ms))
}

/// Ends the loop on final errors; notes and logs the others.
pub(crate) fn keep_or_stop<T>(
    result: Result<T, ControlError>,
    report: &mut TickReport,
) -> Result<Option<T>, ControlError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_final() => Err(error),
        Err(error) => {
            report.note(error);
            Ok(None)
        }
    }
}

impl std::fmt::Debug for ControlLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlLoop")
            .field("settings", &self.settings)
            .field("term", &self.term)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_stay_on_their_grid() {
        let at = Timestamp::from_ms;
        assert!(due(None, 300, at(5)));
        assert!(!due(Some(at(301)), 300, at(599)));
        assert!(due(Some(at(301)), 300, at(600)), "a late turn does not push the next one back");
        assert!(!due(Some(at(600)), 300, at(899)));
        assert!(due(Some(at(600)), 300, at(900)));
    }
}
