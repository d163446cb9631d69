//! What can go wrong in the loop.

use foreshard_api::ClientError;
use foreshard_datasets::TableError;
use foreshard_domain::{MigrationId, ScenarioError, ShardId, TopologyErrors};
use foreshard_migrator::{BackendError, DriverError, StoreError};
use foreshard_policy::PlanError;

use crate::BadSetting;

/// Why the loop could not do something. Only [`ControlError::is_final`] ones end it.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Settings are out of range.
    #[error("the control loop cannot run with these settings: {}", list(problems))]
    Settings {
        /// Everything that is wrong.
        problems: Vec<BadSetting>,
    },
    /// Nodes or rules contradict each other.
    #[error("the control loop cannot run on this topology")]
    Topology(#[source] TopologyErrors),
    /// The lead could not be taken.
    #[error("could not take the lead as {holder}")]
    Lead {
        /// The name used.
        holder: String,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// Interrupted migrations could not be taken up again.
    #[error("could not take up interrupted migrations")]
    Recover(#[source] DriverError),
    /// The state store could not be read.
    #[error("could not read the state store")]
    ReadState(#[source] StoreError),
    /// A plan could not be put into force.
    #[error("could not put plan {plan} into force")]
    AcceptPlan {
        /// The plan.
        plan: String,
        /// The cause.
        #[source]
        source: Box<StoreError>,
    },
    /// The engine could not be observed.
    #[error("could not observe the engine; planning goes on with what was seen before")]
    Observe(#[source] BackendError),
    /// Observations could not be handed to serving.
    #[error("could not hand {rows} observations to serving; they wait and are sent again")]
    Ingest {
        /// How many wait.
        rows: usize,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// Serving took some rows and refused others.
    #[error("serving refused {count} observations, the first of {shard}: {why}")]
    Refused {
        /// How many.
        count: u64,
        /// The first one's shard.
        shard: String,
        /// Why.
        why: String,
    },
    /// The buffer overflowed while serving was away.
    #[error("gave up {rows} observations that serving could not take in time; the history has a gap there")]
    Dropped {
        /// How many.
        rows: u64,
    },
    /// Scenarios could not be had.
    #[error("could not get scenarios from serving; planning on what was last observed")]
    Scenarios(#[source] ClientError),
    /// What was forecast and observed does not make an input.
    #[error("could not assemble the planner's input")]
    Assemble(#[source] ScenarioError),
    /// The planner refused its input.
    #[error("could not plan")]
    Plan(#[source] PlanError),
    /// A move could not be started.
    #[error("could not start the move of shard {shard}")]
    Start {
        /// What should have moved.
        shard: ShardId,
        /// The cause.
        #[source]
        source: DriverError,
    },
    /// A migration stopped without an end.
    #[error("migration {migration} stopped")]
    Run {
        /// Which one.
        migration: MigrationId,
        /// The cause.
        #[source]
        source: DriverError,
    },
    /// The task that carried a migration died.
    #[error("the task of a migration died; it is taken up again by recovery")]
    Task(#[source] tokio::task::JoinError),
    /// A retained copy could not be removed.
    #[error("could not finish migration {migration}")]
    Finish {
        /// Which one.
        migration: MigrationId,
        /// The cause.
        #[source]
        source: DriverError,
    },
    /// What is long over could not be forgotten; it is tried again.
    #[error("could not forget migrations that are long over")]
    Forget(#[source] DriverError),
    /// Migrations that stand still could not be looked after; it is tried again.
    #[error("could not look after migrations that stand still")]
    Guard(#[source] DriverError),
    /// Outcomes could not be written; they are kept and written with the next ones.
    #[error("could not log {count} outcomes; they are kept for the next time")]
    LogOutcomes {
        /// How many.
        count: usize,
        /// The cause.
        #[source]
        source: TableError,
    },
    /// Decisions could not be written; they are kept and written with the next ones.
    #[error("could not log {count} decisions; they are kept for the next time")]
    LogDecisions {
        /// How many.
        count: usize,
        /// The cause.
        #[source]
        source: TableError,
    },
}

fn list(problems: &[BadSetting]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl ControlError {
    /// Whether the loop must end: somebody else leads, or its settings are wrong.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Settings { .. } | Self::Topology(_) | Self::Lead { .. } => true,
            Self::ReadState(source) => matches!(source, StoreError::StaleTerm { .. }),
            Self::AcceptPlan { source, .. } => matches!(**source, StoreError::StaleTerm { .. }),
            Self::Recover(source)
            | Self::Forget(source)
            | Self::Guard(source)
            | Self::Start { source, .. }
            | Self::Run { source, .. }
            | Self::Finish { source, .. } => {
                matches!(
                    source,
                    DriverError::Deposed { .. } | DriverError::Store { source: StoreError::StaleTerm { .. } }
                )
            }
            Self::Observe(_)
            | Self::Ingest { .. }
            | Self::Refused { .. }
            | Self::Dropped { .. }
            | Self::Scenarios(_)
            | Self::Assemble(_)
            | Self::Plan(_)
            | Self::Task(_)
            | Self::LogOutcomes { .. }
            | Self::LogDecisions { .. } => false,
        }
    }
}
