//! What a server takes of its machine: CPU time and resident memory.
//!
//! PostgreSQL does not tell either. [`LocalProcesses`] reads them from `/proc` where the server runs on this machine. The
//! other source knows no processes ([`super::prometheus`]), so that all of its CPU time is split among databases.

use async_trait::async_trait;
use foreshard_domain::NodeId;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Clock ticks of `/proc` in a second: `USER_HZ`, which Linux keeps at 100 for programs whatever the kernel itself uses.
const TICKS_PER_S: f64 = 100.0;
/// How far the age of a process may differ from what the server says of it.
const AGE_TOLERANCE_S: f64 = 2.0;
/// How often the tree is read again because a process ended meanwhile.
const READS: usize = 3;

/// One of a server's own processes, by which its machine can be recognised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Backend {
    /// Process id as the server knows it.
    pub pid: u32,
    /// Seconds since it was started.
    pub age_s: f64,
}

/// What one process of a server takes, with everything below it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProcessUse {
    /// When it was started; tells processes with the same id apart.
    pub started: u64,
    /// Seconds of CPU since its start.
    pub cpu_s: f64,
    /// Resident bytes that are its own.
    pub private_bytes: f64,
}

/// What a server has taken of its machine.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Usage {
    /// Tells starts of the server apart: CPU time counts from zero in each.
    pub incarnation: String,
    /// Seconds of CPU of all processes since its start, also those that have ended.
    pub cpu_s: f64,
    /// Resident bytes that its processes share.
    pub shared_bytes: f64,
    /// Its processes that run now; none if the source cannot tell them apart.
    pub processes: BTreeMap<u32, ProcessUse>,
    /// Cores of the machine.
    pub cores: f64,
    /// Bytes of memory of the machine.
    pub memory_bytes: f64,
}

impl Usage {
    /// All resident bytes.
    pub fn memory(&self) -> f64 {
        self.shared_bytes + self.processes.values().map(|p| p.private_bytes).sum::<f64>()
    }
}

/// Where the use of machines is read.
#[async_trait]
pub(crate) trait NodeMetrics: Send + Sync + fmt::Debug {
    /// What the server of `node`, which `backend` belongs to, has taken so far; `None` if this source cannot see it.
    async fn usage(&self, node: &NodeId, backend: Backend) -> Option<Usage>;
}

/// Processes of this machine.
#[derive(Debug, Clone)]
pub(crate) struct LocalProcesses {
    proc: PathBuf,
}

impl Default for LocalProcesses {
    fn default() -> Self {
        Self { proc: PathBuf::from("/proc") }
    }
}

#[async_trait]
impl NodeMetrics for LocalProcesses {
    async fn usage(&self, _node: &NodeId, backend: Backend) -> Option<Usage> {
        let source = self.clone();
        // A server elsewhere, or in a process namespace of its own, is not seen: no error, but nothing known either.
        tokio::task::spawn_blocking(move || source.read(backend).ok().flatten()).await.ok().flatten()
    }
}

/// A line of `/proc/<pid>/stat`.
#[derive(Debug, Clone, PartialEq)]
struct Stat {
    command: String,
    parent: u32,
    /// Ticks of its own.
    own: u64,
    /// Ticks of those of its children that have ended and that it has waited for.
    ended: u64,
    started: u64,
}

impl LocalProcesses {
    fn read(&self, backend: Backend) -> io::Result<Option<Usage>> {
        let Some(session) = self.stat(backend.pid)? else { return Ok(None) };
        let uptime = first_number(&fs::read_to_string(self.proc.join("uptime"))?).unwrap_or(0.0);
        let age_s = uptime - session.started as f64 / TICKS_PER_S;
        // The same id alone may be another process of this machine; the same id, name and age is not.
        if session.command != "postgres" || (age_s - backend.age_s).abs() > AGE_TOLERANCE_S {
            return Ok(None);
        }
        let server = session.parent;
        let Some(mut first) = self.stat(server)? else { return Ok(None) };
        for read in 1.. {
            let all = self.all()?;
            let Some(last) = self.stat(server)? else { return Ok(None) };
            // Time of a child that ended while the others were read would be missing, or there twice.
            if last.ended == first.ended || read == READS {
                return self.sum(server, &last, &all).map(Some);
            }
            first = last;
        }
        Ok(None)
    }

    fn sum(&self, server: u32, stat: &Stat, all: &BTreeMap<u32, Stat>) -> io::Result<Usage> {
        let mut processes = BTreeMap::new();
        let mut shared_bytes: f64 = 0.0;
        let own = std::iter::once((server, stat, server, 0));
        let below = all.iter().filter(|(pid, _)| **pid != server);
        let below = below.filter_map(|(pid, stat)| Some((*pid, stat, child_above(*pid, server, all)?, stat.ended)));
        for (pid, stat, child, ended) in own.chain(below) {
            let (private, shared) = self.resident(pid);
            shared_bytes = shared_bytes.max(shared);
            let started = all.get(&child).map_or(stat.started, |child| child.started);
            let entry = processes.entry(child).or_insert(ProcessUse { started, cpu_s: 0.0, private_bytes: 0.0 });
            entry.cpu_s += (stat.own + ended) as f64 / TICKS_PER_S;
            entry.private_bytes += private;
        }
        let running: f64 = processes.values().map(|p| p.cpu_s).sum();
        let memory = field(&fs::read_to_string(self.proc.join("meminfo"))?, "MemTotal:").unwrap_or(0.0);
        Ok(Usage {
            incarnation: format!("{server} {}", stat.started),
            cpu_s: running + stat.ended as f64 / TICKS_PER_S,
            shared_bytes,
            processes,
            cores: cores(&fs::read_to_string(self.proc.join("stat"))?),
            memory_bytes: memory,
        })
    }

    fn all(&self) -> io::Result<BTreeMap<u32, Stat>> {
        let mut all = BTreeMap::new();
        for entry in fs::read_dir(&self.proc)? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if let Some(stat) = self.stat(pid)? {
                all.insert(pid, stat);
            }
        }
        Ok(all)
    }

    /// `None` if there is no such process (any more), or not for us.
    fn stat(&self, pid: u32) -> io::Result<Option<Stat>> {
        let file = self.of(pid).join("stat");
        match fs::read(&file) {
            Ok(bytes) => Ok(stat(&String::from_utf8_lossy(&bytes))),
            Err(_) => Ok(None),
        }
    }

    /// Resident bytes of a process that are its own, and that others have too. Pages of one process that others still have
    /// from its fork count for each: a few MiB too much.
    fn resident(&self, pid: u32) -> (f64, f64) {
        let status = fs::read_to_string(self.of(pid).join("status")).unwrap_or_default();
        let bytes = |name| field(&status, name).unwrap_or(0.0);
        (bytes("RssAnon:"), bytes("RssFile:") + bytes("RssShmem:"))
    }

    fn of(&self, pid: u32) -> PathBuf {
        Path::new(&self.proc).join(pid.to_string())
    }
}

/// The child of `server` that `pid` is, or is below of.
fn child_above(pid: u32, server: u32, all: &BTreeMap<u32, Stat>) -> Option<u32> {
    let parent = |pid: &u32| all.get(pid).map(|stat| stat.parent);
    // Processes change while they are read: a chain longer than there are processes is a circle.
    std::iter::successors(Some(pid), parent).take(all.len()).find(|pid| parent(pid) == Some(server))
}

fn stat(text: &str) -> Option<Stat> {
    // The command may hold blanks and brackets.
    let (open, close) = (text.find('(')?, text.rfind(')')?);
    let command = text.get(open + 1..close)?.to_owned();
    let fields: Vec<&str> = text.get(close + 1..)?.split_whitespace().collect();
    // Numbered from the state, field 3 of proc(5).
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok().and_then(|n| u64::try_from(n).ok());
    Some(Stat {
        command,
        parent: u32::try_from(number(1)?).ok()?,
        own: number(11)? + number(12)?,
        ended: number(13)? + number(14)?,
        started: number(19)?,
    })
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The value of a line `name  123 kB`, in bytes.
fn field(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)).and_then(first_number).map(|kib| kib * 1024.0)
}

fn cores(stat: &str) -> f64 {
    let is_core =
        |line: &&str| line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    stat.lines().filter(is_core).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: u32, command: &str, parent: u32, times: [u64; 4], started: u64, kib: [u64; 3]) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        let [user, system, ended_user, ended_system] = times;
        let stat = format!(
            "{pid} ({command}) S {parent} 1 1 0 -1 4194624 9 9 9 9 {user} {system} {ended_user} {ended_system} 20 0 1 0 \
             {started} 99 99\n"
        );
        fs::write(folder.join("stat"), stat).unwrap();
        let [anon, file, shmem] = kib;
        let status = format!("Name:\tx\nRssAnon:\t {anon} kB\nRssFile:\t {file} kB\nRssShmem:\t {shmem} kB\n");
        fs::write(folder.join("status"), status).unwrap();
    }

    fn machine() -> (tempfile::TempDir, LocalProcesses) {
        let folder = tempfile::tempdir().unwrap();
        let proc = folder.path();
        fs::write(proc.join("uptime"), "1000.00 1.00\n").unwrap();
        fs::write(proc.join("meminfo"), "MemTotal:  2048 kB\nMemFree: 1 kB\n").unwrap();
        fs::write(proc.join("stat"), "cpu  1 2\ncpu0 1 2\ncpu1 1 2\nintr 5\nbtime 3\n").unwrap();
        process(proc, 1, "init", 0, [900, 0, 900, 0], 1, [500, 500, 500]);
        process(proc, 10, "postgres", 1, [100, 20, 1000, 300], 50_000, [1, 10, 5]);
        process(proc, 11, "postgres", 10, [40, 2, 0, 0], 50_001, [2, 10, 20]);
        process(proc, 12, "postgres", 10, [500, 0, 8, 0], 99_000, [4, 10, 30]);
        // An archive command of process 11, under a shell with an odd name.
        process(proc, 13, "sh) S 1", 11, [3, 0, 4, 0], 99_500, [8, 1, 0]);
        process(proc, 14, "cp", 13, [5, 0, 0, 0], 99_501, [16, 1, 0]);
        process(proc, 20, "postgres", 1, [7000, 0, 0, 0], 60_000, [900, 900, 900]);
        let source = LocalProcesses { proc: proc.to_owned() };
        (folder, source)
    }

    #[tokio::test]
    async fn sums_the_tree_with_those_that_have_ended() {
        let (_folder, source) = machine();
        let node = NodeId::new("n").unwrap();
        let usage = source.usage(&node, Backend { pid: 12, age_s: 10.5 }).await.unwrap();
        assert_eq!(usage.processes.keys().copied().collect::<Vec<_>>(), [10, 11, 12]);
        let cpu = |pid: u32| usage.processes[&pid].cpu_s;
        assert!((cpu(10) - 1.2).abs() < 1e-9, "without the ended ones");
        assert!((cpu(11) - 0.54).abs() < 1e-9, "with what is below it");
        assert!((cpu(12) - 5.08).abs() < 1e-9);
        assert!((usage.cpu_s - 1.2 - 0.54 - 5.08 - 13.0).abs() < 1e-9);
        assert_eq!(usage.processes[&11].started, 50_001);
        assert!((usage.processes[&11].private_bytes - 26.0 * 1024.0).abs() < 1e-9);
        assert!((usage.shared_bytes - 40.0 * 1024.0).abs() < 1e-9, "what is shared counts once");
        assert!((usage.memory() - 71.0 * 1024.0).abs() < 1e-9);
        assert_eq!((usage.cores, usage.memory_bytes), (2.0, 2048.0 * 1024.0));
    }

    #[tokio::test]
    async fn takes_no_other_process_for_the_server() {
        let (_folder, source) = machine();
        let node = NodeId::new("n").unwrap();
        for (pid, age_s) in [(12, 100.0), (12, -3.0), (13, 5.0), (99, 10.0)] {
            assert_eq!(source.usage(&node, Backend { pid, age_s }).await, None, "{pid} {age_s}");
        }
    }

    #[test]
    fn refuses_damaged_lines() {
        for text in ["", "1 (a", "1 (a) S", "1 (a) S x 1 1 0 -1 4 9 9 9 9 1 1 1 1 20 0 1 0 5"] {
            assert_eq!(stat(text), None, "{text}");
        }
    }
}
