//! What the poolers and the servers tell of clients and of readers of the logs.

use foreshard_domain::NodeId;
use futures::future::join_all;
use std::collections::BTreeMap;
use tokio::time::Instant;
use tokio_postgres::types::Type;

use super::clients::{Total, Totals};
use crate::postgres::backend::PostgresBackend;
use crate::postgres::names::{APPLICATION, Names, PREFIX};
use crate::postgres::pooler::Console;
use crate::postgres::replication;
use crate::postgres::session::{Session, get};
use crate::{BackendError, MoveSpec};

/// Where databases are routed to is looked at again after so many looks.
const ROUTES_FOR: u32 = 20;
/// Commits of our own by which a node is judged if no pooler answers, in each look.
const PROBES: u64 = 3;
/// Bytes of log after which it counts that a reader says nothing.
const FAR_BEHIND: u64 = 4 << 20;
/// Replication connections of moves: those of subscriptions bear the subscriptions' names.
const OURS: [&str; 2] = [APPLICATION, PREFIX];

/// What one look has found.
#[derive(Debug, Default)]
pub(super) struct Looks {
    pub databases: Totals,
    /// How much later than when it was first seen the latest reader of either server's log is, in seconds.
    pub lag_s: f64,
    /// Bytes that our slot on the source keeps back.
    pub backlog: u64,
}

/// Connections to look by, and what they were told before.
#[derive(Default)]
pub(super) struct Looker {
    consoles: BTreeMap<String, Console>,
    sessions: BTreeMap<NodeId, Session>,
    /// By pooler and database.
    routes: BTreeMap<(String, String), NodeId>,
    looks: u32,
    /// How late each reader was when it was first seen: one that is late on purpose is no sign of anything.
    usual_lag: BTreeMap<(NodeId, i32), f64>,
    probed: BTreeMap<NodeId, Total>,
}

impl Looker {
    /// Looks once.
    ///
    /// # Errors
    /// If neither server answers. Poolers that do not are passed over.
    pub async fn look(&mut self, backend: &PostgresBackend, spec: &MoveSpec) -> Result<Looks, BackendError> {
        let (poolers, answered) = self.poolers(backend, spec).await;
        let mut looks = Looks { databases: poolers, ..Looks::default() };
        let nodes = [&spec.source, &spec.target];
        self.sessions.retain(|_, session| !session.is_closed());
        for node in nodes {
            if !self.sessions.contains_key(node) {
                let session = backend.server(node, spec).await?;
                self.sessions.insert(node.clone(), session);
            }
        }
        for node in nodes {
            let Some(session) = self.sessions.get(node) else { continue };
            let mut seen = Vec::new();
            for (reader, lag_s) in lags(session).await? {
                let usual = self.usual_lag.entry((node.clone(), reader)).or_insert(lag_s);
                *usual = usual.min(lag_s);
                looks.lag_s = looks.lag_s.max(lag_s - *usual);
                seen.push(reader);
            }
            self.usual_lag.retain(|(of, reader), _| of != node || seen.contains(reader));
            if node == &spec.source {
                let slot = Names::new(&spec.migration).slot(spec.way);
                looks.backlog = replication::backlog(session, &slot).await?.0;
            }
            if !answered {
                let total = self.probed.entry(node.clone()).or_insert(Total { statements: 0, micros: 0 });
                probe(session, total).await?;
                looks.databases.insert((String::new(), node.to_string()), (node.clone(), *total));
            }
        }
        Ok(looks)
    }

    /// Counters of all databases on source and target, and whether every pooler has answered.
    async fn poolers(&mut self, backend: &PostgresBackend, spec: &MoveSpec) -> (Totals, bool) {
        let mut totals = Totals::new();
        let with_routes = self.looks.is_multiple_of(ROUTES_FOR);
        self.looks = self.looks.wrapping_add(1);
        let asked = backend.settings.poolers.iter().map(|pooler| {
            let console = self.consoles.remove(&pooler.name).filter(|console| !console.is_closed());
            async move {
                let console = match console {
                    Some(console) => console,
                    None => Console::open(pooler).await?,
                };
                let databases = if with_routes { Some(console.databases().await?) } else { None };
                let statements = console.statements().await?;
                Ok::<_, BackendError>((console, databases, statements))
            }
        });
        let answers = join_all(asked).await;
        let mut answered = !answers.is_empty();
        for answer in answers {
            let Ok((console, databases, statements)) = answer else {
                answered = false;
                continue;
            };
            let pooler = console.name().to_owned();
            for pooled in databases.into_iter().flatten() {
                let at = (pooled.host.as_str(), pooled.port);
                let nodes = backend.settings.nodes.iter();
                let node = nodes.filter(|(_, address)| address.peer() == at).map(|(node, _)| node.clone()).next();
                let key = (pooler.clone(), pooled.name);
                match node {
                    Some(node) => drop(self.routes.insert(key, node)),
                    None => drop(self.routes.remove(&key)),
                }
            }
            for (database, total) in statements {
                let key = (pooler.clone(), database);
                if let Some(node) = self.routes.get(&key).filter(|node| **node == spec.source || **node == spec.target)
                {
                    totals.insert(key, (node.clone(), total));
                }
            }
            self.consoles.insert(pooler, console);
        }
        (totals, answered)
    }
}

/// How late each reader of the server's log is with what it has confirmed, in seconds, by process; without moves' own. One that
/// has nothing to do is not late; one that is far behind and says nothing is as late as it is silent.
async fn lags(session: &Session) -> Result<Vec<(i32, f64)>, BackendError> {
    let sql = format!(
        "SELECT pid, GREATEST(EXTRACT(epoch FROM replay_lag), CASE WHEN pg_current_wal_lsn() \
           - COALESCE(replay_lsn, flush_lsn, write_lsn) > {FAR_BEHIND} \
           THEN EXTRACT(epoch FROM clock_timestamp() - reply_time) END, 0)::float8 \
         FROM pg_stat_replication WHERE state IN ('streaming', 'catchup') \
           AND NOT (starts_with(application_name, $1) OR starts_with(application_name, $2))"
    );
    let [ours, subscriptions] = OURS;
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&ours, Type::TEXT), (&subscriptions, Type::TEXT)];
    let rows = session.query("looking how late standbys are", &sql, &parameters).await?;
    rows.iter().map(|row| Ok((get(row, 0)?, get(row, 1)?))).collect()
}

/// Times commits that write nothing but a message to the log, which nobody reads: they wait for what clients' commits wait for.
async fn probe(session: &Session, total: &mut Total) -> Result<(), BackendError> {
    for _ in 0..PROBES {
        let began = Instant::now();
        session.run("timing a commit", "SELECT pg_logical_emit_message(true, 'foreshard', '')").await?;
        total.statements += 1;
        total.micros += u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::test_pair::TestPair;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_of_the_log_that_stands_still_is_late_and_those_of_moves_are_not() {
        let Some(pair) = TestPair::own() else { return };
        let session = pair.on_source("postgres").await;
        let place = pair.source_place();
        let folder = tempfile::tempdir().unwrap();
        let mut readers: Vec<_> = ["a_standby", "fs_0123_there"]
            .iter()
            .map(|name| {
                let mut command = Command::new("/usr/lib/postgresql/15/bin/pg_recvlogical");
                command.env("PGAPPNAME", name).args(["-h", &place.address.host, "-U", &place.login.user, "-s", "1"]);
                command.args([
                    "-p",
                    &place.address.port.to_string(),
                    "-d",
                    "postgres",
                    "-S",
                    name,
                    "-P",
                    "test_decoding",
                ]);
                command.args(["--create-slot", "--start", "-f"]).arg(folder.path().join(name));
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        let seen = async |late: f64| {
            let looks = async {
                loop {
                    // Writes a few megabytes each time, so that there is something to be late with.
                    let sql = "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 65536))) \
                               FROM generate_series(1, 48)";
                    session.run("writing", sql).await.unwrap();
                    let lags = lags(&session).await.unwrap();
                    assert!(lags.len() < 2, "{lags:?}: one belongs to a move");
                    if lags.iter().any(|(_, lag_s)| *lag_s >= late) {
                        return lags;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), looks).await.unwrap()
        };
        seen(0.0).await;
        // Of a reader that has never said anything nothing is known.
        let silent = "SELECT FROM pg_stat_replication WHERE flush_lsn IS NULL";
        while !session.texts("looking", silent).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for reader in &readers {
            signal(reader.id(), "STOP");
        }
        seen(2.0).await;
        for reader in &mut readers {
            reader.kill().unwrap();
            reader.wait().unwrap();
        }
    }

    fn signal(pid: u32, name: &str) {
        assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
    }

    #[tokio::test]
    async fn a_commit_of_our_own_is_timed() {
        let Some(pair) = TestPair::shared() else { return };
        let mut total = Total { statements: 0, micros: 0 };
        probe(&pair.on_source("postgres").await, &mut total).await.unwrap();
        assert!(total.statements == PROBES && total.micros > 0, "{total:?}");
    }
}
