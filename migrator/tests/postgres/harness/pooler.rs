//! A PgBouncer of a test's own in transaction pooling, with a file of routes that whoever moves databases owns.

use super::address::{Address, Row, Session};
use super::ports::Port;
use super::process::{PATIENCE, Tree, as_server, folder, start, tail, words, write};
use super::server::{ADMIN, ADMIN_PASSWORD, APP, APP_PASSWORD};
use rustix::process::Signal;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// The user of its console.
pub const POOLER_ADMIN: &str = "pgb_admin";
pub const POOLER_ADMIN_PASSWORD: &str = "pooler-secret";
/// How long a client waits for a server connection before PgBouncer ends its query: longer than any fence.
pub const QUERY_WAIT: Duration = Duration::from_secs(30);

/// A running pooler.
pub struct Pooler {
    name: String,
    port: Port,
    folder: TempDir,
    tree: Option<Tree>,
}

impl Pooler {
    /// Starts one with `routes`: names of databases as clients know them, and where each is.
    pub async fn start(name: &str, routes: &[(&str, &Address)]) -> Self {
        Self::start_with(name, routes, &[]).await
    }

    /// The same with more settings of its own section, which win over the harness's.
    pub async fn start_with(name: &str, routes: &[(&str, &Address)], settings: &[(&str, &str)]) -> Self {
        let folder = folder(&format!("foreshard-pgb-{name}-"), None);
        let mut pooler = Self { name: name.into(), port: Port::reserve(), folder, tree: None };
        pooler.write_routes(routes);
        for attempt in 1.. {
            pooler.write_settings(settings);
            match pooler.try_start().await {
                Ok(()) => break,
                Err(said) if said.contains("Address already in use") && attempt < 5 => pooler.port = Port::reserve(),
                Err(said) => panic!("{said}"),
            }
        }
        pooler
    }

    fn write_settings(&self, settings: &[(&str, &str)]) {
        let users = [(POOLER_ADMIN, POOLER_ADMIN_PASSWORD), (APP, APP_PASSWORD), (ADMIN, ADMIN_PASSWORD)];
        let users: String = users.map(|(user, password)| format!("\"{user}\" \"{password}\"\n")).concat();
        let user_list = self.folder.path().join("userlist.txt");
        write(&user_list, &users);
        let port = self.port.number();
        let mut text = format!(
            "[databases]\n%include {routes}\n\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {users}\nadmin_users = {POOLER_ADMIN}\npool_mode = transaction\n\
             default_pool_size = 20\nmax_client_conn = 500\nserver_round_robin = 0\nserver_fast_close = 1\n\
             server_login_retry = 1\nquery_wait_timeout = {wait}\nignore_startup_parameters = extra_float_digits\n\
             log_connections = 0\nlog_disconnections = 0\n",
            routes = self.routes_file().display(),
            users = user_list.display(),
            wait = QUERY_WAIT.as_secs(),
        );
        for (setting, value) in settings {
            text += &format!("{setting} = {value}\n");
        }
        write(&self.settings_file(), &text);
    }

    /// Starts it, which must not run, and waits until its console answers. What it said when it does not start.
    pub async fn try_start(&mut self) -> Result<(), String> {
        assert!(self.tree.is_none(), "{} already runs", self.name);
        let log = self.log();
        let already = fs::metadata(&log).map_or(0, |file| usize::try_from(file.len()).unwrap());
        let mut command = as_server(Path::new("/usr/sbin/pgbouncer"));
        command.arg(self.settings_file()).current_dir(self.folder.path());
        let mut tree = Tree::new(start(command, &log));
        let until = Instant::now() + PATIENCE;
        let failed = loop {
            if let Some(status) = tree.ended() {
                break words(Some(status));
            }
            match self.console_address().connect().await {
                Ok(_) => {
                    self.tree = Some(tree);
                    return Ok(());
                }
                Err(error) if Instant::now() > until => break format!("no console: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(25)).await,
            }
        };
        let said = fs::read(&log).unwrap_or_default();
        let said = String::from_utf8_lossy(said.get(already..).unwrap_or_default()).into_owned();
        Err(format!("pooler {} does not start: {failed}\n{said}", self.name))
    }

    /// Starts it again on the same port, with its files as they are now.
    pub async fn start_again(&mut self) {
        self.try_start().await.unwrap_or_else(|said| panic!("{said}"));
    }

    /// Kills it: its clients lose their connections, and what was paused no longer is when it starts again.
    pub fn kill9(&mut self) {
        self.tree = None; // its end kills it
    }

    /// Stops it where it is: connections stay open and nobody answers.
    pub fn freeze(&mut self) {
        self.tree.as_mut().unwrap().freeze();
    }

    /// The end of `freeze`.
    pub fn unfreeze(&mut self) {
        self.tree.as_mut().unwrap().unfreeze();
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The file of routes: lines of `name = host=... port=... dbname=...`, included in the section of databases. Its
    /// owner replaces it and tells the console to RELOAD.
    pub fn routes_file(&self) -> PathBuf {
        self.folder.path().join("routes.ini")
    }

    fn settings_file(&self) -> PathBuf {
        self.folder.path().join("pgbouncer.ini")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("pgbouncer.log")
    }

    /// What it said last, for messages.
    pub fn log_tail(&self) -> String {
        tail(&self.log(), 40)
    }

    /// Replaces the whole file of routes, without a RELOAD.
    pub fn write_routes(&self, routes: &[(&str, &Address)]) {
        let line = |(name, to): &(&str, &Address)| {
            format!("{name} = host=127.0.0.1 port={} dbname={}\n", to.port, to.database)
        };
        let new = self.folder.path().join("routes.new");
        write(&new, &routes.iter().map(line).collect::<String>());
        fs::rename(new, self.routes_file()).unwrap();
    }

    /// Its console.
    pub fn console_address(&self) -> Address {
        Address::new(self.port(), "pgbouncer", (POOLER_ADMIN, POOLER_ADMIN_PASSWORD))
    }

    /// A database of it as the clients reach it.
    pub fn app_address(&self, database: &str) -> Address {
        Address::new(self.port(), database, (APP, APP_PASSWORD))
    }

    /// A connection to its console.
    pub async fn console(&self) -> Session {
        let session = self.console_address().connect().await;
        session.unwrap_or_else(|error| panic!("pooler {}: no console: {error:?}\n{}", self.name, self.log_tail()))
    }

    /// Runs one command of the console and gives its rows, such as those of `SHOW DATABASES` and `SHOW POOLS`.
    pub async fn command(&self, command: &str) -> Vec<Row> {
        let rows = self.console().await.rows(command).await;
        rows.unwrap_or_else(|error| panic!("pooler {}: {command}: {error:?}\n{}", self.name, self.log_tail()))
    }

    /// Lets what runs end and holds what comes; returns once no server connection of the database is in use.
    pub async fn pause(&self, database: &str) {
        self.command(&format!("PAUSE \"{database}\"")).await;
    }

    pub async fn resume(&self, database: &str) {
        self.command(&format!("RESUME \"{database}\"")).await;
    }

    pub async fn reload(&self) {
        self.command("RELOAD").await;
    }

    /// Where it sends a database: port and name there. None when it does not know the database.
    pub async fn route_of(&self, database: &str) -> Option<(u16, String)> {
        let rows = self.command("SHOW DATABASES").await;
        let row = rows.iter().find(|row| row.get("name") == database)?;
        Some((row.get("port").parse().unwrap(), row.get("database").to_owned()))
    }

    /// Databases that are paused or disabled.
    pub async fn paused(&self) -> Vec<String> {
        let rows = self.command("SHOW DATABASES").await;
        let held = rows.iter().filter(|row| row.get("paused") != "0" || row.get("disabled") != "0");
        held.map(|row| row.get("name").to_owned()).collect()
    }

    /// Clients that wait for a server connection of the database.
    pub async fn waiting(&self, database: &str) -> u64 {
        let rows = self.command("SHOW POOLS").await;
        let pools = rows.iter().filter(|row| row.get("database") == database);
        pools.map(|row| row.get("cl_waiting").parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("-- the last of pooler {}'s log\n{}", self.name, self.log_tail());
        }
        if let Some(mut tree) = self.tree.take() {
            tree.end(Signal::TERM, Duration::from_secs(2));
        }
    }
}
