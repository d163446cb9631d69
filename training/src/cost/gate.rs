//! Whether a newly fitted cost model predicts moves it has not seen no worse than the one in use.

use foreshard_domain::{CostModel, Outcome};
use serde::{Deserialize, Serialize};

use super::{CostFitError, counts, features, fit_cost_model, ln_duration_s, ln_fence_ms};

/// Share of the outcomes, the latest ones, that are predicted without having been learned from.
const HELD_OUT_SHARE: f64 = 0.25;
/// How much worse the mean error may be: this factor and this many units of ln (one part in a hundred), so that two
/// models that agree are not told apart by rounding.
const TOLERANCE: (f64, f64) = (1.02, 0.01);

/// What the gate of the cost models found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostVerdict {
    /// Whether the new model may be used.
    pub accepted: bool,
    /// Moves predicted without having been learned from.
    pub held_out: usize,
    /// Mean |ln actual - ln predicted| of duration and fence on them, of models fitted on the outcomes before each.
    pub error: Option<f64>,
    /// The same of the model in use.
    pub parent_error: Option<f64>,
    /// The verdict in words.
    pub reason: String,
}

/// Compares a model learned from these outcomes with its `parent` on the latest quarter of them, each predicted by a fit
/// on those that ended before it, starting from `prior`. The parent may have learned from some of them: that favours the
/// parent only.
///
/// # Errors
/// [`CostFitError`] as [`fit_cost_model`].
pub fn judge_cost_model(
    outcomes: &[Outcome],
    prior: &CostModel,
    parent: &CostModel,
) -> Result<CostVerdict, CostFitError> {
    let mut used: Vec<Outcome> = outcomes.iter().filter(|o| counts(o)).cloned().collect();
    used.sort_by(|a, b| (a.ended_at, &a.migration).cmp(&(b.ended_at, &b.migration)));
    if used.is_empty() {
        return Err(CostFitError::NoOutcome { given: outcomes.len() });
    }
    // At least one is held out, and at least one is left to learn from.
    let held_out = ((used.len() as f64 * HELD_OUT_SHARE).ceil() as usize).min(used.len() - 1);
    let (mut error, mut parent_error) = (0.0, 0.0);
    for i in used.len() - held_out..used.len() {
        let (before, Some(next)) = (used.get(..i).unwrap_or(&[]), used.get(i)) else { continue };
        error += error_of(&fit_cost_model(before, prior, prior.number)?, next);
        parent_error += error_of(parent, next);
    }
    Ok(verdict(held_out, error, parent_error))
}

fn verdict(held_out: usize, error: f64, parent_error: f64) -> CostVerdict {
    if held_out == 0 {
        let reason = "one outcome alone cannot be both learned from and predicted; the model in use stays".to_owned();
        return CostVerdict { accepted: false, held_out, error: None, parent_error: None, reason };
    }
    let n = held_out as f64;
    let (error, parent_error) = (error / n, parent_error / n);
    let accepted = error <= parent_error * TOLERANCE.0 + TOLERANCE.1;
    let word = if accepted { "no worse than" } else { "worse than" };
    let reason = format!(
        "on {held_out} held-out moves the new model is off by a factor of {:.2}, {word} the model in use with {:.2}",
        error.exp(),
        parent_error.exp()
    );
    CostVerdict { accepted, held_out, error: Some(error), parent_error: Some(parent_error), reason }
}

/// |ln actual - ln predicted|: mean of duration and fence, of the duration alone where there was no fence.
fn error_of(model: &CostModel, outcome: &Outcome) -> f64 {
    let features = features(outcome);
    let duration = (ln_duration_s(outcome) - model.duration_s.ln_mean(&features)).abs();
    match ln_fence_ms(outcome) {
        Some(fence) => (duration + (fence - model.fence_ms.ln_mean(&features)).abs()) / 2.0,
        None => duration,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{outcome, synthetic};
    use super::*;

    fn judge(outcomes: &[Outcome], rate: f64) -> CostVerdict {
        let prior = CostModel::prior(rate);
        judge_cost_model(outcomes, &prior, &prior).unwrap()
    }

    #[test]
    fn a_better_law_is_accepted() {
        let verdict = judge(&synthetic(40, 5, 0.2), 1e6);
        assert!(verdict.accepted && verdict.held_out == 10, "{verdict:?}");
        assert!(verdict.error < verdict.parent_error);
    }

    #[test]
    fn a_model_misled_by_its_outcomes_is_refused() {
        // The parent is right about the latest quarter; the moves before were a hundred times slower (a broken disk).
        let seconds = |i: u64| if i < 24 { 1000.0 } else { 10.0 };
        let outcomes: Vec<Outcome> = (0..32).map(|i| outcome(i, 600.0, 10.0, (0.5, 0.5), seconds(i), 50.0)).collect();
        let verdict = judge(&outcomes, 60.0 * 1_048_576.0);
        assert!(!verdict.accepted && verdict.reason.contains(", worse than"), "{verdict:?}");
    }

    #[test]
    fn a_single_outcome_proves_nothing() {
        let verdict = judge(&[outcome(0, 600.0, 10.0, (0.5, 0.5), 10.0, 50.0)], 1e6);
        assert!(!verdict.accepted && verdict.held_out == 0);
        let prior = CostModel::prior(1e6);
        assert!(judge_cost_model(&[], &prior, &prior).is_err());
    }
}
