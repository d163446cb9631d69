//! A PostgreSQL server for the tests of this crate: in a temporary folder, on a free loopback port, stopped at drop.

use super::session::{Login, Place};
use super::settings::ServerAddress;
use super::wire::ConnectParams;
use foreshard_domain::NodeId;
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::NoTls;

/// Limit of calls that should take milliseconds.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Debian's place of the server's programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";

/// Everybody is let in but the roles that a test of passwords uses.
const ACCESS: &str = "
local all all trust
host all by_scram 127.0.0.1/32 scram-sha-256
host all by_md5 127.0.0.1/32 md5
host all by_clear_text 127.0.0.1/32 password
host all all 127.0.0.1/32 trust
";

const SETTINGS: &str = "
wal_level = logical
fsync = off
max_replication_slots = 60
max_wal_senders = 60
max_connections = 120
max_prepared_transactions = 5
shared_buffers = 16MB
autovacuum = off
";

pub(crate) struct TestServer {
    folder: tempfile::TempDir,
    port: u16,
    process: Child,
}

/// One server for the tests that run together; it stops with the last of them.
static RUNNING: Mutex<Weak<TestServer>> = Mutex::new(Weak::new());

impl TestServer {
    /// The server, or `None`, said loudly, if the programs are not installed.
    pub(crate) fn shared() -> Option<Arc<Self>> {
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

    /// A server of one's own, for tests that stop it; otherwise like [`Self::shared`].
    pub(crate) fn own() -> Option<Self> {
        Path::new(PROGRAMS).join("postgres").exists().then(Self::start)
    }

    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("foreshard-pg").tempdir().unwrap();
        if as_root() {
            run(Command::new("chown").arg("postgres").arg(folder.path()));
        }
        let data = folder.path().join("data");
        run(program("initdb").args(["-U", "postgres", "--auth", "trust", "--no-sync", "-E", "UTF8", "-D"]).arg(&data));
        append(&data.join("pg_hba.conf"), ACCESS, true);
        append(&data.join("postgresql.conf"), SETTINGS, false);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = program("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        let process = command.stdout(Stdio::null()).stderr(log).stdin(Stdio::null()).spawn().unwrap();
        let server = Self { folder, port, process };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        for _ in 0..600 {
            let mut ready = program("pg_isready");
            ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]);
            if ready.status().unwrap().success() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("no server after 30 s: {}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The folder of the Unix socket.
    pub(crate) fn socket_folder(&self) -> String {
        self.folder.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn params(&self, database: &str) -> ConnectParams {
        ConnectParams {
            host: "127.0.0.1".into(),
            port: self.port,
            database: database.into(),
            user: "postgres".into(),
            password: None,
            application_name: "foreshard tests".into(),
        }
    }

    /// It as a node.
    pub(crate) fn place(&self, node: &str) -> Place {
        let params = self.params("postgres");
        Place {
            node: NodeId::new(node).unwrap(),
            address: ServerAddress {
                host: params.host,
                port: params.port,
                user: params.user.clone(),
                password: String::new(),
                ..ServerAddress::default()
            },
            login: Login { user: params.user, password: String::new() },
        }
    }

    /// An ordinary session.
    pub(crate) async fn session(&self, database: &str) -> tokio_postgres::Client {
        let target = format!("host=127.0.0.1 port={} user=postgres dbname='{database}'", self.port);
        let (client, connection) = tokio_postgres::connect(&target, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// A new, empty database.
    pub(crate) async fn database(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("db{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.session("postgres").await.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        name
    }

    /// Stops the server as if its power had gone.
    pub(crate) fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap_or_default();
        if let Some(pid) = pid.lines().next() {
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        }
        let _ = self.process.wait();
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A listener that sends `bytes` to whoever connects and then waits.
pub(crate) async fn impostor(bytes: &'static [u8]) -> ConnectParams {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(bytes).await.unwrap();
        let _ = socket.read_to_end(&mut Vec::new()).await;
    });
    ConnectParams {
        host: "127.0.0.1".into(),
        port,
        database: "d".into(),
        user: "u".into(),
        password: Some("p".into()),
        application_name: "a".into(),
    }
}

/// A program of the server, which refuses to run as root.
fn program(name: &str) -> Command {
    let path = PathBuf::from(PROGRAMS).join(name);
    let mut command = if as_root() { Command::new("runuser") } else { Command::new(&path) };
    if as_root() {
        command.args(["-u", "postgres", "--"]).arg(path);
    }
    command.current_dir("/");
    command
}

fn as_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout.starts_with(b"0\n")
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn append(file: &Path, text: &str, anew: bool) {
    let mut file = std::fs::OpenOptions::new().append(!anew).write(true).truncate(anew).open(file).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}
