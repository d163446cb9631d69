//! What forecasts are made from: the newest past of every shard, in memory, on the grid.

mod ring;
mod shard;
mod store;

pub(crate) use shard::METRICS;
pub(crate) use store::{ContextStore, NothingToForecast, SeriesContext, SeriesKey, Wanted};
