//! Many cells judged together: which of them say anything, and how much of what reacting loses a policy saves.

use serde::{Deserialize, Serialize};

use super::SimReport;

/// Least overload minutes of `reactive`, mean over the seeds, for a cell to count.
const LEAST_MINUTES: f64 = 60.0;
/// Highest share of `reactive`'s minutes that the best known may have for a cell to count.
const MOST_KNOWN: f64 = 0.5;

/// Fewest cells that have to count.
const LEAST_CELLS: usize = 4;

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
    /// Whether enough of them count to say what looking ahead brings: four, and half of those that could.
    pub informative: bool,
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
    let countable = judged.iter().filter(|c| COUNTABLE.contains(&c.capacity_multiplier)).count();
    let informative = counted.len() >= LEAST_CELLS && counted.len() * 2 >= countable;
    Some(Bars { policies: names.iter().filter_map(policy).collect(), informative, cells: judged })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(policy: &str, nodes: usize, capacity_multiplier: f64, overload_minutes: f64, moves: usize) -> SimReport {
        SimReport {
            policy: policy.to_owned(),
            nodes,
            capacity_multiplier,
            overload_minutes,
            overload_area: overload_minutes / 10.0,
            moves,
            ..SimReport::default()
        }
    }

    /// Reacting leaves `reactive` minutes, knowing the future a tenth, looking ahead a fifth.
    fn cell(nodes: usize, multiplier: f64, reactive: f64) -> [SimReport; 3] {
        [
            report("reactive", nodes, multiplier, reactive, 10),
            report("oracle", nodes, multiplier, reactive / 10.0, 2),
            report("predictive", nodes, multiplier, reactive / 5.0, 4),
        ]
    }

    #[test]
    fn cells_count_by_their_multiplier_and_by_what_can_be_saved() {
        let all = [(1.05, 900.0), (1.1, 200.0), (1.15, 100.0), (1.2, 80.0), (1.3, 61.0), (1.5, 500.0)];
        let mut reports: Vec<SimReport> = all.iter().flat_map(|(m, minutes)| cell(6, *m, *minutes)).collect();
        reports.extend(cell(12, 1.1, 60.0));
        let judged = bars(&reports).unwrap();
        let counted: Vec<f64> = judged.cells.iter().filter(|c| c.counted).map(|c| c.capacity_multiplier).collect();
        assert_eq!((counted, judged.informative), (vec![1.1, 1.15, 1.2, 1.3], true));
        let own = judged.policies.iter().find(|p| p.policy == "predictive").unwrap();
        assert!((own.minutes - 0.2).abs() < 1e-9 && (own.area - 0.2).abs() < 1e-9);
        assert_eq!((own.moves, own.gap_closed.map(|gap| (gap * 9.0).round())), ((16, 40), Some(8.0)));
        assert!((own.regret_minutes.unwrap() - 441.0 * 0.1 / 4.0).abs() < 1e-9);
        let few = bars(&[cell(6, 1.1, 200.0), cell(6, 1.3, 200.0)].concat()).unwrap();
        assert!(!few.informative && few.policies.len() == 3);
        let wide = bars(&cell(6, 1.5, 900.0)).unwrap();
        assert!(!wide.informative && wide.policies.iter().all(|p| p.minutes.is_nan()));
    }
}
