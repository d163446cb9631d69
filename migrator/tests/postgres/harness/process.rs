//! Processes that die with the test process, whole trees of them stopped by process id, and the user they run as.

use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::thread;
use std::time::Duration;
use tokio::time::Instant;

/// How long anything may take to appear or go on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);

type Request = (Command, mpsc::Sender<io::Result<Child>>);

/// The death signal of a child is sent when the *thread* that started it ends: so one thread, which never ends, starts
/// all of them.
static STARTER: LazyLock<mpsc::Sender<Request>> = LazyLock::new(|| {
    let (send, requests) = mpsc::channel::<Request>();
    thread::Builder::new()
        .name("starter".into())
        .spawn(move || {
            for (mut command, answer) in requests {
                let _ = answer.send(command.spawn());
            }
        })
        .unwrap();
    send
});

/// PostgreSQL and PgBouncer refuse to run as root: they run as `postgres` then, and as whoever tests otherwise.
pub fn server_user() -> Option<&'static str> {
    rustix::process::geteuid().is_root().then_some("postgres")
}

/// A command that runs `program` as the server user and is killed when the test process dies.
pub fn as_server(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(user) = server_user() {
        command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).stdin(Stdio::null());
    command
}

/// Starts it with all that it says appended to `log`.
pub fn start(mut command: Command, log: &Path) -> Child {
    let out = File::options().create(true).append(true).open(log).unwrap();
    command.stdout(out.try_clone().unwrap()).stderr(out);
    let (answer, started) = mpsc::channel();
    let said = format!("{command:?}");
    STARTER.send((command, answer)).unwrap();
    started.recv().unwrap().unwrap_or_else(|error| panic!("cannot start {said}: {error}"))
}

/// Runs a command to its end without keeping the tests' runtime waiting; its output when it succeeded.
pub async fn run(mut command: Command) -> String {
    tokio::task::spawn_blocking(move || {
        let out = command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success(), "{command:?}: {}\n{said}{}", out.status, String::from_utf8_lossy(&out.stderr));
        said
    })
    .await
    .unwrap()
}

/// A folder that the server user owns, removed at the end. `base`: where, the system's folder for such by default.
pub fn folder(name: &str, base: Option<&Path>) -> tempfile::TempDir {
    let base = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
    let folder = tempfile::Builder::new().prefix(name).tempdir_in(base).unwrap();
    own(folder.path());
    folder
}

/// Gives a file or folder to the server user.
pub fn own(path: &Path) {
    let Some(user) = server_user() else { return };
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user));
    let line = line.unwrap_or_else(|| panic!("there is no user {user}: scripts/test installs PostgreSQL"));
    let id = |n| line.split(':').nth(n).and_then(|id| id.parse().ok());
    std::os::unix::fs::chown(path, id(2), id(3)).unwrap();
}

/// Writes a file that the server user can read.
pub fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    own(path);
}

/// The last `lines` lines of a log.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The newest PostgreSQL on this machine: its folder of programs.
pub fn postgres_bin() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).max();
    let newest = newest.unwrap_or_else(|| panic!("PostgreSQL is missing: scripts/test installs it"));
    PathBuf::from(format!("/usr/lib/postgresql/{newest}/bin"))
}

/// A process and everything that it started.
pub struct Tree {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Tree {
    pub fn new(child: Child) -> Self {
        Self { child, ended: None }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().unwrap();
        }
        self.ended
    }

    /// Sends a signal to the root of the tree.
    pub fn signal(&mut self, signal: Signal) {
        if self.ended().is_none() {
            send(self.pid(), signal);
        }
    }

    /// Stops all of it where it is. Returns the process ids.
    pub fn freeze(&mut self) -> Vec<i32> {
        self.signal(Signal::STOP);
        let mut all = vec![self.pid()];
        loop {
            // A process that is not frozen yet may start another one: until none is new.
            let new: Vec<_> = all.iter().flat_map(|pid| children(*pid)).filter(|pid| !all.contains(pid)).collect();
            if new.is_empty() {
                return all;
            }
            new.iter().for_each(|pid| send(*pid, Signal::STOP));
            all.extend(new);
        }
    }

    pub fn unfreeze(&mut self) {
        let mut all = vec![self.pid()];
        while let Some(pid) = all.pop() {
            all.extend(children(pid));
            send(pid, Signal::CONT);
        }
    }

    /// Kills all of it at once, as a machine that loses power would, and waits until nothing is left.
    pub fn kill9(&mut self) {
        if self.ended().is_some() {
            return;
        }
        let all = self.freeze();
        all.iter().for_each(|pid| send(*pid, Signal::KILL));
        self.ended = Some(self.child.wait().unwrap());
        for pid in all {
            while runs(pid) {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Waits until it has ended of itself.
    pub async fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + patience;
        while self.ended().is_none() && Instant::now() < until {
            tokio::time::sleep(POLL).await;
        }
        self.ended
    }

    /// The same, for the end of a value, where nothing can be awaited.
    pub fn end(&mut self, signal: Signal, patience: Duration) {
        if self.ended().is_none() {
            self.unfreeze();
            self.signal(signal);
            let mut left = patience;
            while self.ended().is_none() && !left.is_zero() {
                thread::sleep(POLL);
                left = left.saturating_sub(POLL);
            }
        }
        self.kill9();
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// What a status says in words.
pub fn words(status: Option<ExitStatus>) -> String {
    match status {
        None => "still runs".into(),
        Some(status) => match status.signal() {
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("ended with status {:?}", status.code()),
        },
    }
}

fn send(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal); // it may have ended by itself
    }
}

fn children(pid: i32) -> Vec<i32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|child| stat(*child).is_some_and(|(_, parent)| parent == pid)).collect()
}

/// The state of a process and its parent. The name before them may hold anything, brackets and spaces too.
fn stat(pid: i32) -> Option<(char, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut after_name = stat.rsplit_once(") ")?.1.split(' ');
    Some((after_name.next()?.chars().next()?, after_name.next()?.parse().ok()?))
}

/// Whether it runs, frozen or not; a zombie does not.
fn runs(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| !matches!(state, 'Z' | 'X'))
}
