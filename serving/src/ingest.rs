//! What was measured comes in here: checked, logged, seen by forecasts, and put into the history.

mod check;
mod frames;
mod ingestor;
mod log;

pub(crate) use check::{Arrival, checked, reason, sound};
pub use ingestor::IngestError;
pub(crate) use ingestor::Ingestor;
pub use log::LogError;
