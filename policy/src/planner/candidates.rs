//! Which shards a rule asks to move, and which targets are tried for them.

use std::collections::BTreeSet;

use super::limits::{shard_refusal, target_refusal};
use super::rules::{Ask, asks_balance, least_used};
use super::search::Search;
use crate::Refused;

impl Search<'_, '_> {
    /// Shards that a rule asks to move, with what it asks.
    pub fn candidates(&mut self) -> Vec<(usize, Ask)> {
        let model = self.model;
        let least = least_used(model, self.settled.iter().map(|s| &s.mean));
        let mut candidates = Vec::new();
        for node in 0..model.nodes.len() {
            let mut ask = self.settled[node].asked.clone();
            ask.balancing = asks_balance(model, &self.settled[node].mean, &least);
            if ask.any() {
                self.asking[node] = true;
                candidates.extend(self.shards_of(node).into_iter().map(|shard| (shard, ask.clone())));
            }
        }
        self.add_chatty(&mut candidates);
        self.add_homeward(&mut candidates);
        candidates
    }

    /// Shards that the ring would have elsewhere.
    fn add_homeward(&self, candidates: &mut Vec<(usize, Ask)>) {
        let settings = &self.model.input.settings;
        if self.model.input.homes.is_empty() || settings.home_weight < settings.needed(settings.churn_weight) {
            return;
        }
        let away = |shard: usize| self.model.shards[shard].home.filter(|home| *home != self.at[shard]);
        for (shard, ask) in candidates.iter_mut() {
            ask.home = away(*shard);
        }
        let asked: BTreeSet<usize> = candidates.iter().map(|(shard, _)| *shard).collect();
        for shard in (0..self.at.len()).filter(|s| !asked.contains(s) && !self.moved(*s)) {
            if let Some(home) = away(shard).filter(|_| shard_refusal(self.model, shard).is_none()) {
                candidates.push((shard, Ask { home: Some(home), ..Ask::default() }));
            }
        }
    }

    /// Shards that are far from whom they talk to; the cost-benefit rule asks for them wherever they are.
    fn add_chatty(&self, candidates: &mut Vec<(usize, Ask)>) {
        let settings = &self.model.input.settings;
        if !settings.rules.cost_benefit
            || settings.communication_weight == 0.0
            || self.model.input.communication.is_empty()
        {
            return;
        }
        let needed = settings.needed(settings.churn_weight);
        let asked: BTreeSet<usize> = candidates.iter().map(|(shard, _)| *shard).collect();
        for shard in 0..self.at.len() {
            let here = self.at[shard];
            let peers = &self.model.shards[shard].peers;
            let far = peers.iter().any(|(peer, _)| self.at[*peer] != here);
            if !far || self.moved(shard) || asked.contains(&shard) || shard_refusal(self.model, shard).is_some() {
                continue;
            }
            let change = |to: usize| self.model.communication_change(shard, here, to, &self.at);
            // Nowhere is nearer to its peers than beside one of them.
            if peers.iter().any(|(peer, _)| -change(self.at[*peer]) >= needed) {
                let cost_benefit = self.model.resources.first().copied();
                candidates.push((shard, Ask { cost_benefit, ..Ask::default() }));
            }
        }
    }

    /// The shards of a node that may move, those that relieve it most first; the others are refused.
    pub fn shards_of(&mut self, node: usize) -> Vec<usize> {
        let version = self.settled[node].version;
        if let Some((_, kept)) = self.ranked.get(&node).filter(|(at, _)| *at == version) {
            return kept.clone();
        }
        let model = self.model;
        let mut free = Vec::new();
        for shard in self.on[node].clone() {
            if self.moved(shard) {
                continue;
            }
            match shard_refusal(model, shard) {
                Some(refused) => drop(self.stays.insert(shard, refused)),
                None => {
                    let without = self.scan_without(shard);
                    let base = &self.settled[node].scans.base;
                    let relief: f64 = model.grid.window().map(|step| base.cost(step) - without.cost(step)).sum();
                    free.push((relief, shard));
                }
            }
        }
        free.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let most = model.input.settings.search.shards_per_node;
        for (rank, (_, shard)) in free.iter().enumerate().skip(most) {
            let refused =
                Refused::Limit { code: "shards_per_node".into(), used: rank as f64 + 1.0, allowed: most as f64 };
            self.stays.insert(*shard, refused);
        }
        let kept: Vec<usize> = free.into_iter().take(most).map(|(_, shard)| shard).collect();
        // A shard that is tried now may have been too far down the list before.
        kept.iter().for_each(|shard| drop(self.stays.remove(shard)));
        self.ranked.insert(node, (version, kept.clone()));
        kept
    }

    /// Targets that nothing forbids, those that are near whom the shard talks to and then the least loaded first; the
    /// others are refused.
    pub fn targets(&mut self, shard: usize) -> Vec<usize> {
        let model = self.model;
        let here = self.at[shard];
        let talks = !model.shards[shard].peers.is_empty();
        let mut free = Vec::new();
        for target in (0..model.nodes.len()).filter(|t| *t != here) {
            let tabu = self.tabu.is_some_and(|t| t.shard == shard && t.target.is_none_or(|to| to == target));
            if tabu || self.deferred.contains_key(&(shard, target)) {
                continue;
            }
            match target_refusal(model, shard, target, |other| &self.places[other]) {
                Some(refused) => {
                    self.outcomes.insert((shard, target), Err(refused));
                }
                None => {
                    let talk = if talks { model.communication_change(shard, here, target, &self.at) } else { 0.0 };
                    free.push((talk, self.settled[target].fullness, target));
                }
            }
        }
        let most = model.input.settings.search.targets_per_shard;
        let order = |a: &(f64, f64, usize), b: &(f64, f64, usize)| {
            a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
        };
        if free.len() > most {
            self.unseen.insert(shard, free.len() - most);
            free.select_nth_unstable_by(most, order);
            free.truncate(most);
        }
        free.sort_by(order);
        free.into_iter().map(|(_, _, target)| target).collect()
    }
}
