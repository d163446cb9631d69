//! What a server says of itself at one time.

use foreshard_domain::{RealTime, Timestamp};
use std::collections::BTreeMap;
use tokio_postgres::types::Type;

use super::machine::{Backend, Usage};
use crate::BackendError;
use crate::postgres::session::{Session, get, qualified};

/// Since this version `pg_stat_io` has all that is written, and the views of 15 have less and less.
const HAS_STAT_IO: i32 = 160_000;

/// Counters of a database since they were last reset.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Counters {
    /// Committed and rolled back.
    pub transactions: u64,
    /// Blocks asked from the operating system.
    pub blocks_read: u64,
    /// Blocks written to temporary files.
    pub temporary_blocks: u64,
    /// Inserted, updated and deleted rows.
    pub rows_changed: u64,
    /// Milliseconds in which sessions executed statements that have ended.
    pub active_ms: f64,
    /// Sessions begun.
    pub sessions: u64,
}

/// A database at one time.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Database {
    /// `None` for what all databases share.
    pub name: Option<String>,
    pub counters: Counters,
    /// When the counters were last reset, in seconds since the epoch.
    pub reset: Option<f64>,
    /// Milliseconds for which the statements that run now have run.
    pub running_ms: f64,
    /// Connected sessions.
    pub backends: u64,
}

/// What a process of the server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role {
    /// Database that it is connected to; 0 if none.
    pub database: u32,
    /// Whether it works for clients, so that its time is in `active_time`.
    pub serves: bool,
}

/// What databases take of storage and of the server's buffers.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Sizes {
    pub at: RealTime,
    /// Stored bytes.
    pub bytes: BTreeMap<u32, f64>,
    /// Bytes of buffers, where `pg_buffercache` is installed.
    pub buffers: Option<BTreeMap<u32, f64>>,
}

/// A server at one time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Sample {
    pub ts: Timestamp,
    pub at: RealTime,
    /// Differs after all counters have been reset, such as by recovery after a crash.
    pub era: String,
    /// By object id: a database that was dropped and made again is another one.
    pub databases: BTreeMap<u32, Database>,
    /// Blocks of data written, and writes of the log.
    pub writes: u64,
    /// Bytes of log.
    pub log_bytes: f64,
    pub roles: BTreeMap<u32, Role>,
    pub sizes: Sizes,
    pub usage: Option<Usage>,
}

/// What a session tells of itself.
pub(super) struct Server {
    pub backend: Backend,
    version: i32,
    block: f64,
}

/// Whom the session belongs to.
pub(super) async fn server(session: &Session) -> Result<Server, BackendError> {
    let sql = "SELECT pg_backend_pid(), extract(epoch FROM clock_timestamp() - a.backend_start)::float8, \
         current_setting('server_version_num')::int, current_setting('block_size')::float8 \
         FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()";
    let row = session.one("looking for the server's processes", sql, &[]).await?;
    let pid = u32::try_from(get::<i32>(&row, 0)?).unwrap_or(0);
    Ok(Server { backend: Backend { pid, age_s: get(&row, 1)? }, version: get(&row, 2)?, block: get(&row, 3)? })
}

/// Reads all counters; [`Sample::sizes`] is given, and [`Sample::usage`] is left open.
pub(super) async fn read(
    session: &Session,
    server: &Server,
    sizes: Sizes,
    now: (Timestamp, RealTime),
) -> Result<Sample, BackendError> {
    let (mut databases, (era, writes, log_bytes)) = (databases(session, server).await?, totals(session, server).await?);
    let sql = "SELECT a.pid, COALESCE(a.datid, 0)::oid, COALESCE(a.backend_type, ''), \
         CASE WHEN a.state IN ('active', 'fastpath function call') AND a.pid <> pg_backend_pid() \
         THEN extract(epoch FROM clock_timestamp() - a.state_change)::float8 * 1000 ELSE 0 END FROM pg_stat_activity a";
    let mut roles = BTreeMap::new();
    for row in session.query("reading what sessions do", sql, &[]).await? {
        let (database, kind): (u32, String) = (get(&row, 1)?, get(&row, 2)?);
        let (serves, timed) = serves(&kind);
        if let Some(of) = databases.get_mut(&database).filter(|_| timed) {
            of.running_ms += get::<f64>(&row, 3)?.max(0.0);
        }
        roles.insert(u32::try_from(get::<i32>(&row, 0)?).unwrap_or(0), Role { database, serves });
    }
    let (ts, at) = now;
    Ok(Sample { ts, at, era, databases, writes, log_bytes, roles, sizes, usage: None })
}

/// Whether a kind of process works for clients, and whether `active_time` counts it by itself.
///
/// Walsenders and autovacuum workers are connected to a database, but `active_time` does not count them.
fn serves(kind: &str) -> (bool, bool) {
    match kind {
        "client backend" => (true, true),
        // Its leader is active as long.
        "parallel worker" => (true, false),
        "logical replication launcher" => (false, false),
        _ => {
            let applies = kind.starts_with("logical replication");
            (applies, applies)
        }
    }
}

async fn databases(session: &Session, server: &Server) -> Result<BTreeMap<u32, Database>, BackendError> {
    let sql = "SELECT s.datid, s.datname::text, s.xact_commit + s.xact_rollback, s.blks_read, \
         s.temp_bytes::float8, s.tup_inserted + s.tup_updated + s.tup_deleted, s.active_time, s.sessions, \
         COALESCE(s.numbackends, 0)::bigint, extract(epoch FROM s.stats_reset)::float8 FROM pg_stat_database s";
    let rows = session.query("reading the databases' counters", sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let count = |column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
            let counters = Counters {
                transactions: count(2)?,
                blocks_read: count(3)?,
                temporary_blocks: (get::<f64>(row, 4)? / server.block) as u64,
                rows_changed: count(5)?,
                active_ms: get(row, 6)?,
                sessions: count(7)?,
            };
            let database =
                Database { name: get(row, 1)?, counters, reset: get(row, 9)?, running_ms: 0.0, backends: count(8)? };
            Ok((get(row, 0)?, database))
        })
        .collect()
}

/// Era, writes and bytes of log of the whole server.
async fn totals(session: &Session, server: &Server) -> Result<(String, u64, f64), BackendError> {
    let written = if server.version >= HAS_STAT_IO {
        "(SELECT sum(COALESCE(i.writes, 0) + COALESCE(i.extends, 0)) FROM pg_stat_io i) \
         + COALESCE((to_jsonb(w) ->> 'wal_write')::bigint, 0)"
    } else {
        "b.buffers_checkpoint + b.buffers_clean + b.buffers_backend + w.wal_write"
    };
    let sql = format!(
        "SELECT concat_ws(' ', b.stats_reset, w.stats_reset), ({written})::bigint, w.wal_bytes::float8 \
         FROM pg_stat_bgwriter b, pg_stat_wal w"
    );
    let row = session.one("reading the server's counters", &sql, &[]).await?;
    Ok((get(&row, 0)?, u64::try_from(get::<i64>(&row, 1)?).unwrap_or(0), get(&row, 2)?))
}

/// Measures all databases.
pub(super) async fn sizes(session: &Session, server: &Server, at: RealTime) -> Result<Sizes, BackendError> {
    // A database that is dropped meanwhile has no size.
    let sql = "SELECT d.oid, COALESCE(pg_database_size(d.oid), 0)::float8 FROM pg_database d";
    let bytes = numbers(session, "measuring the databases", sql).await?;
    let sql = "SELECT n.nspname::text FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace \
               WHERE e.extname = $1";
    let name: (&(dyn tokio_postgres::types::ToSql + Sync), Type) = (&"pg_buffercache", Type::TEXT);
    let buffers = match session.maybe("looking for pg_buffercache", sql, &[name]).await? {
        None => None,
        Some(row) => {
            let view = qualified(get(&row, 0)?, "pg_buffercache");
            let block = server.block;
            let sql = format!(
                "SELECT b.reldatabase, count(*)::float8 * {block} FROM {view} b WHERE b.reldatabase IS NOT NULL \
                 GROUP BY b.reldatabase"
            );
            Some(numbers(session, "counting buffers", &sql).await?)
        }
    };
    Ok(Sizes { at, bytes, buffers })
}

async fn numbers(session: &Session, doing: &str, sql: &str) -> Result<BTreeMap<u32, f64>, BackendError> {
    session.query(doing, sql, &[]).await?.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}
