//! Replication slots and the snapshots that come with them.

use super::error::{WireCause, WireError};
use super::{ReplicationConnection, Row, identifier, within};
use crate::postgres::lsn::Lsn;
use futures::FutureExt;
use std::time::Duration;

/// How long a slot that could not be created in time may take to be called off.
const CALL_OFF: Duration = Duration::from_secs(5);

/// How long a slot lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SlotLife {
    /// Until it is dropped, across restarts; it keeps the write-ahead log from being removed, used or not.
    Lasting,
    /// As long as the connection on which it was created.
    Temporary,
}

/// A slot that has been created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CreatedSlot {
    /// Its name.
    pub(crate) name: String,
    /// Its stream has every transaction that commits after this position; the snapshot sees all others.
    pub(crate) consistent_point: Lsn,
    /// Name of the exported snapshot, if one was asked for.
    pub(crate) snapshot: Option<String>,
}

/// A slot with a snapshot that other sessions can take with `SET TRANSACTION SNAPSHOT`, in the database and on the server
/// of this connection, for as long as this exists. Sessions that have taken it keep it afterwards.
#[derive(Debug)]
pub(crate) struct ExportedSnapshot {
    /// Any command on it would end the snapshot.
    connection: ReplicationConnection,
    slot: CreatedSlot,
    name: String,
}

impl ExportedSnapshot {
    /// The slot that begins where the snapshot ends.
    pub(crate) fn slot(&self) -> &CreatedSlot {
        &self.slot
    }

    /// Name of the snapshot, for `SET TRANSACTION SNAPSHOT`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the connection, and so the snapshot, is still there as far as this side knows; does not wait.
    ///
    /// # Errors
    /// Why it is not.
    pub(crate) fn still_held(&mut self) -> Result<(), WireError> {
        let cause = match super::login::next(&mut self.connection.frames).now_or_never() {
            None => return Ok(()),
            Some(Ok(frame)) => frame.unexpected("nothing"),
            Some(Err(cause)) => cause,
        };
        let doing = format!("holding the snapshot of slot {}", self.slot.name);
        Err(WireError { doing, server: self.connection.params.to_string(), cause })
    }

    /// Gives the snapshot up; the connection can be used again.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests clean up by it"))]
    pub(crate) fn release(self) -> ReplicationConnection {
        self.connection
    }
}

impl ReplicationConnection {
    /// Creates a slot for `pgoutput` without a snapshot, within `limit`.
    ///
    /// The server waits for transactions that run: a long one makes this reach its limit. The server is then told to
    /// stop, lest a slot come into being that nobody waits for any more; if even that fails, or the future is dropped, the
    /// slot may still appear for as long as its row in the state store says that it may (M6).
    ///
    /// # Errors
    /// [`WireCause::Server`] if it exists (42710), all slots are taken (53400) or the role may not (42501);
    /// [`WireCause::TimedOut`], whether or not calling it off succeeded.
    pub(crate) async fn create_logical_slot(
        &mut self,
        name: &str,
        life: SlotLife,
        limit: Duration,
    ) -> Result<CreatedSlot, WireError> {
        self.create(name, life, "NOEXPORT_SNAPSHOT", limit).await
    }

    /// Creates a slot for `pgoutput` and exports the snapshot at its beginning, within `limit`; otherwise like
    /// [`Self::create_logical_slot`].
    pub(crate) async fn export_snapshot(
        mut self,
        name: &str,
        life: SlotLife,
        limit: Duration,
    ) -> Result<ExportedSnapshot, WireError> {
        let slot = self.create(name, life, "EXPORT_SNAPSHOT", limit).await?;
        match slot.snapshot.clone() {
            Some(name) => Ok(ExportedSnapshot { connection: self, slot, name }),
            None => Err(self.slot_error(name, WireCause::Missing("snapshot"))),
        }
    }

    /// Drops a slot, within `limit`.
    ///
    /// # Errors
    /// [`WireCause::Server`] if it does not exist (42704) or is in use (55006).
    #[cfg_attr(not(test), expect(dead_code, reason = "tests clean up by it"))]
    pub(crate) async fn drop_slot(&mut self, name: &str, limit: Duration) -> Result<(), WireError> {
        check_slot_name(name).map_err(|cause| self.slot_error(name, cause))?;
        let command = format!("DROP_REPLICATION_SLOT {}", identifier(name));
        self.ask(&command, || format!("dropping slot {name}"), limit).await?;
        Ok(())
    }

    async fn create(
        &mut self,
        name: &str,
        life: SlotLife,
        snapshot: &str,
        limit: Duration,
    ) -> Result<CreatedSlot, WireError> {
        check_slot_name(name).map_err(|cause| self.slot_error(name, cause))?;
        // Should this process die meanwhile, the server does not notice, but it waits with locks, and not for ever.
        let lock_timeout = limit.saturating_add(CALL_OFF).as_millis().min(i32::MAX as u128);
        self.simple_query(&format!("SET lock_timeout = {lock_timeout}"), limit).await?;
        let temporary = match life {
            SlotLife::Lasting => "",
            SlotLife::Temporary => " TEMPORARY",
        };
        let quoted = identifier(name);
        let command = format!("CREATE_REPLICATION_SLOT {quoted}{temporary} LOGICAL pgoutput {snapshot}");
        let rows = match self.ask(&command, || format!("creating slot {name}"), limit).await {
            Err(error) if error.is_timeout() => self.call_off(error).await,
            outcome => outcome,
        }?;
        created(&rows).map_err(|cause| self.slot_error(name, cause))
    }

    /// Ends a command that has reached its limit. It may have succeeded just now: then its answer is as good as in time.
    async fn call_off(&mut self, error: WireError) -> Result<Vec<Row>, WireError> {
        let params = self.params.clone();
        let doing = || format!("calling off what took too long: {}", error.doing);
        let outcome = within(&params, doing, CALL_OFF, async {
            self.cancel().await?;
            self.answer().await
        });
        match outcome.await {
            Ok(rows) => Ok(rows),
            // `query_canceled`: it has ended.
            Err(ended) if ended.sql_state() == Some("57014") => Err(error),
            Err(failed) => {
                tracing::warn!(error = crate::cause::with_causes(&failed), "a slot may appear that nobody waits for");
                Err(error)
            }
        }
    }

    fn slot_error(&self, name: &str, cause: WireCause) -> WireError {
        WireError { doing: format!("managing slot {name}"), server: self.params.to_string(), cause }
    }
}

/// The server's own rule; checked here because it decides what is quoted.
pub(super) fn check_slot_name(name: &str) -> Result<(), WireCause> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    if (1..=63).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(WireCause::SlotName { name: name.to_owned() })
}

fn created(rows: &[Row]) -> Result<CreatedSlot, WireCause> {
    let Some([name, point, snapshot, ..]) = rows.first().map(Vec::as_slice) else {
        return Err(WireCause::Missing("row of the slot"));
    };
    let name = name.clone().ok_or(WireCause::Missing("name of the slot"))?;
    let point = point.as_deref().and_then(|p| p.parse().ok()).ok_or(WireCause::Missing("consistent point"))?;
    Ok(CreatedSlot { name, consistent_point: point, snapshot: snapshot.clone() })
}
