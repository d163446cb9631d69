//! A PostgreSQL server of a test's own: started, stopped, killed, frozen, and gone at the end.

use super::address::{Address, Session};
use super::ports::Port;
use super::process::{PATIENCE, Tree, as_server, folder, own, postgres_bin, start, tail, words};
use super::template::{copy_to, template};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// The superuser of every server.
pub const ADMIN: &str = "admin";
pub const ADMIN_PASSWORD: &str = "admin-secret";
/// The role that the clients' databases belong to and that they log in as.
pub const APP: &str = "app";
pub const APP_PASSWORD: &str = "app-secret";

/// How a server is set up.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Whether it waits for its disk. Off only loses data when the machine, not the server, dies.
    pub fsync: bool,
    /// Where its folder is made, such as on a small disk; the system's folder for such by default.
    pub base: Option<PathBuf>,
    /// Whether its log of changes is in the system's folder instead of `base`. A server whose tables run out of disk
    /// refuses statements with 53100; one whose log does ends itself with a PANIC and cannot start again.
    pub wal_apart: bool,
    /// More settings of postgresql.conf, as written there.
    pub settings: Vec<(&'static str, String)>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { fsync: true, base: None, wal_apart: false, settings: Vec::new() }
    }
}

impl ServerOptions {
    /// For tests that measure nothing.
    pub fn fast() -> Self {
        Self { fsync: false, ..Self::default() }
    }
}

/// A running server.
pub struct PgServer {
    name: String,
    port: Port,
    folder: TempDir,
    wal: Option<TempDir>,
    tree: Option<Tree>,
}

impl PgServer {
    /// Makes a cluster and starts it. `name` appears in messages and in its log.
    pub async fn start(name: &str, options: &ServerOptions) -> Self {
        let folder = folder(&format!("foreshard-pg-{name}-"), options.base.as_deref());
        copy_to(template().await, &folder.path().join("data")).await;
        let mut server = Self { name: name.into(), port: Port::reserve(), folder, wal: None, tree: None };
        if options.wal_apart {
            server.move_wal().await;
        }
        for attempt in 1.. {
            server.write_settings(options);
            match server.try_start().await {
                Ok(()) => break,
                // Somebody who does not reserve ports may have it.
                Err(said) if said.contains("Address already in use") && attempt < 5 => server.port = Port::reserve(),
                Err(said) => panic!("{said}"),
            }
        }
        server
    }

    /// A hot standby of `primary` that follows it under its own name, by a base backup.
    pub async fn standby_of(primary: &Self, name: &str) -> Self {
        let folder = folder(&format!("foreshard-pg-{name}-"), None);
        let mut backup = as_server(&postgres_bin().join("pg_basebackup"));
        let from = primary.address("postgres").conninfo();
        backup.args(["-d", &from, "-X", "stream", "-c", "fast", "-D"]).arg(folder.path().join("data"));
        backup.current_dir(folder.path());
        super::process::run(backup).await;
        let mut server = Self { name: name.into(), port: Port::reserve(), folder, wal: None, tree: None };
        let follow = format!("'{} application_name={name}'", from.replace('\'', "''"));
        let settings = vec![("primary_conninfo", follow), ("hot_standby", "on".into())];
        server.write_settings(&ServerOptions { fsync: false, settings, ..ServerOptions::default() });
        server.write("standby.signal", "");
        server.start_again().await;
        server
    }

    /// Sets something for the whole server, from now on.
    pub async fn set(&self, setting: &str, value: &str) {
        let text = fs::read_to_string(self.data_dir().join("postgresql.conf")).unwrap();
        self.write("postgresql.conf", &format!("{text}{setting} = {value}\n"));
        self.sql("postgres", "SELECT pg_reload_conf()").await;
    }

    async fn move_wal(&mut self) {
        let apart = folder(&format!("foreshard-wal-{}-", self.name), None);
        let (here, there) = (self.data_dir().join("pg_wal"), apart.path().join("pg_wal"));
        copy_to(&here, &there).await;
        fs::remove_dir_all(&here).unwrap();
        std::os::unix::fs::symlink(&there, &here).unwrap();
        self.wal = Some(apart);
    }

    fn write_settings(&self, options: &ServerOptions) {
        let Self { name, port, folder, .. } = self;
        let socket = folder.path().to_string_lossy();
        // A socket's path holds 107 bytes; without one clients still come over loopback.
        let socket = if socket.len() < 80 { socket } else { "".into() };
        let fsync = if options.fsync { "on" } else { "off" };
        let port = port.number();
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{socket}'\ncluster_name = '{name}'\n\
             shared_buffers = 128MB\nfsync = {fsync}\nfull_page_writes = {fsync}\nmax_connections = 100\n\
             wal_level = logical\nmax_replication_slots = 40\nmax_wal_senders = 40\nmax_prepared_transactions = 5\n\
             max_logical_replication_workers = 24\nmax_worker_processes = 40\nwal_retrieve_retry_interval = 500ms\n\
             wal_receiver_status_interval = 1s\nclient_connection_check_interval = 500ms\nmax_wal_size = 512MB\n\
             timezone = 'UTC'\nlog_timezone = 'UTC'\nlog_line_prefix = '%m [%p] %q%u@%d %a '\nlog_lock_waits = on\n"
        );
        for (setting, value) in &options.settings {
            text += &format!("{setting} = {value}\n");
        }
        self.write("postgresql.conf", &text);
        let hba = "local all all scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n\
                   host replication all 127.0.0.1/32 scram-sha-256\n";
        self.write("pg_hba.conf", hba);
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.data_dir().join(file);
        fs::write(&path, text).unwrap();
        own(&path);
    }

    /// Starts it, which must not run, and waits until it takes connections. What it said when it does not start.
    pub async fn try_start(&mut self) -> Result<(), String> {
        assert!(self.tree.is_none(), "{} already runs", self.name);
        let log = self.log();
        let already = fs::metadata(&log).map_or(0, |file| usize::try_from(file.len()).unwrap());
        let mut command = as_server(&postgres_bin().join("postgres"));
        command.arg("-D").arg(self.data_dir()).current_dir(self.folder.path());
        let mut tree = Tree::new(start(command, &log));
        let until = Instant::now() + PATIENCE;
        let failed = loop {
            if let Some(status) = tree.ended() {
                break words(Some(status));
            }
            match self.address("postgres").connect().await {
                Ok(_) => {
                    self.tree = Some(tree);
                    return Ok(());
                }
                Err(error) if Instant::now() > until => break format!("no connection: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        };
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(already..).unwrap_or_default()).into_owned();
        Err(format!("{} does not start: {failed}\n{said}", self.name))
    }

    /// Starts it again on the same port.
    pub async fn start_again(&mut self) {
        self.try_start().await.unwrap_or_else(|said| panic!("{said}"));
    }

    /// Waits until it takes connections again after whatever befell it; starts it if it has ended itself.
    pub async fn comes_back(&mut self) {
        let until = Instant::now() + PATIENCE;
        loop {
            if !self.runs() {
                self.kill9();
                match self.try_start().await {
                    Ok(()) => return,
                    Err(said) => assert!(Instant::now() < until, "{said}"),
                }
            } else if self.address("postgres").connect().await.is_ok() {
                return;
            }
            assert!(Instant::now() < until, "{} takes no connections\n{}", self.name, self.log_tail());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the sessions and the server in good order.
    pub async fn stop_fast(&mut self) {
        let Some(mut tree) = self.tree.take() else { return };
        tree.signal(Signal::INT);
        let ended = tree.wait(PATIENCE).await;
        assert!(ended.is_some_and(|status| status.success()), "{}: {}\n{}", self.name, words(ended), self.log_tail());
    }

    /// Kills the server and all its processes at once.
    pub fn kill9(&mut self) {
        if let Some(mut tree) = self.tree.take() {
            tree.kill9();
            self.free_memory();
        }
    }

    pub async fn restart(&mut self) {
        self.stop_fast().await;
        self.start_again().await;
    }

    /// Stops all its processes where they are: connections stay open and nobody answers.
    pub fn freeze(&mut self) {
        self.tree.as_mut().unwrap().freeze();
    }

    /// The end of `freeze`.
    pub fn unfreeze(&mut self) {
        self.tree.as_mut().unwrap().unfreeze();
    }

    pub fn runs(&mut self) -> bool {
        self.tree.as_mut().is_some_and(|tree| tree.ended().is_none())
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// What it said last, for messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log(), 40)
    }

    /// All that it said.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log()).unwrap_or_default()).into_owned()
    }

    /// A database of it, as the superuser.
    pub fn address(&self, database: &str) -> Address {
        Address::new(self.port(), database, (ADMIN, ADMIN_PASSWORD))
    }

    /// A database of it, as the clients.
    pub fn app_address(&self, database: &str) -> Address {
        Address::new(self.port(), database, (APP, APP_PASSWORD))
    }

    /// A connection as the superuser.
    pub async fn connect(&self, database: &str) -> Session {
        let session = self.address(database).connect().await;
        session.unwrap_or_else(|error| {
            panic!("{}: no connection to {database}: {error:?}\n{}", self.name, self.log_tail())
        })
    }

    /// Runs statements as the superuser.
    pub async fn sql(&self, database: &str, sql: &str) {
        let done = self.connect(database).await.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{}, {database}: {sql}: {error:?}", self.name));
    }

    /// The first column of what a query as the superuser gives, NULL as empty.
    pub async fn column(&self, database: &str, sql: &str) -> Vec<String> {
        let rows = self.connect(database).await.rows(sql).await;
        let rows = rows.unwrap_or_else(|error| panic!("{}, {database}: {sql}: {error:?}", self.name));
        rows.iter().map(|row| row.first().to_owned()).collect()
    }

    /// The first value of the first row; it must have one.
    pub async fn value(&self, database: &str, sql: &str) -> String {
        let column = self.column(database, sql).await;
        column.into_iter().next().unwrap_or_else(|| panic!("{}, {database}: {sql}: no row", self.name))
    }

    /// Makes a database that belongs to the clients' role.
    pub async fn create_database(&self, database: &str) {
        self.sql("postgres", &format!("CREATE DATABASE \"{database}\" OWNER {APP}")).await;
    }

    pub async fn has_database(&self, database: &str) -> bool {
        self.value("postgres", &format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'")).await != "0"
    }

    /// A killed server leaves a few bytes of shared memory, which only its next start removes.
    fn free_memory(&self) {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let id = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
        if let Some(id) = id {
            let _ = Command::new("ipcrm").args(["-m", id]).output();
        }
    }
}

impl Drop for PgServer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the last of {}'s log\n{}", self.name, self.log_tail());
        }
        if let Some(mut tree) = self.tree.take() {
            tree.end(Signal::QUIT, Duration::from_secs(5));
            self.free_memory();
        }
    }
}

/// A program of PostgreSQL, run by whoever tests, with the password of `address` in its environment.
pub fn program(name: &str, address: &Address) -> Command {
    let mut command = Command::new(postgres_bin().join(name));
    command.env("PGPASSWORD", &address.password);
    command
}

/// Copies a database with its data by `pg_dump` into an empty one: what a move does, done by hand.
pub async fn dump_and_restore(from: &Address, to: &Address, scratch: &Path) {
    let file = scratch.join(format!("{}-{}.dump", from.database, from.port));
    let mut dump = program("pg_dump", from);
    dump.args(["-Fc", "-d", &from.conninfo_without_password(), "-f"]).arg(&file);
    super::process::run(dump).await;
    let mut restore = program("pg_restore", to);
    restore.args(["--exit-on-error", "-d", &to.conninfo_without_password()]).arg(&file);
    super::process::run(restore).await;
}
