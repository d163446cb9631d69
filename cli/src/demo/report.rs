//! What a demonstration found: one object for programs, one table for people.

use serde::Serialize;
use std::fmt::Write as _;

use super::latency::AroundMoves;
use super::score::ForecastScore;

/// A figure of the day as it went, beside the same day without moves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Compared<T> {
    /// With foreshard.
    pub with: T,
    /// The same seeded day on the initial placement.
    pub without: T,
}

/// A version before the day and after what was learned from it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BeforeAfter {
    /// In use during the day.
    pub before: String,
    /// In use when the demonstration ended.
    pub after: String,
}

/// What a gate said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether what was learned is in use now.
    pub accepted: bool,
    /// Why, or why not.
    pub reasons: Vec<String>,
}

impl Verdict {
    /// In a word or two.
    fn word(&self) -> &'static str {
        if self.accepted { "passed its gate" } else { "refused by its gate, the old one stays" }
    }
}

/// How the moves went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Moves {
    /// Started by an accepted plan.
    pub planned: u64,
    /// The target owns the shard.
    pub done: u64,
    /// Done and taken back.
    pub rolled_back: u64,
    /// Given up before the point of no return because something broke.
    pub failed: u64,
}

/// How long writes waited for a change of owner, real milliseconds; `None` without a move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct FenceTimes {
    /// Median.
    pub p50: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Longest.
    pub max: Option<f64>,
}

/// The checker's finding on writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Writes {
    /// Clients were told that they are durable.
    pub acknowledged: u64,
    /// Of those, not found at the owner.
    pub lost: u64,
    /// Found more than once.
    pub doubled: u64,
    /// Found, but never sent to that key.
    pub foreign: u64,
    /// Sent a second time on purpose, as if the acknowledgement had been lost.
    pub repeated: u64,
    /// Of those, sent again after their shard had changed its owner.
    pub repeated_after_move: u64,
    /// Turned away by an overloaded node or given up; never acknowledged.
    pub refused: u64,
}

/// Reads while the shards moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Reads {
    /// Answered.
    pub answered: u64,
    /// Answers that missed a write acknowledged before the read was sent.
    pub stale: u64,
}

/// Everything a demonstration found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoReport {
    /// Seed of history, placement, traffic and training.
    pub seed: u64,
    /// Nodes.
    pub nodes: u64,
    /// Shards.
    pub shards: u64,
    /// First moment of the modelled day, RFC 3339.
    pub day: String,
    /// Node-minutes with a resource over capacity.
    pub overload_minutes: Compared<u64>,
    /// Excess over capacity, as share of capacity x minutes.
    pub overload_area: Compared<f64>,
    /// Moves.
    pub moves: Moves,
    /// Bytes copied by the moves that were done.
    pub bytes_moved: u64,
    /// Fences.
    pub fence_ms: FenceTimes,
    /// 99th percentile of what clients of a moving shard waited.
    pub client_p99_ms: AroundMoves,
    /// Writes.
    pub writes: Writes,
    /// Reads.
    pub reads: Reads,
    /// The forecasts that serving issued during the day; `None` if none could be scored.
    pub forecast: Option<ForecastScore>,
    /// Versions of the forecaster.
    pub model_version: BeforeAfter,
    /// What the gate said of the retrained version.
    pub retraining: Verdict,
    /// Numbers of the cost model.
    pub cost_model: BeforeAfter,
    /// What the gate said of the refitted cost model.
    pub cost_refit: Verdict,
    /// How long everything took, real seconds.
    pub took_s: f64,
}

impl DemoReport {
    /// Whether nothing was lost, doubled, invented, stale or failed.
    pub fn passed(&self) -> bool {
        self.complaints().is_empty()
    }

    fn complaints(&self) -> Vec<String> {
        let counts = [
            (self.writes.lost, "acknowledged writes lost"),
            (self.writes.doubled, "writes applied twice"),
            (self.writes.foreign, "writes that nobody sent"),
            (self.reads.stale, "reads behind an acknowledged write"),
            (self.moves.failed, "moves failed"),
        ];
        counts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect()
    }

    /// One sentence on how it went.
    pub fn verdict(&self) -> String {
        let complaints = self.complaints();
        if !complaints.is_empty() {
            return format!("NOT GOOD: {}", complaints.join(", "));
        }
        let Compared { with, without } = self.overload_minutes;
        let moves = self.moves.done;
        let overload = match (with, without) {
            (_, 0) => "the day had no overload to avoid".to_owned(),
            (w, o) if w < o => format!("{moves} moves avoided {} of {o} overload minutes", o - w),
            (w, o) => format!("{moves} moves avoided no overload ({w} minutes, {o} without)"),
        };
        format!("good: {overload}; all {} acknowledged writes are there, each once", self.writes.acknowledged)
    }
}

/// Width of the labels and of the columns of figures.
const LABEL: usize = 21;
const COLUMN: usize = 13;

fn line(text: &mut String, label: &str, cells: &[String], remark: &str) {
    let mut row = format!("  {label:<LABEL$}");
    for cell in cells {
        let _ = write!(row, "{cell:>COLUMN$}");
    }
    if !remark.is_empty() {
        let _ = write!(row, "   {remark}");
    }
    text.push_str(row.trim_end());
    text.push('\n');
}

fn head(text: &mut String, title: &str, columns: &[&str]) {
    let mut row = format!("{title:<width$}", width = LABEL + 2);
    for column in columns {
        let _ = write!(row, "{column:>COLUMN$}");
    }
    text.push('\n');
    text.push_str(row.trim_end());
    text.push('\n');
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1} ms"))
}

/// Counts with a thin grouping of thousands, readable at a glance.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let unit = UNITS.get(unit).copied().unwrap_or("B");
    if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// The table for a person.
pub fn render_table(report: &DemoReport) -> String {
    let mut text = format!(
        "{} shards on {} nodes through {}, seed {}, {:.0} s\n",
        report.shards, report.nodes, report.day, report.seed, report.took_s
    );
    overload(&mut text, report);
    moves(&mut text, report);
    clients(&mut text, report);
    learning(&mut text, report);
    let _ = write!(text, "\n{}\n", report.verdict());
    text
}

fn overload(text: &mut String, report: &DemoReport) {
    let Compared { with, without } = report.overload_minutes;
    let fewer = if without > 0 && with <= without {
        format!("{:.0} % fewer", 100.0 * (without - with) as f64 / without as f64)
    } else {
        String::new()
    };
    head(text, "overload", &["with moves", "without"]);
    line(text, "node-minutes", &[count(with), count(without)], &fewer);
    let area = |a: f64| format!("{a:.1}");
    let Compared { with, without } = report.overload_area;
    line(text, "area", &[area(with), area(without)], "excess over capacity x minutes");
}

fn moves(text: &mut String, report: &DemoReport) {
    let Moves { planned, done, rolled_back, failed } = report.moves;
    head(text, "moves", &["planned", "done", "rolled back", "failed"]);
    line(text, "count", &[planned, done, rolled_back, failed].map(count), "");
    line(text, "copied", &[String::new(), bytes(report.bytes_moved)], "");
    let FenceTimes { p50, p99, max } = report.fence_ms;
    head(text, "", &["median", "p99", "longest"]);
    line(text, "writes fenced", &[p50, p99, max].map(ms), "a change of owner");
}

fn clients(text: &mut String, report: &DemoReport) {
    let AroundMoves { before, during, after } = report.client_p99_ms;
    head(text, "clients", &["before", "during", "after"]);
    line(text, "p99 around a move", &[before, during, after].map(ms), "from wish to answer");
    let Writes { acknowledged, lost, doubled, repeated, repeated_after_move, refused, .. } = report.writes;
    head(text, "", &["acknowledged", "lost", "doubled"]);
    let (twice, late) = (count(repeated), count(repeated_after_move));
    let remark = format!("{twice} sent twice ({late} after a move), {} refused", count(refused));
    line(text, "writes", &[acknowledged, lost, doubled].map(count), &remark);
    head(text, "", &["answered", "stale"]);
    line(text, "reads", &[report.reads.answered, report.reads.stale].map(count), "");
}

fn learning(text: &mut String, report: &DemoReport) {
    if let Some(ForecastScore { wql, wql_naive, coverage_80 }) = report.forecast {
        head(text, "forecasts of the day", &["wql", "naive's wql", "coverage 80"]);
        let cells = [format!("{wql:.3}"), format!("{wql_naive:.3}"), format!("{:.1} %", 100.0 * coverage_80)];
        line(text, "issued by serving", &cells, "CPU, next hours, against what came");
    }
    head(text, "learned", &["before", "after"]);
    let pair = |versions: &BeforeAfter| [versions.before.clone(), versions.after.clone()];
    line(text, "forecaster", &pair(&report.model_version), report.retraining.word());
    line(text, "cost of moves", &pair(&report.cost_model), report.cost_refit.word());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> DemoReport {
        let versions = |before: &str, after: &str| BeforeAfter { before: before.into(), after: after.into() };
        let passed = || Verdict { accepted: true, reasons: vec!["better than seasonal naive".into()] };
        DemoReport {
            seed: 1,
            nodes: 3,
            shards: 24,
            day: "2026-03-16T00:00:00Z".into(),
            overload_minutes: Compared { with: 12, without: 188 },
            overload_area: Compared { with: 0.71, without: 31.26 },
            moves: Moves { planned: 5, done: 5, rolled_back: 0, failed: 0 },
            bytes_moved: 5_452_595,
            fence_ms: FenceTimes { p50: Some(3.25), p99: Some(8.0), max: Some(8.0) },
            client_p99_ms: AroundMoves { before: Some(9.0), during: Some(31.5), after: None },
            writes: Writes {
                acknowledged: 18_204,
                lost: 0,
                doubled: 0,
                foreign: 0,
                repeated: 1_911,
                repeated_after_move: 111,
                refused: 3,
            },
            reads: Reads { answered: 18_100, stale: 0 },
            forecast: Some(ForecastScore { wql: 0.0714, wql_naive: 0.1312, coverage_80: 0.792 }),
            model_version: versions("load/1", "load/2"),
            retraining: passed(),
            cost_model: versions("0", "1"),
            cost_refit: passed(),
            took_s: 151.4,
        }
    }

    #[test]
    fn the_object_has_the_agreed_keys() {
        let value = serde_json::to_value(report()).unwrap();
        for path in [
            "/overload_minutes/with",
            "/overload_minutes/without",
            "/moves/planned",
            "/moves/done",
            "/moves/rolled_back",
            "/moves/failed",
            "/bytes_moved",
            "/fence_ms/p50",
            "/fence_ms/p99",
            "/fence_ms/max",
            "/client_p99_ms/before",
            "/client_p99_ms/during",
            "/client_p99_ms/after",
            "/writes/acknowledged",
            "/writes/lost",
            "/writes/doubled",
            "/forecast/wql",
            "/forecast/wql_naive",
            "/forecast/coverage_80",
            "/model_version/before",
            "/model_version/after",
            "/seed",
        ] {
            assert!(value.pointer(path).is_some(), "{path} is missing");
        }
    }

    #[test]
    fn m1_anything_lost_doubled_or_failed_is_a_no() {
        assert!(report().passed());
        assert!(report().verdict().contains("176 of 188"), "{}", report().verdict());
        let spoil: [fn(&mut DemoReport); 5] = [
            |r| r.writes.lost = 1,
            |r| r.writes.doubled = 1,
            |r| r.writes.foreign = 1,
            |r| r.reads.stale = 1,
            |r| r.moves.failed = 1,
        ];
        for spoil in spoil {
            let mut bad = report();
            spoil(&mut bad);
            assert!(!bad.passed());
            assert!(render_table(&bad).contains("NOT GOOD: 1 "));
        }
    }

    #[test]
    fn the_table_has_units_and_ends_with_the_verdict() {
        let table = render_table(&report());
        assert!(table.contains("5.2 MiB") && table.contains("94 % fewer") && table.contains("18,204"), "{table}");
        assert!(table.trim_end().lines().last().is_some_and(|last| last.starts_with("good: ")), "{table}");
        assert!(table.lines().all(|line| line.chars().count() <= 120), "{table}");
    }
}
