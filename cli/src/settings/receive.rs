//! What Prometheus sends to the serving process.

use foreshard_datasets::prometheus::ReceivedSeries;
use serde::{Deserialize, Serialize};

/// `[serve.remote_write]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteWriteSettings {
    /// Series that are taken, and what they become; none if empty.
    pub series: Vec<ReceivedSeries>,
}
