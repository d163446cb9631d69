//! The registry as serving sees it: which version the labels name, and exchanging the served one when they move.

use foreshard_api::ModelInfo;
use foreshard_domain::{Metric, ModelVersion, Product, ShardId, Timestamp};
use foreshard_model::Context;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{fs, io};

use crate::engine::Slot;
use crate::ingest::reason;
use crate::{LoadError, ServedVersion, VersionLoader};

/// Days of the made-up series with which a version is tried out before it serves.
const REHEARSAL_DAYS: usize = 9;

/// Why the registry cannot be read or a version may not serve. The version before goes on serving.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The labels are unreadable.
    #[error("{} does not hold labels; promote a version to write it anew", path.display())]
    Labels {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The champion's folder cannot be loaded.
    #[error("version {version} cannot be loaded; promote another one or roll back")]
    Load {
        /// Which.
        version: ModelVersion,
        /// What is wrong with it.
        #[source]
        source: LoadError,
    },
    /// The champion answered a made-up series wrongly.
    #[error("version {version} failed its rehearsal for {product}: {what}; promote another one or roll back")]
    Rehearsal {
        /// Which.
        version: ModelVersion,
        /// Under which product.
        product: Product,
        /// How.
        what: String,
    },
    /// The champion's folder holds another version.
    #[error("the folder of version {expected} holds version {found}; it was copied by hand")]
    Mistaken {
        /// What it should hold.
        expected: ModelVersion,
        /// What it holds.
        found: ModelVersion,
    },
}

/// Which versions are in use; other labels than these do not concern serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
struct Labels {
    champion: Option<u64>,
    challenger: Option<u64>,
    last_good: Option<u64>,
}

impl Labels {
    fn of(&self, number: u64) -> Vec<String> {
        let all = [("champion", self.champion), ("challenger", self.challenger), ("last_good", self.last_good)];
        all.into_iter().filter(|(_, n)| *n == Some(number)).map(|(name, _)| name.to_owned()).collect()
    }
}

/// Watches the labels of one model and exchanges the served version when the champion changes.
pub(crate) struct Reloader {
    folder: PathBuf,
    model: String,
    loader: Arc<dyn VersionLoader>,
    slot: Arc<Slot>,
    /// Held during a check, so that there is one at a time.
    checking: Mutex<()>,
    /// Why versions were refused, by number. Never held while a version is loaded: whoever lists the versions waits for
    /// no reload.
    refused: Mutex<BTreeMap<u64, String>>,
    exchanges: AtomicU64,
    refusals: AtomicU64,
}

impl Reloader {
    pub(crate) fn new(registry: &Path, model: &str, loader: Arc<dyn VersionLoader>, slot: Arc<Slot>) -> Self {
        let folder = registry.join(model);
        let (exchanges, refusals) = (AtomicU64::new(0), AtomicU64::new(0));
        let (checking, refused) = (Mutex::default(), Mutex::default());
        Self { folder, model: model.to_owned(), loader, slot, checking, refused, exchanges, refusals }
    }

    /// The model of this server.
    pub(crate) fn model(&self) -> &str {
        &self.model
    }

    /// The version that answers.
    pub(crate) fn version(&self) -> Option<ModelVersion> {
        self.slot.id()
    }

    /// Exchanges the served version if the champion is another one, and returns the new one. A version that cannot be
    /// loaded or fails its rehearsal is refused: the one before goes on serving, and the next check tries again. Without
    /// a champion nothing changes. Blocks on disk and compute.
    pub(crate) fn check(&self) -> Result<Option<ModelVersion>, ReloadError> {
        let _one_at_a_time = self.checking.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(champion) = self.labels()?.champion else { return Ok(None) };
        let served = self.slot.id().filter(|id| id.model == self.model).map(|id| id.number);
        if served == Some(champion) {
            return Ok(None);
        }
        match self.load(champion) {
            Ok(version) => {
                self.refused().remove(&champion);
                let id = version.id();
                self.slot.exchange(version);
                self.exchanges.fetch_add(1, Ordering::Relaxed);
                tracing::info!(version = %id, before = ?served, "version serves");
                Ok(Some(id))
            }
            Err(error) => {
                self.refusals.fetch_add(1, Ordering::Relaxed);
                let why = reason(&error);
                if self.refused().insert(champion, why.clone()).as_ref() != Some(&why) {
                    tracing::error!(version = champion, still_serving = ?served, %why, "version refused");
                }
                Err(error)
            }
        }
    }

    /// How often a version was put in the place of another, or of none.
    pub(crate) fn exchanged(&self) -> u64 {
        self.exchanges.load(Ordering::Relaxed)
    }

    /// How often the champion was looked at and could not serve.
    pub(crate) fn refusals(&self) -> u64 {
        self.refusals.load(Ordering::Relaxed)
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<u64, String>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn labels(&self) -> Result<Labels, ReloadError> {
        let path = self.folder.join("labels.json");
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ReloadError::Labels { path, source }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Labels::default()),
            Err(source) => Err(ReloadError::Io { doing: "read", path, source }),
        }
    }

    fn load(&self, number: u64) -> Result<Arc<dyn ServedVersion>, ReloadError> {
        let expected = ModelVersion { model: self.model.clone(), number };
        let loaded = self.loader.load(&self.folder.join(number.to_string()));
        let version = loaded.map_err(|source| ReloadError::Load { version: expected.clone(), source })?;
        let found = version.id();
        if found != expected {
            return Err(ReloadError::Mistaken { expected, found });
        }
        for product in Product::ALL {
            rehearse(version.as_ref(), product).map_err(|what| ReloadError::Rehearsal {
                version: expected.clone(),
                product,
                what,
            })?;
        }
        Ok(version)
    }

    /// All versions of the model, by rising number.
    pub(crate) fn models(&self) -> Result<Vec<ModelInfo>, ReloadError> {
        let labels = self.labels()?;
        let served = self.slot.id();
        let refused = self.refused().clone();
        let info = |number: u64| {
            let trained_until = self.loader.trained_until(&self.folder.join(number.to_string()));
            ModelInfo {
                model: self.model.clone(),
                number,
                labels: labels.of(number),
                trained_until: trained_until.ok(),
                loaded: served.as_ref().is_some_and(|id| id.model == self.model && id.number == number),
                refused: refused.get(&number).cloned(),
            }
        };
        Ok(self.numbers()?.into_iter().map(info).collect())
    }

    fn numbers(&self) -> Result<Vec<u64>, ReloadError> {
        let failed = |source| ReloadError::Io { doing: "list", path: self.folder.clone(), source };
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(failed(source)),
        };
        let mut numbers = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// Lets a version answer once before it serves: its shape is checked, and what is slow the first time is done by now.
fn rehearse(version: &dyn ServedVersion, product: Product) -> Result<(), String> {
    let Some(spec) = version.spec(product) else { return Ok(()) };
    if spec.step != product.step() || spec.horizon != product.horizon() {
        let step = spec.step.as_minutes();
        return Err(format!("it forecasts {} steps of {step} minutes, which is another product", spec.horizon));
    }
    let shard = ShardId::new("rehearsal").map_err(|error| error.to_string())?;
    let steps = usize::try_from(foreshard_domain::Step::DAY.as_ms() / product.step().as_ms()).unwrap_or(1);
    let wave = |i: usize| 50.0 + 20.0 * (i as f32 / steps as f32 * std::f32::consts::TAU).sin();
    let values: Vec<f32> = (0..steps * REHEARSAL_DAYS).map(wave).collect();
    let start = Timestamp::from_ms(0);
    let context =
        Context { shard: &shard, metric: Metric::CpuUtil, start, step: product.step(), values: &values, events: None };
    let forecasts = version.forecast(product, &[context]);
    let fits = |forecast: &foreshard_domain::SeriesForecast| {
        forecast.shard == shard
            && forecast.metric == Metric::CpuUtil
            && forecast.issued_at == context.issued_at()
            && forecast.forecast.horizon() == product.horizon()
    };
    if forecasts.len() != 1 || !forecasts.iter().all(fits) {
        return Err("its forecast of one series has another shape".to_owned());
    }
    let set = version.scenarios(product, &forecasts, 8, 1).map_err(|error| reason(&error))?;
    let sound = set.shards() == [shard.clone()] && set.steps() == product.horizon() && set.scenarios() == 8;
    if sound { Ok(()) } else { Err("its scenarios have another shape".to_owned()) }
}
