//! Cost models on disk: `<registry>/cost/<number>/` with the model, and what it was learned from beside it.

use foreshard_domain::{CostModel, Outcome};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

use super::{CostFitError, CostVerdict, fit_cost_model, judge_cost_model};
use crate::numbered::{FileError, Reservation, at, published, write_file};

/// Name of the folder of the cost models inside a registry.
pub(crate) const COST_FOLDER: &str = "cost";
const MODEL_FILE: &str = "model.json";
const EVIDENCE_FILE: &str = "evidence.json";

/// What a cost model was learned from and how it did on moves that it had not seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CostEvidence {
    /// The model that was in use before.
    pub parent: u64,
    /// Migrations that it was learned from.
    pub migrations: Vec<String>,
    /// The gate's verdict.
    pub verdict: CostVerdict,
}

/// Why the registry of the cost models did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CostRegistryError {
    /// The file system failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file holds no cost model or no evidence.
    #[error("{} is no {what}; remove the folder of this number to go on with the one before", path.display())]
    Broken {
        /// What it should be.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A model or its evidence cannot be written as JSON.
    #[error("the cost model cannot be written as JSON")]
    Encode(#[source] serde_json::Error),
    /// Evidence says that the model may not be used.
    #[error("cost model not published: {reason}")]
    Refused {
        /// The gate's reason.
        reason: String,
    },
    /// Nothing could be learned.
    #[error("no cost model could be learned")]
    Fit(#[from] CostFitError),
}

/// The cost models of a registry. The highest number is the one in use; none is ever changed.
#[derive(Debug, Clone)]
pub struct CostRegistry {
    folder: PathBuf,
}

impl CostRegistry {
    /// The cost models under the root of a registry; nothing needs to exist yet.
    pub fn open(registry: &Path) -> Self {
        Self { folder: registry.join(COST_FOLDER) }
    }

    /// The numbers there are, rising.
    ///
    /// # Errors
    /// [`CostRegistryError::File`] if the folder cannot be read.
    pub fn numbers(&self) -> Result<Vec<u64>, CostRegistryError> {
        Ok(published(&self.folder)?)
    }

    /// The model in use; `None` before the first one was learned (then use [`CostModel::prior`]).
    ///
    /// # Errors
    /// [`CostRegistryError::Broken`] or [`CostRegistryError::File`] if it cannot be read.
    pub fn latest(&self) -> Result<Option<CostModel>, CostRegistryError> {
        self.numbers()?.last().map(|n| self.load(*n)).transpose()
    }

    /// The model of a number.
    ///
    /// # Errors
    /// [`CostRegistryError::Broken`] or [`CostRegistryError::File`] if it cannot be read.
    pub fn load(&self, number: u64) -> Result<CostModel, CostRegistryError> {
        self.read(number, MODEL_FILE, "cost model")
    }

    /// What the model of a number was learned from.
    ///
    /// # Errors
    /// [`CostRegistryError::Broken`] or [`CostRegistryError::File`] if it cannot be read.
    pub fn evidence(&self, number: u64) -> Result<CostEvidence, CostRegistryError> {
        self.read(number, EVIDENCE_FILE, "evidence of a cost model")
    }

    fn read<T: serde::de::DeserializeOwned>(
        &self,
        number: u64,
        file: &str,
        what: &'static str,
    ) -> Result<T, CostRegistryError> {
        let path = self.folder.join(number.to_string()).join(file);
        let text = fs::read(&path).map_err(at("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| CostRegistryError::Broken { what, path, source })
    }

    /// Publishes a model under the next number (its own number is replaced) and makes it the one in use.
    ///
    /// # Errors
    /// [`CostRegistryError::Refused`] if its evidence says no; [`CostRegistryError::File`] if it cannot be written.
    pub fn publish(&self, model: CostModel, evidence: &CostEvidence) -> Result<CostModel, CostRegistryError> {
        if !evidence.verdict.accepted {
            return Err(CostRegistryError::Refused { reason: evidence.verdict.reason.clone() });
        }
        let reservation = Reservation::take(&self.folder, 1)?;
        let model = CostModel { number: reservation.number(), ..model };
        let json = |value: serde_json::Result<Vec<u8>>| value.map_err(CostRegistryError::Encode);
        let content = reservation.content();
        fs::create_dir(&content).map_err(at("create folder", &content))?;
        write_file(&content.join(MODEL_FILE), &json(serde_json::to_vec_pretty(&model))?)?;
        write_file(&content.join(EVIDENCE_FILE), &json(serde_json::to_vec_pretty(evidence))?)?;
        reservation.publish()?;
        Ok(model)
    }

    /// Learns from all outcomes starting from `prior`, and publishes the model if it passes the gate against the one in
    /// use (the prior, if there is none). Returns the model in use afterwards and the verdict.
    ///
    /// # Errors
    /// [`CostRegistryError::Fit`] if nothing can be learned from; others if files cannot be read or written.
    pub fn learn(
        &self,
        outcomes: &[Outcome],
        prior: &CostModel,
    ) -> Result<(CostModel, CostVerdict), CostRegistryError> {
        let parent = self.latest()?.unwrap_or_else(|| prior.clone());
        let verdict = judge_cost_model(outcomes, prior, &parent)?;
        if !verdict.accepted {
            return Ok((parent, verdict));
        }
        let model = fit_cost_model(outcomes, prior, parent.number + 1)?;
        let used = outcomes.iter().filter(|o| super::counts(o));
        let migrations = used.map(|o| o.migration.to_string()).collect();
        let evidence = CostEvidence { parent: parent.number, migrations, verdict: verdict.clone() };
        Ok((self.publish(model, &evidence)?, verdict))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::synthetic;
    use super::*;

    #[test]
    fn learned_models_are_numbered_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let registry = CostRegistry::open(dir.path());
        let prior = CostModel::prior(1e6);
        assert_eq!(registry.latest().unwrap(), None);
        let (first, verdict) = registry.learn(&synthetic(20, 1, 0.1), &prior).unwrap();
        assert!(verdict.accepted && first.number == 1 && first.outcomes == 20);
        let (second, _) = registry.learn(&synthetic(60, 1, 0.1), &prior).unwrap();
        assert_eq!(second.number, 2);
        assert_eq!(registry.latest().unwrap(), Some(second));
        assert_eq!(registry.load(1).unwrap(), first);
        let evidence = registry.evidence(2).unwrap();
        assert_eq!((evidence.parent, evidence.migrations.len()), (1, 60));
    }

    #[test]
    fn a_refused_model_is_not_published() {
        let dir = tempfile::tempdir().unwrap();
        let registry = CostRegistry::open(dir.path());
        let prior = CostModel::prior(1e6);
        let (kept, verdict) = registry.learn(&synthetic(1, 1, 0.1), &prior).unwrap();
        assert!(!verdict.accepted && kept == prior && registry.numbers().unwrap().is_empty());
        let evidence = CostEvidence { parent: 0, migrations: Vec::new(), verdict };
        let error = registry.publish(kept, &evidence).unwrap_err();
        assert!(error.to_string().contains("cannot be both learned from"), "{error}");
    }

    #[test]
    fn a_broken_file_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let registry = CostRegistry::open(dir.path());
        registry.learn(&synthetic(20, 1, 0.1), &CostModel::prior(1e6)).unwrap();
        let path = dir.path().join("cost/1/model.json");
        fs::write(&path, "{\"number\": 1").unwrap();
        let error = registry.latest().unwrap_err().to_string();
        assert!(error.contains("model.json is no cost model; remove the folder"), "{error}");
    }
}
