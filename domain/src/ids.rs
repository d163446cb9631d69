//! Identifiers: one type each, so that a node can never be passed where a shard is meant.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Longest identifier in bytes: short enough to be a file name and a Redis or PostgreSQL label without being cut.
const MAX_BYTES: usize = 200;

/// Why a text is no identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text has no character.
    #[error("an identifier must not be empty")]
    Empty,
    /// The text is longer than an identifier may be.
    #[error("identifier of {bytes} bytes is longer than the {MAX_BYTES} allowed")]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The text holds a control character, which would break logs and tables.
    #[error("identifier {text:?} holds a control character")]
    Control {
        /// The refused text.
        text: String,
    },
}

fn checked(text: String) -> Result<Arc<str>, IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > MAX_BYTES {
        return Err(IdError::TooLong { bytes: text.len() });
    }
    if text.chars().any(char::is_control) {
        return Err(IdError::Control { text });
    }
    Ok(text.into())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a text as identifier.
            ///
            /// # Errors
            /// [`IdError`] if it is empty, longer than 200 bytes, or holds a control character.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                checked(text.into()).map(Self)
            }

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// The unit that moves: a database, a set of hash slots, a hash bucket.
    ShardId
);
id!(
    /// A server that holds shards.
    NodeId
);
id!(
    /// A set of shards (replicas) that must not share a node or zone.
    GroupId
);
id!(
    /// A failure domain that holds nodes.
    ZoneId
);
id!(
    /// One plan; plans form a chain by their parents.
    PlanId
);
id!(
    /// The carrying out of one move.
    MigrationId
);

/// What the identifiers of residual series begin with.
const RESIDUAL_PREFIX: &str = "@node/";

impl ShardId {
    /// The pseudo shard under which a node's own immovable residual load is recorded and forecast.
    pub fn residual(node: &NodeId) -> Self {
        Self(format!("{RESIDUAL_PREFIX}{node}").into())
    }

    /// The node whose residual this is, if it is one.
    pub fn residual_node(&self) -> Option<NodeId> {
        self.0.strip_prefix(RESIDUAL_PREFIX).and_then(|node| NodeId::new(node).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_breaks_tables() {
        assert_eq!(ShardId::new(""), Err(IdError::Empty));
        assert!(matches!(ShardId::new("a\nb"), Err(IdError::Control { .. })));
        assert_eq!(ShardId::new("x".repeat(201)), Err(IdError::TooLong { bytes: 201 }));
        assert!(serde_json::from_str::<NodeId>("\"\"").is_err());
    }

    #[test]
    fn residual_names_its_node() {
        let node = NodeId::new("n1").unwrap();
        assert_eq!(ShardId::residual(&node).residual_node(), Some(node));
        assert_eq!(ShardId::new("orders").unwrap().residual_node(), None);
    }
}
