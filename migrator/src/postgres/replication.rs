//! Publications, slots and subscriptions. Making one that is there and removing one that is not are both done.

use foreshard_domain::NodeId;
use std::time::Duration;
use tokio_postgres::types::Type;

use super::catalog::Table;
use super::guard::{in_short_transactions, way_name};
use super::names::SCHEMA;
use super::session::{Session, get, ident, literal, qualified};
use crate::{BackendError, Position, Way};

/// How long a walsender or an apply worker may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// A slot waits for running transactions before it exists.
const SLOT_PATIENCE: Duration = Duration::from_secs(300);

/// Publishes the tables, and the marker. The list is explicit: a table that is made later would be published, but nobody on
/// the other side would take it.
pub(super) async fn publish(
    session: &Session,
    name: &str,
    tables: &[Table],
    lock_timeout: Duration,
) -> Result<(), BackendError> {
    let sql = "SELECT 1 FROM pg_publication WHERE pubname = $1";
    if session.maybe("looking for the publication", sql, &[(&name, Type::TEXT)]).await?.is_some() {
        return Ok(());
    }
    let mut list = vec![qualified(SCHEMA, "marker")];
    list.extend(tables.iter().map(|t| format!("ONLY {}", t.sql())));
    let sql = format!(
        "BEGIN; SET LOCAL lock_timeout = '{}ms'; CREATE PUBLICATION {} FOR TABLE {}; COMMIT",
        lock_timeout.as_millis(),
        ident(name),
        list.join(", ")
    );
    in_short_transactions(session, "publishing the tables", &sql).await
}

pub(super) async fn unpublish(session: &Session, name: &str) -> Result<(), BackendError> {
    session.run("removing the publication", &format!("DROP PUBLICATION IF EXISTS {}", ident(name))).await
}

/// Makes a slot in the session's database that nobody reads yet.
pub(super) async fn make_slot(session: &Session, name: &str) -> Result<(), BackendError> {
    // One that somebody is still making has its row already; whoever gave that up gets a new one.
    let sql = "SELECT confirmed_flush_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = $1";
    match session.maybe("looking for the slot", sql, &[(&name, Type::TEXT)]).await? {
        Some(row) if get(&row, 0)? => return Ok(()),
        Some(_) => drop_slot(session, name).await?,
        None => {}
    }
    let sql = "SELECT 1 FROM pg_create_logical_replication_slot($1, 'pgoutput')";
    session.query_within(SLOT_PATIENCE, "making a slot", sql, &[(&name, Type::TEXT)]).await.map(drop)
}

/// Lets a slot that nobody reads yet keep back no more than what is written from now on: where its reader begins is set under
/// the fence, by [`begin_here`].
pub(super) async fn advance_slot(session: &Session, name: &str) -> Result<(), BackendError> {
    let sql = "SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn()) FROM pg_replication_slots \
               WHERE slot_name = $1 AND NOT active AND confirmed_flush_lsn < pg_current_wal_flush_lsn()";
    session.query("letting go of the log", sql, &[(&name, Type::TEXT)]).await.map(drop)
}

/// Drops a slot of this server; a reader of it is ended first.
pub(super) async fn drop_slot(session: &Session, name: &str) -> Result<(), BackendError> {
    let doing = "dropping a slot";
    let began = tokio::time::Instant::now();
    loop {
        let sql = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1";
        let Some(row) = session.maybe(doing, sql, &[(&name, Type::TEXT)]).await? else { return Ok(()) };
        if let Some(pid) = get::<Option<i32>>(&row, 0)? {
            session.query(doing, "SELECT pg_terminate_backend($1, 1000)", &[(&pid, Type::INT4)]).await?;
        }
        let sql =
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1 AND NOT active";
        match session.query(doing, sql, &[(&name, Type::TEXT)]).await {
            Ok(_) => {}
            // A reader that came back in between, or somebody who dropped it first.
            Err(error) if session.is_closed() || began.elapsed() > ENDING => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        if began.elapsed() > ENDING {
            let source = format!("slot {name} is still read after {} s", ENDING.as_secs()).into();
            return Err(BackendError::Transient { doing: doing.to_owned(), source });
        }
    }
}

/// What a subscription reads.
pub(super) struct Feed<'a> {
    /// Name of the subscription, and of its slot.
    pub name: &'a str,
    /// How the other server is reached.
    pub connection: &'a str,
    pub publication: &'a str,
}

/// Subscribes, without copying, to a slot that is there; disabled until [`enable`].
pub(super) async fn subscribe(session: &Session, feed: &Feed<'_>) -> Result<(), BackendError> {
    if subscription(session, feed.name).await?.is_some() {
        return Ok(());
    }
    let sql = format!(
        "CREATE SUBSCRIPTION {name} CONNECTION {connection} PUBLICATION {publication} \
         WITH (slot_name = {name}, create_slot = false, copy_data = false, enabled = false, synchronous_commit = 'off')",
        name = ident(feed.name),
        connection = literal(feed.connection),
        publication = ident(feed.publication)
    );
    session.run_within(Duration::from_secs(60), "subscribing", &sql).await
}

/// A subscription as it stands.
pub(super) struct Subscribed {
    pub oid: u32,
    pub enabled: bool,
}

pub(super) async fn subscription(session: &Session, name: &str) -> Result<Option<Subscribed>, BackendError> {
    let sql = "SELECT oid, subenabled FROM pg_subscription \
               WHERE subname = $1 AND subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let row = session.maybe("looking for the subscription", sql, &[(&name, Type::TEXT)]).await?;
    row.map(|row| Ok(Subscribed { oid: get(&row, 0)?, enabled: get(&row, 1)? })).transpose()
}

pub(super) async fn enable(session: &Session, name: &str) -> Result<(), BackendError> {
    session.run("enabling the subscription", &format!("ALTER SUBSCRIPTION {} ENABLE", ident(name))).await
}

/// Ends a subscription without asking the other server, which may be gone; its slot there is dropped by [`drop_slot`].
pub(super) async fn unsubscribe(session: &Session, name: &str) -> Result<(), BackendError> {
    let doing = "ending the subscription";
    let Some(found) = subscription(session, name).await? else { return Ok(()) };
    let quoted = ident(name);
    if found.enabled {
        session.run(doing, &format!("ALTER SUBSCRIPTION {quoted} DISABLE")).await?;
    }
    session.run(doing, &format!("ALTER SUBSCRIPTION {quoted} SET (slot_name = NONE)")).await?;
    // Dropping it waits for its worker to end.
    session.run(doing, &format!("DROP SUBSCRIPTION {quoted}")).await
}

/// How often applying has failed so far.
pub(super) async fn apply_errors(session: &Session, name: &str) -> Result<i64, BackendError> {
    let sql = "SELECT COALESCE(max(apply_error_count), 0)::bigint FROM pg_stat_subscription_stats WHERE subname = $1";
    get(&session.one("counting apply errors", sql, &[(&name, Type::TEXT)]).await?, 0)
}

/// Moves the marker of a way on, outside a fence, and waits until it has come over. Returns a position up to which everything
/// has been applied then, or `None` if the marker has not come after `patience`.
pub(super) async fn applied(
    source: &Session,
    target: &Session,
    way: Way,
    patience: Duration,
) -> Result<Option<Position>, BackendError> {
    // The position is read before the marker is committed, so whatever was committed before it comes over before the marker.
    let sql = format!(
        "UPDATE {SCHEMA}.marker SET n = n + 1 WHERE way = '{}' \
         RETURNING n, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint",
        way_name(way)
    );
    let row = source.one("moving the marker", &sql, &[]).await?;
    let at = Position(u64::try_from(get::<i64>(&row, 1)?).unwrap_or(0));
    Ok(marker_seen(target, way, get(&row, 0)?, patience).await?.then_some(at))
}

/// Waits until the marker of a way has come over; `false` if it has not after `patience`.
pub(super) async fn marker_seen(session: &Session, way: Way, n: i64, patience: Duration) -> Result<bool, BackendError> {
    let sql = format!("SELECT n FROM {SCHEMA}.marker WHERE way = '{}'", way_name(way));
    let began = tokio::time::Instant::now();
    loop {
        let rows = session.texts("looking for the marker", &sql).await?;
        let seen = rows.first().and_then(|r| r.first()).and_then(|t| t.as_deref()).and_then(|t| t.parse::<i64>().ok());
        if seen.is_some_and(|seen| seen >= n) {
            return Ok(true);
        }
        if began.elapsed() >= patience {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Bytes of log that a slot has not confirmed, and whether the slot can still be read.
pub(super) async fn backlog(session: &Session, slot: &str) -> Result<(u64, String), BackendError> {
    let sql = "SELECT COALESCE(pg_current_wal_insert_lsn() - confirmed_flush_lsn, 0)::bigint, COALESCE(wal_status, 'unknown') \
               FROM pg_replication_slots WHERE slot_name = $1";
    match session.maybe("measuring how far the target is behind", sql, &[(&slot, Type::TEXT)]).await? {
        Some(row) => Ok((u64::try_from(get::<i64>(&row, 0)?).unwrap_or(0), get(&row, 1)?)),
        None => Ok((0, "missing".to_owned())),
    }
}

/// Lets a subscription that has not been enabled yet begin at what `publisher` has written so far: earlier changes are there
/// already. The position is durable when this returns.
pub(super) async fn begin_here(
    subscriber: &Session,
    publisher: &Session,
    name: &str,
    on: &NodeId,
) -> Result<(), BackendError> {
    let doing = "setting where the way back begins";
    let found = subscription(subscriber, name).await?.ok_or_else(|| BackendError::Permanent {
        doing: doing.to_owned(),
        why: format!("node {on} has no subscription {name}"),
    })?;
    let rows = publisher.texts(doing, "SELECT pg_current_wal_insert_lsn()").await?;
    let lsn = rows.first().and_then(|r| r.first()).and_then(Clone::clone).unwrap_or_default();
    // The message makes the commit, which would have nothing to write otherwise, wait for the disk.
    let sql = format!(
        "BEGIN; SET LOCAL synchronous_commit = on; SELECT pg_replication_origin_advance('pg_{}', {}::pg_lsn); \
         SELECT pg_logical_emit_message(true, 'foreshard', ''); COMMIT",
        found.oid,
        literal(&lsn)
    );
    subscriber.texts(doing, &sql).await.map(drop)
}
