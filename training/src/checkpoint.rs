//! Saving a fit so that it can go on as if nothing had happened.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use foreshard_datasets::HistoryError;
use foreshard_model::Features;

use crate::fit::{AdamW, Average, SeriesSource, TrainSpec};

/// Name of the file within the folder of the policy.
const FILE: &str = "checkpoint.safetensors";
/// Key of the header under which the plain numbers lie.
const HEADER: &str = "foreshard";
/// Layout of the file.
const SCHEMA: u32 = 1;

/// Why a checkpoint could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file could not be read or written.
    #[error("cannot {what} checkpoint {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no checkpoint.
    #[error("checkpoint {} is damaged: {problem}; remove it to start over", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The file belongs to other data or settings.
    #[error("checkpoint {} belongs to other data or settings; remove it to start over", path.display())]
    Other {
        /// The file.
        path: PathBuf,
    },
}

/// Everything that changes while one network is trained.
///
/// The generator's state is the number of the step: each step draws from a stream of its own, and so does the schedule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct MemberState {
    pub step: usize,
    pub weights: Vec<f32>,
    pub optimiser: AdamW,
    pub average: Average,
    /// Least validation loss and the averaged weights that gave it.
    pub best: Option<(f64, Vec<f32>)>,
    pub looks_since_best: usize,
}

/// How far every network is, by `<product>.<member>`; those not begun are left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Progress {
    pub members: BTreeMap<String, MemberState>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    schema: u32,
    fingerprint: String,
    members: BTreeMap<String, MemberHeader>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberHeader {
    step: usize,
    optimiser_step: usize,
    /// Bits of the least validation loss: a number in decimal could come back as another.
    best: Option<u64>,
    looks_since_best: usize,
}

/// The checkpoint of one fit.
#[derive(Debug)]
pub(crate) struct CheckpointFile {
    path: PathBuf,
    fingerprint: String,
}

/// SHA-256 of everything that decides the outcome of a fit: series, settings, start; not the number of threads.
pub(crate) fn fingerprint(series: &dyn SeriesSource, spec: &TrainSpec) -> Result<String, HistoryError> {
    let p = spec.params();
    let mut hash = Sha256::new();
    let settings = format!(
        "{:?}",
        (&p.products, &p.members, p.seed, p.steps, p.batch, p.origins, p.learning_rate.to_bits(), p.warm_up)
    );
    let more = format!(
        "{:?}",
        (
            p.weight_decay,
            p.clip,
            p.dropout,
            p.validation_share,
            p.validate_every,
            p.patience,
            p.calibrate,
            p.refit,
            (p.rows, p.calendar)
        )
    );
    let start = p.warm_start.as_ref().map(|version| &version.manifest().checksums);
    hash.update(format!("{settings}{more}{start:?}"));
    for product in &p.products {
        let features = Features::new(&product.forecast);
        let shipped = p.members.iter().filter_map(|member| member.start(&features));
        shipped.for_each(|weights| weights.values.iter().for_each(|w| hash.update(w.to_bits().to_le_bytes())));
    }
    for product in series.products() {
        let count = series.count(product);
        hash.update(format!("{product} {count}"));
        for i in 0..count {
            let Some(one) = series.get(product, i)? else { continue };
            let values = one.series.window_up_to(one.usable);
            let step = one.series.step.as_ms();
            hash.update(format!("{} {} {} {step} {}", one.shard, one.metric, one.series.start, values.len()));
            values.iter().for_each(|v| hash.update(v.to_bits().to_le_bytes()));
            one.events.of(&one.shard).for_each(|event| hash.update(format!("{event:?}")));
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

impl CheckpointFile {
    pub(crate) fn new(dir: &Path, fingerprint: String) -> Self {
        Self { path: dir.join(FILE), fingerprint }
    }

    fn io(&self, what: &'static str) -> impl FnOnce(std::io::Error) -> CheckpointError {
        let path = self.path.clone();
        move |source| CheckpointError::Io { what, path, source }
    }

    fn damaged(&self, problem: impl ToString) -> CheckpointError {
        CheckpointError::Damaged { path: self.path.clone(), problem: problem.to_string() }
    }

    /// Replaces the file at one stroke: a file beside it, synced, then renamed.
    pub(crate) fn write(&self, progress: &Progress) -> Result<(), CheckpointError> {
        let bytes = self.render(progress)?;
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).map_err(self.io("make the folder of"))?;
        }
        let partial = self.path.with_extension("partial");
        let written = File::create(&partial).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        written.map_err(self.io("write"))?;
        fs::rename(&partial, &self.path).map_err(self.io("replace"))
    }

    fn render(&self, progress: &Progress) -> Result<Vec<u8>, CheckpointError> {
        let mut members = BTreeMap::new();
        let mut buffers: Vec<(String, Vec<u8>)> = Vec::new();
        for (key, state) in &progress.members {
            let best = state.best.as_ref().map(|(loss, _)| loss.to_bits());
            let (step, optimiser_step) = (state.step, state.optimiser.step);
            members.insert(
                key.clone(),
                MemberHeader { step, optimiser_step, best, looks_since_best: state.looks_since_best },
            );
            let best = state.best.as_ref().map(|(_, weights)| ("best", weights));
            let parts = [
                ("weights", &state.weights),
                ("first", &state.optimiser.first),
                ("second", &state.optimiser.second),
                ("average", &state.average.values),
            ];
            for (part, values) in parts.into_iter().chain(best) {
                buffers.push((format!("{key}.{part}"), values.iter().flat_map(|v| v.to_le_bytes()).collect()));
            }
        }
        let header = Header { schema: SCHEMA, fingerprint: self.fingerprint.clone(), members };
        let header = serde_json::to_string(&header).map_err(|e| self.damaged(e))?;
        let mut views = Vec::with_capacity(buffers.len());
        for (name, bytes) in &buffers {
            let view = TensorView::new(Dtype::F32, vec![bytes.len() / 4], bytes).map_err(|e| self.damaged(e))?;
            views.push((name.as_str(), view));
        }
        let header = HashMap::from([(HEADER.to_owned(), header)]);
        safetensors::serialize(views, Some(header)).map_err(|e| self.damaged(e))
    }

    /// What was reached; `None` if there is no file.
    pub(crate) fn read(&self) -> Result<Option<Progress>, CheckpointError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io("read")(error)),
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| self.damaged(e))?;
        let header = metadata.metadata().as_ref().and_then(|m| m.get(HEADER));
        let header: Header = serde_json::from_str(header.ok_or_else(|| self.damaged("it has no header"))?)
            .map_err(|e| self.damaged(e))?;
        if header.schema != SCHEMA || header.fingerprint != self.fingerprint {
            return Err(CheckpointError::Other { path: self.path.clone() });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| self.damaged(e))?;
        let members = header.members.into_iter().map(|(key, own)| {
            let state = self.member(&tensors, &key, &own)?;
            Ok((key, state))
        });
        Ok(Some(Progress { members: members.collect::<Result<_, CheckpointError>>()? }))
    }

    fn member(&self, tensors: &SafeTensors<'_>, key: &str, own: &MemberHeader) -> Result<MemberState, CheckpointError> {
        let part = |part: &str| -> Result<Vec<f32>, CheckpointError> {
            let view = tensors.tensor(&format!("{key}.{part}")).map_err(|e| self.damaged(e))?;
            Ok(view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        };
        let best = own.best.map(|bits| Ok::<_, CheckpointError>((f64::from_bits(bits), part("best")?))).transpose()?;
        let optimiser = AdamW { first: part("first")?, second: part("second")?, step: own.optimiser_step };
        let (weights, average) = (part("weights")?, Average { values: part("average")? });
        let n = weights.len();
        if [optimiser.first.len(), optimiser.second.len(), average.values.len()] != [n; 3] {
            return Err(self.damaged(format!("tensors of {key} differ in length")));
        }
        Ok(MemberState { step: own.step, weights, optimiser, average, best, looks_since_best: own.looks_since_best })
    }

    /// Removes the file after a fit that went to its end.
    pub(crate) fn remove(&self) -> Result<(), CheckpointError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.io("remove")(error)),
            _ => Ok(()),
        }
    }
}
