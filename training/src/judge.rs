//! Judging forecasters on the windows of a backtest, series by series, so that it takes no more memory for more of them.

use foreshard_datasets::{EvalSeries, HistoryError, Protocol};
use foreshard_domain::{Contender, ContenderRole, FanWindow, QuantileForecast, Scores};
use foreshard_model::Forecaster;

use crate::each::each;
use crate::evaluate::{Entrant, EvaluateError, EventProbability, answer, check_fit, fan, picks};
use crate::scores::{ScoredSeries, SeriesScores, Tallied, total};
use crate::significance::loss_ratio;

/// How good a forecaster was in all windows; what it said is not kept.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Who.
    pub name: String,
    /// Figures over everything.
    pub scores: Scores,
    /// Figures of each series, in the order of the windows.
    pub by_series: Vec<SeriesScores>,
}

impl Judged {
    /// As it stands in a report beside the one that the report is about.
    pub fn contender(&self, role: ContenderRole, subject: &Judged) -> Contender {
        let other = role != ContenderRole::Subject;
        let subject_to_it = if other { loss_ratio(&subject.by_series, &self.by_series) } else { None };
        Contender { name: self.name.clone(), role, scores: self.scores.clone(), subject_to_it }
    }
}

/// Who is judged.
pub(crate) struct Candidate<'a> {
    pub(crate) name: &'a str,
    pub(crate) forecaster: &'a dyn Forecaster,
    pub(crate) p_any: Option<EventProbability<'a>>,
}

/// The series that all are judged on: how many, how each is read, and by which protocol.
pub(crate) struct Bench<'a> {
    pub(crate) count: usize,
    pub(crate) read: &'a (dyn Fn(usize) -> Result<EvalSeries, HistoryError> + Sync),
    pub(crate) protocol: &'a Protocol,
}

impl Bench<'_> {
    /// Lets every candidate answer in every window. Each series is read once, and no thread holds two of them.
    pub(crate) fn judge(&self, candidates: &[Candidate<'_>]) -> Result<Vec<Judged>, EvaluateError> {
        candidates.iter().try_for_each(|c| check_fit(c.forecaster, self.protocol))?;
        let one = |i: usize| -> Result<Vec<Tallied>, EvaluateError> {
            let series = (self.read)(i)?;
            candidates.iter().map(|c| self.tally(c, &series)).collect()
        };
        let tallied = each(self.count, one)?;
        let mut of_each: Vec<Vec<Tallied>> = candidates.iter().map(|_| Vec::with_capacity(self.count)).collect();
        for tallies in tallied {
            of_each.iter_mut().zip(tallies).for_each(|(own, tally)| own.push(tally));
        }
        let judged = candidates.iter().zip(of_each).map(|(candidate, tallies)| {
            let (scores, by_series) = total(&tallies)?;
            Ok(Judged { name: candidate.name.to_owned(), scores, by_series })
        });
        judged.collect()
    }

    fn tally(&self, candidate: &Candidate<'_>, series: &EvalSeries) -> Result<Tallied, EvaluateError> {
        let answered = answer(candidate.forecaster, candidate.p_any, series, self.protocol)?;
        let forecasts: Vec<QuantileForecast> = answered.answers.into_iter().map(|a| a.forecast).collect();
        let scored = ScoredSeries { series, forecasts: &forecasts, p_any: answered.p_any.as_deref() };
        Ok(Tallied::of(&scored, self.protocol)?)
    }

    /// The windows that a report draws, answered once more.
    pub(crate) fn fans(&self, entrant: &Entrant<'_>, judged: &Judged) -> Result<Vec<FanWindow>, EvaluateError> {
        let mut fans = Vec::new();
        for pick in picks(&judged.by_series) {
            let series = (self.read)(pick.series)?;
            let answered = answer(entrant.forecaster, None, &series, self.protocol)?;
            let forecasts: Vec<QuantileForecast> = answered.answers.into_iter().map(|a| a.forecast).collect();
            fans.extend(fan(&pick, &series, &forecasts));
        }
        Ok(fans)
    }
}
