//! From what the day brought to the figures of the report.

use foreshard_datasets::{History, ReadFilter, read_history};
use foreshard_domain::{
    Metric, NodeId, Outcome, OutcomeResult, Product, QuantileForecast, SeriesForecast, Step, Timestamp,
};
use foreshard_migrator::MigrationRecord;
use foreshard_model::{Context, ForecastSpec, Forecaster, SeasonalNaive};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::DemoError;
use super::cluster::COPY_SHARE;
use super::day::Lived;
use super::latency::{AroundMoves, MoveSpan, p99_around, percentile};
use super::overload::{CopyLoad, Overload, OwnerChange, account};
use super::report::{Compared, FenceTimes, Moves};
use super::scenario::Scenario;
use super::score::{ForecastScore, Observed, score};

/// Model time before and after a move whose requests count as around it.
const WINDOW_MS: i64 = 3_600_000;

/// Overload of the day as it went, and of the same demand on the placement of its first minute.
pub fn overload(scenario: &Scenario, lived: &Lived) -> Compared<Overload> {
    let demand = scenario.demand((scenario.day, lived.until), Step::MINUTE);
    let (changes, copies) = (owner_changes(&lived.migrations), copies(&lived.migrations, lived.until));
    let of = |changes: &[OwnerChange], copies: &[CopyLoad]| {
        account(&demand, &scenario.topology.nodes, &scenario.initial, changes, copies)
    };
    Compared { with: of(&changes, &copies), without: of(&[], &[]) }
}

/// When clients were sent to a new owner.
fn owner_changes(migrations: &[MigrationRecord]) -> Vec<OwnerChange> {
    let change = |record: &MigrationRecord| {
        Some(OwnerChange { shard: record.shard().clone(), to: record.target().clone(), at: record.moved_at? })
    };
    migrations.iter().filter_map(change).collect()
}

/// What copies took from source and target, from the start of each migration until it no longer copied.
fn copies(migrations: &[MigrationRecord], until: Timestamp) -> Vec<CopyLoad> {
    let both = |record: &MigrationRecord| {
        let from = record.started_at?;
        let to = record.moved_at.or(record.ended_at).unwrap_or(until);
        let load = |node: &NodeId| CopyLoad { node: node.clone(), from, to, share: COPY_SHARE };
        Some([load(record.source()), load(record.target())])
    };
    migrations.iter().filter_map(both).flatten().collect()
}

/// Counts of moves. Planned are those that were begun. Control settles all of them before the day ends, so whatever is then
/// neither done nor taken back has failed, whether it left an outcome or is stuck.
pub fn moves(lived: &Lived) -> Moves {
    // A move that was taken back has two outcomes; the last one counts.
    let last: BTreeMap<_, OutcomeResult> = lived.outcomes.iter().map(|o| (&o.migration, o.result)).collect();
    let count = |wanted: OutcomeResult| last.values().filter(|result| **result == wanted).count() as u64;
    let (planned, done) = (lived.migrations.len() as u64, count(OutcomeResult::Done));
    let rolled_back = count(OutcomeResult::RolledBack);
    Moves { planned, done, rolled_back, failed: planned.saturating_sub(done).saturating_sub(rolled_back) }
}

/// Bytes that the moves which were done really copied.
pub fn bytes_moved(lived: &Lived) -> u64 {
    lived.migrations.iter().filter(|record| record.moved_at.is_some()).map(|record| record.progress.bytes).sum()
}

fn done(lived: &Lived) -> impl Iterator<Item = &Outcome> {
    lived.outcomes.iter().filter(|outcome| outcome.result == OutcomeResult::Done)
}

/// How long writes were stopped by the moves that were done.
pub fn fence_times(lived: &Lived) -> FenceTimes {
    let fences: Vec<f64> = done(lived).map(|outcome| outcome.actual_fence_ms).collect();
    let at = |p: f64| percentile(fences.clone(), p);
    FenceTimes { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

/// What clients of moving shards waited, before, during and after.
pub fn client_p99(lived: &Lived) -> AroundMoves {
    let span = |o: &Outcome| MoveSpan { shard: o.shard.clone(), from: o.started_at, to: o.ended_at };
    let spans: Vec<MoveSpan> = done(lived).map(span).collect();
    p99_around(&lived.traffic.samples, &spans, WINDOW_MS)
}

/// Scores what serving forecast during the day against what was then observed, beside seasonal naive at the same origins.
/// Both are read from the history that serving wrote.
///
/// # Errors
/// [`DemoError`] if the history cannot be read.
pub fn forecast_score(history: &Path, issued: &[SeriesForecast]) -> Result<Option<ForecastScore>, DemoError> {
    let filter = ReadFilter { metrics: Some(BTreeSet::from([Metric::CpuUtil])), ..ReadFilter::default() };
    let history = read_history(history, &filter).map_err(DemoError::History)?;
    let naive = SeasonalNaive::new(ForecastSpec::of_product(Product::NextHours));
    let mut observed = Observed::new();
    let mut pairs = Vec::new();
    for forecast in issued.iter().filter(|f| f.metric == Metric::CpuUtil && f.shard.residual_node().is_none()) {
        if let Some(rival) = rival(&history, &naive, forecast, &mut observed) {
            pairs.push((forecast.clone(), rival));
        }
    }
    Ok(score(&pairs, &observed))
}

/// The seasonal naive forecast of the same series from the same origin; fills in what was observed of the shard.
fn rival(
    history: &History,
    naive: &SeasonalNaive,
    issued: &SeriesForecast,
    observed: &mut Observed,
) -> Option<QuantileForecast> {
    let series = history.grid(&issued.shard, issued.metric, issued.step)?;
    let truth = || {
        let values = series.values.iter().enumerate().filter(|(_, v)| v.is_finite());
        values.map(|(i, v)| (series.time_of(i), f64::from(*v))).collect()
    };
    observed.entry(issued.shard.clone()).or_insert_with(truth);
    let origin = series.index_of(issued.issued_at)?;
    let context = Context {
        shard: &issued.shard,
        metric: issued.metric,
        start: series.start,
        step: series.step,
        values: series.window_up_to(origin + 1),
        events: None,
    };
    naive.forecast(&[context]).into_iter().next().map(|answer| answer.forecast)
}
