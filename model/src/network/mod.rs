//! The network: a patched LSTM encoder, a parallel decoder over lag features, quantiles that cannot cross.

mod architecture;
mod decoder;
mod encoder;
mod forward;
mod operations;
mod weights;

pub use architecture::{Architecture, Parameter};
pub use decoder::{Goals, pinball_loss};
pub use encoder::Kernel;
pub use forward::{Batch, DropoutMasks, NetworkError, Outputs, TENSOR_LEVELS, WeightTensors, forward};
pub(crate) use forward::{LEAST_SPREAD, MEDIAN, MIXTURE_GAIN};
pub(crate) use operations::{slice, values};
pub use weights::{Weights, WeightsError, read_weights, weights_bytes};
pub(crate) use weights::{parse, read_network, read_tensor, tensors_bytes};
