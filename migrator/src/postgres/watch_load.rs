//! Which databases are shards, and a session on each server to look at its load by.

use foreshard_domain::{NodeId, Observation, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::PostgresBackend;
use super::pooler::Console;
use super::session::Session;
use crate::BackendError;
use crate::cause::with_causes;

impl PostgresBackend {
    /// Rows of load of every shard, a database that a pooler sends clients to, and of each node's residual.
    pub(super) async fn observe_load(&self) -> Result<Vec<Observation>, BackendError> {
        let shards = self.shards().await?;
        let mut looking = self.looking.lock().await;
        looking.retain(|_, session| !session.is_closed());
        let mut sessions: BTreeMap<NodeId, Result<Arc<Session>, BackendError>> = BTreeMap::new();
        for (node, address) in &self.settings.nodes {
            let session = match looking.get(node) {
                Some(session) => Ok(Arc::clone(session)),
                None => self.session(node, &address.database, "foreshard observe").await.map(Arc::new),
            };
            if let Ok(session) = &session {
                looking.insert(node.clone(), Arc::clone(session));
            }
            sessions.insert(node.clone(), session);
        }
        let borrowed = sessions.iter().map(|(node, session)| {
            let session = session.as_ref().map(Arc::as_ref);
            (node.clone(), session.map_err(|error| unreachable(node, error)))
        });
        self.observer.observe(borrowed.collect(), &shards).await
    }

    /// Every database that a pooler sends to one of the servers. A pooler that does not answer is passed over: the others know
    /// the same routes.
    async fn shards(&self) -> Result<Vec<(ShardId, NodeId)>, BackendError> {
        let (mut shards, mut first) = (BTreeMap::new(), None);
        for pooler in &self.settings.poolers {
            let listed = match Console::open(pooler).await {
                Ok(console) => console.databases().await,
                Err(error) => Err(error),
            };
            match listed {
                Ok(databases) => {
                    for pooled in databases {
                        let at = |peer: (&str, u16)| peer == (pooled.host.as_str(), pooled.port);
                        let node =
                            self.settings.nodes.iter().find(|(_, address)| at(address.peer())).map(|(node, _)| node);
                        if let (Some(node), Ok(shard)) = (node, ShardId::new(pooled.name)) {
                            shards.insert(shard, node.clone());
                        }
                    }
                }
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) if shards.is_empty() => Err(error),
            _ => Ok(shards.into_iter().collect()),
        }
    }
}

fn unreachable(node: &NodeId, error: &BackendError) -> BackendError {
    BackendError::Transient { doing: format!("observing node {node}"), source: with_causes(error).into() }
}
