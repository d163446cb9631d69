//! PgBouncer: pausing a database, sending it to another server, resuming it.
//!
//! The console speaks the simple protocol only. A database stays paused when the console's connection ends, so whoever
//! pauses must resume, or the watchdog does.

use foreshard_domain::Epoch;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::pace::Total;
use super::settings::PoolerAddress;
use crate::BackendError;
use crate::cause::with_causes;

/// How long the console may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to a pooler's console.
pub(super) struct Console {
    client: Client,
    name: String,
    pump: tokio::task::JoinHandle<()>,
    /// Whether a command waits for its answer, or was given up while it did: answers are told apart by their order alone.
    waits: AtomicBool,
}

impl Drop for Console {
    fn drop(&mut self) {
        self.pump.abort();
    }
}

/// A database as the pooler knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pooled {
    pub name: String,
    pub host: String,
    pub port: u16,
    pub pool_mode: Option<String>,
    pub paused: bool,
}

fn transient(doing: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BackendError {
    BackendError::Transient { doing, source: source.into() }
}

impl Console {
    pub async fn open(address: &PoolerAddress) -> Result<Self, BackendError> {
        let doing = || format!("connecting to the console of pooler {}", address.name);
        let mut config = Config::new();
        config
            .host(&address.host)
            .port(address.port)
            .user(&address.user)
            .password(&address.password)
            .dbname("pgbouncer")
            .connect_timeout(PATIENCE);
        let connected = tokio::time::timeout(PATIENCE, config.connect(NoTls)).await;
        let (client, connection) = connected.map_err(|e| transient(doing(), e))?.map_err(|e| transient(doing(), e))?;
        let pump = tokio::spawn(async move {
            // Whoever waits for an answer is told how it ended.
            let _ended = connection.await;
        });
        Ok(Self { client, name: address.name.clone(), pump, waits: AtomicBool::new(false) })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is of no more use.
    pub fn is_closed(&self) -> bool {
        self.client.is_closed() || self.waits.load(Ordering::SeqCst)
    }

    async fn ask(&self, doing: &str, command: &str, patience: Duration) -> Result<Vec<SimpleQueryRow>, BackendError> {
        let doing = || format!("{doing} at pooler {}", self.name);
        self.waits.store(true, Ordering::SeqCst);
        let answer = tokio::time::timeout(patience, self.client.simple_query(command)).await;
        self.waits.store(answer.is_err(), Ordering::SeqCst);
        let messages = answer.map_err(|e| transient(doing(), e))?.map_err(|e| transient(doing(), e))?;
        Ok(messages
            .into_iter()
            .filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }

    /// All databases that the pooler has a route for.
    pub async fn databases(&self) -> Result<Vec<Pooled>, BackendError> {
        let rows = self.ask("listing the databases", "SHOW DATABASES", PATIENCE).await?;
        let text = |row: &SimpleQueryRow, name: &str| row.try_get(name).ok().flatten().map(str::to_owned);
        Ok(rows
            .iter()
            .filter_map(|row| {
                Some(Pooled {
                    name: text(row, "name")?,
                    host: text(row, "host").unwrap_or_default(),
                    port: text(row, "port").and_then(|p| p.parse().ok()).unwrap_or(0),
                    pool_mode: text(row, "pool_mode"),
                    paused: text(row, "paused").as_deref() == Some("1"),
                })
            })
            .collect())
    }

    /// How many statements of each database have ended, and how long their clients waited for them in all.
    pub async fn statements(&self) -> Result<Vec<(String, Total)>, BackendError> {
        let rows = self.ask("reading the statistics", "SHOW STATS", PATIENCE).await?;
        let count = |row: &SimpleQueryRow, name: &str| row.try_get(name).ok().flatten()?.parse::<u64>().ok();
        let totals = rows.iter().filter_map(|row| {
            let database = row.try_get("database").ok().flatten()?.to_owned();
            let statements = count(row, "total_query_count")?;
            let micros = count(row, "total_query_time")?.saturating_add(count(row, "total_wait_time")?);
            Some((database, Total { statements, micros }))
        });
        Ok(totals.collect())
    }

    /// The pool mode that holds where a database sets none.
    pub async fn default_pool_mode(&self) -> Result<String, BackendError> {
        let rows = self.ask("reading the configuration", "SHOW CONFIG", PATIENCE).await?;
        let value = |row: &SimpleQueryRow| {
            (row.try_get("key").ok().flatten() == Some("pool_mode"))
                .then(|| row.try_get("value").ok().flatten().map(str::to_owned))
        };
        Ok(rows.iter().find_map(value).flatten().unwrap_or_default())
    }

    async fn pooled(&self, database: &str) -> Result<Option<Pooled>, BackendError> {
        Ok(self.databases().await?.into_iter().find(|d| d.name == database))
    }

    /// Lets the running transactions end and holds back new ones; `patience` is for the former. When it runs out this
    /// console is of no more use, and another one has to resume the database.
    pub async fn pause(&self, database: &str, patience: Duration) -> Result<(), BackendError> {
        let doing = format!("pausing database {database}");
        let Err(error) = self.ask(&doing, &format!("PAUSE {}", super::session::ident(database)), patience).await else {
            return Ok(());
        };
        if self.is_closed() {
            return Err(error);
        }
        match self.pooled(database).await {
            // Paused before, and nothing runs: the console says so as an error.
            Ok(Some(pooled)) if pooled.paused => Ok(()),
            _ => Err(error),
        }
    }

    /// Releases what was held back; nothing happens if the database is not paused, or not known.
    pub async fn resume(&self, database: &str) -> Result<(), BackendError> {
        let doing = format!("resuming database {database}");
        let Err(error) = self.ask(&doing, &format!("RESUME {}", super::session::ident(database)), PATIENCE).await
        else {
            return Ok(());
        };
        match self.pooled(database).await? {
            Some(pooled) if pooled.paused => Err(error),
            _ => Ok(()),
        }
    }

    /// Lets the pooler read its configuration again.
    pub async fn reload(&self) -> Result<(), BackendError> {
        self.ask("reloading the configuration", "RELOAD", PATIENCE).await.map(drop)
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route<'a> {
    pub database: &'a str,
    pub host: &'a str,
    pub port: u16,
    pub epoch: Epoch,
}

/// The comment that carries the epoch of the line after it.
const EPOCH: &str = "; foreshard epoch ";

/// The routes file with one route set; `None` if a route of a higher epoch stands there, which is newer knowledge (M2).
/// Other settings of the database's line (pool size, user, ..) are kept.
pub(super) fn with_route(text: &str, route: &Route<'_>) -> Option<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let at = lines.iter().position(|line| database_of(line) == Some(route.database.to_owned()));
    let mut rest = vec![format!("dbname={}", quoted(route.database))];
    if let Some(at) = at {
        let before = at.checked_sub(1).and_then(|i| lines.get(i)).and_then(|line| line.strip_prefix(EPOCH));
        if let Some(epoch) = before.and_then(|t| t.trim().parse::<u64>().ok()) {
            if epoch > route.epoch.0 {
                return None;
            }
            lines.remove(at - 1);
        }
        let at = lines.iter().position(|line| database_of(line) == Some(route.database.to_owned()))?;
        let line = lines.remove(at);
        let settings = line.split_once('=').map_or("", |(_, settings)| settings);
        let kept: Vec<String> =
            words(settings).into_iter().filter(|w| !w.starts_with("host=") && !w.starts_with("port=")).collect();
        if kept.iter().any(|w| w.starts_with("dbname=")) {
            rest.clear();
        }
        rest.extend(kept);
        insert(&mut lines, at, route, &rest);
    } else {
        let end = lines.len();
        insert(&mut lines, end, route, &rest);
    }
    Some(lines.join("\n") + "\n")
}

fn insert(lines: &mut Vec<String>, at: usize, route: &Route<'_>, rest: &[String]) {
    let line = format!("{} = host={} port={} {}", name_of(route.database), route.host, route.port, rest.join(" "));
    lines.insert(at, line.trim_end().to_owned());
    lines.insert(at, format!("{EPOCH}{}", route.epoch.0));
}

/// The database that a line routes.
fn database_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if line.starts_with([';', '#', '[', '%']) {
        return None;
    }
    if let Some(rest) = line.strip_prefix('"') {
        let end = rest.replace("\"\"", "\0\0").find('"')?;
        return rest.get(..end).map(|name| name.replace("\"\"", "\""));
    }
    line.split_once('=').map(|(name, _)| name.trim().to_owned())
}

fn name_of(database: &str) -> String {
    let plain = database.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.');
    if plain { database.to_owned() } else { format!("\"{}\"", database.replace('"', "\"\"")) }
}

fn quoted(value: &str) -> String {
    let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.');
    if plain { value.to_owned() } else { format!("'{}'", value.replace('\'', "''")) }
}

/// Settings of a line, split at blanks outside quotes.
fn words(settings: &str) -> Vec<String> {
    let (mut all, mut word, mut inside) = (Vec::new(), String::new(), false);
    for c in settings.chars() {
        if c == '\'' {
            inside = !inside;
        }
        if c.is_whitespace() && !inside {
            if !word.is_empty() {
                all.push(std::mem::take(&mut word));
            }
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        all.push(word);
    }
    all
}

/// Sets a route in the file, replacing it atomically.
///
/// # Errors
/// [`BackendError::Fenced`] if the file has a route of a higher epoch; otherwise if it cannot be read or written.
pub(super) fn write_route(path: &Path, route: &Route<'_>) -> Result<(), BackendError> {
    let doing = format!("setting the route of {} in {}", route.database, path.display());
    let io = |doing: &str, e: std::io::Error| transient(doing.to_owned(), e);
    // Moves of other shards, also of other processes, write the same file.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let locked = std::fs::File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    let _locked = locked.map_err(|e| io(&doing, e))?;
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => "[databases]\n".to_owned(),
        Err(e) => return Err(io(&doing, e)),
    };
    let Some(new) = with_route(&text, route) else {
        return Err(BackendError::Fenced {
            doing,
            why: format!("the file has a route of a later epoch than {}", route.epoch),
        });
    };
    if new == text {
        return Ok(());
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let beside = path.with_file_name(name);
    replace(&beside, path, &new).map_err(|e| io(&doing, e))
}

/// Writes beside and renames, with the permissions and the owner of what it replaces, so that the pooler can still read it.
fn replace(beside: &Path, path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    let mut file = std::fs::File::create(beside)?;
    if let Ok(old) = std::fs::metadata(path) {
        file.set_permissions(old.permissions())?;
        if let Err(error) = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())) {
            tracing::warn!(path = %path.display(), error = with_causes(&error), "the routes file changes its owner");
        }
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(database: &str, port: u16, epoch: u64) -> Route<'_> {
        Route { database, host: "10.0.0.1", port, epoch: Epoch(epoch) }
    }

    #[test]
    fn a_route_is_set_and_the_rest_of_the_file_stays() {
        let text = "[databases]\n; by hand\na = host=old port=1 dbname=a pool_size=7 connect_query='select 1'\nother = host=x\n";
        let once = with_route(text, &route("a", 6001, 2)).unwrap();
        assert_eq!(
            once,
            "[databases]\n; by hand\n; foreshard epoch 2\na = host=10.0.0.1 port=6001 dbname=a pool_size=7 \
             connect_query='select 1'\nother = host=x\n"
        );
        assert_eq!(with_route(&once, &route("a", 6001, 2)).unwrap(), once, "twice is once");
        let later = with_route(&once, &route("a", 6002, 3)).unwrap();
        assert!(later.contains("epoch 3\na = host=10.0.0.1 port=6002 dbname=a"), "{later}");
        assert_eq!(with_route(&later, &route("a", 6001, 2)), None, "M2: an older epoch sets no route");
    }

    #[test]
    fn odd_names_are_quoted_and_found_again() {
        for name in ["Shard 7", "a\"b", "dot.ted", "ünï"] {
            let once = with_route("[databases]\n", &route(name, 1, 1)).unwrap();
            let twice = with_route(&once, &route(name, 2, 2)).unwrap();
            assert_eq!(twice.matches("host=").count(), 1, "{twice}");
            assert!(twice.contains("port=2"), "{twice}");
        }
    }

    #[test]
    fn the_file_is_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("routes.ini");
        write_route(&path, &route("a", 1, 1)).unwrap();
        write_route(&path, &route("b", 2, 5)).unwrap();
        assert!(matches!(write_route(&path, &route("b", 3, 4)), Err(BackendError::Fenced { .. })));
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().filter(|l| l.contains("host=")).count(), 2, "{text}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }
}
