//! A controller, its store and the scripted engine.

use foreshard_domain::{Consistency, Epoch, Owner, PlanId};
use foreshard_migrator::{
    Backend, Change, Driver, DriverConfig, DriverError, FaultyStore, MemoryStore, MigrationRecord, MigrationState,
    StateStore, StoreFault,
};
use std::sync::Arc;
use std::time::Duration;

use crate::common::{mv, node, plan, shard};
use crate::faulty_backend::FaultyBackend;
use crate::world::{RETENTION_MS, World, check_owner};

pub const FENCE_LIMIT_MS: i64 = 1_000;

pub fn config() -> DriverConfig {
    DriverConfig {
        fence_limit: Duration::from_millis(1_000),
        more_fences: 2,
        near_changes: 1,
        catch_up_rounds: 100,
        retries: 2,
        first_backoff: Duration::ZERO,
        retention_ms: RETENTION_MS,
        ..DriverConfig::default()
    }
}

/// What a migration is to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    Finished,
    RolledBack,
}

pub struct Rig {
    pub memory: Arc<MemoryStore>,
    pub world: Arc<World>,
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut World)) -> Self {
        let memory = Arc::new(MemoryStore::new());
        let mut world = World::new(memory.clone());
        change(&mut world);
        let term = memory.take_leadership("setup").await.unwrap();
        let at = memory.read().await.unwrap().revision;
        let owner = Owner { node: node(0), epoch: Epoch(1) };
        let changes = vec![
            Change::SetOwner { shard: shard(0), expected: None, owner },
            Change::PutPlan { plan: Arc::new(plan("p0", None)) },
        ];
        memory.commit(at, term, changes).await.unwrap();
        Self { memory, world: Arc::new(world) }
    }

    pub async fn driver_on(&self, store: Arc<dyn StateStore>, backend: Arc<dyn Backend>) -> Arc<Driver> {
        let term = store.take_leadership("test").await.unwrap();
        Arc::new(Driver::new(store, backend, self.world.clock.clone(), config(), term))
    }

    pub async fn driver(&self) -> Arc<Driver> {
        self.driver_on(self.memory.clone(), self.world.clone()).await
    }

    pub async fn record(&self) -> MigrationRecord {
        self.memory.read().await.unwrap().migrations.values().next().unwrap().as_ref().clone()
    }

    /// A new controller after a crash, a while later.
    pub async fn recover(&self, goal: Goal, after_ms: i64) -> Result<MigrationRecord, DriverError> {
        self.world.clock.advance_ms(after_ms);
        let driver = self.driver().await;
        for id in driver.recover().await? {
            driver.run(&id).await?;
        }
        pursue(&driver, &self.world, goal).await
    }

    /// What must hold whenever a migration stands still, whatever happened on the way.
    pub async fn check(&self, context: &str) {
        let state = self.memory.read().await.unwrap();
        for record in state.migrations.values() {
            assert!(record.state.is_at_rest(), "{context}: {:?}", record.state);
            let owner = record.owner();
            assert_eq!(state.owners[&shard(0)], owner, "{context}");
            check_owner(&self.world, &owner, context);
            let inner = self.world.look();
            let rows: Vec<_> = state.objects.keys().cloned().collect();
            let there: Vec<_> = inner.objects.iter().cloned().collect();
            assert_eq!(rows, there, "{context}: M6");
            let copies = if record.state.is_terminal() { 1 } else { 2 };
            assert_eq!(inner.copies.len(), copies, "{context}: {:?}", record.state);
        }
    }
}

/// Works towards the goal from wherever the migration stands.
pub async fn pursue(driver: &Driver, world: &World, goal: Goal) -> Result<MigrationRecord, DriverError> {
    let id = driver.start(mv(0, 0, 1), PlanId::new("p0").unwrap(), Consistency::Strict).await;
    let id = match id {
        Ok(id) => id,
        // Already moved by a migration that has been recorded under its name.
        Err(DriverError::NotOwner { .. }) => panic!("a repeated start must find its migration"),
        Err(other) => return Err(other),
    };
    let record = driver.run(&id).await?;
    match (goal, &record.state) {
        (Goal::Finished, MigrationState::Reversible { .. }) => {
            world.clock.advance_ms(RETENTION_MS);
            driver.finish(&id).await
        }
        (Goal::RolledBack, MigrationState::Reversible { .. }) => driver.rollback(&id).await,
        _ => Ok(record),
    }
}

pub fn end(goal: Goal) -> &'static str {
    match goal {
        Goal::Finished => "done",
        Goal::RolledBack => "rolled_back",
    }
}

pub async fn calls_of(goal: Goal) -> (u64, u64) {
    let rig = Rig::new().await;
    let backend = Arc::new(FaultyBackend::new(rig.world.clone(), None));
    let store = Arc::new(FaultyStore::new(rig.memory.clone(), StoreFault::None));
    let driver = rig.driver_on(store.clone(), backend.clone()).await;
    let record = pursue(&driver, &rig.world, goal).await.unwrap();
    assert_eq!(record.state.name(), end(goal));
    rig.check("without a fault").await;
    (backend.calls(), store.commits())
}
