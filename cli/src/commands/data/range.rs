//! `foreshard data import --prometheus`: a range of the past of a Prometheus.

use foreshard_datasets::prometheus::{PulledSeries, RangeImport, RangeReport, import_range};
use foreshard_domain::{Clock as _, NodeId, SystemClock};
use std::path::Path;

use super::{Written, fill_folder, is_file, print_written};
use crate::args::RangeArgs;
use crate::output::{Failure, Format, Verdict};
use crate::settings::PullSettings;

/// Imports what the arguments name, or else the settings.
pub(super) fn bring_in(
    args: &RangeArgs,
    to: &Path,
    speeds: &[(NodeId, f64)],
    settings: &PullSettings,
    format: Format,
) -> Result<Verdict, Failure> {
    let source = settings.source(args.prometheus.as_deref().unwrap_or_default())?;
    let what = RangeImport {
        series: series(args, settings)?,
        from: args.start.ok_or("--start is missing: from when on the past is wanted")?,
        to: args.end.unwrap_or_else(|| SystemClock.model()),
        step: args.step.map_or_else(|| settings.step(), Ok)?,
        speeds: speeds.iter().cloned().collect(),
    };
    let mut told =
        |series: &PulledSeries| tracing::info!(metric = %series.metric, query = series.query, "asking Prometheus");
    let report = if is_file(to) {
        import_range(&source, &what, to, &mut told)?
    } else {
        let staged = tempfile::NamedTempFile::with_suffix(".parquet")?;
        let report = import_range(&source, &what, staged.path(), &mut told)?;
        fill_folder(staged.path(), to)?;
        report
    };
    let note = note(&report);
    print_written(format, &Written { to: to.display().to_string(), rows: report.rows, shards: report.shards, note })
}

fn series(args: &RangeArgs, settings: &PullSettings) -> Result<Vec<PulledSeries>, Failure> {
    let Some(shard) = &args.shard else {
        if settings.series.is_empty() {
            return Err("nothing is asked for: give --query and --shard, or set serve.prometheus.series".into());
        }
        return Ok(settings.series.clone());
    };
    let one = |(metric, query): &(_, String)| PulledSeries {
        query: query.clone(),
        metric: *metric,
        shard: shard.clone(),
        node: args.node.clone(),
        scale: 1.0,
    };
    Ok(args.query.iter().map(one).collect())
}

fn note(report: &RangeReport) -> String {
    let values = report.values;
    let mut note = String::new();
    for (number, what) in [
        (values.missing, "values said that there was nothing"),
        (values.refused, "values were left out"),
        (values.doubled, "values of second series for one shard were left out"),
    ] {
        if number > 0 {
            note.push_str(&format!("\nnote: {number} {what}"));
        }
    }
    if let Some(example) = &report.left_out {
        note.push_str(&format!("; {example}"));
    }
    note
}
