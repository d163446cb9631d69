//! A PostgreSQL server for these tests: in a temporary folder, on a Unix socket, stopped at drop.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use foreshard_domain::NodeId;

use crate::postgres::ServerAddress;
use crate::postgres::session::{Login, Session};

/// Debian's place of the server's programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const PORT: &str = "5432";

pub(super) struct TestServer {
    folder: tempfile::TempDir,
    process: Child,
}

/// One server for the tests that run together; it stops with the last of them.
static RUNNING: Mutex<Weak<TestServer>> = Mutex::new(Weak::new());

impl TestServer {
    /// The server, or `None`, said loudly, if the programs are not installed.
    pub fn shared() -> Option<Arc<Self>> {
        if !Path::new(PROGRAMS).join("postgres").exists() {
            eprintln!("NOT TESTED: {PROGRAMS} has no PostgreSQL 15; install Debian's package postgresql-15");
            return None;
        }
        let mut running = RUNNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return Some(server);
        }
        let server = Arc::new(Self::start());
        *running = Arc::downgrade(&server);
        Some(server)
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("foreshard-pg").tempdir().unwrap();
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        let mut initdb = program("initdb");
        initdb.args(["-U", "postgres", "--auth", "trust", "--no-sync", "-E", "UTF8", "--locale", "C.UTF-8", "-D"]);
        run(initdb.arg(&data));
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut server = program("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-h", "", "-p", PORT]);
        for setting in ["fsync=off", "max_connections=100", "shared_buffers=256MB", "max_wal_size=4GB"] {
            server.args(["-c", setting]);
        }
        let process = server.stdout(Stdio::null()).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let server = Self { folder, process };
        for _ in 0..600 {
            if program("pg_isready")
                .args(["-q", "-p", PORT, "-h"])
                .arg(server.folder.path())
                .status()
                .unwrap()
                .success()
            {
                return server;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no server after 30 s: {}", std::fs::read_to_string(server.folder.path().join("log")).unwrap());
    }

    /// A connection to `database`, for the node `node`.
    pub async fn session(&self, node: &str, database: &str) -> Session {
        let address = ServerAddress {
            host: self.folder.path().to_str().unwrap().to_owned(),
            port: PORT.parse().unwrap(),
            user: "postgres".into(),
            password: String::new(),
            peer_host: None,
            peer_port: None,
            database: "postgres".into(),
            ..ServerAddress::default()
        };
        let login = Login { user: "postgres".into(), password: String::new() };
        Session::open(&NodeId::new(node).unwrap(), &address, &login, database, "foreshard tests").await.unwrap()
    }

    /// A new, empty database.
    pub async fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("db{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let session = self.session("a", "postgres").await;
        session.run("making a database", &format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        }
        let _ = self.process.wait();
    }
}

/// A program of the server, which refuses to run as root.
fn program(name: &str) -> Command {
    let path = Path::new(PROGRAMS).join(name);
    let mut command = Command::new(if is_root() { Path::new("runuser") } else { &path });
    if is_root() {
        command.args(["-u", "postgres", "--"]).arg(path);
    }
    command.current_dir("/");
    command
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout.starts_with(b"0\n")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
