//! The day: clients, serving, control and moves at once; then the accounts.

use foreshard_api::{ForecastClient, ForecastQuery};
use foreshard_control::{ControlLoop, LoopParts, LoopSettings, Mode, TickReport};
use foreshard_datasets::{DecisionLog, OutcomeLog};
use foreshard_domain::{Clock, Metric, NodeId, Outcome, Product, SeriesForecast, ShardId, Step, Timestamp};
use foreshard_migrator::{Backend, DriverConfig, MigrationRecord, StateStore};
use foreshard_policy::{Move, PolicySettings};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

use super::clock::DayClock;
use super::cluster::{Cluster, prior};
use super::ledger::WriteCheck;
use super::scenario::Scenario;
use super::traffic::{self, Traffic};
use super::{DemoError, DemoProgress};

/// Model minutes between two rounds of planning.
const PLAN_EVERY_MS: i64 = 10 * 60_000;
/// Model minutes between two forecasts that are scored.
const ISSUE_EVERY_MS: i64 = 3_600_000;
/// How long a source's copy is kept: shorter than the cool-down of its shard, so that it never holds a move.
const RETENTION_MS: i64 = 30 * 60_000;
/// Progress is told this often, in model hours.
const TELL_EVERY_HOURS: i64 = 3;

/// What the day runs on.
pub struct Stage {
    /// Workload, nodes, placement.
    pub scenario: Arc<Scenario>,
    /// Time.
    pub clock: Arc<DayClock>,
    /// The engine.
    pub cluster: Cluster,
    /// Owners, plans, migrations.
    pub store: Arc<dyn StateStore>,
    /// Where serving listens.
    pub server: SocketAddr,
    /// Seed.
    pub seed: u64,
}

/// What the day brought.
pub struct Lived {
    /// What clients know.
    pub traffic: Traffic,
    /// The checker's finding.
    pub check: WriteCheck,
    /// How migrations ended.
    pub outcomes: Vec<Outcome>,
    /// Migrations as the state store tells them.
    pub migrations: Vec<MigrationRecord>,
    /// What serving forecast, every hour.
    pub issued: Vec<SeriesForecast>,
    /// When the day ended.
    pub until: Timestamp,
}

/// What control did, as it goes.
#[derive(Debug, Default)]
struct Diary {
    outcomes: Vec<Outcome>,
    problems: Vec<String>,
    refused: Vec<String>,
    /// Moves that were told and have not ended: plans repeat what is still to come.
    told: BTreeMap<ShardId, NodeId>,
}

impl Stage {
    /// Lives through the day.
    ///
    /// # Errors
    /// [`DemoError`] if a part that the day needs fails.
    pub async fn live(&self, folder: &Path, out: &mut dyn DemoProgress) -> Result<Lived, DemoError> {
        let until = self.scenario.day.plus_steps(1, Step::DAY);
        let (mut control, cancel) = (self.control(folder).await?, CancellationToken::new());
        self.clock.run();
        let traffic = tokio::spawn({
            let day = traffic::Day {
                engine: Arc::clone(&self.cluster.engine),
                scenario: Arc::clone(&self.scenario),
                clock: Arc::clone(&self.clock),
                scale: self.cluster.scale,
                write_id_window: self.cluster.write_id_window,
                until,
                seed: self.seed,
            };
            async move { traffic::live(&day).await }
        });
        let issued = tokio::spawn(issue(self.client().await?, Arc::clone(&self.clock), self.scenario.day, until));
        let steering = {
            let (cancel, clock, start) = (cancel.clone(), Arc::clone(&self.clock), self.scenario.day);
            let (said, hears) = tokio::sync::mpsc::unbounded_channel();
            let task = tokio::spawn(async move {
                // The first look is worth something when there was a whole step to look at.
                clock.reach(start.plus_steps(1, Step::FIVE_MINUTES)).await;
                let mut diary = Diary::default();
                let ran = control.run(&cancel, &mut |tick| diary.note(tick, &said)).await;
                ran.map(|()| diary)
            });
            (task, hears)
        };
        let (steering, mut hears) = steering;
        self.tell(until, &mut hears, out).await;
        let traffic = traffic.await.and_then(|lived| lived).map_err(DemoError::Task)?;
        cancel.cancel();
        let diary = steering.await.map_err(DemoError::Task)?.map_err(|source| DemoError::Control(Box::new(source)))?;
        for refused in &diary.refused {
            out.say(&format!("  the checker refused a plan: {refused}"));
        }
        for problem in diary.problems.iter().take(5) {
            out.say(&format!("  {problem}"));
        }
        let issued = issued.await.map_err(DemoError::Task)?;
        out.say("reading every written key back from its owner");
        let check = self.check(&traffic).await?;
        let state = self.store.read().await.map_err(DemoError::State)?;
        let migrations = state.migrations.values().map(|record| record.as_ref().clone()).collect();
        Ok(Lived { traffic, check, outcomes: diary.outcomes, migrations, issued, until })
    }

    async fn client(&self) -> Result<ForecastClient, DemoError> {
        ForecastClient::connect(&format!("http://{}", self.server)).await.map_err(DemoError::Client)
    }

    async fn control(&self, folder: &Path) -> Result<ControlLoop, DemoError> {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let backend = Arc::clone(&self.cluster.backend) as Arc<dyn Backend>;
        let config = DriverConfig { retention_ms: RETENTION_MS, ..DriverConfig::default() };
        let parts = LoopParts {
            backend,
            store: Arc::clone(&self.store),
            driver: config,
            source: Arc::new(self.client().await?),
            clock,
            topology: self.scenario.topology.clone(),
            communication: Vec::new(),
            cost_model: prior(),
            outcomes: OutcomeLog::open(folder.join("outcomes")).map_err(DemoError::Log)?,
            decisions: DecisionLog::open(folder.join("decisions")).map_err(DemoError::Log)?,
        };
        let settings = LoopSettings {
            mode: Mode::Auto,
            holder: "demo".to_owned(),
            observe_every_ms: Step::FIVE_MINUTES.as_ms(),
            plan_every_ms: PLAN_EVERY_MS,
            lateness_ms: PLAN_EVERY_MS,
            seed: self.seed,
            policy: PolicySettings::default(),
            ..LoopSettings::default()
        };
        Ok(ControlLoop::start(parts, settings).await.map_err(|source| DemoError::Control(Box::new(source)))?.0)
    }

    /// Tells how the day goes until it is over.
    async fn tell(
        &self,
        until: Timestamp,
        hears: &mut tokio::sync::mpsc::UnboundedReceiver<String>,
        out: &mut dyn DemoProgress,
    ) {
        let mut hour = 0;
        while self.clock.model() < until {
            let next = self.scenario.day.plus_ms((hour + TELL_EVERY_HOURS) * 3_600_000).min(until);
            tokio::select! {
                Some(line) = hears.recv() => out.say(&line),
                () = self.clock.reach(next) => {
                    hour += TELL_EVERY_HOURS;
                    out.progress("the day", hour.unsigned_abs(), 24);
                }
            }
        }
        while let Ok(line) = hears.try_recv() {
            out.say(&line);
        }
    }

    /// Reads every key that a client wrote from its present owner and compares it with what the client was told.
    async fn check(&self, traffic: &Traffic) -> Result<WriteCheck, DemoError> {
        let mut total = WriteCheck::default();
        for ((shard, key), ledger) in &traffic.keys {
            let value = self.cluster.engine.get(shard, key).await.map_err(DemoError::ReadBack)?;
            total += ledger.compare(value.as_deref());
        }
        Ok(total)
    }
}

impl Diary {
    fn note(&mut self, tick: &TickReport, said: &tokio::sync::mpsc::UnboundedSender<String>) {
        if let Some(round) = &tick.planned {
            if let foreshard_control::PlanFate::Refused(violations) = &round.fate {
                self.refused.extend(violations.iter().cloned());
            }
            if round.fate == foreshard_control::PlanFate::Accepted {
                for planned in &round.plan.moves {
                    self.announce(tick.now, planned, said);
                }
            }
        }
        for outcome in &tick.ended {
            let minutes = outcome.actual_duration_ms as f64 / 60_000.0;
            let line = format!(
                "  {}  {} {}: {:.1} minutes, writes waited {:.0} ms",
                clock_of(outcome.ended_at),
                outcome.shard,
                outcome.result.name(),
                minutes,
                outcome.actual_fence_ms
            );
            let _ = said.send(line);
            self.told.remove(&outcome.shard);
        }
        self.outcomes.extend(tick.ended.iter().cloned());
        self.problems.extend(tick.problems.iter().map(ToString::to_string));
    }
}

impl Diary {
    /// Tells a planned move, once.
    fn announce(&mut self, now: Timestamp, planned: &Move, said: &tokio::sync::mpsc::UnboundedSender<String>) {
        let (shard, from, to, why) = (&planned.shard, &planned.source, &planned.target, &planned.reason.text);
        if self.told.insert(shard.clone(), to.clone()).as_ref() != Some(to) {
            let start = clock_of(planned.start);
            // Nobody listening any more is no reason to stop.
            let _ = said.send(format!("  {}  plan: {shard} from {from} to {to} at {start}; {why}", clock_of(now)));
        }
    }
}

/// Hour and minute of a time.
fn clock_of(ts: Timestamp) -> String {
    ts.to_string().get(11..16).unwrap_or_default().to_owned()
}

/// Asks serving for forecasts every hour and keeps what it answers; a refused request is a gap in the scores, not the end of
/// the day.
async fn issue(client: ForecastClient, clock: Arc<DayClock>, day: Timestamp, until: Timestamp) -> Vec<SeriesForecast> {
    let query = ForecastQuery {
        shards: Vec::new(),
        metrics: vec![Metric::CpuUtil],
        product: Product::NextHours,
        levels: Vec::new(),
    };
    let mut issued = Vec::new();
    let mut at = day.plus_ms(ISSUE_EVERY_MS);
    while at < until {
        clock.reach(at).await;
        match client.forecast(&query).await {
            Ok(forecasts) => issued.extend(forecasts),
            Err(error) => tracing::warn!("a forecast of the day was not answered: {error}"),
        }
        at = at.plus_ms(ISSUE_EVERY_MS);
    }
    issued
}
