//! What a move keeps back on its nodes: log that its slots still need, and rows that its snapshots still see. Both fill a disk
//! if nobody looks.

use super::backend::{Live, PostgresBackend, permanent};
use super::names::Names;
use super::replication;
use super::session::{Session, get};
use crate::{BackendError, MoveSpec, Room, Way};
use tokio_postgres::types::Type;

/// What a move keeps back on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    /// Bytes of log, by the slot that needs the oldest.
    log: u64,
    /// Age of the oldest snapshot, in transactions.
    age: u64,
}

async fn kept(session: &Session, names: &Names) -> Result<Kept, BackendError> {
    // The slots' own functions would fail on a standby; a node of ours is none.
    let sql = "SELECT COALESCE(max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)), 0)::bigint, \
                 COALESCE(GREATEST(max(age(xmin)), max(age(catalog_xmin)), (SELECT max(age(backend_xmin)) \
                   FROM pg_stat_activity WHERE starts_with(application_name, $2))), 0)::bigint \
               FROM pg_replication_slots WHERE starts_with(slot_name, $1)";
    let (stem, application) = (names.stem(), names.application());
    let doing = "measuring what the move keeps back";
    let row = session.one(doing, sql, &[(&stem, Type::TEXT), (&application, Type::TEXT)]).await?;
    let number = |column| Ok::<_, BackendError>(u64::try_from(get::<i64>(&row, column)?).unwrap_or(0));
    Ok(Kept { log: number(0)?, age: number(1)? })
}

impl PostgresBackend {
    /// Why a node keeps back too much for this move, if it does.
    async fn overspent(&self, session: &Session, spec: &MoveSpec) -> Result<Option<String>, BackendError> {
        let Kept { log, age } = kept(session, &Names::new(&spec.migration)).await?;
        let node = session.node();
        Ok(if log > self.settings.wal_limit_bytes {
            let limit = self.settings.wal_limit_bytes;
            Some(format!("node {node} keeps back {log} bytes of log for the move, more than wal_limit_bytes = {limit}"))
        } else if age > u64::from(self.settings.horizon_limit) {
            let limit = self.settings.horizon_limit;
            Some(format!(
                "node {node} keeps back what was deleted in the last {age} transactions, more than horizon_limit = {limit}"
            ))
        } else {
            None
        })
    }

    /// Fails if a node keeps back too much for a move.
    pub(super) async fn has_room(&self, node: &Session, spec: &MoveSpec) -> Result<(), BackendError> {
        match self.overspent(node, spec).await? {
            None => Ok(()),
            Some(why) => Err(permanent("going on with the move", why)),
        }
    }

    /// The same for a move that stands still, on every node that can be asked.
    pub(super) async fn room_left(&self, live: &mut Live, spec: &MoveSpec) -> Result<Room, BackendError> {
        let mut unknown = None;
        for node in [&spec.source, &spec.target] {
            let looked = match live.session(self, spec, node).await {
                Ok(session) => self.overspent(&session, spec).await,
                Err(error) => Err(error),
            };
            match looked {
                Ok(None) => {}
                Ok(Some(why)) => return Ok(Room::Spent { why }),
                Err(error) => unknown = Some(error),
            }
        }
        unknown.map_or(Ok(Room::Enough), Err)
    }

    /// Gives the way back up if it keeps back too much on the new owner.
    pub(super) async fn spare_owner(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let owner = live.session(self, spec, &spec.target).await?;
        if let Some(why) = self.overspent(&owner, spec).await? {
            tracing::error!(migration = %spec.migration, why, "the way back is given up");
            self.give_up_way_back(live, spec).await?;
        }
        Ok(())
    }

    /// Drops the slots of the way back on the new owner. The old one goes on asking in vain until the move is finished.
    pub(super) async fn give_up_way_back(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        live.comparing = None;
        let owner = live.session(self, spec, &spec.target).await?;
        let names = Names::new(&spec.migration);
        for slot in [names.slot(Way::Back), names.tracker(Way::Back)] {
            replication::drop_slot(&owner, &slot).await?;
        }
        Ok(())
    }
}
