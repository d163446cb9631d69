//! Loads of nodes over scenarios: built, changed by moves, charged, and held against capacity.

use foreshard_domain::{LoadPaths, NodeState, PerResource, Resource, Risk, Timestamp};
use std::ops::Range;

use super::{Lanes, Model};
use crate::PolicySettings;
use crate::settings::NEARLY;

/// A move as its effect on loads: the copy loads source and target from `start` to `leaves`, the target has the shard
/// from the step that holds `arrives`, the source has it up to the step that begins at or after `leaves`. Planned moves
/// arrive after their expected and leave after their 90 % duration, so either node is charged for the worse case.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Transfer {
    pub shard: usize,
    pub source: usize,
    pub target: usize,
    pub start: Timestamp,
    pub arrives: Timestamp,
    pub leaves: Timestamp,
    /// Whether the owner has changed already, so that only the copy's load is left.
    pub done: bool,
}

/// Paths of one node's load for each resource that is limited anywhere; empty for the others.
#[derive(Debug, Clone)]
pub(crate) struct NodeLoad(pub PerResource<LoadPaths>);

/// What a node's load must not exceed at the capacity quantile, by step: its capacity, or the quantile that it has
/// already where that is higher.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub limit: PerResource<Vec<f32>>,
    /// Whether copies of shards that leave may go over it.
    pub relief: bool,
}

/// A node's load by step, charged and held against its bounds.
#[derive(Debug, Clone)]
pub(crate) struct Scan {
    /// Overload minutes as charged, less the later they come.
    pub overload: Vec<f64>,
    /// Imbalance, weighted, overload minutes, less the later they come.
    pub balance: Vec<f64>,
    /// Whether the capacity quantile is within the bounds.
    pub fits: Vec<bool>,
    /// Mean CPU share.
    pub cpu: Vec<f64>,
    /// Mean share of the fullest resource.
    pub fullest: Vec<f64>,
}

impl Scan {
    /// Overload and imbalance of a step.
    pub fn cost(&self, step: usize) -> f64 {
        self.overload[step] + self.balance[step]
    }
}

/// Loads that a row of scenarios is held against.
#[derive(Clone, Copy)]
struct Levels {
    /// Excess counts from here on.
    limit: f32,
    /// Being over counts from `nearly` on, all of it from `nearly + felt` on, per unit of load `slope`.
    nearly: f32,
    felt: f32,
    slope: f32,
    /// What must not be exceeded at the capacity quantile.
    bound: f32,
}

impl Levels {
    fn new(settings: &PolicySettings, capacity: f64) -> Self {
        let felt = capacity * NEARLY;
        Self {
            limit: (capacity * settings.limit) as f32,
            nearly: (capacity - felt) as f32,
            felt: felt as f32,
            slope: (settings.minute_weight / NEARLY) as f32,
            bound: capacity as f32,
        }
    }

    fn charge(self, value: f32) -> f32 {
        (value - self.limit).max(0.0) + (value - self.nearly).max(0.0).min(self.felt) * self.slope
    }
}

/// Values that are summed side by side.
const WIDTH: usize = 8;

/// Eight running sums instead of one: the order of additions is fixed, and blocks of eight vectorise.
#[derive(Default)]
struct RowSums {
    charged: [f32; WIDTH],
    sum: [f32; WIDTH],
    over: [u32; WIDTH],
}

impl RowSums {
    /// Takes up to eight values.
    fn take(&mut self, values: impl Iterator<Item = f32>, levels: Levels) {
        let sums = self.charged.iter_mut().zip(&mut self.sum).zip(&mut self.over);
        for (((charged, sum), over), value) in sums.zip(values) {
            *charged += levels.charge(value);
            *sum += value;
            *over += u32::from(value > levels.bound);
        }
    }
}

/// Sum of what is charged, sum of values and number over the bound of one row of scenarios.
fn row_sums(base: &[f32], add: Option<&[f32]>, sign: f32, plus: f32, levels: Levels) -> (f32, f32, u32) {
    // One scenario, as of a policy that believes in one future, needs no sums.
    if let [base] = base {
        let value = base + sign * add.and_then(|add| add.first()).copied().unwrap_or(0.0) + plus;
        return (levels.charge(value), value, u32::from(value > levels.bound));
    }
    let mut sums = RowSums::default();
    let (blocks, rest) = base.as_chunks::<WIDTH>();
    match add {
        Some(add) => {
            let (added, more) = add.as_chunks::<WIDTH>();
            for (b, a) in blocks.iter().zip(added) {
                sums.take(b.iter().zip(a).map(|(b, a)| b + sign * a + plus), levels);
            }
            sums.take(rest.iter().zip(more).map(|(b, a)| b + sign * a + plus), levels);
        }
        None => {
            for b in blocks {
                sums.take(b.iter().map(|b| b + plus), levels);
            }
            sums.take(rest.iter().map(|b| b + plus), levels);
        }
    }
    (sums.charged.iter().sum(), sums.sum.iter().sum(), sums.over.iter().sum())
}

impl Model<'_> {
    /// Load of a node that holds the given shards, without running copies.
    pub fn load_of(&self, node: usize, shards: &[usize]) -> NodeLoad {
        let mut load = self.residual_load(node);
        for shard in shards {
            self.add(&mut load, &self.shards[*shard].lanes, 1.0, 0..self.grid.steps);
        }
        load
    }

    /// What running moves do to a node's load.
    pub fn apply_running(&self, load: &mut NodeLoad, node: usize) {
        for running in self.running.iter().filter(|t| t.source == node || t.target == node) {
            self.apply(load, running, node, true);
        }
    }

    fn residual_load(&self, node: usize) -> NodeLoad {
        let limited = |r: &Resource| self.resources.contains(r);
        let mut load = NodeLoad(PerResource::from_fn(|r| {
            LoadPaths::zero(if limited(&r) { self.grid.steps } else { 0 }, self.grid.scenarios)
        }));
        self.add(&mut load, &self.nodes[node].residual, 1.0, 0..self.grid.steps);
        load
    }

    fn add(&self, load: &mut NodeLoad, lanes: &Lanes<'_>, sign: f32, steps: Range<usize>) {
        for r in &self.resources {
            if let Some(lane) = &lanes[*r] {
                load.0[*r].add_scaled(lane, sign, steps.clone());
            }
        }
    }

    /// Applies what a move does to a node's load; `outgoing` is whether the copy of a shard that leaves is counted.
    pub fn apply(&self, load: &mut NodeLoad, transfer: &Transfer, node: usize, outgoing: bool) {
        self.apply_shard(load, transfer, node);
        if transfer.target == node || (transfer.source == node && outgoing) {
            self.apply_copy(load, transfer, node);
        }
    }

    /// Moves the shard itself.
    pub fn apply_shard(&self, load: &mut NodeLoad, transfer: &Transfer, node: usize) {
        if transfer.done {
            return;
        }
        let lanes = &self.shards[transfer.shard].lanes;
        if transfer.source == node {
            self.add(load, lanes, -1.0, self.grid.step_after(transfer.leaves)..self.grid.steps);
        } else if transfer.target == node {
            self.add(load, lanes, 1.0, self.grid.step_of(transfer.arrives)..self.grid.steps);
        }
    }

    /// Adds the load of the copy.
    pub fn apply_copy(&self, load: &mut NodeLoad, transfer: &Transfer, node: usize) {
        for r in &self.resources {
            let share = self.input.cost_model.extra_share[*r];
            let Some(capacity) = self.capacity(node, *r).filter(|_| share > 0.0) else { continue };
            for step in self.grid.step_of(transfer.start)..self.grid.step_after(transfer.leaves) {
                let covered = self.grid.coverage(step, transfer.start, transfer.leaves);
                load.0[*r].add_constant((share * capacity * covered) as f32, step..step + 1);
            }
        }
    }

    /// Bounds of a node whose load is as given without further moves.
    pub fn bounds(&self, node: usize, load: &NodeLoad) -> Bounds {
        let settings = &self.input.settings;
        let mut hot = self.nodes[node].node.state == NodeState::Draining;
        let rank = self.grid.scenarios - 1 - self.may_exceed as usize;
        let limit = PerResource::from_fn(|r| {
            let Some(capacity) = self.capacity(node, r) else { return Vec::new() };
            let (capacity, warm) = (capacity as f32, (capacity * settings.limit.min(1.0)) as f32);
            let rows = load.0[r].values().chunks_exact(self.grid.scenarios).enumerate();
            let bounds = rows.map(|(step, row)| {
                let over = row.iter().filter(|v| **v > warm).count();
                if over <= self.may_exceed as usize {
                    return capacity;
                }
                hot |= step >= self.grid.first;
                let mut row = row.to_vec();
                let (_, quantile, _) = row.select_nth_unstable_by(rank, f32::total_cmp);
                quantile.max(capacity)
            });
            bounds.collect()
        });
        Bounds { limit, relief: hot && settings.relief_copies }
    }

    /// Whether a load is within bounds at the capacity quantile at all these steps.
    pub fn fits(&self, load: &NodeLoad, bounds: &Bounds, steps: Range<usize>) -> bool {
        self.resources.iter().all(|r| {
            let rows = load.0[*r].values().chunks_exact(self.grid.scenarios).zip(&bounds.limit[*r]);
            rows.skip(steps.start)
                .take(steps.len())
                .all(|(row, bound)| row.iter().map(|v| u32::from(v > bound)).sum::<u32>() <= self.may_exceed)
        })
    }

    /// Charges a node's load with a shard added or taken away (`lanes`, sign) and with or without a copy running.
    pub fn scan(
        &self,
        node: usize,
        load: &NodeLoad,
        bounds: &Bounds,
        lanes: Option<(&Lanes<'_>, f32)>,
        copy: bool,
    ) -> Scan {
        let (steps, n, minutes) = (self.grid.steps, self.grid.scenarios, self.grid.minutes());
        let settings = &self.input.settings;
        let weight = if settings.rules.proactive_balancing { settings.balance_weight } else { 0.0 };
        let mut scan = Scan {
            overload: vec![0.0; steps],
            balance: vec![0.0; steps],
            fits: vec![true; steps],
            cpu: vec![0.0; steps],
            fullest: vec![0.0; steps],
        };
        for r in &self.resources {
            let Some(capacity) = self.capacity(node, *r) else { continue };
            let extra = if copy { self.input.cost_model.extra_share[*r] * capacity } else { 0.0 };
            let sign = lanes.map_or(0.0, |(_, sign)| sign);
            let lane = lanes.and_then(|(lanes, _)| lanes[*r].as_deref());
            let levels = Levels::new(settings, capacity);
            for step in self.grid.window() {
                let row = load.0[*r].values().get(step * n..(step + 1) * n).unwrap_or(&[]);
                let add = lane.and_then(|lane| lane.get(step * n..(step + 1) * n));
                let levels = Levels { bound: bounds.limit[*r][step], ..levels };
                let (charged, sum, over) = row_sums(row, add, sign, extra as f32, levels);
                let share = f64::from(sum) / (n as f64 * capacity);
                let counts = minutes * self.weight[step];
                scan.overload[step] += f64::from(charged) / (n as f64 * capacity) * counts;
                let above = (share - self.mean_share[*r][step] - settings.balance_band).max(0.0);
                scan.balance[step] += weight * above * counts;
                scan.fits[step] &= over <= self.may_exceed;
                scan.fullest[step] = scan.fullest[step].max(share);
                if *r == Resource::Cpu {
                    scan.cpu[step] = share;
                }
            }
        }
        scan
    }

    /// Overload and imbalance of a load over the window, overload minutes.
    pub fn charge(&self, node: usize, load: &NodeLoad, bounds: &Bounds) -> f64 {
        let scan = self.scan(node, load, bounds, None, false);
        self.grid.window().map(|step| scan.cost(step)).sum()
    }

    /// Risk of being over `share` of the capacity at any step from now on.
    pub fn risk(&self, node: usize, load: &NodeLoad, share: f64) -> PerResource<Risk> {
        PerResource::from_fn(|r| match self.capacity(node, r) {
            Some(capacity) => load.0[r].risk((capacity * share) as f32, self.grid.window()),
            None => Risk::NONE,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_summed_with_a_shard_and_a_copy() {
        let base: Vec<f32> = (0..11).map(|i| i as f32).collect();
        let add = vec![1.0; 11];
        let levels = |limit, bound| Levels { limit, nearly: 9.0, felt: 0.5, slope: 0.0, bound };
        assert_eq!(row_sums(&base, Some(&add), 1.0, 0.5, levels(10.0, 9.0)), (0.5 + 1.5, 55.0 + 16.5, 3));
        assert_eq!(row_sums(&base, None, 0.0, 0.0, levels(8.0, 20.0)), (3.0, 55.0, 0));
        // 9 and below feel nothing, 10 feels all of it.
        let felt = Levels { slope: 4.0, ..levels(8.0, 20.0) };
        assert_eq!(row_sums(&base, None, 0.0, 0.0, felt), (3.0 + 2.0, 55.0, 0));
    }
}
