//! What is fitted, by kind of model: before the cut, where it is judged, and once more on everything.

use foreshard_model::{Blend, Lanes, Learned, ModelKind, Ridge, Weights};

use super::blend::Losses;
use super::member::{Done, MemberRun, Until, members_of};
use super::sampling::Samples;
use super::spec::{FitControl, FitProgress, MemberSpec, ProductSpec, TrainSpec};
use super::{TrainError, ridge};
use crate::checkpoint::{CheckpointFile, Progress};

/// The fit of one product.
pub(super) struct Learner<'a, 'c> {
    pub product: &'a ProductSpec,
    pub spec: &'a TrainSpec,
    pub control: &'a mut FitControl<'c>,
    pub lanes: &'a Lanes,
    pub file: &'a Option<CheckpointFile>,
    pub progress: &'a mut Progress,
}

/// What was learned before the cut.
pub(super) struct Judged {
    pub learned: Learned,
    pub again: Again,
    /// How it went, in words.
    pub how: String,
}

/// How to learn the same once more on everything.
pub(super) enum Again {
    /// Each network for the steps that had served best, and the linear maps beside them if there are some.
    Networks(Vec<(MemberSpec, Until)>, Option<Maps>),
    /// Linear maps held by this penalty.
    Ridge(f64),
    /// Each series once more.
    Prophet,
}

/// Linear maps with a share in what networks say.
pub(super) struct Maps {
    ridge: Ridge,
    penalty: f64,
    share: f32,
}

impl Learner<'_, '_> {
    /// Learns from what lies before the cut, and chooses by what lies behind it.
    pub(super) fn before_cut(&mut self, samples: &Samples<'_>) -> Result<Judged, TrainError> {
        match self.spec.params().model {
            ModelKind::Lstm => {
                let networks = members_of(self.spec.params(), samples.features());
                let all: Vec<(MemberSpec, Until)> = networks.into_iter().map(|member| (member, Until::Best)).collect();
                let done = self.networks(samples, &all)?;
                let again = all.iter().zip(&done).map(|((member, _), done)| (*member, Until::Step(done.best)));
                let listed = |of: &dyn Fn(&Done) -> String| done.iter().map(of).collect::<Vec<_>>().join(", ");
                let (losses, steps) = (listed(&|d| format!("{:.4}", d.validation)), listed(&|d| d.steps.to_string()));
                let how = format!("validation loss {losses}, steps {steps}");
                let again = again.collect();
                let networks = done.into_iter().map(|d| d.weights).collect();
                self.blended(samples, networks, (again, how))
            }
            ModelKind::Ridge => {
                self.look(0, 2, f64::NAN)?;
                let fitted = ridge::before_cut(samples, self.lanes).map_err(|e| self.linear(e))?;
                self.look(1, 2, fitted.validation)?;
                let how = format!("validation loss {:.4}, penalty {}", fitted.validation, fitted.penalty);
                Ok(Judged { learned: Learned::Ridge(fitted.ridge), again: Again::Ridge(fitted.penalty), how })
            }
            ModelKind::Prophet => {
                self.look(0, 2, f64::NAN)?;
                let learned = self.prophet(samples)?;
                self.look(1, 2, f64::NAN)?;
                Ok(Judged { learned, again: Again::Prophet, how: "each by itself".to_owned() })
            }
        }
    }

    /// Networks with linear maps beside them, where that is better behind the cut. Maps that cannot be fitted get no share.
    fn blended(
        &mut self,
        samples: &Samples<'_>,
        networks: Vec<Weights>,
        (again, how): (Vec<(MemberSpec, Until)>, String),
    ) -> Result<Judged, TrainError> {
        if (self.control.stop)() {
            return Err(TrainError::Stopped { product: self.product.name.clone(), step: self.spec.params().steps });
        }
        let maps = match self.spec.params().blend {
            true => ridge::before_cut(samples, self.lanes)
                .inspect_err(|error| tracing::warn!(%error, product = %self.product.name, "no linear maps for a blend"))
                .ok(),
            false => None,
        };
        let alone = |networks, again, how| {
            Ok(Judged { learned: Learned::Lstm(networks), again: Again::Networks(again, None), how })
        };
        let Some(maps) = maps else { return alone(networks, again, how) };
        let network = |source| TrainError::Network { product: self.product.name.clone(), source };
        let losses = Losses::of(samples, &networks, &maps.ridge, self.lanes).map_err(network)?;
        let Some((share, loss)) = losses.best() else {
            return alone(networks, again, format!("{how}; no share of linear maps would lower it"));
        };
        let together = losses.alone;
        let how = format!("{how}; together {together:.4}, with a share of {share:.2} for linear maps {loss:.4}");
        let ridge = maps.ridge;
        let again = Again::Networks(again, Some(Maps { ridge: ridge.clone(), penalty: maps.penalty, share }));
        Ok(Judged { learned: Learned::Blend(Blend { networks, ridge, share }), again, how })
    }

    /// Learns the same once more, from everything.
    pub(super) fn whole(&mut self, samples: &Samples<'_>, again: &Again) -> Result<Learned, TrainError> {
        match again {
            Again::Networks(all, maps) => {
                let networks = self.networks(samples, all)?.into_iter().map(|done| done.weights).collect();
                let Some(Maps { ridge, penalty, share }) = maps else { return Ok(Learned::Lstm(networks)) };
                // Where everything together has no solution, those of the part before the cut are as good as they were judged.
                let whole = ridge::whole(samples, *penalty, self.lanes).inspect_err(
                    |error| tracing::warn!(%error, product = %self.product.name, "linear maps stay as before"),
                );
                Ok(Learned::Blend(Blend { networks, ridge: whole.unwrap_or_else(|_| ridge.clone()), share: *share }))
            }
            Again::Ridge(penalty) => {
                let ridge = ridge::whole(samples, *penalty, self.lanes).map_err(|e| self.linear(e))?;
                self.look(2, 2, f64::NAN)?;
                Ok(Learned::Ridge(ridge))
            }
            Again::Prophet => {
                let learned = self.prophet(samples)?;
                self.look(2, 2, f64::NAN)?;
                Ok(learned)
            }
        }
    }

    /// Trains every network, each as far as it is told.
    fn networks(&mut self, samples: &Samples<'_>, all: &[(MemberSpec, Until)]) -> Result<Vec<Done>, TrainError> {
        let members: Vec<MemberSpec> = all.iter().map(|(member, _)| *member).collect();
        let mut done = Vec::with_capacity(all.len());
        for (index, (_, until)) in all.iter().enumerate() {
            let mut run = MemberRun::new(self.product, (index, &members), samples, self.spec, *until);
            run.train(self.control, self.lanes, (self.file, &mut *self.progress))?;
            done.push(run.finish());
        }
        Ok(done)
    }

    #[cfg(feature = "prophet")]
    fn prophet(&self, samples: &Samples<'_>) -> Result<Learned, TrainError> {
        let fitted = crate::local::prophet::fit(samples, self.spec.params().seed, self.lanes)?;
        fitted.map(Learned::Prophet).ok_or_else(|| TrainError::NoneFitted {
            product: self.product.name.clone(),
            series: samples.series().len(),
            model: ModelKind::Prophet.name(),
        })
    }

    #[cfg(not(feature = "prophet"))]
    fn prophet(&self, _samples: &Samples<'_>) -> Result<Learned, TrainError> {
        Err(TrainError::NotBuilt { model: ModelKind::Prophet.name() })
    }

    /// Tells how far a fit without steps is, and asks whether it is to go on.
    fn look(&mut self, step: usize, of: usize, validation: f64) -> Result<(), TrainError> {
        (self.control.progress)(FitProgress {
            product: self.product.name.clone(),
            member: (0, 1),
            step: (step, of),
            loss: validation,
            validation: validation.is_finite().then_some(validation),
        });
        if (self.control.stop)() {
            return Err(TrainError::Stopped { product: self.product.name.clone(), step });
        }
        Ok(())
    }

    fn linear(&self, source: linfa_linear::LinearError<f64>) -> TrainError {
        TrainError::Linear { product: self.product.name.clone(), source }
    }
}
