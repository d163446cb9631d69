//! Choosing settings on the last third of the first half, pooled over cells.

use serde::{Deserialize, Serialize};

use super::{Cell, ScenarioSource, SimError, SimPolicy, SourceError, replay, settle};
use crate::PolicySettings;

/// The settings that are tried: every trigger (limit) with every gain threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TuneGrid {
    /// Shares of capacity from which on load counts as excess.
    pub triggers: Vec<f64>,
    /// Least gains over the cost, ascending.
    pub min_gains: Vec<f64>,
}

impl Default for TuneGrid {
    fn default() -> Self {
        Self {
            triggers: vec![0.8, 0.85, 0.9, 0.95, 1.0],
            min_gains: vec![0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0],
        }
    }
}

/// One setting and what it came to, summed over the cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tried {
    /// Trigger.
    pub trigger: f64,
    /// Gain threshold.
    pub min_gain: f64,
    /// Overload minutes.
    pub overload_minutes: f64,
    /// Moves.
    pub moves: usize,
}

/// The chosen settings and everything that was tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The settings.
    pub settings: PolicySettings,
    /// Their figures.
    pub chosen: Tried,
    /// All that was tried.
    pub tried: Vec<Tried>,
}

/// Chooses the settings of `reactive`: the least overload minutes plus moves.
///
/// # Errors
/// [`SimError::OnEdge`] if the best gain threshold is the first or last of the grid and none within is as good;
/// [`SimError::NothingToTune`] if there is nothing to choose from.
pub fn tune_reactive(cells: &[Cell], base: &PolicySettings, grid: &TuneGrid) -> Result<Tuned, SimError> {
    let mut on = |cell: &Cell, settings: &PolicySettings| {
        let mut state = settle(cell, settings, cell.tuning().start)?;
        replay(cell, SimPolicy::Reactive, settings, &mut state, cell.tuning())
    };
    let tried = try_all(cells, base, grid, &mut on)?;
    let score = |t: &Tried| t.overload_minutes + t.moves as f64;
    let best = tried.iter().map(score).fold(f64::INFINITY, f64::min);
    let edge = |t: &Tried| grid.min_gains.first() == Some(&t.min_gain) || grid.min_gains.last() == Some(&t.min_gain);
    let mut ties = tried.iter().filter(|t| score(t) <= best + 1e-9);
    let within = ties.clone().find(|t| !edge(t));
    match (within, ties.next()) {
        (Some(chosen), _) => Ok(tuned(base, chosen.clone(), tried)),
        (None, Some(t)) => Err(SimError::OnEdge { best: t.min_gain, grid: grid.min_gains.clone() }),
        (None, None) => Err(SimError::NothingToTune),
    }
}

/// Makes the source of scenarios of a cell.
pub type SourceOf<'a> = dyn FnMut(&Cell) -> Result<Box<dyn ScenarioSource>, SourceError> + 'a;

/// Chooses the settings of a policy with scenarios: the fewest overload minutes with no more moves than `reactive` made
/// there; if none moves so little, the fewest moves. `source` makes the scenarios of a cell, by models that were trained
/// before its tuning steps.
///
/// # Errors
/// [`SimError::NothingToTune`], or what a source or the planner fails with.
pub fn tune_predictive(
    cells: &[Cell],
    reactive: &Tuned,
    grid: &TuneGrid,
    source: &mut SourceOf<'_>,
) -> Result<Tuned, SimError> {
    let base = &reactive.settings;
    let mut on = |cell: &Cell, settings: &PolicySettings| {
        let begin = cell.tuning().start;
        let mut state = settle(cell, base, begin)?;
        let mut scenarios = source(cell).map_err(|source| SimError::Source { at: cell.loads().time(begin), source })?;
        replay(cell, SimPolicy::Predictive(scenarios.as_mut()), settings, &mut state, cell.tuning())
    };
    let tried = try_all(cells, base, grid, &mut on)?;
    let few = |t: &&Tried| t.moves <= reactive.chosen.moves;
    let minutes =
        |a: &&Tried, b: &&Tried| a.overload_minutes.total_cmp(&b.overload_minutes).then(a.moves.cmp(&b.moves));
    let best = tried.iter().filter(few).min_by(minutes).or_else(|| tried.iter().min_by_key(|t| t.moves));
    let chosen = best.cloned().ok_or(SimError::NothingToTune)?;
    Ok(tuned(base, chosen, tried))
}

fn tuned(base: &PolicySettings, chosen: Tried, tried: Vec<Tried>) -> Tuned {
    let settings = PolicySettings { limit: chosen.trigger, min_gain: chosen.min_gain, ..base.clone() };
    Tuned { settings, chosen, tried }
}

type Run<'r> = dyn FnMut(&Cell, &PolicySettings) -> Result<super::SimReport, SimError> + 'r;

fn try_all(cells: &[Cell], base: &PolicySettings, grid: &TuneGrid, run: &mut Run<'_>) -> Result<Vec<Tried>, SimError> {
    if cells.is_empty() || grid.triggers.is_empty() || grid.min_gains.len() < 3 {
        return Err(SimError::NothingToTune);
    }
    let mut tried = Vec::new();
    for trigger in &grid.triggers {
        for min_gain in &grid.min_gains {
            let settings = PolicySettings { limit: *trigger, min_gain: *min_gain, ..base.clone() };
            let mut sum = Tried { trigger: *trigger, min_gain: *min_gain, overload_minutes: 0.0, moves: 0 };
            for cell in cells {
                let report = run(cell, &settings)?;
                sum.overload_minutes += report.overload_minutes;
                sum.moves += report.moves;
            }
            tried.push(sum);
        }
    }
    Ok(tried)
}
