//! Everything that a plan is made from.

use foreshard_domain::{CostModel, NodeId, PerResource, Placement, PlanId, ScenarioSet, ShardId, Timestamp, Topology};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use xxhash_rust::xxh3::Xxh3;

use crate::{PolicySettings, input_errors::InputErrors};

/// What is known of one shard besides its scenarios.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardFacts {
    /// Bytes that a move has to copy.
    pub data_bytes: f64,
    /// Bytes that clients write per second.
    pub write_bytes_per_s: f64,
    /// When it last moved, if it did.
    #[serde(default)]
    pub last_moved: Option<Timestamp>,
    /// Until when no move of it can start, because the way back of an earlier one is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Timestamp>,
    /// The load last observed; also the load that is planned with where the scenarios lack the shard.
    pub current: PerResource<f64>,
    /// Transactions per second.
    #[serde(default)]
    pub txn_rate: f64,
}

/// Traffic between two shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Communication {
    /// One of them.
    pub a: ShardId,
    /// The other.
    pub b: ShardId,
    /// Bytes per second, both directions together.
    pub bytes_per_s: f64,
}

/// A move that is being carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InFlight {
    /// What moves.
    pub shard: ShardId,
    /// From where.
    pub source: NodeId,
    /// To where.
    pub target: NodeId,
    /// Since when.
    pub started: Timestamp,
    /// When it should be over.
    pub expected_end: Timestamp,
}

/// Everything that a plan is made from; equal inputs give equal plans (P1).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanningInput {
    /// Model time of planning; no move starts earlier.
    pub now: Timestamp,
    /// Part of the fingerprint. The present search has no random choice: ties go by name.
    pub seed: u64,
    /// The plan in force.
    #[serde(default)]
    pub parent: Option<PlanId>,
    /// Nodes and rules.
    pub topology: Topology,
    /// Where the shards are. A shard in flight is on its source until the owner has changed.
    pub placement: Placement,
    /// Joint sample paths of the shards, and of the nodes' residual loads under [`ShardId::residual`]. Step `i` covers
    /// the step that begins `i + 1` steps after `issued_at`.
    pub scenarios: ScenarioSet,
    /// What is known of the shards; one without an entry cannot be moved.
    #[serde(default)]
    pub shards: BTreeMap<ShardId, ShardFacts>,
    /// Shards whose forecast has lost its vote, because it was lately worse than seasonal naive: they are planned with their
    /// load as last observed, as a reactive balancer would, and the plan says so.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub voteless: BTreeSet<ShardId>,
    /// Where the ring would have each shard; a shard elsewhere is an override and goes back when its gain is gone. Shards
    /// without an entry are at home wherever they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub homes: BTreeMap<ShardId, NodeId>,
    /// Who talks to whom.
    #[serde(default)]
    pub communication: Vec<Communication>,
    /// Moves that are being carried out.
    #[serde(default)]
    pub in_flight: Vec<InFlight>,
    /// What moves cost.
    pub cost_model: CostModel,
    /// What to aim at.
    #[serde(default)]
    pub settings: PolicySettings,
}

/// Feeds what is written into a hash, so that no text of the whole input has to be held.
struct HashWriter(Xxh3);

impl Write for HashWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl PlanningInput {
    /// Hash of the whole input, 32 hexadecimal digits: XXH3-128 over the compact JSON of everything but the values of the
    /// scenarios (its maps are sorted, its floats written with the fewest digits that read back the same), then over these
    /// values as little-endian `f32`. As text they would be most of the time that a large plan takes.
    pub fn fingerprint(&self) -> String {
        let Self { now, seed, parent, topology, placement, scenarios, shards, communication, in_flight, .. } = self;
        let Self { voteless, homes, cost_model, settings, .. } = self;
        let (issued_at, step) = (scenarios.issued_at(), scenarios.step());
        let shape = (scenarios.steps(), scenarios.scenarios());
        let scenario_head = (issued_at, step, scenarios.resources(), scenarios.shards(), shape);
        let context = (now, seed, parent, topology, placement, scenario_head);
        let rest = (shards, voteless, homes, communication, in_flight, cost_model, settings);
        let mut writer = io::BufWriter::with_capacity(1 << 16, HashWriter(Xxh3::new()));
        // Neither the hash nor the derived serialisation can fail; a failure would only make the hash differ.
        let _ = serde_json::to_writer(&mut writer, &(context, rest));
        let Ok(HashWriter(mut hash)) = writer.into_inner() else { return format!("{:032x}", 0) };
        let mut bytes = Vec::with_capacity(1 << 16);
        for values in scenarios.values().chunks(1 << 14) {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            hash.update(&bytes);
        }
        format!("{:032x}", hash.digest128())
    }

    /// Checks that the parts fit together; finds everything that is wrong.
    ///
    /// # Errors
    /// [`InputErrors`] with all that is wrong.
    pub fn validate(&self) -> Result<(), InputErrors> {
        crate::input_errors::validate(self)
    }
}
