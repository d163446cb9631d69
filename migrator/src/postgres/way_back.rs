//! The way back: tried before the fence by a probe (M8), opened after the change of owner, and followed by a rollback.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Ends, Live, PostgresBackend, permanent};
use super::bring::{BYTES_PER_CHANGE, FAR};
use super::names::{Names, SCHEMA};
use super::replication::{self, Feed};
use super::session::{Session, get, ident, literal};
use super::{guard, schema};
use crate::{BackendError, Lag, MoveSpec, Position, Way};

/// How long the probe may take.
const PROBE: Duration = Duration::from_secs(20);
/// How long a round of carrying changes back waits for the marker.
const ROUND: Duration = Duration::from_millis(500);

impl PostgresBackend {
    /// A row that is written on the target is seen on the source; then everything of it is removed, whether it was seen or
    /// not.
    pub(super) async fn probe_way_back(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let ends = live.ends(self, spec).await?;
        let name = Names::new(&spec.migration).probe();
        remove_probe(&ends.source, &ends.target, &name).await?;
        let tried = self.try_probe(spec, &ends.source, &ends.target, &name).await;
        let removed = remove_probe(&ends.source, &ends.target, &name).await;
        tried.and(removed)
    }

    async fn try_probe(
        &self,
        spec: &MoveSpec,
        source: &Session,
        target: &Session,
        name: &str,
    ) -> Result<(), BackendError> {
        let doing = "trying the way back";
        for session in [source, target] {
            session.run(doing, &format!("CREATE TABLE {SCHEMA}.probe (id uuid PRIMARY KEY)")).await?;
        }
        target.run(doing, &format!("CREATE PUBLICATION {} FOR TABLE {SCHEMA}.probe", ident(name))).await?;
        replication::make_slot(target, name).await?;
        let connection = self.peer(&spec.target, spec.shard.as_str())?;
        replication::subscribe(source, &Feed { name, connection: &connection, publication: name }).await?;
        replication::enable(source, name).await?;
        let row = target
            .one(doing, &format!("INSERT INTO {SCHEMA}.probe VALUES (gen_random_uuid()) RETURNING id::text"), &[])
            .await?;
        let id: String = get(&row, 0)?;
        let seen = format!("SELECT 1 FROM {SCHEMA}.probe WHERE id = {}::uuid", literal(&id));
        let began = tokio::time::Instant::now();
        while source.texts(doing, &seen).await?.is_empty() {
            if began.elapsed() > PROBE {
                let why = format!(
                    "a row written on node {} was not seen on node {} within {} s: can {} reach {}, and is its log clean?",
                    spec.target,
                    spec.source,
                    PROBE.as_secs(),
                    spec.source,
                    spec.target
                );
                return Err(permanent(doing, why));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// After the change of owner: the way there ends, clients that are still on the old owner are sent away, and changes of
    /// the new owner begin to be carried back. In this order: both ways at once would send every change round and round.
    pub(super) async fn start_way_back(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        live.comparing = None;
        // Before the old owner is asked, which may be away for long.
        self.spare_owner(live, spec).await?;
        let ends = live.ends(self, spec).await?;
        replication::unsubscribe(&ends.target, &names.subscription(Way::There)).await?;
        for slot in [names.slot(Way::There), names.tracker(Way::There)] {
            replication::drop_slot(&ends.source, &slot).await?;
        }
        replication::unpublish(&ends.source, &names.publication(Way::There)).await?;
        // Triggers that fire on replicated changes have fired on the new owner; what they wrote comes back with the rest.
        let mut opening = schema::held::enabling(&ends.source).await?;
        opening.extend(schema::database::Opening::read(&ends.source).await?.statements(spec.shard.as_str()));
        let mut closing = schema::held::disabling(&ends.source).await?;
        closing.push(format!("ALTER DATABASE {} CONNECTION LIMIT 0", ident(spec.shard.as_str())));
        guard::note_opening(&ends.source, &opening, &closing).await?;
        send_away(&ends.source).await?;
        let back = names.subscription(Way::Back);
        match replication::subscription(&ends.source, &back).await? {
            Some(found) if found.enabled => Ok(()),
            Some(_) => replication::enable(&ends.source, &back).await,
            None => Err(permanent("opening the way back", format!("node {} has no subscription {back}", spec.source))),
        }
    }

    /// How far the old owner is behind the new one; `spec` is that of [`Way::There`].
    pub(super) async fn carry_back(&self, live: &mut Live, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.start_way_back_unless_open(live, spec).await?;
        let ends = live.ends(self, spec).await?;
        self.has_room(&ends.target, spec).await?;
        let Some(applied) = replication::applied(&ends.target, &ends.source, Way::Back, ROUND).await? else {
            let slot = Names::new(&spec.migration).slot(Way::Back);
            let (behind, status) = replication::backlog(&ends.target, &slot).await?;
            if matches!(status.as_str(), "lost" | "missing") {
                let why =
                    format!("slot {slot} on node {} is {status}: the shard can only stay where it is", spec.target);
                return Err(permanent("carrying changes back", why));
            }
            return Ok(Lag { changes: (behind / BYTES_PER_CHANGE).max(FAR), applied: Position(0) });
        };
        let control = guard::control(&ends.target).await?;
        let back = spec.reversed(control.map_or(spec.epoch.next(), |control| control.epoch));
        if live.comparing.is_some() && live.warmed != Some(Way::Back) {
            self.warm(&Ends { source: Arc::clone(&ends.target), target: Arc::clone(&ends.source) }).await;
            live.warmed = Some(Way::Back);
            return Ok(Lag { changes: FAR, applied });
        }
        self.settle(live, &back).await?;
        Ok(Lag { changes: 0, applied })
    }

    async fn start_way_back_unless_open(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        let ends = live.ends(self, spec).await?;
        let back = replication::subscription(&ends.source, &names.subscription(Way::Back)).await?;
        let there = replication::subscription(&ends.target, &names.subscription(Way::There)).await?;
        if back.is_some_and(|found| found.enabled) && there.is_none() {
            return Ok(());
        }
        self.start_way_back(live, spec).await
    }
}

/// Clients that came past the poolers must not go on reading what is no longer up to date.
async fn send_away(source: &Session) -> Result<(), BackendError> {
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity a JOIN pg_roles r ON r.oid = a.usesysid \
               WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid() \
                 AND application_name NOT LIKE 'foreshard %' AND NOT rolsuper";
    source.query("ending connections to the old owner", sql, &[]).await.map(drop)
}

async fn remove_probe(source: &Session, target: &Session, name: &str) -> Result<(), BackendError> {
    replication::unsubscribe(source, name).await?;
    replication::drop_slot(target, name).await?;
    replication::unpublish(target, name).await?;
    for session in [source, target] {
        session.run("removing the probe", &format!("DROP TABLE IF EXISTS {SCHEMA}.probe")).await?;
    }
    Ok(())
}
