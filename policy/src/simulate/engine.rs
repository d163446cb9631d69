//! The replay itself: decide at every step, account by the minute.

use foreshard_domain::{NodeId, PerResource, Placement, Resource, ScenarioSet, ShardId, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::measure::Measures;
use super::truth::Truth;
use super::{Balance, Cell, LeadTime, ScenarioSource, Seen, SimError, SimMove, SimReport};
use crate::planner::plan_checked;
use crate::settings::NEARLY;
use crate::{
    DecisionScores, InFlight, Judged, Plan, Planned, PlanningInput, PolicySettings, ShardFacts, decisions, judge,
};

/// A copy that runs. Ends on whole minutes.
#[derive(Debug, Clone)]
struct Running {
    shard: usize,
    source: usize,
    target: usize,
    start: Timestamp,
    end: Timestamp,
}

/// Where the shards are and what moves.
#[derive(Debug, Clone)]
pub(crate) struct State {
    owner: Vec<usize>,
    running: Vec<Running>,
    last_moved: Vec<Option<Timestamp>>,
}

impl State {
    /// All shards on the ring.
    pub fn new(cell: &Cell) -> Self {
        let last_moved = vec![None; cell.ring().len()];
        Self { owner: cell.ring().to_vec(), running: Vec::new(), last_moved }
    }

    /// Puts all shards where they are told to be.
    pub fn place(&mut self, owner: Vec<usize>) {
        self.running.clear();
        self.owner = owner;
    }

    /// Ends all running copies at once.
    pub fn finish_running(&mut self) {
        for copy in std::mem::take(&mut self.running) {
            self.owner[copy.shard] = copy.target;
        }
    }

    /// Changes the owners whose copies are over.
    fn finish(&mut self, now: Timestamp) {
        let (over, running) = std::mem::take(&mut self.running).into_iter().partition(|c| c.end <= now);
        self.running = running;
        let over: Vec<Running> = over;
        for copy in over {
            self.owner[copy.shard] = copy.target;
        }
    }
}

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;

/// Share above which a load counts as over capacity; what sums of floats cannot tell apart is not.
const OVER: f64 = 1.0 + 1e-9;

/// Replays steps; the state is that at their beginning, then that at their end.
pub(crate) fn run(
    cell: &Cell,
    name: &str,
    mut source: Option<&mut dyn ScenarioSource>,
    settings: &PolicySettings,
    state: &mut State,
    span: Range<usize>,
) -> Result<SimReport, SimError> {
    settings.validate().map_err(SimError::Settings)?;
    let mut decider = Decider::new(cell, name, settings);
    let mut report = SimReport {
        policy: name.to_owned(),
        nodes: cell.spec().nodes,
        seed: cell.spec().seed,
        capacity_multiplier: cell.spec().capacity_multiplier,
        minutes: 0.0,
        overload_minutes: 0.0,
        overload_area: 0.0,
        unavoidable_minutes: 0.0,
        moves: 0,
        bytes_moved: 0.0,
        node_hours: 0.0,
        peak_node_load: 0.0,
        plans: 0,
        balance: Balance::default(),
        lead_time_minutes: LeadTime::default(),
        forecast_skill: None,
        decisions: DecisionScores::default(),
        moved: Vec::new(),
    };
    let mut measures = Measures::new(cell);
    for step in span {
        state.finish(cell.loads().time(step));
        if let Some(source) = source.as_deref_mut().filter(|_| step > 0) {
            let scenarios = decider.decide(step, source, state, &mut report)?;
            measures.forecast(step, scenarios.as_ref());
        }
        measures.step(step, &state.owner);
        measures.started(step, &state.owner, &report.moved);
        account(cell, step, state, &mut report);
    }
    (report.balance, report.lead_time_minutes, report.forecast_skill) = measures.finish();
    report.decisions = DecisionScores::of(&decider.judged);
    report.node_hours = report.minutes / 60.0 * cell.spec().nodes as f64;
    Ok(report)
}

/// Loads of the nodes over their capacity at one step, with the copies that run at a moment.
fn shares(cell: &Cell, step: usize, state: &State, now: Timestamp) -> Vec<PerResource<f64>> {
    let mut shares = vec![PerResource::<f64>::default(); cell.spec().nodes];
    for (r, resource) in cell.loads().resources().iter().enumerate() {
        let Some(capacity) = cell.capacity()[*resource] else { continue };
        for (shard, node) in state.owner.iter().enumerate() {
            shares[*node][*resource] += f64::from(cell.loads().at(r, shard, step)) / capacity;
        }
        for copy in state.running.iter().filter(|c| c.start <= now && now < c.end) {
            shares[copy.source][*resource] += cell.spec().copy_share[*resource];
            shares[copy.target][*resource] += cell.spec().copy_share[*resource];
        }
    }
    shares
}

/// Counts the minutes of one step; owners change where copies end within it.
fn account(cell: &Cell, step: usize, state: &mut State, report: &mut SimReport) {
    let (mut from, end) = (cell.loads().time(step), cell.loads().time(step + 1));
    while from < end {
        state.finish(from);
        let next = state.running.iter().map(|c| c.end).filter(|at| *at > from).fold(end, Timestamp::min);
        let minutes = next.since_ms(from) as f64 / MINUTE_MS as f64;
        for share in shares(cell, step, state, from) {
            let all = Resource::ALL.map(|r| share[r]);
            let peak = all.into_iter().fold(0.0, f64::max);
            report.peak_node_load = report.peak_node_load.max(peak);
            if peak > OVER {
                report.overload_minutes += minutes;
                report.overload_area += all.into_iter().map(|s| (s - 1.0).max(0.0)).sum::<f64>() * minutes;
            }
        }
        report.minutes += minutes;
        if unavoidable(cell, step) {
            report.unavoidable_minutes += minutes;
        }
        from = next;
    }
}

/// Whether the cluster or one shard alone is over capacity at a step.
fn unavoidable(cell: &Cell, step: usize) -> bool {
    let loads = cell.loads();
    loads.resources().iter().enumerate().any(|(r, resource)| {
        let Some(capacity) = cell.capacity()[*resource] else { return false };
        let shards = (0..loads.shards().len()).map(|s| f64::from(loads.at(r, s, step)));
        let (total, largest) = shards.fold((0.0, 0.0f64), |(total, largest), v| (total + v, largest.max(v)));
        largest > capacity * OVER || total > capacity * cell.spec().nodes as f64 * OVER
    })
}

/// Turns scenarios into moves.
struct Decider<'c> {
    cell: &'c Cell,
    input: Option<PlanningInput>,
    name: String,
    settings: PolicySettings,
    index: BTreeMap<&'c NodeId, usize>,
    judged: Vec<Judged>,
    /// When decisions were judged last.
    judged_at: Option<Timestamp>,
}

impl<'c> Decider<'c> {
    fn new(cell: &'c Cell, name: &str, settings: &PolicySettings) -> Self {
        let mut settings = settings.clone();
        settings.moves_in_flight = cell.spec().moves_at_once;
        settings.moves_per_node = cell.spec().moves_at_once;
        settings.cool_down_shard_ms = cell.cool_down_ms();
        if name == "reactive" {
            // How long it takes an overload to last is its horizon; it has no later that would count less.
            settings.foresight_half_life_ms = 0;
        }
        let index = cell.topology().nodes.iter().enumerate().map(|(i, n)| (&n.id, i)).collect();
        Self { cell, input: None, name: name.to_owned(), settings, index, judged: Vec::new(), judged_at: None }
    }

    /// Plans at the beginning of a step and starts what is to start now.
    fn decide(
        &mut self,
        step: usize,
        source: &mut dyn ScenarioSource,
        state: &mut State,
        report: &mut SimReport,
    ) -> Result<Option<ScenarioSet>, SimError> {
        if state.running.len() >= self.cell.spec().moves_at_once {
            // No copy could start now, and what would start later is planned again at the next step.
            return Ok(None);
        }
        let reactive = self.name == "reactive";
        if reactive && self.calm_as_observed(step, state) {
            return Ok(None);
        }
        let seen = Seen::new(self.cell.loads(), step);
        let at = seen.now();
        let scenarios = source.scenarios(&seen).map_err(|source| SimError::Source { at, source })?;
        if !reactive && self.calm(&scenarios, state) {
            return Ok(Some(scenarios));
        }
        let input = self.input(&seen, scenarios, state);
        input.validate().map_err(|source| SimError::Input { at, source })?;
        // The fingerprint is for plans that are kept; these are not.
        let planned = plan_checked(&input, format!("step{step}")).map_err(|source| SimError::Plan { at, source })?;
        report.plans += 1;
        let moves = report.moves;
        let owner = state.owner.clone();
        self.start(at, &planned.plan, state, report);
        self.judge(&input, &planned, &owner, report.moves > moves);
        self.input = Some(input);
        Ok(self.input.as_ref().map(|input| input.scenarios.clone()))
    }

    /// Compares decisions with what comes: of one plan an hour, and of every plan of which a move has started.
    fn judge(&mut self, input: &PlanningInput, planned: &Planned, owner: &[usize], started: bool) {
        let due = self.judged_at.is_none_or(|last| input.now.since_ms(last) >= HOUR_MS);
        if !due && !started {
            return;
        }
        let mut records = decisions(input, planned, None);
        // A move that waits is planned again; only what was carried out is judged as one.
        let waits = |shard: &ShardId| planned.plan.moves.iter().any(|m| m.shard == *shard && m.start > input.now);
        records.iter_mut().filter(|r| waits(&r.shard)).for_each(|r| r.target = None);
        let window = input.scenarios.step().as_ms().saturating_mul(input.scenarios.steps() as i64);
        let truth = Truth { cell: self.cell, owner };
        let mut judged = judge(&records, &truth, window, &self.settings);
        judged.iter_mut().for_each(|j| j.first &= due);
        self.judged.extend(judged);
        self.judged_at = if due { Some(input.now) } else { self.judged_at };
    }

    /// Whether no node is over the limit by what was observed last, running copies included: then a planner that
    /// believes in it asks for nothing.
    fn calm_as_observed(&self, step: usize, state: &State) -> bool {
        let now = self.cell.loads().time(step);
        let shares = shares(self.cell, step.saturating_sub(1), state, now);
        let least =
            if self.settings.minute_weight > 0.0 { self.settings.limit.min(1.0 - NEARLY) } else { self.settings.limit };
        let over = shares.iter().any(|s| Resource::ALL.into_iter().any(|r| s[r] > least * 0.999));
        !over && !self.settings.rules.proactive_balancing
    }

    /// Whether no node is expected to be over the limit by as much as one move must gain: then nothing is worth it, since no
    /// move relieves a node of more than what it has too much.
    fn calm(&self, scenarios: &ScenarioSet, state: &State) -> bool {
        if self.settings.rules.proactive_balancing {
            return false;
        }
        let least = self.settings.needed(self.settings.churn_weight) * 0.999;
        let mut excess = vec![0.0; self.cell.spec().nodes];
        let counts = |step: usize| self.settings.counts(scenarios.step().as_ms().saturating_mul(step as i64));
        let counts: Vec<f64> = (0..scenarios.steps()).map(counts).collect();
        let index: BTreeMap<_, _> = scenarios.shards().iter().enumerate().map(|(i, s)| (s, i)).collect();
        let of = |shard: usize| self.cell.loads().shards().get(shard).and_then(|id| index.get(id)).copied();
        for (r, resource) in scenarios.resources().iter().enumerate() {
            let Some(capacity) = self.cell.capacity()[*resource] else { continue };
            let copies = |node: usize| state.running.iter().filter(move |c| c.source == node || c.target == node);
            for (node, excess) in excess.iter_mut().enumerate() {
                let here = state.owner.iter().enumerate().filter(|(_, n)| **n == node).map(|(s, _)| s);
                let coming = copies(node).filter(|c| c.target == node).map(|c| c.shard);
                let load = scenarios.node_sum(r, here.chain(coming).filter_map(of));
                let extra = copies(node).count() as f64 * self.cell.spec().copy_share[*resource] * capacity;
                let rows = load.values().chunks_exact(scenarios.scenarios().max(1)).zip(&counts);
                let over = |(row, counts): (&[f32], &f64)| {
                    let share = |v: &f32| (f64::from(*v) + extra) / capacity * 1.001;
                    row.iter().map(|v| self.settings.charge(share(v))).sum::<f64>() * counts / row.len() as f64
                };
                *excess += rows.map(over).sum::<f64>() * scenarios.step().as_minutes();
            }
        }
        excess.iter().all(|minutes| *minutes < least)
    }

    fn input(&mut self, seen: &Seen<'_>, scenarios: ScenarioSet, state: &State) -> PlanningInput {
        let nodes = &self.cell.topology().nodes;
        let shards = self.cell.loads().shards();
        let placement: Placement =
            shards.iter().zip(&state.owner).map(|(s, n)| (s.clone(), nodes[*n].id.clone())).collect();
        let facts = shards.iter().enumerate().map(|(i, shard)| {
            let current = PerResource::from_fn(|resource| {
                let r = seen.resources().iter().position(|known| *known == resource);
                r.and_then(|r| seen.lane(r, i).last()).map_or(0.0, |v| f64::from(*v))
            });
            let data_bytes = self.cell.data_bytes()[i];
            let last_moved = state.last_moved[i];
            let rest = ShardFacts::default();
            (shard.clone(), ShardFacts { data_bytes, last_moved, current, ..rest })
        });
        let in_flight = state.running.iter().map(|copy| InFlight {
            shard: shards[copy.shard].clone(),
            source: nodes[copy.source].id.clone(),
            target: nodes[copy.target].id.clone(),
            started: copy.start,
            expected_end: copy.end,
        });
        PlanningInput {
            now: seen.now(),
            seed: self.cell.spec().seed,
            parent: None,
            topology: self.input.take().map_or_else(|| self.cell.topology().clone(), |input| input.topology),
            placement,
            scenarios,
            shards: facts.collect(),
            voteless: BTreeSet::new(),
            homes: BTreeMap::new(),
            communication: Vec::new(),
            in_flight: in_flight.collect(),
            cost_model: self.cell.cost_model(),
            settings: self.settings.clone(),
        }
    }

    /// Starts the moves of a plan that are due now; the others are planned again.
    fn start(&self, now: Timestamp, plan: &Plan, state: &mut State, report: &mut SimReport) {
        for m in plan.moves.iter().filter(|m| m.start <= now) {
            let shard = self.cell.loads().shards().iter().position(|s| *s == m.shard);
            let nodes = self.index.get(&m.source).zip(self.index.get(&m.target));
            let (Some(shard), Some((source, target))) = (shard, nodes) else { continue };
            if state.running.len() >= self.cell.spec().moves_at_once {
                return;
            }
            let minutes = self.cell.copy_ms(shard).saturating_add(MINUTE_MS - 1).div_euclid(MINUTE_MS);
            let end = now.plus_ms(minutes * MINUTE_MS);
            state.running.push(Running { shard, source: *source, target: *target, start: now, end });
            state.last_moved[shard] = Some(now);
            report.moves += 1;
            report.bytes_moved += self.cell.data_bytes()[shard];
            report.moved.push(SimMove {
                shard: m.shard.clone(),
                source: m.source.clone(),
                target: m.target.clone(),
                start: now,
                end,
                rule: m.reason.rule.name().to_owned(),
            });
        }
    }
}
