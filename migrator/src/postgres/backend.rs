//! PostgreSQL as a [`crate::Backend`]: sessions, leader terms, and what is kept in memory of the moves under way.

use foreshard_domain::{Clock, LeaderTerm, MigrationId, NodeId, ShardId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::catalog::Sequence;
use super::compare::Comparison;
use super::copy::SnapshotCopy;
use super::mutant::Mutant;
use super::names::Names;
use super::observe::Observer;
use super::pace::{Pacer, Shares};
use super::pooler::Console;
use super::roles;
use super::schema::Dump;
use super::session::{Login, Place, Session};
use super::settings::{PostgresSettings, ServerAddress};
use super::tracker::ChangeTracker;
use crate::{BackendError, MoveSpec, Position, Way};

/// The backend; one for all moves between the servers of its settings.
pub struct PostgresBackend {
    pub(super) settings: PostgresSettings,
    pub(super) clock: Arc<dyn Clock>,
    mutant: Option<Mutant>,
    charge: Mutex<Charge>,
    live: Mutex<BTreeMap<MigrationId, Arc<tokio::sync::Mutex<Live>>>>,
    /// What the route of a shard that has just been opened needs, by shard.
    pub(super) ready: tokio::sync::Mutex<BTreeMap<ShardId, Ready>>,
    pub(super) observer: Observer,
    pub(super) shares: Shares,
    /// Sessions in the servers' maintenance databases, to observe by.
    pub(super) looking: tokio::sync::Mutex<BTreeMap<NodeId, Arc<Session>>>,
}

/// Who is in charge, and the logins of that term on the servers that have been taken over so far.
#[derive(Default)]
struct Charge {
    term: Option<LeaderTerm>,
    logins: BTreeMap<NodeId, Login>,
}

/// What is kept in memory of one migration; all of it can be made again from what the servers hold.
#[derive(Default)]
pub(super) struct Live {
    /// Sessions in the shard's database, by node.
    sessions: BTreeMap<NodeId, Arc<Session>>,
    /// One for each pooler, once they are needed.
    pub consoles: Vec<Console>,
    pub dump: Option<Dump>,
    pub copy: Option<SnapshotCopy>,
    /// How fast rows are copied and compared, while they are.
    pub pacer: Option<Arc<Pacer>>,
    pub comparing: Option<Comparing>,
    /// Where the fence under way stopped writes, and the marker's value there.
    pub mark: Option<(Position, i64)>,
    /// Whether the target has everything that it needs beside rows.
    pub completed: bool,
    /// The way for which the cache of the node that it leads to has been filled.
    pub warmed: Option<Way>,
}

/// A comparison of one way, with the changes that are told meanwhile.
pub(super) struct Comparing {
    pub way: Way,
    pub comparison: Comparison,
    pub tracker: ChangeTracker,
    /// The sequences, which are set under the fence: the schema cannot change meanwhile.
    pub sequences: Vec<Sequence>,
    /// From where on changes are told.
    pub since: Position,
}

impl std::fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresBackend").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Connections for the route of a shard that has just been opened.
pub(super) struct Ready {
    pub owner: NodeId,
    pub session: Arc<Session>,
    pub consoles: Vec<Console>,
}

/// A settled "no" of this backend.
pub(super) fn permanent(doing: &str, why: impl Into<String>) -> BackendError {
    BackendError::Permanent { doing: doing.to_owned(), why: why.into() }
}

/// A "no" because somebody else is, or may be, in charge.
pub(super) fn fenced(doing: &str, why: impl Into<String>) -> BackendError {
    BackendError::Fenced { doing: doing.to_owned(), why: why.into() }
}

impl PostgresBackend {
    /// A backend on servers and poolers; nothing is connected yet.
    pub fn new(settings: PostgresSettings, clock: Arc<dyn Clock>) -> Self {
        let observer = Observer::new(&settings, Arc::clone(&clock));
        Self {
            settings,
            clock,
            mutant: None,
            charge: Mutex::default(),
            live: Mutex::default(),
            ready: tokio::sync::Mutex::default(),
            observer,
            shares: Shares::default(),
            looking: tokio::sync::Mutex::default(),
        }
    }

    /// The same with a fault of the protocol, for tests of the tests.
    #[doc(hidden)]
    #[must_use]
    pub fn mutated(self, mutant: Mutant) -> Self {
        Self { mutant: Some(mutant), ..self }
    }

    pub(super) fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn address(&self, node: &NodeId) -> Result<&ServerAddress, BackendError> {
        self.settings.nodes.get(node).ok_or_else(|| {
            permanent("finding the server", format!("node {node} has no address: add it to [postgres.nodes]"))
        })
    }

    /// Takes over all servers that can be reached; the others when they are first needed.
    pub(super) async fn take_charge(&self, term: LeaderTerm) -> Result<(), BackendError> {
        {
            let mut charge = self.charge.lock().unwrap_or_else(PoisonError::into_inner);
            charge.term = Some(term);
            charge.logins.clear();
        }
        for node in self.settings.nodes.keys() {
            match self.login(node).await {
                Ok(_) => {}
                Err(BackendError::Transient { doing, source }) => {
                    let error = crate::cause::with_causes(source.as_ref());
                    tracing::warn!(%node, doing, error, "a server could not be taken over yet");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Who logs in to a server: the role of this term, made at the first use; the configured superuser if no term was taken.
    pub(super) async fn login(&self, node: &NodeId) -> Result<Login, BackendError> {
        let address = self.address(node)?;
        let admin = Login { user: address.user.clone(), password: address.password.clone() };
        let term = {
            let charge = self.charge.lock().unwrap_or_else(PoisonError::into_inner);
            match (charge.logins.get(node), charge.term) {
                (Some(login), _) => return Ok(login.clone()),
                (None, None) => return Ok(admin),
                (None, Some(term)) => term,
            }
        };
        let server = Session::open(node, address, &admin, &address.database, "foreshard leader").await?;
        let login = roles::take_over(&server, term).await?;
        let mut charge = self.charge.lock().unwrap_or_else(PoisonError::into_inner);
        if charge.term == Some(term) {
            charge.logins.insert(node.clone(), login.clone());
        }
        Ok(login)
    }

    /// A new session that works as the configured superuser, so that what it makes outlives the term's role.
    pub(super) async fn session(
        &self,
        node: &NodeId,
        database: &str,
        application: &str,
    ) -> Result<Session, BackendError> {
        self.place(node).await?.open(database, application).await
    }

    /// A server and who logs in to it in this term.
    pub(super) async fn place(&self, node: &NodeId) -> Result<Place, BackendError> {
        let address = self.address(node)?.clone();
        Ok(Place { node: node.clone(), address, login: self.login(node).await? })
    }

    /// A new session in a server's maintenance database.
    pub(super) async fn server(&self, node: &NodeId, spec: &MoveSpec) -> Result<Session, BackendError> {
        let address = self.address(node)?;
        self.session(node, &address.database, &Names::new(&spec.migration).application()).await
    }

    /// What is kept of a migration; held locked by one call at a time, so that a repeated call finds the first one ended.
    pub(super) async fn live(&self, spec: &MoveSpec) -> tokio::sync::OwnedMutexGuard<Live> {
        let live = {
            let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(spec.migration.clone()).or_default())
        };
        live.lock_owned().await
    }

    /// The same, if no call is at work on the migration.
    pub(super) fn idle(&self, spec: &MoveSpec) -> Option<tokio::sync::OwnedMutexGuard<Live>> {
        let live = {
            let mut all = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(spec.migration.clone()).or_default())
        };
        live.try_lock_owned().ok()
    }

    /// Forgets a migration that has ended.
    pub(super) fn forget(&self, spec: &MoveSpec) {
        self.shares.leave(&spec.migration);
        self.live.lock().unwrap_or_else(PoisonError::into_inner).remove(&spec.migration);
    }

    /// Rows are copied or compared no longer: what the move takes of the caps is free for others.
    pub(super) fn leave_pace(&self, live: &mut Live, spec: &MoveSpec) {
        if let Some(pacer) = live.pacer.take() {
            // Whatever still holds its pace must not rest for ever.
            pacer.pace().rest(false);
        }
        self.shares.leave(&spec.migration);
    }

    /// What a subscription on another server connects by.
    pub(super) fn peer(&self, node: &NodeId, database: &str) -> Result<String, BackendError> {
        let address = self.address(node)?;
        let (host, port) = address.peer();
        let (user, password) = (address.user.as_str(), address.password.as_str());
        let pair = |key: &str, value: &str| format!("{key}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"));
        Ok([
            pair("host", host),
            pair("port", &port.to_string()),
            pair("dbname", database),
            pair("user", user),
            pair("password", password),
            "connect_timeout=5 keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000"
                .to_owned(),
        ]
        .join(" "))
    }
}

impl Live {
    /// The session in the shard's database on a node, opened anew if it has ended.
    pub async fn session(
        &mut self,
        backend: &PostgresBackend,
        spec: &MoveSpec,
        node: &NodeId,
    ) -> Result<Arc<Session>, BackendError> {
        if let Some(session) = self.sessions.get(node).filter(|s| !s.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let application = Names::new(&spec.migration).application();
        let session = Arc::new(backend.session(node, spec.shard.as_str(), &application).await?);
        self.sessions.insert(node.clone(), Arc::clone(&session));
        Ok(session)
    }

    /// The session in the shard's database on a node, if one is open.
    pub fn open_session(&self, node: &NodeId) -> Option<Arc<Session>> {
        self.sessions.get(node).filter(|session| !session.is_closed()).map(Arc::clone)
    }

    /// Sessions in the shard's database on source and target.
    pub async fn ends(&mut self, backend: &PostgresBackend, spec: &MoveSpec) -> Result<Ends, BackendError> {
        let source = self.session(backend, spec, &spec.source).await?;
        let target = self.session(backend, spec, &spec.target).await?;
        Ok(Ends { source, target })
    }

    /// Ends the sessions on a node, so that its database can be dropped.
    pub fn leave(&mut self, node: &NodeId) {
        self.sessions.remove(node);
    }
}

/// Source and target of a move.
pub(super) struct Ends {
    pub source: Arc<Session>,
    pub target: Arc<Session>,
}
