//! One turn of learning: set windows aside, fit, backtest, gate, write the version, label it.

use foreshard_datasets::{BoundedHistory, EventCalendar, History, HistoryError};
use foreshard_domain::{Clock, EvaluationReport, GateVerdict, Metric, ModelVersion};
use foreshard_model::{Context, Forecaster, ModelKind, Version, VersionError, VersionParts, write_version};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::backtest::{BacktestPlan, MetricBacktest, SkippedProduct, run_backtest};
use crate::card::{Told, card, evaluation_report};
use crate::evaluate::{Entrant, EvaluateError};
use crate::gate::{Contest, GateLimits, gate};
use crate::labels::Labels;
use crate::numbered::Reservation;
use crate::registry::{Registry, RegistryError};
use crate::rivals::FittedRivals;
use crate::{FitControl, FittedModel, ProductSpec, TrainError, TrainErrors, TrainParams, TrainSpec, fit};

/// What is decided by the caller of [`train_version`].
pub struct TrainOptions<'a> {
    /// What the version has to keep to be promoted.
    pub limits: GateLimits,
    /// Known events of the shards.
    pub events: Arc<EventCalendar>,
    /// Rivals that are fitted beside it and that it has to beat, besides those that need no fit; its own kind is left out.
    pub rivals: &'a [ModelKind],
    /// Tells how long a forecast takes.
    pub clock: &'a dyn Clock,
    /// Draws `report.html` from the data of `report.json`.
    pub render: &'a dyn Fn(&EvaluationReport) -> String,
}

/// What came of training a version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainReport {
    /// The new version.
    pub version: ModelVersion,
    /// Its folder.
    pub path: PathBuf,
    /// Whether it is champion now.
    pub promoted: bool,
    /// Why, or why not: the gate's sentences.
    pub reasons: Vec<String>,
    /// The labels afterwards.
    pub labels: Labels,
    /// Products that could not be trained.
    pub skipped: Vec<SkippedProduct>,
    /// The figures, as in `report.json`.
    pub evaluation: EvaluationReport,
}

/// Why no version came out.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// No product can be trained on this history.
    #[error("the history is too short to train any product: {}", listed(.skipped))]
    TooShort {
        /// Each product and why.
        skipped: Vec<SkippedProduct>,
    },
    /// The history could not be read.
    #[error("cannot read the history")]
    History(#[from] HistoryError),
    /// Fitting failed.
    #[error("the model could not be fitted")]
    Fit(#[from] TrainError),
    /// What is left of the parameters after products were skipped makes no sense.
    #[error("the training parameters cannot be used")]
    Spec(#[from] TrainErrors),
    /// The backtest failed.
    #[error("the backtest failed")]
    Backtest(#[from] EvaluateError),
    /// The report cannot be written as JSON.
    #[error("the report cannot be written as JSON")]
    Report(#[source] serde_json::Error),
    /// The version folder could not be written or read back.
    #[error("the version folder could not be written")]
    Version(#[source] Box<VersionError>),
    /// What was written does not answer as what was judged.
    #[error("version {number} read back from disk does not forecast as the one that was judged; nothing was published")]
    NotTheSame {
        /// Its number.
        number: u64,
    },
    /// The registry refused.
    #[error("the registry could not take the version")]
    Registry(#[from] RegistryError),
}

fn listed(skipped: &[SkippedProduct]) -> String {
    skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Trains a version of `model` on a history and publishes it; promotes it if it passes the gate.
///
/// The last windows of every series are set aside first ([`BacktestPlan`]); the version that is published is the one that
/// was judged on them. A product for which the history is too short is skipped and reported. A version that the gate
/// refuses is published too, as challenger, with the reasons in its report.
///
/// # Errors
/// [`PipelineError`]; nothing is published then.
pub fn train_version(
    history: &History,
    spec: &TrainSpec,
    registry: &Registry,
    model: &str,
    options: &TrainOptions<'_>,
    control: &mut FitControl<'_>,
) -> Result<TrainReport, PipelineError> {
    train_version_of(&history.clone().into(), spec, registry, model, options, control)
}

/// As [`train_version`], on a history that need not fit into memory: values are read series by series, as often as they are
/// needed. The version is the same to the bit.
///
/// # Errors
/// [`PipelineError`]; nothing is published then.
pub fn train_version_of(
    history: &BoundedHistory,
    spec: &TrainSpec,
    registry: &Registry,
    model: &str,
    options: &TrainOptions<'_>,
    control: &mut FitControl<'_>,
) -> Result<TrainReport, PipelineError> {
    let _turn = registry.training(model)?;
    // Labels that cannot be read are told before hours of fitting, not after.
    let champion_before = registry.labels(model)?.champion;
    let params = spec.params();
    let products = params.products.iter().map(|p| (p.name.as_str(), &p.forecast));
    let mut plan = BacktestPlan::new(history, products, params.metrics.as_deref())?;
    plan.announce(options.events.clone());
    let fitted = fit_what_can_be(&mut plan, spec, control)?;
    let rivals = FittedRivals::fit(options.rivals, &plan, spec, control.stop)?;
    let reservation = registry.reserve(model)?;
    let id = ModelVersion { model: model.to_owned(), number: reservation.number() };
    let champion = Champion::load(registry, model, champion_before);
    let backtest = backtest(&plan, (&fitted, &rivals), &id, champion.version.as_ref(), options.clock)?;
    let verdict = judge(&backtest, &champion, options);
    let remarks = [champion.remarks(&plan), rivals.missing.clone()].concat();
    let told = Told { id: &id, history, plan: &plan, params, fitted: &fitted, remarks: &remarks };
    let evaluation = evaluation_report(&told, &backtest, verdict);
    let parts = version_parts(&told, &evaluation, options)?;
    drop(backtest);
    write_checked(&reservation, &parts, &plan, &fitted)?;
    publish(registry, reservation, (champion_before, evaluation), plan.skipped)
}

/// The version that serves, as far as it can be compared with.
struct Champion {
    version: Option<Version>,
    problem: Option<String>,
}

impl Champion {
    /// A champion that cannot be loaded does not keep a successor from being trained; the report says so.
    fn load(registry: &Registry, model: &str, number: Option<u64>) -> Self {
        match number.map(|number| registry.load(model, number)).transpose() {
            Ok(version) => Self { version, problem: None },
            Err(error) => Self { version: None, problem: Some(format!("not compared with the champion: {error}")) },
        }
    }

    fn products(&self) -> BTreeSet<String> {
        let products = self.version.iter().flat_map(|v| &v.manifest().products);
        products.map(|p| p.name.clone()).collect()
    }

    /// What a reader of the comparison has to know.
    fn remarks(&self, plan: &BacktestPlan) -> Vec<String> {
        let until = self.version.as_ref().map(|v| (v.id(), v.manifest().trained_until));
        let overlap = until.zip(plan.first_window()).filter(|((_, until), first)| until > first);
        let overlap = overlap.map(|((id, until), first)| {
            format!("champion {id} was trained until {until}, the windows begin at {first}: it has seen some of them")
        });
        self.problem.iter().cloned().chain(overlap).collect()
    }
}

/// Fits all products for which there are windows; one that turns out too short for fitting is skipped and the rest fitted.
fn fit_what_can_be(
    plan: &mut BacktestPlan,
    spec: &TrainSpec,
    control: &mut FitControl<'_>,
) -> Result<FittedModel, PipelineError> {
    loop {
        let names = plan.products();
        let wanted = |p: &&ProductSpec| names.contains(p.name.as_str());
        let products: Vec<ProductSpec> = spec.params().products.iter().filter(wanted).cloned().collect();
        if products.is_empty() {
            return Err(PipelineError::TooShort { skipped: plan.skipped.clone() });
        }
        let reduced = TrainParams { products, ..spec.params().clone() }.check()?;
        match fit(plan, &reduced, control) {
            Ok(fitted) => return Ok(fitted),
            Err(error @ (TrainError::TooLittleHistory { .. } | TrainError::NoSeries { .. })) => {
                let (TrainError::TooLittleHistory { product, .. } | TrainError::NoSeries { product }) = &error else {
                    return Err(error.into());
                };
                plan.drop_product(product, error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn backtest<'a>(
    plan: &'a BacktestPlan,
    (fitted, rivals): (&'a FittedModel, &'a FittedRivals),
    id: &ModelVersion,
    champion: Option<&'a Version>,
    clock: &dyn Clock,
) -> Result<Vec<MetricBacktest<'a>>, EvaluateError> {
    let entrant = |product: &str| {
        let forecaster = fitted.forecaster(product)?;
        let (templates, risk) = (fitted.templates(product), fitted.risk(product));
        Some(Entrant { name: id.to_string(), forecaster, templates, risk })
    };
    let champion = |product: &str| Entrant::of_version(champion?, product);
    run_backtest(plan, &entrant, &champion, &|product| rivals.entrants(product), clock)
}

fn judge(backtest: &[MetricBacktest<'_>], champion: &Champion, options: &TrainOptions<'_>) -> GateVerdict {
    let contests: Vec<Contest<'_>> = backtest.iter().map(MetricBacktest::contest).collect();
    let offered: BTreeSet<String> = contests.iter().map(|c| c.product.to_owned()).collect();
    let withdrawn: Vec<String> = champion.products().difference(&offered).cloned().collect();
    gate(&contests, &withdrawn, &options.limits)
}

fn version_parts(
    told: &Told<'_>,
    evaluation: &EvaluationReport,
    options: &TrainOptions<'_>,
) -> Result<VersionParts, PipelineError> {
    let metrics: BTreeSet<Metric> = told.plan.windows.iter().map(|w| w.metric).collect();
    let (from, until) = (told.plan.trained_from(), told.plan.trained_until());
    let mut products = told.fitted.version_products();
    products.iter_mut().for_each(|p| p.judged = told.plan.judged(&p.trained.name));
    Ok(VersionParts {
        model: told.id.model.clone(),
        number: told.id.number,
        products,
        metrics: metrics.into_iter().collect(),
        trained_from: from.unwrap_or_default(),
        trained_until: until.unwrap_or_default(),
        data_fingerprint: told.history.fingerprint(),
        seed: told.params.seed,
        parent: told.params.warm_start.as_ref().map(|v| v.id()),
        report_json: serde_json::to_string_pretty(evaluation).map_err(PipelineError::Report)?,
        report_html: (options.render)(evaluation),
        card_md: card(evaluation),
    })
}

fn version(error: VersionError) -> PipelineError {
    PipelineError::Version(Box::new(error))
}

/// Writes the version and makes sure that what is on disk forecasts as what was judged.
fn write_checked(
    reservation: &Reservation,
    parts: &VersionParts,
    plan: &BacktestPlan,
    fitted: &FittedModel,
) -> Result<(), PipelineError> {
    write_version(&reservation.content(), parts).map_err(version)?;
    let written = Version::load(&reservation.content()).map_err(version)?;
    for windows in &plan.windows {
        let series = plan.read(windows, 0)?;
        let contexts: [Context<'_>; 1] = [crate::evaluate::context(&series, 0)];
        let judged = fitted.forecaster(&windows.product).map(|f| f.forecast(&contexts));
        if judged != written.forecaster(&windows.product).map(|f| f.forecast(&contexts)) {
            return Err(PipelineError::NotTheSame { number: reservation.number() });
        }
    }
    Ok(())
}

fn publish(
    registry: &Registry,
    reservation: Reservation,
    (judged_against, evaluation): (Option<u64>, EvaluationReport),
    skipped: Vec<SkippedProduct>,
) -> Result<TrainReport, PipelineError> {
    let model = reservation.name();
    let number = registry.publish(&model, reservation)?;
    let verdict = evaluation.verdict.clone();
    let (passed, mut reasons) = verdict.map_or((false, Vec::new()), |v| (v.promoted, v.reasons));
    let promoted = passed && registry.promote_over(&model, number, judged_against)?;
    if passed && !promoted {
        reasons.insert(0, "another version became champion meanwhile; compare with it and promote by hand".to_owned());
    }
    Ok(TrainReport {
        path: registry.path(&model, number)?,
        labels: registry.labels(&model)?,
        version: ModelVersion { model, number },
        promoted,
        reasons,
        skipped,
        evaluation,
    })
}
