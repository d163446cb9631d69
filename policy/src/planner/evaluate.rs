//! What moving one shard to one target gains and costs, for every start.

use foreshard_domain::{MoveFeatures, MovePrediction, Timestamp};
use std::cmp::Ordering;

use super::limits::{Blocked, Busy};
use crate::Refused;
use crate::dense::{Bounds, Lanes, Model, NodeLoad, Scan, Transfer};

/// A node charged as it is and with a copy running.
#[derive(Debug, Clone)]
pub(crate) struct NodeScans {
    pub base: Scan,
    copy: CopySums,
    /// Mean share of the fullest resource, up to each step.
    fullest: Vec<f64>,
}

impl NodeScans {
    pub fn new(model: &Model<'_>, node: usize, load: &NodeLoad, bounds: &Bounds) -> Self {
        let base = model.scan(node, load, bounds, None, false);
        let copy = CopySums::new(&model.scan(node, load, bounds, None, true), &base);
        let fullest = prefix(base.fullest.iter().copied());
        Self { base, copy, fullest }
    }
}

/// One side of a candidate move.
#[derive(Clone, Copy)]
pub(crate) struct Side<'s> {
    pub node: usize,
    pub load: &'s NodeLoad,
    pub bounds: &'s Bounds,
    pub scans: &'s NodeScans,
}

/// A candidate: shard, source, target and what is known of them.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'s> {
    pub shard: usize,
    pub source: Side<'s>,
    pub target: Side<'s>,
    /// The source without the shard.
    pub without: &'s Scan,
    /// Change of the communication cost, overload minutes.
    pub communication: f64,
    /// First crossing on the source.
    pub crossing: Option<Timestamp>,
    /// Whether it must be done whatever it gains.
    pub must: bool,
    /// Whether it is refused where it does not gain enough by itself.
    pub prove: bool,
}

/// One way to time a move.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub transfer: Transfer,
    pub prediction: MovePrediction,
    pub cpu_share: (f64, f64),
    /// Overload minutes avoided, communication saved included.
    pub gain: f64,
    /// Weighted imbalance avoided.
    pub balance: f64,
    pub cost: f64,
    /// Whether the copy is over before the first crossing on the source.
    pub in_time: bool,
    /// Mean share of source and target while copying.
    trough: f64,
}

impl Start {
    /// Gain less cost.
    pub fn net(&self) -> f64 {
        self.gain + self.balance - self.cost
    }
}

/// What a move is expected to take, with the bandwidth between the nodes as upper bound of the rate.
pub(crate) fn predict(model: &Model<'_>, shard: usize, from: usize, to: usize, cpu: (f64, f64)) -> MovePrediction {
    let (data_bytes, write_bytes_per_s) =
        model.shards[shard].facts.map_or((0.0, 0.0), |f| (f.data_bytes, f.write_bytes_per_s));
    let features = MoveFeatures { data_bytes, write_bytes_per_s, source_cpu: cpu.0, target_cpu: cpu.1 };
    let mut prediction = model.input.cost_model.predict(&features);
    if let Some(rate) = model.bandwidth(from, to) {
        // Saturates by the rules of `as` for floats; a year is the longest that the cost model predicts as well.
        let least = (data_bytes / rate * 1000.0).min(3.15e10) as i64;
        prediction.duration_ms = prediction.duration_ms.max(least);
        prediction.duration_p90_ms = prediction.duration_p90_ms.max(least);
    }
    prediction
}

/// Sums from each step to the end of the window; one more entry than steps.
fn suffix(values: impl DoubleEndedIterator<Item = f64>) -> Vec<f64> {
    let mut sums = vec![0.0];
    let mut sum = 0.0;
    for value in values.rev() {
        sum += value;
        sums.push(sum);
    }
    sums.reverse();
    sums
}

/// Sums up to each step, so that a sum over any span is one difference; one more entry than steps.
fn prefix(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sums = vec![0.0];
    let mut sum = 0.0;
    for value in values {
        sum += value;
        sums.push(sum);
    }
    sums
}

fn span(sums: &[f64], from: usize, to: usize) -> f64 {
    if to > from { sums[to] - sums[from] } else { 0.0 }
}

/// What a copy costs one node by step, and in how many steps it does not fit; as sums up to each step.
#[derive(Debug, Clone)]
struct CopySums {
    cost: Vec<f64>,
    unfit: Vec<f64>,
}

impl CopySums {
    fn new(copy: &Scan, base: &Scan) -> Self {
        let steps = 0..copy.fits.len();
        let cost = prefix(steps.map(|step| copy.cost(step) - base.cost(step)));
        Self { cost, unfit: prefix(copy.fits.iter().map(|fits| f64::from(u8::from(!fits)))) }
    }

    fn fits(&self, from: usize, to: usize) -> bool {
        span(&self.unfit, from, to) < 0.5
    }
}

/// What a candidate gains by when it starts, copies left out.
struct Gains<'s> {
    candidate: Candidate<'s>,
    with: Scan,
    /// The same whenever it starts, where the cost model looks at no load.
    prediction: Option<MovePrediction>,
    /// Overload and imbalance that the source sheds, from each step on.
    shed: (Vec<f64>, Vec<f64>),
    /// The same that the target takes on.
    taken: (Vec<f64>, Vec<f64>),
    /// In how many steps the target is over its bounds with the shard, up to each step.
    unfit: Vec<f64>,
}

impl<'s> Gains<'s> {
    fn new(model: &Model<'_>, candidate: Candidate<'s>) -> Self {
        let (source, target) = (candidate.source, candidate.target);
        let lanes: &Lanes<'_> = &model.shards[candidate.shard].lanes;
        let with = model.scan(target.node, target.load, target.bounds, Some((lanes, 1.0)), false);
        let difference = |a: &[f64], b: &[f64]| suffix(a.iter().zip(b).map(|(a, b)| a - b));
        let (base, without, before) = (&source.scans.base, candidate.without, &target.scans.base);
        let shed = (difference(&base.overload, &without.overload), difference(&base.balance, &without.balance));
        let taken = (difference(&with.overload, &before.overload), difference(&with.balance, &before.balance));
        let unfit = prefix(with.fits.iter().map(|fits| f64::from(u8::from(!fits))));
        let duration = &model.input.cost_model.duration_s;
        let fence = &model.input.cost_model.fence_ms;
        let blind = [duration, fence].iter().all(|terms| terms.source_cpu == 0.0 && terms.target_cpu == 0.0);
        let prediction = blind.then(|| predict(model, candidate.shard, source.node, target.node, (0.0, 0.0)));
        Self { candidate, with, prediction, shed, taken, unfit }
    }

    /// What is known of a start before its copy is looked at; `None` if the target is too full for the shard.
    fn begin(&self, model: &Model<'_>, at: Timestamp) -> Option<Begun> {
        let Candidate { shard, source, target, communication, .. } = self.candidate;
        let grid = &model.grid;
        let first = grid.step_of(at).min(grid.steps.saturating_sub(1));
        let cpu_share = (source.scans.base.cpu[first], target.scans.base.cpu[first]);
        let prediction = self.prediction.unwrap_or_else(|| predict(model, shard, source.node, target.node, cpu_share));
        let (arrives, leaves) = (at.plus_ms(prediction.duration_ms), at.plus_ms(prediction.duration_p90_ms));
        let (gone, here) = (grid.step_after(leaves), grid.step_of(arrives));
        let transfer =
            Transfer { shard, source: source.node, target: target.node, start: at, arrives, leaves, done: false };
        if span(&self.unfit, here, model.firm(&transfer).end) > 0.5 {
            return None;
        }
        let gain = self.shed.0[gone] - self.taken.0[here] + (-communication).max(0.0);
        let balance = self.shed.1[gone] - self.taken.1[here];
        Some(Begun { transfer, prediction, cpu_share, steps: (first, here, gone), gain, balance })
    }
}

/// A start whose copy has not been looked at.
struct Begun {
    transfer: Transfer,
    prediction: MovePrediction,
    cpu_share: (f64, f64),
    /// The steps in which it starts, its shard arrives, and its shard is gone.
    steps: (usize, usize, usize),
    gain: f64,
    balance: f64,
}

/// What the starts of one candidate are computed from.
struct Sums<'s> {
    gains: Gains<'s>,
    /// The copy on the target after the shard has arrived.
    arrived: CopySums,
}

impl<'s> Sums<'s> {
    fn new(model: &Model<'_>, gains: Gains<'s>) -> Self {
        let Candidate { shard, target, .. } = gains.candidate;
        let lanes = Some((&model.shards[shard].lanes, 1.0));
        let both = model.scan(target.node, target.load, target.bounds, lanes, true);
        Self { arrived: CopySums::new(&both, &gains.with), gains }
    }

    /// The copy on the source, and on the target before the shard arrives.
    fn copies(&self) -> (&CopySums, &CopySums) {
        (&self.gains.candidate.source.scans.copy, &self.gains.candidate.target.scans.copy)
    }

    /// What the copy costs in one step that it fills.
    fn in_step(&self, step: usize, here: usize) -> f64 {
        let (leaving, waiting) = self.copies();
        let target = if step < here { waiting } else { &self.arrived };
        span(&leaving.cost, step, step + 1) + span(&target.cost, step, step + 1)
    }

    /// What the copy costs in `from..to` and while it runs from `at` until `leaves`, the shard arriving in step `here`.
    fn copy_cost(
        &self,
        model: &Model<'_>,
        (from, to): (usize, usize),
        here: usize,
        times: (Timestamp, Timestamp),
    ) -> f64 {
        let (leaving, waiting) = self.copies();
        let split = here.clamp(from, to);
        let full =
            span(&leaving.cost, from, to) + span(&waiting.cost, from, split) + span(&self.arrived.cost, split, to);
        // The first and the last step are filled in part.
        let spare = |step: usize| (1.0 - model.grid.coverage(step, times.0, times.1)) * self.in_step(step, here);
        let last = if to > from + 1 { spare(to - 1) } else { 0.0 };
        if to > from { full - spare(from) - last } else { 0.0 }
    }

    /// One start; `None` if it does not fit into the capacities.
    fn start(&self, model: &Model<'_>, begun: Begun) -> Option<Start> {
        let Candidate { source, target, crossing, communication, .. } = self.gains.candidate;
        let Begun { transfer, prediction, cpu_share, steps: (first, here, gone), gain, balance } = begun;
        let (leaving, waiting) = self.copies();
        let split = here.clamp(first, gone.max(first));
        let target_fits = waiting.fits(first, split) && self.arrived.fits(split, gone);
        if !target_fits || !(source.bounds.relief || leaving.fits(first, gone)) {
            return None;
        }
        let copy = self.copy_cost(model, (first, gone), here, (transfer.start, transfer.leaves));
        let trough = span(&source.scans.fullest, first, gone) + span(&target.scans.fullest, first, gone);
        Some(Start {
            prediction,
            cpu_share,
            gain,
            balance,
            cost: copy + model.input.settings.churn_weight + communication.max(0.0),
            in_time: crossing.is_none_or(|crossing| transfer.leaves <= crossing),
            trough: trough / (gone - first).max(1) as f64,
            transfer,
        })
    }
}

/// Nets that differ by less than this share are alike, and the quieter hour decides.
const ALIKE: f64 = 0.01;

/// The order of the starts of one candidate: the highest net; among those alike one that ends before the first crossing,
/// then the deepest trough, then the earliest.
struct Order {
    /// Balance is better the sooner; it decides the time only where there is no overload to avoid.
    balancing: bool,
    alike: f64,
    must: bool,
}

impl Order {
    fn new(starts: &[Start], must: bool) -> Self {
        let mut order = Self { balancing: !starts.iter().any(|s| s.gain > 0.0), alike: f64::NEG_INFINITY, must };
        let best = starts.iter().map(|s| order.value(s)).fold(f64::NEG_INFINITY, f64::max);
        order.alike = best - (best.abs() * ALIKE).max(1e-9);
        order
    }

    fn value(&self, s: &Start) -> f64 {
        if self.balancing { s.net() } else { s.gain - s.cost }
    }

    fn compare(&self, a: &Start, b: &Start) -> Ordering {
        let rank = |s: &Start| (self.value(s) < self.alike, !s.in_time);
        let quiet = |s: &Start| if self.must || !s.in_time { 0.0 } else { s.trough };
        let far = |s: &Start| if self.value(s) < self.alike { -self.value(s) } else { 0.0 };
        let order = rank(a).cmp(&rank(b)).then(far(a).total_cmp(&far(b)));
        order.then(quiet(a).total_cmp(&quiet(b))).then(a.transfer.start.cmp(&b.transfer.start))
    }
}

/// All starts that are allowed, at least one.
fn allowed(model: &Model<'_>, candidate: Candidate<'_>, busy: &Busy<'_>) -> Result<Vec<Start>, Refused> {
    let gains = Gains::new(model, candidate);
    let (grid, settings, now) = (&model.grid, &model.input.settings, model.input.now);
    let later = (grid.first + 1..grid.steps).map(|step| grid.time(step)).filter(|at| *at > now);
    let times = || std::iter::once(now).chain(later.clone());
    // Copies cost what they cost: where not even the shard's absence is worth a move they need not be looked at.
    let needed = settings.needed(settings.churn_weight + candidate.communication.max(0.0));
    let worth = |begun: &Begun| !candidate.prove || begun.gain + begun.balance >= needed;
    let mut best: Option<f64> = None;
    for begun in times().filter_map(|at| gains.begin(model, at)) {
        best = Some(best.unwrap_or(f64::NEG_INFINITY).max(begun.gain + begun.balance));
    }
    match best {
        None => return Err(no_capacity(model, &gains)),
        Some(gain) if candidate.prove && gain < needed => return Err(Refused::NotWorthIt { gain, needed }),
        Some(_) => {}
    }
    let sums = Sums::new(model, gains);
    let mut blocked = Blocked::default();
    let mut starts = Vec::new();
    let begun = times().filter_map(|at| sums.gains.begin(model, at)).filter(worth);
    for start in begun.filter_map(|begun| sums.start(model, begun)) {
        match busy.blocks(model, &start.transfer) {
            Some(limit) => blocked.count(limit),
            None => starts.push(start),
        }
    }
    if starts.is_empty() {
        return Err(blocked.refusal(model).unwrap_or_else(|| no_capacity(model, &sums.gains)));
    }
    Ok(starts)
}

/// All starts that are allowed, best first.
///
/// # Errors
/// Why no start is allowed.
pub(crate) fn starts(model: &Model<'_>, candidate: Candidate<'_>, busy: &Busy<'_>) -> Result<Vec<Start>, Refused> {
    let mut starts = allowed(model, candidate, busy)?;
    let order = Order::new(&starts, candidate.must);
    starts.sort_by(|a, b| order.compare(a, b));
    Ok(starts)
}

/// The best start that is allowed.
///
/// # Errors
/// Why no start is allowed.
pub(crate) fn best_start(model: &Model<'_>, candidate: Candidate<'_>, busy: &Busy<'_>) -> Result<Start, Refused> {
    let starts = allowed(model, candidate, busy)?;
    let order = Order::new(&starts, candidate.must);
    starts.into_iter().min_by(|a, b| order.compare(a, b)).ok_or_else(|| {
        let detail = "no start is left".to_owned();
        Refused::Hard { code: "no_capacity".into(), detail }
    })
}

/// Says where the target, or the source with the copy, would be over its bounds.
fn no_capacity(model: &Model<'_>, gains: &Gains<'_>) -> Refused {
    let Candidate { shard, source, target, .. } = gains.candidate;
    let level = model.input.settings.capacity_quantile;
    let step = model.grid.window().find(|step| !gains.with.fits[*step]);
    let Some(step) = step else {
        let (from, to) = (&model.nodes[source.node].node.id, &model.nodes[target.node].node.id);
        let detail = format!("at no start do {from} and {to} keep within capacity at quantile {level} with the copy");
        return Refused::Hard { code: "no_capacity".into(), detail };
    };
    let n = model.grid.scenarios;
    let shares = model.resources.iter().filter_map(|r| {
        let capacity = model.capacity(target.node, *r)?;
        let base = target.load.0[*r].step(step);
        let lane = model.shards[shard].lanes[*r].as_deref();
        let lane = lane.and_then(|lane| lane.get(step * n..(step + 1) * n));
        let mut sum: Vec<f64> = base.iter().map(|v| f64::from(*v)).collect();
        sum.iter_mut().zip(lane.unwrap_or(&[])).for_each(|(sum, v)| *sum += f64::from(*v));
        sum.sort_by(f64::total_cmp);
        let quantile = sum.get(n - 1 - model.may_exceed as usize)?;
        Some((quantile / capacity, *r))
    });
    let fullest = shares.max_by(|a, b| a.0.total_cmp(&b.0));
    let (share, resource) = fullest.map_or((0.0, "load"), |(share, r)| (share, r.name()));
    let (node, at) = (&model.nodes[target.node].node.id, model.grid.time(step));
    let percent = share * 100.0;
    let detail = format!("{resource} of {node} would be at {percent:.0} % of capacity at {at} (quantile {level})");
    Refused::Hard { code: "no_capacity".into(), detail }
}

#[cfg(test)]
mod tests {
    use super::suffix;

    #[test]
    fn suffix_sums() {
        assert_eq!(suffix([1.0, 2.0, 4.0].into_iter()), [7.0, 6.0, 4.0, 0.0]);
        assert_eq!(suffix(std::iter::empty()), [0.0]);
    }
}
