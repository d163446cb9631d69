//! Who is evaluated: what is fitted here on what each series has before its first window, and what needs no fit.

use foreshard_datasets::EvalSeries;
use foreshard_domain::NodeRiskFigures;
use foreshard_model::{Forecaster, ModelKind};
use foreshard_training::{
    Entrant, Evaluation, FitControl, FitProgress, FittedModel, MemberSpec, NodeRiskSpec, ProductSpec, TrainError,
    TrainParams, TrainSeries, evaluate, fit, node_risk,
};
use std::collections::BTreeMap;

use super::{Task, fact};
use crate::args::EvaluateArgs;
use crate::commands::progress::Progress;
use crate::commands::train::loss;
use crate::output::Failure;
use crate::settings::Settings;

/// The limit of a group of shards: this quantile of its summed past.
const GROUP_LIMIT: f64 = 0.95;

/// What a forecaster said, and how well it foretold the risk of groups, if that was asked for.
pub(super) struct Answered {
    pub(super) evaluation: Evaluation,
    pub(super) node_risk: Option<NodeRiskFigures>,
}

impl Answered {
    /// Lets a trained forecaster answer.
    pub(super) fn by(
        entrant: &Entrant<'_>,
        args: &EvaluateArgs,
        settings: &Settings,
        task: &Task,
    ) -> Result<Self, Failure> {
        let evaluation = entrant.evaluate(&task.series, &task.protocol)?;
        let seed = args.seed.unwrap_or(settings.train.seed);
        let judged = |groups| {
            let spec = NodeRiskSpec { groups, limit: GROUP_LIMIT, seed };
            node_risk(&task.series, &evaluation, (entrant.templates, &entrant.risk.groups), &spec)
        };
        let node_risk = args.node_risk.and_then(judged);
        Ok(Self { evaluation, node_risk })
    }

    /// Lets a rival answer, which has no joint scenarios.
    pub(super) fn by_rival(rival: &dyn Forecaster, task: &Task) -> Result<Self, Failure> {
        Ok(Self { evaluation: evaluate(rival, None, &task.series, &task.protocol)?, node_risk: None })
    }
}

/// What is fitted, and under which name it answers.
pub(super) struct Trained {
    name: &'static str,
    model: ModelKind,
    members: Vec<MemberSpec>,
}

impl Trained {
    /// A model as `train` would fit it.
    pub(super) fn of(model: ModelKind) -> Self {
        Self { name: model.name(), model, members: TrainParams::default().members }
    }
}

/// The shipped networks without their recurrent part.
pub(super) fn lags_only() -> Trained {
    let without = |member: MemberSpec| MemberSpec { encoder: 0, ..member };
    let members = TrainParams::default().members.into_iter().map(without).collect();
    Trained { name: "lags_only", model: ModelKind::Lstm, members }
}

/// Fits a model and lets it answer; `None` where there is too little to learn from.
pub(super) fn trained(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
    what: &Trained,
) -> Result<Option<Answered>, Failure> {
    let Some(fitted) = train(args, settings, task, progress, what)? else { return Ok(None) };
    let protocol = &task.protocol.name;
    let forecaster = fitted.forecaster(protocol).ok_or("the fit left the protocol's product out")?;
    let (templates, risk) = (fitted.templates(protocol), fitted.risk(protocol));
    let entrant = Entrant { name: what.name.to_owned(), forecaster, templates, risk };
    progress.set(&format!("evaluating {}", what.name), 0.0, "");
    Ok(Some(Answered::by(&entrant, args, settings, task)?))
}

/// Fits once, on what each series has before its own first window (refit = "never"). `None` where that is too little to
/// learn from: then seasonal naive is what forecasts, as it is in service for a product that a version lacks.
fn train(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
    what: &Trained,
) -> Result<Option<FittedModel>, Failure> {
    let product = ProductSpec { name: task.protocol.name.clone(), forecast: task.spec.clone() };
    let seed = args.seed.unwrap_or(settings.train.seed);
    let params = TrainParams {
        model: what.model,
        products: vec![product],
        members: what.members.clone(),
        seed,
        steps: args.steps.unwrap_or(settings.train.steps),
        threads: settings.train.threads,
        ..TrainParams::default()
    };
    let spec = params.check()?;
    let known = |s: &EvalSeries| TrainSeries {
        shard: s.shard.clone(),
        metric: s.metric,
        series: s.series.clone(),
        usable: s.first,
        events: s.events.clone(),
    };
    let series = BTreeMap::from([(task.protocol.name.clone(), task.series.iter().map(known).collect())]);
    let task_name = format!("training {}", what.name);
    let mut on_step = |p: FitProgress| {
        let (done, all) = p.step;
        progress.set(&task_name, done as f64 / all.max(1) as f64, &loss(&p));
    };
    let mut control = FitControl { progress: &mut on_step, checkpoint: None, stop: &|| false };
    match fit(&series, &spec, &mut control) {
        Ok(fitted) => Ok(Some(fitted)),
        Err(error @ TrainError::TooLittleHistory { .. }) => {
            let reason = fact("fallback", format!("seasonal naive, because {error}"));
            if !task.facts.contains(&reason) {
                task.facts.push(reason);
            }
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}
