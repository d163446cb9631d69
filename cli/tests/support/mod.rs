//! Running the binary as an operator would.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// The binary in `folder`, without the caller's settings.
pub fn foreshard(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_foreshard"));
    command.current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("FORESHARD_")) {
        command.env_remove(name);
    }
    command
}

/// Runs to the end and shows everything if the exit code is not the wanted one.
pub fn run(folder: &Path, args: &[&str], code: i32) -> Output {
    let output = foreshard(folder).args(args).output().unwrap();
    assert_eq!(
        output.status.code(),
        Some(code),
        "foreshard {}\nstdout: {}\nstderr: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs with JSON output and parses it.
#[allow(dead_code)]
pub fn json(folder: &Path, args: &[&str], code: i32) -> Value {
    let output = run(folder, &[args, &["--output", "json"]].concat(), code);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Trains a small version and makes it champion. Whether the gate promotes it (exit code 0) or not (1) may differ from one
/// processor to another after so few steps; the tests that need a champion take it either way.
#[allow(dead_code)]
pub fn trained(folder: &Path, args: &[&str]) -> Value {
    let output = foreshard(folder).arg("train").args(args).args(["--output", "json"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 1)), "train {}: {stderr}", args.join(" "));
    run(folder, &["models", "promote", "1"], 0);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A file beside the checkout that is not part of it (real traces, the independent scorer), or a loud skip.
#[allow(dead_code)]
pub fn beside(path: &str) -> Option<PathBuf> {
    let full = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")).join(path);
    if full.exists() {
        return Some(full.canonicalize().unwrap());
    }
    println!("SKIPPED: {} is not there", full.display());
    None
}

/// A serving process that is stopped when the test ends, however it ends.
#[allow(dead_code)]
pub struct Server {
    process: Child,
    /// Where it listens.
    pub address: String,
}

#[allow(dead_code)]
impl Server {
    /// Starts it in `folder` on a free port, with settings from the environment, and waits until it serves.
    pub fn start(folder: &Path, settings: &[(&str, &str)]) -> Self {
        let mut command = foreshard(folder);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "none"])
            .envs(settings.iter().copied())
            .stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.split_whitespace().find(|w| w.starts_with("http://")).expect(&line).to_owned();
        Self { process, address }
    }

    /// Asks it to stop and waits until it has.
    pub fn stop(mut self) {
        let process = rustix::process::Pid::from_raw(self.process.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
