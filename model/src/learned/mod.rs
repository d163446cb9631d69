//! What a product learned, whatever the kind of its model, and its tensors.

mod prophet;
mod ridge;

pub use prophet::{Prophet, ProphetSeries, ProphetShape, SeriesFit, waves_at};
pub use ridge::{RIDGE_INPUTS, Ridge};

use std::collections::BTreeMap;
use std::fmt;

use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::network::{parse, read_network, read_tensor, tensors_bytes};
use crate::version::{ProductManifest, prefix};
use crate::{Batch, ForecastSpec, TENSOR_LEVELS, Weights, WeightsError};

/// The kind of a model: what its version folder holds, and who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Networks with quantile heads.
    #[default]
    Lstm,
    /// Linear in the same features, one map for each step.
    Ridge,
    /// Trend and seasons of each series by itself.
    Prophet,
}

impl ModelKind {
    /// Its name in files, tables and arguments.
    pub const fn name(self) -> &'static str {
        match self {
            ModelKind::Lstm => "lstm",
            ModelKind::Ridge => "ridge",
            ModelKind::Prophet => "prophet",
        }
    }
}

impl fmt::Display for ModelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a product learned.
#[derive(Debug, Clone, PartialEq)]
pub enum Learned {
    /// Networks whose quantiles are averaged; at least one.
    Lstm(Vec<Weights>),
    /// Such networks with linear maps beside them.
    Blend(Blend),
    /// A linear map for each step, and quantiles of its errors.
    Ridge(Ridge),
    /// Trend and seasons of each series.
    Prophet(Prophet),
}

/// Networks, and linear maps that have a share in what they say: where networks are at their end, as on loads that wander
/// without any rhythm, maps may know better, and what two know of each other's errors is worth something.
#[derive(Debug, Clone, PartialEq)]
pub struct Blend {
    /// Networks whose quantiles are averaged; at least one.
    pub networks: Vec<Weights>,
    /// The maps.
    pub ridge: Ridge,
    /// Their share in each quantile, over 0 and below 1; the rest is the networks'.
    pub share: f32,
}

impl Blend {
    /// Gives the maps their share in the rows that the networks have for a batch with every step of the horizon.
    pub(crate) fn mix(&self, rows: &mut [[f32; TENSOR_LEVELS.len()]], batch: &Batch) {
        for (row, maps) in rows.iter_mut().zip(self.ridge.rows(batch)) {
            for (q, map) in row.iter_mut().zip(maps) {
                *q += self.share * (map - *q);
            }
        }
    }
}

/// A tensor under its name, row-major.
pub(crate) struct Tensor<'a> {
    pub(crate) name: String,
    pub(crate) shape: (usize, usize),
    pub(crate) values: &'a [f32],
}

impl Learned {
    /// Which kind of model it belongs to.
    pub fn kind(&self) -> ModelKind {
        match self {
            Learned::Lstm(_) | Learned::Blend(_) => ModelKind::Lstm,
            Learned::Ridge(_) => ModelKind::Ridge,
            Learned::Prophet(_) => ModelKind::Prophet,
        }
    }

    /// Its networks; none for a model without.
    pub fn networks(&self) -> &[Weights] {
        match self {
            Learned::Lstm(members) => members,
            Learned::Blend(blend) => &blend.networks,
            Learned::Ridge(_) | Learned::Prophet(_) => &[],
        }
    }

    /// What keeps it from forecasting, if anything does.
    pub(crate) fn problem(&self, spec: &ForecastSpec) -> Option<String> {
        match self {
            Learned::Lstm(members) => members.is_empty().then(|| "it has no network".to_owned()),
            Learned::Blend(Blend { networks, ridge, share }) => {
                if networks.is_empty() || !(*share > 0.0 && *share < 1.0) {
                    let n = networks.len();
                    return Some(format!("it blends {n} networks with a share of {share} for its linear maps"));
                }
                ridge.problem(spec.horizon)
            }
            Learned::Ridge(ridge) => ridge.problem(spec.horizon),
            Learned::Prophet(prophet) => prophet.problem(),
        }
    }

    /// Its tensors as they stand in the version folder.
    fn tensors(&self, product: &str) -> Vec<Tensor<'_>> {
        match self {
            Learned::Lstm(members) => of_networks(members, product).collect(),
            Learned::Blend(blend) => {
                of_networks(&blend.networks, product).chain(blend.ridge.tensors(product)).collect()
            }
            Learned::Ridge(ridge) => ridge.tensors(product),
            Learned::Prophet(prophet) => vec![prophet.tensor(product)],
        }
    }

    fn read(file: &SafeTensors<'_>, kind: ModelKind, product: &ProductManifest) -> Result<Self, WeightsError> {
        let name = &product.name;
        Ok(match kind {
            ModelKind::Lstm => {
                let members = product.members.iter().enumerate();
                let read = |(i, sizes): (usize, &_)| read_network(file, &prefix(name, i), *sizes);
                let networks = members.map(read).collect::<Result<_, _>>()?;
                match product.ridge_share {
                    None => Learned::Lstm(networks),
                    Some(share) => Learned::Blend(Blend { networks, ridge: read_ridge(file, product)?, share }),
                }
            }
            ModelKind::Ridge => Learned::Ridge(read_ridge(file, product)?),
            ModelKind::Prophet => {
                let shape = product.prophet.clone().unwrap_or_default();
                let tensor = (shape.series.len(), shape.width());
                // A tensor of no rows has no place in the file.
                let rows = if tensor.0 == 0 { Vec::new() } else { read_tensor(file, &Prophet::name_of(name), tensor)? };
                Learned::Prophet(Prophet::from_rows(shape, &rows))
            }
        })
    }
}

fn of_networks<'a>(networks: &'a [Weights], product: &str) -> impl Iterator<Item = Tensor<'a>> {
    networks.iter().enumerate().flat_map(move |(i, weights)| weights.tensors(&prefix(product, i)))
}

fn read_ridge(file: &SafeTensors<'_>, product: &ProductManifest) -> Result<Ridge, WeightsError> {
    Ridge::read(product.spec.horizon, |tensor, shape| read_tensor(file, &format!("{}.{tensor}", product.name), shape))
}

/// The bytes of a safetensors file with all tensors of these products; equal parts, equal bytes.
pub(crate) fn learned_bytes<'a>(
    products: impl IntoIterator<Item = (&'a str, &'a Learned)>,
) -> Result<Vec<u8>, WeightsError> {
    let mut tensors: Vec<Tensor<'_>> =
        products.into_iter().flat_map(|(product, learned)| learned.tensors(product)).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors_bytes(&tensors)
}

/// Reads what the products learned out of the bytes of a safetensors file.
pub(crate) fn read_learned(
    bytes: &[u8],
    kind: ModelKind,
    products: &[ProductManifest],
) -> Result<BTreeMap<String, Learned>, WeightsError> {
    let file = parse(bytes)?;
    products.iter().map(|product| Ok((product.name.clone(), Learned::read(&file, kind, product)?))).collect()
}
