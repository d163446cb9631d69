//! A typed client of `ForecastService`.

use foreshard_domain::{
    ModelVersion, Observation, Provenance, Resource, Risk, ScenarioSet, SeriesForecast, ShardId, Step, Timestamp,
};
use futures::{Stream, StreamExt as _};
use std::error::Error;
use std::time::Duration;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;

use crate::connect::channel;
use crate::convert::timestamp_from_wire;
use crate::v1::forecast_service_client::ForecastServiceClient;
use crate::{
    ClientError, Credentials, ForecastQuery, MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES, NodeLoad, NodeQuery, RiskQuery,
    ScenarioAssembler, ScenarioQuery, WireError, v1,
};

/// Deadline of a call unless [`ForecastClient::with_timeout`] sets another.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a question is asked again that a closing connection had not brought.
const ASKED_AGAIN: usize = 3;

/// Rows in one message of an ingest stream: about 200 KiB, one fsync of the server's log.
const ROWS_PER_MESSAGE: usize = 2000;

/// The risk that one load of one shard is over its limit at any step of the window.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardRisk {
    /// Whose.
    pub shard: ShardId,
    /// Load on what.
    pub resource: Resource,
    /// The risk.
    pub risk: Risk,
    /// Grid time of the last complete step before the window.
    pub issued_at: Timestamp,
    /// Length of a step.
    pub step: Step,
    /// Where it comes from.
    pub provenance: Provenance,
}

/// Where the paths of one load in a scenario set come from.
#[derive(Debug, Clone, PartialEq)]
pub struct SeriesProvenance {
    /// Whose.
    pub shard: ShardId,
    /// Load on what.
    pub resource: Resource,
    /// Where from.
    pub provenance: Provenance,
}

/// What became of ingested rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IngestSummary {
    /// Rows that are on the server's disk, duplicates included.
    pub accepted: u64,
    /// Rows among them that replaced one of the same shard and time.
    pub duplicates: u64,
    /// Rows that were not taken, by shard, with the reason; at most the first thousand.
    pub refused: Vec<(String, String)>,
    /// How many rows were not taken in all.
    pub refused_total: u64,
}

/// One version of the server's registry.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Name of the model's folder.
    pub model: String,
    /// Number of the version folder.
    pub number: u64,
    /// `champion`, `challenger`, `last_good`.
    pub labels: Vec<String>,
    /// End of the data that it learned from; `None` if its manifest cannot be read.
    pub trained_until: Option<Timestamp>,
    /// Whether it answers requests now.
    pub loaded: bool,
    /// Why the server refused it when its turn came.
    pub refused: Option<String>,
}

/// A connection to a serving process. Cheap to clone; clones share the connection, which mends itself after a loss.
///
/// Every call has a deadline, which travels to the server: what expires there is not computed.
#[derive(Debug, Clone)]
pub struct ForecastClient {
    inner: ForecastServiceClient<Channel>,
    timeout: Duration,
    authorization: Option<MetadataValue<Ascii>>,
}

impl ForecastClient {
    /// Connects to `endpoint`, such as `http://127.0.0.1:7450`.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`] if it is no URI, [`ClientError::Connect`] if nobody answers there within 5 s.
    pub async fn connect(endpoint: &str) -> Result<Self, ClientError> {
        Self::connect_with(endpoint, &Credentials::default()).await
    }

    /// The same with TLS (`https://`), a certificate of the client's own, or a token.
    ///
    /// # Errors
    /// As [`ForecastClient::connect`]; [`ClientError::NoAuthority`] for `https` without an authority to trust,
    /// [`ClientError::Plain`] for a token that would leave this machine in plain and for certificates where there is no TLS,
    /// and [`ClientError::Token`] for a token that cannot be sent.
    pub async fn connect_with(endpoint: &str, credentials: &Credentials) -> Result<Self, ClientError> {
        let authorization = credentials.authorization()?;
        Ok(Self { authorization, ..Self::over(channel(endpoint, credentials).await?) })
    }

    /// A client over a channel that was set up elsewhere.
    pub fn over(channel: Channel) -> Self {
        let inner = ForecastServiceClient::new(channel)
            .max_encoding_message_size(MAX_REQUEST_BYTES)
            .max_decoding_message_size(MAX_RESPONSE_BYTES);
        Self { inner, timeout: DEFAULT_TIMEOUT, authorization: None }
    }

    /// The same connection with another deadline for each call (30 s without).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.timeout);
        if let Some(authorization) = &self.authorization {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        request
    }

    /// Asks, and asks again where the connection came to its end before the question was taken. Questions change nothing.
    async fn ask<T, F>(
        &self,
        method: &'static str,
        call: impl Fn(ForecastServiceClient<Channel>) -> F,
    ) -> Result<tonic::Response<T>, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let mut left = ASKED_AGAIN;
        loop {
            match call(self.inner.clone()).await {
                Err(status) if left > 0 && never_taken(&status) => left -= 1,
                answer => return answer.map_err(failed(method)),
            }
        }
    }

    /// Quantiles per shard and metric, ordered by both.
    ///
    /// # Errors
    /// [`ClientError::Call`] with `NotFound` if nothing was ever observed of any named shard, `InvalidArgument` for
    /// impossible levels, `FailedPrecondition` if nothing was observed at all, `ResourceExhausted` if the server is
    /// too busy; [`ClientError::Answer`] if the answer breaks a forecast's invariants.
    pub async fn forecast(&self, query: &ForecastQuery) -> Result<Vec<SeriesForecast>, ClientError> {
        let method = "Forecast";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(query.into());
                async move { to.forecast(request).await }
            })
            .await?;
        let series = answer.into_inner().series.into_iter().map(TryInto::try_into);
        series.collect::<Result<_, _>>().map_err(refused(method))
    }

    /// The same for any number of series, in parts as they are computed; all parts have the same origin.
    ///
    /// # Errors
    /// As [`ForecastClient::forecast`]; the stream's items fail if it breaks.
    pub async fn forecast_stream(
        &self,
        query: &ForecastQuery,
    ) -> Result<impl Stream<Item = Result<Vec<SeriesForecast>, ClientError>> + Send + use<>, ClientError> {
        let method = "ForecastStream";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(query.into());
                async move { to.forecast_stream(request).await }
            })
            .await?;
        Ok(answer.into_inner().map(move |part| series_of(method, part)))
    }

    /// The same now and whenever a new step is complete, without a deadline. It ends with an error when the server stops, or
    /// when the connection has come to its age: ask again.
    ///
    /// # Errors
    /// As [`ForecastClient::forecast_stream`].
    pub async fn watch(
        &self,
        query: &ForecastQuery,
    ) -> Result<impl Stream<Item = Result<Vec<SeriesForecast>, ClientError>> + Send + use<>, ClientError> {
        let method = "Watch";
        let answer = self
            .ask(method, |mut to| {
                let mut request = self.request(v1::ForecastRequest::from(query));
                request.metadata_mut().remove("grpc-timeout");
                async move { to.watch(request).await }
            })
            .await?;
        Ok(answer.into_inner().map(move |part| series_of(method, part)))
    }

    /// The risk of each shard and limited resource, ordered by both.
    ///
    /// # Errors
    /// As [`ForecastClient::forecast`]; `InvalidArgument` also without any limit.
    pub async fn risk(&self, query: &RiskQuery) -> Result<Vec<ShardRisk>, ClientError> {
        let method = "Risk";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(query.into());
                async move { to.risk(request).await }
            })
            .await?;
        let risks = answer.into_inner().risks.into_iter().map(TryInto::try_into);
        risks.collect::<Result<_, _>>().map_err(refused(method))
    }

    /// The loads of nodes, as placed and, if moves are asked about, as moved.
    ///
    /// # Errors
    /// [`ClientError::Call`] with `NotFound` for a node or shard of which nothing is known, `InvalidArgument` for impossible
    /// levels or a residual that would move.
    pub async fn node_forecast(&self, query: &NodeQuery) -> Result<Vec<NodeLoad>, ClientError> {
        let method = "NodeForecast";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(query.into());
                async move { to.node_forecast(request).await }
            })
            .await?;
        let loads = answer.into_inner().loads.into_iter().map(TryInto::try_into);
        loads.collect::<Result<_, _>>().map_err(refused(method))
    }

    /// Joint sample paths, and where those of each load come from.
    ///
    /// # Errors
    /// As [`ForecastClient::forecast`]; `InvalidArgument` also if the set would be larger than the server makes.
    pub async fn scenarios(&self, query: &ScenarioQuery) -> Result<(ScenarioSet, Vec<SeriesProvenance>), ClientError> {
        let method = "Scenarios";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(query.into());
                async move { to.scenarios(request).await }
            })
            .await?;
        let mut stream = answer.into_inner();
        let mut assembler = ScenarioAssembler::default();
        while let Some(message) = stream.message().await.map_err(failed(method))? {
            assembler.push(message).map_err(refused(method))?;
        }
        assembler.finish().map_err(refused(method))
    }

    /// Sends rows; returns once the accepted ones are on the server's disk. Sending rows again is harmless.
    ///
    /// # Errors
    /// [`ClientError::Call`]; it is unknown then which rows arrived, so send all of them again.
    pub async fn ingest(&self, rows: Vec<Observation>) -> Result<IngestSummary, ClientError> {
        self.ingest_stream(futures::stream::iter(rows)).await
    }

    /// The same for a stream of rows; the deadline holds for all of it together.
    ///
    /// # Errors
    /// As [`ForecastClient::ingest`].
    pub async fn ingest_stream(
        &self,
        rows: impl Stream<Item = Observation> + Send + 'static,
    ) -> Result<IngestSummary, ClientError> {
        let method = "Ingest";
        let batches = rows
            .chunks(ROWS_PER_MESSAGE)
            .map(|rows| v1::IngestRequest { rows: rows.iter().map(v1::Observation::from).collect() });
        let answer = self.inner.clone().ingest(self.request(batches)).await.map_err(failed(method))?.into_inner();
        Ok(IngestSummary {
            accepted: answer.accepted,
            duplicates: answer.duplicates,
            refused: answer.refused.into_iter().map(|row| (row.shard_id, row.reason)).collect(),
            refused_total: answer.refused_total,
        })
    }

    /// The versions of the served model, by rising number.
    ///
    /// # Errors
    /// [`ClientError::Call`] or [`ClientError::Answer`].
    pub async fn models(&self) -> Result<Vec<ModelInfo>, ClientError> {
        let method = "Models";
        let answer = self
            .ask(method, |mut to| {
                let request = self.request(v1::ModelsRequest {});
                async move { to.models(request).await }
            })
            .await?;
        let models = answer.into_inner().models.into_iter().map(TryInto::try_into);
        models.collect::<Result<_, _>>().map_err(refused(method))
    }
}

/// Whether the connection was closed before the server took the request: it asks clients to make new ones now and then
/// (HTTP/2 GOAWAY), and a request may be handed to an old one in that moment. It was then never sent, or is among those that
/// the server says it will not look at (RFC 9113, 6.8).
fn never_taken(status: &tonic::Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(status);
    while let Some(error) = cause {
        let unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let going = |e: &h2::Error| e.is_go_away() && e.is_remote() && e.reason() == Some(h2::Reason::NO_ERROR);
        if unsent || error.downcast_ref::<h2::Error>().is_some_and(going) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn series_of(
    method: &'static str,
    part: Result<v1::ForecastResponse, tonic::Status>,
) -> Result<Vec<SeriesForecast>, ClientError> {
    let part = part.map_err(failed(method))?;
    part.series.into_iter().map(TryInto::try_into).collect::<Result<_, _>>().map_err(refused(method))
}

fn failed(method: &'static str) -> impl Fn(tonic::Status) -> ClientError {
    move |status| ClientError::Call { method, source: Box::new(status) }
}

fn refused(method: &'static str) -> impl Fn(WireError) -> ClientError {
    move |source| ClientError::Answer { method, source }
}

impl From<&ModelInfo> for v1::ModelInfo {
    fn from(info: &ModelInfo) -> Self {
        Self {
            version: Some(v1::ModelVersion { model: info.model.clone(), number: info.number }),
            labels: info.labels.clone(),
            trained_until: info.trained_until.map(crate::timestamp_to_wire),
            loaded: info.loaded,
            refused: info.refused.clone().unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::ModelInfo> for ModelInfo {
    type Error = WireError;
    fn try_from(info: v1::ModelInfo) -> Result<Self, WireError> {
        let ModelVersion { model, number } = info.version.ok_or(WireError::Missing { field: "version" })?.into();
        let trained_until = match info.trained_until {
            None => None,
            some => Some(timestamp_from_wire("trained_until", some)?),
        };
        let refused = Some(info.refused).filter(|why| !why.is_empty());
        Ok(Self { model, number, labels: info.labels, trained_until, loaded: info.loaded, refused })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_info_goes_both_ways() {
        let info = ModelInfo {
            model: "load".into(),
            number: 3,
            labels: vec!["champion".into()],
            trained_until: Some(Timestamp::from_ms(1)),
            loaded: false,
            refused: Some("checksum".into()),
        };
        assert_eq!(ModelInfo::try_from(v1::ModelInfo::from(&info)), Ok(info));
        assert!(ModelInfo::try_from(v1::ModelInfo::default()).is_err());
    }

    #[tokio::test]
    async fn bad_endpoints_are_told_apart_from_silent_ones() {
        let bad = ForecastClient::connect("no uri").await;
        assert!(matches!(bad, Err(ClientError::Endpoint { .. })), "{bad:?}");
        let silent = ForecastClient::connect("http://127.0.0.1:1").await;
        assert!(matches!(silent, Err(ClientError::Connect { .. })), "{silent:?}");
    }
}
