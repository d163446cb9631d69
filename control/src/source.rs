//! Where the loop gets its future from: the serving process, behind a trait so that its absence can be tested.

use async_trait::async_trait;
use foreshard_api::{ClientError, ForecastClient, IngestSummary, ScenarioQuery, SeriesProvenance};
use foreshard_domain::{Observation, Product, ScenarioSet};

/// What the loop asks of serving.
#[async_trait]
pub trait ForecastSource: Send + Sync {
    /// Hands observations over; when this returns they are in serving's log.
    ///
    /// # Errors
    /// [`ClientError`] if serving cannot be reached or refuses the call.
    async fn ingest(&self, rows: Vec<Observation>) -> Result<IngestSummary, ClientError>;

    /// Joint sample paths of all shards, and where each series' forecast comes from.
    ///
    /// # Errors
    /// [`ClientError`] if serving cannot be reached or refuses the call.
    async fn scenarios(&self, query: &ScenarioQuery) -> Result<(ScenarioSet, Vec<SeriesProvenance>), ClientError>;
}

#[async_trait]
impl ForecastSource for ForecastClient {
    async fn ingest(&self, rows: Vec<Observation>) -> Result<IngestSummary, ClientError> {
        ForecastClient::ingest(self, rows).await
    }

    async fn scenarios(&self, query: &ScenarioQuery) -> Result<(ScenarioSet, Vec<SeriesProvenance>), ClientError> {
        ForecastClient::scenarios(self, query).await
    }
}

/// The query for all shards' scenarios.
pub(crate) fn all_shards(product: Product, scenarios: usize, seed: u64) -> ScenarioQuery {
    ScenarioQuery { shards: Vec::new(), product, scenarios, seed }
}
