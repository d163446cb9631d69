//! `foreshard evaluate`: rolling-origin evaluation under a protocol, for people (a report) and scorers (a forecasts file).

use foreshard_datasets::{
    EvalSeries, History, LeftOut, Protocol, ReadFilter, evaluation_series, read_history, write_forecasts,
};
use foreshard_domain::{
    Contender, ContenderRole, EvaluationReport, EvaluationSection, Fact, NodeRiskFigures, QuantileLevels,
};
use foreshard_model::{ForecastSpec, Forecaster, LastValue, SeasonalNaive};
use foreshard_report::evaluation_html;
use foreshard_training::{
    Entrant, Evaluation, FitControl, FittedModel, MemberSpec, NodeRiskSpec, ProductSpec, Registry, TrainError,
    TrainParams, TrainSeries, evaluate, fit, node_risk, section,
};
use std::collections::BTreeMap;
use std::path::Path;

use crate::args::{Compare, EvaluateArgs, ModelKind};
use crate::commands::progress::Progress;
use crate::commands::{events, path, percent};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

/// The limit of a group of shards: this quantile of its summed past.
const GROUP_LIMIT: f64 = 0.95;

/// What is scored, and what was not and why.
struct Task {
    protocol: Protocol,
    spec: ForecastSpec,
    series: Vec<EvalSeries>,
    left_out: Vec<LeftOut>,
    facts: Vec<Fact>,
}

fn fact(name: &str, value: impl Into<String>) -> Fact {
    Fact { name: name.to_owned(), value: value.into() }
}

/// Evaluates the model and its rivals, writes what was asked for, prints the figures.
pub fn run(args: &EvaluateArgs, settings: &Settings, format: Format) -> Result<Verdict, Failure> {
    let mut task = load(args, settings)?;
    let mut progress = Progress::new();
    let subject = subject(args, settings, &mut task, &mut progress)?;
    let mut evaluations = vec![(ContenderRole::Subject, subject.evaluation)];
    if args.compare == Compare::All && args.version.is_none() && args.model == ModelKind::Lstm {
        let without = |member: MemberSpec| MemberSpec { encoder: 0, ..member };
        let lags = TrainParams::default().members.into_iter().map(without).collect::<Vec<_>>();
        let rival = trained(args, settings, &mut task, &mut progress, ("lags_only", &lags))?;
        evaluations.extend(rival.map(|rival| (ContenderRole::Rival, rival.evaluation)));
    }
    if args.compare == Compare::All && (args.version.is_some() || args.model != ModelKind::Lstm) {
        task.facts.push(fact("lags_only", "left out: it is trained only beside a network that is trained here"));
    }
    for (role, rival) in rivals(args.compare, &task.spec)? {
        progress.set(&format!("evaluating {}", rival.name()), 0.0, "");
        evaluations.push((role, evaluate(rival.as_ref(), None, &task.series, &task.protocol)?));
    }
    drop(progress);
    if let Some(file) = &args.forecasts {
        let (_, subject) = &evaluations[0];
        write_forecasts(file, &subject.levels, &subject.rows)?;
    }
    let report = report(args, task, &evaluations, subject.node_risk);
    if let Some(file) = &args.report {
        write_report(file, &report)?;
    }
    output::print(format, &report, text)?;
    Ok(Verdict::Done)
}

fn load(args: &EvaluateArgs, settings: &Settings) -> Result<Task, Failure> {
    let protocol = Protocol::load(&args.protocol)?;
    let (mut series, mut left_out, mut facts) = (Vec::new(), Vec::new(), Vec::new());
    for path in &args.history {
        let history = read_history(path, &ReadFilter::default())?;
        facts.push(fact("history", described(path, &history)));
        let (found, left) = evaluation_series(&history, &protocol);
        series.extend(found);
        left_out.extend(left);
    }
    if series.is_empty() {
        let why: Vec<String> = left_out.iter().take(3).map(|l| format!("{}: {}", l.shard, l.why)).collect();
        return Err(format!("no series is long enough for protocol {} ({})", protocol.name, why.join("; ")).into());
    }
    let spec = ForecastSpec {
        step: protocol.step,
        horizon: protocol.horizon,
        season_steps: protocol.season_steps(),
        levels: QuantileLevels::standard(),
        bounds: protocol.bounds,
        zone: settings.data.zone.clone(),
    };
    let events = events(path(&args.events, &settings.data.events))?;
    series.iter_mut().for_each(|s| s.events = events.clone());
    facts.push(fact(
        "protocol",
        format!("{}: {} windows of {} steps", protocol.name, protocol.windows, protocol.horizon),
    ));
    Ok(Task { protocol, spec, series, left_out, facts })
}

fn described(path: &Path, history: &History) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let fingerprint = history.fingerprint();
    let short: String = fingerprint.chars().take(12).collect();
    format!("{name}, {} rows, fingerprint {short}", history.rows())
}

/// What a forecaster said, and how well it foretold the risk of groups, if that was asked for.
struct Answered {
    evaluation: Evaluation,
    node_risk: Option<NodeRiskFigures>,
}

impl Answered {
    /// Lets a trained forecaster answer.
    fn by(entrant: &Entrant<'_>, args: &EvaluateArgs, settings: &Settings, task: &Task) -> Result<Self, Failure> {
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
    fn by_rival(rival: &dyn Forecaster, task: &Task) -> Result<Self, Failure> {
        Ok(Self { evaluation: evaluate(rival, None, &task.series, &task.protocol)?, node_risk: None })
    }
}

fn subject(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
) -> Result<Answered, Failure> {
    if let Some(number) = args.version {
        return existing(args, settings, number, task);
    }
    match args.model {
        ModelKind::SeasonalNaive => Answered::by_rival(&SeasonalNaive::new(task.spec.clone()), task),
        ModelKind::LastValue => Answered::by_rival(&LastValue::new(task.spec.clone()), task),
        ModelKind::Lstm => {
            let members = TrainParams::default().members;
            if let Some(trained) = trained(args, settings, task, progress, ("lstm", &members))? {
                let seed = args.seed.unwrap_or(settings.train.seed);
                let training = format!("{} series, seed {seed}, before each one's first window", task.series.len());
                task.facts.push(fact("training", training));
                return Ok(trained);
            }
            Answered::by_rival(&SeasonalNaive::new(task.spec.clone()), task)
        }
    }
}

/// Fits networks of these sizes and lets them answer; `None` where there is too little to learn from.
fn trained(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
    (name, members): (&str, &[MemberSpec]),
) -> Result<Option<Answered>, Failure> {
    let Some(fitted) = train(args, settings, task, progress, members)? else { return Ok(None) };
    let protocol = &task.protocol.name;
    let forecaster = fitted.forecaster(protocol).ok_or("the fit left the protocol's product out")?;
    let (templates, risk) = (fitted.templates(protocol), fitted.risk(protocol));
    let entrant = Entrant { name: name.to_owned(), forecaster, templates, risk };
    progress.set(&format!("evaluating {name}"), 0.0, "");
    Ok(Some(Answered::by(&entrant, args, settings, task)?))
}

/// Scores a version of the registry, unless it has seen what it would be scored on.
fn existing(args: &EvaluateArgs, settings: &Settings, number: u64, task: &mut Task) -> Result<Answered, Failure> {
    let registry = Registry::open(path(&args.registry, &settings.registry.path))?;
    let version = registry.load(&settings.registry.model, number)?;
    let until = version.manifest().trained_until;
    let first = task.series.iter().map(|s| s.series.time_of(s.first)).min().unwrap_or(until);
    if first < until {
        let from = version.manifest().trained_from;
        return Err(format!(
            "version {} was trained on data from {from} until {until}, which overlaps the scored windows from {first} on; \
             evaluate it on later data, or without --version",
            version.id()
        )
        .into());
    }
    let products = version.manifest().products.iter();
    let fits = |s: &ForecastSpec| s.step == task.spec.step && s.horizon == task.spec.horizon;
    let product = products.clone().find(|p| fits(&p.spec)).ok_or_else(|| {
        let known: Vec<String> = products.map(|p| format!("{} ({} steps)", p.name, p.spec.horizon)).collect();
        format!(
            "version {} has no product of {} steps as the protocol wants; it has {}",
            version.id(),
            task.spec.horizon,
            known.join(", ")
        )
    })?;
    task.facts.push(fact("trained until", until.to_string()));
    let entrant = Entrant::of_version(&version, &product.name).ok_or("the product is in the manifest alone")?;
    Answered::by(&entrant, args, settings, task)
}

/// Fits once, on what each series has before its own first window (refit = "never"). `None` where that is too little to
/// learn from: then seasonal naive is what forecasts, as it is in service for a product that a version lacks.
fn train(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
    members: &[MemberSpec],
) -> Result<Option<FittedModel>, Failure> {
    let product = ProductSpec { name: task.protocol.name.clone(), forecast: task.spec.clone() };
    let seed = args.seed.unwrap_or(settings.train.seed);
    let params = TrainParams {
        products: vec![product],
        members: members.to_vec(),
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
    let mut on_step = |p: foreshard_training::FitProgress| {
        let (done, all) = p.step;
        progress.set("training", done as f64 / all.max(1) as f64, &format!("loss {:.4}", p.loss));
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

type Rival = (ContenderRole, Box<dyn Forecaster>);

fn rivals(compare: Compare, spec: &ForecastSpec) -> Result<Vec<Rival>, Failure> {
    let mut rivals: Vec<Rival> = vec![(ContenderRole::SeasonalNaive, Box::new(SeasonalNaive::new(spec.clone())))];
    if compare != Compare::None {
        rivals.push((ContenderRole::Rival, Box::new(LastValue::new(spec.clone()))));
        rivals.push((ContenderRole::Rival, Box::new(SeasonalNaive::weekly(spec.clone()))));
    }
    Ok(rivals)
}

fn report(
    args: &EvaluateArgs,
    task: Task,
    evaluations: &[(ContenderRole, Evaluation)],
    node_risk: Option<NodeRiskFigures>,
) -> EvaluationReport {
    let beside: Vec<(ContenderRole, &Evaluation)> = evaluations.iter().map(|(role, e)| (*role, e)).collect();
    let names: Vec<String> =
        args.history.iter().filter_map(|p| p.file_stem()).map(|n| n.to_string_lossy().into()).collect();
    let notes = task.left_out.iter().map(|l| format!("{} is left out: {}", l.shard, l.why)).collect();
    EvaluationReport {
        title: format!("{} on {}, protocol {}", evaluations[0].1.name, names.join(", "), task.protocol.name),
        provenance: task.facts,
        verdict: None,
        sections: vec![EvaluationSection {
            node_risk,
            ..section(&task.protocol.name, &task.series, &task.protocol, &beside)
        }],
        notes,
    }
}

fn write_report(file: &Path, report: &EvaluationReport) -> Result<(), Failure> {
    let json = file.extension().is_some_and(|e| e == "json");
    let text = if json { serde_json::to_string_pretty(report)? } else { evaluation_html(report) };
    std::fs::write(file, text).map_err(|source| Failure::from(format!("could not write {}: {source}", file.display())))
}

fn text(report: &EvaluationReport) -> String {
    let mut text = format!("{}\n", report.title);
    for Fact { name, value } in &report.provenance {
        text.push_str(&format!("  {name}: {value}\n"));
    }
    for section in &report.sections {
        let naive = section.contenders.iter().find(|c| c.role == ContenderRole::SeasonalNaive);
        let rows: Vec<Vec<String>> = section.contenders.iter().map(|c| row(c, naive)).collect();
        let header = ["forecaster", "wql", "to naive", "sql_geo", "mase", "cover 80 %", "brier of event"];
        text.push_str(&format!("\n{}", output::table(&header, &rows)));
        text.push_str(&section.node_risk.as_ref().map(risk_text).unwrap_or_default());
    }
    for note in &report.notes {
        text.push_str(&format!("note: {note}\n"));
    }
    text
}

fn risk_text(risk: &NodeRiskFigures) -> String {
    let rows: Vec<Vec<String>> =
        risk.bins.iter().map(|b| vec![b.windows.to_string(), percent(b.predicted), percent(b.observed)]).collect();
    format!(
        "\nrisk of {} groups of shards, {} windows, {} over their limit at some step\n\
         Brier score: {:.4} by joint scenarios, {:.4} by independence, {:.4} by the largest step\n{}",
        risk.groups,
        risk.windows,
        percent(risk.observed),
        risk.joint,
        risk.independent,
        risk.max_marginal,
        output::table(&["windows", "predicted", "observed"], &rows)
    )
}

fn row(contender: &Contender, naive: Option<&Contender>) -> Vec<String> {
    let s = &contender.scores;
    let figure = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.4}"));
    let ratio =
        s.wql.zip(naive.and_then(|n| n.scores.wql)).filter(|(_, n)| *n > 0.0).map(|(a, n)| format!("{:.3}", a / n));
    let brier = s.event.as_ref().map(|e| e.brier.p_any.unwrap_or(e.brier.independent.min(e.brier.max_marginal)));
    vec![
        contender.name.clone(),
        figure(s.wql),
        ratio.unwrap_or_else(|| "-".to_owned()),
        figure(s.sql_geo),
        figure(s.mase_median),
        s.coverage_80.map_or("-".to_owned(), percent),
        figure(brier),
    ]
}
