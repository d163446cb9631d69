//! What a version says of itself.

use std::collections::BTreeMap;

use foreshard_domain::{Metric, ModelVersion, RiskCalibrations, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Architecture, EventEffects, ForecastSpec, ModelKind, ProphetShape, WidthFactors};

/// Newest schema of version folders that this program reads; it reads the older ones too. 1 had networks alone; 3 may have
/// linear maps beside them and events that leave less than a tenth of a load, and what needs neither is written as 2.
pub const SCHEMA: u32 = 3;

/// `manifest.json`: everything that is needed to use a version, and the checksums of its other files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Schema of the folder.
    pub schema: u32,
    /// The kind of model, which is that of all products.
    #[serde(default)]
    pub kind: ModelKind,
    /// Name of the model.
    pub model: String,
    /// Number of the version.
    pub number: u64,
    /// What it forecasts.
    pub products: Vec<ProductManifest>,
    /// Metrics that it was trained on.
    pub metrics: Vec<Metric>,
    /// How values are scaled, in words.
    pub scaling: String,
    /// First moment of the data it was trained on.
    pub trained_from: Timestamp,
    /// First moment after the data it was trained on: no evaluation may begin before.
    pub trained_until: Timestamp,
    /// SHA-256 of the data's content.
    pub data_fingerprint: String,
    /// Seed of everything random.
    pub seed: u64,
    /// What computed it; bits are equal only for the same kernel on the same machine.
    pub kernel: String,
    /// The version it was warm-started from.
    pub parent: Option<ModelVersion>,
    /// Version of the program that wrote it.
    pub crate_version: String,
    /// SHA-256 (hex) of each other file, by name.
    pub checksums: BTreeMap<String, String>,
}

/// One product of a version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProductManifest {
    /// `next_hours`, `next_day`, or the name of a protocol.
    pub name: String,
    /// What it forecasts.
    pub spec: ForecastSpec,
    /// Sizes of its networks, whose quantiles are averaged; tensors are named `<name>.<member>.<parameter>`. Empty for a
    /// model without networks.
    pub members: Vec<Architecture>,
    /// The share of linear maps in the quantiles of the networks, if they have one; their tensors are named
    /// `<name>.ridge.<parameter>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ridge_share: Option<f32>,
    /// Sizes and series of Prophet's fits; tensor `<name>.prophet` has a row for each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prophet: Option<ProphetShape>,
    /// What it was judged on before it was written; not known of a version that was not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judged: Option<JudgedSpan>,
}

/// The part of a history that a product was judged on: none of it was learned from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgedSpan {
    /// Where it begins: no series was learned from at or after this moment.
    pub from: Timestamp,
    /// Where the history ended.
    pub until: Timestamp,
}

/// `calibration.json`: what is done to the quantiles of each product.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrations {
    /// Factors by product; a product left out is not corrected.
    pub widths: BTreeMap<String, WidthFactors>,
    /// What known events do, by product; a product left out knows of none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<String, EventEffects>,
    /// Corrections of probabilities, by product; those of a product left out stay as they are.
    #[serde(default)]
    pub risk: BTreeMap<String, RiskCalibrations>,
}

impl Manifest {
    /// Model and number.
    pub fn id(&self) -> ModelVersion {
        ModelVersion { model: self.model.clone(), number: self.number }
    }
}
