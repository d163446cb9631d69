//! What migrations cost and brought, and what was decided why: folders of immutable pieces.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use foreshard_domain::{
    BackendKind, Consistency, DecisionRecord, MigrationId, ModelVersion, MovePrediction, Outcome, OutcomeResult,
    PerResource,
};

use crate::TableError;
use crate::atomic;
use crate::table::{Table, TableBuilder};

/// A folder of numbered Parquet pieces that are only ever added.
#[derive(Debug)]
struct PieceFolder {
    dir: PathBuf,
    name: &'static str,
    writing: Mutex<()>,
}

impl PieceFolder {
    fn open(dir: PathBuf, name: &'static str) -> Result<Self, TableError> {
        fs::create_dir_all(&dir).map_err(|source| TableError::Io { doing: "create", path: dir.clone(), source })?;
        Ok(Self { dir, name, writing: Mutex::new(()) })
    }

    /// Writes the next piece; numbers go on where an earlier run ended.
    fn append(&self, table: TableBuilder) -> Result<PathBuf, TableError> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let number = |path: &PathBuf| -> Option<u64> {
            path.file_stem()?.to_str()?.strip_prefix(self.name)?.strip_prefix('-')?.parse().ok()
        };
        let newest = pieces(&self.dir)?.iter().filter_map(number).max().unwrap_or(0);
        let path = self.dir.join(format!("{}-{:06}.parquet", self.name, newest.saturating_add(1)));
        table.write(&path)?;
        Ok(path)
    }
}

/// The finished Parquet files of a folder in the order of their names, or the file itself.
fn pieces(path: &Path) -> Result<Vec<PathBuf>, TableError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let list = |source| TableError::Io { doing: "list", path: path.into(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".parquet") && !atomic::is_temporary(&name) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Where outcomes of migrations are written.
#[derive(Debug)]
pub struct OutcomeLog(PieceFolder);

impl OutcomeLog {
    /// Opens a folder, made if it is not there; one process writes to it at a time.
    ///
    /// # Errors
    /// [`TableError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, TableError> {
        PieceFolder::open(dir.into(), "outcomes").map(Self)
    }

    /// Writes outcomes as a new piece, on disk for good when this returns. An outcome that is written again (after a crash
    /// it may be) replaces the earlier one of its migration.
    ///
    /// # Errors
    /// [`TableError`]: I/O or encoding.
    pub fn append(&self, outcomes: &[Outcome]) -> Result<PathBuf, TableError> {
        self.0.append(outcome_table(outcomes))
    }
}

/// Where decisions of the planner are written.
#[derive(Debug)]
pub struct DecisionLog(PieceFolder);

impl DecisionLog {
    /// Opens a folder, made if it is not there; one process writes to it at a time.
    ///
    /// # Errors
    /// [`TableError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, TableError> {
        PieceFolder::open(dir.into(), "decisions").map(Self)
    }

    /// Writes decisions as a new piece, on disk for good when this returns.
    ///
    /// # Errors
    /// [`TableError`]: I/O or encoding.
    pub fn append(&self, decisions: &[DecisionRecord]) -> Result<PathBuf, TableError> {
        self.0.append(decision_table(decisions))
    }
}

fn outcome_table(outcomes: &[Outcome]) -> TableBuilder {
    let each = || outcomes.iter();
    TableBuilder::default()
        .text("migration", each().map(|o| Some(o.migration.as_str())))
        .text("plan", each().map(|o| Some(o.plan.as_str())))
        .text("shard_id", each().map(|o| Some(o.shard.as_str())))
        .text("source", each().map(|o| Some(o.source.as_str())))
        .text("target", each().map(|o| Some(o.target.as_str())))
        .text("backend", each().map(|o| Some(o.backend.name())))
        .text("consistency", each().map(|o| Some(o.consistency.name())))
        .times("planned_at", each().map(|o| Some(o.planned_at)))
        .times("started_at", each().map(|o| Some(o.started_at)))
        .times("ended_at", each().map(|o| Some(o.ended_at)))
        .integers("hour", each().map(|o| Some(i64::from(o.hour))))
        .numbers("data_bytes", each().map(|o| Some(o.data_bytes)))
        .integers("rows", each().map(|o| Some(i64::try_from(o.rows).unwrap_or(i64::MAX))))
        .numbers("write_bytes_per_s", each().map(|o| Some(o.write_bytes_per_s)))
        .numbers("source_cpu", each().map(|o| Some(o.source_cpu)))
        .numbers("target_cpu", each().map(|o| Some(o.target_cpu)))
        .integers("predicted_duration_ms", each().map(|o| Some(o.predicted.duration_ms)))
        .integers("predicted_duration_p90_ms", each().map(|o| Some(o.predicted.duration_p90_ms)))
        .numbers("predicted_fence_ms", each().map(|o| Some(o.predicted.fence_ms)))
        .numbers("predicted_extra_cpu", each().map(|o| Some(o.predicted.extra_share.cpu)))
        .numbers("predicted_extra_memory", each().map(|o| Some(o.predicted.extra_share.memory)))
        .numbers("predicted_extra_io", each().map(|o| Some(o.predicted.extra_share.io)))
        .integers("actual_duration_ms", each().map(|o| Some(o.actual_duration_ms)))
        .numbers("actual_fence_ms", each().map(|o| Some(o.actual_fence_ms)))
        .numbers("actual_extra_cpu", each().map(|o| o.actual_extra_share.cpu))
        .numbers("actual_extra_memory", each().map(|o| o.actual_extra_share.memory))
        .numbers("actual_extra_io", each().map(|o| o.actual_extra_share.io))
        .text("result", each().map(|o| Some(o.result.name())))
        .text("why", each().map(|o| o.why.as_deref()))
}

/// Reads outcomes from a folder of pieces or one file, in the order in which they were first written; of several of one
/// migration the last counts.
///
/// # Errors
/// [`TableError`]: damaged files, missing columns or values.
pub fn read_outcomes(path: &Path) -> Result<Vec<Outcome>, TableError> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    let mut places: BTreeMap<MigrationId, usize> = BTreeMap::new();
    for piece in pieces(path)? {
        for outcome in outcomes_of(&Table::read(&piece)?)? {
            match places.get(&outcome.migration).and_then(|i| outcomes.get_mut(*i)) {
                Some(earlier) => *earlier = outcome,
                None => {
                    places.insert(outcome.migration.clone(), outcomes.len());
                    outcomes.push(outcome);
                }
            }
        }
    }
    Ok(outcomes)
}

fn outcomes_of(t: &Table) -> Result<Vec<Outcome>, TableError> {
    let (migration, plan, shard) = (t.text("migration")?, t.text("plan")?, t.text("shard_id")?);
    let (source, target) = (t.text("source")?, t.text("target")?);
    let (backend, consistency) = (t.text("backend")?, t.text("consistency")?);
    let (planned, started, ended) = (t.times("planned_at")?, t.times("started_at")?, t.times("ended_at")?);
    let (hour, bytes, rows) = (t.integers("hour")?, t.numbers("data_bytes")?, t.integers("rows")?);
    let writes = t.numbers("write_bytes_per_s")?;
    let (source_cpu, target_cpu) = (t.numbers("source_cpu")?, t.numbers("target_cpu")?);
    let (duration, p90) = (t.integers("predicted_duration_ms")?, t.integers("predicted_duration_p90_ms")?);
    let fence = t.numbers("predicted_fence_ms")?;
    let predicted_extra = extra(t, ["predicted_extra_cpu", "predicted_extra_memory", "predicted_extra_io"])?;
    let (actual, actual_fence) = (t.integers("actual_duration_ms")?, t.numbers("actual_fence_ms")?);
    let actual_extra = extra(t, ["actual_extra_cpu", "actual_extra_memory", "actual_extra_io"])?;
    let (result, why) = (t.text("result")?, t.text("why")?);
    let one = |i: usize| {
        Ok(Outcome {
            migration: migration.parse(i)?,
            plan: plan.parse(i)?,
            shard: shard.parse(i)?,
            source: source.parse(i)?,
            target: target.parse(i)?,
            backend: backend.one_of(i, &BACKENDS, BackendKind::name)?,
            consistency: consistency.one_of(i, &CONSISTENCIES, Consistency::name)?,
            planned_at: planned.need(i)?,
            started_at: started.need(i)?,
            ended_at: ended.need(i)?,
            hour: u8::try_from(hour.need(i)?).unwrap_or(0),
            data_bytes: bytes.need(i)?,
            rows: u64::try_from(rows.need(i)?).unwrap_or(0),
            write_bytes_per_s: writes.need(i)?,
            source_cpu: source_cpu.need(i)?,
            target_cpu: target_cpu.need(i)?,
            predicted: MovePrediction {
                duration_ms: duration.need(i)?,
                duration_p90_ms: p90.need(i)?,
                fence_ms: fence.need(i)?,
                extra_share: predicted_extra(i).map(Option::unwrap_or_default),
            },
            actual_duration_ms: actual.need(i)?,
            actual_fence_ms: actual_fence.need(i)?,
            actual_extra_share: actual_extra(i),
            result: result.one_of(i, &RESULTS, OutcomeResult::name)?,
            why: why.get(i).map(str::to_owned),
        })
    };
    (0..t.rows()).map(one).collect()
}

const BACKENDS: [BackendKind; 3] = [BackendKind::Embedded, BackendKind::Postgres, BackendKind::Redis];
const CONSISTENCIES: [Consistency; 3] = [Consistency::Strict, Consistency::Bounded, Consistency::Eventual];
const RESULTS: [OutcomeResult; 4] =
    [OutcomeResult::Done, OutcomeResult::Cancelled, OutcomeResult::RolledBack, OutcomeResult::Failed];

/// Three columns, one for each resource.
fn extra<'a>(
    t: &'a Table,
    [cpu, memory, io]: [&'a str; 3],
) -> Result<impl Fn(usize) -> PerResource<Option<f64>> + 'a, TableError> {
    let (cpu, memory, io) = (t.numbers(cpu)?, t.numbers(memory)?, t.numbers(io)?);
    Ok(move |i| PerResource { cpu: cpu.get(i), memory: memory.get(i), io: io.get(i) })
}

fn decision_table(decisions: &[DecisionRecord]) -> TableBuilder {
    let each = || decisions.iter();
    TableBuilder::default()
        .text("plan", each().map(|d| Some(d.plan.as_str())))
        .times("decided_at", each().map(|d| Some(d.decided_at)))
        .text("shard_id", each().map(|d| Some(d.shard.as_str())))
        .text("source", each().map(|d| Some(d.source.as_str())))
        .text("target", each().map(|d| d.target.as_ref().map(|n| n.as_str())))
        .text("decision", each().map(|d| Some(d.decision.as_str())))
        .text("rule", each().map(|d| d.rule.as_deref()))
        .numbers("risk_unmoved", each().map(|d| Some(d.risk_unmoved)))
        .numbers("risk_chosen", each().map(|d| Some(d.risk_chosen)))
        .numbers("expected_gain", each().map(|d| Some(d.expected_gain)))
        .numbers("expected_cost", each().map(|d| Some(d.expected_cost)))
        .text("model", each().map(|d| d.version.as_ref().map(|v| v.model.as_str())))
        .integers(
            "model_number",
            each().map(|d| d.version.as_ref().map(|v| i64::try_from(v.number).unwrap_or(i64::MAX))),
        )
}

/// Reads decisions from a folder of pieces or one file, in the order in which they were written.
///
/// # Errors
/// [`TableError`]: damaged files, missing columns or values.
pub fn read_decisions(path: &Path) -> Result<Vec<DecisionRecord>, TableError> {
    let mut decisions = Vec::new();
    for piece in pieces(path)? {
        decisions.extend(decisions_of(&Table::read(&piece)?)?);
    }
    Ok(decisions)
}

fn decisions_of(t: &Table) -> Result<Vec<DecisionRecord>, TableError> {
    let (plan, decided, shard) = (t.text("plan")?, t.times("decided_at")?, t.text("shard_id")?);
    let (source, target) = (t.text("source")?, t.text("target")?);
    let (decision, rule) = (t.text("decision")?, t.text("rule")?);
    let (unmoved, chosen) = (t.numbers("risk_unmoved")?, t.numbers("risk_chosen")?);
    let (gain, cost) = (t.numbers("expected_gain")?, t.numbers("expected_cost")?);
    let (model, number) = (t.text("model")?, t.integers("model_number")?);
    let version = |i: usize| {
        let number = number.get(i).and_then(|n| u64::try_from(n).ok())?;
        Some(ModelVersion { model: model.get(i)?.to_owned(), number })
    };
    let one = |i: usize| {
        Ok(DecisionRecord {
            plan: plan.parse(i)?,
            decided_at: decided.need(i)?,
            shard: shard.parse(i)?,
            source: source.parse(i)?,
            target: target.parse_optional(i)?,
            decision: decision.need(i)?.to_owned(),
            rule: rule.get(i).map(str::to_owned),
            risk_unmoved: unmoved.need(i)?,
            risk_chosen: chosen.need(i)?,
            expected_gain: gain.need(i)?,
            expected_cost: cost.need(i)?,
            version: version(i),
        })
    };
    (0..t.rows()).map(one).collect()
}
