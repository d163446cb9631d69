//! Why a planning input is refused: everything that is wrong with it at once.

use foreshard_domain::{NodeId, Resource, ShardId, Timestamp, TopologyError};
use std::collections::BTreeSet;
use std::fmt;

use crate::{PlanningInput, SettingsError};

/// Highest load of one shard: sums over a million shards and a thousand steps stay far from the end of `f32`.
const MOST_LOAD: f32 = 1e15;

/// One thing that is wrong with a planning input.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InputError {
    /// A setting is out of range.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The topology is wrong.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// There is no node.
    #[error("the topology has no node; add at least one")]
    NoNodes,
    /// A shard is placed on a node that does not exist.
    #[error(
        "shard {shard} is placed on {node}, or at home there, which the topology does not have; add the node or mend the placement"
    )]
    UnknownNode {
        /// The shard.
        shard: ShardId,
        /// The node.
        node: NodeId,
    },
    /// A residual load is placed like a shard.
    #[error("{shard} is the residual load of a node and cannot be placed; leave it out of the placement")]
    PlacedResidual {
        /// The pseudo shard.
        shard: ShardId,
    },
    /// A running move does not fit the placement or the topology.
    #[error("the running move of shard {shard} from {from} to {to} does not fit: {why}")]
    InFlight {
        /// The shard.
        shard: ShardId,
        /// Its source.
        from: NodeId,
        /// Its target.
        to: NodeId,
        /// What does not fit.
        why: &'static str,
    },
    /// A number is negative or not finite.
    #[error("{what} is {value}; it must be a finite number that is not negative")]
    Number {
        /// Which number.
        what: String,
        /// Its value.
        value: f64,
    },
    /// A scenario holds a negative load.
    #[error("the scenarios of shard {shard} hold a negative load of {resource}: {value}")]
    NegativeLoad {
        /// The shard.
        shard: ShardId,
        /// The resource.
        resource: Resource,
        /// The value.
        value: f32,
    },
    /// A scenario holds a load whose sums would no longer be numbers.
    #[error("the scenarios of shard {shard} hold a load of {resource} of {value}; {MOST_LOAD} is the most")]
    HugeLoad {
        /// The shard.
        shard: ShardId,
        /// The resource.
        resource: Resource,
        /// The value.
        value: f32,
    },
    /// The scenarios have no step that is still to come.
    #[error("the scenarios end at {end}, which is not after now, {now}; ask for fresh ones")]
    Stale {
        /// First moment after the last step.
        end: Timestamp,
        /// Planning time.
        now: Timestamp,
    },
}

/// Everything that is wrong with a planning input.
#[derive(Debug, Clone, PartialEq)]
pub struct InputErrors(pub Vec<InputError>);

impl fmt::Display for InputErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for InputErrors {}

/// Finds everything that is wrong with an input.
pub(crate) fn validate(input: &PlanningInput) -> Result<(), InputErrors> {
    let mut errors = Vec::new();
    if let Err(settings) = input.settings.validate() {
        errors.extend(settings.into_iter().map(InputError::from));
    }
    if let Err(topology) = input.topology.validate() {
        errors.extend(topology.0.into_iter().map(InputError::from));
    }
    if input.topology.nodes.is_empty() {
        errors.push(InputError::NoNodes);
    }
    check_placement(input, &mut errors);
    check_numbers(input, &mut errors);
    check_scenarios(input, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(InputErrors(errors)) }
}

fn check_placement(input: &PlanningInput, errors: &mut Vec<InputError>) {
    let nodes: BTreeSet<&NodeId> = input.topology.nodes.iter().map(|n| &n.id).collect();
    for (shard, node) in input.homes.iter().filter(|(_, node)| !nodes.contains(node)) {
        errors.push(InputError::UnknownNode { shard: shard.clone(), node: node.clone() });
    }
    for (shard, node) in input.placement.iter() {
        if !nodes.contains(node) {
            errors.push(InputError::UnknownNode { shard: shard.clone(), node: node.clone() });
        }
        if shard.residual_node().is_some() {
            errors.push(InputError::PlacedResidual { shard: shard.clone() });
        }
    }
    let mut moving = BTreeSet::new();
    for running in &input.in_flight {
        let placed = input.placement.node_of(&running.shard);
        let why = match placed {
            None => Some("the shard is not placed"),
            Some(node) if *node != running.source && *node != running.target => {
                Some("the shard is on neither of the two nodes")
            }
            _ if running.source == running.target => Some("source and target are one node"),
            _ if !nodes.contains(&running.source) || !nodes.contains(&running.target) => {
                Some("the topology does not have both nodes")
            }
            _ if !moving.insert(&running.shard) => Some("the shard is in flight twice"),
            _ => None,
        };
        if let Some(why) = why {
            let (shard, from, to) = (running.shard.clone(), running.source.clone(), running.target.clone());
            errors.push(InputError::InFlight { shard, from, to, why });
        }
    }
}

fn check_numbers(input: &PlanningInput, errors: &mut Vec<InputError>) {
    let mut number = |value: f64, what: &dyn Fn() -> String| {
        if !(value.is_finite() && value >= 0.0) {
            errors.push(InputError::Number { what: what(), value });
        }
    };
    for (shard, facts) in &input.shards {
        number(facts.data_bytes, &|| format!("data_bytes of shard {shard}"));
        number(facts.write_bytes_per_s, &|| format!("write_bytes_per_s of shard {shard}"));
        number(facts.txn_rate, &|| format!("txn_rate of shard {shard}"));
        for resource in Resource::ALL {
            number(facts.current[resource], &|| format!("current {resource} load of shard {shard}"));
        }
    }
    for edge in &input.communication {
        number(edge.bytes_per_s, &|| format!("bytes_per_s between {} and {}", edge.a, edge.b));
    }
    for resource in Resource::ALL {
        number(input.cost_model.extra_share[resource], &|| format!("{resource} extra_share of the cost model"));
    }
}

fn check_scenarios(input: &PlanningInput, errors: &mut Vec<InputError>) {
    let set = &input.scenarios;
    let end = set.issued_at().plus_steps(i64::try_from(set.steps()).unwrap_or(i64::MAX).saturating_add(1), set.step());
    if set.steps() == 0 || end <= input.now {
        errors.push(InputError::Stale { end, now: input.now });
    }
    for (r, resource) in set.resources().iter().enumerate() {
        for (s, shard) in set.shards().iter().enumerate() {
            // The lowest value of a lane is found by vectors of comparisons, the first negative one is not.
            let lowest = set.lane(r, s).unwrap_or(&[]).iter().copied().fold(0.0, f32::min);
            if lowest < 0.0 {
                let (shard, resource) = (shard.clone(), *resource);
                errors.push(InputError::NegativeLoad { shard, resource, value: lowest });
            }
            let highest = set.lane(r, s).unwrap_or(&[]).iter().copied().fold(0.0, f32::max);
            if highest > MOST_LOAD {
                let (shard, resource) = (shard.clone(), *resource);
                errors.push(InputError::HugeLoad { shard, resource, value: highest });
            }
        }
    }
}
