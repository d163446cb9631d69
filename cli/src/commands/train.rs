//! `foreshard train`: fit, calibrate, backtest, gate, write a version.

use foreshard_datasets::{BoundedHistory, MemoryBudget, ReadFilter};
use foreshard_domain::{ContenderRole, Product};
use foreshard_model::{ForecastSpec, ModelKind};
use foreshard_report::evaluation_html;
use foreshard_training::{
    CheckpointPolicy, FitControl, FitProgress, GateLimits, ProductSpec, Registry, TrainOptions, TrainParams,
    TrainReport, train_version_of,
};
use serde::Serialize;

use crate::args::TrainArgs;
use crate::commands::progress::Progress;
use crate::commands::{events, path, percent};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// Steps between two checkpoints.
const CHECKPOINT_EVERY: usize = 50;

#[derive(Serialize)]
struct Trained<'a> {
    number: u64,
    #[serde(flatten)]
    report: &'a TrainReport,
}

/// Trains and prints the verdict of the gate; not being promoted is a "no".
pub fn run(args: &TrainArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let registry = Registry::open(path(&args.registry, &settings.registry.path))?;
    let bytes = settings.train.memory_mib.saturating_mul(1 << 20);
    let budget = MemoryBudget { bytes, scratch: registry.root().to_owned() };
    let history = BoundedHistory::read(path(&args.history, &settings.data.history), &ReadFilter::default(), &budget)?;
    let product = |product: Product| {
        let forecast = ForecastSpec { zone: settings.data.zone.clone(), ..ForecastSpec::of_product(product) };
        ProductSpec { name: product.name().to_owned(), forecast }
    };
    let params = TrainParams {
        model: args.model.unwrap_or(settings.train.model),
        products: Product::ALL.map(product).to_vec(),
        seed: args.seed.unwrap_or(settings.train.seed),
        steps: args.steps.unwrap_or(settings.train.steps),
        threads: settings.train.threads,
        ..TrainParams::default()
    };
    let spec = params.check()?;
    let checkpoint = args.checkpoint.clone().map(|dir| CheckpointPolicy { dir, every_steps: CHECKPOINT_EVERY });
    let mut progress = Progress::new();
    let mut on_step = |p: FitProgress| {
        let (done, all) = p.step;
        progress.set(&format!("training {}", p.product), done as f64 / all.max(1) as f64, &loss(&p));
    };
    let mut control = FitControl { progress: &mut on_step, checkpoint, stop: &|| false };
    let events = events(path(&args.events, &settings.data.events))?;
    let rivals = &[ModelKind::Ridge];
    let options = TrainOptions { limits: GateLimits::default(), events, rivals, render: &evaluation_html };
    let report = train_version_of(&history, &spec, &registry, &settings.registry.model, &options, &mut control)?;
    drop(progress);
    output::print(format, &Trained { number: report.version.number, report: &report }, |t| text(t.report))?;
    Ok(if report.promoted { Verdict::Done } else { Verdict::No })
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
            rows.push(vec![section.name.clone(), role.to_owned(), figure(s.wql), figure(s.sql_geo), cover]);
        }
    }
    text.push_str(&output::table(&["backtest", "forecaster", "wql", "sql_geo", "cover 80 %"], &rows));
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
