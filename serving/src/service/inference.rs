//! Open Inference Protocol, version 2: what generic inference clients speak, for those who have one already.
//!
//! The model is the one of the registry, its inputs and outputs are tensors (`docs/serving.md` lists them). Everything behind it
//! is the same as for `Forecast`: queue, deadlines, fallbacks that are told.

mod answer;
mod request;
mod tensor;

use foreshard_api::inference::{
    GrpcInferenceService, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ModelReadyRequest, ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest,
    ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse, TensorMetadata,
};
use foreshard_domain::{Product, SeriesForecast};
use tonic::{Request, Response, Status};

use super::{ForecastApi, status};
use crate::context::Wanted;
use crate::engine::Bench;
use request::Infer;

/// Name of this server in its metadata.
const SERVER: &str = "foreshard";

/// What a model is run by, in its metadata.
const PLATFORM: &str = "foreshard";

impl ForecastApi {
    /// Whether the one model of this server is meant, and the version that answers.
    fn check_model(&self, name: &str, version: &str) -> Result<(), Status> {
        let known = self.reloader.model();
        if name != known {
            return Err(Status::not_found(format!("there is no model {name:?} here, only {known:?}")));
        }
        let current = self.reloader.version().map(|id| id.number.to_string()).unwrap_or_default();
        if version.is_empty() || version == current {
            return Ok(());
        }
        let answers = if current.is_empty() { "none does".to_owned() } else { format!("version {current} does") };
        Err(Status::not_found(format!("version {version:?} of model {name:?} does not answer here, {answers}")))
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for ForecastApi {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: self.stop.is_cancelled() || self.engine.computes() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = !self.stop.is_cancelled() && self.engine.computes() && self.engine.takes_more();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = self.check_model(&name, &version).is_ok() && self.reloader.version().is_some();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(ServerMetadataResponse { name: SERVER.to_owned(), version, extensions: Vec::new() }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        self.check_model(&name, &version)?;
        let versions = self.reloader.version().map(|id| id.number.to_string()).into_iter().collect();
        let tensors = |all: &[(&str, &str, &[i64])]| {
            let told = |(name, datatype, shape): &(&str, &str, &[i64])| TensorMetadata {
                name: (*name).to_owned(),
                datatype: (*datatype).to_owned(),
                shape: shape.to_vec(),
            };
            all.iter().map(told).collect()
        };
        let (inputs, outputs) = (tensors(&request::INPUTS), tensors(&answer::OUTPUTS));
        let platform = PLATFORM.to_owned();
        Ok(Response::new(ModelMetadataResponse { name, versions, platform, inputs, outputs }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        let expires = self.expires(&request);
        let request = request.into_inner();
        self.check_model(&request.model_name, &request.model_version)?;
        let asked = Infer::from_wire(&request)?;
        let keys = self.select_at_once(&asked.shards, &Wanted::named(&[asked.metric]))?;
        answer::check_fits(&asked)?;
        let levels = asked.levels.maker();
        let make = move |bench: &Bench, product: Product, forecasts: Vec<SeriesForecast>| {
            // The version that answered, which a reload may have replaced since it was asked for.
            let answered = forecasts.iter().find_map(|series| series.provenance.version.clone());
            let version = answered.or_else(|| bench.slot.id());
            levels(bench, product, forecasts).map(|series| (series, version))
        };
        let made = self.compute(asked.product, keys, expires, make).await?;
        let (series, version) = made.map_err(|error| status::invalid("levels", error.to_string()))?;
        let number = version.as_ref().map(|id| id.number.to_string()).unwrap_or_default();
        if !request.model_version.is_empty() && request.model_version != number {
            return Err(Status::not_found(format!(
                "version {} was replaced by {number} meanwhile",
                request.model_version
            )));
        }
        let mut response = answer::answer(&asked, &series)?;
        response.model_name = request.model_name;
        response.model_version = number;
        response.id = request.id;
        Ok(Response::new(response))
    }
}
