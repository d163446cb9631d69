//! Transactions that a move would have to wait for, and may not: a slot is made only when all that ran before have ended, and a
//! fence cannot begin while one writes.

use std::time::Duration;
use tokio_postgres::types::Type;

use super::backend::PostgresBackend;
use super::names::Names;
use super::session::{Session, get};
use super::settings::LongTransactions;
use crate::{BackendError, MoveSpec};

/// How often transactions are looked at while something waits for them.
const EVERY: Duration = Duration::from_millis(500);

impl PostgresBackend {
    /// Ends transactions in the session's database that are older than the settings let a move wait; nothing if these say to wait
    /// or to refuse.
    pub(super) async fn end_long_transactions(&self, source: &Session) -> Result<(), BackendError> {
        let LongTransactions::End { after } = self.settings.long_transactions else { return Ok(()) };
        let sql = "SELECT pid, COALESCE(usename::text, ''), pg_terminate_backend(pid) FROM pg_stat_activity \
                   WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() \
                     AND application_name NOT LIKE 'foreshard %' \
                     AND xact_start < clock_timestamp() - make_interval(secs => $1)";
        for row in source.query("ending long transactions", sql, &[(&after.as_secs_f64(), Type::FLOAT8)]).await? {
            let (pid, user): (i32, String) = (get(&row, 0)?, get(&row, 1)?);
            let (node, database) = (source.node(), source.database());
            tracing::warn!(pid, user, %node, database, "a long transaction was ended for a move");
        }
        Ok(())
    }

    /// Waits for what itself waits for running transactions, and ends those meanwhile that become too old. It does so by a
    /// connection of its own: that of whoever waits is busy, and may be in a transaction that has failed.
    pub(super) async fn outlasting_transactions<T>(
        &self,
        spec: &MoveSpec,
        waiting: impl Future<Output = T>,
    ) -> Result<T, BackendError> {
        if !matches!(self.settings.long_transactions, LongTransactions::End { .. }) {
            return Ok(waiting.await);
        }
        let application = Names::new(&spec.migration).application();
        let source = self.session(&spec.source, spec.shard.as_str(), &application).await?;
        let mut waiting = std::pin::pin!(waiting);
        loop {
            self.end_long_transactions(&source).await?;
            tokio::select! {
                done = &mut waiting => return Ok(done),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }
}
