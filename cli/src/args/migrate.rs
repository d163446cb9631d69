//! Arguments of `migrate`.

use clap::{Args, Subcommand};
use foreshard_domain::{MigrationId, NodeId, ShardId};
use std::path::PathBuf;

/// Subcommands of `migrate`. Each goes to the process that holds the state store; if nobody does, it holds the store itself
/// as long as it lasts.
#[derive(Debug, Subcommand)]
pub enum MigrateCommand {
    /// Move a shard to another node, and wait until it has moved
    Start(MigrateStartArgs),
    /// All migrations that are not forgotten
    List,
    /// One migration: where it stands, what comes next, how to undo it
    Show {
        /// Its name
        id: MigrationId,
        /// Show how it goes until it is at rest
        #[arg(long)]
        watch: bool,
    },
    /// Let a migration stand still; only before the fence
    Pause {
        /// Its name
        id: MigrationId,
    },
    /// Go on with a migration that is paused, or that nobody carries
    Resume {
        /// Its name
        id: MigrationId,
    },
    /// Give up the owner change under way; only before the seal
    Cancel {
        /// Its name
        id: MigrationId,
    },
    /// Take a move back while the source's data is kept
    Rollback {
        /// Its name
        id: MigrationId,
    },
    /// Remove the source's copy after its retention
    Finish {
        /// Its name
        id: MigrationId,
        /// The node that does not own the shard, gone for good: end without it, whatever the retention
        #[arg(long, value_name = "NODE")]
        lost_node: Option<NodeId>,
    },
    /// Resume poolers whose fence has run out with no controller alive; a process of its own, beside the controller
    Watchdog {
        /// Look once and end
        #[arg(long)]
        once: bool,
        /// How often to look
        #[arg(long, value_name = "DURATION", default_value = "250ms", value_parser = humantime::parse_duration)]
        every: std::time::Duration,
    },
    /// Who owns which shard, and where the ring would put it
    Ring {
        /// Nodes and their capacities, for the ring [default: data.topology of the settings, if there is such a file]
        #[arg(long, value_name = "FILE")]
        topology: Option<PathBuf>,
    },
}

/// Arguments of `migrate start`.
#[derive(Debug, Args)]
pub struct MigrateStartArgs {
    /// What moves
    pub shard: ShardId,
    /// From where [default: its owner; for a shard that has none yet the only node that holds it]
    #[arg(long, value_name = "NODE")]
    pub from: Option<NodeId>,
    /// To where
    #[arg(long, value_name = "NODE")]
    pub to: NodeId,
    /// Check, and tell what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
}
