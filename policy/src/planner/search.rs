//! The greedy search: the best candidate, a time for it, and again.

use std::collections::BTreeMap;

use foreshard_domain::{Resource, Timestamp};

use super::evaluate::{Candidate, NodeScans, Side, Start, starts};
use super::limits::{Busy, shard_refusal, target_refusal};
use super::rules::{Ask, LeastUsed, ask, misplaced, weight};
use crate::dense::{Bounds, Model, NodeLoad, Scan, Transfer};
use crate::{Refused, RuleName, Score};

/// A node in the settled state.
pub(crate) struct Settled {
    pub load: NodeLoad,
    pub bounds: Bounds,
    pub scans: NodeScans,
    /// Grows with every change, so that evaluations can be kept.
    version: u32,
}

/// A move that was chosen and given a time.
#[derive(Debug, Clone)]
pub(crate) struct Chosen {
    pub start: Start,
    pub rule: RuleName,
    pub resource: Option<Resource>,
    pub crossing: Option<Timestamp>,
    /// For constraints: why the shard must not stay.
    pub because: Option<String>,
}

type Outcome = Result<Start, Refused>;

/// A candidate that is worth it.
struct Worth {
    shard: usize,
    target: usize,
    start: Start,
    rule: (RuleName, Option<Resource>),
}

pub(crate) struct Search<'m, 'a> {
    pub model: &'m Model<'a>,
    /// Where the shards are, settled.
    pub at: Vec<usize>,
    /// Where each shard may be found meanwhile: where it is and, while it moves, where it goes.
    places: Vec<[usize; 2]>,
    pub settled: Vec<Settled>,
    /// Loads and bounds without any move.
    pub base: Vec<(NodeLoad, Bounds)>,
    /// Loads with all chosen moves at their times.
    timed: Vec<NodeLoad>,
    pub chosen: Vec<Chosen>,
    /// What was found of each pair last.
    pub outcomes: BTreeMap<(usize, usize), Result<Score, Refused>>,
    kept: BTreeMap<(usize, usize), (u32, u32, Outcome)>,
    without: BTreeMap<usize, (u32, Scan)>,
    pub deferred: BTreeMap<(usize, usize), String>,
    pub asking: Vec<bool>,
    pub evaluated: usize,
}

impl<'m, 'a> Search<'m, 'a> {
    pub fn new(model: &'m Model<'a>) -> Self {
        let at: Vec<usize> = model.shards.iter().map(|s| s.node).collect();
        let settled: Vec<Settled> = (0..model.nodes.len()).map(|node| settle(model, node, &at, 0)).collect();
        let base: Vec<_> = settled.iter().map(|s| (s.load.clone(), s.bounds.clone())).collect();
        let timed = settled.iter().map(|s| s.load.clone()).collect();
        let asking = vec![false; model.nodes.len()];
        let mut places: Vec<[usize; 2]> = at.iter().map(|at| [*at; 2]).collect();
        for running in &model.running {
            places[running.shard] = [running.source, running.target];
        }
        Self {
            model,
            at,
            places,
            settled,
            base,
            timed,
            chosen: Vec::new(),
            outcomes: BTreeMap::new(),
            kept: BTreeMap::new(),
            without: BTreeMap::new(),
            deferred: BTreeMap::new(),
            asking,
            evaluated: 0,
        }
    }

    /// Chooses moves until none is left that is worth it.
    pub fn run(&mut self) {
        loop {
            if self.chosen.len() >= self.model.input.settings.moves_per_plan {
                self.refuse_the_rest();
                return;
            }
            if !self.choose_must() && !self.choose_worth() {
                return;
            }
        }
    }

    fn moved(&self, shard: usize) -> bool {
        self.at[shard] != self.model.shards[shard].node
    }

    /// Shards that must not stay where they are and may move now, and why.
    fn must(&mut self) -> Vec<(usize, String)> {
        let mut must = Vec::new();
        for shard in 0..self.at.len() {
            if self.moved(shard) {
                continue;
            }
            let Some(because) = misplaced(self.model, shard, &self.at) else { continue };
            self.asking[self.at[shard]] = true;
            match shard_refusal(self.model, shard) {
                Some(refused) => self.refuse_shard(shard, &refused),
                None => must.push((shard, because)),
            }
        }
        // The largest first: small ones still fit into what is left.
        must.sort_by(|a, b| weight(self.model, b.0).total_cmp(&weight(self.model, a.0)).then(a.0.cmp(&b.0)));
        must
    }

    /// Moves one shard that must not stay where it is; false if none can.
    fn choose_must(&mut self) -> bool {
        for (shard, because) in self.must() {
            let mut targets: Vec<(usize, Start)> = Vec::new();
            for target in self.targets(shard) {
                if let Ok(start) = self.evaluate(shard, target, true) {
                    targets.push((target, start));
                }
            }
            targets.sort_by(|a, b| self.better(&a.1, &b.1));
            for (target, _) in targets {
                let rule = (RuleName::Constraint, None);
                if self.schedule(shard, target, rule, Some(&because)) {
                    return true;
                }
            }
        }
        false
    }

    /// Moves the shard that is most worth it; false if none is.
    fn choose_worth(&mut self) -> bool {
        for worth in self.worth() {
            if self.schedule(worth.shard, worth.target, worth.rule, None) {
                return true;
            }
        }
        false
    }

    /// All candidates that are worth it, best first.
    fn worth(&mut self) -> Vec<Worth> {
        let mut found = Vec::new();
        for (shard, ask) in self.candidates() {
            for target in self.targets(shard) {
                let Ok(start) = self.evaluate(shard, target, false) else { continue };
                let (gain, needed) = (start.gain + start.balance, self.model.input.settings.needed(start.cost));
                match ask.rule(&start, needed).filter(|_| gain >= needed) {
                    Some(rule) => found.push(Worth { shard, target, start, rule }),
                    None => {
                        self.outcomes.insert((shard, target), Err(Refused::NotWorthIt { gain, needed }));
                    }
                }
            }
        }
        found.sort_by(|a, b| self.better(&a.start, &b.start));
        found
    }

    /// Higher net first, then more room left on the target, then less to copy, then by name.
    fn better(&self, a: &Start, b: &Start) -> std::cmp::Ordering {
        let net = |s: &Start| (s.net() * 1e4).round();
        let room = |s: &Start| self.fullness(s.transfer.target);
        let bytes = |s: &Start| self.model.shards[s.transfer.shard].facts.map_or(0.0, |f| f.data_bytes);
        let names = |s: &Start| (s.transfer.shard, s.transfer.target);
        let order = net(b).total_cmp(&net(a)).then(room(a).total_cmp(&room(b)));
        order.then(bytes(a).total_cmp(&bytes(b))).then(names(a).cmp(&names(b)))
    }

    /// Highest mean share of any resource over the window.
    fn fullness(&self, node: usize) -> f64 {
        let fullest = &self.settled[node].scans.base.fullest;
        self.model.grid.window().map(|step| fullest[step]).fold(0.0, f64::max)
    }

    /// Shards that a rule asks to move, with what it asks.
    fn candidates(&mut self) -> Vec<(usize, Ask)> {
        let model = self.model;
        let loads: Vec<&NodeLoad> = self.settled.iter().map(|s| &s.load).collect();
        let least = LeastUsed::new(model, &loads);
        let mut candidates = Vec::new();
        for node in 0..model.nodes.len() {
            let settled = &self.settled[node];
            let ask = ask(model, node, (&settled.load, &settled.scans.base), &least, &self.at);
            if ask.any() {
                self.asking[node] = true;
                candidates.extend(self.shards_of(node).into_iter().map(|shard| (shard, ask.clone())));
            }
        }
        self.add_chatty(&mut candidates);
        candidates
    }

    /// Shards that are far from whom they talk to; the cost-benefit rule asks for them wherever they are.
    fn add_chatty(&self, candidates: &mut Vec<(usize, Ask)>) {
        let settings = &self.model.input.settings;
        if !settings.rules.cost_benefit || settings.communication_weight == 0.0 {
            return;
        }
        let needed = settings.needed(settings.churn_weight);
        for shard in 0..self.at.len() {
            let here = self.at[shard];
            let peers = &self.model.shards[shard].peers;
            let far = peers.iter().any(|(peer, _)| self.at[*peer] != here);
            if !far || self.moved(shard) || shard_refusal(self.model, shard).is_some() {
                continue;
            }
            let change = |to: usize| self.model.communication_change(shard, here, to, &self.at);
            let saves = (0..self.model.nodes.len()).any(|to| -change(to) >= needed);
            if saves && !candidates.iter().any(|(s, _)| *s == shard) {
                let cost_benefit = self.model.resources.first().copied();
                candidates.push((shard, Ask { cost_benefit, ..Ask::default() }));
            }
        }
    }

    /// The shards of a node that may move, those that relieve it most first; the others are refused.
    fn shards_of(&mut self, node: usize) -> Vec<usize> {
        let model = self.model;
        let mut free = Vec::new();
        for shard in 0..self.at.len() {
            if self.at[shard] != node || self.moved(shard) {
                continue;
            }
            match shard_refusal(model, shard) {
                Some(refused) => self.refuse_shard(shard, &refused),
                None => {
                    let without = self.without(shard);
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
            self.refuse_shard(*shard, &refused);
        }
        free.into_iter().take(most).map(|(_, shard)| shard).collect()
    }

    /// Records that a shard goes to no node at all.
    fn refuse_shard(&mut self, shard: usize, refused: &Refused) {
        for target in (0..self.model.nodes.len()).filter(|t| *t != self.at[shard]) {
            self.outcomes.insert((shard, target), Err(refused.clone()));
        }
    }

    /// The source without the shard.
    fn without(&mut self, shard: usize) -> Scan {
        let (model, node) = (self.model, self.at[shard]);
        let settled = &self.settled[node];
        match self.without.get(&shard) {
            Some((version, scan)) if *version == settled.version => scan.clone(),
            _ => {
                let lanes = Some((&model.shards[shard].lanes, -1.0));
                let scan = model.scan(node, &settled.load, &settled.bounds, lanes, false);
                self.without.insert(shard, (settled.version, scan.clone()));
                scan
            }
        }
    }

    /// Targets that nothing forbids, the least loaded first; the others are refused.
    fn targets(&mut self, shard: usize) -> Vec<usize> {
        let model = self.model;
        let mut free = Vec::new();
        for target in (0..model.nodes.len()).filter(|t| *t != self.at[shard]) {
            if self.deferred.contains_key(&(shard, target)) {
                continue;
            }
            match target_refusal(model, shard, target, |other| &self.places[other]) {
                Some(refused) => {
                    self.outcomes.insert((shard, target), Err(refused));
                }
                None => free.push((self.fullness(target), target)),
            }
        }
        free.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let most = model.input.settings.search.targets_per_shard;
        for (rank, (_, target)) in free.iter().enumerate().skip(most) {
            let (used, allowed) = (rank as f64 + 1.0, most as f64);
            let refused = Refused::Limit { code: "targets_per_shard".into(), used, allowed };
            self.outcomes.insert((shard, *target), Err(refused));
        }
        free.into_iter().take(most).map(|(_, target)| target).collect()
    }

    /// When the source is first over its limit, by the resource that is most likely to be.
    fn crossing(&self, node: usize, load: &NodeLoad) -> Option<Timestamp> {
        let risk = self.model.risk(node, load, self.model.input.settings.limit);
        let worst = self.model.resources.iter().max_by(|a, b| risk[**a].probability.total_cmp(&risk[**b].probability));
        worst.and_then(|r| risk[*r].first_crossing).map(|step| self.model.grid.time(step))
    }

    /// The best start of a pair in the settled state; kept until either node changes.
    fn evaluate(&mut self, shard: usize, target: usize, must: bool) -> Outcome {
        let model = self.model;
        let source = self.at[shard];
        let versions = (self.settled[source].version, self.settled[target].version);
        // Who talks to others depends on where those are, which the versions do not tell.
        let kept = self.kept.get(&(shard, target)).filter(|_| model.shards[shard].peers.is_empty());
        if let Some((_, _, outcome)) = kept.filter(|(a, b, _)| (*a, *b) == versions) {
            return outcome.clone();
        }
        self.evaluated += 1;
        let without = self.without(shard);
        let communication = model.communication_change(shard, source, target, &self.at);
        let outcome = self.too_little(source, &without, communication).filter(|_| !must).map_or_else(
            || {
                let side = |node: usize| {
                    let Settled { load, bounds, scans, .. } = &self.settled[node];
                    Side { node, load, bounds, scans }
                };
                let crossing = self.crossing(source, &self.settled[source].load);
                let (source, target) = (side(source), side(target));
                let candidate = Candidate { shard, source, target, without: &without, communication, crossing, must };
                let busy = Busy(model.running.iter().collect());
                starts(model, candidate, &busy).and_then(|starts| starts.into_iter().next().ok_or_else(no_start))
            },
            Err,
        );
        let score = |s: &Start| Score { gain: s.gain + s.balance, cost: s.cost };
        self.outcomes.insert((shard, target), outcome.as_ref().map(score).map_err(Clone::clone));
        self.kept.insert((shard, target), (versions.0, versions.1, outcome.clone()));
        outcome
    }

    /// Refuses early what cannot be worth it even on an empty target.
    fn too_little(&self, source: usize, without: &Scan, communication: f64) -> Option<Refused> {
        let settings = &self.model.input.settings;
        let base = &self.settled[source].scans.base;
        let shed = |step: usize| (base.cost(step) - without.cost(step)).max(0.0);
        // More load never costs less, so what the source sheds is the most that can be gained.
        let gain = self.model.grid.window().map(shed).sum::<f64>() + (-communication).max(0.0);
        let needed = settings.needed(settings.churn_weight + communication.max(0.0));
        (gain < needed).then_some(Refused::NotWorthIt { gain, needed })
    }

    /// Gives a move its time and takes it into the plan; false if it has none and is left for later.
    fn schedule(
        &mut self,
        shard: usize,
        target: usize,
        rule: (RuleName, Option<Resource>),
        because: Option<&str>,
    ) -> bool {
        match self.timed_start(shard, target, because.is_some()) {
            Ok((start, crossing)) => {
                let because = because.map(str::to_owned);
                self.accept(Chosen { start, rule: rule.0, resource: rule.1, crossing, because });
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
    fn timed_start(&self, shard: usize, target: usize, must: bool) -> Result<(Start, Option<Timestamp>), Refused> {
        let model = self.model;
        let source = self.at[shard];
        // Others of its group count where they are and where they go, whatever happens first.
        let mut places = self.places.clone();
        self.chosen.iter().map(|c| &c.start.transfer).for_each(|t| places[t.shard] = [t.source, t.target]);
        if let Some(refused) = target_refusal(model, shard, target, |other| &places[other]) {
            return Err(refused);
        }
        let scans = [source, target].map(|n| NodeScans::new(model, n, &self.timed[n], &self.base[n].1));
        let lanes = Some((&model.shards[shard].lanes, -1.0));
        let without = model.scan(source, &self.timed[source], &self.base[source].1, lanes, false);
        let side = |node: usize, scans| Side { node, load: &self.timed[node], bounds: &self.base[node].1, scans };
        let communication = model.communication_change(shard, source, target, &self.at);
        let crossing = self.crossing(source, &self.timed[source]);
        let candidate = Candidate {
            shard,
            source: side(source, &scans[0]),
            target: side(target, &scans[1]),
            without: &without,
            communication,
            crossing,
            must,
        };
        let chosen = self.chosen.iter().map(|c| &c.start.transfer);
        let busy = Busy(model.running.iter().chain(chosen).collect());
        let starts = starts(model, candidate, &busy)?;
        let mut best = None;
        for start in starts {
            let (gain, needed) = (start.gain + start.balance, model.input.settings.needed(start.cost));
            if !must && gain < needed {
                best.get_or_insert(Refused::NotWorthIt { gain, needed });
            } else if self.prefixes_fit(&start.transfer) {
                return Ok((start, crossing));
            }
        }
        let detail = || "another planned move would meet it on a full node".to_owned();
        Err(best.unwrap_or_else(|| Refused::Hard { code: "no_capacity".into(), detail: detail() }))
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
                order(t) < order(transfer) || self.model.fits(&load, bounds)
            })
        })
    }

    fn accept(&mut self, chosen: Chosen) {
        let Transfer { shard, source, target, .. } = chosen.start.transfer;
        self.at[shard] = target;
        self.places[shard] = [target; 2];
        let score = Score { gain: chosen.start.gain + chosen.start.balance, cost: chosen.start.cost };
        self.outcomes.insert((shard, target), Ok(score));
        for node in [source, target] {
            let version = self.settled[node].version + 1;
            self.settled[node] = settle(self.model, node, &self.at, version);
            self.model.apply(&mut self.timed[node], &chosen.start.transfer, node, true);
        }
        self.chosen.push(chosen);
    }

    /// The plan is full: what else would be done waits for the next.
    fn refuse_the_rest(&mut self) {
        let allowed = self.model.input.settings.moves_per_plan as f64;
        let refused = Refused::Limit { code: "moves_per_plan".into(), used: allowed + 1.0, allowed };
        let mut rest: Vec<(usize, usize)> = self.worth().iter().map(|w| (w.shard, w.target)).collect();
        for (shard, _) in self.must() {
            rest.extend(self.targets(shard).into_iter().map(|target| (shard, target)));
        }
        for (shard, target) in rest {
            self.defer(shard, target, refused.clone());
        }
    }
}

fn no_start() -> Refused {
    Refused::Hard { code: "no_capacity".into(), detail: "no start is left".into() }
}

fn settle(model: &Model<'_>, node: usize, at: &[usize], version: u32) -> Settled {
    let load = model.settled_load(node, at);
    let bounds = model.bounds(node, &load);
    let scans = NodeScans::new(model, node, &load, &bounds);
    Settled { load, bounds, scans, version }
}
