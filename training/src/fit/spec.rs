//! What a fit is told.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use foreshard_datasets::{EventCalendar, GridSeries};
use foreshard_domain::{Metric, Product, ShardId};
use foreshard_model::{ForecastSpec, ModelKind, SpecError, Version};
use serde::{Deserialize, Serialize};

/// One series to learn from.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainSeries {
    /// Whose.
    pub shard: ShardId,
    /// Of what.
    pub metric: Metric,
    /// The values.
    pub series: GridSeries,
    /// `values[..usable]` may be learned from; what lies beyond is not looked at.
    pub usable: usize,
    /// Known events; what they did is learned from the values that may be learned from.
    pub events: Arc<EventCalendar>,
}

/// A product to fit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductSpec {
    /// `next_hours`, `next_day`, or the name of a protocol.
    pub name: String,
    /// What it forecasts.
    pub forecast: ForecastSpec,
}

impl From<Product> for ProductSpec {
    fn from(product: Product) -> Self {
        Self { name: product.name().to_owned(), forecast: ForecastSpec::of_product(product) }
    }
}

/// Sizes and inputs of one network; the quantiles of all members are averaged.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberSpec {
    /// Units of the LSTM; 0 leaves the encoder out.
    pub encoder: usize,
    /// Units of the decoder.
    pub decoder: usize,
    /// Share of the samples from which the quantiles of the last day and week are hidden; 1 keeps them out altogether.
    pub hide_quantiles: f32,
    /// Whether it begins with the network of its sizes that was fitted on made-up loads; where there is none for the shape of
    /// a product, one [`MemberSpec::DECODER`] takes the place of all such members.
    #[serde(default)]
    pub pretrained: bool,
}

impl MemberSpec {
    /// Patched LSTM encoder and decoder.
    pub const LSTM: MemberSpec = MemberSpec { encoder: 32, decoder: 64, hide_quantiles: 0.5, pretrained: false };
    /// The same, but from a network that knows what loads do in general.
    pub const PRETRAINED: MemberSpec = MemberSpec { pretrained: true, ..Self::LSTM };
    /// Decoder over lag features alone, which never sees the quantiles: as unlike the other as it can be.
    pub const DECODER: MemberSpec = MemberSpec { encoder: 0, decoder: 64, hide_quantiles: 1.0, pretrained: false };
}

/// How to fit; every number has a default that suits tens of series over some weeks.
#[derive(Debug, Clone)]
pub struct TrainParams {
    /// What to fit; of the numbers below, networks take all, the others only those that say so by their nature (products,
    /// metrics, seed, origins, rows, shares, switches, threads).
    pub model: ModelKind,
    /// What to fit, each with its own networks.
    pub products: Vec<ProductSpec>,
    /// Metrics to learn from; all if left out. Read by whoever makes the series.
    pub metrics: Option<Vec<Metric>>,
    /// Networks of every product.
    pub members: Vec<MemberSpec>,
    /// Seed of everything random.
    pub seed: u64,
    /// Steps of every network.
    pub steps: usize,
    /// Origins in a batch.
    pub batch: usize,
    /// Origins drawn in all.
    pub origins: usize,
    /// Most (origin, step) rows of features held at once, which bounds the origins too: about 160 bytes each.
    pub rows: usize,
    /// Peak of the learning rate; half of it for a network that knows something already.
    pub learning_rate: f64,
    /// Steps over which it rises to the peak.
    pub warm_up: usize,
    /// Decay of the weights in every step, times the learning rate.
    pub weight_decay: f64,
    /// Longest gradient.
    pub clip: f64,
    /// Share of units switched off during training.
    pub dropout: f32,
    /// Share of every series' end that is held back for early stop and calibration.
    pub validation_share: f64,
    /// Steps between two looks at the validation stretch.
    pub validate_every: usize,
    /// Looks without improvement after which training stops.
    pub patience: usize,
    /// Whether widths are corrected after training.
    pub calibrate: bool,
    /// Whether the networks that answer are fitted anew on all values, the held-back end with them, for the steps that
    /// served best before it; what is held back is otherwise never learned from, and it is the newest there is.
    pub refit: bool,
    /// Whether networks see the time of the day and the week.
    pub calendar: bool,
    /// Whether linear maps get a share in what networks say, where that is better behind the cut.
    pub blend: bool,
    /// Worker threads; 0 means one for each core. No result depends on it.
    pub threads: usize,
    /// A version whose networks are the start, where names and sizes agree.
    pub warm_start: Option<Arc<Version>>,
}

impl Default for TrainParams {
    fn default() -> Self {
        Self {
            model: ModelKind::Lstm,
            products: Product::ALL.map(ProductSpec::from).to_vec(),
            metrics: None,
            members: vec![MemberSpec::LSTM, MemberSpec::PRETRAINED, MemberSpec::PRETRAINED],
            seed: 1,
            steps: 500,
            batch: 128,
            origins: 8000,
            rows: 500_000,
            learning_rate: 3e-3,
            warm_up: 50,
            weight_decay: 1e-3,
            clip: 1.0,
            dropout: 0.3,
            validation_share: 0.1,
            validate_every: 50,
            patience: 5,
            calibrate: true,
            refit: true,
            calendar: true,
            blend: true,
            threads: 0,
            warm_start: None,
        }
    }
}

/// One thing wrong with [`TrainParams`].
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainProblem {
    /// A list that must not be empty is.
    #[error("{what} must not be empty")]
    Empty {
        /// Which list.
        what: &'static str,
    },
    /// Two products share a name.
    #[error("product {name} occurs more than once")]
    Twice {
        /// The name.
        name: String,
    },
    /// A name that cannot be the prefix of a tensor.
    #[error("product name {name:?} must be letters, digits, '_' or '-'")]
    Name {
        /// The name.
        name: String,
    },
    /// A product cannot be forecast.
    #[error("product {name} cannot be fitted")]
    Forecast {
        /// Which product.
        name: String,
        /// Why.
        #[source]
        source: SpecError,
    },
    /// A number is out of range.
    #[error("{what} must be {range}, not {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// What it may be.
        range: &'static str,
        /// What was given.
        value: f64,
    },
}

/// All that is wrong with [`TrainParams`], so that it can be mended in one go.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainErrors(pub Vec<TrainProblem>);

impl fmt::Display for TrainErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
            if let TrainProblem::Forecast { source, .. } = problem {
                write!(f, ": {source}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for TrainErrors {}

/// Checked [`TrainParams`].
#[derive(Debug, Clone)]
pub struct TrainSpec(TrainParams);

impl TrainSpec {
    /// The parameters.
    pub fn params(&self) -> &TrainParams {
        &self.0
    }
}

impl TrainParams {
    /// Checks everything and finds all that is wrong.
    ///
    /// # Errors
    /// [`TrainErrors`] with every problem.
    pub fn check(self) -> Result<TrainSpec, TrainErrors> {
        let mut problems = self.product_problems();
        for (what, empty) in [("products", self.products.is_empty()), ("members", self.members.is_empty())] {
            problems.extend(empty.then_some(TrainProblem::Empty { what }));
        }
        if self.metrics.as_ref().is_some_and(Vec::is_empty) {
            problems.push(TrainProblem::Empty { what: "metrics" });
        }
        problems.extend(
            self.numbers()
                .into_iter()
                .filter_map(|(what, range, value, ok)| (!ok).then_some(TrainProblem::Range { what, range, value })),
        );
        if problems.is_empty() { Ok(TrainSpec(self)) } else { Err(TrainErrors(problems)) }
    }

    fn product_problems(&self) -> Vec<TrainProblem> {
        let mut problems = Vec::new();
        for (i, product) in self.products.iter().enumerate() {
            let name = product.name.clone();
            if self.products.iter().take(i).any(|p| p.name == name) {
                problems.push(TrainProblem::Twice { name: name.clone() });
            }
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            if name.is_empty() || !name.chars().all(fits) {
                problems.push(TrainProblem::Name { name: name.clone() });
            }
            let wrong = product.forecast.problems().into_iter();
            problems.extend(wrong.map(|source| TrainProblem::Forecast { name: name.clone(), source }));
        }
        problems
    }

    fn numbers(&self) -> Vec<(&'static str, &'static str, f64, bool)> {
        let count = |what, value: usize, most: usize| {
            (what, "at least 1 and reasonable", value as f64, (1..=most).contains(&value))
        };
        let share =
            |what, value: f64, most: f64| (what, "at least 0 and below 1", value, (0.0..=most).contains(&value));
        let positive = |what, value: f64, most: f64| (what, "positive and finite", value, value > 0.0 && value <= most);
        let mut numbers = vec![
            count("steps", self.steps, 1_000_000),
            count("batch", self.batch, 65_536),
            count("origins", self.origins, 1_000_000),
            count("rows", self.rows, 100_000_000),
            count("validate_every", self.validate_every, 1_000_000),
            count("patience", self.patience, 1_000_000),
            positive("learning_rate", self.learning_rate, 1.0),
            positive("clip", self.clip, 1e6),
            share("weight_decay", self.weight_decay, 0.99),
            share("dropout", f64::from(self.dropout), 0.95),
            (
                "validation_share",
                "between .02 and .5",
                self.validation_share,
                (0.02..=0.5).contains(&self.validation_share),
            ),
            ("threads", "at most 1024", self.threads as f64, self.threads <= 1024),
        ];
        for member in &self.members {
            numbers.push(count("decoder", member.decoder, 1024));
            numbers.push(("encoder", "at most 1024", member.encoder as f64, member.encoder <= 1024));
            numbers.push(share("hide_quantiles", f64::from(member.hide_quantiles), 1.0));
        }
        numbers
    }
}

/// Where and how often a fit is saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointPolicy {
    /// Folder of the checkpoint; made if it is not there.
    pub dir: PathBuf,
    /// Steps between two saves.
    pub every_steps: usize,
}

/// How a fit is going.
#[derive(Debug, Clone, PartialEq)]
pub struct FitProgress {
    /// Which product.
    pub product: String,
    /// Which network of it, counted from 0, and of how many.
    pub member: (usize, usize),
    /// Steps done, and of how many at most.
    pub step: (usize, usize),
    /// Scaled loss of the last batch.
    pub loss: f64,
    /// Scaled loss on the validation stretch, when it was just looked at.
    pub validation: Option<f64>,
}

/// What a caller sees and decides while a fit runs.
pub struct FitControl<'a> {
    /// Called after every step.
    pub progress: &'a mut dyn FnMut(FitProgress),
    /// Whether and where the fit is saved; an existing checkpoint of the same data and spec is continued.
    pub checkpoint: Option<CheckpointPolicy>,
    /// Asked before every step; true ends the fit with [`crate::TrainError::Stopped`] after a save.
    pub stop: &'a dyn Fn() -> bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_at_once() {
        assert!(TrainParams::default().check().is_ok());
        let twice = vec![ProductSpec::from(Product::NextDay), ProductSpec::from(Product::NextDay)];
        let mut odd = ProductSpec::from(Product::NextHours);
        odd.name = "a/b".into();
        odd.forecast.horizon = 0;
        let params = TrainParams {
            products: [twice, vec![odd]].concat(),
            metrics: Some(Vec::new()),
            steps: 0,
            learning_rate: f64::NAN,
            dropout: 1.0,
            ..TrainParams::default()
        };
        let errors = params.check().unwrap_err();
        assert_eq!(errors.0.len(), 7, "{errors}");
        assert!(errors.to_string().contains("horizon must be"), "{errors}");
    }
}
