//! From the checks to a target that keeps up: preparing, copying, catching up, and completing the target.

use foreshard_domain::Consistency;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Ends, Live, PostgresBackend, fenced, permanent};
use super::catalog::{self, Table};
use super::copy::{CopyBetween, CopyError, SnapshotCopy};
use super::names::{Names, SCHEMA};
use super::pace::Pacer;
use super::replication::{self, Feed};
use super::schema::programs::Programs;
use super::schema::{Dump, DumpFrom, RestoreTo, Stage};
use super::session::{Session, get, literal};
use super::settings::WithoutKey;
use super::{guard, preflight, schema};
use crate::{BackendError, CopyProgress, Lag, MoveSpec, Position, Way};

/// How long a slot may take, which waits for running transactions.
const SNAPSHOT: Duration = Duration::from_secs(600);
/// How long a round of catching up waits for the marker before it says that the target is behind.
const ROUND: Duration = Duration::from_millis(500);
/// Bytes of log that count as one change where only bytes are known.
pub(super) const BYTES_PER_CHANGE: u64 = 128;
/// A distance that is too far for every setting of what is near.
pub(super) const FAR: u64 = 1_000_000;
/// So many failures of applying without an end are no accident.
const APPLY_ERRORS: i64 = 20;

/// Stages of a copy, as its cursor tells them: rows under the snapshot, then keys, then the other indexes.
const ROWS: &str = "rows";
const KEYS: &str = "keys";
const INDEXES: &str = "indexes";
/// What stands between a stage and the position of the snapshot.
const AT: char = '@';

impl PostgresBackend {
    /// Read-only checks; all refusals in one error.
    pub(super) async fn check(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let doing = "checking before the move";
        let source = live.session(self, spec, &spec.source).await?;
        let mut list = self.unfit(spec);
        if let Some(known) = guard::known_epoch(&source).await?
            && known != spec.epoch
        {
            list.push(format!(
                "epoch: node {} was last opened in epoch {known}, the state store says {}; find out who wrote to it since, then \
                 ALTER DATABASE ... SET foreshard.epoch",
                spec.source, spec.epoch
            ));
        }
        if let Some(control) = guard::control(&source).await?
            && control.migration != spec.migration.as_str()
        {
            return Err(fenced(doing, format!("migration {} of this shard has not ended", control.migration)));
        }
        let (source_server, target_server) =
            (self.server(&spec.source, spec).await?, self.server(&spec.target, spec).await?);
        let pool_modes = self.pool_modes(live, spec).await?;
        let sides = preflight::Sides { source: &source, source_server: &source_server, target_server: &target_server };
        let label = Names::new(&spec.migration).application();
        let found = preflight::findings(&sides, &self.settings, &pool_modes, &label).await?;
        let (refusals, warnings): (Vec<_>, Vec<_>) = found.into_iter().partition(|finding| finding.refuses);
        for warning in warnings {
            tracing::warn!(shard = %spec.shard, finding = %warning, "found before a move");
        }
        list.extend(refusals.iter().map(ToString::to_string));
        if list.is_empty() {
            return Ok(());
        }
        Err(permanent(doing, list.join("; ")))
    }

    /// What speaks against a move before anybody is asked.
    fn unfit(&self, spec: &MoveSpec) -> Vec<String> {
        let mut list = Vec::new();
        if spec.consistency != Consistency::Strict {
            list.push(format!("consistency: {:?} is not to be had with PostgreSQL, ask for Strict", spec.consistency));
        }
        if spec.source == spec.target {
            list.push(format!("nodes: {} is both source and target", spec.source));
        }
        list
    }

    /// The pool mode of the shard at each pooler.
    async fn pool_modes(&self, live: &mut Live, spec: &MoveSpec) -> Result<Vec<(String, String)>, BackendError> {
        self.ready_consoles(live).await?;
        let mut modes = Vec::new();
        for (console, pooler) in live.consoles.iter().zip(&self.settings.poolers) {
            let pooled = console.databases().await?.into_iter().find(|d| d.name == spec.shard.as_str());
            let mode = match pooled {
                Some(pooled) => match pooled.pool_mode {
                    Some(mode) => mode,
                    None => console.default_pool_mode().await?,
                },
                None => {
                    return Err(permanent(
                        "checking before the move",
                        format!("pooler {} has no route for {}", pooler.name, spec.shard),
                    ));
                }
            };
            modes.push((pooler.name.clone(), mode));
        }
        Ok(modes)
    }

    /// Guards on the source, an empty closed database with the schema on the target, and the publication.
    pub(super) async fn make_ready(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        let source = live.session(self, spec, &spec.source).await?;
        let guarded = self.guard_source(&source, spec);
        self.outlasting_transactions(spec, guarded).await??;

        let target_server = self.server(&spec.target, spec).await?;
        schema::database::create_database(&source, &target_server, &names).await?;
        let ends = live.ends(self, spec).await?;
        guard::install(&ends.target, spec, "importing").await?;
        self.dump(live, spec, &ends).await?;
        self.restore(live, spec, &ends, None).await
    }

    /// Guards, and the publication: from here on nothing that a client does escapes.
    async fn guard_source(&self, source: &Session, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        guard::install(source, spec, "open").await?;
        guard::guard_schema(source, &names).await?;
        self.identify(source).await?;
        guard::guard_tables(source, self.settings.lock_timeout).await?;
        let tables = catalog::tables(source).await?;
        replication::publish(source, &names.publication(Way::There), &tables, self.settings.lock_timeout).await
    }

    /// Lets the whole row identify rows of tables without a key, if the settings allow it; noted first, so that it is taken
    /// back.
    async fn identify(&self, source: &Session) -> Result<(), BackendError> {
        if self.settings.without_key != WithoutKey::Full {
            return Ok(());
        }
        for table in catalog::tables(source).await?.iter().filter(|t| !t.is_identified()) {
            let sql = format!(
                "INSERT INTO {SCHEMA}.identity VALUES ({}, {}) ON CONFLICT DO NOTHING",
                literal(&table.sql()),
                literal(&table.identity.to_string())
            );
            source.run("noting a changed identity", &sql).await?;
            let sql = format!(
                "BEGIN; SET LOCAL lock_timeout = '{}ms'; ALTER TABLE {} REPLICA IDENTITY FULL; COMMIT",
                self.settings.lock_timeout.as_millis(),
                table.sql()
            );
            guard::in_short_transactions(source, &format!("identifying rows of table {}", table.sql()), &sql).await?;
        }
        Ok(())
    }

    /// The next piece of the copy. A snapshot that is lost, with this process or with its connection, lets the copy begin
    /// again.
    pub(super) async fn copy_piece(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        cursor: Option<&str>,
    ) -> Result<CopyProgress, BackendError> {
        let doing = "copying";
        let (stage, at) = match cursor.map(|cursor| cursor.split_once(AT).unwrap_or((cursor, ""))) {
            None => (ROWS, Position(0)),
            Some((stage, at)) => (stage, Position(at.parse().unwrap_or(0))),
        };
        let done = |next: Option<&str>, snapshot_at: Position, rows, bytes| CopyProgress {
            next: next.map(|stage| format!("{stage}{AT}{}", snapshot_at.0)),
            snapshot_at,
            rows,
            bytes,
        };
        match stage {
            ROWS => {
                let source = live.session(self, spec, &spec.source).await?;
                self.has_room(&source, spec).await?;
                if cursor.is_none() || !live.copy.as_ref().is_some_and(SnapshotCopy::is_alive) {
                    self.begin_copy(live, spec).await?;
                }
                let Some(copy) = live.copy.as_ref() else {
                    return Err(BackendError::Bug { what: "no copy".to_owned() });
                };
                let snapshot_at = Position(copy.at().0);
                let copied = match live.pacer.clone() {
                    Some(pacer) => pacer.during(self, spec, copy.next()).await,
                    None => copy.next().await,
                };
                let piece = match copied {
                    Ok(piece) => piece,
                    Err(CopyError::Failed(error)) => return Err(error),
                    Err(lost @ CopyError::Lost { .. }) => {
                        live.copy = None;
                        return Err(BackendError::Transient { doing: doing.to_owned(), source: Box::new(lost) });
                    }
                };
                let next = if piece.left == 0 {
                    live.copy = None;
                    self.leave_pace(live, spec);
                    KEYS
                } else {
                    ROWS
                };
                Ok(done(Some(next), snapshot_at, piece.rows, piece.bytes))
            }
            KEYS => {
                let ends = live.ends(self, spec).await?;
                self.restore(live, spec, &ends, Some(Stage::Keys)).await?;
                Ok(done(Some(INDEXES), at, 0, 0))
            }
            INDEXES => {
                let ends = live.ends(self, spec).await?;
                self.restore(live, spec, &ends, Some(Stage::Indexes)).await?;
                Ok(done(None, at, 0, 0))
            }
            other => Err(permanent(doing, format!("{other:?} is no place to go on from"))),
        }
    }

    /// A new snapshot and empty tables.
    async fn begin_copy(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        live.copy = None;
        let pacer = Arc::new(Pacer::begin(self, spec).await);
        live.pacer = Some(Arc::clone(&pacer));
        live.comparing = None;
        live.completed = false;
        let ends = live.ends(self, spec).await?;
        replication::unsubscribe(&ends.target, &names.subscription(Way::There)).await?;
        replication::drop_slot(&ends.source, &names.slot(Way::There)).await?;
        let tables = catalog::tables(&ends.source).await?;
        empty(&ends.target, &tables).await?;
        let between = CopyBetween {
            source: self.place(&spec.source).await?,
            target: self.place(&spec.target).await?,
            shard: spec.shard.as_str().to_owned(),
            application: names.application(),
        };
        let slot = names.slot(Way::There);
        let begun = SnapshotCopy::begin(between, &slot, &self.settings, SNAPSHOT);
        match self.outlasting_transactions(spec, begun).await? {
            Ok(copy) => {
                live.copy = Some(copy.at_pace(pacer.pace()));
                all_covered(&ends.source, &names).await
            }
            Err(CopyError::Failed(error)) => Err(error),
            Err(lost) => {
                Err(BackendError::Transient { doing: "beginning the copy".to_owned(), source: Box::new(lost) })
            }
        }
    }

    /// Changes since the snapshot come over; says how far the target is behind. Once it is near for the first time it gets what
    /// it needs beside rows.
    pub(super) async fn keep_up(&self, live: &mut Live, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let doing = "applying changes";
        let names = Names::new(&spec.migration);
        let name = names.subscription(Way::There);
        let ends = live.ends(self, spec).await?;
        match replication::subscription(&ends.target, &name).await? {
            Some(found) if found.enabled => {}
            Some(_) => replication::enable(&ends.target, &name).await?,
            None => {
                let connection = self.peer(&spec.source, spec.shard.as_str())?;
                let publication = names.publication(Way::There);
                let feed = Feed { name: &name, connection: &connection, publication: &publication };
                replication::subscribe(&ends.target, &feed).await?;
                replication::enable(&ends.target, &name).await?;
            }
        }
        let (behind, status) = replication::backlog(&ends.source, &name).await?;
        if matches!(status.as_str(), "lost" | "missing") {
            return Err(permanent(
                doing,
                format!("slot {name} on node {} is {status}: its log is gone, copy again", spec.source),
            ));
        }
        self.has_room(&ends.source, spec).await?;
        let errors = replication::apply_errors(&ends.target, &name).await?;
        if errors > APPLY_ERRORS {
            return Err(permanent(
                doing,
                format!("node {} has failed {errors} times to apply changes; its log says why", spec.target),
            ));
        }
        let far = |applied| Lag { changes: (behind / BYTES_PER_CHANGE).max(FAR), applied };
        let Some(applied) = replication::applied(&ends.source, &ends.target, Way::There, ROUND).await? else {
            return Ok(far(Position(0)));
        };
        if !live.completed {
            self.complete(live, spec, &ends).await?;
            live.completed = true;
            return Ok(far(applied));
        }
        if live.comparing.is_some() && live.warmed != Some(spec.way) {
            self.warm(&ends).await;
            live.warmed = Some(spec.way);
            return Ok(far(applied));
        }
        replication::advance_slot(&ends.target, &names.slot(Way::Back)).await?;
        self.settle(live, spec).await?;
        Ok(Lag { changes: 0, applied })
    }

    /// What the target needs beside rows: foreign keys, triggers, views; guards; statistics; and the way back, closed.
    async fn complete(&self, live: &mut Live, spec: &MoveSpec, ends: &Ends) -> Result<(), BackendError> {
        let names = Names::new(&spec.migration);
        let (source, target) = (ends.source.as_ref(), ends.target.as_ref());
        self.restore(live, spec, ends, Some(Stage::Rest)).await?;
        let mut opening = schema::held::enabling(source).await?;
        opening.extend(schema::database::Opening::read(source).await?.statements(spec.shard.as_str()));
        guard::note_opening(target, &opening, &["SELECT 1".to_owned()]).await?;
        self.carry_identity(source, target).await?;
        target.run_within(Duration::from_secs(3600), "gathering statistics", "ANALYZE").await?;
        guard::guard_schema(target, &names).await?;
        guard::guard_tables(target, self.settings.lock_timeout).await?;
        let tables = catalog::tables(target).await?;
        let (publication, back) = (names.publication(Way::Back), names.slot(Way::Back));
        replication::publish(target, &publication, &tables, self.settings.lock_timeout).await?;
        replication::make_slot(target, &back).await?;
        let connection = self.peer(&spec.target, spec.shard.as_str())?;
        replication::subscribe(source, &Feed { name: &back, connection: &connection, publication: &publication }).await
    }

    /// The dump carries identities that were changed for the move: the target takes them back when the move is finished.
    async fn carry_identity(&self, source: &Session, target: &Session) -> Result<(), BackendError> {
        for row in source
            .query("reading changed identities", &format!("SELECT relation, was FROM {SCHEMA}.identity"), &[])
            .await?
        {
            let (relation, was): (String, String) = (get(&row, 0)?, get(&row, 1)?);
            let sql = format!(
                "INSERT INTO {SCHEMA}.identity VALUES ({}, {}) ON CONFLICT DO NOTHING",
                literal(&relation),
                literal(&was)
            );
            target.run("noting a changed identity", &sql).await?;
        }
        Ok(())
    }

    /// The schema as the source has it, dumped once by this process: it cannot change while the guard stands.
    async fn dump(&self, live: &mut Live, spec: &MoveSpec, ends: &Ends) -> Result<(), BackendError> {
        if live.dump.is_some() {
            return Ok(());
        }
        let row =
            ends.source.one("reading the version", "SELECT current_setting('server_version_num')::int / 10000", &[]);
        let programs = Programs::find(&self.settings.programs, get(&row.await?, 0)?).await?;
        let (place, application) = (self.place(&spec.source).await?, Names::new(&spec.migration).programs());
        let from = DumpFrom { place: &place, source: &ends.source, application: &application, snapshot: None };
        live.dump = Some(Dump::take(programs, &from).await?);
        Ok(())
    }

    /// Restores a stage of the schema on the target: what tables need to take rows if `None`.
    async fn restore(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        ends: &Ends,
        stage: Option<Stage>,
    ) -> Result<(), BackendError> {
        self.dump(live, spec, ends).await?;
        let Some(dump) = live.dump.as_ref() else { return Err(BackendError::Bug { what: "no dump".to_owned() }) };
        let (place, application) = (self.place(&spec.target).await?, Names::new(&spec.migration).programs());
        let to = RestoreTo {
            place: &place,
            target: &ends.target,
            source: &ends.source,
            application: &application,
            jobs: self.settings.copy_connections,
        };
        match stage {
            None => dump.restore_before_data(&to).await,
            Some(stage) => {
                dump.restore_stage(&to, stage).await?;
                if stage == Stage::Rest {
                    dump.fill_views(&ends.source, &ends.target).await?;
                }
                Ok(())
            }
        }
    }
}

/// A table made by a transaction that was open when the guards were set would be copied, but its changes neither stopped
/// nor told. Making the slot has waited for all such transactions, so that now they are seen.
async fn all_covered(source: &Session, names: &Names) -> Result<(), BackendError> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {} AND (\
           NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = '{}' AND t.tgenabled = 'A') \
           OR c.relkind = 'r' AND NOT EXISTS (SELECT FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid \
             WHERE r.prrelid = c.oid AND p.pubname = {})) ORDER BY 1",
        catalog::NOT_SYSTEM,
        super::names::GUARD,
        literal(&names.publication(Way::There))
    );
    let rows = source.texts("looking for tables that were made meanwhile", &sql).await?;
    let missed: Vec<String> = rows.into_iter().filter_map(|mut row| row.pop().flatten()).collect();
    if missed.is_empty() {
        return Ok(());
    }
    let why = format!("tables were made while it began: {}; start it again", missed.join(", "));
    Err(permanent("beginning the copy", why))
}

/// Empties the target's tables for a copy that begins.
async fn empty(target: &Session, tables: &[Table]) -> Result<(), BackendError> {
    // With the rows goes the record of which pieces were written.
    target.run("forgetting what was copied", &format!("DROP TABLE IF EXISTS {SCHEMA}.copied")).await?;
    let list: Vec<String> = tables.iter().map(|t| format!("ONLY {}", t.sql())).collect();
    if list.is_empty() {
        return Ok(());
    }
    target.run_within(Duration::from_secs(600), "emptying the tables", &format!("TRUNCATE {}", list.join(", "))).await
}
