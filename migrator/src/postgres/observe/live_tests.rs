//! Observing a real server on this machine.

use super::machine::{Backend, Usage};
use super::prometheus::tests::{Reply, serve};
use super::*;
use crate::postgres::session::Login;
use crate::postgres::settings::{PrometheusSettings, ServerAddress};
use foreshard_domain::SystemClock;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const USER: &str = "admin";
/// How long anything may take to appear on a loaded machine.
const LONG: Duration = Duration::from_secs(60);

/// A server in a folder of its own. The test's own thread must start it: its end kills the server if nothing else does.
struct Server {
    folder: TempDir,
    port: u16,
    child: Child,
}

fn as_server(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    // PostgreSQL refuses to run as root.
    if std::fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(Path::new(BIN).join(program));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

impl Server {
    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("foreshard-observe-").tempdir().unwrap();
        if folder.path().metadata().unwrap().uid() == 0 {
            assert!(Command::new("chown").arg("postgres:").arg(folder.path()).status().unwrap().success());
        }
        let data = folder.path().join("data");
        let mut initdb = as_server("initdb");
        initdb.args(["--auth=trust", "--no-sync", "-U", USER, "-D"]).arg(&data).current_dir(folder.path());
        assert!(initdb.status().unwrap().success());
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Self::spawn(&folder, port);
        let server = Self { folder, port, child };
        server.ready().await;
        server
    }

    fn spawn(folder: &TempDir, port: u16) -> Child {
        let mut command = as_server("postgres");
        command.arg("-D").arg(folder.path().join("data")).current_dir(folder.path());
        let settings = ["fsync=off", "listen_addresses=127.0.0.1", "unix_socket_directories=", "autovacuum=off"];
        for setting in settings.iter().map(ToString::to_string).chain([format!("port={port}")]) {
            command.args(["-c", &setting]);
        }
        command.spawn().unwrap()
    }

    fn address(&self) -> ServerAddress {
        ServerAddress {
            host: "127.0.0.1".to_owned(),
            port: self.port,
            user: USER.to_owned(),
            password: String::new(),
            peer_host: None,
            peer_port: None,
            database: "postgres".to_owned(),
            machine: Machine::default(),
        }
    }

    async fn open(&self, database: &str) -> Result<Session, BackendError> {
        let login = Login { user: USER.to_owned(), password: String::new() };
        Session::open(&node("n"), &self.address(), &login, database, "foreshard test").await
    }

    async fn ready(&self) {
        let opened = async {
            while self.open("postgres").await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LONG, opened).await.unwrap();
    }

    fn stop(&mut self, mode: &str) {
        let mut stop = as_server("pg_ctl");
        stop.args(["stop", "-w", "-m", mode, "-D"])
            .arg(self.folder.path().join("data"))
            .current_dir(self.folder.path());
        let stopped = stop.status();
        if !stopped.is_ok_and(|status| status.success()) {
            let _gone = self.child.kill();
        }
        let _status = self.child.wait();
    }

    async fn restart(&mut self, mode: &str) {
        self.stop(mode);
        self.child = Self::spawn(&self.folder, self.port);
        self.ready().await;
    }

    /// A load of short statements, so many a second.
    fn load(&self, database: &str, rate: u32, seconds: u32) -> Child {
        // One each: a load that begins must not find the file cut off by the next one that writes it.
        let script = self.folder.path().join(format!("load-{database}.sql"));
        std::fs::write(&script, "SELECT count(*) FROM generate_series(1, 4000);\n").unwrap();
        let mut bench = as_server("pgbench");
        bench.args(["-n", "-c1", "-h127.0.0.1", "-U", USER]).arg(format!("-p{}", self.port));
        bench.arg(format!("-T{seconds}")).arg(format!("-R{rate}")).arg("-f").arg(&script).arg(database);
        bench.spawn().unwrap()
    }

    fn observer(&self) -> Observer {
        self.observer_with(PrometheusSettings::default())
    }

    fn observer_with(&self, prometheus: PrometheusSettings) -> Observer {
        let nodes = BTreeMap::from([(node("n"), self.address())]);
        Observer::new(&PostgresSettings { nodes, prometheus, ..PostgresSettings::default() }, Arc::new(SystemClock))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop("immediate");
    }
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn shard(name: &str) -> ShardId {
    ShardId::new(name).unwrap()
}

async fn observe(observer: &Observer, session: &Session) -> BTreeMap<String, Observation> {
    let shards = ["a", "b", "c"].map(|name| (shard(name), node("n")));
    let rows = observer.observe(BTreeMap::from([(node("n"), Ok(session))]), &shards).await.unwrap();
    rows.into_iter().map(|row| (row.shard.to_string(), row)).collect()
}

async fn usage(session: &Session) -> Usage {
    let Backend { pid, age_s } = sample::server(session).await.unwrap().backend;
    LocalProcesses::default().usage(&node("n"), Backend { pid, age_s }).await.unwrap()
}

async fn waited(mut child: Child) {
    let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(status.success());
}

fn share(part: &Observation, rows: &BTreeMap<String, Observation>) -> f64 {
    let all: f64 = ["a", "b", "c"].iter().map(|name| rows[*name].cpu_util.unwrap()).sum();
    part.cpu_util.unwrap() / all * 100.0
}

#[tokio::test]
async fn three_databases_are_told_apart() {
    let server = Server::start().await;
    let session = server.open("postgres").await.unwrap();
    for name in ["a", "b", "c"] {
        session.run("making a database", &format!("CREATE DATABASE {name}")).await.unwrap();
    }
    let observer = server.observer();
    let (first, started) = (usage(&session).await, SystemClock.real());
    assert!(observe(&observer, &session).await.is_empty(), "nothing to compare with");
    let loads = [("a", 30), ("b", 60), ("c", 120)].map(|(name, rate)| server.load(name, rate, 8));
    for load in loads {
        waited(load).await;
    }
    let rows = observe(&observer, &session).await;
    let (last, seconds) = (usage(&session).await, SystemClock.real().since(started).as_secs_f64());
    assert_eq!(rows.len(), 4);
    for (name, part) in [("a", 1.0), ("b", 2.0), ("c", 4.0)] {
        let (found, expected) = (share(&rows[name], &rows), part / 7.0 * 100.0);
        assert!((found - expected).abs() < 10.0, "{name}: {found} % of the CPU instead of {expected} %");
        let rate = rows[name].txn_rate.unwrap() * seconds / 8.0;
        assert!((rate / (30.0 * part) - 1.0).abs() < 0.3, "{name}: {rate} transactions a second");
        assert!(rows[name].latency_ms.unwrap() > 0.0 && rows[name].data_bytes.unwrap() > 1e6);
    }
    // The node's own numbers, read before and after, enclose what was told.
    let told: f64 = rows.values().map(|row| row.cpu_util.unwrap()).sum();
    let cpu_s = told / 100.0 * last.cores * seconds;
    let taken = last.cpu_s - first.cpu_s;
    assert!((cpu_s - taken).abs() <= 0.1 + 0.1 * taken, "{cpu_s} s of CPU were told, {taken} s were taken");
    let memory: f64 = rows.values().map(|row| row.mem_util.unwrap()).sum();
    let expected = last.memory() / last.memory_bytes * 100.0;
    assert!((memory - expected).abs() < 0.2 * expected, "{memory} % of memory instead of {expected} %");
    assert!(rows.values().all(|row| row.io_ops.unwrap() >= 0.0));
    // A statement that still runs counts while it runs.
    let busy = server.open("b").await.unwrap();
    let pid = busy.texts("asking", "SELECT pg_backend_pid()").await.unwrap()[0][0].clone().unwrap();
    let endless =
        tokio::spawn(async move { busy.run("working", "SELECT count(*) FROM generate_series(1, 1e15)").await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    observe(&observer, &session).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let rows = observe(&observer, &session).await;
    session.run("ending it", &format!("SELECT pg_terminate_backend({pid})")).await.unwrap();
    assert!(endless.await.unwrap().is_err());
    assert!(share(&rows["b"], &rows) > 90.0, "{rows:?}");
    assert!(rows["b"].cpu_util.unwrap() > 2.0 * rows["@node/n"].cpu_util.unwrap(), "{rows:?}");
}

#[tokio::test]
async fn resets_restarts_and_new_databases_leave_gaps() {
    let mut server = Server::start().await;
    let mut session = server.open("postgres").await.unwrap();
    session.run("making a database", "CREATE DATABASE a").await.unwrap();
    session.run("making an extension", "CREATE EXTENSION pg_buffercache SCHEMA public").await.unwrap();
    let observer = server.observer();
    observe(&observer, &session).await;
    session.run("making a database", "CREATE DATABASE b").await.unwrap();
    let rows = observe(&observer, &session).await;
    assert_eq!(rows.keys().map(String::as_str).collect::<Vec<_>>(), ["@node/n", "a"], "b was not there all the time");
    let work = server.open("b").await.unwrap();
    work.run("writing", "CREATE TABLE public.t AS SELECT generate_series(1, 200000) i").await.unwrap();
    work.run("telling it", "SELECT pg_stat_force_next_flush()").await.unwrap();
    drop(work);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let rows = observe(&observer, &session).await;
    let told = |row: &Observation| (row.cpu_util.is_some(), row.io_ops.is_some(), row.txn_rate.is_some());
    assert_eq!((told(&rows["a"]), told(&rows["b"])), ((true, true, true), (true, true, true)));
    assert!(rows["b"].write_bytes_per_s.unwrap() > 1e6 && rows["a"].write_bytes_per_s.unwrap() < 1e5, "{rows:?}");

    server.open("b").await.unwrap().run("resetting", "SELECT pg_stat_reset()").await.unwrap();
    let rows = observe(&observer, &session).await;
    assert_eq!((told(&rows["a"]), told(&rows["b"])), ((false, false, true), (false, false, false)));
    assert_eq!(told(&rows["@node/n"]), (false, false, false), "nor is the residual known");
    assert!(rows.values().all(|row| row.mem_util.is_some()));
    assert_eq!(told(&observe(&observer, &session).await["b"]), (true, true, true));

    // A stopped server keeps its counters, but its processes begin at zero.
    server.restart("fast").await;
    let gone = BTreeMap::from([(node("n"), Ok(&session))]);
    assert!(observer.observe(gone, &[]).await.is_err(), "the connection is gone");
    session = server.open("postgres").await.unwrap();
    assert_eq!(told(&observe(&observer, &session).await["a"]), (false, true, true));
    // One that crashed has lost them.
    server.restart("immediate").await;
    session = server.open("postgres").await.unwrap();
    assert_eq!(told(&observe(&observer, &session).await["a"]), (false, false, false));
    assert_eq!(told(&observe(&observer, &session).await["a"]), (true, true, true));

    // One server away does not hide the others; all of them do.
    let away = || BackendError::Bug { what: "away".to_owned() };
    let some = BTreeMap::from([(node("m"), Err(away())), (node("n"), Ok(&session))]);
    assert_eq!(observer.observe(some, &[]).await.unwrap().len(), 1);
    let none = BTreeMap::from([(node("m"), Err(away())), (node("n"), Err(away()))]);
    assert!(observer.observe(none, &[]).await.is_err());
    assert!(observer.observe(BTreeMap::new(), &[]).await.unwrap().is_empty());
    // After three misses in a row there is nothing to compare with.
    for _ in 0..2 {
        assert!(observer.observe(BTreeMap::from([(node("n"), Err(away()))]), &[]).await.is_err());
    }
    assert!(observe(&observer, &session).await.is_empty());
}

#[tokio::test]
async fn a_machine_that_prometheus_tells_of_is_split_among_its_databases() {
    let server = Server::start().await;
    let session = server.open("postgres").await.unwrap();
    for name in ["a", "b"] {
        session.run("making a database", &format!("CREATE DATABASE {name}")).await.unwrap();
    }
    // A machine of 100 cores whose memory is half taken: none that a test runs on.
    let url = serve(Arc::new(|query| match query {
        q if q.starts_with("sum(rate") => Reply::Value("40"),
        q if q.starts_with("count(") => Reply::Value("100"),
        q if q.contains(" - ") => Reply::Value("5e12"),
        _ => Reply::Value("1e13"),
    }))
    .await;
    let about = |name: &str| PrometheusSettings {
        url: Some(url.clone()),
        instances: BTreeMap::from([(node(name), "db:9100".to_owned())]),
        ..PrometheusSettings::default()
    };
    let observer = server.observer_with(about("n"));
    observe(&observer, &session).await;
    waited(server.load("a", 100, 2)).await;
    let rows = observe(&observer, &session).await;
    let sum = |of: fn(&Observation) -> Option<f64>| rows.values().map(|row| of(row).unwrap()).sum::<f64>();
    let (cpu, memory) = (sum(|row| row.cpu_util), sum(|row| row.mem_util));
    assert!((38.0..=42.0).contains(&cpu), "{cpu} % of the CPU are told instead of 40");
    assert!((memory - 50.0).abs() < 0.1, "{memory} % of memory are told instead of 50");
    assert!(rows["a"].cpu_util.unwrap() > 20.0 * rows["b"].cpu_util.unwrap(), "{rows:?}");
    // Of a node that it is not asked about, what the server takes of this machine.
    let observer = server.observer_with(about("another"));
    observe(&observer, &session).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let told = observe(&observer, &session).await["@node/n"].mem_util.unwrap();
    assert!(told > 0.0 && told < 40.0, "{told} % of memory");
}
