//! Two moves that are worth it together where none is alone: one shard makes room for another.
//!
//! The hot node sheds a shard to a node that first sheds one of its own, to a third node or, as a swap, to the hot one.

use std::collections::HashMap;

use super::limits::shard_refusal;
use super::schedule::Proof;
use super::search::{Chosen, Search, Settled};
use crate::dense::{Scan, Transfer};
use crate::{Refused, RuleName};
use foreshard_domain::Resource;

/// Pairs that are given times before the search gives up.
const ATTEMPTS: usize = 6;
/// Shards of a target that are tried as the one that makes room, the largest first.
const ROOM_MAKERS: usize = 12;
/// Shards and targets of a hot node that are tried.
const TRIED: usize = 12;

/// A pair in the settled state.
struct Pair {
    /// The shard that leaves the hot node, and where it goes.
    relief: (usize, usize),
    /// The shard that makes room there, and where it goes.
    room: (usize, usize),
    net: f64,
    rule: (RuleName, Option<Resource>),
}

/// What a node is charged more with a shard, if it keeps within bounds.
type Increases = HashMap<(usize, usize), Option<f64>>;

fn total(search: &Search<'_, '_>, scan: &Scan) -> f64 {
    search.model.grid.window().map(|step| scan.cost(step)).sum()
}

impl Search<'_, '_> {
    /// Takes the pair of moves that is most worth it; false if none is.
    pub fn choose_pair(&mut self) -> bool {
        let settings = &self.model.input.settings;
        if settings.search.pairs == 0 || self.chosen.len() + 2 > settings.moves_per_plan {
            return false;
        }
        let pairs = self.pairs();
        pairs.iter().take(ATTEMPTS).any(|pair| self.schedule_pair(pair))
    }

    /// Pairs that are worth it, best first.
    fn pairs(&mut self) -> Vec<Pair> {
        let settings = &self.model.input.settings;
        let (budget, needed) = (settings.search.pairs, settings.needed(2.0 * settings.churn_weight));
        let hot = |s: &Settled| {
            if s.asked.any() { self.model.grid.window().map(|i| s.scans.base.overload[i]).sum() } else { 0.0 }
        };
        let mut nodes: Vec<(f64, usize)> =
            self.settled.iter().map(hot).zip(0..).filter(|(h, _)| *h >= needed).collect();
        nodes.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let (mut pairs, mut increases, mut scanned) = (Vec::new(), Increases::new(), 0);
        for (_, node) in nodes {
            let Some(rule) = rule_of(&self.settled[node]) else { continue };
            for shard in self.shards_of(node).into_iter().take(TRIED) {
                let without = self.scan_without(shard);
                let shed = total(self, &self.settled[node].scans.base) - total(self, &without);
                if shed < needed {
                    break;
                }
                for target in self.targets(shard).into_iter().take(TRIED) {
                    if scanned >= budget {
                        break;
                    }
                    self.pairs_through((shard, target, shed), rule, &mut increases, &mut scanned, &mut pairs);
                }
            }
        }
        self.evaluated += scanned;
        pairs.retain(|p| p.net + 2.0 * settings.churn_weight >= needed);
        pairs.sort_by(|a, b| b.net.total_cmp(&a.net).then((a.relief, a.room).cmp(&(b.relief, b.room))));
        pairs
    }

    /// Pairs in which `shard` goes to `target`, each shard there making room once.
    fn pairs_through(
        &mut self,
        (shard, target, shed): (usize, usize, f64),
        rule: (RuleName, Option<Resource>),
        increases: &mut Increases,
        scanned: &mut usize,
        pairs: &mut Vec<Pair>,
    ) {
        let model = self.model;
        let before = total(self, &self.settled[target].scans.base);
        let mut load = self.settled[target].load.clone();
        for r in &model.resources {
            if let Some(lane) = &model.shards[shard].lanes[*r] {
                load.0[*r].add_scaled(lane, 1.0, 0..model.grid.steps);
            }
        }
        let talk = model.place_change(shard, self.at[shard], target, &self.at);
        for other in self.room_makers(target) {
            *scanned += 1;
            let lanes = Some((&model.shards[other].lanes, -1.0));
            let scan = model.scan(target, &load, &self.settled[target].bounds, lanes, false);
            let fits = model.firm_now().all(|step| scan.fits[step]);
            let gain = shed + before - total(self, &scan) - talk;
            // What is left can only get less by where the other goes.
            if !fits || gain <= pairs.iter().map(|p| p.net).fold(0.0, f64::max) * 0.5 {
                continue;
            }
            let places = self.targets(other);
            let onward = places.into_iter().filter_map(|to| {
                let more = self.increase(shard, other, to, increases, scanned)?;
                Some((more + model.place_change(other, target, to, &self.at), to))
            });
            let best = onward.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
            if let Some((more, to)) = best {
                let net = gain - more - 2.0 * model.input.settings.churn_weight;
                pairs.push(Pair { relief: (shard, target), room: (other, to), net, rule });
            }
        }
    }

    /// Shards of a node that may move, the largest first.
    fn room_makers(&self, node: usize) -> Vec<usize> {
        let free = self.on[node].iter().copied().filter(|s| !self.moved(*s) && shard_refusal(self.model, *s).is_none());
        let mut free: Vec<(f64, usize)> = free.map(|s| (self.weights[s], s)).collect();
        free.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        free.into_iter().take(ROOM_MAKERS).map(|(_, shard)| shard).collect()
    }

    /// What node `to` is charged more with `other`; on the node that `shard` leaves, without that one.
    fn increase(
        &self,
        shard: usize,
        other: usize,
        to: usize,
        increases: &mut Increases,
        scanned: &mut usize,
    ) -> Option<f64> {
        let (model, settled) = (self.model, &self.settled[to]);
        let lanes = Some((&model.shards[other].lanes, 1.0));
        let charge = |load: &crate::dense::NodeLoad| -> Option<f64> {
            let scan = model.scan(to, load, &settled.bounds, lanes, false);
            model.firm_now().all(|step| scan.fits[step]).then(|| total(self, &scan))
        };
        if to == self.at[shard] {
            *scanned += 1;
            let mut load = settled.load.clone();
            for r in &model.resources {
                if let Some(lane) = &model.shards[shard].lanes[*r] {
                    load.0[*r].add_scaled(lane, -1.0, 0..model.grid.steps);
                }
            }
            let without = model.scan(to, &load, &settled.bounds, None, false);
            return charge(&load).map(|with| with - total(self, &without));
        }
        *increases.entry((other, to)).or_insert_with(|| {
            *scanned += 1;
            charge(&settled.load).map(|with| with - total(self, &settled.scans.base))
        })
    }

    /// Gives both moves times, the one that makes room first if that can be; false, and nothing changed, if they have none.
    fn schedule_pair(&mut self, pair: &Pair) -> bool {
        let orders = [[pair.room, pair.relief], [pair.relief, pair.room]];
        orders.into_iter().any(|order| self.schedule_both(order, pair.rule).is_ok())
    }

    fn schedule_both(&mut self, order: [(usize, usize); 2], rule: (RuleName, Option<Resource>)) -> Result<(), Refused> {
        let (mut gain, mut cost) = (0.0, 0.0);
        for (i, (shard, target)) in order.into_iter().enumerate() {
            let with = Some(order[1 - i].0);
            let proof = if i == 0 { Proof::First } else { Proof::Second };
            let timed = self.timed_start(shard, target, proof).and_then(|(start, crossing)| {
                (gain, cost) = (gain + start.gain + start.balance, cost + start.cost);
                let needed = self.model.input.settings.needed(cost);
                if i == 1 && gain < needed { Err(Refused::NotWorthIt { gain, needed }) } else { Ok((start, crossing)) }
            });
            match timed {
                Ok((start, crossing)) => {
                    self.accept(Chosen { start, rule: rule.0, resource: rule.1, crossing, because: None, with });
                }
                Err(refused) => {
                    if i == 1 {
                        self.take_back();
                    }
                    return Err(refused);
                }
            }
        }
        Ok(())
    }

    /// Undoes the move that was accepted last.
    fn take_back(&mut self) {
        let Some(chosen) = self.chosen.pop() else { return };
        let Transfer { shard, source, target, .. } = chosen.start.transfer;
        self.outcomes.remove(&(shard, target));
        self.places[shard] = [source; 2];
        self.put(shard, target, source);
        for node in [source, target] {
            let mut load = self.base[node].0.clone();
            for c in &self.chosen {
                self.model.apply(&mut load, &c.start.transfer, node, true);
            }
            self.timed[node] = load;
            self.timed_scans.remove(&node);
        }
    }
}

/// The rule by which a hot node sheds shards.
fn rule_of(settled: &Settled) -> Option<(RuleName, Option<Resource>)> {
    let asked = &settled.asked;
    let named = |rule, resource: Option<Resource>| resource.map(|r| (rule, Some(r)));
    named(RuleName::Threshold, asked.threshold)
        .or_else(|| named(RuleName::Reactive, asked.reactive))
        .or_else(|| named(RuleName::CostBenefit, asked.cost_benefit))
}
