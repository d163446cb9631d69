//! `foreshard models drift`, and the question whether to train at all.

use foreshard_datasets::BoundedHistory;
use foreshard_domain::Timestamp;
use foreshard_training::{DriftReport, LiveFigures, Registry, drift};
use std::path::PathBuf;

use crate::args::RegistryArgs;
use crate::commands::{events, models, path, percent};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Prints how the champion fits the loads; that it does not is a "no".
pub fn run(
    at: &RegistryArgs,
    (history, events_file): (&Option<PathBuf>, &Option<PathBuf>),
    settings: &Settings,
    format: Format,
) -> Result<Verdict, Failure> {
    let (registry, model) = models::open(at, settings)?;
    let history = super::read(&registry, path(history, &settings.data.history), settings)?;
    let events = path(events_file, &settings.data.events);
    let report = of_champion(&registry, &model, &history, (events, settings))?;
    let report = report.ok_or_else(|| format!("model {model} has no champion; train one first"))?;
    output::print(format, &report, text)?;
    Ok(if report.drifted() { Verdict::No } else { Verdict::Done })
}

/// How the champion fits the loads; `None` without one.
pub fn of_champion(
    registry: &Registry,
    model: &str,
    history: &BoundedHistory,
    (events_file, settings): (&std::path::Path, &Settings),
) -> Result<Option<DriftReport>, Failure> {
    let Some(champion) = registry.champion(model)? else { return Ok(None) };
    let events = events(events_file)?;
    Ok(Some(drift(history, &champion, &events, &settings.train.drift)?))
}

/// The report as text.
pub fn text(report: &DriftReport) -> String {
    let days = days(report.since, report.until);
    let mut text =
        format!("{}: its history ended {}, {days:.1} days before this one ends\n", report.version, report.since);
    let figure = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    let cover = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), percent);
    let row = |l: &LiveFigures| {
        let cusum = l.cusum.map_or_else(|| "-".to_owned(), |c| format!("{c:.1}"));
        let windows = l.windows.to_string();
        let to_naive =
            |wql: Option<f64>, naive: Option<f64>| figure(wql.zip(naive).filter(|(_, n)| *n > 0.0).map(|(w, n)| w / n));
        let losses = [to_naive(l.wql_before, l.naive_before), to_naive(l.wql_since, l.naive_since)];
        let coverage = [l.coverage_before, l.coverage_since].map(cover);
        let place = format!("{}, {}", l.product, l.metric);
        [vec![place, windows, figure(l.wql_since)], losses.to_vec(), vec![cusum], coverage.to_vec()].concat()
    };
    let rows: Vec<_> = report.live.iter().map(row).collect();
    if rows.is_empty() {
        text.push_str("no whole window has come since\n");
    } else {
        let header = ["since then", "windows", "wql", "to naive: judged", "since", "cusum", "80 %: judged", "since"];
        text.push_str(&output::table(&header, &rows));
    }
    let of = |index: Option<f64>| index.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let rows: Vec<_> = report.stability.iter().map(|s| vec![s.metric.to_string(), of(s.index)]).collect();
    text.push_str(&output::table(&["loads", "population stability index"], &rows));
    text.push_str(&format!("{} of {} shards have come since\n", report.unseen_shards, report.shards));
    text.push_str(if report.drifted() { "it no longer fits:\n" } else { "it still fits\n" });
    report.reasons.iter().for_each(|reason| text.push_str(&format!("  - {reason}\n")));
    text
}

fn days(since: Timestamp, until: Timestamp) -> f64 {
    until.since_ms(since) as f64 / 86_400_000.0
}
