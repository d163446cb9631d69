//! Why a demonstration could not be carried through.

use foreshard_api::ClientError;
use foreshard_control::ControlError;
use foreshard_datasets::{HistoryError, TableError, WorkloadError};
use foreshard_domain::IdError;
use foreshard_migrator::embedded::{EngineError, KvError, ReadError, WriteError};
use foreshard_migrator::{RingError, StoreError};
use foreshard_serving::ServingError;
use foreshard_training::{CostRegistryError, PipelineError, RegistryError, TrainErrors};
use std::path::PathBuf;

/// Which part could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The folder cannot be made.
    #[error("could not make a folder for the demonstration; name one with --keep")]
    Folder {
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The folder holds something.
    #[error("folder {} is not empty; a demonstration needs one of its own", path.display())]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The workload cannot be made.
    #[error("could not make the workload")]
    Workload(#[source] WorkloadError),
    /// A name was refused.
    #[error("could not name a node")]
    Name(#[source] IdError),
    /// Hashing failed.
    #[error("could not place the shards by hashing")]
    Ring(#[source] RingError),
    /// The history cannot be written or read.
    #[error("could not write or read the history")]
    History(#[source] HistoryError),
    /// Training was asked for the impossible.
    #[error("could not set up training")]
    TrainSettings(#[source] TrainErrors),
    /// Training failed.
    #[error("could not train the forecaster")]
    Train(#[source] PipelineError),
    /// The registry failed.
    #[error("could not use the registry")]
    Registry(#[source] RegistryError),
    /// The first version did not pass the gate, so there is nothing to serve.
    #[error("the first version of the forecaster did not pass its gate: {reasons}")]
    NotPromoted {
        /// What the gate said.
        reasons: String,
    },
    /// Serving cannot start.
    #[error("could not start serving")]
    Serving(#[source] ServingError),
    /// Serving cannot be reached.
    #[error("could not reach serving")]
    Client(#[source] ClientError),
    /// A node's store cannot be opened.
    #[error("could not open a node's store")]
    OpenNode(#[source] KvError),
    /// The engine cannot be set up.
    #[error("could not set up the nodes")]
    Engine(#[source] EngineError),
    /// The shards cannot be filled.
    #[error("could not fill the shards")]
    Fill(#[source] WriteError),
    /// A written key cannot be read back, so it is not known whether it is there.
    #[error("could not read a written key back")]
    ReadBack(#[source] ReadError),
    /// The state store failed.
    #[error("could not use the state store")]
    State(#[source] StoreError),
    /// The control loop ended.
    #[error("the control loop ended early")]
    Control(#[source] Box<ControlError>),
    /// Outcomes or decisions cannot be written or read.
    #[error("could not use the log of outcomes or decisions")]
    Log(#[source] TableError),
    /// The cost model cannot be fitted or kept.
    #[error("could not refit the cost of moves")]
    CostRegistry(#[source] CostRegistryError),
    /// A task died.
    #[error("a task of the demonstration died")]
    Task(#[source] tokio::task::JoinError),
}
