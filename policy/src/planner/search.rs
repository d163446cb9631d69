//! The search: the best candidate, a time for it, and again; pairs of moves where no single one is worth it.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use foreshard_domain::{PerResource, Resource, Timestamp};

use super::evaluate::{Candidate, NodeScans, Side, Start, best_start};
use super::limits::{Busy, shard_refusal};
use super::rules::{Ask, asks_without_balance, mean_share, misplaced, weights};
use crate::dense::{Bounds, Model, NodeLoad, Scan, Transfer};
use crate::{Refused, RuleName, Score};

/// A node in the settled state.
#[derive(Clone)]
pub(crate) struct Settled {
    pub load: NodeLoad,
    pub bounds: Bounds,
    pub scans: NodeScans,
    /// What the rules ask of it, but for balancing.
    pub asked: Ask,
    /// Mean share over the window of each limited resource.
    pub mean: PerResource<Option<f64>>,
    /// Highest mean share of any resource at any step.
    pub fullness: f64,
    /// When it is first over its limit, if it may be.
    pub crossing: Option<Timestamp>,
    /// Grows with every change, so that evaluations can be kept.
    pub version: u32,
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
    /// The shard whose move makes this one worth it.
    pub with: Option<usize>,
}

pub(crate) type Outcome = Result<Start, Refused>;

/// A candidate that is worth it.
struct Worth {
    shard: usize,
    target: usize,
    start: Start,
    rule: (RuleName, Option<Resource>),
}

/// A shard, or a shard on a target, that the search does without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tabu {
    pub shard: usize,
    pub target: Option<usize>,
}

#[derive(Clone)]
pub(crate) struct Search<'m, 'a> {
    pub model: &'m Model<'a>,
    /// Where the shards are, settled.
    pub at: Vec<usize>,
    /// The shards on each node, settled.
    pub on: Vec<Vec<usize>>,
    /// Where each shard may be found meanwhile: where it is and, while it moves, where it goes.
    pub places: Vec<[usize; 2]>,
    pub settled: Vec<Settled>,
    /// Loads and bounds without any move.
    pub base: Vec<(NodeLoad, Bounds)>,
    /// Loads with all chosen moves at their times.
    pub timed: Vec<NodeLoad>,
    /// The same charged, kept until they change.
    pub timed_scans: HashMap<usize, Rc<NodeScans>>,
    pub chosen: Vec<Chosen>,
    /// What was found of each pair of shard and target last.
    pub outcomes: BTreeMap<(usize, usize), Result<Score, Refused>>,
    /// Shards that go to no node at all, and why.
    pub stays: BTreeMap<usize, Refused>,
    /// Targets of each shard that were not looked at, since emptier ones were enough.
    pub unseen: BTreeMap<usize, usize>,
    pub kept: HashMap<(usize, usize), (u32, u32, Outcome)>,
    pub without: HashMap<usize, (u32, Rc<Scan>)>,
    /// The shards of a node that may move, by the version they were ranked at.
    pub ranked: HashMap<usize, (u32, Vec<usize>)>,
    pub deferred: BTreeMap<(usize, usize), String>,
    pub asking: Vec<bool>,
    pub evaluated: usize,
    pub tabu: Option<Tabu>,
    /// How large each shard is.
    pub weights: Vec<f64>,
    versions: u32,
}

impl<'m, 'a> Search<'m, 'a> {
    pub fn new(model: &'m Model<'a>) -> Self {
        let at: Vec<usize> = model.shards.iter().map(|s| s.node).collect();
        let settled: Vec<Settled> = model
            .home
            .iter()
            .enumerate()
            .map(|(node, home)| settle(model, node, home.clone(), &model.on[node], 0))
            .collect();
        let base: Vec<_> = settled.iter().map(|s| (s.load.clone(), s.bounds.clone())).collect();
        let timed = settled.iter().map(|s| s.load.clone()).collect();
        let asking = vec![false; model.nodes.len()];
        let weights = weights(model);
        let mut places: Vec<[usize; 2]> = at.iter().map(|at| [*at; 2]).collect();
        for running in &model.running {
            places[running.shard] = [running.source, running.target];
        }
        Self {
            model,
            at,
            on: model.on.clone(),
            places,
            settled,
            base,
            timed,
            timed_scans: HashMap::new(),
            chosen: Vec::new(),
            outcomes: BTreeMap::new(),
            stays: BTreeMap::new(),
            unseen: BTreeMap::new(),
            kept: HashMap::new(),
            without: HashMap::new(),
            ranked: HashMap::new(),
            deferred: BTreeMap::new(),
            asking,
            evaluated: 0,
            tabu: None,
            weights,
            versions: 0,
        }
    }

    /// Chooses moves until none is left that is worth it.
    pub fn run(&mut self) {
        loop {
            if self.chosen.len() >= self.model.input.settings.moves_per_plan {
                self.refuse_the_rest();
                return;
            }
            if !self.choose_must() && !self.choose_worth() && !self.choose_pair() {
                return;
            }
        }
    }

    pub fn moved(&self, shard: usize) -> bool {
        self.at[shard] != self.model.shards[shard].node
    }

    /// Shards that must not stay where they are and may move now, and why.
    fn must(&mut self) -> Vec<(usize, String)> {
        let mut must = Vec::new();
        if !self.model.constrained {
            return must;
        }
        for shard in 0..self.at.len() {
            if self.moved(shard) {
                continue;
            }
            let Some(because) = misplaced(self.model, shard, &self.at) else { continue };
            self.asking[self.at[shard]] = true;
            match shard_refusal(self.model, shard) {
                Some(refused) => drop(self.stays.insert(shard, refused)),
                None => must.push((shard, because)),
            }
        }
        // The largest first: small ones still fit into what is left.
        must.sort_by(|a, b| self.weights[b.0].total_cmp(&self.weights[a.0]).then(a.0.cmp(&b.0)));
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
            let targets = self.targets(shard);
            // One that goes home for its own sake goes nowhere else.
            let only = ask.home.filter(|_| ask.for_home_alone());
            for target in targets.into_iter().filter(|t| only.is_none_or(|home| home == *t)) {
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
        let room = |s: &Start| self.settled[s.transfer.target].fullness;
        let bytes = |s: &Start| self.model.shards[s.transfer.shard].facts.map_or(0.0, |f| f.data_bytes);
        let names = |s: &Start| (s.transfer.shard, s.transfer.target);
        let order = net(b).total_cmp(&net(a)).then(room(a).total_cmp(&room(b)));
        order.then(bytes(a).total_cmp(&bytes(b))).then(names(a).cmp(&names(b)))
    }

    /// The source without the shard.
    pub fn scan_without(&mut self, shard: usize) -> Rc<Scan> {
        let (model, node) = (self.model, self.at[shard]);
        let settled = &self.settled[node];
        match self.without.get(&shard) {
            Some((version, scan)) if *version == settled.version => Rc::clone(scan),
            _ => {
                let lanes = Some((&model.shards[shard].lanes, -1.0));
                let scan = Rc::new(model.scan(node, &settled.load, &settled.bounds, lanes, false));
                self.without.insert(shard, (settled.version, Rc::clone(&scan)));
                scan
            }
        }
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
        let without = self.scan_without(shard);
        let communication = model.place_change(shard, source, target, &self.at);
        let outcome = self.too_little(source, &without, communication).filter(|_| !must).map_or_else(
            || {
                let side = |node: usize| {
                    let Settled { load, bounds, scans, .. } = &self.settled[node];
                    Side { node, load, bounds, scans }
                };
                let crossing = self.settled[source].crossing;
                let (source, target) = (side(source), side(target));
                let candidate =
                    Candidate { shard, source, target, without: &without, communication, crossing, must, prove: !must };
                let busy = Busy(model.running.iter().collect());
                best_start(model, candidate, &busy)
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

    /// Takes a move with its time into the plan.
    pub fn accept(&mut self, chosen: Chosen) {
        let Transfer { shard, source, target, .. } = chosen.start.transfer;
        self.places[shard] = [target; 2];
        let score = Score { gain: chosen.start.gain + chosen.start.balance, cost: chosen.start.cost };
        self.outcomes.insert((shard, target), Ok(score));
        self.put(shard, source, target);
        for node in [source, target] {
            self.model.apply(&mut self.timed[node], &chosen.start.transfer, node, true);
            self.timed_scans.remove(&node);
        }
        self.chosen.push(chosen);
    }

    /// Puts a shard onto another node, settled.
    pub fn put(&mut self, shard: usize, from: usize, to: usize) {
        self.at[shard] = to;
        self.on[from].retain(|s| *s != shard);
        let place = self.on[to].partition_point(|s| *s < shard);
        self.on[to].insert(place, shard);
        for node in [from, to] {
            // Versions are never used twice, so that what was kept of a state that was given up cannot come back.
            self.versions += 1;
            let load = self.model.load_of(node, &self.on[node]);
            self.settled[node] = settle(self.model, node, load, &self.on[node], self.versions);
        }
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

/// A node with the given shards from now on, `load` being theirs; running moves are added.
fn settle(model: &Model<'_>, node: usize, mut load: NodeLoad, shards: &[usize], version: u32) -> Settled {
    model.apply_running(&mut load, node);
    let bounds = model.bounds(node, &load);
    let scans = NodeScans::new(model, node, &load, &bounds);
    let asked = asks_without_balance(model, node, (&load, &scans.base), shards);
    let mean = PerResource::from_fn(|r| mean_share(model, node, &load, r));
    let fullness = model.grid.window().map(|step| scans.base.fullest[step]).fold(0.0, f64::max);
    let over = model.grid.window().any(|step| scans.base.overload[step] > 0.0);
    let crossing = if over { crossing(model, node, &load) } else { None };
    Settled { load, bounds, scans, asked, mean, fullness, crossing, version }
}

/// When a node is first over its limit, by the resource that is most likely to be.
pub(crate) fn crossing(model: &Model<'_>, node: usize, load: &NodeLoad) -> Option<Timestamp> {
    let risk = model.risk(node, load, model.input.settings.limit);
    let worst = model.resources.iter().max_by(|a, b| risk[**a].probability.total_cmp(&risk[**b].probability));
    worst.and_then(|r| risk[*r].first_crossing).map(|step| model.grid.time(step))
}
