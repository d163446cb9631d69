//! Look ahead, plan, check, accept.

use foreshard_domain::{ModelVersion, ScenarioSet, Timestamp};
use foreshard_migrator::StoreError;
use foreshard_policy::{Plan, Planned, PlanningInput};
use std::sync::Arc;

use crate::ControlError;
use crate::assemble::{Assembled, Known, assemble};
use crate::control_loop::ControlLoop;
use crate::report::{Foresight, PlanFate, PlanRound, TickReport};
use crate::source::all_shards;
use crate::view::{View, acceptance};

/// How often a plan is offered to the state store while migrations commit in between.
const ACCEPT_TRIES: usize = 8;

impl ControlLoop {
    /// One round of planning; `None` while nothing was ever observed.
    pub(crate) async fn plan_round(
        &mut self,
        now: Timestamp,
        report: &mut TickReport,
    ) -> Result<Option<PlanRound>, ControlError> {
        let Some((scenarios, foresight)) = self.look_ahead(report).await? else { return Ok(None) };
        let state = self.parts.store.read().await.map_err(ControlError::ReadState)?;
        let view = View::of(&state, now);
        self.rounds += 1;
        let known = Known {
            now,
            seed: self.settings.seed.wrapping_add(self.rounds),
            parent: view.plan.clone(),
            topology: &self.parts.topology,
            placement: &view.placement,
            in_flight: view.in_flight.clone(),
            last_moved: &view.last_moved,
            retained: &view.retained,
            recent: &self.recent,
            scenarios,
            communication: &self.parts.communication,
            cost_model: &self.parts.cost_model,
            settings: &self.settings.policy,
        };
        let Assembled { input, flat } = assemble(known).map_err(ControlError::Assemble)?;
        let foresight = foresight.with_flat(flat);
        // The search is pure computation of some milliseconds and more: kept off the threads that answer clients.
        let (input, planned) = off_thread(move || {
            let planned = foreshard_policy::plan(&input);
            (input, planned)
        })
        .await?;
        let planned = planned.map_err(ControlError::Plan)?;
        let fate = self.decide_fate(&input, &planned, foresight.version()).await?;
        let Planned { plan, report } = planned;
        Ok(Some(PlanRound { plan, report, foresight, fate }))
    }

    /// Scenarios of serving, or the flat future if serving cannot be asked; `None` if nothing was ever observed.
    async fn look_ahead(&mut self, report: &mut TickReport) -> Result<Option<(ScenarioSet, Foresight)>, ControlError> {
        let product = self.settings.product;
        let seed = self.settings.seed.wrapping_add(self.rounds);
        let why = match self.parts.source.scenarios(&all_shards(product, self.settings.scenarios, seed)).await {
            Ok((set, provenance)) => {
                let version = provenance.iter().find_map(|p| p.provenance.version.clone());
                let fallbacks = provenance.iter().filter(|p| p.provenance.fallback.is_some()).count();
                return Ok(Some((set, Foresight::Forecast { version, fallbacks, flat: Vec::new() })));
            }
            Err(source) => {
                let why = source.to_string();
                report.note(ControlError::Scenarios(source));
                why
            }
        };
        let flat = self.recent.flat_scenarios(product.step(), product.horizon()).transpose();
        let flat = flat.map_err(ControlError::Assemble)?;
        Ok(flat.map(|set| (set, Foresight::LastObserved { why })))
    }

    /// Checks the plan (P4), puts it into force if it says anything new, and keeps the decisions for the log.
    async fn decide_fate(
        &mut self,
        input: &PlanningInput,
        planned: &Planned,
        version: Option<ModelVersion>,
    ) -> Result<PlanFate, ControlError> {
        if let Err(violations) = foreshard_policy::check(input, &planned.plan) {
            let words: Vec<String> = violations.iter().map(ToString::to_string).collect();
            tracing::error!(plan = %planned.plan.id, violations = ?words, "the checker refused the plan; it will not run");
            return Ok(PlanFate::Refused(words));
        }
        self.unlogged_decisions.extend(foreshard_policy::decisions(input, planned, version));
        // A plan without moves is needed only to withdraw moves that are not begun yet.
        let pending = self.plan.iter().flat_map(|plan| &plan.moves).any(|m| !self.begun.contains(&m.shard));
        if planned.plan.moves.is_empty() && !pending {
            return Ok(PlanFate::Unneeded);
        }
        let accepted = self.accept(&planned.plan).await?;
        if accepted {
            self.plan = Some(planned.plan.clone());
            self.begun.clear();
        }
        Ok(if accepted { PlanFate::Accepted } else { PlanFate::Overtaken })
    }

    /// Puts a plan into force if its parent still is; `false` if another one is by now.
    async fn accept(&self, plan: &Plan) -> Result<bool, ControlError> {
        let plan = Arc::new(plan.clone());
        let failed = |source| ControlError::AcceptPlan { plan: plan.id.to_string(), source: Box::new(source) };
        let mut refused = None;
        for _ in 0..ACCEPT_TRIES {
            let state = self.parts.store.read().await.map_err(ControlError::ReadState)?;
            if state.plan_in_force != plan.parent {
                return Ok(false);
            }
            match self.parts.store.commit(state.revision, self.term, acceptance(&state, &plan)).await {
                Ok(_) => return Ok(true),
                // A migration wrote its journal in between: look again.
                Err(conflict @ StoreError::Conflict { .. }) => refused = Some(conflict),
                Err(source) => return Err(failed(source)),
            }
        }
        refused.map_or(Ok(false), |source| Err(failed(source)))
    }
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ControlError> {
    tokio::task::spawn_blocking(work).await.map_err(ControlError::Task)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ForecastSource, LoopParts, LoopSettings, Mode, Recent};
    use async_trait::async_trait;
    use foreshard_api::{ClientError, IngestSummary, ScenarioQuery, SeriesProvenance};
    use foreshard_datasets::{DecisionLog, OutcomeLog};
    use foreshard_domain::{
        Clock, CostModel, ManualClock, Node, NodeId, NodeState, Observation, PerResource, Placement, RealTime, ShardId,
        Topology, ZoneId,
    };
    use foreshard_migrator::embedded::{EmbeddedBackend, EmbeddedEngine, EngineSettings, MoveSettings};
    use foreshard_migrator::{DriverConfig, MemoryStore, StateStore};
    use foreshard_policy::PolicySettings;
    use std::collections::BTreeMap;

    /// Nobody answers.
    struct Away;

    #[async_trait]
    impl ForecastSource for Away {
        async fn ingest(&self, _: Vec<Observation>) -> Result<IngestSummary, ClientError> {
            Err(ClientError::Call { method: "Ingest", source: Box::new(tonic::Status::unavailable("away")) })
        }

        async fn scenarios(&self, _: &ScenarioQuery) -> Result<(ScenarioSet, Vec<SeriesProvenance>), ClientError> {
            Err(ClientError::Call { method: "Scenarios", source: Box::new(tonic::Status::unavailable("away")) })
        }
    }

    fn topology() -> Topology {
        let node = |name: &str| Node {
            id: NodeId::new(name).unwrap(),
            zone: ZoneId::new(name).unwrap(),
            speed: 1.0,
            capacity: PerResource { cpu: Some(100.0), memory: None, io: None },
            state: NodeState::Active,
        };
        Topology { nodes: vec![node("n1"), node("n2")], ..Topology::default() }
    }

    /// Two shards of 70 on one node of 100; the other one is idle.
    fn input() -> PlanningInput {
        let shards = ["a", "b"].map(|name| ShardId::new(name).unwrap());
        let mut recent = Recent::default();
        let row = |shard: &ShardId| Observation {
            cpu_util: Some(70.0),
            data_bytes: Some(1e9),
            ..Observation::empty(shard.clone(), Timestamp::from_ms(0))
        };
        recent.observe(&shards.each_ref().map(row));
        let placement: Placement = shards.map(|shard| (shard, NodeId::new("n1").unwrap())).into_iter().collect();
        let scenarios = recent.flat_scenarios(foreshard_domain::Step::FIVE_MINUTES, 48).unwrap().unwrap();
        let known = Known {
            now: Timestamp::from_ms(300_000),
            seed: 1,
            parent: None,
            topology: &topology(),
            placement: &placement,
            in_flight: Vec::new(),
            last_moved: &BTreeMap::new(),
            retained: &BTreeMap::new(),
            recent: &recent,
            scenarios,
            communication: &[],
            cost_model: &CostModel::prior(6e7),
            settings: &PolicySettings::default(),
        };
        assemble(known).unwrap().input
    }

    async fn control(folder: &std::path::Path, store: Arc<dyn StateStore>) -> ControlLoop {
        let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_ms(300_000), RealTime::from_ms(0)));
        let engine = EmbeddedEngine::new(Vec::new(), Arc::clone(&clock), EngineSettings::default()).unwrap();
        let parts = LoopParts {
            backend: Arc::new(EmbeddedBackend::new(Arc::new(engine), MoveSettings::default(), Arc::clone(&clock))),
            store,
            driver: DriverConfig::default(),
            source: Arc::new(Away),
            clock,
            topology: topology(),
            communication: Vec::new(),
            cost_model: CostModel::prior(6e7),
            outcomes: OutcomeLog::open(folder.join("outcomes")).unwrap(),
            decisions: DecisionLog::open(folder.join("decisions")).unwrap(),
        };
        let settings = LoopSettings { mode: Mode::Auto, ..LoopSettings::default() };
        ControlLoop::start(parts, settings).await.unwrap().0
    }

    #[tokio::test]
    async fn p4_a_plan_that_the_checker_refuses_never_comes_into_force() {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn StateStore> = Arc::new(MemoryStore::default());
        let mut control = control(folder.path(), Arc::clone(&store)).await;
        let input = input();
        let good = foreshard_policy::plan(&input).unwrap();
        assert_eq!(good.plan.moves.len(), 1);
        let mut bad = good.clone();
        // As if the planner had forgotten that copies take time: the other shard goes too, and the target is over.
        bad.plan.moves.push(foreshard_policy::Move {
            shard: ShardId::new(if bad.plan.moves[0].shard.as_str() == "a" { "b" } else { "a" }).unwrap(),
            ..bad.plan.moves[0].clone()
        });
        let fate = control.decide_fate(&input, &bad, None).await.unwrap();
        assert!(matches!(&fate, PlanFate::Refused(why) if !why.is_empty()), "{fate:?}");
        assert!(control.plan.is_none() && control.unlogged_decisions.is_empty());
        assert_eq!(store.read().await.unwrap().plan_in_force, None);
        assert_eq!(control.decide_fate(&input, &good, None).await.unwrap(), PlanFate::Accepted);
        assert_eq!(store.read().await.unwrap().plan_in_force, Some(good.plan.id));
    }
}
