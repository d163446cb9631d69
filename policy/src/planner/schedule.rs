//! Giving chosen moves their times.

use foreshard_domain::{Resource, Timestamp};
use std::rc::Rc;

use super::evaluate::{Candidate, NodeScans, Side, Start, starts};
use super::limits::{Busy, target_refusal};
use super::search::{Chosen, Search, crossing};
use crate::dense::Transfer;
use crate::{Refused, RuleName};

/// What a move must prove when it is given its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Proof {
    /// That it is worth it.
    Worth,
    /// Nothing: it must be done, and soon.
    Must,
    /// Nothing by itself: a second move makes it worth it, so it starts as early as it can.
    First,
    /// Nothing by itself: with the move before it, which is proved elsewhere.
    Second,
}

impl Search<'_, '_> {
    /// Gives a move its time and takes it into the plan; false if it has none and is left for later.
    pub fn schedule(
        &mut self,
        shard: usize,
        target: usize,
        rule: (RuleName, Option<Resource>),
        because: Option<&str>,
    ) -> bool {
        let proof = if because.is_some() { Proof::Must } else { Proof::Worth };
        match self.timed_start(shard, target, proof) {
            Ok((start, crossing)) => {
                let because = because.map(str::to_owned);
                self.accept(Chosen { start, rule: rule.0, resource: rule.1, crossing, because, with: None });
                true
            }
            Err(refused) => {
                self.defer(shard, target, refused);
                false
            }
        }
    }

    pub fn defer(&mut self, shard: usize, target: usize, refused: Refused) {
        self.deferred.insert((shard, target), refused.code().to_owned());
        self.outcomes.insert((shard, target), Err(refused));
    }

    /// The best start beside the moves chosen so far.
    pub fn timed_start(
        &mut self,
        shard: usize,
        target: usize,
        proof: Proof,
    ) -> Result<(Start, Option<Timestamp>), Refused> {
        self.evaluated += 1;
        let model = self.model;
        let source = self.at[shard];
        let must = proof == Proof::Must;
        // Others of its group count where they are and where they go, whatever happens first.
        let chosen = self.chosen.iter().map(|c| &c.start.transfer);
        let planned: std::collections::BTreeMap<usize, [usize; 2]> =
            chosen.map(|t| (t.shard, [t.source, t.target])).collect();
        let places = |other: usize| planned.get(&other).map_or(&self.places[other][..], |places| &places[..]);
        if let Some(refused) = target_refusal(model, shard, target, places) {
            return Err(refused);
        }
        let scans = [source, target].map(|node| self.timed_scans(node));
        let lanes = Some((&model.shards[shard].lanes, -1.0));
        let without = model.scan(source, &self.timed[source], &self.base[source].1, lanes, false);
        let side = |node: usize, scans| Side { node, load: &self.timed[node], bounds: &self.base[node].1, scans };
        let communication = model.place_change(shard, source, target, &self.at);
        let crossing = crossing(model, source, &self.timed[source]);
        let candidate = Candidate {
            shard,
            source: side(source, &scans[0]),
            target: side(target, &scans[1]),
            without: &without,
            communication,
            crossing,
            must,
            prove: proof == Proof::Worth,
        };
        let chosen = self.chosen.iter().map(|c| &c.start.transfer);
        let busy = Busy(model.running.iter().chain(chosen).collect());
        let mut starts = starts(model, candidate, &busy)?;
        if proof == Proof::First {
            starts.sort_by_key(|s| s.transfer.start);
        }
        let mut best = None;
        for start in starts {
            let (gain, needed) = (start.gain + start.balance, model.input.settings.needed(start.cost));
            if proof == Proof::Worth && gain < needed {
                best.get_or_insert(Refused::NotWorthIt { gain, needed });
            } else if self.prefixes_fit(&start.transfer) {
                return Ok((start, crossing));
            }
        }
        let detail = || "another planned move would meet it on a full node".to_owned();
        Err(best.unwrap_or_else(|| Refused::Hard { code: "no_capacity".into(), detail: detail() }))
    }

    fn timed_scans(&mut self, node: usize) -> Rc<NodeScans> {
        let scans = || Rc::new(NodeScans::new(self.model, node, &self.timed[node], &self.base[node].1));
        Rc::clone(self.timed_scans.entry(node).or_insert_with(scans))
    }

    /// Whether every prefix of the plan that holds this move keeps its two nodes within bounds (P3).
    fn prefixes_fit(&self, transfer: &Transfer) -> bool {
        let order = |t: &Transfer| (t.start, t.shard);
        let mut all: Vec<&Transfer> = self.chosen.iter().map(|c| &c.start.transfer).chain([transfer]).collect();
        all.sort_by_key(|t| order(t));
        [transfer.source, transfer.target].into_iter().all(|node| {
            let (base, bounds) = &self.base[node];
            let mut load = base.clone();
            let mut touching = all.iter().filter(|t| t.source == node || t.target == node);
            touching.all(|t| {
                self.model.apply(&mut load, t, node, !bounds.relief);
                order(t) < order(transfer) || self.model.fits(&load, bounds, self.model.firm(t))
            })
        })
    }
}
