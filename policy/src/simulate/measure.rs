//! What is measured beside overload: balance, lead times, how good the forecasts were.

use foreshard_domain::{Resource, ScenarioSet};
use std::collections::BTreeMap;

use super::{Balance, Cell, LeadTime, SimMove};

const DAY_MS: i64 = 86_400_000;
/// How far forecasts are compared with what came.
const COMPARED_MS: i64 = 4 * 3_600_000;

/// Collects step by step.
pub(super) struct Measures<'c> {
    cell: &'c Cell,
    day: usize,
    ratios: Vec<(f64, f64)>,
    leads: Vec<f64>,
    needless: usize,
    known_moves: usize,
    errors: (f64, f64),
    compared: Option<usize>,
}

impl<'c> Measures<'c> {
    pub fn new(cell: &'c Cell) -> Self {
        let day = usize::try_from(cell.loads().step().count_in(DAY_MS)).unwrap_or(1).max(1);
        let (ratios, leads, needless, known_moves) = (Vec::new(), Vec::new(), 0, 0);
        Self { cell, day, ratios, leads, needless, known_moves, errors: (0.0, 0.0), compared: None }
    }

    /// Resources that have a limit, with their place in the loads and the capacity of a node.
    fn limited(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        let resources = self.cell.loads().resources().iter().enumerate();
        resources.filter_map(|(r, resource)| Some((r, self.cell.capacity()[*resource]?)))
    }

    /// Balance of one step.
    pub fn step(&mut self, step: usize, owner: &[usize]) {
        let (loads, nodes) = (self.cell.loads(), self.cell.spec().nodes);
        let mut fullest: Option<(f64, f64, f64)> = None;
        for (r, capacity) in self.limited() {
            let (mut sums, mut largest) = (vec![0.0; nodes], 0.0f64);
            for (shard, node) in owner.iter().enumerate() {
                let share = f64::from(loads.at(r, shard, step)) / capacity;
                sums[*node] += share;
                largest = largest.max(share);
            }
            let mean = sums.iter().sum::<f64>() / nodes as f64;
            if mean > 0.0 && fullest.is_none_or(|(used, ..)| mean > used) {
                let most = sums.into_iter().fold(0.0, f64::max);
                fullest = Some((mean, most / mean, (largest / mean).max(1.0)));
            }
        }
        self.ratios.extend(fullest.map(|(_, ratio, bound)| (ratio, bound)));
    }

    /// Looks at the moves that were started at this step.
    pub fn started(&mut self, step: usize, owner: &[usize], moved: &[SimMove]) {
        let now = self.cell.loads().time(step);
        for m in moved.iter().skip(self.known_moves) {
            let source = self.cell.topology().nodes.iter().position(|n| n.id == m.source);
            let end = (step + self.day).min(self.cell.steps());
            let over = source.and_then(|source| (step..end).find(|at| self.over(source, *at, owner)));
            match over {
                Some(at) => self.leads.push(self.cell.loads().time(at).since_ms(now) as f64 / 60_000.0),
                None => self.needless += 1,
            }
        }
        self.known_moves = moved.len();
    }

    fn over(&self, node: usize, step: usize, owner: &[usize]) -> bool {
        self.limited().any(|(r, capacity)| {
            let here = owner.iter().enumerate().filter(|(_, n)| **n == node);
            here.map(|(shard, _)| f64::from(self.cell.loads().at(r, shard, step))).sum::<f64>()
                > capacity * (1.0 + 1e-9)
        })
    }

    /// Compares scenarios with what came, once an hour.
    pub fn forecast(&mut self, step: usize, scenarios: Option<&ScenarioSet>) {
        let hour = (self.day / 24).max(1);
        let Some(set) = scenarios.filter(|_| self.compared.is_none_or(|last| step >= last + hour)) else { return };
        self.compared = Some(step);
        let loads = self.cell.loads();
        let coarse = usize::try_from(set.step().as_ms() / loads.step().as_ms()).unwrap_or(1).max(1);
        let ahead = usize::try_from(set.step().count_in(COMPARED_MS)).unwrap_or(0).min(set.steps());
        let index: BTreeMap<_, _> = set.shards().iter().enumerate().map(|(i, s)| (s, i)).collect();
        let mut errors = self.errors;
        for (r, _) in self.limited() {
            let resource: Resource = loads.resources()[r];
            for (shard, id) in loads.shards().iter().enumerate() {
                let lane = set.resource_index(resource).zip(index.get(id)).and_then(|(r, s)| set.lane(r, *s));
                let rows = lane.unwrap_or(&[]).chunks_exact(set.scenarios()).take(ahead).enumerate();
                for (i, row) in rows {
                    let from = step + i * coarse;
                    if from + coarse > self.cell.steps() || from < self.day {
                        continue;
                    }
                    let mean = |from: usize| {
                        (from..from + coarse).map(|at| f64::from(loads.at(r, shard, at))).sum::<f64>() / coarse as f64
                    };
                    let said = row.iter().map(|v| f64::from(*v)).sum::<f64>() / set.scenarios() as f64;
                    errors.0 += (said - mean(from)).abs();
                    errors.1 += (mean(from - self.day) - mean(from)).abs();
                }
            }
        }
        self.errors = errors;
    }

    pub fn finish(self) -> (Balance, LeadTime, Option<f64>) {
        let of = |f: fn(&(f64, f64)) -> f64, level| quantile(self.ratios.iter().map(f).collect(), level).unwrap_or(0.0);
        let balance = Balance {
            p50: of(|r| r.0, 0.5),
            p99: of(|r| r.0, 0.99),
            bound_p50: of(|r| r.1, 0.5),
            bound_p99: of(|r| r.1, 0.99),
        };
        let (p50, p10) = (quantile(self.leads.clone(), 0.5), quantile(self.leads, 0.1));
        let lead = LeadTime { p50, p10, needless: self.needless };
        let skill = (self.errors.1 > 0.0).then(|| 1.0 - self.errors.0 / self.errors.1);
        (balance, lead, skill)
    }
}

/// Nearest-rank quantile.
fn quantile(mut values: Vec<f64>, level: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (level * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank - 1).copied()
}
