//! Observing servers: rows of load per shard and of each node's residual.

mod account;
#[cfg(test)]
mod live_tests;
mod machine;
mod prometheus;
mod sample;

use foreshard_domain::{Clock, NodeId, Observation, ShardId};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::account::account;
use self::machine::{LocalProcesses, NodeMetrics};
use self::prometheus::Prometheus;
use self::sample::{Sample, Sizes};
use super::session::Session;
use super::settings::{Machine, PostgresSettings};
use crate::BackendError;
use crate::cause::with_causes;

/// Sizes are measured again when they are older: it reads the folders of all databases, and all buffers' headers.
const SIZES_FOR: Duration = Duration::from_secs(60);
/// How long one server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// After so many misses in a row what a server did since the last sample is no longer told: a mean over all that time would
/// stand for one moment of it.
const MISSES: u32 = 3;

/// What is kept of a node from one look to the next.
#[derive(Debug, Default, Clone)]
struct Kept {
    sample: Option<Arc<Sample>>,
    sizes: Option<Sizes>,
    misses: u32,
}

/// Looks at servers and remembers what it saw last.
#[derive(Debug)]
pub(crate) struct Observer {
    machines: BTreeMap<NodeId, Machine>,
    local: LocalProcesses,
    prometheus: Option<Prometheus>,
    clock: Arc<dyn Clock>,
    kept: Mutex<BTreeMap<NodeId, Kept>>,
}

impl Observer {
    /// For the nodes of `settings`; CPU and memory are known of those that Prometheus is to be asked about, and of servers on
    /// this machine.
    pub fn new(settings: &PostgresSettings, clock: Arc<dyn Clock>) -> Self {
        let machines = settings.nodes.iter().map(|(node, address)| (node.clone(), address.machine)).collect();
        let asked = &settings.prometheus;
        for node in asked.instances.keys().filter(|node| !settings.nodes.contains_key(*node)) {
            tracing::warn!(%node, "[postgres.prometheus] has an instance of a node that [postgres.nodes] does not have");
        }
        if asked.url.is_none() && !asked.instances.is_empty() {
            tracing::warn!("[postgres.prometheus] has instances and no url: CPU and memory are not asked for there");
        }
        let prometheus = Prometheus::new(asked);
        Self { machines, local: LocalProcesses::default(), prometheus, clock, kept: Mutex::default() }
    }

    fn metrics(&self, node: &NodeId) -> &dyn NodeMetrics {
        match &self.prometheus {
            Some(prometheus) if prometheus.knows(node) => prometheus,
            _ => &self.local,
        }
    }

    /// Rows since the last call: of `shards`, where their nodes had them all the time, and of each node's residual; none of a
    /// node that is seen for the first time.
    ///
    /// `sessions` are connections to the nodes' maintenance databases, so that looking adds no transactions to a shard, by a
    /// user who may read all statistics (`pg_monitor`). A node that fails has no rows; what it did is told by the next call
    /// that succeeds.
    ///
    /// # Errors
    /// The first error, if all nodes fail. Others are logged.
    pub async fn observe(
        &self,
        sessions: BTreeMap<NodeId, Result<&Session, BackendError>>,
        shards: &[(ShardId, NodeId)],
    ) -> Result<Vec<Observation>, BackendError> {
        let looks = sessions.into_iter().map(|(node, session)| async move {
            let seen = match session {
                Ok(session) => self.look(&node, session).await,
                Err(error) => Err(error),
            };
            (node, seen)
        });
        let (mut rows, mut seen_any, mut first_error) = (Vec::new(), false, None);
        for (node, seen) in join_all(looks).await {
            match seen {
                Ok(after) => {
                    seen_any = true;
                    let of_node = shards.iter().filter(|(_, on)| *on == node).map(|(shard, _)| shard.clone());
                    rows.extend(self.told(&node, after, &of_node.collect()));
                }
                Err(error) => {
                    let kept = self.missed(&node);
                    tracing::warn!(%node, kept, error = with_causes(&error), "a server could not be observed");
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if !seen_any => Err(error),
            _ => Ok(rows),
        }
    }

    async fn look(&self, node: &NodeId, session: &Session) -> Result<Sample, BackendError> {
        tokio::time::timeout(PATIENCE, self.sample(node, session)).await.unwrap_or_else(|elapsed| {
            Err(BackendError::Transient { doing: format!("observing node {node}"), source: Box::new(elapsed) })
        })
    }

    async fn sample(&self, node: &NodeId, session: &Session) -> Result<Sample, BackendError> {
        let server = sample::server(session).await?;
        let now = self.clock.real();
        let kept = self.kept().get(node).and_then(|kept| kept.sizes.clone());
        let sizes = match kept.filter(|sizes| now >= sizes.at && now.since(sizes.at) < SIZES_FOR) {
            Some(sizes) => sizes,
            None => sample::sizes(session, &server, now).await?,
        };
        let now = (self.clock.model(), self.clock.real());
        let mut sample = sample::read(session, &server, sizes, now).await?;
        sample.usage = self.metrics(node).usage(node, server.backend).await;
        Ok(sample)
    }

    /// Rows since the last sample of the node, in whose place `after` comes.
    fn told(&self, node: &NodeId, after: Sample, shards: &BTreeSet<ShardId>) -> Vec<Observation> {
        let after = Arc::new(after);
        let mut all = self.kept();
        let kept = all.entry(node.clone()).or_default();
        (kept.misses, kept.sizes) = (0, Some(after.sizes.clone()));
        if kept.sample.as_ref().is_some_and(|before| before.at == after.at) {
            return Vec::new();
        }
        let before = kept.sample.replace(Arc::clone(&after));
        drop(all);
        let machine = self.machines.get(node).copied().unwrap_or_default();
        before.map(|before| account(node, &before, &after, shards, &machine)).unwrap_or_default()
    }

    /// Counts a miss; whether the last sample is kept nevertheless.
    fn missed(&self, node: &NodeId) -> bool {
        let mut all = self.kept();
        let kept = all.entry(node.clone()).or_default();
        kept.misses = kept.misses.saturating_add(1);
        if kept.misses >= MISSES {
            kept.sample = None;
        }
        kept.sample.is_some()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<NodeId, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
