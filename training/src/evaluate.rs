//! Rolling-origin evaluation: a forecaster answers at the origin of every window, knowing what came before and nothing else.

use foreshard_datasets::{EvalSeries, Event, ForecastRow, HistoryError, Protocol};
use foreshard_domain::{
    Contender, ContenderRole, EvaluationSection, FanWindow, QuantileForecast, QuantileLevels, RiskCalibrations, Scores,
    ShardId,
};
use foreshard_model::{Answer, Context, ForecastSpec, Forecaster, RankTemplates, Version, any_step_corrected};

use crate::each::each;
use crate::scores::{ScoreError, ScoredSeries, SeriesScores, score};
use crate::significance::loss_ratio;

/// The probability that any step of the window is over a limit, given context, forecast and limit.
pub type EventProbability<'a> = &'a (dyn Fn(&Context<'_>, &QuantileForecast, f64) -> f64 + Sync);

/// Why a forecaster could not be evaluated.
#[derive(Debug, thiserror::Error)]
pub enum EvaluateError {
    /// A series could not be read again.
    #[error("cannot read the history while evaluating")]
    History(#[from] HistoryError),
    /// The forecaster does not forecast what the protocol demands.
    #[error("{name} forecasts {got} and cannot be evaluated under protocol {protocol}, which demands {wanted}")]
    Unfit {
        /// The forecaster.
        name: String,
        /// The protocol.
        protocol: String,
        /// What it forecasts.
        got: String,
        /// What is demanded.
        wanted: String,
    },
    /// The forecaster broke its contract.
    #[error("{name} gave {got} answers for {wanted} windows of {shard}")]
    Answers {
        /// The forecaster.
        name: String,
        /// The series.
        shard: ShardId,
        /// Answers given.
        got: usize,
        /// Answers wanted.
        wanted: usize,
    },
    /// The answers cannot be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
}

/// What a forecaster said in all windows, and how good it was.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Who.
    pub name: String,
    /// Levels of the forecasts.
    pub levels: QuantileLevels,
    /// One row a series, window and step, in this order: the forecasts file.
    pub rows: Vec<ForecastRow>,
    /// Figures over everything.
    pub scores: Scores,
    /// Figures of each series, in the order given.
    pub by_series: Vec<SeriesScores>,
    /// Forecasts of each series, one a window.
    pub forecasts: Vec<Vec<QuantileForecast>>,
}

/// Answers of one series.
pub(crate) struct Answered {
    pub(crate) answers: Vec<Answer>,
    pub(crate) p_any: Option<Vec<f64>>,
}

/// Lets a forecaster answer in every window of every series, series in parallel, and scores the answers.
///
/// Only values before the origin of a window are passed (D1). `p_any` states the probability of the protocol's event; it
/// is asked only if the protocol has one.
///
/// # Errors
/// [`EvaluateError`] if the forecaster does not fit the protocol or there is nothing to score.
pub fn evaluate(
    forecaster: &dyn Forecaster,
    p_any: Option<EventProbability<'_>>,
    series: &[EvalSeries],
    protocol: &Protocol,
) -> Result<Evaluation, EvaluateError> {
    check_fit(forecaster, protocol)?;
    let one = |i: usize| series.get(i).map(|s| answer(forecaster, p_any, s, protocol)).transpose();
    let answered: Vec<Answered> = each(series.len(), one)?.into_iter().flatten().collect();
    let rows = series.iter().zip(&answered).flat_map(|(s, a)| rows(s, a, forecaster.name())).collect();
    let of = |a: &Answered| a.answers.iter().map(|a| a.forecast.clone()).collect();
    let forecasts: Vec<Vec<QuantileForecast>> = answered.iter().map(of).collect();
    let scored: Vec<ScoredSeries<'_>> = series
        .iter()
        .zip(&forecasts)
        .zip(&answered)
        .map(|((series, forecasts), a)| ScoredSeries { series, forecasts, p_any: a.p_any.as_deref() })
        .collect();
    let (scores, by_series) = score(&scored, protocol)?;
    let levels = forecaster.spec().levels.clone();
    Ok(Evaluation { name: forecaster.name().to_owned(), levels, rows, scores, by_series, forecasts })
}

pub(crate) fn check_fit(forecaster: &dyn Forecaster, protocol: &Protocol) -> Result<(), EvaluateError> {
    let spec = forecaster.spec();
    if spec.step == protocol.step && spec.horizon == protocol.horizon {
        return Ok(());
    }
    let words = |steps: usize, minutes: f64| format!("{steps} steps of {minutes} min");
    Err(EvaluateError::Unfit {
        name: forecaster.name().to_owned(),
        protocol: protocol.name.clone(),
        got: words(spec.horizon, spec.step.as_minutes()),
        wanted: words(protocol.horizon, protocol.step.as_minutes()),
    })
}

/// What may be known of a series when a window is forecast.
pub(crate) fn context(series: &EvalSeries, window: usize) -> Context<'_> {
    Context {
        shard: &series.shard,
        metric: series.metric,
        start: series.series.start,
        step: series.series.step,
        values: series.known(window),
        events: Some(&series.events),
    }
}

pub(crate) fn answer(
    forecaster: &dyn Forecaster,
    p_any: Option<EventProbability<'_>>,
    series: &EvalSeries,
    protocol: &Protocol,
) -> Result<Answered, EvaluateError> {
    let contexts: Vec<Context<'_>> = (0..series.windows).map(|w| context(series, w)).collect();
    let answers = forecaster.forecast(&contexts);
    if answers.len() != contexts.len() {
        let (got, wanted) = (answers.len(), contexts.len());
        return Err(EvaluateError::Answers {
            name: forecaster.name().to_owned(),
            shard: series.shard.clone(),
            got,
            wanted,
        });
    }
    let p_any = match (p_any, protocol.event) {
        (Some(p_any), Event::TrainQuantile(level)) => {
            let limit = series.threshold(level);
            let one = |(c, a): (&Context<'_>, &Answer)| p_any(c, &a.forecast, limit).clamp(0.0, 1.0);
            Some(contexts.iter().zip(&answers).map(one).collect())
        }
        _ => None,
    };
    Ok(Answered { answers, p_any })
}

fn rows<'a>(series: &'a EvalSeries, answered: &'a Answered, name: &'a str) -> impl Iterator<Item = ForecastRow> + 'a {
    answered.answers.iter().enumerate().flat_map(move |(w, answer)| {
        let p_any = answered.p_any.as_ref().and_then(|p| p.get(w)).copied();
        let steps = answer.forecast.values().chunks_exact(answer.forecast.levels().len()).enumerate();
        steps.map(move |(step, quantiles)| ForecastRow {
            shard: series.shard.clone(),
            metric: series.metric,
            issued_at: series.issued_at(w),
            last_observed: answer.last_observed,
            target_ts: series.series.time_of(series.origin(w) + step),
            quantiles: quantiles.to_vec(),
            p_any,
            model_version: name.to_owned(),
            fallback: answer.fallback.map(|f| f.code().to_owned()),
        })
    })
}

/// A trained forecaster with what it knows of joint behaviour, under the name of its version.
#[derive(Clone)]
pub struct Entrant<'a> {
    /// Such as "lstm/7".
    pub name: String,
    /// Answers with quantiles.
    pub forecaster: &'a dyn Forecaster,
    /// What the probability of an event is worked out from.
    pub templates: Option<&'a RankTemplates>,
    /// How that probability is corrected.
    pub risk: RiskCalibrations,
}

/// A forecaster under another name.
struct Named<'a> {
    name: &'a str,
    inner: &'a dyn Forecaster,
}

impl Forecaster for Named<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn spec(&self) -> &ForecastSpec {
        self.inner.spec()
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        self.inner.forecast(contexts)
    }
}

impl<'a> Entrant<'a> {
    /// A product (or protocol) of a version; `None` if it was not trained for it.
    pub fn of_version(version: &'a Version, product: &str) -> Option<Self> {
        let forecaster = version.forecaster(product)?;
        let (templates, risk) = (version.templates(product), version.risk(product));
        Some(Self { name: version.id().to_string(), forecaster, templates, risk })
    }

    /// As [`evaluate`], the event's probability from the templates.
    ///
    /// # Errors
    /// [`EvaluateError`], as [`evaluate`].
    pub fn evaluate(&self, series: &[EvalSeries], protocol: &Protocol) -> Result<Evaluation, EvaluateError> {
        let p_any = self.probability();
        evaluate(&Named { name: &self.name, inner: self.forecaster }, Some(&p_any), series, protocol)
    }

    /// The event's probability from the templates.
    pub(crate) fn probability(&self) -> impl Fn(&Context<'_>, &QuantileForecast, f64) -> f64 + Sync + use<'a> {
        let (templates, calibration) = (self.templates, self.risk.series);
        move |context, forecast, limit| {
            any_step_corrected(&calibration, templates, (context.shard, context.metric), forecast, limit)
        }
    }
}

/// Evaluations of the same windows, beside one another, as a report shows them; the first is the subject, whose windows
/// are drawn.
pub fn section(
    name: &str,
    series: &[EvalSeries],
    protocol: &Protocol,
    evaluations: &[(ContenderRole, &Evaluation)],
) -> EvaluationSection {
    let subject = evaluations.first().map(|(_, subject)| *subject);
    let beside = |e: &Evaluation| loss_ratio(&subject?.by_series, &e.by_series);
    let contender = |(role, e): &(ContenderRole, &Evaluation)| Contender {
        name: e.name.clone(),
        role: *role,
        scores: e.scores.clone(),
        subject_to_it: if *role == ContenderRole::Subject { None } else { beside(e) },
    };
    EvaluationSection {
        name: name.to_owned(),
        step: protocol.step,
        contenders: evaluations.iter().map(contender).collect(),
        fans: evaluations.first().map_or_else(Vec::new, |(_, subject)| fans(series, subject)),
        node_risk: None,
    }
}

fn fans(series: &[EvalSeries], evaluation: &Evaluation) -> Vec<FanWindow> {
    let drawn = picks(&evaluation.by_series).into_iter();
    drawn.filter_map(|p| fan(&p, series.get(p.series)?, evaluation.forecasts.get(p.series)?)).collect()
}

/// A window that is drawn.
pub(crate) struct Pick {
    caption: &'static str,
    wql: f64,
    /// Place of its series.
    pub(crate) series: usize,
    window: usize,
}

/// The best, the median and the worst window, and one of the series that weighs most in the loss.
pub(crate) fn picks(by_series: &[SeriesScores]) -> Vec<Pick> {
    let windows = |(i, s): (usize, &SeriesScores)| {
        s.wql_by_window.iter().enumerate().filter_map(move |(w, wql)| wql.map(|wql| (wql, i, w))).collect::<Vec<_>>()
    };
    let mut ranked: Vec<(f64, usize, usize)> = by_series.iter().enumerate().flat_map(windows).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let heaviest = by_series.iter().enumerate().max_by(|a, b| a.1.share_of_wql.total_cmp(&b.1.share_of_wql));
    let of_heaviest: Vec<_> = ranked.iter().filter(|(_, i, _)| Some(*i) == heaviest.map(|(i, _)| i)).collect();
    let picks = [
        ("Best window", ranked.first()),
        ("Median window", ranked.get(ranked.len() / 2)),
        ("Worst window", ranked.last()),
        ("Median window of the series with most of the loss", of_heaviest.get(of_heaviest.len() / 2).copied()),
    ];
    let pick = |(caption, place): (&'static str, Option<&(f64, usize, usize)>)| {
        place.map(|(wql, series, window)| Pick { caption, wql: *wql, series: *series, window: *window })
    };
    picks.into_iter().filter_map(pick).collect()
}

/// How many windows' worth of the past a fan chart shows.
const PAST_WINDOWS: usize = 2;

/// The chart of a pick, from its series and the forecasts of all its windows.
pub(crate) fn fan(pick: &Pick, series: &EvalSeries, forecasts: &[QuantileForecast]) -> Option<FanWindow> {
    let shown = |values: &[f32]| values.iter().map(|v| v.is_finite().then_some(*v)).collect::<Vec<_>>();
    let known = series.known(pick.window);
    let past = known.len().saturating_sub(PAST_WINDOWS * series.horizon);
    Some(FanWindow {
        caption: pick.caption.to_owned(),
        shard: series.shard.clone(),
        metric: series.metric,
        issued_at: series.issued_at(pick.window),
        step: series.series.step,
        history: shown(known.get(past..)?),
        actual: shown(series.actual(pick.window)),
        forecast: forecasts.get(pick.window)?.clone(),
        wql: Some(pick.wql),
    })
}
