//! The best fixed placement in hindsight: what could have been had without any move, had everything been known.
//!
//! A local search over single moves and swaps from several beginnings; the optimum itself may be a little better.

use std::ops::Range;

use super::Cell;

/// Orders in which shards are first placed.
const BEGINNINGS: usize = 3;
/// Most rounds over all shards.
const ROUNDS: usize = 40;
/// What a minute over capacity counts beside the area above it.
const MINUTE: f64 = 0.2;

/// Loads as shares of a node's capacity, `[shard][resource * steps + step]`.
struct Shares {
    lanes: Vec<Vec<f32>>,
    steps: usize,
    resources: usize,
    nodes: usize,
}

impl Shares {
    fn new(cell: &Cell, span: &Range<usize>) -> Self {
        let loads = cell.loads();
        let limited: Vec<(usize, f64)> = loads
            .resources()
            .iter()
            .enumerate()
            .filter_map(|(r, resource)| Some((r, cell.capacity()[*resource]?)))
            .collect();
        let lane = |shard: usize| {
            let parts = limited.iter().flat_map(|(r, capacity)| {
                loads
                    .lane(*r, shard)
                    .get(span.clone())
                    .unwrap_or(&[])
                    .iter()
                    .map(move |v| (f64::from(*v) / capacity) as f32)
            });
            parts.collect()
        };
        let lanes = (0..loads.shards().len()).map(lane).collect();
        Self { lanes, steps: span.len(), resources: limited.len(), nodes: cell.spec().nodes }
    }

    /// Overload of a load with shards added and taken away: minutes weighted by [`MINUTE`] and area, in steps.
    fn cost(&self, load: &[f32], add: Option<usize>, take: Option<usize>) -> f64 {
        let none: &[f32] = &[];
        let lane = |shard: Option<usize>| shard.map_or(none, |s| &self.lanes[s]);
        let (add, take) = (lane(add), lane(take));
        let mut area = 0.0f64;
        let mut over = 0u32;
        for step in 0..self.steps {
            let mut hot = false;
            for r in 0..self.resources {
                let i = r * self.steps + step;
                let value = load[i] + add.get(i).copied().unwrap_or(0.0) - take.get(i).copied().unwrap_or(0.0);
                if value > 1.0 {
                    hot = true;
                    area += f64::from(value - 1.0);
                }
            }
            over += u32::from(hot);
        }
        area + MINUTE * f64::from(over)
    }
}

struct Placed<'s> {
    shares: &'s Shares,
    owner: Vec<usize>,
    loads: Vec<Vec<f32>>,
    costs: Vec<f64>,
}

impl<'s> Placed<'s> {
    /// One shard after the other to the node where it costs least, and among those where least is used at its peak.
    fn new(shares: &'s Shares, order: &[usize]) -> Self {
        let empty = vec![0.0f32; shares.steps * shares.resources];
        let (loads, costs) = (vec![empty; shares.nodes], vec![0.0; shares.nodes]);
        let mut placed = Self { shares, owner: vec![0; shares.lanes.len()], loads, costs };
        for shard in order {
            let lane = &shares.lanes[*shard];
            let peak = |node: usize| placed.loads[node].iter().zip(lane).map(|(a, b)| a + b).fold(0.0f32, f32::max);
            let rise = |node: usize| shares.cost(&placed.loads[node], Some(*shard), None) - placed.costs[node];
            let best = (0..shares.nodes)
                .min_by(|a, b| rise(*a).total_cmp(&rise(*b)).then_with(|| peak(*a).total_cmp(&peak(*b))));
            placed.put(*shard, best.unwrap_or(0));
        }
        placed
    }

    fn add(&mut self, shard: usize, node: usize, sign: f32) {
        let lane = &self.shares.lanes[shard];
        self.loads[node].iter_mut().zip(lane).for_each(|(a, b)| *a += sign * b);
        self.costs[node] = self.shares.cost(&self.loads[node], None, None);
    }

    fn put(&mut self, shard: usize, node: usize) {
        self.owner[shard] = node;
        self.add(shard, node, 1.0);
    }

    fn shift(&mut self, shard: usize, to: usize) {
        self.add(shard, self.owner[shard], -1.0);
        self.put(shard, to);
    }

    fn total(&self) -> f64 {
        self.costs.iter().sum()
    }

    /// Moves and swaps while they help.
    fn improve(&mut self) {
        for _ in 0..ROUNDS {
            let before = self.total();
            for shard in 0..self.owner.len() {
                self.improve_shard(shard);
            }
            if self.total() > before - 1e-6 {
                return;
            }
        }
    }

    fn improve_shard(&mut self, shard: usize) {
        let (shares, from) = (self.shares, self.owner[shard]);
        if self.total() <= 0.0 {
            return;
        }
        let left = shares.cost(&self.loads[from], None, Some(shard));
        let mut best = (-1e-6, None, from);
        for to in (0..shares.nodes).filter(|n| *n != from) {
            let change = left + shares.cost(&self.loads[to], Some(shard), None) - self.costs[from] - self.costs[to];
            if change < best.0 {
                best = (change, None, to);
            }
        }
        for other in (0..self.owner.len()).filter(|o| self.owner[*o] != from) {
            let to = self.owner[other];
            if self.costs[from] + self.costs[to] <= 0.0 {
                continue;
            }
            let change = shares.cost(&self.loads[from], Some(other), Some(shard))
                + shares.cost(&self.loads[to], Some(shard), Some(other))
                - self.costs[from]
                - self.costs[to];
            if change < best.0 {
                best = (change, Some(other), to);
            }
        }
        if best.2 != from {
            self.shift(shard, best.2);
            if let Some(other) = best.1 {
                self.shift(other, from);
            }
        }
    }
}

/// The owner of each shard in the best placement found.
pub(super) fn best(cell: &Cell, span: Range<usize>) -> Vec<usize> {
    let shares = Shares::new(cell, &span);
    let mut order: Vec<usize> = (0..shares.lanes.len()).collect();
    let weight = |shard: &usize| shares.lanes[*shard].iter().map(|v| f64::from(*v)).sum::<f64>();
    order.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.cmp(b)));
    let mut best: Option<(f64, Vec<usize>)> = None;
    for beginning in 0..BEGINNINGS {
        let mut placed = Placed::new(&shares, &order);
        placed.improve();
        if best.as_ref().is_none_or(|(cost, _)| placed.total() < *cost) {
            best = Some((placed.total(), placed.owner));
        }
        // The next beginning deals the middle of the order differently.
        let third = order.len() / 3;
        let shift = (beginning + 1).min(order.len());
        order.rotate_left(shift);
        order.get_mut(third..).unwrap_or(&mut []).reverse();
    }
    best.map(|(_, owner)| owner).unwrap_or_default()
}
