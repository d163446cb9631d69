//! A forecaster for those who simulate without a trained network: ridge regression on what the series did at the same
//! hour, and its own past errors as joint scenarios.
//!
//! Every lead time has its own weights, pooled over series that are brought to a common scale. A scenario is the point
//! forecast plus the error that the same forecast made from one past moment, for all series and all lead times at once:
//! what goes wrong together stays together. Nothing after the completed steps is read, neither by the weights, which are
//! fitted once, nor by the errors, which follow the replay.

use foreshard_domain::{ScenarioSet, Step};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{ScenarioSource, Seen, SourceError};

/// Shape of the forecasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RidgeSpec {
    /// Steps of the loads that make one step of the scenarios, the mean of which is forecast.
    pub coarse: usize,
    /// Steps of the scenarios.
    pub horizon: usize,
    /// Most scenarios.
    pub scenarios: usize,
}

impl Default for RidgeSpec {
    /// A day in quarters of an hour on five-minute loads.
    fn default() -> Self {
        Self { coarse: 3, horizon: 96, scenarios: 24 }
    }
}

const FEATURES: usize = 10;
/// Weight that is put on small weights, as share of the number of samples.
const PENALTY: f64 = 1e-3;
const DAY_MS: i64 = 86_400_000;

/// Sums of each series up to each step, so that a mean over any span is one difference.
#[derive(Debug, Clone, Default)]
struct Sums {
    lanes: Vec<Vec<f64>>,
}

impl Sums {
    /// Brings the sums to the steps that are seen.
    fn follow(&mut self, seen: &Seen<'_>) {
        let lanes = seen.resources().len() * seen.shards().len();
        self.lanes.resize(lanes, vec![0.0]);
        for (i, sums) in self.lanes.iter_mut().enumerate() {
            let lane = seen.lane(i / seen.shards().len().max(1), i % seen.shards().len().max(1));
            sums.truncate(seen.steps() + 1);
            let (from, mut sum) = (sums.len() - 1, sums.last().copied().unwrap_or(0.0));
            for value in lane.get(from..).unwrap_or(&[]) {
                sum += f64::from(*value);
                sums.push(sum);
            }
        }
    }

    /// Mean of `from..to`; 0 outside what is known.
    fn mean(&self, lane: usize, from: usize, to: usize) -> f64 {
        let sums = self.lanes.get(lane).and_then(|sums| Some((sums.get(from)?, sums.get(to)?)));
        sums.map_or(0.0, |(a, b)| (b - a) / (to.saturating_sub(from)).max(1) as f64)
    }
}

/// Weights of every lead time, fitted on the loads before a step.
#[derive(Debug, Clone)]
pub struct RidgeModel {
    spec: RidgeSpec,
    day: usize,
    hour: usize,
    weights: Vec<[f64; FEATURES]>,
    scale: Vec<f64>,
}

impl RidgeModel {
    /// Fits on completed steps.
    ///
    /// # Errors
    /// If fewer than three days are seen, or the shape is empty.
    pub fn fit(seen: &Seen<'_>, spec: RidgeSpec) -> Result<Self, SourceError> {
        let count = |ms| usize::try_from(Step::count_in(seen.step(), ms)).unwrap_or(0).max(1);
        let (day, hour) = (count(DAY_MS), count(DAY_MS / 24));
        if spec.coarse == 0 || spec.horizon == 0 || spec.scenarios == 0 || spec.coarse * spec.horizon > day {
            return Err("ridge scenarios reach from one step to one day, and there must be at least one".into());
        }
        if seen.steps() < 3 * day {
            return Err(format!("ridge needs 3 days to learn from, {} steps are seen", seen.steps()).into());
        }
        let mut sums = Sums::default();
        sums.follow(seen);
        let scale = (0..sums.lanes.len()).map(|lane| sums.mean(lane, 0, seen.steps()).max(1e-9)).collect();
        let mut model = Self { spec, day, hour, weights: Vec::new(), scale };
        model.weights = (0..spec.horizon).map(|lead| model.fit_lead(&sums, seen.steps(), lead)).collect();
        Ok(model)
    }

    /// Days that a profile takes: up to a week.
    fn days(&self, origin: usize) -> usize {
        (origin / self.day).clamp(1, 7)
    }

    fn features(&self, sums: &Sums, lane: usize, origin: usize, lead: usize) -> [f64; FEATURES] {
        let (coarse, day, hour) = (self.spec.coarse, self.day, self.hour);
        let begin = origin + lead * coarse;
        let mean = |from: usize, to: usize| sums.mean(lane, from, to) / self.scale[lane];
        let days = self.days(origin);
        let back = |d: usize| {
            let d = d.min(days);
            mean((begin).saturating_sub(d * day), (begin + coarse).saturating_sub(d * day))
        };
        let hour_back = |d: usize| mean((origin - hour).saturating_sub(d * day), origin.saturating_sub(d * day));
        let profile = |f: &dyn Fn(usize) -> f64| (1..=days).map(f).sum::<f64>() / days as f64;
        let (half, smooth) = (hour / 2, begin.saturating_sub(day));
        let (hour_now, usual) = (hour_back(0), profile(&back));
        [
            1.0,
            mean(origin - 1, origin),
            hour_now,
            back(1),
            back(2),
            back(7),
            usual,
            hour_now - hour_back(1),
            hour_now - profile(&hour_back),
            mean(smooth.saturating_sub(half), (smooth + coarse + half).min(origin)),
        ]
    }

    fn fit_lead(&self, sums: &Sums, steps: usize, lead: usize) -> [f64; FEATURES] {
        let coarse = self.spec.coarse;
        let reach = (lead + 1) * coarse;
        let mut a = [[0.0; FEATURES]; FEATURES];
        let mut b = [0.0; FEATURES];
        let first = if steps >= 10 * self.day { 7 * self.day } else { self.day };
        let mut samples = 0.0;
        // Every second hour, and a little off it each time, so that no minute of the hour is preferred.
        for (i, origin) in (first..=steps.saturating_sub(reach)).step_by((2 * self.hour).max(1)).enumerate() {
            let origin = (origin + i % self.hour.max(1)).min(steps - reach);
            for lane in 0..sums.lanes.len() {
                let x = self.features(sums, lane, origin, lead);
                let begin = origin + lead * coarse;
                let y = sums.mean(lane, begin, begin + coarse) / self.scale[lane];
                for (i, xi) in x.iter().enumerate() {
                    b[i] += xi * y;
                    a[i].iter_mut().zip(&x).for_each(|(a, xj)| *a += xi * xj);
                }
                samples += 1.0;
            }
        }
        for (i, row) in a.iter_mut().enumerate() {
            row[i] += PENALTY * samples + 1e-9;
        }
        solve(a, b)
    }

    /// The point forecast of all series from a moment, `[lane][lead]`, in units of load.
    fn point(&self, sums: &Sums, origin: usize) -> Vec<f32> {
        let lanes = sums.lanes.len();
        let mut values = Vec::with_capacity(lanes * self.spec.horizon);
        for lane in 0..lanes {
            for (lead, weights) in self.weights.iter().enumerate() {
                let x = self.features(sums, lane, origin, lead);
                let y: f64 = x.iter().zip(weights).map(|(x, w)| x * w).sum();
                values.push((y.max(0.0) * self.scale[lane]) as f32);
            }
        }
        values
    }
}

/// Solves a symmetric positive definite system by Gauss-Jordan elimination with pivots on the diagonal.
fn solve(mut a: [[f64; FEATURES]; FEATURES], mut b: [f64; FEATURES]) -> [f64; FEATURES] {
    for i in 0..FEATURES {
        let (pivot, rhs) = (a[i], b[i]);
        for j in (0..FEATURES).filter(|j| *j != i) {
            let factor = a[j][i] / pivot[i];
            a[j].iter_mut().zip(&pivot).for_each(|(x, p)| *x -= factor * p);
            b[j] -= factor * rhs;
        }
    }
    std::array::from_fn(|i| b[i] / a[i][i])
}

/// Most values that are remembered of forecasts that were made.
const REMEMBERED: usize = 64 << 20;

/// What was forecast and how wrong that was, by the number of steps seen, `[lane][lead]`. It depends on nothing but the
/// loads, so that all replays of the same loads can share it.
#[derive(Debug, Default)]
struct Said {
    points: BTreeMap<usize, Rc<[f32]>>,
    errors: BTreeMap<usize, Rc<[f32]>>,
}

/// Scenarios of a fitted ridge. Clones share what was forecast already, so they are for the same loads only.
#[derive(Debug, Clone)]
pub struct RidgePaths {
    model: Arc<RidgeModel>,
    sums: Sums,
    said: Rc<RefCell<Said>>,
}

impl RidgePaths {
    /// Of a model.
    pub fn new(model: &Arc<RidgeModel>) -> Self {
        Self { model: Arc::clone(model), sums: Sums::default(), said: Rc::default() }
    }

    /// The point forecast of all series from a moment that is seen.
    fn point(&self, at: usize) -> Rc<[f32]> {
        let mut said = self.said.borrow_mut();
        if let Some(point) = said.points.get(&at) {
            return Rc::clone(point);
        }
        let point: Rc<[f32]> = self.model.point(&self.sums, at).into();
        if (said.points.len() + said.errors.len() + 1) * point.len() <= REMEMBERED {
            said.points.insert(at, Rc::clone(&point));
        }
        point
    }

    /// Past moments whose errors make the scenarios: about this hour of the days before, the last days first. All their
    /// forecasts are over.
    fn moments(&self, steps: usize) -> Vec<usize> {
        let (spec, day, hour) = (self.model.spec, self.model.day, self.model.hour);
        let reach = spec.horizon * spec.coarse;
        let grid = (hour / 2).max(1);
        let mut moments = Vec::new();
        for back in 1..=14usize {
            for shift in [0i64, -3, 3] {
                let at = steps as i64 - (back * day) as i64 + shift * hour as i64;
                let at = usize::try_from(at).unwrap_or(0) / grid * grid;
                if at >= 2 * day && at + reach <= steps && !moments.contains(&at) && moments.len() < spec.scenarios {
                    moments.push(at);
                }
            }
        }
        moments
    }

    /// What came less what was forecast from a moment whose forecast is over.
    fn errors(&self, at: usize) -> Rc<[f32]> {
        if let Some(errors) = self.said.borrow().errors.get(&at) {
            return Rc::clone(errors);
        }
        let RidgeSpec { coarse, horizon, .. } = self.model.spec;
        let came = |i: usize| {
            let begin = at + i % horizon * coarse;
            self.sums.mean(i / horizon, begin, begin + coarse) as f32
        };
        let errors: Rc<[f32]> = self.point(at).iter().enumerate().map(|(i, point)| came(i) - point).collect();
        let mut said = self.said.borrow_mut();
        if (said.points.len() + said.errors.len() + 1) * errors.len() <= REMEMBERED {
            said.errors.insert(at, Rc::clone(&errors));
        }
        errors
    }
}

impl ScenarioSource for RidgePaths {
    fn scenarios(&mut self, seen: &Seen<'_>) -> Result<ScenarioSet, SourceError> {
        let RidgeSpec { coarse, horizon, .. } = self.model.spec;
        if seen.resources().len() * seen.shards().len() != self.model.scale.len() || seen.steps() < 2 * self.model.day {
            return Err("the ridge was fitted on other series, or fewer than two days are seen".into());
        }
        self.sums.follow(seen);
        let point = self.point(seen.steps());
        let mut errors: Vec<Rc<[f32]>> = self.moments(seen.steps()).into_iter().map(|at| self.errors(at)).collect();
        if errors.is_empty() {
            errors.push(vec![0.0; point.len()].into());
        }
        let mut values = Vec::with_capacity(point.len() * errors.len());
        for (i, point) in point.iter().enumerate() {
            values.extend(errors.iter().map(|e| (point + e.get(i).copied().unwrap_or(0.0)).max(0.0)));
        }
        let step = seen.step().as_ms().saturating_mul(i64::try_from(coarse)?);
        let step = Step::from_ms(step).ok_or("the step of the scenarios is no step")?;
        let issued = seen.now().plus_steps(-1, step);
        let (resources, shards) = (seen.resources().to_vec(), seen.shards().to_vec());
        Ok(ScenarioSet::new(issued, step, resources, shards, (horizon, errors.len()), values)?)
    }
}
