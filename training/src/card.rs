//! What a version says of itself: the data of its report, and its card.

use foreshard_datasets::{BoundedHistory, LeftOutReason};
use foreshard_domain::{ContenderRole, EvaluationReport, EvaluationSection, Fact, GateVerdict, ModelVersion};
use std::fmt::Write as _;

use crate::backtest::{BacktestPlan, MetricBacktest};
use crate::{FittedModel, TrainParams};

/// Most shards that are named as left out; the rest is counted.
const MOST_NAMED: usize = 20;

/// What is told about how a version was trained.
pub(crate) struct Told<'a> {
    pub(crate) id: &'a ModelVersion,
    pub(crate) history: &'a BoundedHistory,
    pub(crate) plan: &'a BacktestPlan,
    pub(crate) params: &'a TrainParams,
    pub(crate) fitted: &'a FittedModel,
    /// Remarks on the comparison with the champion and with rivals.
    pub(crate) remarks: &'a [String],
}

/// The data of `report.json`.
pub(crate) fn evaluation_report(
    told: &Told<'_>,
    backtest: &[MetricBacktest<'_>],
    verdict: GateVerdict,
) -> EvaluationReport {
    EvaluationReport {
        title: format!("Version {}", told.id),
        provenance: provenance(told),
        verdict: Some(verdict),
        sections: backtest.iter().map(MetricBacktest::section).collect(),
        notes: notes(told),
    }
}

fn provenance(told: &Told<'_>) -> Vec<Fact> {
    let time = |t: Option<foreshard_domain::Timestamp>| t.map_or_else(|| "never".to_owned(), |t| t.to_string());
    let fact = |name: &str, value: String| Fact { name: name.to_owned(), value };
    vec![
        fact("trained on", format!("{} to {}", time(told.plan.trained_from()), time(told.plan.trained_until()))),
        fact("judged on", format!("windows from {} on, unseen in training", time(told.plan.first_window()))),
        fact("rows of history", told.history.rows().to_string()),
        fact("data fingerprint", told.history.fingerprint()),
        fact("known events", told.plan.events().to_string()),
        fact("model", told.params.model.to_string()),
        fact("seed", told.params.seed.to_string()),
        fact("program", format!("foreshard {}", env!("CARGO_PKG_VERSION"))),
    ]
}

fn notes(told: &Told<'_>) -> Vec<String> {
    let mut notes: Vec<String> = told.remarks.to_vec();
    notes.extend(told.plan.skipped.iter().map(|s| format!("{} was not trained: {}", s.product, s.why)));
    for (name, product) in told.fitted.products() {
        notes.push(format!("{name}: fitted on {} series, {}", product.series, product.how));
    }
    let left_out = &told.plan.left_out;
    let named = left_out.iter().take(MOST_NAMED);
    notes.extend(named.map(|(place, l)| format!("{place}: shard {} left out, {}", l.shard, reason(l.why))));
    if left_out.len() > MOST_NAMED {
        notes.push(format!("and {} more left out", left_out.len() - MOST_NAMED));
    }
    notes
}

fn reason(why: LeftOutReason) -> &'static str {
    match why {
        LeftOutReason::NoTarget => "it has no value of the metric",
        LeftOutReason::TooShort => "too little history before its windows",
        LeftOutReason::NoValueInWindows => "nothing was measured in its windows",
        LeftOutReason::TooCoarse => "its rows lie further apart than the steps",
    }
}

/// The rival with the least WQL, and its WQL.
fn best_rival(section: &EvaluationSection) -> String {
    let rivals = section.contenders.iter().filter(|c| c.role == ContenderRole::Rival);
    let known = rivals.filter_map(|c| Some((c.scores.wql?, c.name.as_str())));
    let best = known.min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(|| "-".to_owned(), |(wql, name)| format!("{wql:.4} ({name})"))
}

/// `card.md`: what the version is, is for and is not for, in a page.
pub(crate) fn card(evaluation: &EvaluationReport) -> String {
    let mut text = format!("# {}\n\n", evaluation.title);
    text.push_str(
        "Quantile forecasts of the load of database shards, learned from their own history. Made for planning moves of shards ahead of overload.\n\n## Data\n\n",
    );
    for fact in &evaluation.provenance {
        let _ = writeln!(text, "- {}: {}", fact.name, fact.value);
    }
    text.push_str(
        "\n## Backtest\n\n| part | WQL | seasonal naive | best other rival | champion | coverage 80 % |\n|---|---|---|---|---|---|\n",
    );
    let figure = |v: Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.4}"));
    for section in &evaluation.sections {
        let of = |role| section.contenders.iter().find(|c| c.role == role).map(|c| &c.scores);
        let wql = |role| figure(of(role).and_then(|s| s.wql));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            section.name,
            wql(ContenderRole::Subject),
            wql(ContenderRole::SeasonalNaive),
            best_rival(section),
            wql(ContenderRole::Champion),
            figure(of(ContenderRole::Subject).and_then(|s| s.coverage_80))
        );
    }
    if let Some(verdict) = &evaluation.verdict {
        let _ = writeln!(text, "\nGate: {}\n", if verdict.promoted { "passed" } else { "not passed" });
        verdict.reasons.iter().for_each(|r| text.push_str(&format!("- {r}\n")));
    }
    text.push_str(
        "\n## Limits\n\n\
         - A series needs seven days of history; with less, seasonal naive answers and says so.\n\
         - What never happened in the history (a launch, a new tenant) is not foreseen; the quantiles do not cover it.\n\
         - Figures are of the windows above; live quality is measured anew by the serving process.\n",
    );
    if !evaluation.notes.is_empty() {
        text.push_str("\n## Remarks\n\n");
        evaluation.notes.iter().for_each(|n| text.push_str(&format!("- {n}\n")));
    }
    text
}
