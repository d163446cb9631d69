//! Training one network.

use foreshard_model::{Architecture, DropoutMasks, Features, Lanes, Weights, pretrained};
use rand::seq::index;
use rand::{Rng, RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::TrainError;
use super::loss::{loss_and_gradient, plain_loss};
use super::optimiser::{AdamW, Average, clip, learning_rate};
use super::sampling::Samples;
use super::spec::{FitControl, FitProgress, MemberSpec, ProductSpec, TrainParams, TrainSpec};
use crate::checkpoint::{CheckpointFile, MemberState, Progress};

/// Pieces of a batch whose gradients are computed apart and summed in this order: fixed, so that the number of threads
/// never shows in the result.
const CHUNKS: usize = 4;
/// Every so many-th step of the horizon takes part in a batch and in validation.
const STEP_SHARE: usize = 4;

/// The learning rate of a pre-trained network, to that of a fresh one.
const FINE_TUNING: f64 = 0.5;

/// When a network has learned enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// At the best look at the validation stretch.
    Best,
    /// After so many steps, without a look.
    Step(usize),
}

/// A network while it is trained.
pub(super) struct MemberRun<'a> {
    product: &'a ProductSpec,
    index: usize,
    /// How many networks the product has.
    members: usize,
    member: MemberSpec,
    samples: &'a Samples<'a>,
    spec: &'a TrainSpec,
    architecture: Architecture,
    state: MemberState,
    until: Until,
    /// Whether it begins with a shipped network, which may serve best as it is.
    untouched: bool,
}

/// A network when it is trained.
pub(super) struct Done {
    pub weights: Weights,
    pub validation: f64,
    pub steps: usize,
    /// The step whose weights these are.
    pub best: usize,
}

impl MemberSpec {
    fn architecture(&self, features: &Features) -> Architecture {
        Architecture { encoder: self.encoder, decoder: self.decoder, ..Architecture::new(features) }
    }

    /// The network that it begins with, if it is to begin with one and there is one.
    pub(crate) fn start(&self, features: &Features) -> Option<Weights> {
        if self.pretrained { pretrained(features, self.architecture(features)) } else { None }
    }
}

/// The networks of a product of this shape.
pub(super) fn members_of(params: &TrainParams, features: &Features) -> Vec<MemberSpec> {
    let mut stands_in = false;
    let member = |m: &MemberSpec| match m.pretrained && m.start(features).is_none() {
        false => Some(*m),
        true => (!std::mem::replace(&mut stands_in, true)).then_some(MemberSpec::DECODER),
    };
    params.members.iter().filter_map(member).collect()
}

impl<'a> MemberRun<'a> {
    pub(super) fn new(
        product: &'a ProductSpec,
        (index, members): (usize, &[MemberSpec]),
        samples: &'a Samples<'a>,
        spec: &'a TrainSpec,
        until: Until,
    ) -> Self {
        let member = members.get(index).copied().unwrap_or(MemberSpec::LSTM);
        let architecture = member.architecture(samples.features());
        let warm = spec.params().warm_start.as_ref().and_then(|version| {
            let weights = version.forecaster(&product.name)?.parts().learned.networks().get(index)?;
            (weights.architecture == architecture).then(|| weights.values.clone())
        });
        // What a version of this history had learned has often seen what is held back; the shipped networks never have.
        let shipped = if warm.is_none() { member.start(samples.features()) } else { None };
        let untouched = shipped.is_some();
        let known = || shipped.map(|weights| weights.values);
        let fresh = || {
            let mut weights = architecture.initial(&mut generator(spec, index, 0, 0));
            if member.hide_quantiles >= 1.0 {
                architecture.blind_to_quantiles(&mut weights);
            }
            weights.values
        };
        let values = warm.or_else(known).unwrap_or_else(fresh);
        let mut weights = Weights { architecture, values };
        if !spec.params().calendar {
            architecture.blind_to_calendar(&mut weights);
        }
        let weights = weights.values;
        let state = MemberState {
            step: 0,
            optimiser: AdamW::new(weights.len()),
            average: Average::new(&weights),
            best: None,
            looks_since_best: 0,
            weights,
        };
        Self { product, index, members: members.len(), member, samples, spec, architecture, state, until, untouched }
    }

    fn key(&self) -> String {
        let part = match self.until {
            Until::Best => "",
            Until::Step(_) => ".whole",
        };
        format!("{}.{}{part}", self.product.name, self.index)
    }

    /// How many steps are taken at most.
    fn limit(&self) -> usize {
        match self.until {
            Until::Best => self.spec.params().steps,
            Until::Step(step) => step,
        }
    }

    /// Trains to the last step, an early stop, or the caller's stop.
    pub(super) fn train(
        &mut self,
        control: &mut FitControl<'_>,
        lanes: &Lanes,
        (file, progress): (&Option<CheckpointFile>, &mut Progress),
    ) -> Result<(), TrainError> {
        let params = self.spec.params();
        if let Some(state) = progress.members.get(&self.key()) {
            self.state = state.clone();
        }
        let save_every = control.checkpoint.as_ref().map_or(usize::MAX, |policy| policy.every_steps.max(1));
        let mut save = |run: &Self| -> Result<(), TrainError> {
            let Some(file) = file else { return Ok(()) };
            progress.members.insert(run.key(), run.state.clone());
            Ok(file.write(progress)?)
        };
        let (limit, looks) = (self.limit(), self.until == Until::Best);
        if looks && self.untouched && self.state.step == 0 && self.state.best.is_none() {
            // What it knows already may be the best there is for this history.
            self.look(lanes)?;
        }
        while self.state.step < limit && self.state.looks_since_best < params.patience {
            if (control.stop)() {
                save(self)?;
                return Err(TrainError::Stopped { product: self.product.name.clone(), step: self.state.step });
            }
            let loss = self.step(lanes)?;
            let look = self.state.step.is_multiple_of(params.validate_every) || self.state.step == limit;
            let validation = if look && looks { Some(self.look(lanes)?) } else { None };
            (control.progress)(FitProgress {
                product: self.product.name.clone(),
                member: self.position(),
                step: (self.state.step, limit),
                loss,
                validation,
            });
            if self.state.step.is_multiple_of(save_every) {
                save(self)?;
            }
        }
        save(self)
    }

    /// Which network this is, counted over both parts of the fit, and of how many.
    fn position(&self) -> (usize, usize) {
        let parts = if self.spec.params().refit { 2 } else { 1 };
        let before = if self.until == Until::Best { 0 } else { self.members };
        (before + self.index, parts * self.members)
    }

    /// One step: a batch in chunks, gradients summed in order, clipped, applied.
    fn step(&mut self, lanes: &Lanes) -> Result<f64, TrainError> {
        let params = self.spec.params();
        let number = self.state.step;
        let mut rng = generator(self.spec, self.index, number + 1, 0);
        let n = self.samples.train.len().max(1);
        let origins: Vec<usize> = (0..params.batch).map(|_| rng.random_range(0..n)).collect();
        let horizon = self.samples.features().horizon;
        let mut steps = index::sample(&mut rng, horizon, horizon.div_ceil(STEP_SHARE)).into_vec();
        steps.sort_unstable();
        let hidden: Vec<bool> = origins.iter().map(|_| rng.random::<f32>() < self.member.hide_quantiles).collect();
        let size = origins.len().div_ceil(CHUNKS).max(1);
        let chunks: Vec<(&[usize], &[bool])> = origins.chunks(size).zip(hidden.chunks(size)).collect();
        let weights = Weights { architecture: self.architecture, values: self.state.weights.clone() };
        let rows = origins.len() * steps.len();
        let parts = lanes.map(&chunks, |chunk, (origins, hidden)| {
            let hide = |i: usize| hidden.get(i).copied().unwrap_or(false);
            let example = self.samples.train.example(origins, &steps, hide);
            let masks = self.masks(number, chunk, origins.len(), steps.len());
            loss_and_gradient(&weights, &example, &masks, rows)
        });
        let mut gradient = vec![0.0f32; weights.values.len()];
        let mut loss = 0.0;
        for part in parts {
            let (own, values) = part.map_err(|source| self.network(source))?;
            loss += own;
            gradient.iter_mut().zip(values).for_each(|(g, v)| *g += v);
        }
        let length = clip(&mut gradient, params.clip);
        for (what, value) in [("loss", loss), ("gradient", length)] {
            if !value.is_finite() {
                return Err(TrainError::NotFinite { what, product: self.product.name.clone(), step: number });
            }
        }
        let peak = params.learning_rate * if self.member.pretrained { FINE_TUNING } else { 1.0 };
        let rate = learning_rate(peak, number, params.warm_up, params.steps);
        self.state.optimiser.step(&mut self.state.weights, &gradient, rate, params.weight_decay);
        self.state.average.update(&self.state.weights, number);
        self.state.step += 1;
        Ok(loss)
    }

    /// Looks at the validation stretch with the averaged weights and keeps the best.
    fn look(&mut self, lanes: &Lanes) -> Result<f64, TrainError> {
        let table = &self.samples.validation;
        let all: Vec<usize> = (0..table.len()).collect();
        let steps: Vec<usize> = (0..self.samples.features().horizon).step_by(STEP_SHARE).collect();
        let weights = Weights { architecture: self.architecture, values: self.state.average.values.clone() };
        let chunks: Vec<&[usize]> = all.chunks(64).collect();
        let rows = all.len() * steps.len();
        let parts =
            lanes.map(&chunks, |_, origins| plain_loss(&weights, &table.example(origins, &steps, |_| false), rows));
        let mut loss = 0.0;
        for part in parts {
            loss += part.map_err(|source| self.network(source))?;
        }
        if !loss.is_finite() {
            let product = self.product.name.clone();
            return Err(TrainError::NotFinite { what: "validation loss", product, step: self.state.step });
        }
        // Without a validation stretch every look counts as the best so far.
        let better = self.state.best.as_ref().is_none_or(|(best, _)| loss < *best || all.is_empty());
        if better {
            self.state.best = Some((loss, weights.values));
            self.state.looks_since_best = 0;
        } else {
            self.state.looks_since_best += 1;
        }
        Ok(loss)
    }

    fn network(&self, source: foreshard_model::NetworkError) -> TrainError {
        TrainError::Network { product: self.product.name.clone(), source }
    }

    /// Masks of one chunk, from a generator of its own.
    fn masks(&self, step: usize, chunk: usize, origins: usize, steps: usize) -> DropoutMasks {
        let mut rng = generator(self.spec, self.index, step + 1, chunk + 1);
        // One byte a unit: the share is rounded to 1/256.
        let threshold = (self.spec.params().dropout * 256.0).round().clamp(0.0, 255.0) as u8;
        let kept = 256.0 / (256.0 - f32::from(threshold));
        let mut bytes = Vec::new();
        let mut mask = |n: usize| -> Vec<f32> {
            bytes.resize(n, 0);
            rng.fill_bytes(&mut bytes);
            bytes.iter().map(|b| if *b < threshold { 0.0 } else { kept }).collect()
        };
        let days = if self.architecture.encoder > 0 { self.samples.patches() } else { 0 };
        let patches = mask(days * origins * self.architecture.encoder);
        DropoutMasks { patches, decoder: mask(origins * steps * self.architecture.decoder) }
    }

    /// The best averaged weights; without a look, the last.
    pub(super) fn finish(self) -> Done {
        let MemberState { step, average, best, looks_since_best, .. } = self.state;
        let every = self.spec.params().validate_every.max(1);
        let best_step = match looks_since_best {
            0 => step,
            since => step.div_ceil(every).saturating_sub(since) * every,
        };
        let (validation, values) = best.unwrap_or((f64::NAN, average.values));
        Done { weights: Weights { architecture: self.architecture, values }, validation, steps: step, best: best_step }
    }
}

/// The generator of one purpose: every (network, step, chunk) has its own stream, so that a resumed fit needs to know
/// nothing but the number of the step.
fn generator(spec: &TrainSpec, member: usize, step: usize, chunk: usize) -> ChaCha8Rng {
    let wide = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let purpose = (wide(member) << 32 | wide(chunk)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut rng = ChaCha8Rng::seed_from_u64(spec.params().seed ^ purpose);
    rng.set_stream(wide(step));
    rng
}
