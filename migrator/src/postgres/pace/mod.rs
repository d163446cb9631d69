//! How fast a copy and a comparison may go: a control loop with a target.
//!
//! Twice a second while rows are copied or compared, the loop looks at what clients and readers of the logs feel, and sets the
//! bytes per second that all connections of the move share.
//! - `look`: what the poolers and the servers tell: how long clients' statements took, how late standbys and other readers
//!   are. No extension is needed. Where no pooler answers, a commit of our own that writes nothing but a message to the log
//!   is timed instead.
//! - `clients`: how much slower statements are than without the copy. What they take without it is measured in between, while the
//!   copy rests for half a second: a mean of yesterday, or of another mix of statements, says nothing.
//! - `controller`: faster while nobody suffers, slower at once if somebody does.
//! - `shares`: caps per node and of all moves together.
//! - `bucket`: holds the connections to it.

mod bucket;
mod clients;
mod controller;
mod look;
mod shares;

pub(crate) use bucket::Pace;
pub(super) use clients::Total;
pub(super) use shares::Shares;

use foreshard_domain::{MigrationId, NodeId};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

use super::backend::PostgresBackend;
use crate::cause::with_causes;
use crate::{BackendError, MoveSpec};
use clients::Clients;
use controller::{Controller, Order, Seen, Targets};
use look::{Looker, Looks};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(500);
/// How long a look may take; what hangs is looked at again the next time.
const PATIENCE: Duration = Duration::from_secs(2);
/// After so many looks that were left out nobody was there to copy.
const PAUSED: u32 = 10;
/// A line of the log comes with each new limit, and after so many looks.
const LINES: u32 = 20;

/// The control loop of one move.
pub(crate) struct Pacer {
    pace: Arc<Pace>,
    migration: MigrationId,
    nodes: [NodeId; 2],
    /// Held by the call that works.
    state: tokio::sync::Mutex<State>,
}

struct State {
    looker: Looker,
    clients: Clients,
    controller: Controller,
    /// When the next look is due, when the last was, and what had been let through then.
    due: Instant,
    last: Instant,
    bytes: u64,
    told: (Instant, Order),
}

impl Pacer {
    /// The first look; until the second one nothing flows.
    pub async fn begin(backend: &PostgresBackend, spec: &MoveSpec) -> Self {
        let settings = &backend.settings;
        let targets = Targets {
            slowdown: settings.pace.latency_factor,
            lag_s: settings.pace.lag_limit.as_secs_f64(),
            floor: settings.pace.floor_bytes_per_s,
        };
        let now = Instant::now();
        let controller = Controller::new(targets);
        let mut state = State {
            looker: Looker::default(),
            clients: Clients::default(),
            told: (now, controller.order()),
            controller,
            // A look that comes at once sees nobody ask, and takes the database for one that nobody uses.
            due: now + EVERY,
            last: now,
            bytes: 0,
        };
        let pace = Arc::new(Pace::new(settings.copy_bytes_per_s));
        pace.rest(state.controller.order().rest);
        if let Ok(looks) = look(backend, spec, &mut state.looker).await {
            state.clients.saw(&looks.databases, true);
        }
        Self {
            pace,
            migration: spec.migration.clone(),
            nodes: [spec.source.clone(), spec.target.clone()],
            state: tokio::sync::Mutex::new(state),
        }
    }

    /// What the connections are held to.
    pub fn pace(&self) -> Arc<Pace> {
        Arc::clone(&self.pace)
    }

    /// Does some work, and meanwhile looks and sets the pace.
    pub async fn during<T>(&self, backend: &PostgresBackend, spec: &MoveSpec, work: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = work => done,
            never = self.follow(backend, spec) => match never {},
        }
    }

    async fn follow(&self, backend: &PostgresBackend, spec: &MoveSpec) -> std::convert::Infallible {
        let mut state = self.state.lock().await;
        loop {
            tokio::time::sleep_until(state.due).await;
            state.due = Instant::now() + EVERY;
            let looks = match look(backend, spec, &mut state.looker).await {
                Ok(looks) => looks,
                Err(error) => {
                    tracing::warn!(migration = %spec.migration, error = with_causes(&error), "the pace is set blindly");
                    Looks::default()
                }
            };
            self.set(backend, &mut state, &looks);
        }
    }

    fn set(&self, backend: &PostgresBackend, state: &mut State, looks: &Looks) {
        let now = Instant::now();
        let bytes = self.pace.taken();
        let passed = now.saturating_duration_since(state.last).as_secs_f64();
        // A paused move rests too.
        let resting = state.controller.order().rest || passed > (EVERY * PAUSED).as_secs_f64();
        state.clients.saw(&looks.databases, resting);
        let used = bytes.saturating_sub(state.bytes) as f64 / passed.max(1e-3);
        (state.last, state.bytes) = (now, bytes);
        let seen = Seen {
            statements: state.clients.statements(),
            knows_rest: state.clients.knows_rest(),
            slowdown: state.clients.slowdown(),
            lag_s: looks.lag_s,
            backlog: looks.backlog as f64 / backend.settings.wal_limit_bytes.max(1) as f64,
            used,
            ceiling: backend.shares.of(&self.migration, &self.nodes, &backend.settings, now),
        };
        let order = state.controller.look(&seen);
        if resting && !order.rest {
            state.clients.begin_window();
        }
        if order.slower {
            state.clients.begin_window();
        }
        self.pace.set(order.rate.is_finite().then_some(order.rate));
        self.pace.rest(order.rest);
        let (at, told) = state.told;
        if told.limit != order.limit || now.saturating_duration_since(at) > EVERY * LINES {
            tracing::info!(
                migration = %self.migration,
                bytes_per_s = order.rate,
                used_bytes_per_s = used,
                limited_by = order.limit.name(),
                slowdown = seen.slowdown,
                lag_s = seen.lag_s,
                "pace"
            );
            state.told = (now, order);
        }
    }
}

async fn look(backend: &PostgresBackend, spec: &MoveSpec, looker: &mut Looker) -> Result<Looks, BackendError> {
    tokio::time::timeout(PATIENCE, looker.look(backend, spec)).await.unwrap_or_else(|elapsed| {
        Err(BackendError::Transient { doing: "looking how clients fare".into(), source: Box::new(elapsed) })
    })
}
