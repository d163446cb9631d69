//! Rivals that are fitted beside a version, so that the gate can ask whether the version is worth more than they are.

use foreshard_model::ModelKind;

use crate::evaluate::Entrant;
use crate::{FitControl, FittedModel, SeriesSource, TrainError, TrainParams, TrainSpec, fit};

/// Rivals as fitted, by their kind.
pub(crate) struct FittedRivals {
    /// By kind, one product each.
    fitted: Vec<(ModelKind, FittedModel)>,
    /// Those that could not be, and why.
    pub missing: Vec<String>,
}

impl FittedRivals {
    /// Fits the given kinds on the same series as the version, whose own kind is left out, with the same settings. One that
    /// cannot be fitted where the version could does not keep the version from being trained: it is missing and told of.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] and [`TrainError::History`], which would have ended the version too.
    pub(crate) fn fit(
        kinds: &[ModelKind],
        series: &dyn SeriesSource,
        spec: &TrainSpec,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, TrainError> {
        let params = spec.params();
        let (mut fitted, mut missing) = (Vec::new(), Vec::new());
        for model in kinds.iter().copied().filter(|kind| *kind != params.model) {
            // Each by itself: what cannot be fitted of one is fitted of the others.
            for product in params.products.iter().filter(|product| series.count(&product.name) > 0) {
                let (name, products) = (&product.name, vec![product.clone()]);
                let Ok(rival) = (TrainParams { model, products, warm_start: None, ..params.clone() }).check() else {
                    continue;
                };
                let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop };
                match fit(series, &rival, &mut control) {
                    Ok(rival) => fitted.push((model, rival)),
                    Err(error @ (TrainError::Stopped { .. } | TrainError::History(_))) => return Err(error),
                    Err(error) => missing.push(format!("{name}: not compared with {model}: {}", chain(&error))),
                }
            }
        }
        missing.iter().for_each(|why| tracing::warn!("{why}"));
        Ok(Self { fitted, missing })
    }

    /// Those of a product, as they take part in its backtest.
    pub(crate) fn entrants<'a>(&'a self, product: &str) -> Vec<Entrant<'a>> {
        let entrant = |(kind, fitted): &'a (ModelKind, FittedModel)| {
            let forecaster = fitted.forecaster(product)?;
            let (templates, risk) = (fitted.templates(product), fitted.risk(product));
            Some(Entrant { name: kind.name().to_owned(), forecaster, templates, risk })
        };
        self.fitted.iter().filter_map(entrant).collect()
    }
}

/// An error and what caused it, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
