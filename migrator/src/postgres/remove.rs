//! Taking away what a move made: before the seal all of it, after the retention the old owner's copy. Every step is done
//! again without harm, and asks the engine what is there rather than memory.

use foreshard_domain::NodeId;

use super::backend::{Live, PostgresBackend, permanent};
use super::catalog::{has_database, is_half_dropped};
use super::names::{Names, SCHEMA};
use super::session::{Session, get, ident};
use super::{guard, replication};
use crate::{BackendError, Left, MoveSpec, Way};
use tokio_postgres::types::Type;

impl PostgresBackend {
    /// Before the seal: back to the start. The source is cleared first, since a slot that nobody reads keeps back its log.
    pub(super) async fn undo_move(&self, live: &mut Live, spec: &MoveSpec) -> Result<Left, BackendError> {
        let doing = "undoing the move";
        live.copy = None;
        live.comparing = None;
        live.mark = None;
        let source = live.session(self, spec, &spec.source).await?;
        if let Some(control) = guard::control(&source).await?
            && control.migration == spec.migration.as_str()
        {
            if control.state == "sealed" || control.state == "importing" || control.epoch > spec.epoch {
                return Err(permanent(
                    doing,
                    format!("node {} is {}: the move is past the point of no return", spec.source, control.state),
                ));
            }
            self.lift(live, spec).await?;
            self.clear_source(&source, spec).await?;
        }
        live.leave(&spec.target);
        self.drop_copy(spec, &spec.target, Way::There).await?;
        drop(source);
        self.forget(spec);
        Ok(Left::Nothing)
    }

    /// Everything of this migration on the node that owns the shard, as it was before.
    async fn clear_source(&self, source: &Session, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        replication::unsubscribe(source, &names.subscription(Way::Back)).await?;
        replication::unsubscribe(source, &names.probe()).await?;
        for slot in [names.slot(Way::There), names.tracker(Way::There)] {
            replication::drop_slot(source, &slot).await?;
        }
        replication::unpublish(source, &names.publication(Way::There)).await?;
        self.restore_identity(source).await?;
        guard::remove(source, self.settings.lock_timeout).await
    }

    /// Tables whose whole row identified a row while the move lasted.
    pub(super) async fn restore_identity(&self, session: &Session) -> Result<(), BackendError> {
        let sql = format!("SELECT relation, was FROM {SCHEMA}.identity ORDER BY 1");
        for row in session.query("looking for changed identities", &sql, &[]).await? {
            let (table, was): (String, String) = (get(&row, 0)?, get(&row, 1)?);
            let was = if was == "n" { "NOTHING" } else { "DEFAULT" };
            let sql = format!(
                "BEGIN; SET LOCAL lock_timeout = '{}ms'; ALTER TABLE {table} REPLICA IDENTITY {was}; COMMIT",
                self.settings.lock_timeout.as_millis()
            );
            guard::in_short_transactions(session, &format!("restoring the identity of table {table}"), &sql).await?;
        }
        Ok(())
    }

    /// Removes a copy of the shard with everything of this migration around it, if it is this migration's to remove.
    async fn drop_copy(&self, spec: &MoveSpec, node: &NodeId, filled_by: Way) -> Result<(), BackendError> {
        let doing = "removing a copy";
        let server = self.server(node, spec).await?;
        let names = Names::new(&spec.migration);
        let unfinished = ident(&names.unfinished_database());
        server.run(doing, &format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")).await?;
        let database = ident(spec.shard.as_str());
        if is_half_dropped(&server, spec.shard.as_str()).await? {
            // Nobody gets in any more, to ask whose it was, and what it held is partly gone already.
            return server.run(doing, &format!("DROP DATABASE IF EXISTS {database}")).await;
        }
        if has_database(&server, spec.shard.as_str()).await? {
            if !self.is_ours(&server, spec, node, filled_by).await? {
                return Ok(());
            }
            let application = names.application();
            let session = self.session(node, spec.shard.as_str(), &application).await?;
            for way in [Way::There, Way::Back] {
                replication::unsubscribe(&session, &names.subscription(way)).await?;
            }
            replication::unsubscribe(&session, &names.probe()).await?;
            for slot in slots(&names) {
                replication::drop_slot(&session, &slot).await?;
            }
            drop(session);
            server.run(doing, &format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)")).await?;
        }
        Ok(())
    }

    /// Whether the old owner still has its copy, sealed.
    ///
    /// # Errors
    /// If it has one that is not sealed by this migration.
    async fn has_sealed_copy(&self, spec: &MoveSpec) -> Result<bool, BackendError> {
        let server = self.server(&spec.source, spec).await?;
        if is_half_dropped(&server, spec.shard.as_str()).await? {
            return Ok(false);
        }
        Ok(has_database(&server, spec.shard.as_str()).await?
            && self.is_ours(&server, spec, &spec.source, Way::Back).await?)
    }

    /// Ends on the owner alone: the other node is gone for good.
    pub(super) async fn end_alone(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        owner: &NodeId,
    ) -> Result<Left, BackendError> {
        let doing = "ending without the lost node";
        live.copy = None;
        live.comparing = None;
        let names = Names::new(&spec.migration);
        let session = live.session(self, spec, owner).await?;
        if let Some(control) = guard::control(&session).await?.filter(|c| c.migration == spec.migration.as_str()) {
            if control.state != "open" {
                return Err(permanent(doing, format!("node {owner} is {}, not open", control.state)));
            }
            for name in [names.subscription(Way::There), names.subscription(Way::Back), names.probe()] {
                replication::unsubscribe(&session, &name).await?;
            }
            for slot in slots(&names) {
                replication::drop_slot(&session, &slot).await?;
            }
            for name in [names.publication(Way::There), names.publication(Way::Back), names.probe()] {
                replication::unpublish(&session, &name).await?;
            }
            self.restore_identity(&session).await?;
            guard::remove(&session, self.settings.lock_timeout).await?;
        }
        drop(session);
        self.forget(spec);
        Ok(Left::Nothing)
    }

    /// Whether the database on `node` is a copy that this migration made or sealed: the wrong one taken away is data lost.
    async fn is_ours(
        &self,
        server: &Session,
        spec: &MoveSpec,
        node: &NodeId,
        filled_by: Way,
    ) -> Result<bool, BackendError> {
        let doing = "removing a copy";
        let comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
        let row = server.one(doing, comment, &[(&spec.shard.as_str(), Type::TEXT)]).await?;
        let labelled = get::<Option<String>>(&row, 0)? == Some(Names::new(&spec.migration).mark());
        let session = self.session(node, spec.shard.as_str(), &Names::new(&spec.migration).application()).await?;
        match (guard::control(&session).await?, filled_by) {
            (Some(c), _) if c.migration != spec.migration.as_str() => Err(permanent(
                doing,
                format!("the database on node {node} belongs to migration {}: it is left alone", c.migration),
            )),
            (Some(c), Way::There) if c.state == "importing" => Ok(true),
            (Some(c), Way::Back) if c.state == "sealed" => Ok(true),
            (Some(c), _) => {
                Err(permanent(doing, format!("the database on node {node} is {}: it is left alone", c.state)))
            }
            // Made, but not yet given its control row.
            (None, Way::There) => Ok(labelled),
            (None, Way::Back) => Ok(false),
        }
    }

    /// After the retention: the old owner's copy goes, and the new owner becomes an ordinary database again. `spec.source` is
    /// the sealed one: the planned source, or after a rollback the planned target.
    pub(super) async fn finish_move(&self, live: &mut Live, spec: &MoveSpec) -> Result<Left, BackendError> {
        let names = Names::new(&spec.migration);
        let target = live.session(self, spec, &spec.target).await?;
        // Nothing is touched before it is known that this may be finished.
        is_owner(&target, spec).await?;
        live.copy = None;
        live.comparing = None;
        live.leave(&spec.source);
        for way in [Way::There, Way::Back] {
            replication::unsubscribe(&target, &names.subscription(way)).await?;
        }
        // The owner's slots first: they keep back its log, also while the other server is away or a backup is waited for.
        for slot in slots(&names) {
            replication::drop_slot(&target, &slot).await?;
        }
        let is_asked = spec.way == Way::There && !self.settings.backup_hook.is_empty();
        if is_asked && self.has_sealed_copy(spec).await? {
            self.backed_up(spec).await?;
        }
        self.drop_copy(spec, &spec.source, Way::Back).await?;
        for way in [Way::There, Way::Back] {
            replication::unpublish(&target, &names.publication(way)).await?;
        }
        if guard::control(&target).await?.is_some_and(|c| c.migration == spec.migration.as_str()) {
            self.restore_identity(&target).await?;
            guard::remove(&target, self.settings.lock_timeout).await?;
        }
        self.forget(spec);
        Ok(Left::Nothing)
    }
}

/// The old copy goes only if the node that is to keep the shard has been opened after it (M5).
async fn is_owner(target: &Session, spec: &MoveSpec) -> Result<(), BackendError> {
    let (state, epoch) = match guard::control(target).await? {
        Some(c) if c.migration == spec.migration.as_str() => (c.state, Some(c.epoch)),
        // Its control row is the last thing that goes.
        _ => ("open".to_owned(), guard::known_epoch(target).await?),
    };
    if state == "open" && epoch.is_some_and(|epoch| epoch > spec.epoch) {
        return Ok(());
    }
    let why = format!(
        "node {} was never opened after epoch {}: the copy on node {} is the only one",
        spec.target, spec.epoch, spec.source
    );
    Err(permanent("finishing the move", why))
}

/// All slots that a migration may have on a node.
fn slots(names: &Names) -> Vec<String> {
    let ways = [Way::There, Way::Back];
    let of_ways = ways.iter().flat_map(|way| [names.slot(*way), names.tracker(*way)]);
    of_ways.chain([names.probe()]).collect()
}
