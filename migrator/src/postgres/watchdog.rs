//! Resumes poolers when a fence has run out and nobody is there to do it: meant for a process of its own, beside the
//! controller, or one beside each pooler.
//!
//! The servers themselves end a fence at its deadline (M7), but a paused pooler holds clients back until somebody resumes it. The
//! watchdog asks the servers what state the shard is in. It never resumes a shard that is sealed: then clients have to wait for
//! the new route, and resuming them would only show them errors.

use foreshard_domain::NodeId;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

use super::catalog::has_database;
use super::guard;
use super::pooler::{Console, Pooled};
use super::session::{Login, Session};
use super::settings::{PoolerAddress, PostgresSettings};
use crate::BackendError;
use crate::cause::with_causes;

/// Lengths of a fence that a pooler may be paused with the shard open before it is resumed: a controller pauses poolers before
/// it fences.
const GRACE: u32 = 3;

/// What a pooler's paused database is waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A fence stands, the shard is sealed, or no move knows it.
    LeaveIt,
    /// A fence has run out.
    Resume,
    /// The shard is open, and a fence may be about to begin.
    ResumeAfterGrace,
}

/// Looks at poolers again and again.
#[derive(Debug)]
pub struct Watchdog {
    settings: PostgresSettings,
    grace: Duration,
    /// Since when databases have been seen paused without a fence, by pooler and name.
    open_since: Mutex<BTreeMap<(String, String), Instant>>,
}

impl Watchdog {
    /// A watchdog over the poolers and servers of `settings`, for controllers whose fences last at most `fence_limit`. It logs in
    /// as the configured superusers.
    pub fn new(settings: PostgresSettings, fence_limit: Duration) -> Self {
        Self { settings, grace: fence_limit.saturating_mul(GRACE), open_since: Mutex::default() }
    }

    /// Looks every `every`, until it is dropped; failures are logged and looked at again.
    pub async fn run(&self, every: Duration) {
        loop {
            match self.look().await {
                Ok(resumed) => {
                    for what in resumed {
                        tracing::warn!(what, "a fence had run out and nobody resumed the pooler");
                    }
                }
                Err(error) => tracing::warn!(error = with_causes(&error), "the watchdog could not look"),
            }
            tokio::time::sleep(every).await;
        }
    }

    /// Looks once at every pooler; returns what was resumed, as `database at pooler`.
    ///
    /// # Errors
    /// The first error, after all poolers have been looked at.
    pub async fn look(&self) -> Result<Vec<String>, BackendError> {
        let (mut resumed, mut first) = (Vec::new(), None);
        for pooler in &self.settings.poolers {
            match self.look_at(pooler).await {
                Ok(here) => resumed.extend(here),
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) if resumed.is_empty() => Err(error),
            _ => Ok(resumed),
        }
    }

    async fn look_at(&self, pooler: &PoolerAddress) -> Result<Vec<String>, BackendError> {
        let console = Console::open(pooler).await?;
        let mut resumed = Vec::new();
        for pooled in console.databases().await? {
            let name = (pooler.name.clone(), pooled.name.clone());
            let verdict = match self.node_of(&pooled).filter(|_| pooled.paused) {
                Some(node) => self.judge(&node, &pooled.name).await,
                None => Ok(Verdict::LeaveIt),
            };
            // One database whose server is away must not keep the others waiting.
            let verdict = verdict.unwrap_or_else(|error| {
                tracing::warn!(database = pooled.name, error = with_causes(&error), "cannot tell why it is paused");
                Verdict::LeaveIt
            });
            if self.is_due(name, verdict) {
                console.resume(&pooled.name).await?;
                resumed.push(format!("{} at pooler {}", pooled.name, pooler.name));
            }
        }
        Ok(resumed)
    }

    /// Whether it is time to resume.
    fn is_due(&self, name: (String, String), verdict: Verdict) -> bool {
        let mut open_since = self.open_since.lock().unwrap_or_else(PoisonError::into_inner);
        match verdict {
            Verdict::ResumeAfterGrace => open_since.entry(name).or_insert_with(Instant::now).elapsed() >= self.grace,
            Verdict::LeaveIt | Verdict::Resume => {
                open_since.remove(&name);
                verdict == Verdict::Resume
            }
        }
    }

    /// The node that a pooler sends clients of a database to.
    fn node_of(&self, pooled: &Pooled) -> Option<NodeId> {
        let is_there = |peer: (&str, u16)| peer == (pooled.host.as_str(), pooled.port);
        self.settings.nodes.iter().find(|(_, address)| is_there(address.peer())).map(|(node, _)| node.clone())
    }

    async fn judge(&self, node: &NodeId, database: &str) -> Result<Verdict, BackendError> {
        let Some(address) = self.settings.nodes.get(node) else { return Ok(Verdict::LeaveIt) };
        let admin = Login { user: address.user.clone(), password: address.password.clone() };
        let server = Session::open(node, address, &admin, &address.database, "foreshard watchdog").await?;
        if !has_database(&server, database).await? {
            return Ok(Verdict::LeaveIt);
        }
        let session = Session::open(node, address, &admin, database, "foreshard watchdog").await?;
        let Some(control) = guard::control(&session).await? else {
            // A person has paused it, for a reason of their own: no move knows this database.
            return Ok(Verdict::LeaveIt);
        };
        Ok(match control.state.as_str() {
            "fenced" if !control.fenced => Verdict::Resume,
            "open" => Verdict::ResumeAfterGrace,
            _ => Verdict::LeaveIt,
        })
    }
}
