//! Many cells judged together: which of them say anything, and how much of what reacting loses a policy saves.

use serde::{Deserialize, Serialize};

use super::SimReport;

/// Least overload minutes of `reactive`, mean over the seeds, for a cell to count.
const LEAST_MINUTES: f64 = 60.0;
/// Highest share of `reactive`'s minutes that the best known may have for a cell to count.
const MOST_KNOWN: f64 = 0.5;

/// Multipliers of capacity that count; tighter and wider cells are shown beside them.
pub const COUNTABLE: std::ops::RangeInclusive<f64> = 1.1..=1.3;

/// One cell: nodes and multiplier, its seeds together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellBars {
    /// Nodes.
    pub nodes: usize,
    /// Capacity multiplier.
    pub capacity_multiplier: f64,
    /// Overload minutes of `reactive`, mean over the seeds.
    pub reactive_minutes: f64,
    /// The lower of oracle and static, mean over the seeds; `None` if neither was run.
    pub best_known_minutes: Option<f64>,
    /// Whether there is something to be saved that could be saved, with a multiplier of 1.1 to 1.3.
    pub counted: bool,
}

/// One policy against `reactive`, summed over the counted cells.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyBars {
    /// Its name.
    pub policy: String,
    /// Overload minutes over those of `reactive`.
    pub minutes: f64,
    /// Overload area over that of `reactive`.
    pub area: f64,
    /// The same share of minutes in the median cell.
    pub median_minutes: f64,
    /// Moves, and those of `reactive`.
    pub moves: (usize, usize),
    /// Share of the way from `reactive` to the oracle; `None` without an oracle, or where it saves nothing.
    pub gap_closed: Option<f64>,
    /// Overload minutes above the best known, mean over cells and seeds.
    pub regret_minutes: Option<f64>,
}

/// All cells and policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bars {
    /// The cells, as they were run.
    pub cells: Vec<CellBars>,
    /// The policies over the counted cells; empty if none counts.
    pub policies: Vec<PolicyBars>,
}

/// Sums of the seeds of one cell under one policy.
#[derive(Clone, Copy, Default)]
struct Sum {
    minutes: f64,
    area: f64,
    moves: usize,
    seeds: f64,
}

impl Sum {
    fn add(self, other: Sum) -> Sum {
        Sum {
            minutes: self.minutes + other.minutes,
            area: self.area + other.area,
            moves: self.moves + other.moves,
            seeds: self.seeds + other.seeds,
        }
    }
}

fn of(reports: &[SimReport], cell: (usize, f64), policy: &str) -> Option<Sum> {
    let here = |r: &&SimReport| r.policy == policy && r.nodes == cell.0 && r.capacity_multiplier == cell.1;
    let one = |r: &SimReport| Sum { minutes: r.overload_minutes, area: r.overload_area, moves: r.moves, seeds: 1.0 };
    reports.iter().filter(here).map(one).reduce(Sum::add)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Judges reports of many cells; `None` unless `reactive` was run.
pub fn bars(reports: &[SimReport]) -> Option<Bars> {
    let mut cells: Vec<(usize, f64)> = Vec::new();
    let mut names: Vec<&str> = Vec::new();
    for r in reports {
        if !cells.contains(&(r.nodes, r.capacity_multiplier)) {
            cells.push((r.nodes, r.capacity_multiplier));
        }
        if !names.contains(&r.policy.as_str()) {
            names.push(&r.policy);
        }
    }
    let best = |cell| {
        let known = ["oracle", "static"].into_iter().filter_map(|name| of(reports, cell, name));
        known.min_by(|a, b| a.minutes.total_cmp(&b.minutes))
    };
    let judge = |cell: (usize, f64)| {
        let (reactive, best) = (of(reports, cell, "reactive")?, best(cell));
        let saves = best.is_none_or(|best| best.minutes <= MOST_KNOWN * reactive.minutes);
        Some(CellBars {
            nodes: cell.0,
            capacity_multiplier: cell.1,
            reactive_minutes: reactive.minutes / reactive.seeds,
            best_known_minutes: best.map(|best| best.minutes / best.seeds),
            counted: COUNTABLE.contains(&cell.1) && reactive.minutes > LEAST_MINUTES * reactive.seeds && saves,
        })
    };
    let judged: Option<Vec<CellBars>> = cells.iter().map(|cell| judge(*cell)).collect();
    let judged = judged.filter(|all| !all.is_empty())?;
    let counted: Vec<(usize, f64)> =
        judged.iter().filter(|c| c.counted).map(|c| (c.nodes, c.capacity_multiplier)).collect();
    let sum =
        |name: &str| counted.iter().map(|cell| of(reports, *cell, name)).reduce(|a, b| Some(a?.add(b?))).flatten();
    let reactive = sum("reactive");
    let policy = |name: &&str| {
        let (reactive, own) = (reactive?, sum(name)?);
        let ratio =
            |cell: &(usize, f64)| Some(of(reports, *cell, name)?.minutes / of(reports, *cell, "reactive")?.minutes);
        let oracle = sum("oracle").map(|oracle| reactive.minutes - oracle.minutes).filter(|gap| *gap > 0.0);
        let known: Option<f64> = counted.iter().map(|cell| best(*cell).map(|b| b.minutes)).sum();
        Some(PolicyBars {
            policy: (*name).to_owned(),
            minutes: own.minutes / reactive.minutes,
            area: own.area / reactive.area,
            median_minutes: median(counted.iter().filter_map(ratio).collect()),
            moves: (own.moves, reactive.moves),
            gap_closed: oracle.map(|gap| (reactive.minutes - own.minutes) / gap),
            regret_minutes: known.map(|known| (own.minutes - known) / own.seeds),
        })
    };
    Some(Bars { policies: names.iter().filter_map(policy).collect(), cells: judged })
}
