//! Who owns which shard, as clients are to believe, and where they wait while that changes.

use foreshard_domain::{Epoch, NodeId, Owner, ShardId};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// One shard's route. Whoever has to wait subscribes *before* it tries, so that no change is missed.
#[derive(Debug)]
pub(super) struct Route {
    owner: watch::Sender<Option<Owner>>,
    queue: Arc<Semaphore>,
}

impl Route {
    fn new(owner: Option<Owner>, queue: usize) -> Self {
        Self { owner: watch::Sender::new(owner), queue: Arc::new(Semaphore::new(queue)) }
    }

    /// The owner, and a change whenever it may be worth to try again.
    pub fn subscribe(&self) -> watch::Receiver<Option<Owner>> {
        self.owner.subscribe()
    }

    /// A place in the queue, unless it is full.
    pub fn enter(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.queue).try_acquire_owned().ok()
    }

    /// Who it is now.
    pub fn owner(&self) -> Option<Owner> {
        self.owner.borrow().clone()
    }
}

/// A change of owner that would go back in time (M3).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("clients are sent to {} in epoch {} already", known.node, known.epoch)]
pub(super) struct StaleRoute {
    pub known: Owner,
}

/// All routes.
#[derive(Debug)]
pub(super) struct Router {
    queue: usize,
    routes: RwLock<BTreeMap<ShardId, Arc<Route>>>,
}

impl Router {
    /// No routes; in each shard's queue up to `queue` operations may wait.
    pub fn new(queue: usize) -> Self {
        Self { queue: queue.min(Semaphore::MAX_PERMITS), routes: RwLock::default() }
    }

    /// The route of a shard, if there is such a shard.
    pub fn of(&self, shard: &ShardId) -> Option<Arc<Route>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner).get(shard).cloned()
    }

    /// Makes a shard known, with an owner or with one still to come.
    pub fn add(&self, shard: ShardId, owner: Option<Owner>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.entry(shard).or_insert_with(|| Arc::new(Route::new(owner, self.queue)));
    }

    /// Sends clients to `node` in `epoch` and wakes those who wait.
    pub fn set(&self, shard: &ShardId, node: &NodeId, epoch: Epoch) -> Result<(), StaleRoute> {
        let owner = Owner { node: node.clone(), epoch };
        let Some(route) = self.of(shard) else {
            self.add(shard.clone(), Some(owner));
            return Ok(());
        };
        let mut stale = None;
        route.owner.send_if_modified(|known| match known {
            Some(known) if known.epoch > epoch || (known.epoch == epoch && known.node != *node) => {
                stale = Some(StaleRoute { known: known.clone() });
                false
            }
            _ => {
                *known = Some(owner);
                true
            }
        });
        stale.map_or(Ok(()), Err)
    }

    /// Lets those who wait try again.
    pub fn wake(&self, shard: &ShardId) {
        if let Some(route) = self.of(shard) {
            route.owner.send_modify(|_| {});
        }
    }

    /// All shards with their owners.
    pub fn owners(&self) -> BTreeMap<ShardId, Option<Owner>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().map(|(shard, route)| (shard.clone(), route.owner())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m3_routes_never_go_back() {
        let (shard, a, b) = (ShardId::new("s").unwrap(), NodeId::new("a").unwrap(), NodeId::new("b").unwrap());
        let router = Router::new(1);
        router.set(&shard, &a, Epoch(1)).unwrap();
        router.set(&shard, &b, Epoch(2)).unwrap();
        router.set(&shard, &b, Epoch(2)).unwrap();
        assert!(router.set(&shard, &a, Epoch(1)).is_err());
        assert!(router.set(&shard, &a, Epoch(2)).is_err(), "one owner an epoch");
        assert_eq!(router.of(&shard).unwrap().owner(), Some(Owner { node: b, epoch: Epoch(2) }));
    }

    #[test]
    fn the_queue_is_bounded() {
        let shard = ShardId::new("s").unwrap();
        let router = Router::new(1);
        router.add(shard.clone(), None);
        let route = router.of(&shard).unwrap();
        let place = route.enter();
        assert!(place.is_some() && route.enter().is_none());
        drop(place);
        assert!(route.enter().is_some());
    }
}
