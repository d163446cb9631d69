//! The wire: protos of package `foreshard.v1` and of the Open Inference Protocol, the code generated from them, conversions between wire and domain, and a
//! typed client that needs no model library.
//!
//! Everything that comes off the wire is checked before it becomes a domain type: a forecast whose quantiles cross, a
//! chunk out of order or a metric that does not exist is a [`WireError`], never a silently wrong number.

mod client;
mod connect;
mod control;
mod control_client;
mod convert;
mod error;
mod node;
mod query;
mod secret;

/// Code generated from `proto/foreshard/v1`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod v1 {
    tonic::include_proto!("foreshard.v1");
}

/// The Open Inference Protocol, version 2: code generated from `proto/inference`.
#[allow(missing_docs, clippy::all, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod inference {
    tonic::include_proto!("inference");
    pub use grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer, SERVICE_NAME};
    pub use model_infer_request::InferInputTensor;
    pub use model_infer_request::InferRequestedOutputTensor;
    pub use model_infer_response::InferOutputTensor;
    pub use model_metadata_response::TensorMetadata;
}

/// The descriptors of all protos of this crate, encoded, as gRPC reflection wants them.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/foreshard.v1.bin"));

/// Longest message that either side takes apart, in bytes.
///
/// The largest honest request is a batch of ingested rows; at about 100 bytes a row this is over 150,000 rows. tonic's
/// own 4 MiB would refuse what a Prometheus import sends in one go.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024 * 1024;

/// Longest answer that either side sends or takes apart, in bytes.
///
/// A next-day forecast of one series is about 5 KiB (96 steps x 13 levels x 4 bytes), so this carries over 12,000 series
/// in one answer. Scenarios are larger and go in chunks.
pub const MAX_RESPONSE_BYTES: usize = 64 * 1024 * 1024;

pub use client::{ForecastClient, IngestSummary, ModelInfo, SeriesProvenance, ShardRisk};
pub use connect::{ClientCertificate, Credentials};
pub use control::{
    DryRunReport, JournalLine, Migration, MigrationDetails, MigrationProgress, ShardOwner, StartMigration,
};
pub use control_client::ControlClient;
pub use convert::scenario::{CHUNK_VALUES, ScenarioAssembler, scenario_parts};
pub use convert::{
    duration_to_wire, migration_id_from_wire, product_from_wire, timestamp_from_wire, timestamp_to_wire,
};
pub use error::{ClientError, WireError};
pub use node::{NodeLoad, NodeQuery};
pub use query::{ForecastQuery, RiskQuery, ScenarioQuery};
pub use secret::Secret;
