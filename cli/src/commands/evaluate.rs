//! `foreshard evaluate`: rolling-origin evaluation under a protocol, for people (a report) and scorers (a forecasts file).

mod answered;

use foreshard_datasets::{
    EvalSeries, History, LeftOut, Protocol, ReadFilter, evaluation_series, read_history, write_forecasts,
};
use foreshard_domain::{
    Contender, ContenderRole, EvaluationReport, EvaluationSection, Fact, NodeRiskFigures, QuantileLevels,
};
use foreshard_model::{ForecastSpec, Forecaster, LastValue, ModelKind, SeasonalMean, SeasonalNaive};
use foreshard_report::evaluation_html;
use foreshard_training::{Entrant, Evaluation, PROPHET, Registry, evaluate, mstl, section};
use std::path::Path;

use self::answered::{Answered, Trained, lags_only, trained};
use crate::args::{Compare, EvaluateArgs, Evaluated};
use crate::commands::progress::Progress;
use crate::commands::{events, loss_ratio, path, percent};
use crate::output::{self, Failure, Format, Verdict};
use crate::settings::Settings;

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
    if args.compare == Compare::All {
        for rival in trained_rivals(args, &mut task) {
            let answered = trained(args, settings, &mut task, &mut progress, &rival)?;
            evaluations.extend(answered.map(|answered| (ContenderRole::Rival, answered.evaluation)));
        }
    }
    for (role, rival) in rivals(args, &task.spec)? {
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

fn subject(
    args: &EvaluateArgs,
    settings: &Settings,
    task: &mut Task,
    progress: &mut Progress,
) -> Result<Answered, Failure> {
    if let Some(number) = args.version {
        return existing(args, settings, number, task);
    }
    let spec = task.spec.clone();
    let model = match args.model {
        Evaluated::SeasonalNaive => return Answered::by_rival(&SeasonalNaive::new(spec), task),
        Evaluated::WeeklyNaive => return Answered::by_rival(&SeasonalNaive::weekly(spec), task),
        Evaluated::SeasonalMean => return Answered::by_rival(&SeasonalMean::new(spec), task),
        Evaluated::LastValue => return Answered::by_rival(&LastValue::new(spec), task),
        Evaluated::Mstl => return Answered::by_rival(mstl(spec)?.as_ref(), task),
        Evaluated::Lstm => ModelKind::Lstm,
        Evaluated::Ridge => ModelKind::Ridge,
        Evaluated::Prophet => ModelKind::Prophet,
    };
    if let Some(answered) = trained(args, settings, task, progress, &Trained::of(model))? {
        let seed = args.seed.unwrap_or(settings.train.seed);
        let training = format!("{} series, seed {seed}, before each one's first window", task.series.len());
        task.facts.push(fact("training", training));
        return Ok(answered);
    }
    Answered::by_rival(&SeasonalNaive::new(spec), task)
}

/// The rivals that are fitted here, beside the subject.
fn trained_rivals(args: &EvaluateArgs, task: &mut Task) -> Vec<Trained> {
    let subject = |model| args.version.is_none() && args.model == model;
    let mut rivals = Vec::new();
    if subject(Evaluated::Lstm) {
        rivals.push(lags_only());
    } else {
        task.facts.push(fact("lags_only", "left out: it is trained only beside a network that is trained here"));
    }
    rivals.extend((!subject(Evaluated::Ridge)).then(|| Trained::of(ModelKind::Ridge)));
    rivals.extend((PROPHET && !subject(Evaluated::Prophet)).then(|| Trained::of(ModelKind::Prophet)));
    rivals
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

type Rival = (ContenderRole, Box<dyn Forecaster>);

/// Those that need no training, and MSTL, which is fitted anew in every window.
fn rivals(args: &EvaluateArgs, spec: &ForecastSpec) -> Result<Vec<Rival>, Failure> {
    let mut rivals: Vec<Rival> = vec![(ContenderRole::SeasonalNaive, Box::new(SeasonalNaive::new(spec.clone())))];
    if args.compare != Compare::None {
        rivals.push((ContenderRole::Rival, Box::new(LastValue::new(spec.clone()))));
        rivals.push((ContenderRole::Rival, Box::new(SeasonalNaive::weekly(spec.clone()))));
        rivals.push((ContenderRole::Rival, Box::new(SeasonalMean::new(spec.clone()))));
    }
    if args.compare == Compare::All && PROPHET && args.model != Evaluated::Mstl {
        rivals.push((ContenderRole::Rival, mstl(spec.clone())?));
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
        let header =
            ["forecaster", "wql", "to naive", "sql_geo", "mase", "cover 80 %", "brier of event", "first to it"];
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
        loss_ratio(contender),
    ]
}
