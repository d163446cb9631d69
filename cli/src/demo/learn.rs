//! What is learned: the forecaster before the day, and after it once more from what the day showed; the cost of moves from how
//! long they took.

use foreshard_datasets::{ReadFilter, read_history, read_outcomes};
use foreshard_domain::{Metric, OutcomeResult, Product, SystemClock};
use foreshard_model::{ModelKind, Version};
use foreshard_report::evaluation_html;
use foreshard_training::{
    FitControl, FitProgress, GateLimits, Registry, TrainOptions, TrainParams, TrainReport, train_version,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cluster::prior;
use super::day::Lived;
use super::report::{BeforeAfter, Verdict};
use super::{DemoError, DemoProgress, blocking};

/// Name of the model in the registry.
pub const MODEL: &str = "load";
/// Optimiser steps of the first version.
const FIRST_STEPS: usize = 300;
/// Optimiser steps of the retrained one, which starts from the first one's weights.
const AGAIN_STEPS: usize = 100;
/// Peak of the learning rate of the first version.
const FIRST_RATE: f64 = 3e-3;
/// The same of the retrained one: low, so that what was learned before is not unlearned.
const AGAIN_RATE: f64 = 1e-3;

/// Progress of training is told every so many steps.
const TELL_EVERY: usize = 50;

/// What was learned from the day.
#[derive(Debug)]
pub struct Learned {
    /// The version that serves from now on.
    pub champion: String,
    /// What the gate said of the retrained one.
    pub retraining: Verdict,
    /// The cost model before and after.
    pub cost_model: BeforeAfter,
    /// What its gate said.
    pub cost_refit: Verdict,
}

/// Trains the first version on the history; returns its name.
///
/// # Errors
/// [`DemoError`] if training fails, or the version does not pass the gate: then there is nothing to serve.
pub async fn first(
    history: &Path,
    registry: &Path,
    seed: u64,
    out: &mut dyn DemoProgress,
) -> Result<String, DemoError> {
    out.say("training the forecaster: next hours, CPU, memory and I/O");
    let report =
        train(history.to_owned(), registry.to_owned(), params(seed, (FIRST_STEPS, FIRST_RATE), None), out).await?;
    if !report.promoted {
        return Err(DemoError::NotPromoted { reasons: report.reasons.join("; ") });
    }
    for reason in &report.reasons {
        out.say(&format!("  {reason}"));
    }
    Ok(report.version.to_string())
}

/// Retrains on the history with the day in it, and refits the cost of moves on the day's outcomes.
///
/// # Errors
/// [`DemoError`] if a fit fails. A retrained version that does not pass the gate is no error: the champion stays.
pub async fn again(root: &Path, lived: &Lived, seed: u64, out: &mut dyn DemoProgress) -> Result<Learned, DemoError> {
    let (history, registry_path) = (root.join("history"), root.join("registry"));
    let registry = Registry::open(&registry_path).map_err(DemoError::Registry)?;
    let champion = registry.champion(MODEL).map_err(DemoError::Registry)?.map(Arc::new);
    let report = train(history, registry_path, params(seed, (AGAIN_STEPS, AGAIN_RATE), champion), out).await?;
    let champion = registry.champion(MODEL).map_err(DemoError::Registry)?;
    let (cost_model, cost_refit) = refit_cost(&registry, &root.join("outcomes"), lived)?;
    Ok(Learned {
        champion: champion.map_or_else(|| "none".to_owned(), |version| version.id().to_string()),
        retraining: Verdict { accepted: report.promoted, reasons: report.reasons },
        cost_model,
        cost_refit,
    })
}

/// Refits the cost of moves on the logged outcomes; it is kept under the next number if it predicts them better than the
/// one in use. Without a finished move it stays.
fn refit_cost(registry: &Registry, outcomes: &Path, lived: &Lived) -> Result<(BeforeAfter, Verdict), DemoError> {
    let before = prior();
    let stays = before.number.to_string();
    if !lived.outcomes.iter().any(|outcome| outcome.result == OutcomeResult::Done) {
        let nothing = Verdict { accepted: false, reasons: vec!["no move to learn from".to_owned()] };
        return Ok((BeforeAfter { before: stays.clone(), after: stays }, nothing));
    }
    let outcomes = read_outcomes(outcomes).map_err(DemoError::Log)?;
    let (model, verdict) = registry.cost_models().learn(&outcomes, &before).map_err(DemoError::CostRegistry)?;
    let judged = Verdict { accepted: verdict.accepted, reasons: vec![verdict.reason] };
    Ok((BeforeAfter { before: stays, after: model.number.to_string() }, judged))
}

fn params(seed: u64, (steps, learning_rate): (usize, f64), warm_start: Option<Arc<Version>>) -> TrainParams {
    TrainParams {
        products: vec![Product::NextHours.into()],
        metrics: Some(vec![Metric::CpuUtil, Metric::MemUtil, Metric::IoOps]),
        seed,
        steps,
        learning_rate,
        warm_start,
        ..TrainParams::default()
    }
}

/// Trains on a thread of its own and tells how it goes from here.
async fn train(
    history: PathBuf,
    registry: PathBuf,
    params: TrainParams,
    out: &mut dyn DemoProgress,
) -> Result<TrainReport, DemoError> {
    let (tells, mut hears) = tokio::sync::mpsc::unbounded_channel::<FitProgress>();
    let training = tokio::spawn(blocking(move || {
        let spec = params.check().map_err(DemoError::TrainSettings)?;
        let history = read_history(&history, &ReadFilter::default()).map_err(DemoError::History)?;
        let registry = Registry::open(registry).map_err(DemoError::Registry)?;
        // Nobody listening any more is no reason to stop.
        let mut progress = |at: FitProgress| _ = tells.send(at);
        let mut control = FitControl { progress: &mut progress, checkpoint: None, stop: &|| false };
        let options = TrainOptions {
            limits: GateLimits::default(),
            events: Default::default(),
            rivals: &[ModelKind::Ridge],
            clock: &SystemClock,
            render: &evaluation_html,
        };
        train_version(&history, &spec, &registry, MODEL, &options, &mut control).map_err(DemoError::Train)
    }));
    while let Some(at) = hears.recv().await {
        let ((network, networks), (done, most)) = (at.member, at.step);
        if done.is_multiple_of(TELL_EVERY) || done == most {
            out.progress("training", (network * most + done) as u64, (networks * most) as u64);
        }
    }
    training.await.map_err(DemoError::Task)?
}
