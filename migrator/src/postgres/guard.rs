//! What refuses writes inside the server: the control row, the guard triggers that read it, and the guard against changes of
//! the schema.
//!
//! # Why a write that the guard let through is never missed
//! A statement takes its lock on the table (`ROW EXCLUSIVE`) before it takes the snapshot by which the guard reads the control
//! row. A writer whose snapshot is older than the fence therefore holds its lock from before the fence until it ends, and
//! [`drained`] waits for every lock that was held when the fence had been committed. Two kinds of writers read the row
//! through an older snapshot and are treated apart: transactions at `REPEATABLE READ` or above read it `FOR SHARE`, which fails
//! if it has changed since their snapshot; and a statement that finds the fence expired reads the newest version of the row
//! `FOR SHARE`, so that it either sees the seal or makes the seal fail.

use foreshard_domain::Epoch;
use std::time::Duration;
use tokio_postgres::types::Type;

use super::catalog;
use super::names::{APPLICATION, GUARD, Names, PREFIX, SCHEMA, TERM_ROLE};
use super::session::{Session, get, ident, literal, sqlstate};
use crate::{BackendError, MoveSpec, Position, SourceState, Way};

/// Tables and functions of a move in the shard's database. `%` has no meaning here; everything is text for one round trip.
fn definitions() -> String {
    format!(
        "CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}.control (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  migration text NOT NULL,
  epoch bigint NOT NULL,
  state text NOT NULL CHECK (state IN ('open', 'fenced', 'sealed', 'importing')),
  fences bigint NOT NULL DEFAULT 0,
  fenced_at timestamptz,
  deadline timestamptz,
  fence_at pg_lsn,
  opening text
);
CREATE TABLE {SCHEMA}.marker (way text PRIMARY KEY, n bigint NOT NULL);
INSERT INTO {SCHEMA}.marker VALUES ('there', 0), ('back', 0);
CREATE TABLE {SCHEMA}.identity (relation text PRIMARY KEY, was text NOT NULL);
CREATE FUNCTION {SCHEMA}.guard() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $guard$
DECLARE
  c {SCHEMA}.control;
BEGIN
  SELECT * INTO c FROM {SCHEMA}.control;
  IF c.state = 'open' AND current_setting('transaction_isolation') IN ('read committed', 'read uncommitted') THEN
    RETURN NULL;
  END IF;
  IF current_setting('session_replication_role') = 'replica' AND EXISTS (SELECT FROM pg_stat_activity
      WHERE pid = pg_backend_pid() AND backend_type = 'logical replication worker') THEN
    RETURN NULL;
  END IF;
  IF c.state = 'importing' AND current_setting('application_name') LIKE {own} THEN
    RETURN NULL;
  END IF;
  SELECT * INTO c FROM {SCHEMA}.control FOR SHARE;
  IF c.state = 'open' OR (c.state = 'fenced' AND clock_timestamp() >= c.deadline) THEN
    RETURN NULL;
  END IF;
  RAISE EXCEPTION 'this database is % here in epoch %, it takes no writes', c.state, c.epoch
    USING ERRCODE = 'object_not_in_prerequisite_state',
      HINT = 'foreshard is moving it, or has moved it to another server: connect through the pooler';
END $guard$;
CREATE FUNCTION {SCHEMA}.refuse_ddl() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $ddl$
BEGIN
  IF session_user LIKE {terms} OR current_setting('application_name') LIKE {own} THEN
    RETURN;
  END IF;
  IF TG_TAG = 'REFRESH MATERIALIZED VIEW' THEN
    RETURN;
  END IF;
  IF TG_EVENT = 'sql_drop' THEN
    IF NOT EXISTS (SELECT FROM pg_event_trigger_dropped_objects() WHERE NOT is_temporary) THEN RETURN; END IF;
  ELSIF NOT EXISTS (SELECT FROM pg_event_trigger_ddl_commands() WHERE schema_name IS DISTINCT FROM 'pg_temp') THEN
    RETURN;
  END IF;
  RAISE EXCEPTION '% is refused while foreshard moves this database', TG_TAG
    USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'wait until the move is over, or cancel it';
END $ddl$;",
        terms = like(TERM_ROLE),
        own = like(APPLICATION),
    )
}

/// A pattern for everything that begins with `text`, as a literal.
fn like(text: &str) -> String {
    literal(&format!("{}%", text.replace('_', "\\_")))
}

/// Makes the move's schema, with the shard in `state`, unless this migration has made it before.
pub(super) async fn install(session: &Session, spec: &MoveSpec, state: &str) -> Result<(), BackendError> {
    if let Some(row) = control(session).await? {
        return if row.migration == spec.migration.as_str() {
            Ok(())
        } else {
            Err(BackendError::Fenced {
                doing: format!("preparing database {} on node {}", session.database(), session.node()),
                why: format!("migration {} has not ended there: finish or undo it first", row.migration),
            })
        };
    }
    let sql = format!(
        "BEGIN; {}; INSERT INTO {SCHEMA}.control (migration, epoch, state) VALUES ({}, {}, {}); COMMIT",
        definitions(),
        literal(spec.migration.as_str()),
        spec.epoch.0,
        literal(state)
    );
    session.run("making the schema foreshard", &sql).await
}

/// Sets the guard on every table that a statement can name. Each table's lock is waited for shortly and asked for again by
/// the driver, so that clients never queue up for long.
pub(super) async fn guard_tables(session: &Session, lock_timeout: Duration) -> Result<(), BackendError> {
    let missing = format!(
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p' AND {} AND NOT EXISTS \
           (SELECT FROM pg_trigger t WHERE t.tgrelid = c.oid AND t.tgname = '{GUARD}' AND t.tgenabled = 'A') ORDER BY 1, 2",
        catalog::NOT_SYSTEM
    );
    for row in session.query("looking for tables without a guard", &missing, &[]).await? {
        let table = super::session::qualified(get(&row, 0)?, get(&row, 1)?);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '{}ms'; DROP TRIGGER IF EXISTS {GUARD} ON {table}; \
             CREATE TRIGGER {GUARD} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {table} \
               FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.guard(); \
             ALTER TABLE ONLY {table} ENABLE ALWAYS TRIGGER {GUARD}; COMMIT",
            lock_timeout.as_millis()
        );
        in_short_transactions(session, &format!("setting the guard on table {table}"), &sql).await?;
    }
    Ok(())
}

/// Runs one transaction that may not get its lock in time, some times.
pub(super) async fn in_short_transactions(session: &Session, doing: &str, sql: &str) -> Result<(), BackendError> {
    /// More than the driver's own retries are worth: a busy table is free for a moment every few milliseconds.
    const TRIES: u32 = 50;
    let mut tries = 0;
    loop {
        let error = match session.run(doing, sql).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        tries += 1;
        if sqlstate(&error) != Some("55P03") || tries >= TRIES {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Refuses changes of the schema to everybody but foreshard.
pub(super) async fn guard_schema(session: &Session, names: &Names) -> Result<(), BackendError> {
    let name = names.ddl_guard();
    for (suffix, event) in [("", "ddl_command_end"), ("_drop", "sql_drop")] {
        let name = format!("{name}{suffix}");
        let sql = "SELECT 1 FROM pg_event_trigger WHERE evtname = $1";
        if session.maybe("looking for the guard of the schema", sql, &[(&name, Type::TEXT)]).await?.is_none() {
            let sql =
                format!("CREATE EVENT TRIGGER {} ON {event} EXECUTE FUNCTION {SCHEMA}.refuse_ddl()", ident(&name));
            session.run("guarding the schema against changes", &sql).await?;
        }
    }
    Ok(())
}

/// Removes guards and the move's schema; nothing happens if there are none.
pub(super) async fn remove(session: &Session, lock_timeout: Duration) -> Result<(), BackendError> {
    let mine = format!(
        "SELECT evtname::text FROM pg_event_trigger WHERE evtname LIKE {} AND evtfoid IN (SELECT p.oid FROM pg_proc p \
         JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = '{SCHEMA}')",
        like(PREFIX)
    );
    for row in session.query("looking for guards of the schema", &mine, &[]).await? {
        let name: String = get(&row, 0)?;
        session
            .run("removing the guard of the schema", &format!("DROP EVENT TRIGGER IF EXISTS {}", ident(&name)))
            .await?;
    }
    let guarded = format!(
        "SELECT n.nspname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.tgname = '{GUARD}' AND NOT t.tgisinternal \
         AND t.tgparentid = 0 ORDER BY 1, 2"
    );
    for row in session.query("looking for guarded tables", &guarded, &[]).await? {
        let table = super::session::qualified(get(&row, 0)?, get(&row, 1)?);
        let sql = format!(
            "BEGIN; SET LOCAL lock_timeout = '{}ms'; DROP TRIGGER IF EXISTS {GUARD} ON {table}; COMMIT",
            lock_timeout.as_millis()
        );
        in_short_transactions(session, &format!("removing the guard from table {table}"), &sql).await?;
    }
    session.run("removing the schema foreshard", &format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")).await
}

/// The control row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Control {
    pub migration: String,
    pub epoch: Epoch,
    /// As stored; an expired fence is still `fenced` here.
    pub state: String,
    /// Whether a fence stands.
    pub fenced: bool,
    pub fence_at: Option<Position>,
    /// Statements that open the database to clients, if they have been noted.
    pub opening: Option<String>,
}

/// The control row, if the move's schema is there.
pub(super) async fn control(session: &Session) -> Result<Option<Control>, BackendError> {
    if !catalog::has_own_schema(session).await? {
        return Ok(None);
    }
    let sql = format!(
        "SELECT migration, epoch, state, state = 'fenced' AND clock_timestamp() < deadline, \
           (fence_at - '0/0'::pg_lsn)::bigint, opening FROM {SCHEMA}.control"
    );
    let Some(row) = session.maybe("reading the control row", &sql, &[]).await? else { return Ok(None) };
    Ok(Some(Control {
        migration: get(&row, 0)?,
        epoch: Epoch(u64::try_from(get::<i64>(&row, 1)?).unwrap_or(0)),
        state: get(&row, 2)?,
        fenced: get::<Option<bool>>(&row, 3)?.unwrap_or(false),
        fence_at: get::<Option<i64>>(&row, 4)?.and_then(|lsn| u64::try_from(lsn).ok()).map(Position),
        opening: get(&row, 5)?,
    }))
}

/// What the source of a move says of itself.
pub(super) fn source_state(control: &Control, spec: &MoveSpec) -> Result<SourceState, BackendError> {
    if control.migration != spec.migration.as_str() || control.epoch != spec.epoch {
        return Err(refused(
            "asking the source for its state",
            format!("it is {} in epoch {} by migration {}", control.state, control.epoch, control.migration),
        ));
    }
    Ok(match control.state.as_str() {
        "sealed" => SourceState::Sealed,
        "fenced" if control.fenced => SourceState::Fenced,
        _ => SourceState::Open,
    })
}

pub(super) fn refused(doing: &str, why: String) -> BackendError {
    BackendError::Fenced { doing: doing.to_owned(), why }
}

/// Why a conditional change of the control row found no row.
pub(super) async fn refusal(session: &Session, doing: &str, spec: &MoveSpec) -> BackendError {
    match control(session).await {
        Err(error) => error,
        Ok(None) => refused(doing, format!("node {} has no control row: it is no source of this move", session.node())),
        Ok(Some(c)) => refused(
            doing,
            format!(
                "node {} is {}{} in epoch {} by migration {}, position {:?}; expected migration {} in epoch {}",
                session.node(),
                c.state,
                if c.state == "fenced" && !c.fenced { " (expired)" } else { "" },
                c.epoch,
                c.migration,
                c.fence_at,
                spec.migration,
                spec.epoch
            ),
        ),
    }
}

/// The condition that the row is this migration's, in its epoch.
fn mine(spec: &MoveSpec) -> String {
    format!("migration = {} AND epoch = {}", literal(spec.migration.as_str()), spec.epoch.0)
}

/// Refuses writes for `lasts` from now by the server's own clock (M7); fencing again moves the deadline.
pub(super) async fn fence(session: &Session, spec: &MoveSpec, lasts: Duration) -> Result<(), BackendError> {
    let doing = "stopping writes";
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{ms}ms'; UPDATE {SCHEMA}.control SET state = 'fenced', fences = fences + 1, \
           fenced_at = clock_timestamp(), deadline = clock_timestamp() + interval '{ms} ms', fence_at = NULL \
         WHERE {mine} AND state IN ('open', 'fenced') RETURNING 1; COMMIT",
        ms = lasts.as_millis().max(1),
        mine = mine(spec)
    );
    match session.texts(doing, &sql).await?.is_empty() {
        false => Ok(()),
        true => Err(refusal(session, doing, spec).await),
    }
}

/// Waits until every transaction that held a lock by which it may write, when the fence had been committed, has ended.
pub(super) async fn drained(session: &Session) -> Result<(), BackendError> {
    let held = format!(
        "SELECT DISTINCT l.virtualtransaction FROM pg_locks l JOIN pg_class c ON c.oid = l.relation \
         JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
         WHERE l.locktype = 'relation' AND l.granted AND c.relkind IN ('r', 'p') \
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
           AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock') \
           AND n.nspname <> 'pg_catalog' AND n.nspname <> '{SCHEMA}' AND l.pid IS DISTINCT FROM pg_backend_pid() \
           AND COALESCE(a.backend_type, 'client backend') NOT IN \
             ('autovacuum worker', 'autovacuum launcher', 'walsender', 'logical replication worker')"
    );
    let read = || async {
        let rows = session.texts("waiting for writers to end", &held).await?;
        Ok::<_, BackendError>(rows.into_iter().filter_map(|mut row| row.pop().flatten()).collect::<Vec<_>>())
    };
    let mut writers = read().await?;
    while !writers.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let now = read().await?;
        writers.retain(|writer| now.contains(writer));
    }
    Ok(())
}

/// Notes where writes have stopped, and moves the marker of `way`: whoever has applied the marker has applied everything
/// before it. Returns the position and the marker's value.
pub(super) async fn mark(session: &Session, spec: &MoveSpec) -> Result<(Position, i64), BackendError> {
    let doing = "marking where writes stopped";
    let sql = format!(
        "WITH stopped AS (UPDATE {SCHEMA}.control SET fence_at = pg_current_wal_insert_lsn() \
           WHERE {} AND state = 'fenced' AND clock_timestamp() < deadline RETURNING fence_at) \
         UPDATE {SCHEMA}.marker SET n = n + 1 FROM stopped WHERE way = '{}' \
         RETURNING (stopped.fence_at - '0/0'::pg_lsn)::bigint, n",
        mine(spec),
        way_name(spec.way)
    );
    let rows = session.texts(doing, &sql).await?;
    let number = |i: usize| {
        rows.first().and_then(|row| row.get(i)).and_then(|t| t.as_deref()).and_then(|t| t.parse::<i64>().ok())
    };
    match (number(0), number(1)) {
        (Some(at), Some(n)) => Ok((Position(u64::try_from(at).unwrap_or(0)), n)),
        _ => Err(refusal(session, doing, spec).await),
    }
}

/// How the marker of a way is called.
pub(super) const fn way_name(way: Way) -> &'static str {
    match way {
        Way::There => "there",
        Way::Back => "back",
    }
}

/// Lifts this migration's fence; nothing happens if there is none.
pub(super) async fn unfence(session: &Session, spec: &MoveSpec) -> Result<(), BackendError> {
    if control(session).await?.is_none() {
        return Ok(());
    }
    let sql = format!(
        "UPDATE {SCHEMA}.control SET state = 'open', deadline = NULL, fence_at = NULL WHERE migration = {} AND state = 'fenced'",
        literal(spec.migration.as_str())
    );
    session.run("lifting the fence", &sql).await
}

/// The point of no return: one transaction, conditional on state, epoch, position and deadline, and durable whatever the
/// server's default is. The row is locked first and judged then: a statement that waited for a writer's `FOR SHARE` would
/// not look at the deadline again.
pub(super) async fn seal(session: &Session, spec: &MoveSpec, proven: Position) -> Result<(), BackendError> {
    let doing = "sealing the source";
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; SELECT 'locked' FROM {SCHEMA}.control FOR UPDATE; \
         UPDATE {SCHEMA}.control SET state = 'sealed' \
         WHERE {} AND (state = 'sealed' OR (state = 'fenced' AND fence_at = '0/0'::pg_lsn + {}::numeric \
           AND fenced_at <= clock_timestamp() AND clock_timestamp() < deadline)) RETURNING 'sealed'; COMMIT",
        mine(spec),
        proven.0
    );
    let rows = session.texts(doing, &sql).await?;
    match rows.iter().flatten().any(|text| text.as_deref() == Some("sealed")) {
        true => Ok(()),
        false => Err(refusal(session, doing, spec).await),
    }
}

/// Notes on the target what it has been proven to hold, by a synchronous commit: everything that was applied before it is on
/// disk then, although subscriptions apply without waiting for it.
pub(super) async fn note_proven(session: &Session, spec: &MoveSpec, proven: Position) -> Result<(), BackendError> {
    let doing = "making what was applied durable";
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; UPDATE {SCHEMA}.control SET fence_at = '0/0'::pg_lsn + {}::numeric \
         WHERE migration = {} AND state IN ('importing', 'sealed') RETURNING 1; COMMIT",
        proven.0,
        literal(spec.migration.as_str())
    );
    match session.texts(doing, &sql).await?.is_empty() {
        false => Ok(()),
        true => Err(refusal(session, doing, spec).await),
    }
}

/// Notes, unless it has been noted before, what opens the database to clients, and closes it; one transaction.
pub(super) async fn note_opening(
    session: &Session,
    opening: &[String],
    closing: &[String],
) -> Result<(), BackendError> {
    if control(session).await?.is_some_and(|c| c.opening.is_some()) {
        return Ok(());
    }
    let sql = format!(
        "BEGIN; UPDATE {SCHEMA}.control SET opening = {}; {}; COMMIT",
        literal(&opening.join("; ")),
        closing.join("; ")
    );
    session.run("closing the database to clients", &sql).await
}

/// The epoch that was last opened here, by which a move that was decided on older knowledge is refused (M2).
pub(super) async fn known_epoch(session: &Session) -> Result<Option<Epoch>, BackendError> {
    let sql = "SELECT current_setting('foreshard.epoch', true)";
    let row = session.one("reading the epoch", sql, &[]).await?;
    Ok(get::<Option<String>>(&row, 0)?.and_then(|t| t.parse().ok()).map(Epoch))
}
