//! pgbench as a client: fills databases and loads them, and what its logs say of that.

use super::address::{Address, Session};
use super::latency::{Latencies, Sample};
use super::process::{PATIENCE, Tree, folder, run, start};
use super::server::{PgServer, program};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// What one unit of pgbench's scale takes on disk.
pub const MEGABYTES_PER_SCALE: u32 = 15;

/// Makes pgbench's tables, about so large, in a database of the server that exists.
pub async fn fill(server: &PgServer, database: &str, megabytes: u32) {
    let address = server.app_address(database);
    let scale = megabytes.div_ceil(MEGABYTES_PER_SCALE).max(1);
    let mut command = program("pgbench", &address);
    command.args(["-i", "-q", "-s", &scale.to_string(), &address.conninfo_without_password()]);
    run(command).await;
    // As every table that is to be replicated: its rows have a key. pgbench names the columns that it fills.
    server.sql(database, "ALTER TABLE pgbench_history ADD COLUMN id bigserial PRIMARY KEY").await;
}

/// The load.
#[derive(Debug, Clone)]
pub struct BenchOptions {
    pub clients: u32,
    /// Transactions a second of all clients together; as many as go when none.
    pub rate: Option<f64>,
    pub seconds: u32,
    /// The scale that `fill` used is found in the database by default; a script of one's own needs none.
    pub script: Option<String>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self { clients: 4, rate: Some(50.0), seconds: 10, script: None }
    }
}

/// A pgbench at work.
pub struct Bench {
    tree: Tree,
    folder: TempDir,
    options: BenchOptions,
}

impl Bench {
    /// Starts it without prepared statements, as transaction pooling needs it.
    pub fn start(address: &Address, options: &BenchOptions) -> Self {
        let folder = folder("foreshard-bench-", None);
        let mut command = program("pgbench", address);
        let clients = options.clients.to_string();
        command.args(["-M", "simple", "-n", "-j", "1", "-c", &clients, "-T", &options.seconds.to_string()]);
        command.args(["--progress=1", "--failures-detailed", "-l"]).current_dir(folder.path());
        if let Some(rate) = options.rate {
            command.arg(format!("--rate={rate}"));
        }
        if let Some(script) = &options.script {
            let file = folder.path().join("script.sql");
            fs::write(&file, script).unwrap();
            command.arg("-f").arg(file);
        }
        command.arg(address.conninfo_without_password());
        let tree = Tree::new(start(command, &folder.path().join("output")));
        Self { tree, folder, options: options.clone() }
    }

    /// Waits for its end.
    pub async fn wait(mut self) -> BenchReport {
        let patience = Duration::from_secs(self.options.seconds.into()) + PATIENCE;
        let status = self.tree.wait(patience).await;
        let output = fs::read_to_string(self.folder.path().join("output")).unwrap();
        let status = status.unwrap_or_else(|| panic!("pgbench does not end after {patience:?}\n{output}"));
        let mut report = BenchReport::read(&output, &transaction_logs(self.folder.path()));
        // It ends with an error when one of its clients gave up.
        assert!(status.success() || report.aborted > 0, "pgbench ended with {status}\n{output}");
        report.output = output;
        report
    }
}

/// What a run of pgbench came to.
#[derive(Debug, Clone, Default)]
pub struct BenchReport {
    /// Transactions that were acknowledged.
    pub transactions: u64,
    /// Transactions that the engine ended and asked to repeat, as after a deadlock.
    pub failed: u64,
    /// Clients that gave up at an error.
    pub aborted: u64,
    /// Transactions a second, without the time to connect.
    pub tps: f64,
    pub latencies: Latencies,
    pub output: String,
}

impl BenchReport {
    fn read(output: &str, log: &str) -> Self {
        let number = |label: &str| {
            let rest = output.lines().find_map(|line| line.strip_prefix(label))?;
            rest.split(|c: char| !c.is_ascii_digit() && c != '.').find_map(|word| word.parse::<f64>().ok())
        };
        let aborted = output.lines().filter(|line| line.contains(" aborted in ") || line.contains("client aborted"));
        Self {
            transactions: number("number of transactions actually processed:").unwrap_or_default() as u64,
            failed: number("number of failed transactions:").unwrap_or_default() as u64,
            aborted: aborted.count() as u64,
            tps: number("tps = ").unwrap_or_default(),
            latencies: latencies(log),
            output: String::new(),
        }
    }

    /// Fails when a client of it noticed anything.
    pub fn assert_unnoticed(&self) {
        assert!(self.transactions > 0, "pgbench did nothing\n{}", self.output);
        assert_eq!((self.failed, self.aborted), (0, 0), "failed, aborted\n{}", self.output);
    }
}

/// The logs of all its threads.
fn transaction_logs(folder: &Path) -> String {
    let files = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    let logs =
        files.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log.")));
    logs.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Lines of `client number microseconds script end-seconds end-microseconds [lag]`. With a rate the time counts from
/// when the transaction was due, and the lag is how much later it began.
fn latencies(log: &str) -> Latencies {
    let rows = log.lines().filter_map(|line| {
        let fields: Vec<u64> = line.split(' ').map_while(|field| field.parse().ok()).collect();
        let [_, _, took, _, seconds, micros, rest @ ..] = fields.as_slice() else { return None }; // failed or skipped
        let end = Duration::from_secs(*seconds) + Duration::from_micros(*micros);
        let due = end.checked_sub(Duration::from_micros(*took))?;
        Some((due, due + Duration::from_micros(rest.first().copied().unwrap_or_default()), end))
    });
    let rows: Vec<_> = rows.collect();
    let start = rows.iter().map(|(due, ..)| *due).min().unwrap_or_default();
    let mut samples: Vec<_> = rows
        .into_iter()
        .map(|(due, began, end)| Sample { due: due - start, began: began - start, took: end.saturating_sub(began) })
        .collect();
    samples.sort_by_key(|sample| sample.due);
    Latencies(samples)
}

/// Whether pgbench's sums agree, as they do in any consistent copy of its tables that nobody else wrote to.
pub async fn balances_agree(session: &Session) -> bool {
    let sums = "SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
                       (SELECT sum(tbalance) FROM pgbench_tellers), (SELECT coalesce(sum(delta), 0) FROM pgbench_history)";
    let rows = session.rows(sums).await.unwrap();
    let sums: Vec<_> = rows[0].0.iter().map(|(_, value)| value.clone().unwrap_or_default()).collect();
    sums.iter().all(|sum| *sum == sums[0])
}

#[test]
fn a_log_of_pgbench_is_read() {
    let log = "0 1 5000 0 100 7000 1000\n1 1 2000 0 100 9000 0\n0 2 failed 0 100 9500 0\n1 2 skipped 0 100 9500 0\n";
    let samples = latencies(log).0;
    let [first, second] = samples.as_slice() else { panic!("{samples:?}") };
    let ms = Duration::from_millis;
    assert_eq!((first.due, first.began, first.took), (ms(0), ms(1), ms(4)));
    assert_eq!((second.due, second.waited()), (ms(5), ms(2)));

    let output = "pgbench: error: client 2 aborted in command 1 (SQL) of script 0; perhaps the backend died\n\
                  number of transactions actually processed: 120/120\nnumber of failed transactions: 3 (2.439%)\n\
                  tps = 11.5 (without initial connection time)\n";
    let report = BenchReport::read(output, "");
    assert_eq!((report.transactions, report.failed, report.aborted, report.tps), (120, 3, 1, 11.5));
}
