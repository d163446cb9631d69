//! Why an engine did not do what a client or an operator asked.

use foreshard_domain::{NodeId, ShardId};

use super::node::NodeError;

/// Why an engine could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Two nodes share a name.
    #[error("node {node} is given more than once")]
    Twice {
        /// The name.
        node: NodeId,
    },
    /// No such node.
    #[error("node {node} is no node of this engine")]
    UnknownNode {
        /// What was given.
        node: NodeId,
    },
    /// A node's store failed or refused.
    #[error("node {node} could not be set up")]
    Node {
        /// Which one.
        node: NodeId,
        /// The cause.
        #[source]
        source: NodeError,
    },
}

/// Why a write was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// There is no such shard.
    #[error("there is no shard {shard}")]
    UnknownShard {
        /// What was given.
        shard: ShardId,
    },
    /// Not made; may be made when tried again.
    #[error("the write to shard {shard} was not made: {why}; try again")]
    Busy {
        /// To which shard.
        shard: ShardId,
        /// What was in the way.
        why: String,
    },
    /// Whether it was made is unknown: try again with the same identifier.
    #[error("whether the write to shard {shard} was made is unknown; try again with the same identifier")]
    Unknown {
        /// To which shard.
        shard: ShardId,
        /// The cause.
        #[source]
        source: NodeError,
    },
    /// Never possible.
    #[error("the write to shard {shard} is not possible")]
    Invalid {
        /// To which shard.
        shard: ShardId,
        /// The cause.
        #[source]
        source: NodeError,
    },
}

/// Why a read was not answered.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such shard.
    #[error("there is no shard {shard}")]
    UnknownShard {
        /// What was given.
        shard: ShardId,
    },
    /// May be answered when tried again.
    #[error("the read of shard {shard} was not answered: {why}; try again")]
    Busy {
        /// Of which shard.
        shard: ShardId,
        /// What was in the way.
        why: String,
    },
    /// The store failed.
    #[error("the read of shard {shard} failed")]
    Failed {
        /// Of which shard.
        shard: ShardId,
        /// The cause.
        #[source]
        source: NodeError,
    },
}
