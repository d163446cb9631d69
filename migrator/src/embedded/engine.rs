//! Nodes behind one routing table: what clients talk to.

use foreshard_domain::{Clock, Epoch, NodeId, Observation, Owner, ShardId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

use super::error::{EngineError, ReadError, WriteError};
use super::kv::KvStore;
use super::load::{Cost, Held, Ledger, LoadScale};
use super::node::{EmbeddedNode, NodeError};
use super::router::{Route, Router};
use super::service::{NodeService, Overloaded};
use super::shard::Refusal;

/// How an engine behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineSettings {
    /// How many of a shard's last writes are recognised when they are repeated (M1). A retry must come before so many other
    /// writes of the shard have been acknowledged.
    pub write_id_window: u64,
    /// How many operations of one shard may wait while its owner changes.
    pub queue_operations: usize,
    /// How long each of them may wait, real time. Longer than the longest fence, or clients see errors.
    pub queue_for: Duration,
    /// How long an operation may wait for its turn at an overloaded node, real time.
    pub service_wait: Duration,
    /// From real work to modelled load.
    pub scale: LoadScale,
}

impl Default for EngineSettings {
    fn default() -> Self {
        Self {
            write_id_window: 4096,
            queue_operations: 4096,
            queue_for: Duration::from_secs(5),
            service_wait: Duration::from_secs(20),
            scale: LoadScale::default(),
        }
    }
}

/// A node and the limit of what it can do.
#[derive(Debug)]
pub(super) struct Member {
    pub node: Arc<EmbeddedNode>,
    pub service: NodeService,
}

impl Member {
    /// Calls the node, on a thread that may block if its store waits for a device.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&EmbeddedNode) -> Result<T, NodeError> + Send + 'static,
    ) -> Result<T, NodeError> {
        if !self.node.waits_for_device() {
            return work(&self.node);
        }
        let node = Arc::clone(&self.node);
        let done = tokio::task::spawn_blocking(move || work(&node)).await;
        done.unwrap_or_else(|source| Err(NodeError::Stopped { node: self.node.id().clone(), source }))
    }
}

/// What a client wants.
#[derive(Debug)]
enum Operation {
    Read { key: Vec<u8> },
    Write { write_id: u128, key: Vec<u8>, value: Option<Vec<u8>> },
}

/// What it gets.
enum Answer {
    Value(Option<Vec<u8>>),
    Written(Epoch),
}

/// Why it gets nothing.
enum Miss {
    UnknownShard,
    Busy(String),
    Node(NodeError),
}

/// Nodes, routes and the tallies of their load. Reads and writes are linearisable per key, also while a shard moves: from
/// the fence to the new route operations wait in a bounded queue. A call that is dropped may still be carried out.
#[derive(Debug)]
pub struct EmbeddedEngine {
    members: BTreeMap<NodeId, Member>,
    router: Router,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    settings: EngineSettings,
}

impl EmbeddedEngine {
    /// An engine on nodes given as name, store and units of service a real second (no limit unless positive and finite). Clients
    /// are sent where the stores say that shards are open; shards that a crash left between two owners wait until
    /// [`crate::Backend::route`] tells where to.
    ///
    /// # Errors
    /// [`EngineError`] if two nodes share a name or a store cannot be read.
    pub fn new(
        nodes: Vec<(NodeId, Arc<dyn KvStore>, f64)>,
        clock: Arc<dyn Clock>,
        settings: EngineSettings,
    ) -> Result<Self, EngineError> {
        let mut members = BTreeMap::new();
        for (id, store, capacity) in nodes {
            let node = Arc::new(EmbeddedNode::new(id.clone(), store, Arc::clone(&clock), settings.write_id_window));
            let service = NodeService::new(capacity, settings.service_wait, Arc::clone(&clock));
            if members.insert(id.clone(), Member { node, service }).is_some() {
                return Err(EngineError::Twice { node: id });
            }
        }
        let router = Router::new(settings.queue_operations);
        for (shard, owner) in owners(&members)? {
            router.add(shard, owner);
        }
        let ledger = Ledger::new(settings.scale, clock.model());
        Ok(Self { members, router, ledger, clock, settings })
    }

    /// Makes a new, empty shard, or finds it there.
    ///
    /// # Errors
    /// [`EngineError`] if there is no such node, or it holds the shard in another epoch or state.
    pub async fn create_shard(&self, shard: &ShardId, node: &NodeId, epoch: Epoch) -> Result<(), EngineError> {
        let member = self.member(node).ok_or_else(|| EngineError::UnknownNode { node: node.clone() })?;
        let created = shard.clone();
        member
            .call(move |node| node.create(&created, epoch))
            .await
            .map_err(|source| EngineError::Node { node: node.clone(), source })?;
        self.router.add(shard.clone(), Some(Owner { node: node.clone(), epoch }));
        Ok(())
    }

    /// Puts a row. Acknowledged means durable, and made once however often it is tried with the same identifier.
    ///
    /// # Errors
    /// [`WriteError`]; after [`WriteError::Unknown`] the caller tries again with the same identifier.
    pub async fn put(&self, shard: &ShardId, key: &[u8], value: &[u8], write_id: u128) -> Result<Epoch, WriteError> {
        self.write(shard, key, Some(value), write_id, Cost::default()).await
    }

    /// Deletes a row if it is there; otherwise like [`Self::put`].
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn delete(&self, shard: &ShardId, key: &[u8], write_id: u128) -> Result<Epoch, WriteError> {
        self.write(shard, key, None, write_id, Cost::default()).await
    }

    /// Puts (`Some`) or deletes (`None`) a row, at a cost of its own.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn write(
        &self,
        shard: &ShardId,
        key: &[u8],
        value: Option<&[u8]>,
        write_id: u128,
        cost: Cost,
    ) -> Result<Epoch, WriteError> {
        let operation = Operation::Write { write_id, key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
        let shard = shard.clone();
        match self.operate(&shard, operation, cost).await {
            Ok(Answer::Written(epoch)) => Ok(epoch),
            Ok(Answer::Value(_)) => Err(WriteError::Busy { shard, why: "a read was answered instead".to_owned() }),
            Err(Miss::UnknownShard) => Err(WriteError::UnknownShard { shard }),
            Err(Miss::Busy(why)) => Err(WriteError::Busy { shard, why }),
            Err(Miss::Node(source @ NodeError::TooLong { .. })) => Err(WriteError::Invalid { shard, source }),
            Err(Miss::Node(source)) => Err(WriteError::Unknown { shard, source }),
        }
    }

    /// Reads a row.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn get(&self, shard: &ShardId, key: &[u8]) -> Result<Option<Vec<u8>>, ReadError> {
        self.read(shard, key, Cost::default()).await
    }

    /// Reads a row, at a cost of its own.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read(&self, shard: &ShardId, key: &[u8], cost: Cost) -> Result<Option<Vec<u8>>, ReadError> {
        let shard = shard.clone();
        match self.operate(&shard, Operation::Read { key: key.to_vec() }, cost).await {
            Ok(Answer::Value(value)) => Ok(value),
            Ok(Answer::Written(_)) => Err(ReadError::Busy { shard, why: "a write was answered instead".to_owned() }),
            Err(Miss::UnknownShard) => Err(ReadError::UnknownShard { shard }),
            Err(Miss::Busy(why)) => Err(ReadError::Busy { shard, why }),
            Err(Miss::Node(source)) => Err(ReadError::Failed { shard, source }),
        }
    }

    /// All shards with the owner that clients are sent to; `None` while that is being found out.
    pub fn owners(&self) -> BTreeMap<ShardId, Option<Owner>> {
        self.router.owners()
    }

    /// The nodes' names.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.members.keys().cloned().collect()
    }

    /// A node itself, to ask it what it holds; writes that do not come through the engine are not counted as load.
    pub fn node(&self, node: &NodeId) -> Option<Arc<EmbeddedNode>> {
        self.member(node).map(|member| Arc::clone(&member.node))
    }

    /// How long an operation would wait at a node now; zero for a node that does not exist.
    pub fn backlog(&self, node: &NodeId) -> Duration {
        self.member(node).map(|member| member.service.backlog()).unwrap_or_default()
    }

    /// Rows and bytes stored of a shard at its owner.
    ///
    /// # Errors
    /// [`ReadError`] if there is no such shard or its store fails.
    pub async fn size(&self, shard: &ShardId) -> Result<(u64, u64), ReadError> {
        let route = self.router.of(shard).ok_or_else(|| ReadError::UnknownShard { shard: shard.clone() })?;
        let owner = route.owner();
        let Some(member) = owner.as_ref().and_then(|owner| self.member(&owner.node)) else { return Ok((0, 0)) };
        let wanted = shard.clone();
        let size = member.call(move |node| node.size(&wanted)).await;
        size.map_err(|source| ReadError::Failed { shard: shard.clone(), source })
    }

    /// Gives a shard a scale of its own, for modelled shards that differ in what a stored byte stands for.
    pub fn set_scale(&self, shard: &ShardId, scale: LoadScale) {
        self.ledger.set_scale(shard.clone(), scale);
    }

    /// Load of each shard and each node's residual since the last call, in units of load.
    ///
    /// # Errors
    /// [`ReadError`] if a shard's size cannot be told.
    pub async fn observe(&self) -> Result<Vec<Observation>, ReadError> {
        let mut held = BTreeMap::new();
        for (shard, owner) in self.router.owners() {
            let (_, bytes) = self.size(&shard).await?;
            held.insert(shard, Held { node: owner.map(|owner| owner.node), bytes });
        }
        let clock = &self.clock;
        Ok(self.ledger.observe(&held, &self.nodes(), clock.model(), |ms| clock.real_duration(ms)))
    }

    pub(super) fn member(&self, node: &NodeId) -> Option<&Member> {
        self.members.get(node)
    }

    pub(super) fn router(&self) -> &Router {
        &self.router
    }

    pub(super) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Finds the owner, takes a turn there, and does the operation; waits in the queue while there is no owner to do it.
    async fn operate(&self, shard: &ShardId, operation: Operation, cost: Cost) -> Result<Answer, Miss> {
        let route = self.router.of(shard).ok_or(Miss::UnknownShard)?;
        let started = self.clock.monotonic();
        let operation = Arc::new(operation);
        let mut changes = route.subscribe();
        let mut place = None;
        loop {
            let owner = changes.borrow_and_update().clone();
            let refusal = match owner {
                None => None,
                Some(owner) => match self.attempt(shard, &owner, &operation, cost).await? {
                    Ok(answer) => {
                        let latency = self.clock.monotonic().saturating_sub(started);
                        self.ledger.answered(shard, cost, operation.bytes_written(), latency);
                        return Ok(answer);
                    }
                    Err(refusal) => Some(refusal),
                },
            };
            let place = match &mut place {
                Some(place) => place,
                None => place.insert(self.queue_up(&route)?),
            };
            let retry_in = match &refusal {
                Some(Refusal::Fenced { until, .. }) => until.since(self.clock.real()).saturating_add(RETRY),
                _ => self.settings.queue_for,
            };
            tokio::select! {
                changed = changes.changed() => {
                    changed.map_err(|_| Miss::Busy("the engine is shutting down".to_owned()))?;
                }
                () = tokio::time::sleep(retry_in) => {}
                () = &mut place.patience => return Err(Miss::Busy(why(refusal.as_ref()))),
            }
        }
    }

    /// One try at one owner; a refusal means that nothing was done.
    async fn attempt(
        &self,
        shard: &ShardId,
        owner: &Owner,
        operation: &Arc<Operation>,
        cost: Cost,
    ) -> Result<Result<Answer, Refusal>, Miss> {
        let Some(member) = self.member(&owner.node) else {
            return Err(Miss::Busy(format!("its owner {} is no node of this engine", owner.node)));
        };
        member.service.serve(cost.service).await.map_err(|e: Overloaded| Miss::Busy(e.to_string()))?;
        self.ledger.served(shard, cost);
        let (shard, epoch, operation) = (shard.clone(), owner.epoch, Arc::clone(operation));
        let answer = member
            .call(move |node| match operation.as_ref() {
                Operation::Read { key } => node.read(&shard, epoch, key).map(Answer::Value),
                Operation::Write { write_id, key, value } => {
                    node.write(&shard, epoch, *write_id, key, value.as_deref()).map(|_| Answer::Written(epoch))
                }
            })
            .await;
        match answer {
            Ok(answer) => Ok(Ok(answer)),
            Err(NodeError::Refused(refusal)) => Ok(Err(refusal)),
            Err(error) => Err(Miss::Node(error)),
        }
    }

    fn queue_up(&self, route: &Route) -> Result<Place, Miss> {
        let permit = route.enter().ok_or_else(|| {
            let most = self.settings.queue_operations;
            Miss::Busy(format!("{most} operations wait for its owner already"))
        })?;
        Ok(Place { _permit: permit, patience: Box::pin(tokio::time::sleep(self.settings.queue_for)) })
    }
}

/// How long after a fence's deadline a waiting operation tries again.
const RETRY: Duration = Duration::from_millis(1);

/// A place in a shard's queue.
struct Place {
    _permit: OwnedSemaphorePermit,
    patience: std::pin::Pin<Box<tokio::time::Sleep>>,
}

fn why(refusal: Option<&Refusal>) -> String {
    refusal.map_or_else(|| "its owner is being changed".to_owned(), ToString::to_string)
}

impl Operation {
    fn bytes_written(&self) -> usize {
        match self {
            Operation::Read { .. } => 0,
            Operation::Write { key, value, .. } => key.len() + value.as_ref().map_or(0, Vec::len),
        }
    }
}

/// Where the stores say that shards are open, in the newest epoch; `None` for a shard that is open nowhere.
fn owners(members: &BTreeMap<NodeId, Member>) -> Result<BTreeMap<ShardId, Option<Owner>>, EngineError> {
    let mut owners: BTreeMap<ShardId, Option<Owner>> = BTreeMap::new();
    for (id, member) in members {
        let shards = member.node.shards().map_err(|source| EngineError::Node { node: id.clone(), source })?;
        for (shard, meta) in shards {
            let owner = owners.entry(shard).or_default();
            if meta.is_readable() && owner.as_ref().is_none_or(|known| known.epoch < meta.epoch) {
                *owner = Some(Owner { node: id.clone(), epoch: meta.epoch });
            }
        }
    }
    Ok(owners)
}
