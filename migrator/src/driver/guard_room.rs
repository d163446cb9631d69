//! Looking after nodes on behalf of migrations that stand still: what they keep back must not fill a disk.

use foreshard_domain::MigrationId;
use std::sync::Arc;
use std::time::Duration;

use super::follow::Figures;
use super::{Driver, DriverError};
use crate::cause::with_causes;
use crate::store::MigrationRecord;
use crate::transition::{Event, MigrationState};
use crate::{BackendError, Room, Way};

/// How long one look may take: whoever looks has other migrations to care for.
const PATIENCE: Duration = Duration::from_secs(10);

impl Driver {
    /// Asks the engine, for every migration that is paused or waits for the end of its retention, whether what it keeps back is
    /// within the limits. Where it is not, a paused owner change breaks, as if a call of it had failed; a move that is done
    /// stays done and loses its way back. Returns the migrations that now have work to do, for [`Driver::run`]. A node that
    /// cannot be asked is passed over until the next time.
    ///
    /// # Errors
    /// [`DriverError::Store`] or [`DriverError::Deposed`].
    pub async fn guard_room(&self) -> Result<Vec<MigrationId>, DriverError> {
        let mut broken = Vec::new();
        let state = self.read().await?;
        for record in state.migrations.values().filter(|m| stands_still(m)) {
            let spec = record.spec(Way::There);
            let looked = match tokio::time::timeout(PATIENCE, self.backend.room(&spec)).await {
                Ok(looked) => looked,
                Err(elapsed) => Err(BackendError::Transient {
                    doing: "looking at what it keeps back".to_owned(),
                    source: Box::new(elapsed),
                }),
            };
            let relieved = match looked {
                Ok(Room::Enough) => continue,
                Ok(Room::Spent { why }) => {
                    tracing::error!(migration = %record.id, why, "a migration that stands still keeps back too much");
                    self.relieve(record, why).await?
                }
                Err(error) => Relieved::Failed(error),
            };
            match relieved {
                Relieved::Broken => broken.push(record.id.clone()),
                Relieved::Changed => {}
                Relieved::Failed(error) => {
                    let error = with_causes(&error);
                    tracing::warn!(migration = %record.id, error, "what it keeps back could not be looked after");
                }
            }
        }
        Ok(broken)
    }

    async fn relieve(&self, record: &MigrationRecord, why: String) -> Result<Relieved, DriverError> {
        if let MigrationState::Paused { .. } = record.state {
            let broken = self.commit_if_still(record, &Event::Broke { why }).await?;
            return Ok(if broken { Relieved::Broken } else { Relieved::Changed });
        }
        match self.backend.close_way_back(&record.spec(Way::There)).await {
            Ok(()) => {}
            Err(error) => return Ok(Relieved::Failed(error)),
        }
        self.commit_if_still(record, &Event::WayBackClosed { why }).await?;
        Ok(Relieved::Changed)
    }

    /// Commits what was found out about a migration, unless its state has changed meanwhile.
    async fn commit_if_still(&self, seen: &MigrationRecord, event: &Event) -> Result<bool, DriverError> {
        let mut failures = 0;
        loop {
            let state = self.read().await?;
            let record = self.known(&state, &seen.id)?;
            if record.state != seen.state {
                return Ok(false);
            }
            let events = std::slice::from_ref(event);
            if self.follow_and_commit(&state, &record, events, &Figures::default(), &mut failures).await? {
                return Ok(true);
            }
        }
    }
}

/// What came of looking after a migration.
enum Relieved {
    /// Its owner change broke; there is something to remove.
    Broken,
    /// Its way back is closed, or it has gone on by itself.
    Changed,
    /// The engine could not do it now.
    Failed(BackendError),
}

fn stands_still(record: &Arc<MigrationRecord>) -> bool {
    match &record.state {
        MigrationState::Paused { at } => at.may_have_objects(),
        MigrationState::Reversible { .. } => true,
        _ => false,
    }
}
