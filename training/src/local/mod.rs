//! Models of single series from other people's libraries: feature `prophet`, which is off by default because what it
//! brings along (a WebAssembly runtime for Prophet's model) is larger than all the rest.

#[cfg(feature = "prophet")]
mod mstl;
#[cfg(feature = "prophet")]
pub(crate) mod prophet;

use foreshard_model::{ForecastSpec, Forecaster};

use crate::TrainError;

/// Whether Prophet and MSTL are built in.
pub const PROPHET: bool = cfg!(feature = "prophet");

/// MSTL with exponential smoothing, which is fitted anew in every context.
///
/// # Errors
/// [`TrainError::NotBuilt`] without the feature `prophet`.
#[cfg(feature = "prophet")]
pub fn mstl(spec: ForecastSpec) -> Result<Box<dyn Forecaster>, TrainError> {
    Ok(Box::new(mstl::Mstl::new(spec)))
}

/// MSTL with exponential smoothing, which is fitted anew in every context.
///
/// # Errors
/// [`TrainError::NotBuilt`] without the feature `prophet`.
#[cfg(not(feature = "prophet"))]
pub fn mstl(_spec: ForecastSpec) -> Result<Box<dyn Forecaster>, TrainError> {
    Err(TrainError::NotBuilt { model: "mstl" })
}
