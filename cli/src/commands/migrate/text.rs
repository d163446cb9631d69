//! Migrations as people and programs read them.

use foreshard_api::{DryRunReport, JournalLine, Migration, MigrationDetails};
use foreshard_domain::{NodeId, ShardId, Timestamp};
use serde::Serialize;
use std::fmt::Write as _;

use crate::output::table;

/// One migration.
#[derive(Serialize)]
pub struct Row {
    id: String,
    shard: ShardId,
    source: NodeId,
    target: NodeId,
    epoch: u64,
    state: String,
    since: String,
    at_rest: bool,
    ended: bool,
    carried: bool,
    rows: u64,
    bytes: u64,
    expected_bytes: f64,
    behind: u64,
    verified_rows: u64,
    fences: u32,
    fence_ms: u64,
    fence_back_ms: u64,
    copied_by: Option<String>,
    created_at: String,
    started_at: Option<String>,
    moved_at: Option<String>,
    ended_at: Option<String>,
    last_error: Option<String>,
    next_step: String,
    undo: String,
}

impl From<&Migration> for Row {
    fn from(m: &Migration) -> Self {
        let p = m.progress;
        let text = |at: Option<Timestamp>| at.map(|at| at.to_string());
        Self {
            id: m.id.to_string(),
            shard: m.shard.clone(),
            source: m.source.clone(),
            target: m.target.clone(),
            epoch: m.epoch.0,
            state: m.state.clone(),
            since: m.since.to_string(),
            at_rest: m.at_rest,
            ended: m.ended,
            carried: m.carried,
            rows: p.rows,
            bytes: p.bytes,
            expected_bytes: p.expected_bytes,
            behind: p.behind,
            verified_rows: p.verified_rows,
            fences: p.fences,
            fence_ms: p.fence_ms,
            fence_back_ms: p.fence_back_ms,
            copied_by: text(m.copied_by),
            created_at: m.created_at.to_string(),
            started_at: text(m.started_at),
            moved_at: text(m.moved_at),
            ended_at: text(m.ended_at),
            last_error: m.last_error.clone(),
            next_step: m.next_step.clone(),
            undo: m.undo.clone(),
        }
    }
}

/// What `list` shows.
#[derive(Serialize)]
pub struct Listed {
    migrations: Vec<Row>,
}

impl From<&[Migration]> for Listed {
    fn from(all: &[Migration]) -> Self {
        Self { migrations: all.iter().map(Row::from).collect() }
    }
}

/// What `show` shows.
#[derive(Serialize)]
pub struct Shown {
    migration: Row,
    objects: Vec<String>,
    journal: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    at: String,
    term: u64,
    event: String,
    state: String,
    note: Option<String>,
}

impl From<&MigrationDetails> for Shown {
    fn from(details: &MigrationDetails) -> Self {
        let line = |line: &JournalLine| Line {
            at: line.at.to_string(),
            term: line.term.0,
            event: line.event.clone(),
            state: line.state.clone(),
            note: line.note.clone(),
        };
        Self {
            migration: Row::from(&details.migration),
            objects: details.objects.clone(),
            journal: details.journal.iter().map(line).collect(),
        }
    }
}

/// What a dry run shows.
#[derive(Serialize)]
pub struct DryRun {
    id: String,
    /// Why the move would not begin, if the checks say so.
    pub refused: Option<String>,
    steps: Vec<String>,
}

impl From<&DryRunReport> for DryRun {
    fn from(report: &DryRunReport) -> Self {
        let migration = &report.migration;
        // What is not to be moved ends before it began.
        let refused = migration.ended.then(|| migration.last_error.clone().unwrap_or_default());
        Self { id: migration.id.to_string(), refused, steps: report.steps.clone() }
    }
}

/// All migrations, a line each.
pub fn list(listed: &Listed) -> String {
    if listed.migrations.is_empty() {
        return "no migrations; `foreshard migrate start SHARD --to NODE` begins one".to_owned();
    }
    let row = |m: &Row| {
        vec![
            m.id.clone(),
            m.shard.to_string(),
            format!("{} -> {}", m.source, m.target),
            m.state.clone(),
            m.since.clone(),
            m.rows.to_string(),
            bytes(m.bytes as f64),
            m.behind.to_string(),
            m.last_error.clone().unwrap_or_default(),
        ]
    };
    let header = ["migration", "shard", "move", "state", "since", "rows", "copied", "behind", "last error"];
    table(&header, &listed.migrations.iter().map(row).collect::<Vec<_>>())
}

/// All that is known of one migration.
pub fn details(shown: &Shown) -> String {
    let m = &shown.migration;
    let mut text = String::new();
    let mut say = |name: &str, what: &str| {
        let _ = writeln!(text, "{name:<12} {what}");
    };
    say("migration", &m.id);
    say("shard", &format!("{}, {} -> {}, epoch {}", m.shard, m.source, m.target, m.epoch));
    let nobody = if m.carried || m.at_rest { "" } else { "; no process works on it" };
    say("state", &format!("{} since {}{nobody}", m.state, m.since));
    say("copied", &format!("{} rows, {}{}", m.rows, bytes(m.bytes as f64), share(m)));
    say("behind", &format!("{} changes when last seen", m.behind));
    say("verified", &format!("{} rows", m.verified_rows));
    say("fences", &format!("{}; writes stopped for {} ms there, {} ms back", m.fences, m.fence_ms, m.fence_back_ms));
    say("copied by", m.copied_by.as_deref().unwrap_or("not known"));
    say("last error", m.last_error.as_deref().unwrap_or("none"));
    say("next", &m.next_step);
    if !(m.carried || m.at_rest) {
        say("", &format!("`foreshard migrate resume {}` goes on", m.id));
    }
    say("undo", &m.undo);
    if !shown.objects.is_empty() {
        text.push_str("\nexternal objects that may exist\n");
        for object in &shown.objects {
            let _ = writeln!(text, "  {object}");
        }
    }
    if !shown.journal.is_empty() {
        let row = |line: &Line| {
            let note = line.note.clone().unwrap_or_default();
            vec![line.at.clone(), line.term.to_string(), line.event.clone(), line.state.clone(), note]
        };
        let rows: Vec<_> = shown.journal.iter().map(row).collect();
        let _ = write!(text, "\n{}", table(&["at", "term", "event", "then", "note"], &rows));
    }
    text
}

/// What would be done.
pub fn dry_run(told: &DryRun) -> String {
    let mut text = format!("dry run of migration {}: only the checks were done, nothing was changed\n", told.id);
    for step in &told.steps {
        let _ = writeln!(text, "{step}");
    }
    if let Some(why) = &told.refused {
        let _ = writeln!(text, "refused        {why}");
    }
    text
}

/// How a migration goes, in one line.
pub fn progress(m: &Migration) -> String {
    let copied = format!("{} rows, {}", m.progress.rows, bytes(m.progress.bytes as f64));
    let end = m.copied_by.map_or_else(String::new, |at| format!(", copied by {at}"));
    let behind = if m.progress.behind > 0 { format!(", {} changes behind", m.progress.behind) } else { String::new() };
    format!("{}: {} ({copied}{behind}{end})", m.id, m.state)
}

/// What becomes of a migration whose watcher leaves.
pub fn left(m: &Migration, elsewhere: bool) -> String {
    let (id, state) = (&m.id, &m.state);
    if elsewhere {
        return format!(
            "migration {id}, {state}, goes on in the process that holds the store; `foreshard migrate show {id} --watch` \
             shows it, `foreshard migrate pause {id}` stops it"
        );
    }
    format!(
        "migration {id} stands still, {state}, and nothing is lost; `foreshard migrate resume {id}` goes on with it"
    )
}

fn share(m: &Row) -> String {
    if m.expected_bytes > 0.0 { format!(" of about {}", bytes(m.expected_bytes)) } else { String::new() }
}

fn bytes(n: f64) -> String {
    match n {
        n if n >= 1_073_741_824.0 => format!("{:.1} GiB", n / 1_073_741_824.0),
        n if n >= 1_048_576.0 => format!("{:.1} MiB", n / 1_048_576.0),
        n if n >= 1024.0 => format!("{:.1} KiB", n / 1024.0),
        n => format!("{n:.0} B"),
    }
}
