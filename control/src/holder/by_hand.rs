//! A move that a person asks for: what is to be entered into the state store for it.

use foreshard_api::{DryRunReport, StartMigration};
use foreshard_domain::{Clock, Epoch, MovePrediction, NodeId, Owner, PerResource, PlanId, ShardId, Timestamp};
use foreshard_migrator::{
    Backend, BackendError, Change, DriverConfig, DriverError, InvalidChange, State, apply, rehearse,
};
use foreshard_policy::{Move, Reason, RuleName};
use std::sync::Arc;

use super::show;

/// Why a move by hand was not started; nothing was changed but, at most, the shard's entry into the shard map.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine could not be asked who holds the shard.
    #[error("shard {shard} is not in the shard map, and the engine could not be asked who holds it")]
    Find {
        /// The shard.
        shard: ShardId,
        /// Why not.
        #[source]
        source: BackendError,
    },
    /// Nobody holds the shard.
    #[error("shard {shard} is not in the shard map, and {} does not hold it either", node.as_ref().map_or("any node", |n| n.as_str()))]
    NotThere {
        /// The shard.
        shard: ShardId,
        /// The node that was named.
        node: Option<NodeId>,
    },
    /// More than one node holds a shard whose owner is not known.
    #[error("shard {shard} is not in the shard map, and nodes {} all hold it: name its owner with --from", list(nodes))]
    Several {
        /// The shard.
        shard: ShardId,
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// The shard could not be entered into the shard map.
    #[error("shard {shard} could not be entered into the shard map")]
    Adopt {
        /// The shard.
        shard: ShardId,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No name could be made for the plan.
    #[error("no name could be made for the move")]
    Name(#[source] foreshard_domain::IdError),
    /// The driver refused or failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

/// What a start enters into the state store.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ByHand {
    /// The shard's first entry into the shard map, if it is not there.
    pub adopt: Option<Owner>,
    pub planned: Move,
    pub plan: PlanId,
}

/// Decides on what the state store and the engine say; changes nothing.
pub(crate) async fn decide(state: &State, backend: &dyn Backend, asked: &StartMigration) -> Result<ByHand, StartError> {
    let shard = &asked.shard;
    let found = backend.find(shard, asked.source.as_ref()).await;
    let owner = state.owners.get(shard);
    let (source, adopt, sizes) = match owner {
        // Another source than the owner is refused by the driver, in its words.
        Some(owner) => (asked.source.clone().unwrap_or_else(|| owner.node.clone()), None, found.unwrap_or_default()),
        None => {
            let found = found.map_err(|source| StartError::Find { shard: shard.clone(), source })?;
            let node = match found.as_slice() {
                [only] => only.node.clone(),
                [] => return Err(StartError::NotThere { shard: shard.clone(), node: asked.source.clone() }),
                several => {
                    let nodes = several.iter().map(|f| f.node.clone()).collect();
                    return Err(StartError::Several { shard: shard.clone(), nodes });
                }
            };
            (node.clone(), Some(Owner { node, epoch: Epoch(1) }), found)
        }
    };
    let epoch = owner.or(adopt.as_ref()).map_or(Epoch(1), |owner| owner.epoch);
    let bytes = sizes.iter().find(|f| f.node == source).map_or(0, |f| f.bytes);
    let plan = name(state, shard, epoch)?;
    Ok(ByHand { adopt, planned: planned(asked, source, bytes), plan })
}

/// A name that follows from the state alone, so that a dry run tells the names of the objects that the real one will make.
fn name(state: &State, shard: &ShardId, epoch: Epoch) -> Result<PlanId, StartError> {
    let taken = |plan: &PlanId| state.migrations.values().any(|m| m.shard() == shard && m.plan == *plan);
    let mut number = 0u64;
    loop {
        let plan = PlanId::new(format!("by-hand-{epoch}-{number}")).map_err(StartError::Name)?;
        if !taken(&plan) {
            return Ok(plan);
        }
        number += 1;
    }
}

/// Nothing was predicted of it. It has been due ever since: its name must not depend on the minute.
fn planned(asked: &StartMigration, source: NodeId, bytes: u64) -> Move {
    Move {
        shard: asked.shard.clone(),
        source,
        target: asked.target.clone(),
        start: Timestamp::from_ms(0),
        reason: Reason {
            rule: RuleName::Constraint,
            resource: None,
            source_risk_before: 0.0,
            source_risk_after: 0.0,
            target_risk_before: 0.0,
            target_risk_after: 0.0,
            first_crossing: None,
            text: "asked for by hand".to_owned(),
        },
        expected_gain: 0.0,
        expected_cost: 0.0,
        predicted: MovePrediction {
            duration_ms: 0,
            duration_p90_ms: 0,
            fence_ms: 0.0,
            extra_share: PerResource { cpu: 0.0, memory: 0.0, io: 0.0 },
        },
        data_bytes: bytes as f64,
        write_bytes_per_s: 0.0,
        cpu_share: (0.0, 0.0),
        with: None,
    }
}

/// The entry of a shard into the shard map.
pub(crate) fn adoption(shard: &ShardId, owner: &Owner) -> Change {
    Change::SetOwner { shard: shard.clone(), expected: None, owner: owner.clone() }
}

/// What a start would do: the checks are done, the rest is told, nothing is changed.
///
/// # Errors
/// [`StartError`] if the move cannot be; a check that refuses it is the end of the report's migration instead.
pub async fn dry_run(
    state: State,
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    config: DriverConfig,
    asked: &StartMigration,
) -> Result<DryRunReport, StartError> {
    let ByHand { adopt, planned, plan } = decide(&state, backend.as_ref(), asked).await?;
    let (mut state, mut steps) = (state, Vec::new());
    if let Some(owner) = adopt {
        let adopted = apply(&state, &[adoption(&asked.shard, &owner)]);
        state = adopted.map_err(|source: InvalidChange| StartError::Adopt {
            shard: asked.shard.clone(),
            source: Box::new(source),
        })?;
        steps.push(format!(
            "{:<14} enter {} as owner of {} in epoch 1 into the shard map",
            "adopt", owner.node, asked.shard
        ));
    }
    let now = clock.model();
    let rehearsed = rehearse(state, backend, clock, config, (planned, plan, asked.consistency)).await?;
    steps.extend(rehearsed.steps);
    Ok(DryRunReport { migration: show::migration(&rehearsed.record, &[], now), steps })
}
