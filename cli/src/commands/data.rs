//! `foreshard data`: histories in, out and looked at.

mod range;

use foreshard_datasets::{
    HistoryFolder, ImportOptions, Inspection, ReadFilter, ReadReport, Workload, WorkloadSpec, import, inspect,
    read_history, write_events, write_history,
};
use foreshard_domain::{NodeId, Observation, Step};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

use crate::args::DataCommand;
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Runs one of the subcommands.
pub fn run(command: &DataCommand, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    match command {
        DataCommand::Import { from: Some(from), to, speed, .. } => bring_in(from, to, speed, format),
        DataCommand::Import { from: None, to, speed, range } => {
            range::bring_in(range, to, speed, &settings.serve.prometheus, format)
        }
        DataCommand::Generate { to, shards, days, seed, zone, events, end } => {
            let mut spec = WorkloadSpec {
                shards: *shards,
                days: *days,
                seed: *seed,
                zone: zone.clone(),
                ..WorkloadSpec::default()
            };
            spec.tenants = spec.tenants.min(spec.shards);
            if let Some(end) = end {
                spec.start = spec.step.floor(*end).plus_steps(-i64::from(*days), Step::DAY);
            }
            generate(to, events.as_deref(), spec, format)
        }
        DataCommand::Inspect { path } => show(path, format),
    }
}

#[derive(Serialize)]
struct Written {
    to: String,
    rows: u64,
    shards: usize,
    note: String,
}

fn print_written(format: Format, written: &Written) -> Result<Verdict, Failure> {
    output::print(format, written, |w| {
        format!("{} rows of {} shards written to {}{}", w.rows, w.shards, w.to, w.note)
    })?;
    Ok(Verdict::Done)
}

fn generate(to: &Path, events: Option<&Path>, spec: WorkloadSpec, format: Format) -> Result<Verdict, Failure> {
    let shards = spec.shards;
    let workload = Workload::new(spec)?;
    let rows = write_history(to, workload.rows())?;
    let mut note = String::new();
    if let Some(file) = events {
        let campaigns = workload.events();
        write_events(file, &campaigns)?;
        note = format!(", {} events to {}", campaigns.len(), file.display());
    }
    print_written(format, &Written { to: to.display().to_string(), rows, shards, note })
}

/// Rows of one call while a folder is filled: pieces of some megabytes.
const ROWS_AT_ONCE: usize = 100_000;

/// Whether one history file is to be written, and no folder of them.
fn is_file(to: &Path) -> bool {
    to.extension().is_some_and(|e| e == "parquet")
}

/// A file with an ending is one history file; anything else a dated folder, as the serving process wants it.
fn bring_in(from: &Path, to: &Path, speeds: &[(NodeId, f64)], format: Format) -> Result<Verdict, Failure> {
    let options =
        ImportOptions { speeds: speeds.iter().cloned().collect::<BTreeMap<_, _>>(), ..ImportOptions::default() };
    let report = if is_file(to) {
        import(from, to, &options)?
    } else {
        let staged = tempfile::NamedTempFile::with_suffix(".parquet")?;
        let report = import(from, staged.path(), &options)?;
        fill_folder(staged.path(), to)?;
        report
    };
    let odd = if report.read.is_clean() { String::new() } else { format!("\nnote: {}", odd(&report.read)) };
    let written = Written { to: to.display().to_string(), rows: report.rows, shards: report.shards, note: odd };
    print_written(format, &written)
}

fn fill_folder(from: &Path, to: &Path) -> Result<(), Failure> {
    let folder = HistoryFolder::open(to, "import")?;
    let mut rows: Vec<Observation> = read_history(from, &ReadFilter::default())?.observations().collect();
    // By time, so that each call touches few days.
    rows.sort_by_key(|row| row.ts);
    for some in rows.chunks(ROWS_AT_ONCE) {
        folder.append(some)?;
    }
    Ok(())
}

fn show(path: &Path, format: Format) -> Result<Verdict, Failure> {
    let history = read_history(path, &ReadFilter::default())?;
    output::print(format, &inspect(&history), inspected)?;
    Ok(Verdict::Done)
}

fn inspected(seen: &Inspection) -> String {
    let when = |at: &Option<String>| at.clone().unwrap_or_else(|| "-".to_owned());
    let minutes = |ms: i64| format!("{:.0} min", ms as f64 / 60_000.0);
    let mut text = format!(
        "{} rows of {} shards from {} to {}, a row every {}\ncoverage {:.2} %, {} gaps, the longest {}, {} constant shards\nfingerprint {}\n",
        seen.rows,
        seen.shards,
        when(&seen.first),
        when(&seen.last),
        seen.native_step_ms.map_or("-".to_owned(), minutes),
        seen.coverage * 100.0,
        seen.gaps,
        minutes(seen.longest_gap_ms),
        seen.constant_shards,
        seen.fingerprint
    );
    if !seen.read.is_clean() {
        text.push_str(&format!("note: {}\n", odd(&seen.read)));
    }
    let share = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.2}"));
    let row = |(metric, m): (&foreshard_domain::Metric, &foreshard_datasets::MetricInspection)| {
        vec![
            metric.to_string(),
            m.shards.to_string(),
            m.missing.to_string(),
            format!("{:.2}", m.min),
            format!("{:.2}", m.mean),
            format!("{:.2}", m.p99),
            format!("{:.2}", m.max),
            share(m.daily_strength),
            share(m.weekly_strength),
        ]
    };
    let rows: Vec<_> = seen.metrics.iter().map(row).collect();
    let header = ["metric", "shards", "missing", "min", "mean", "p99", "max", "daily", "weekly"];
    format!("{text}\n{}", output::table(&header, &rows))
}

/// What was odd while reading, in one line.
fn odd(read: &ReadReport) -> String {
    let mut parts = Vec::new();
    if read.duplicates > 0 {
        parts.push(format!("{} rows repeat a shard and time, the last one won", read.duplicates));
    }
    for (column, values) in &read.not_finite {
        parts.push(format!("{values} values of {column} are no numbers and count as missing"));
    }
    if !read.unknown_columns.is_empty() {
        let names: Vec<&str> = read.unknown_columns.iter().map(String::as_str).collect();
        parts.push(format!("columns passed over: {}", names.join(", ")));
    }
    parts.join("; ")
}
