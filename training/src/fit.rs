//! Fitting: one global model per product over all series, its calibration and its rank templates.

mod after;
mod blend;
mod learner;
mod loss;
mod member;
mod optimiser;
mod ridge;
mod risk;
pub(crate) mod sampling;
mod source;
mod spec;

pub use optimiser::{AdamW, Average, learning_rate};
pub use source::SeriesSource;
pub use spec::{
    CheckpointPolicy, FitControl, FitProgress, MemberSpec, ProductSpec, TrainErrors, TrainParams, TrainProblem,
    TrainSeries, TrainSpec,
};

use std::collections::BTreeMap;
use std::sync::Arc;

use foreshard_datasets::HistoryError;
use foreshard_domain::{Metric, QuantileForecast, RiskCalibrations, ShardId};
use foreshard_model::{
    Context, Features, Forecaster, Lanes, LanesError, ModelKind, NetworkError, RankTemplates, Trained, TrainedParts,
    VersionProduct, Weights, any_step_corrected,
};

use crate::checkpoint::{CheckpointError, CheckpointFile, Progress, fingerprint};
use after::PastForecasts;
use learner::{Judged, Learner};
use sampling::{Known, Part, Samples};

/// Why a fit ended without a model.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// No series carries the product.
    #[error(
        "product {product} has {series} series but none with {days} days before its end; add history or use seasonal naive"
    )]
    TooLittleHistory {
        /// Which product.
        product: String,
        /// How many series were given.
        series: usize,
        /// How many days one would need.
        days: usize,
    },
    /// The product has no series at all.
    #[error("product {product} has no series to learn from")]
    NoSeries {
        /// Which product.
        product: String,
    },
    /// The values of a series are so large that their mean or deviation is no number.
    #[error(
        "{} of {} has values too large to be scaled (their sums leave single precision); mend its rows or \
         remove them", .series.1, .series.0
    )]
    TooLarge {
        /// Whose series, and of what.
        series: Box<(ShardId, Metric)>,
    },
    /// A loss or a weight stopped being a number.
    #[error(
        "{what} of product {product} is not a finite number at step {step}; lower learning_rate or inspect the data"
    )]
    NotFinite {
        /// Loss, gradient or validation.
        what: &'static str,
        /// Which product.
        product: String,
        /// Which step.
        step: usize,
    },
    /// The caller asked to stop.
    #[error("training of product {product} was stopped at step {step}")]
    Stopped {
        /// Which product.
        product: String,
        /// Which step.
        step: usize,
    },
    /// The network could not be computed.
    #[error("the network of product {product} cannot be trained")]
    Network {
        /// Which product.
        product: String,
        /// Why.
        #[source]
        source: NetworkError,
    },
    /// Least squares found no solution.
    #[error("the linear maps of product {product} cannot be fitted")]
    Linear {
        /// Which product.
        product: String,
        /// The solver's complaint.
        #[source]
        source: linfa_linear::LinearError<f64>,
    },
    /// No series let itself be fitted by itself.
    #[error("none of {series} series of product {product} can be fitted by {model}; the log says why")]
    NoneFitted {
        /// Which product.
        product: String,
        /// How many were tried.
        series: usize,
        /// Which model.
        model: &'static str,
    },
    /// This program cannot fit such a model.
    #[error("this program was built without {model}; build it with --features prophet")]
    NotBuilt {
        /// Which model.
        model: &'static str,
    },
    /// Threads could not be started.
    #[error("cannot start the threads of the training")]
    Lanes(#[from] LanesError),
    /// A series could not be read again.
    #[error("cannot read the history while training")]
    History(#[from] HistoryError),
    /// The checkpoint could not be written, read or continued.
    #[error("cannot use the checkpoint")]
    Checkpoint(#[from] CheckpointError),
}

/// One product as fitted.
#[derive(Debug)]
pub struct FittedProduct {
    trained: Trained,
    templates: RankTemplates,
    /// Series that were learned from.
    pub series: usize,
    /// How it was fitted, in words.
    pub how: String,
}

/// What was learned, calibration and templates of every product.
#[derive(Debug)]
pub struct FittedModel {
    products: BTreeMap<String, FittedProduct>,
}

impl FittedModel {
    /// The networks of a product.
    pub fn into_members(mut self, product: &str) -> Option<Vec<Weights>> {
        Some(self.products.remove(product)?.trained.parts().learned.networks().to_vec())
    }

    /// The products, by name.
    pub fn products(&self) -> impl Iterator<Item = (&String, &FittedProduct)> {
        self.products.iter()
    }

    /// The forecaster of a product.
    pub fn forecaster(&self, product: &str) -> Option<&dyn Forecaster> {
        Some(&self.products.get(product)?.trained)
    }

    /// The rank templates of a product.
    pub fn templates(&self, product: &str) -> Option<&RankTemplates> {
        Some(&self.products.get(product)?.templates)
    }

    /// Corrections of the probabilities of a product.
    pub fn risk(&self, product: &str) -> RiskCalibrations {
        self.products.get(product).map_or_else(RiskCalibrations::default, |p| p.trained.parts().risk)
    }

    /// Probability that a load exceeds `limit` at any step of a forecast of this product.
    pub fn p_any(&self, product: &str, context: &Context<'_>, forecast: &QuantileForecast, limit: f64) -> f64 {
        let (risk, templates) = (self.risk(product), self.templates(product));
        any_step_corrected(&risk.series, templates, (context.shard, context.metric), forecast, limit)
    }

    /// What goes into a version folder.
    pub fn version_products(&self) -> Vec<VersionProduct> {
        let part = |p: &FittedProduct| VersionProduct {
            trained: p.trained.parts().clone(),
            templates: (!p.templates.is_empty()).then(|| p.templates.clone()),
            judged: None,
        };
        self.products.values().map(part).collect()
    }
}

/// Fits every product on its series (a map of them, or any other [`SeriesSource`]): networks with early stop on a time cut (or
/// what else [`TrainParams::model`] says), width factors and rank templates from what lies behind the cut, then the same once
/// more on everything.
///
/// Equal series, spec and machine give equal bits at any number of threads, also when the fit was interrupted and resumed
/// from its checkpoint (F2).
///
/// # Errors
/// [`TrainError`]; with a checkpoint policy, what was reached is on disk when the caller asked to stop.
pub fn fit(
    series: &dyn SeriesSource,
    spec: &TrainSpec,
    control: &mut FitControl<'_>,
) -> Result<FittedModel, TrainError> {
    if spec.params().model == ModelKind::Prophet && !crate::PROPHET {
        return Err(TrainError::NotBuilt { model: ModelKind::Prophet.name() });
    }
    let lanes = Arc::new(Lanes::new(spec.params().threads)?);
    // Networks alone take long enough to be saved on the way.
    let policy = control.checkpoint.as_ref().filter(|_| spec.params().model == ModelKind::Lstm);
    let file = policy
        .map(|policy| -> Result<_, HistoryError> { Ok(CheckpointFile::new(&policy.dir, fingerprint(series, spec)?)) });
    let file = file.transpose()?;
    let mut progress = match &file {
        Some(file) => file.read()?.unwrap_or_default(),
        None => Progress::default(),
    };
    let mut products = BTreeMap::new();
    for product in &spec.params().products {
        if series.count(&product.name) == 0 {
            return Err(TrainError::NoSeries { product: product.name.clone() });
        }
        let fitted = fit_product(product, series, spec, control, &lanes, (&file, &mut progress))?;
        products.insert(product.name.clone(), fitted);
    }
    if let Some(file) = file {
        file.remove()?;
    }
    Ok(FittedModel { products })
}

fn fit_product(
    product: &ProductSpec,
    series: &dyn SeriesSource,
    spec: &TrainSpec,
    control: &mut FitControl<'_>,
    lanes: &Arc<Lanes>,
    (file, progress): (&Option<CheckpointFile>, &mut Progress),
) -> Result<FittedProduct, TrainError> {
    let network = |source| TrainError::Network { product: product.name.clone(), source };
    let features = Features::new(&product.forecast);
    let share = spec.params().validation_share;
    let known = Known::of(product, series, (share, Part::BeforeCut), lanes)?;
    let mut learner = Learner { product, spec, control, lanes, file, progress };
    let samples = Samples::draw(product, series, spec, &known, Part::BeforeCut, lanes)?;
    let Judged { learned, again, how } = learner.before_cut(&samples)?;
    let parts = TrainedParts {
        name: product.name.clone(),
        spec: product.forecast.clone(),
        learned,
        widths: None,
        events: known.events.clone(),
        risk: RiskCalibrations::default(),
    };
    let plain = Trained::new(parts.clone(), lanes.clone()).map_err(network)?;
    let past = PastForecasts::new(&plain, &samples, lanes)?;
    let widths = if spec.params().calibrate { Some(past.widths()?) } else { None };
    let parts = TrainedParts { widths, ..parts };
    let mut trained = Trained::new(parts.clone(), lanes.clone()).map_err(network)?;
    // Widths and ranks come from what had not seen the held-back end: what has looks too sure of it.
    let templates = past.templates(&trained)?;
    let answered = past.answered(&trained, risk::MOST_SERIES)?;
    let risk = risk::calibrations(&answered, &templates, &features, spec.params().seed);
    drop(answered);
    let parts = TrainedParts { risk, ..parts };
    trained = Trained::new(parts.clone(), lanes.clone()).map_err(network)?;
    let count = samples.series().len();
    drop(past);
    drop(samples);
    if spec.params().refit {
        let known = Known::of(product, series, (share, Part::Whole), lanes)?;
        let samples = Samples::draw(product, series, spec, &known, Part::Whole, lanes)?;
        let learned = learner.whole(&samples, &again)?;
        let parts = TrainedParts { learned, events: known.events.clone(), ..parts };
        trained = Trained::new(parts, lanes.clone()).map_err(network)?;
    }
    Ok(FittedProduct { trained, templates, series: count, how })
}
