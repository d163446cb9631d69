//! What a person or the control loop may ask of a migration. Asking twice is asking once.

use foreshard_domain::{MigrationId, NodeId};
use std::sync::Arc;

use super::follow::Figures;
use super::{Driver, DriverError};
use crate::Way;
use crate::store::MigrationRecord;
use crate::transition::{Ending, Event, MigrationState};

/// What may be asked of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Stand still, before the fence.
    Pause,
    /// Go on.
    Resume,
    /// Give up the owner change under way, before the seal.
    Cancel,
    /// Take the move back while the source's data is kept.
    RollBack,
    /// Remove the source's copy after its retention.
    Finish,
}

impl Driver {
    /// Records what is asked and does not work on it; [`Driver::run`] does.
    ///
    /// # Errors
    /// [`DriverError::Illegal`] if the migration's state does not allow it, [`DriverError::NoReverseLog`] for a rollback on an
    /// engine that keeps none, [`DriverError::Unknown`], [`DriverError::Store`].
    pub async fn ask(&self, id: &MigrationId, request: Request) -> Result<MigrationRecord, DriverError> {
        let event = match request {
            Request::Pause => Event::Pause,
            Request::Resume => Event::Resume,
            Request::Cancel => Event::Cancel,
            Request::RollBack => {
                if !self.backend.capabilities().reverse_log {
                    let shard = self.known(&self.read().await?, id)?.shard().clone();
                    return Err(DriverError::NoReverseLog { backend: self.backend.kind(), shard });
                }
                Event::RollBack { fences_left: self.config.more_fences }
            }
            Request::Finish => Event::Finish { now: self.clock.model() },
        };
        self.request(id, &event).await
    }

    /// Lets a migration stand still, if it is before the fence; a call of the engine under way is finished first.
    ///
    /// # Errors
    /// [`DriverError::Illegal`] from the fence on.
    pub async fn pause(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        self.ask(id, Request::Pause).await
    }

    /// Goes on with a paused migration, as [`Driver::run`].
    ///
    /// # Errors
    /// As [`Driver::run`]; [`DriverError::Illegal`] if it is not paused and does not run either.
    pub async fn resume(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        self.ask(id, Request::Resume).await?;
        self.run(id).await
    }

    /// Gives up the owner change under way, if it is before the seal: a move is undone, a rollback leaves the shard on the
    /// target.
    ///
    /// # Errors
    /// As [`Driver::run`]; [`DriverError::Illegal`] from the seal on.
    pub async fn cancel(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        self.ask(id, Request::Cancel).await?;
        self.run(id).await
    }

    /// Takes a move back while the source's data is kept: a second owner change, in a new epoch, fed by the reverse log.
    ///
    /// # Errors
    /// As [`Driver::run`]; [`DriverError::NoReverseLog`] if the engine keeps none; [`DriverError::Illegal`] if the move is not
    /// done, or finished.
    pub async fn rollback(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        self.ask(id, Request::RollBack).await?;
        self.run(id).await
    }

    /// Removes the source's copy after its retention; the move can no longer be taken back.
    ///
    /// # Errors
    /// As [`Driver::run`]; [`DriverError::Illegal`] before the end of the retention (M5).
    pub async fn finish(&self, id: &MigrationId) -> Result<MigrationRecord, DriverError> {
        self.ask(id, Request::Finish).await?;
        self.run(id).await
    }

    /// Records that the node which does not own the shard is gone for good, so that the migration ends without it: nothing is
    /// asked of that node any more, what is left there stays, and the move can no longer be taken back. [`Driver::run`] does
    /// the rest. Whoever says so of a node that comes back drops the copy there by hand: it takes no
    /// writes, but may still let readers in that come past the poolers.
    ///
    /// # Errors
    /// [`DriverError::NotSpare`] unless `node` is the one that does not own the shard, in a state that can be ended without
    /// it; otherwise as [`Driver::ask`].
    pub async fn give_up_node(&self, id: &MigrationId, node: &NodeId) -> Result<MigrationRecord, DriverError> {
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            let record = self.known(&state, id)?;
            if record.lost.as_ref() == Some(node) {
                return Ok(record);
            }
            if record.spare() != Some(node) {
                let spare = record.spare().cloned();
                return Err(DriverError::NotSpare {
                    id: id.clone(),
                    node: node.clone(),
                    state: record.state.name(),
                    spare,
                });
            }
            let events = [Event::NodeLost { node: node.clone() }];
            if self.follow_and_commit(&state, &record, &events, &Figures::default(), &mut failures).await? {
                return self.known(&self.read().await?, id);
            }
        }
    }

    /// Finishes every migration whose retention is over; returns them.
    ///
    /// # Errors
    /// As [`Driver::run`], of the first that fails.
    pub async fn finish_due(&self) -> Result<Vec<MigrationRecord>, DriverError> {
        let now = self.clock.model();
        let state = self.read().await?;
        let due = |m: &&Arc<MigrationRecord>| matches!(m.state, MigrationState::Reversible { until } if until <= now);
        let mut finished = Vec::new();
        for record in state.migrations.values().filter(due) {
            finished.push(self.finish(&record.id).await?);
        }
        Ok(finished)
    }

    pub(super) async fn request(&self, id: &MigrationId, event: &Event) -> Result<MigrationRecord, DriverError> {
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            let record = self.known(&state, id)?;
            if is_fulfilled(&record.state, event) {
                return Ok(record);
            }
            let events = std::slice::from_ref(event);
            if self.follow_and_commit(&state, &record, events, &Figures::default(), &mut failures).await? {
                return self.known(&self.read().await?, id);
            }
        }
    }
}

/// Whether what is asked for has been done already or is under way.
fn is_fulfilled(state: &MigrationState, request: &Event) -> bool {
    use MigrationState as S;
    match request {
        Event::Pause => matches!(state, S::Paused { .. }),
        Event::Resume => !matches!(state, S::Paused { .. }) && !state.actions().is_empty(),
        Event::Cancel => matches!(state, S::Undoing { ending: Ending::Cancelled } | S::Cancelled | S::Releasing { .. }),
        Event::RollBack { .. } => match state {
            S::CatchingUp { leg }
            | S::Verifying { leg, .. }
            | S::Nearing { leg, .. }
            | S::Fencing { leg, .. }
            | S::Proving { leg, .. }
            | S::Sealing { leg, .. } => leg.way() == Way::Back,
            S::Sealed { way } | S::Opening { way, .. } | S::Routing { way, .. } | S::Finishing { way } => {
                *way == Way::Back
            }
            S::RolledBack => true,
            S::Planned
            | S::Preparing { .. }
            | S::Copying { .. }
            | S::TryingWayBack { .. }
            | S::OpeningWayBack { .. }
            | S::Reversible { .. }
            | S::Releasing { .. }
            | S::Undoing { .. }
            | S::Paused { .. }
            | S::Done
            | S::Cancelled
            | S::Failed { .. } => false,
        },
        Event::Finish { .. } => matches!(state, S::Finishing { way: Way::There } | S::Done),
        _ => false,
    }
}
