//! What moving one shard to one target gains and costs, for every start.

use foreshard_domain::{MoveFeatures, MovePrediction, Timestamp};

use super::limits::{Blocked, Busy};
use crate::Refused;
use crate::dense::{Bounds, Lanes, Model, NodeLoad, Scan, Transfer};

/// A node charged as it is and with a copy running.
#[derive(Debug, Clone)]
pub(crate) struct NodeScans {
    pub base: Scan,
    copy: Scan,
}

impl NodeScans {
    pub fn new(model: &Model<'_>, node: usize, load: &NodeLoad, bounds: &Bounds) -> Self {
        let base = model.scan(node, load, bounds, None, false);
        let copy = model.scan(node, load, bounds, None, true);
        Self { base, copy }
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

/// What the starts of one candidate are computed from.
struct Sums<'s> {
    candidate: Candidate<'s>,
    with: Scan,
    /// The copy on the source, on the target before the shard arrives, and after.
    leaving: CopySums,
    waiting: CopySums,
    arrived: CopySums,
    fullest: Vec<f64>,
    /// The same whenever it starts, where the cost model looks at no load.
    prediction: Option<MovePrediction>,
    /// Overload and imbalance that the source sheds, from each step on.
    shed: (Vec<f64>, Vec<f64>),
    /// The same that the target takes on.
    taken: (Vec<f64>, Vec<f64>),
    /// First step from which on the target keeps within its bounds with the shard.
    settles: usize,
}

impl<'s> Sums<'s> {
    fn new(model: &Model<'_>, candidate: Candidate<'s>) -> Self {
        let (source, target) = (candidate.source, candidate.target);
        let lanes: &Lanes<'_> = &model.shards[candidate.shard].lanes;
        let with = model.scan(target.node, target.load, target.bounds, Some((lanes, 1.0)), false);
        let both = model.scan(target.node, target.load, target.bounds, Some((lanes, 1.0)), true);
        let difference = |a: &[f64], b: &[f64]| {
            let pairs: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
            suffix(pairs.into_iter())
        };
        let (base, without) = (&source.scans.base, candidate.without);
        let shed = (difference(&base.overload, &without.overload), difference(&base.balance, &without.balance));
        let before = &target.scans.base;
        let taken = (difference(&with.overload, &before.overload), difference(&with.balance, &before.balance));
        let settles = with.fits.iter().rposition(|fits| !fits).map_or(0, |last| last + 1);
        let duration = &model.input.cost_model.duration_s;
        let fence = &model.input.cost_model.fence_ms;
        let blind = [duration, fence].iter().all(|terms| terms.source_cpu == 0.0 && terms.target_cpu == 0.0);
        let prediction = blind.then(|| predict(model, candidate.shard, source.node, target.node, (0.0, 0.0)));
        Self {
            leaving: CopySums::new(&source.scans.copy, base),
            waiting: CopySums::new(&target.scans.copy, before),
            arrived: CopySums::new(&both, &with),
            fullest: prefix(base.fullest.iter().zip(&before.fullest).map(|(a, b)| a + b)),
            candidate,
            with,
            prediction,
            shed,
            taken,
            settles,
        }
    }

    /// What the copy costs in one step that it fills.
    fn in_step(&self, step: usize, here: usize) -> f64 {
        let target = if step < here { &self.waiting } else { &self.arrived };
        span(&self.leaving.cost, step, step + 1) + span(&target.cost, step, step + 1)
    }

    /// What the copy costs in `from..to` and while it runs from `at` until `leaves`, the shard arriving in step `here`.
    fn copy_cost(
        &self,
        model: &Model<'_>,
        (from, to): (usize, usize),
        here: usize,
        times: (Timestamp, Timestamp),
    ) -> f64 {
        let split = here.clamp(from, to);
        let full = span(&self.leaving.cost, from, to)
            + span(&self.waiting.cost, from, split)
            + span(&self.arrived.cost, split, to);
        // The first and the last step are filled in part.
        let spare = |step: usize| (1.0 - model.grid.coverage(step, times.0, times.1)) * self.in_step(step, here);
        let last = if to > from + 1 { spare(to - 1) } else { 0.0 };
        if to > from { full - spare(from) - last } else { 0.0 }
    }

    /// One start; `None` if it does not fit into the capacities.
    fn start(&self, model: &Model<'_>, at: Timestamp) -> Option<Start> {
        let Candidate { shard, source, target, crossing, communication, .. } = self.candidate;
        let grid = &model.grid;
        let a = grid.step_of(at).min(grid.steps.saturating_sub(1));
        let cpu_share = (source.scans.base.cpu[a], target.scans.base.cpu[a]);
        let prediction = self.prediction.unwrap_or_else(|| predict(model, shard, source.node, target.node, cpu_share));
        let (arrives, leaves) = (at.plus_ms(prediction.duration_ms), at.plus_ms(prediction.duration_p90_ms));
        let (gone, here) = (grid.step_after(leaves), grid.step_of(arrives));
        if gone < self.settles {
            return None;
        }
        let split = here.clamp(a, gone.max(a));
        let target_fits = self.waiting.fits(a, split) && self.arrived.fits(split, gone);
        if !target_fits || !(source.bounds.relief || self.leaving.fits(a, gone)) {
            return None;
        }
        let copy = self.copy_cost(model, (a, gone), here, (at, leaves));
        let trough = span(&self.fullest, a, gone);
        let settings = &model.input.settings;
        Some(Start {
            transfer: Transfer {
                shard,
                source: source.node,
                target: target.node,
                start: at,
                arrives,
                leaves,
                done: false,
            },
            prediction,
            cpu_share,
            gain: self.shed.0[gone] - self.taken.0[here] + (-communication).max(0.0),
            balance: self.shed.1[gone] - self.taken.1[here],
            cost: copy + settings.churn_weight + communication.max(0.0),
            in_time: crossing.is_none_or(|crossing| leaves <= crossing),
            trough: trough / (gone - a).max(1) as f64,
        })
    }
}

/// Nets that differ by less than this share are alike, and the quieter hour decides.
const ALIKE: f64 = 0.01;

/// All starts that are allowed, best first: the highest net; among those alike one that ends before the first crossing,
/// then the deepest trough, then the earliest.
///
/// # Errors
/// Why no start is allowed.
pub(crate) fn starts(model: &Model<'_>, candidate: Candidate<'_>, busy: &Busy<'_>) -> Result<Vec<Start>, Refused> {
    let sums = Sums::new(model, candidate);
    let grid = &model.grid;
    let now = model.input.now;
    let later = (grid.first + 1..grid.steps).map(|step| grid.time(step)).filter(|at| *at > now);
    let mut blocked = Blocked::default();
    let mut starts = Vec::new();
    for at in std::iter::once(now).chain(later) {
        blocked.starts += 1;
        let Some(start) = sums.start(model, at) else { continue };
        match busy.blocks(model, &start.transfer) {
            Some(limit) => blocked.count(limit),
            None => starts.push(start),
        }
    }
    if starts.is_empty() {
        return Err(blocked.refusal(model).unwrap_or_else(|| no_capacity(model, &sums)));
    }
    // Balance is better the sooner; it decides the time only where there is no overload to avoid.
    let balancing = !starts.iter().any(|s| s.gain > 0.0);
    let value = |s: &Start| if balancing { s.net() } else { s.gain - s.cost };
    let best = starts.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
    let alike = best - (best.abs() * ALIKE).max(1e-9);
    starts.sort_by(|a, b| {
        let rank = |s: &Start| (value(s) < alike, !s.in_time);
        let quiet = |s: &Start| if candidate.must || !s.in_time { 0.0 } else { s.trough };
        let far = |s: &Start| if value(s) < alike { -value(s) } else { 0.0 };
        let order = rank(a).cmp(&rank(b)).then(far(a).total_cmp(&far(b)));
        order.then(quiet(a).total_cmp(&quiet(b))).then(a.transfer.start.cmp(&b.transfer.start))
    });
    Ok(starts)
}

/// Says where the target, or the source with the copy, would be over its bounds.
fn no_capacity(model: &Model<'_>, sums: &Sums<'_>) -> Refused {
    let Candidate { shard, source, target, .. } = sums.candidate;
    let level = model.input.settings.capacity_quantile;
    let step = (model.grid.first..model.grid.steps).rev().find(|step| !sums.with.fits[*step]);
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
