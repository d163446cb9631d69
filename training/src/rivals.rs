//! Rivals that are fitted beside a version, so that the gate can ask whether the version is worth more than they are.

use foreshard_model::ModelKind;

use crate::evaluate::Entrant;
use crate::{FitControl, FittedModel, SeriesSource, TrainError, TrainParams, TrainSpec, fit};

/// Rivals as fitted, by their kind.
pub(crate) struct FittedRivals(Vec<(ModelKind, FittedModel)>);

impl FittedRivals {
    /// Fits the given kinds on the same series as the version, whose own kind is left out, with the same settings.
    ///
    /// # Errors
    /// [`TrainError`] if one of them cannot be fitted where the version could.
    pub(crate) fn fit(
        kinds: &[ModelKind],
        series: &dyn SeriesSource,
        spec: &TrainSpec,
        stop: &dyn Fn() -> bool,
    ) -> Result<Self, TrainError> {
        let params = spec.params();
        let mut fitted = Vec::new();
        for model in kinds.iter().copied().filter(|kind| *kind != params.model) {
            let own = params.products.iter().filter(|product| series.count(&product.name) > 0).cloned().collect();
            let rival = TrainParams { model, products: own, warm_start: None, ..params.clone() }.check();
            let Ok(rival) = rival else { continue };
            let mut control = FitControl { progress: &mut |_| {}, checkpoint: None, stop };
            fitted.push((model, fit(series, &rival, &mut control)?));
        }
        Ok(Self(fitted))
    }

    /// Those of a product, as they take part in its backtest.
    pub(crate) fn entrants<'a>(&'a self, product: &str) -> Vec<Entrant<'a>> {
        let entrant = |(kind, fitted): &'a (ModelKind, FittedModel)| {
            let forecaster = fitted.forecaster(product)?;
            let (templates, risk) = (fitted.templates(product), fitted.risk(product));
            Some(Entrant { name: kind.name().to_owned(), forecaster, templates, risk })
        };
        self.0.iter().filter_map(entrant).collect()
    }
}
