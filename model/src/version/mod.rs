//! The version folder: immutable, checksummed, written at one stroke.

mod load;
mod manifest;
mod write;

pub use load::{Version, without_model};
pub use manifest::{Calibrations, JudgedSpan, Manifest, ProductManifest, SCHEMA};
pub(crate) use write::prefix;
pub use write::{VersionParts, VersionProduct, write_version};

use std::path::PathBuf;

use crate::templates_file::TemplatesFileError;
use crate::{LanesError, NetworkError, WeightsError};

/// Why a version folder could not be written or loaded.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The folder is there already; versions are never changed.
    #[error("version folder {} already exists and versions are immutable; take the next number", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A file or folder could not be read or written.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The manifest cannot be understood.
    #[error("manifest {} is damaged", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The folder was written by a newer program.
    #[error("version folder {} has schema {found}, this program reads up to {known}; update foreshard", path.display())]
    NewerSchema {
        /// The folder.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest this program reads.
        known: u32,
    },
    /// A file named by the manifest is not there.
    #[error("version file {} is missing; restore it from a backup or roll back", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// A file is not what the manifest says.
    #[error("version file {} is damaged: sha-256 is {found}, manifest says {want}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// What it has.
        found: String,
        /// What it should have.
        want: String,
    },
    /// The manifest does not name a file that every version has.
    #[error("manifest {} names no checksum for {file}", path.display())]
    Unchecked {
        /// The manifest.
        path: PathBuf,
        /// The file.
        file: &'static str,
    },
    /// Something in the parts or the manifest cannot be used.
    #[error("product {product} of the version cannot be used: {problem}")]
    Product {
        /// Which product.
        product: String,
        /// What is wrong.
        problem: String,
    },
    /// The weights do not fit.
    #[error("weights of the version cannot be used")]
    Weights(#[from] WeightsError),
    /// The networks do not fit.
    #[error("networks of the version cannot be used")]
    Network(#[from] NetworkError),
    /// The templates do not fit.
    #[error("templates of the version cannot be used")]
    Templates(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Threads could not be started.
    #[error("cannot start the threads of the version")]
    Lanes(#[from] LanesError),
}

impl From<TemplatesFileError> for VersionError {
    fn from(source: TemplatesFileError) -> Self {
        Self::Templates(Box::new(source))
    }
}

/// Names of the files.
const WEIGHTS: &str = "weights.safetensors";
const CALIBRATION: &str = "calibration.json";
const TEMPLATES: &str = "templates.parquet";
const REPORT_JSON: &str = "report.json";
const REPORT_HTML: &str = "report.html";
const CARD: &str = "card.md";
const MANIFEST: &str = "manifest.json";
