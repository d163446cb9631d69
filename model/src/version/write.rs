//! Writing a version folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use foreshard_domain::{Metric, ModelVersion, Timestamp};
use sha2::{Digest, Sha256};

use super::{CALIBRATION, CARD, MANIFEST, REPORT_HTML, REPORT_JSON, TEMPLATES, WEIGHTS};
use super::{Calibrations, JudgedSpan, Manifest, ProductManifest, SCHEMA, VersionError};
use crate::learned::learned_bytes;
use crate::templates_file::templates_bytes;
use crate::{Kernel, Learned, ModelKind, RankTemplates, TrainedParts};

/// How values are scaled, for the manifest.
const SCALING: &str =
    "z = (x - mean of the last 7 seasons) / (their deviation + .05 deviation + .001 mean size of up to 28)";
/// What computes it, for the manifest.
const PROGRAM: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));

/// Everything that goes into a version folder.
#[derive(Debug, Clone)]
pub struct VersionParts {
    /// Name of the model.
    pub model: String,
    /// Number of the version.
    pub number: u64,
    /// What it forecasts; at least one product.
    pub products: Vec<VersionProduct>,
    /// Metrics that it was trained on.
    pub metrics: Vec<Metric>,
    /// First moment of the data.
    pub trained_from: Timestamp,
    /// First moment after the data.
    pub trained_until: Timestamp,
    /// SHA-256 of the data's content.
    pub data_fingerprint: String,
    /// Seed of everything random.
    pub seed: u64,
    /// The version it was warm-started from.
    pub parent: Option<ModelVersion>,
    /// Evaluation for programs.
    pub report_json: String,
    /// Evaluation for people.
    pub report_html: String,
    /// What the model is, is for and is not for.
    pub card_md: String,
}

/// One product that goes into a version folder.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionProduct {
    /// What was learned, and its calibration.
    pub trained: TrainedParts,
    /// How errors hang together, if known.
    pub templates: Option<RankTemplates>,
    /// What it was judged on, if it was.
    pub judged: Option<JudgedSpan>,
}

/// The prefix of a member's tensors.
pub(crate) fn prefix(product: &str, member: usize) -> String {
    format!("{product}.{member}")
}

pub(super) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes a version folder: a folder beside it first, every file synced, then one rename. Nobody ever sees half of it, and
/// what stands already is never touched.
///
/// # Errors
/// [`VersionError`] if the folder exists, a product cannot be used, or the disk refuses.
pub fn write_version(dir: &Path, parts: &VersionParts) -> Result<Manifest, VersionError> {
    if dir.exists() {
        return Err(VersionError::Exists { path: dir.to_owned() });
    }
    check(parts)?;
    let (files, manifest) = render(parts)?;
    let parent = dir.parent().unwrap_or(Path::new("."));
    let staging = parent.join(format!(".{}.partial", dir.file_name().unwrap_or_default().to_string_lossy()));
    if staging.exists() {
        // Left behind by a writer that was killed; no reader knows it.
        fs::remove_dir_all(&staging).map_err(io("remove", &staging))?;
    }
    fs::create_dir_all(&staging).map_err(io("create", &staging))?;
    for (name, bytes) in &files {
        write_synced(&staging.join(name), bytes)?;
    }
    sync_folder(&staging)?;
    if dir.exists() {
        return Err(VersionError::Exists { path: dir.to_owned() });
    }
    fs::rename(&staging, dir).map_err(io("rename", &staging))?;
    sync_folder(parent)?;
    Ok(manifest)
}

pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> VersionError {
    let path: PathBuf = path.to_owned();
    move |source| VersionError::Io { what, path, source }
}

fn check(parts: &VersionParts) -> Result<(), VersionError> {
    let wrong = |product: &str, problem: String| Err(VersionError::Product { product: product.to_owned(), problem });
    let mut names = BTreeSet::new();
    for VersionProduct { trained, templates, .. } in &parts.products {
        if !names.insert(&trained.name) {
            return wrong(&trained.name, "it occurs twice".to_owned());
        }
        if let Some(problem) = trained.spec.problems().first() {
            return wrong(&trained.name, problem.to_string());
        }
        if let Some(problem) = trained.learned.problem(&trained.spec) {
            return wrong(&trained.name, problem);
        }
        if trained.learned.kind() != kind(parts) {
            let problem = format!("it is of kind {}, others are of {}", trained.learned.kind(), kind(parts));
            return wrong(&trained.name, problem);
        }
        if templates.as_ref().is_some_and(|t| t.horizon() != trained.spec.horizon) {
            return wrong(&trained.name, "its templates belong to another horizon".to_owned());
        }
    }
    if names.is_empty() { wrong("(none)", "a version needs at least one product".to_owned()) } else { Ok(()) }
}

/// The kind of all products.
fn kind(parts: &VersionParts) -> ModelKind {
    parts.products.first().map_or(ModelKind::Lstm, |product| product.trained.learned.kind())
}

type Files = BTreeMap<&'static str, Vec<u8>>;

fn render(parts: &VersionParts) -> Result<(Files, Manifest), VersionError> {
    let mut calibrations = Calibrations::default();
    let mut templates: BTreeMap<String, &RankTemplates> = BTreeMap::new();
    for product in &parts.products {
        let VersionProduct { trained, templates: own, .. } = product;
        calibrations.widths.extend(trained.widths.clone().map(|w| (trained.name.clone(), w)));
        calibrations.risk.insert(trained.name.clone(), trained.risk);
        if !trained.events.is_empty() {
            calibrations.events.insert(trained.name.clone(), trained.events.clone());
        }
        templates.extend(own.as_ref().map(|t| (trained.name.clone(), t)));
    }
    let learned = parts.products.iter().map(|product| (product.trained.name.as_str(), &product.trained.learned));
    let json = |source| VersionError::Manifest { path: MANIFEST.into(), source };
    let mut files = Files::from([
        (WEIGHTS, learned_bytes(learned)?),
        (CALIBRATION, serde_json::to_vec_pretty(&calibrations).map_err(json)?),
        (TEMPLATES, templates_bytes(&templates)?),
        (REPORT_JSON, parts.report_json.clone().into_bytes()),
        (REPORT_HTML, parts.report_html.clone().into_bytes()),
        (CARD, parts.card_md.clone().into_bytes()),
    ]);
    let manifest = manifest(parts, files.iter().map(|(name, bytes)| ((*name).to_owned(), checksum(bytes))).collect());
    files.insert(MANIFEST, serde_json::to_vec_pretty(&manifest).map_err(json)?);
    Ok((files, manifest))
}

/// What computed it, or would have: a kernel that is not there has already failed the fit.
fn kernel(kind: ModelKind) -> String {
    let kernel = match kind {
        ModelKind::Lstm => Kernel::chosen().map_or_else(|error| error.to_string(), Kernel::name),
        ModelKind::Ridge | ModelKind::Prophet => "plain".to_owned(),
    };
    let library = if kind == ModelKind::Lstm { "candle-cpu f32" } else { "f32" };
    format!("{library}, {PROGRAM}, {kernel} on {}", std::env::consts::ARCH)
}

/// Whether programs that read the schema before this one would not understand a product.
fn needs_newest(trained: &TrainedParts) -> bool {
    matches!(trained.learned, Learned::Blend(_)) || trained.events.close_loads()
}

fn manifest(parts: &VersionParts, checksums: BTreeMap<String, String>) -> Manifest {
    let product = |VersionProduct { trained, judged, .. }: &VersionProduct| ProductManifest {
        name: trained.name.clone(),
        spec: trained.spec.clone(),
        members: trained.learned.networks().iter().map(|m| m.architecture).collect(),
        prophet: match &trained.learned {
            Learned::Prophet(prophet) => Some(prophet.shape().clone()),
            Learned::Lstm(_) | Learned::Blend(_) | Learned::Ridge(_) => None,
        },
        ridge_share: match &trained.learned {
            Learned::Blend(blend) => Some(blend.share),
            Learned::Lstm(_) | Learned::Ridge(_) | Learned::Prophet(_) => None,
        },
        judged: *judged,
    };
    Manifest {
        schema: if parts.products.iter().any(|p| needs_newest(&p.trained)) { SCHEMA } else { SCHEMA - 1 },
        kind: kind(parts),
        model: parts.model.clone(),
        number: parts.number,
        products: parts.products.iter().map(product).collect(),
        metrics: parts.metrics.clone(),
        scaling: SCALING.to_owned(),
        trained_from: parts.trained_from,
        trained_until: parts.trained_until,
        data_fingerprint: parts.data_fingerprint.clone(),
        seed: parts.seed,
        kernel: kernel(kind(parts)),
        parent: parts.parent.clone(),
        crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        checksums,
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), VersionError> {
    let mut file = File::create_new(path).map_err(io("create", path))?;
    file.write_all(bytes).map_err(io("write", path))?;
    file.sync_all().map_err(io("sync", path))
}

/// Makes the names in a folder durable.
fn sync_folder(path: &Path) -> Result<(), VersionError> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io("sync", path))
}
