//! `foreshard train`: fit, calibrate, backtest, gate, write a version.

pub mod drift;
mod scheduled;

use foreshard_datasets::{BoundedHistory, MemoryBudget, ReadFilter};
use foreshard_domain::{ContenderRole, Product, SystemClock};
use foreshard_model::{ForecastSpec, ModelKind};
use foreshard_report::evaluation_html;
use foreshard_training::{
    CheckpointPolicy, DriftReport, FitControl, FitProgress, GateLimits, ProductSpec, Registry, TrainOptions,
    TrainParams, TrainReport, train_version_of,
};
use serde::Serialize;
use std::path::Path;

use crate::args::TrainArgs;
use crate::commands::progress::Progress;
use crate::commands::{events, loss_ratio, path, percent};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Steps between two checkpoints.
const CHECKPOINT_EVERY: usize = 50;

#[derive(Serialize)]
struct Trained<'a> {
    number: u64,
    #[serde(flatten)]
    report: &'a TrainReport,
    /// Why it was time to train, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    drift: Option<&'a DriftReport>,
}

/// Trains once, or whenever it is due.
pub fn run(args: &TrainArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    match &args.schedule {
        Some(schedule) => scheduled::run(schedule, args, settings, format),
        None => turn(args, settings, format, &|| false),
    }
}

fn registry(args: &TrainArgs, settings: &Settings) -> Result<Registry, Failure> {
    Ok(Registry::open(path(&args.registry, &settings.registry.path))?)
}

/// The history, as much of it in memory as the settings allow.
fn read(registry: &Registry, history: &Path, settings: &Settings) -> Result<BoundedHistory, Failure> {
    let bytes = settings.train.memory_mib.saturating_mul(1 << 20);
    let budget = MemoryBudget { bytes, scratch: registry.root().to_owned() };
    Ok(BoundedHistory::read(history, &ReadFilter::default(), &budget)?)
}

/// Trains and prints the verdict of the gate; not being promoted is a "no". Where it is to train only after drift and there is
/// none, it says so and is done.
fn turn(args: &TrainArgs, settings: &Settings, format: Format, stop: &dyn Fn() -> bool) -> Result<Verdict, Failure> {
    let registry = registry(args, settings)?;
    let history = read(&registry, path(&args.history, &settings.data.history), settings)?;
    let events_file = path(&args.events, &settings.data.events);
    let model = &settings.registry.model;
    let drift =
        if args.if_drifted { drift::of_champion(&registry, model, &history, (events_file, settings))? } else { None };
    if let Some(report) = drift.as_ref().filter(|report| !report.drifted()) {
        output::print(format, report, |report| format!("{}nothing was trained\n", drift::text(report)))?;
        return Ok(Verdict::Done);
    }
    let spec = params(args, settings).check()?;
    let checkpoint = args.checkpoint.clone().map(|dir| CheckpointPolicy { dir, every_steps: CHECKPOINT_EVERY });
    let mut progress = Progress::new();
    let mut on_step = |p: FitProgress| {
        let (done, all) = p.step;
        progress.set(&format!("training {}", p.product), done as f64 / all.max(1) as f64, &loss(&p));
    };
    let mut control = FitControl { progress: &mut on_step, checkpoint, stop };
    let rivals = &[ModelKind::Ridge];
    let events = events(events_file)?;
    let options =
        TrainOptions { limits: GateLimits::default(), events, rivals, clock: &SystemClock, render: &evaluation_html };
    let report = train_version_of(&history, &spec, &registry, model, &options, &mut control)?;
    drop(progress);
    let trained = Trained { number: report.version.number, report: &report, drift: drift.as_ref() };
    output::print(format, &trained, |t| t.drift.map(drift::text).unwrap_or_default() + &text(t.report))?;
    Ok(if report.promoted { Verdict::Done } else { Verdict::No })
}

fn params(args: &TrainArgs, settings: &Settings) -> TrainParams {
    let product = |product: Product| {
        let forecast = ForecastSpec { zone: settings.data.zone.clone(), ..ForecastSpec::of_product(product) };
        ProductSpec { name: product.name().to_owned(), forecast }
    };
    TrainParams {
        model: args.model.unwrap_or(settings.train.model),
        products: Product::ALL.map(product).to_vec(),
        seed: args.seed.unwrap_or(settings.train.seed),
        steps: args.steps.unwrap_or(settings.train.steps),
        threads: settings.train.threads,
        ..TrainParams::default()
    }
}

/// What a fit tells of its loss, once it knows one.
pub fn loss(p: &FitProgress) -> String {
    if p.loss.is_finite() { format!("loss {:.4}", p.loss) } else { String::new() }
}

fn text(report: &TrainReport) -> String {
    let mut text = format!("version {} written to {}\n", report.version, report.path.display());
    let mut rows = Vec::new();
    for section in &report.evaluation.sections {
        for contender in &section.contenders {
            let s = &contender.scores;
            let figure = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
            let role = match contender.role {
                ContenderRole::Subject => "this version",
                ContenderRole::Champion => "champion",
                ContenderRole::SeasonalNaive => "yesterday repeats",
                ContenderRole::Rival => contender.name.as_str(),
            };
            let cover = s.coverage_80.map_or("-".to_owned(), percent);
            let first = loss_ratio(contender);
            rows.push(vec![section.name.clone(), role.to_owned(), figure(s.wql), figure(s.sql_geo), cover, first]);
        }
    }
    text.push_str(&output::table(&["backtest", "forecaster", "wql", "sql_geo", "cover 80 %", "this to it"], &rows));
    for skipped in &report.skipped {
        text.push_str(&format!("left out: {}: {}\n", skipped.product, skipped.why));
    }
    text.push_str(if report.promoted {
        "promoted: it is champion now\n"
    } else {
        "not promoted: the champion stays\n"
    });
    for reason in &report.reasons {
        text.push_str(&format!("  - {reason}\n"));
    }
    text
}
