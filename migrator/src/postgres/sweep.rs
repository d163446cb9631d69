//! What migrations leave behind whose rows are lost (M6): found by the names that all of it has, and removed if it belongs to no
//! migration under way. A database under a shard's name is never removed, whatever it says of itself: it may hold the only
//! rows there are.

use std::collections::BTreeSet;

use foreshard_domain::{MigrationId, NodeId};

use super::backend::PostgresBackend;
use super::names::{Names, PREFIX, SCHEMA};
use super::session::{Session, get, ident};
use super::{guard, replication};
use crate::{BackendError, Swept};
use tokio_postgres::types::Type;

/// How connections that look for leftovers are called: the guards let them pass.
const APPLICATION: &str = "foreshard fs_sweep";

/// Migrations under way, by what the names of their things begin with.
struct Known {
    stems: BTreeSet<String>,
    migrations: BTreeSet<String>,
}

impl Known {
    fn new(known: &[MigrationId]) -> Self {
        Self {
            stems: known.iter().map(|id| Names::new(id).stem().to_owned()).collect(),
            migrations: known.iter().map(|id| id.as_str().to_owned()).collect(),
        }
    }

    /// Whether something of this name belongs to foreshard and to no migration under way.
    fn is_leftover(&self, name: &str) -> bool {
        let length = PREFIX.len() + 16;
        match name.get(..length) {
            Some(stem) if name.starts_with(PREFIX) => {
                let is_stem = stem.chars().skip(PREFIX.len()).all(|c| c.is_ascii_hexdigit());
                is_stem && name.chars().nth(length) == Some('_') && !self.stems.contains(stem)
            }
            _ => false,
        }
    }
}

impl PostgresBackend {
    /// Looks on every server that can be reached.
    pub(super) async fn sweep_all(&self, known: &[MigrationId]) -> Result<Swept, BackendError> {
        let known = Known::new(known);
        let (mut swept, mut first) = (Swept::default(), None);
        for node in self.settings.nodes.keys() {
            if let Err(error) = self.sweep_node(node, &known, &mut swept).await {
                first = first.or(Some(error));
            }
        }
        for what in &swept.removed {
            tracing::debug!(what, "swept");
        }
        first.map_or(Ok(swept), Err)
    }

    async fn sweep_node(&self, node: &NodeId, known: &Known, swept: &mut Swept) -> Result<(), BackendError> {
        let server = self.session(node, &self.address(node)?.database, APPLICATION).await?;
        // Subscriptions before the slots that they read, on this node and, in the next round, on others.
        let mut first = None;
        let databases = "SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate \
                         AND (datconnlimit <> -2 OR starts_with(datname, 'fs_')) ORDER BY 1";
        for database in names(&server, databases).await? {
            if known.is_leftover(&database) {
                let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", ident(&database));
                server.run("removing an unfinished database", &sql).await?;
                swept.removed.push(format!("database {database}, which was never given its name, on node {node}"));
                continue;
            }
            let cleaned = match self.session(node, &database, APPLICATION).await {
                Ok(session) => self.sweep_database(&session, known, swept).await,
                Err(error) => Err(error),
            };
            // One database that cannot be looked at keeps nothing else from being cleaned.
            if let Err(error) = cleaned {
                first = first.or(Some(error));
            }
        }
        let slots = "SELECT slot_name::text FROM pg_replication_slots WHERE NOT temporary ORDER BY 1";
        for slot in leftovers(&server, slots, known).await? {
            replication::drop_slot(&server, &slot).await?;
            swept.removed.push(format!("slot {slot} on node {node}"));
        }
        first.map_or(Ok(()), Err)
    }

    async fn sweep_database(&self, session: &Session, known: &Known, swept: &mut Swept) -> Result<(), BackendError> {
        let (node, database) = (session.node().clone(), session.database().to_owned());
        let control = guard::control(session).await?;
        if control.as_ref().is_some_and(|c| known.migrations.contains(&c.migration)) {
            return Ok(());
        }
        if let Some(c) = control.as_ref().filter(|c| matches!(c.state.as_str(), "sealed" | "importing") || c.fenced) {
            swept.left.push(format!(
                "database {database} on node {node} is {} in epoch {} by migration {}: if the shard is served by another node, \
                 drop it there by hand",
                c.state, c.epoch, c.migration
            ));
            return Ok(());
        }
        let subscriptions = "SELECT subname::text FROM pg_subscription WHERE subdbid = \
                             (SELECT oid FROM pg_database WHERE datname = current_database()) ORDER BY 1";
        for name in leftovers(session, subscriptions, known).await? {
            replication::unsubscribe(session, &name).await?;
            swept.removed.push(format!("subscription {name} in database {database} on node {node}"));
        }
        let publications = "SELECT pubname::text FROM pg_publication ORDER BY 1";
        for name in leftovers(session, publications, known).await? {
            replication::unpublish(session, &name).await?;
            swept.removed.push(format!("publication {name} in database {database} on node {node}"));
        }
        let triggers = "SELECT evtname::text FROM pg_event_trigger ORDER BY 1";
        let guards = leftovers(session, triggers, known).await?;
        if control.is_some() || !guards.is_empty() {
            if control.is_some() {
                self.restore_identity(session).await?;
            }
            guard::remove(session, self.settings.lock_timeout).await?;
            swept.removed.push(format!("guards and schema {SCHEMA} in database {database} on node {node}"));
        }
        Ok(())
    }
}

async fn names(session: &Session, sql: &str) -> Result<Vec<String>, BackendError> {
    let none: &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)] = &[];
    session.query("looking for leftovers", sql, none).await?.iter().map(|row| get(row, 0)).collect()
}

async fn leftovers(session: &Session, sql: &str, known: &Known) -> Result<Vec<String>, BackendError> {
    Ok(names(session, sql).await?.into_iter().filter(|name| known.is_leftover(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Way;

    #[test]
    fn only_names_of_unknown_migrations_are_leftovers() {
        let (mine, other) = (MigrationId::new("m-1").unwrap(), MigrationId::new("m-2").unwrap());
        let known = Known::new(std::slice::from_ref(&mine));
        let of = |id: &MigrationId| {
            let names = Names::new(id);
            [
                names.slot(Way::There),
                names.tracker(Way::Back),
                names.probe(),
                names.ddl_guard(),
                names.unfinished_database(),
            ]
        };
        assert!(of(&mine).iter().all(|name| !known.is_leftover(name)));
        assert!(of(&other).iter().all(|name| known.is_leftover(name)));
        for name in ["fs_", "fs_0123456789abcdef", "fs_ä123456789abcdef_there", "fs_shop_of_somebody_else", "shop"] {
            assert!(!known.is_leftover(name), "{name}");
        }
    }
}
