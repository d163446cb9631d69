//! Choosing settings on the last third of the first half, pooled over cells.

use serde::{Deserialize, Serialize};

use super::engine::State;
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

/// One setting and what it came to, summed over the cells until it could not be chosen any more: one that is behind with
/// some of the cells stays behind with all of them.
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
    /// Cells that it was tried on.
    pub cells: usize,
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
    let mut on = |cell: &Cell, _: usize, settings: &PolicySettings| {
        let mut state = settle(cell, settings, cell.tuning().start)?;
        replay(cell, SimPolicy::Reactive, settings, &mut state, cell.tuning())
    };
    let lost = |t: &Tried, done: &[Tried]| done.iter().any(|d| score(t) > score(d) + 1e-9);
    let tried = try_all(cells, base, grid, &mut on, &lost)?;
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

fn score(t: &Tried) -> f64 {
    t.overload_minutes + t.moves as f64
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
    // All settings begin where the same reactive run left the cluster.
    let settled = |cell: &Cell| settle(cell, base, cell.tuning().start);
    let states: Vec<State> = cells.iter().map(settled).collect::<Result<_, _>>()?;
    let mut on = |cell: &Cell, index: usize, settings: &PolicySettings| {
        let begin = cell.tuning().start;
        let mut state = states.get(index).cloned().ok_or(SimError::NothingToTune)?;
        let mut scenarios = source(cell).map_err(|source| SimError::Source { at: cell.loads().time(begin), source })?;
        replay(cell, SimPolicy::Predictive(scenarios.as_mut()), settings, &mut state, cell.tuning())
    };
    let allowed = reactive.chosen.moves;
    let lost = |t: &Tried, done: &[Tried]| {
        let mut eligible = done.iter().filter(|d| d.moves <= allowed);
        eligible.any(|d| t.moves > allowed || t.overload_minutes > d.overload_minutes)
    };
    let tried = try_all(cells, base, grid, &mut on, &lost)?;
    let few = |t: &&Tried| t.moves <= allowed;
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

type Run<'r> = dyn FnMut(&Cell, usize, &PolicySettings) -> Result<super::SimReport, SimError> + 'r;
/// Whether what a setting came to so far is behind one that was tried on all cells.
type Lost<'l> = dyn Fn(&Tried, &[Tried]) -> bool + 'l;

/// Tries all settings on the tightest cell, then one after the other, the best so far first, on the others.
fn try_all(
    cells: &[Cell],
    base: &PolicySettings,
    grid: &TuneGrid,
    run: &mut Run<'_>,
    lost: &Lost<'_>,
) -> Result<Vec<Tried>, SimError> {
    if cells.is_empty() || grid.triggers.is_empty() || grid.min_gains.len() < 3 {
        return Err(SimError::NothingToTune);
    }
    let mut order: Vec<(usize, &Cell)> = cells.iter().enumerate().collect();
    let tight = |cell: &Cell| (cell.spec().capacity_multiplier, cell.spec().nodes);
    order.sort_by(|(_, a), (_, b)| {
        let ((a, more), (b, fewer)) = (tight(a), tight(b));
        a.total_cmp(&b).then(fewer.cmp(&more))
    });
    let mut try_on = |tried: &mut Tried, (index, cell): (usize, &Cell)| -> Result<(), SimError> {
        let settings = PolicySettings { limit: tried.trigger, min_gain: tried.min_gain, ..base.clone() };
        let report = run(cell, index, &settings)?;
        tried.overload_minutes += report.overload_minutes;
        tried.moves += report.moves;
        tried.cells += 1;
        Ok(())
    };
    let mut tried = Vec::new();
    for trigger in &grid.triggers {
        for min_gain in &grid.min_gains {
            let mut one = Tried { trigger: *trigger, min_gain: *min_gain, overload_minutes: 0.0, moves: 0, cells: 0 };
            order.first().map_or(Ok(()), |first| try_on(&mut one, *first))?;
            tried.push(one);
        }
    }
    let mut next: Vec<usize> = (0..tried.len()).collect();
    next.sort_by(|a, b| score(&tried[*a]).total_cmp(&score(&tried[*b])));
    let mut done: Vec<Tried> = Vec::new();
    for i in next {
        for cell in order.iter().skip(1) {
            if lost(&tried[i], &done) {
                break;
            }
            try_on(&mut tried[i], *cell)?;
        }
        if tried[i].cells == cells.len() {
            done.push(tried[i].clone());
        }
    }
    Ok(tried)
}
