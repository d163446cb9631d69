//! Where the servers and poolers are, and how moves are carried out on them.

mod prometheus;

use foreshard_domain::NodeId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub(crate) use prometheus::INSTANCE;
pub use prometheus::{PrometheusSettings, PrometheusUrl, PrometheusUrlError};

/// The PostgreSQL backend's settings.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PostgresSettings {
    /// The servers, by node. A shard is a database on one of them, under the same name on each.
    pub nodes: BTreeMap<NodeId, ServerAddress>,
    /// All poolers that clients come through; every one of them is paused under a fence.
    pub poolers: Vec<PoolerAddress>,
    /// Folder of `pg_dump` and `pg_restore`; empty: what the search path and Debian's folders have for the servers' version.
    pub programs: PathBuf,
    /// Connections that copy, and that build indexes, at once for each move.
    pub copy_connections: usize,
    /// Bytes of a table copied in one piece, at least one page.
    pub copy_piece_bytes: u64,
    /// Most bytes copied, or compared, per real second by one move; no limit if left out.
    pub copy_bytes_per_s: Option<f64>,
    /// How much clients and standbys may feel of copies and comparisons.
    pub pace: PaceSettings,
    /// Rows of one compared range.
    pub range_rows: u64,
    /// Longest wait for a lock on a table that clients use: they queue up behind it.
    #[serde(with = "humantime_serde")]
    pub lock_timeout: Duration,
    /// What is done about transactions that are older than a move can wait for.
    pub long_transactions: LongTransactions,
    /// What is done about tables that have no key.
    pub without_key: WithoutKey,
    /// Share of the target's free room that a shard may take at most.
    pub disk_share: f64,
    /// Bytes of log that a node may keep back for a move: before the seal the move is given up beyond it, after it the way back.
    pub wal_limit_bytes: u64,
    /// How many transactions old the oldest snapshot may be that a move holds on a node: no row that was deleted since can be
    /// cleaned up there. Beyond it the same happens as beyond `wal_limit_bytes`.
    pub horizon_limit: u32,
    /// Share of the new owner's `shared_buffers` that is filled before the fence with what clients read most; 0: nothing is.
    pub warm_share: f64,
    /// Program and arguments that must succeed before the old owner's copy is dropped, such as one that makes a backup of the
    /// new owner or looks that there is one; none if empty. Gets `PGHOST`, `PGPORT`, `PGUSER`, `PGPASSWORD` and `PGDATABASE`
    /// of the new owner, and `FORESHARD_MIGRATION`, `FORESHARD_SHARD`, `FORESHARD_NODE`.
    pub backup_hook: Vec<String>,
    /// How long that may take.
    #[serde(with = "humantime_serde")]
    pub backup_timeout: Duration,
    /// Where CPU and memory of machines are read that servers elsewhere run on; of servers on this machine they are known.
    pub prometheus: PrometheusSettings,
}

impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (nodes, poolers) = (&self.nodes, &self.poolers);
        f.debug_struct("PostgresSettings").field("nodes", nodes).field("poolers", poolers).finish_non_exhaustive()
    }
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            nodes: BTreeMap::new(),
            poolers: Vec::new(),
            programs: PathBuf::new(),
            copy_connections: 2,
            copy_piece_bytes: 16 << 20,
            copy_bytes_per_s: None,
            pace: PaceSettings::default(),
            range_rows: 10_000,
            lock_timeout: Duration::from_millis(200),
            long_transactions: LongTransactions::Wait,
            without_key: WithoutKey::Refuse,
            disk_share: 0.75,
            wal_limit_bytes: 8 << 30,
            // Well before the server itself begins to force old rows out (autovacuum_freeze_max_age).
            horizon_limit: 100_000_000,
            warm_share: 0.5,
            backup_hook: Vec::new(),
            backup_timeout: Duration::from_secs(1800),
            prometheus: PrometheusSettings::default(),
        }
    }
}

/// How much clients and standbys may feel of copies and comparisons. The pace is set twice a second by what the poolers and the
/// servers tell; where nobody asks anything, only the caps hold.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PaceSettings {
    /// Clients' statements may take so many times what they take at rest, on source and target: in the mean of two seconds, or of
    /// as many more (20 at most) as it takes to see 20 statements, less what chance can make of the mean of so few.
    pub latency_factor: f64,
    /// Standbys and other readers of a log, of source and target, may be later by so long than when the copy began.
    #[serde(with = "humantime_serde")]
    pub lag_limit: Duration,
    /// Least bytes per real second of one move, whatever clients feel; a cap that is lower holds.
    pub floor_bytes_per_s: f64,
    /// Most bytes per real second of all moves that read from or write to one node; no limit if left out.
    pub node_bytes_per_s: Option<f64>,
    /// Most bytes per real second of all moves; no limit if left out.
    pub total_bytes_per_s: Option<f64>,
}

impl Default for PaceSettings {
    fn default() -> Self {
        Self {
            latency_factor: 1.25,
            lag_limit: Duration::from_secs(5),
            floor_bytes_per_s: 2e6,
            node_bytes_per_s: None,
            total_bytes_per_s: None,
        }
    }
}

/// How a server is reached.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerAddress {
    /// Host name, address, or folder of a Unix socket, as this process reaches it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// A superuser: subscriptions and event triggers need one on PostgreSQL 15. It serves to make and end the role of each leader
    /// term; the work is done by that role.
    pub user: String,
    /// Its password.
    #[serde(default)]
    pub password: String,
    /// Host as the other servers and the poolers reach it; `host` if left out.
    #[serde(default)]
    pub peer_host: Option<String>,
    /// Port as the other servers and the poolers reach it; `port` if left out.
    #[serde(default)]
    pub peer_port: Option<u16>,
    /// The database to log in to when the shard's own cannot be used.
    #[serde(default = "maintenance_database")]
    pub database: String,
    /// What it runs on, as far as that is not to be found out.
    #[serde(default)]
    pub machine: Machine,
}

/// What a server runs on, for its load in units of the reference node. Numbers that are not positive and finite count as
/// left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Machine {
    /// Processor cores that all busy are 100 % of its CPU; those of the machine if left out.
    pub cores: Option<f64>,
    /// Its whole CPU relative to that of the reference node: measured utilisation times this is load.
    pub speed: f64,
    /// Bytes of memory that are a memory load of 100, the reference node's; those of the machine if left out.
    pub memory_bytes: Option<f64>,
}

impl Default for Machine {
    fn default() -> Self {
        Self { cores: None, speed: 1.0, memory_bytes: None }
    }
}

fn maintenance_database() -> String {
    "postgres".to_owned()
}

impl Default for ServerAddress {
    fn default() -> Self {
        Self {
            host: "localhost".to_owned(),
            port: 5432,
            user: "postgres".to_owned(),
            password: String::new(),
            peer_host: None,
            peer_port: None,
            database: maintenance_database(),
            machine: Machine::default(),
        }
    }
}

impl ServerAddress {
    /// Host and port as the other servers and the poolers reach it.
    pub fn peer(&self) -> (&str, u16) {
        (self.peer_host.as_deref().unwrap_or(&self.host), self.peer_port.unwrap_or(self.port))
    }
}

impl fmt::Debug for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

/// How a PgBouncer is reached and routed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolerAddress {
    /// Its name in messages.
    pub name: String,
    /// Host of its console.
    pub host: String,
    /// Port of its console.
    pub port: u16,
    /// A user of `admin_users`.
    pub user: String,
    /// Its password.
    #[serde(default)]
    pub password: String,
    /// The file of `[databases]` lines that its configuration includes by `%include`; foreshard rewrites the lines of shards.
    pub routes: PathBuf,
}

impl fmt::Debug for PoolerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pooler {} ({}@{}:{}, {})", self.name, self.user, self.host, self.port, self.routes.display())
    }
}

/// What is done about transactions that are older than a move can wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongTransactions {
    /// The move waits: fences are given up and tried again.
    Wait,
    /// The move is refused while there is one.
    Refuse {
        /// Older than this is too long.
        #[serde(with = "humantime_serde")]
        after: Duration,
    },
    /// They are ended.
    End {
        /// Older than this is too long.
        #[serde(with = "humantime_serde")]
        after: Duration,
    },
}

/// What is done about tables that have no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WithoutKey {
    /// The move is refused.
    Refuse,
    /// The whole row identifies a row while the move lasts (`REPLICA IDENTITY FULL`); each change reads the table on the
    /// target.
    Full,
}
