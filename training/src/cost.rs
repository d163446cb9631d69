//! The cost model of moves, learned from outcomes: log-linear in size, write rate and load of both nodes.
//!
//! The prior speaks with the weight of a few outcomes ([`PRIOR_WEIGHT`]), as pseudo-observations
//! placed around the moves seen so far. So the first outcome moves it a little, a hundred rule it, and what the outcomes
//! do not vary in (all shards of one size, say) keeps the coefficient it had.

mod gate;
mod registry;

use foreshard_domain::{BackendKind, CostModel, CostTerms, MoveFeatures, Outcome, OutcomeResult, PerResource};
use linfa::Dataset;
use linfa::traits::Fit;
use linfa_linear::LinearRegression;
use ndarray::{Array1, Array2};

use crate::statistics::median;

pub use self::gate::{CostVerdict, judge_cost_model};
pub use self::registry::{CostEvidence, CostRegistry, CostRegistryError};

/// How many outcomes the prior counts for.
pub const PRIOR_WEIGHT: f64 = 4.5;
/// How far from the centre the pseudo-observations of each feature lie: a factor of eight in size and write rate, a
/// quarter of a node's CPU. Closer, and few outcomes could tilt a slope; further, and none ever would.
const SPREAD: [f64; 4] = [2.079_441_541_679_835_7, 2.079_441_541_679_835_7, 0.25, 0.25];
/// Deviation of logarithms below which no fit goes: measured times are never that regular.
const LEAST_SIGMA: f64 = 0.02;

/// Why no cost model could be fitted.
#[derive(Debug, thiserror::Error)]
pub enum CostFitError {
    /// No outcome can be learned from.
    #[error(
        "none of {given} outcomes can be learned from: only those that ended as done, with a duration over zero, count"
    )]
    NoOutcome {
        /// How many were given.
        given: usize,
    },
    /// Outcomes of several engines were mixed.
    #[error("outcomes of {a} and {b} are mixed; fit one model a backend")]
    MixedBackends {
        /// One engine.
        a: &'static str,
        /// Another.
        b: &'static str,
    },
    /// The prior holds a coefficient that is no number.
    #[error("the prior (cost model {number}) holds a coefficient that is not finite")]
    Prior {
        /// Its number.
        number: u64,
    },
    /// The least-squares solver gave up.
    #[error("least squares on {rows} rows found no solution")]
    Solver {
        /// Rows.
        rows: usize,
        /// Its complaint.
        #[source]
        source: linfa_linear::LinearError<f64>,
    },
    /// The solver returned coefficients that are no numbers.
    #[error("least squares on {rows} rows gave coefficients that are not finite")]
    NotFinite {
        /// Rows.
        rows: usize,
    },
}

/// One move in logarithms.
#[derive(Debug, Clone)]
struct Sample {
    features: [f64; 4],
    ln: f64,
}

/// Whether an outcome says anything about cost: it went through, and its numbers are numbers.
pub(crate) fn counts(outcome: &Outcome) -> bool {
    let numbers = [outcome.data_bytes, outcome.write_bytes_per_s, outcome.source_cpu, outcome.target_cpu];
    outcome.result == OutcomeResult::Done && outcome.actual_duration_ms > 0 && numbers.iter().all(|v| v.is_finite())
}

/// What was known of the move before it started.
pub(crate) fn features(outcome: &Outcome) -> MoveFeatures {
    MoveFeatures {
        data_bytes: outcome.data_bytes,
        write_bytes_per_s: outcome.write_bytes_per_s,
        source_cpu: outcome.source_cpu,
        target_cpu: outcome.target_cpu,
    }
}

/// ln of the seconds it took.
pub(crate) fn ln_duration_s(outcome: &Outcome) -> f64 {
    (outcome.actual_duration_ms as f64 / 1000.0).ln()
}

/// ln of the milliseconds for which writes were refused; `None` where they never were or it was not measured.
pub(crate) fn ln_fence_ms(outcome: &Outcome) -> Option<f64> {
    (outcome.actual_fence_ms.is_finite() && outcome.actual_fence_ms > 0.0).then(|| outcome.actual_fence_ms.ln())
}

/// Fits a cost model on outcomes of one backend, starting from `prior`.
///
/// Give all outcomes and [`CostModel::prior`]: starting from a model that has already learned from some of them would count
/// those twice.
///
/// Only outcomes that ended as done, with finite features and a duration over zero, count; a fence of zero (no fence) says
/// nothing about fences. `number` becomes the number of the model.
///
/// # Errors
/// [`CostFitError`] if nothing can be learned from, backends are mixed, the prior is not finite or the solver fails.
pub fn fit_cost_model(outcomes: &[Outcome], prior: &CostModel, number: u64) -> Result<CostModel, CostFitError> {
    let used: Vec<&Outcome> = outcomes.iter().filter(|o| counts(o)).collect();
    let first = used.first().ok_or(CostFitError::NoOutcome { given: outcomes.len() })?;
    one_backend(first.backend, &used)?;
    if ![&prior.duration_s, &prior.fence_ms].into_iter().all(finite) {
        return Err(CostFitError::Prior { number: prior.number });
    }
    let sample = |outcome: &Outcome, ln: f64| Sample { features: CostTerms::features(&features(outcome)), ln };
    let durations: Vec<Sample> = used.iter().map(|o| sample(o, ln_duration_s(o))).collect();
    let fences: Vec<Sample> = used.iter().filter_map(|o| ln_fence_ms(o).map(|ln| sample(o, ln))).collect();
    let outcomes = u64::try_from(used.len()).unwrap_or(u64::MAX);
    Ok(CostModel {
        number,
        outcomes,
        duration_s: fit_terms(&durations, &prior.duration_s)?,
        fence_ms: fit_terms(&fences, &prior.fence_ms)?,
        extra_share: PerResource::from_fn(|r| {
            shrunken(used.iter().map(|o| o.actual_extra_share[r]), prior.extra_share[r])
        }),
    })
}

fn one_backend(backend: BackendKind, used: &[&Outcome]) -> Result<(), CostFitError> {
    match used.iter().find(|o| o.backend != backend) {
        Some(other) => Err(CostFitError::MixedBackends { a: backend.name(), b: other.backend.name() }),
        None => Ok(()),
    }
}

fn coefficients(terms: &CostTerms) -> [f64; 4] {
    [terms.ln_mib, terms.ln_write_kib, terms.source_cpu, terms.target_cpu]
}

fn finite(terms: &CostTerms) -> bool {
    coefficients(terms).iter().chain([&terms.intercept, &terms.sigma]).all(|v| v.is_finite())
}

/// ln y of a point in feature space.
fn ln_at(terms: &CostTerms, features: &[f64; 4]) -> f64 {
    terms.intercept + coefficients(terms).iter().zip(features).map(|(c, x)| c * x).sum::<f64>()
}

/// The middle of the samples, the median of each feature.
fn centre(samples: &[Sample]) -> [f64; 4] {
    std::array::from_fn(|i| {
        let of = |s: &Sample| s.features.get(i).copied().unwrap_or(0.0);
        median(&samples.iter().map(of).collect::<Vec<_>>()).unwrap_or(0.0)
    })
}

/// What the prior says at the centre and on both sides of it along every feature.
fn pseudo_observations(prior: &CostTerms, centre: &[f64; 4]) -> Vec<Sample> {
    let mut points = vec![*centre];
    for (i, spread) in SPREAD.into_iter().enumerate() {
        for sign in [-1.0, 1.0] {
            let mut point = *centre;
            point[i] += sign * spread;
            points.push(point);
        }
    }
    points.into_iter().map(|features| Sample { features, ln: ln_at(prior, &features) }).collect()
}

fn fit_terms(samples: &[Sample], prior: &CostTerms) -> Result<CostTerms, CostFitError> {
    if samples.is_empty() {
        return Ok(prior.clone());
    }
    let centre = centre(samples);
    let pseudo = pseudo_observations(prior, &centre);
    let weight = (PRIOR_WEIGHT / pseudo.len() as f64).sqrt();
    let rows: Vec<(&Sample, f64)> =
        samples.iter().map(|s| (s, 1.0)).chain(pseudo.iter().map(|s| (s, weight))).collect();
    // Weighted least squares is plain least squares on rows times the root of their weight; the constant is a column of
    // its own, so that it is weighted too. Features are centred, which keeps the problem well conditioned.
    let x = Array2::from_shape_fn((rows.len(), 5), |(row, column)| {
        let Some((sample, weight)) = rows.get(row) else { return 0.0 };
        match column.checked_sub(1) {
            None => *weight,
            Some(i) => weight * (sample.features[i] - centre[i]),
        }
    });
    let y: Array1<f64> = rows.iter().map(|(sample, weight)| weight * sample.ln).collect();
    let model = LinearRegression::new()
        .with_intercept(false)
        .fit(&Dataset::new(x, y))
        .map_err(|source| CostFitError::Solver { rows: rows.len(), source })?;
    let beta = model.params();
    let at = |i: usize| beta.get(i).copied().unwrap_or(f64::NAN);
    let slopes: [f64; 4] = std::array::from_fn(|i| at(i + 1));
    let mut terms = CostTerms {
        intercept: at(0) - slopes.iter().zip(centre).map(|(c, x)| c * x).sum::<f64>(),
        ln_mib: slopes[0],
        ln_write_kib: slopes[1],
        source_cpu: slopes[2],
        target_cpu: slopes[3],
        sigma: 0.0,
    };
    terms.sigma = residual_sigma(samples, &terms, prior.sigma);
    if finite(&terms) { Ok(terms) } else { Err(CostFitError::NotFinite { rows: rows.len() }) }
}

/// Deviation around the fit, the prior counting as [`PRIOR_WEIGHT`] outcomes of its own deviation.
fn residual_sigma(samples: &[Sample], terms: &CostTerms, prior: f64) -> f64 {
    let squares: f64 = samples.iter().map(|s| (s.ln - ln_at(terms, &s.features)).powi(2)).sum();
    ((PRIOR_WEIGHT * prior * prior + squares) / (PRIOR_WEIGHT + samples.len() as f64)).sqrt().max(LEAST_SIGMA)
}

/// Mean of what was measured, shrunk towards the prior; shares outside 0 to 1 are no measurements.
fn shrunken(measured: impl Iterator<Item = Option<f64>>, prior: f64) -> f64 {
    let prior = if prior.is_finite() { prior.clamp(0.0, 1.0) } else { 0.0 };
    let valid = measured.flatten().filter(|v| (0.0..=1.0).contains(v));
    let (sum, n) = valid.fold((0.0, 0.0), |(sum, n), v| (sum + v, n + 1.0));
    (PRIOR_WEIGHT * prior + sum) / (PRIOR_WEIGHT + n)
}

#[cfg(test)]
pub(crate) mod tests;
