//! Going on after a crash, or after another controller.

use foreshard_domain::MigrationId;

use super::{Driver, DriverError, Moment};
use crate::BackendError;
use crate::cause::with_causes;
use crate::store::{Change, JournalRow, MigrationRecord};

impl Driver {
    /// Takes up every migration that has not ended. Where a fence may hold or a seal may have been done, the source is asked
    /// first; what is past the point of no return is finished forward at once (M7). Returns the others that still have work to
    /// do, and those that are stuck, for [`Driver::run`].
    ///
    /// # Errors
    /// [`DriverError::Deposed`] or [`DriverError::Store`], [`DriverError::Engine`] if the engine does not accept the term. A
    /// migration that cannot be taken up holds up no other: it is logged
    /// and returned.
    pub async fn recover(&self) -> Result<Vec<MigrationId>, DriverError> {
        let term = self.term;
        let charge = || self.backend.take_over(term);
        self.call("taking over the engine", None, charge)
            .await
            .map_err(|source| DriverError::Engine { term, source })?;
        let state = self.read().await?;
        let mut rest = Vec::new();
        // Clients wait for what is past the seal: it must not wait for a node that some other migration asks in vain.
        let unfinished = state.migrations.values().filter(|m| !m.state.is_terminal());
        let (forward, others): (Vec<_>, Vec<_>) = unfinished.partition(|m| m.state.must_go_forward());
        for record in forward.into_iter().chain(others) {
            let taken_up = match self.take_up(record).await {
                Ok(()) => self.go_forward(&record.id, &mut rest).await,
                Err(error) => Err(error),
            };
            if let Err(error) = taken_up {
                rest.push(self.held_up(record, error)?);
            }
        }
        self.sweep().await?;
        Ok(rest)
    }

    /// Removes what belongs to no migration that has not ended (M6): this driver begins none before it has recovered, and
    /// earlier ones are shut out.
    async fn sweep(&self) -> Result<(), DriverError> {
        let state = self.read().await?;
        let known: Vec<MigrationId> =
            state.migrations.values().filter(|m| !m.state.is_terminal()).map(|m| m.id.clone()).collect();
        self.still_in_charge().await?;
        match self.backend.sweep(&known).await {
            Ok(swept) => {
                for what in swept.removed {
                    tracing::warn!(what, "removed: it belonged to no migration under way");
                }
                for what in swept.left {
                    tracing::warn!(what, "left for a person to look at: it belongs to no migration under way");
                }
            }
            Err(error) => warn_not_swept(&error),
        }
        Ok(())
    }

    /// Finishes what is past the point of no return; adds what else has work to do to `rest`.
    async fn go_forward(&self, id: &MigrationId, rest: &mut Vec<MigrationId>) -> Result<(), DriverError> {
        let record = self.known(&self.read().await?, id)?;
        // Clients wait for the change of owner itself, not for what is carried back or removed after it.
        if record.state.must_go_forward() && record.state.fence().is_some() {
            return self.run(id).await.map(drop);
        }
        if !record.state.is_at_rest() {
            rest.push(id.clone());
        }
        Ok(())
    }

    /// Notes the change of controller and finds out what the stored state does not tell.
    async fn take_up(&self, record: &MigrationRecord) -> Result<(), DriverError> {
        let mut failures = 0;
        while !self.committed(&self.read().await?, vec![taken_up(record, self.now())], &mut failures).await? {}
        match self.look(record).await? {
            Some(performed) => self.settle(record, performed).await,
            None => Ok(()),
        }
    }

    /// A migration that could not be taken up, unless nothing can be done at all.
    fn held_up(&self, record: &MigrationRecord, error: DriverError) -> Result<MigrationId, DriverError> {
        if matches!(error, DriverError::Deposed { .. } | DriverError::Store { .. }) {
            return Err(error);
        }
        tracing::error!(migration = %record.id, error = with_causes(&error), "a migration could not be taken up");
        Ok(record.id.clone())
    }
}

/// Leftovers cost room, not safety: the next controller looks again.
fn warn_not_swept(error: &BackendError) {
    tracing::warn!(error = with_causes(error), "not all nodes could be searched for leftovers");
}

fn taken_up(record: &MigrationRecord, now: Moment) -> Change {
    let row = JournalRow {
        migration: record.id.clone(),
        at: now.real,
        model_at: now.model,
        term: now.term,
        event: "taken_up".to_owned(),
        state: record.state.name().to_owned(),
        note: None,
    };
    Change::Journal { row }
}
