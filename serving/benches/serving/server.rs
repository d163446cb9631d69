//! The server of the benchmark: a process of its own, so that its memory is its own.

use foreshard_domain::SystemClock;
use foreshard_serving::{ServingConfig, start};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The process itself: serves until its standard input ends.
pub fn serve(place: &Path, days: u32, cache_mib: u32) {
    let config = ServingConfig {
        listen: "127.0.0.1:0".parse().expect("an address"),
        http: Some("127.0.0.1:0".parse().expect("an address")),
        registry: place.join("registry"),
        history: place.join("history"),
        context_days: days,
        cache_mib,
        // The history was written some time ago.
        stale_after: Duration::from_secs(1 << 40),
        reload_every: Duration::from_millis(100),
        ..ServingConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let running = start(config, Arc::new(SystemClock)).await.expect("a server");
        println!("{} {}", running.endpoint(), running.http_addr().expect("an address"));
        std::io::stdout().flush().expect("an open output");
        let ended = tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()));
        _ = ended.await.expect("an open input");
        running.shutdown().await.expect("a clean end");
    });
}

/// The process as its client sees it.
pub struct Server {
    process: Child,
    input: Option<ChildStdin>,
    pub endpoint: String,
    http: SocketAddr,
    /// From the start of the process until it listened.
    pub ready_after: Duration,
}

impl Server {
    pub fn start(place: &Path, days: usize, cache_mib: usize) -> Self {
        let start = Instant::now();
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .args(["serve".as_ref(), place.as_os_str()])
            .args([days, cache_mib].map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut line = String::new();
        let output = process.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("its first line");
        let ready_after = start.elapsed();
        let (endpoint, http) = line.trim().split_once(' ').expect("two addresses");
        let (endpoint, http) = (endpoint.to_owned(), http.parse().expect("an address"));
        let input = process.stdin.take();
        Self { process, input, endpoint, http, ready_after }
    }

    /// MiB of the process: now, and at most since its start.
    pub fn memory(&self) -> (f64, f64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a process");
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
            line.trim().trim_end_matches(" kB").trim().parse::<f64>().expect("a number") / 1024.0
        };
        (kib("VmRSS:"), kib("VmHWM:"))
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> f64 {
        let mut stream = TcpStream::connect(self.http).expect("the port");
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n").expect("an open port");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("a metric").parse().expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        _ = self.process.wait();
    }
}
