//! Materialised views arrive empty: they are filled as late as their readers allow.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Dump;
use crate::BackendError;
use crate::postgres::session::{Session, get};

/// Longest time that one may take.
const FILL: Duration = Duration::from_secs(6 * 3600);

impl Dump {
    /// Fills, on the target, the materialised views that are filled on the source, each after those that it reads. They
    /// then show the target's rows of now, as after a refresh on the source.
    ///
    /// # Errors
    /// If a query of them fails.
    pub async fn fill_views(&self, source: &Session, target: &Session) -> Result<(), BackendError> {
        let wanted = views(source, "c.relispopulated").await?;
        let empty = views(target, "NOT c.relispopulated").await?;
        for view in self.materialised_views() {
            if wanted.contains(&view) && empty.contains(&view) {
                // Their queries may lean on the database's own search path; event triggers are not to fire.
                let sql = format!(
                    "BEGIN; SET LOCAL search_path TO DEFAULT; SET LOCAL session_replication_role = replica; \
                     REFRESH MATERIALIZED VIEW {view}; COMMIT"
                );
                let filled = target.run_within(FILL, "filling a materialised view", &sql).await;
                if filled.is_err() {
                    target.run("giving up a materialised view", "ROLLBACK").await?;
                }
                filled?;
            }
        }
        Ok(())
    }
}

async fn views(session: &Session, which: &str) -> Result<BTreeSet<String>, BackendError> {
    let sql = format!(
        "SELECT (pg_identify_object('pg_class'::regclass, c.oid, 0)).identity FROM pg_class c \
         WHERE c.relkind = 'm' AND {which}"
    );
    let rows = session.query("reading the materialised views", &sql, &[]).await?;
    rows.iter().map(|row| get(row, 0)).collect()
}
