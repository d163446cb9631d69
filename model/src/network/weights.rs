//! Weights as plain numbers, and their safetensors form.

use std::collections::BTreeMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::{Architecture, NetworkError, Parameter};
use crate::learned::Tensor;

/// All numbers of one network, in the order of [`Architecture::parameters`].
#[derive(Debug, Clone, PartialEq)]
pub struct Weights {
    /// The sizes.
    pub architecture: Architecture,
    /// [`Architecture::size`] numbers.
    pub values: Vec<f32>,
}

impl Weights {
    /// An error unless the numbers fill the parameters.
    pub(super) fn check(&self) -> Result<(), NetworkError> {
        let (want, got) = (self.architecture.size(), self.values.len());
        if want == got { Ok(()) } else { Err(NetworkError::Shape { what: "weights", want, got }) }
    }

    /// The tensors under `<prefix>.<name>`; the last one short of numbers if there are too few.
    pub(crate) fn tensors(&self, prefix: &str) -> Vec<Tensor<'_>> {
        let mut rest = self.values.as_slice();
        let tensor = |parameter: Parameter| {
            let (values, after) = rest.split_at(parameter.len().min(rest.len()));
            rest = after;
            Tensor { name: format!("{prefix}.{}", parameter.name), shape: parameter.shape, values }
        };
        self.architecture.parameters().into_iter().map(tensor).collect()
    }

    /// The numbers of some parameters, one after the other, in the order of [`Architecture::parameters`].
    pub(super) fn flat(&self, names: &[&str]) -> Vec<f32> {
        let mut rest = self.values.as_slice();
        let mut flat = Vec::new();
        for parameter in self.architecture.parameters() {
            let (own, after) = rest.split_at(parameter.len().min(rest.len()));
            rest = after;
            if names.contains(&parameter.name) {
                flat.extend_from_slice(own);
            }
        }
        flat
    }
}

/// Why bytes are no weights of the expected networks.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes are no safetensors file.
    #[error("weights are no valid safetensors file")]
    Format(#[source] safetensors::SafeTensorError),
    /// A tensor is not there.
    #[error("weights lack tensor {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A tensor has another shape or type than the manifest's sizes ask for.
    #[error("tensor {name} should be f32 {want:?} but is {got}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape wanted.
        want: (usize, usize),
        /// Type and shape found.
        got: String,
    },
    /// A number is not finite.
    #[error("tensor {name} holds a number that is not finite")]
    NotFinite {
        /// Its name.
        name: String,
    },
}

/// The bytes of a safetensors file with the tensors of each network under `<prefix>.<name>`; equal weights, equal bytes.
///
/// # Errors
/// [`WeightsError`] if the numbers do not fill the parameters.
pub fn weights_bytes(networks: &BTreeMap<String, Weights>) -> Result<Vec<u8>, WeightsError> {
    tensors_bytes(&networks.iter().flat_map(|(prefix, weights)| weights.tensors(prefix)).collect::<Vec<_>>())
}

/// The bytes of a safetensors file with these tensors, as 32-bit floats.
pub(crate) fn tensors_bytes(tensors: &[Tensor<'_>]) -> Result<Vec<u8>, WeightsError> {
    let mut buffers: Vec<Vec<u8>> = Vec::with_capacity(tensors.len());
    for Tensor { name, shape, values } in tensors {
        if shape.0 * shape.1 != values.len() {
            let got = format!("{} numbers", values.len());
            return Err(WeightsError::Shape { name: name.clone(), want: *shape, got });
        }
        buffers.push(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    let mut views = Vec::with_capacity(buffers.len());
    for (Tensor { name, shape, .. }, bytes) in tensors.iter().zip(&buffers).filter(|(_, bytes)| !bytes.is_empty()) {
        let view = TensorView::new(Dtype::F32, vec![shape.0, shape.1], bytes).map_err(WeightsError::Format)?;
        views.push((name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(WeightsError::Format)
}

/// Reads the networks of the given prefixes and sizes out of the bytes of a safetensors file.
///
/// # Errors
/// [`WeightsError`] if the file is damaged, or a tensor is missing, misshapen or not finite.
pub fn read_weights(
    bytes: &[u8],
    networks: &BTreeMap<String, Architecture>,
) -> Result<BTreeMap<String, Weights>, WeightsError> {
    let file = parse(bytes)?;
    networks.iter().map(|(prefix, sizes)| Ok((prefix.clone(), read_network(&file, prefix, *sizes)?))).collect()
}

/// The tensors in the bytes of a safetensors file.
pub(crate) fn parse(bytes: &[u8]) -> Result<SafeTensors<'_>, WeightsError> {
    SafeTensors::deserialize(bytes).map_err(WeightsError::Format)
}

/// Reads the network of a prefix.
pub(crate) fn read_network(
    file: &SafeTensors<'_>,
    prefix: &str,
    architecture: Architecture,
) -> Result<Weights, WeightsError> {
    let mut values = Vec::with_capacity(architecture.size());
    for parameter in architecture.parameters() {
        values.extend(read_tensor(file, &format!("{prefix}.{}", parameter.name), parameter.shape)?);
    }
    Ok(Weights { architecture, values })
}

/// Reads a tensor of 32-bit floats that has to have this shape.
pub(crate) fn read_tensor(file: &SafeTensors<'_>, name: &str, want: (usize, usize)) -> Result<Vec<f32>, WeightsError> {
    let name = name.to_owned();
    let Ok(view) = file.tensor(&name) else { return Err(WeightsError::Missing { name }) };
    if view.dtype() != Dtype::F32 || view.shape() != [want.0, want.1] {
        let got = format!("{:?} {:?}", view.dtype(), view.shape());
        return Err(WeightsError::Shape { name, want, got });
    }
    let (numbers, _) = view.data().as_chunks::<4>();
    let values: Vec<f32> = numbers.iter().map(|b| f32::from_le_bytes(*b)).collect();
    if values.iter().any(|v| !v.is_finite()) { Err(WeightsError::NotFinite { name }) } else { Ok(values) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    fn networks() -> BTreeMap<String, Weights> {
        let sizes = Architecture { patch_inputs: 27, encoder: 4, decoder: 8 };
        let made = |seed| sizes.initial(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed));
        BTreeMap::from([("next_day.0".to_owned(), made(1)), ("next_hours.0".to_owned(), made(2))])
    }

    #[test]
    fn bytes_go_both_ways_and_are_repeatable() {
        let networks = networks();
        let bytes = weights_bytes(&networks).unwrap();
        assert_eq!(bytes, weights_bytes(&networks).unwrap());
        let sizes = networks.iter().map(|(k, w)| (k.clone(), w.architecture)).collect();
        assert_eq!(read_weights(&bytes, &sizes).unwrap(), networks);
    }

    #[test]
    fn damage_is_named() {
        let mut networks = networks();
        let sizes: BTreeMap<String, Architecture> = networks.iter().map(|(k, w)| (k.clone(), w.architecture)).collect();
        let bytes = weights_bytes(&networks).unwrap();
        assert!(matches!(read_weights(&bytes[..50], &sizes), Err(WeightsError::Format(_))));
        let more = BTreeMap::from([("other.0".to_owned(), sizes["next_day.0"])]);
        let error = read_weights(&bytes, &more).unwrap_err();
        assert!(error.to_string().contains("other.0.encoder.patch.weight"), "{error}");
        let wide = BTreeMap::from([("next_day.0".to_owned(), Architecture { decoder: 9, ..sizes["next_day.0"] })]);
        assert!(matches!(read_weights(&bytes, &wide), Err(WeightsError::Shape { .. })));
        networks.get_mut("next_day.0").unwrap().values[0] = f32::NAN;
        let bytes = weights_bytes(&networks).unwrap();
        assert!(matches!(read_weights(&bytes, &sizes), Err(WeightsError::NotFinite { .. })));
        networks.get_mut("next_day.0").unwrap().values.pop();
        assert!(weights_bytes(&networks).is_err());
    }
}
