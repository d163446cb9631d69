//! The task that follows a slot's changes and keeps what they touched.

use super::changed::{Changed, Limits, TableName, Tables, Why};
use crate::postgres::cursor::Malformed;
use crate::postgres::lsn::Lsn;
use crate::postgres::pgoutput::{Message, Relation, Tuple, UnknownKey};
use crate::postgres::wire::{Event, LogicalStream, WireError};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

/// After how many ticks without a sign of life the server counts as gone; with ticks of ten seconds that is as long as its
/// own `wal_sender_timeout`.
const SILENT_TICKS: u32 = 6;
/// How long one wait for the next event may take; the ticks decide when it is too long.
const WAIT: Duration = Duration::from_secs(3600);

/// Why changes can no longer be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    /// The connection, or the server on it.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A change that cannot be read.
    #[error("a change cannot be read")]
    Malformed(#[from] Malformed),
    /// A row that does not fit what the server said of its table.
    #[error("a change of {schema}.{table} cannot be read")]
    Row {
        /// The table's schema.
        schema: String,
        /// The table's name.
        table: String,
        /// What is wrong with it.
        #[source]
        source: UnknownKey,
    },
    /// A change of a table that the server has not described.
    #[error("the server sent a change of table {0} without having described it")]
    UnknownTable(u32),
    /// Nothing has come although the server was asked.
    #[error("the server has been silent for {} s", .0.as_secs())]
    Silent(Duration),
}

/// The times of the task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// How often the server is told how far we are and asked for a sign of life.
    pub(super) tick: Duration,
    /// How long ending the stream may take.
    pub(super) limit: Duration,
}

/// What the task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Somebody waits: ask the server how far it is.
    Ask,
    /// End the stream and let go of the slot.
    Stop,
}

/// How the task ended, if it has.
#[derive(Debug, Clone)]
pub(super) enum End {
    /// It was stopped.
    Stopped,
    /// It cannot go on.
    Failed(Arc<FollowError>),
}

#[derive(Debug, Default)]
struct State {
    tables: Tables,
    seen: Lsn,
    end: Option<End>,
}

/// What the task and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// Says that `state` has moved on.
    moved: watch::Sender<()>,
    limits: Limits,
}

impl Shared {
    pub(super) fn new(seen: Lsn, limits: Limits) -> Self {
        Self { state: Mutex::new(State { seen, ..State::default() }), moved: watch::Sender::new(()), limits }
    }

    /// Nothing that holds the lock can stop half-way, so that a poisoned one is as good.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has changed since the last time.
    pub(super) fn take(&self) -> Result<Changed, End> {
        let mut state = self.lock();
        match &state.end {
            Some(end) => Err(end.clone()),
            None => Ok(Changed { tables: state.tables.take(), seen_up_to: state.seen }),
        }
    }

    /// How far everything committed is known.
    pub(super) fn seen(&self) -> Result<Lsn, End> {
        let state = self.lock();
        state.end.clone().map_or(Ok(state.seen), Err)
    }

    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    fn advance(&self, to: Lsn, touched: &mut Tables) {
        let mut state = self.lock();
        state.tables.absorb(touched, self.limits);
        state.seen = state.seen.max(to);
        drop(state);
        self.moved.send_replace(());
    }

    fn end(&self, end: End) {
        self.lock().end = Some(end);
        self.moved.send_replace(());
    }
}

/// What the task knows by itself.
struct Follower {
    shared: Arc<Shared>,
    relations: HashMap<u32, Relation>,
    /// What the transaction has touched whose changes arrive. It is handed over with the transaction's end only: a key
    /// handed over before `seen` has reached its commit could be compared before the target has the change, and would not
    /// come again.
    touched: Tables,
}

/// Follows `stream` until told to stop or unable to go on; keeps the reason.
pub(super) async fn follow(stream: LogicalStream, shared: Arc<Shared>, orders: mpsc::Receiver<Order>, pace: Pace) {
    let follower = Follower { shared: shared.clone(), relations: HashMap::new(), touched: Tables::default() };
    let end = match follower.run(stream, orders, pace).await {
        Ok(()) => End::Stopped,
        Err(error) => {
            tracing::warn!(error = crate::cause::with_causes(&error), "changes can no longer be followed");
            End::Failed(Arc::new(error))
        }
    };
    shared.end(end);
}

impl Follower {
    async fn run(
        mut self,
        mut stream: LogicalStream,
        mut orders: mpsc::Receiver<Order>,
        pace: Pace,
    ) -> Result<(), FollowError> {
        let mut ticks = tokio::time::interval(pace.tick);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_ticks = 0;
        loop {
            tokio::select! {
                event = stream.next(WAIT) => {
                    silent_ticks = 0;
                    if let Some(seen) = self.event(&event?)? {
                        // Confirmed as soon as it is seen, although it is kept in memory only: with this process the changed
                        // keys are lost, and so are the comparisons that they were to complete. Verification then starts
                        // again with every range, so that nothing is gained by having the server keep its log for us.
                        stream.confirm(seen);
                    }
                }
                order = orders.recv() => match order {
                    Some(Order::Ask) => stream.send_status(true),
                    Some(Order::Stop) | None => {
                        stream.finish(pace.limit).await?.close(pace.limit).await?;
                        return Ok(());
                    }
                },
                _ = ticks.tick() => {
                    if silent_ticks >= SILENT_TICKS {
                        return Err(FollowError::Silent(pace.tick * SILENT_TICKS));
                    }
                    silent_ticks += 1;
                    stream.send_status(true);
                }
            }
        }
    }

    /// Takes one event in; returns how far everything is known if that has changed.
    fn event(&mut self, event: &Event) -> Result<Option<Lsn>, FollowError> {
        match event {
            Event::Data(data) => self.message(Message::parse(data)?),
            Event::KeepAlive { seen } => {
                // The server reads its log in order and sends a transaction where it finds its commit: what it sends later
                // was committed after `seen`. This also holds in the midst of a transaction that arrives.
                self.shared.advance(*seen, &mut Tables::default());
                Ok(Some(*seen))
            }
        }
    }

    fn message(&mut self, message: Message<'_>) -> Result<Option<Lsn>, FollowError> {
        match message {
            Message::Begin { .. } | Message::Origin { .. } | Message::Type { .. } | Message::Emitted { .. } => {}
            Message::Relation(relation) => {
                self.relations.insert(relation.oid, relation);
            }
            Message::Insert { relation, new } => self.touch(relation, None, Some(&new))?,
            Message::Update { relation, old, new } => self.touch(relation, old.as_ref(), Some(&new))?,
            Message::Delete { relation, old } => self.touch(relation, Some(&old), None)?,
            Message::Truncate { relations, .. } => {
                for oid in relations {
                    let name = self.name(oid)?;
                    self.touched.whole(name, Why::Truncated);
                }
            }
            Message::Commit { end, .. } => {
                self.shared.advance(end, &mut self.touched);
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    fn touch(&mut self, oid: u32, old: Option<&Tuple<'_>>, new: Option<&Tuple<'_>>) -> Result<(), FollowError> {
        let relation = self.relations.get(&oid).ok_or(FollowError::UnknownTable(oid))?;
        self.touched.note(relation, old, new, self.shared.limits).map_err(|source| FollowError::Row {
            schema: relation.schema.clone(),
            table: relation.name.clone(),
            source,
        })
    }

    fn name(&self, oid: u32) -> Result<TableName, FollowError> {
        let relation = self.relations.get(&oid).ok_or(FollowError::UnknownTable(oid))?;
        Ok((relation.schema.clone(), relation.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::pgoutput::{Column, ReplicaIdentity, Value};
    use crate::postgres::test_server::{LIMIT, impostor};
    use crate::postgres::wire::{ReplicationConnection, StreamFrom};

    fn follower() -> Follower {
        let shared = Arc::new(Shared::new(Lsn(10), Limits::default()));
        let column = Column { name: "id".into(), key: true, type_oid: 23, type_modifier: -1 };
        let (schema, name, columns) = ("s".to_owned(), "t".to_owned(), vec![column]);
        let table = Relation { oid: 1, schema, name, identity: ReplicaIdentity::Default, columns };
        Follower { shared, relations: HashMap::from([(1, table)]), touched: Tables::default() }
    }

    #[test]
    fn keys_are_handed_over_with_their_commit_and_not_before() {
        let mut follower = follower();
        let row = || Tuple(vec![Value::Text("7")]);
        follower.message(Message::Insert { relation: 1, new: row() }).unwrap();
        // The server may tell how far it is in the midst of a transaction: never past its commit.
        follower.event(&Event::KeepAlive { seen: Lsn(15) }).unwrap();
        let before = follower.shared.take().unwrap();
        assert_eq!((before.tables.len(), before.seen_up_to), (0, Lsn(15)));
        assert_eq!(follower.message(Message::Commit { at: Lsn(18), end: Lsn(20), time: 0 }).unwrap(), Some(Lsn(20)));
        let after = follower.shared.take().unwrap();
        assert_eq!((after.tables.len(), after.seen_up_to), (1, Lsn(20)));
        assert_eq!(follower.shared.take().unwrap().tables.len(), 0, "taken once");
    }

    #[test]
    fn what_the_server_should_not_send_is_an_error() {
        let mut follower = follower();
        let unknown = follower.message(Message::Delete { relation: 2, old: Tuple(vec![Value::Null]) });
        assert!(matches!(unknown, Err(FollowError::UnknownTable(2))));
        let unknown =
            follower.message(Message::Truncate { relations: vec![3], cascade: false, restart_identity: false });
        assert!(matches!(unknown, Err(FollowError::UnknownTable(3))));
        let narrow = follower.message(Message::Delete { relation: 1, old: Tuple(vec![]) });
        assert!(matches!(narrow, Err(FollowError::Row { .. })));
    }

    #[tokio::test]
    async fn a_server_that_falls_silent_is_given_up() {
        let logged_in_and_streaming = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05IW\0\0\0\x07\0\0\0";
        let server = impostor(logged_in_and_streaming).await;
        let connection = ReplicationConnection::connect(&server, LIMIT).await.unwrap();
        let what = StreamFrom { slot: "s".into(), from: Lsn(0), publications: vec!["p".into()], messages: false };
        let stream = connection.start_logical(&what, LIMIT).await.unwrap();
        let (_orders, ordered) = mpsc::channel(1);
        let pace = Pace { tick: Duration::from_millis(10), limit: LIMIT };
        let error = follower().run(stream, ordered, pace).await.unwrap_err();
        assert!(matches!(error, FollowError::Silent(_)), "{error}");
    }

    #[test]
    fn a_position_never_goes_back() {
        let mut follower = follower();
        follower.event(&Event::KeepAlive { seen: Lsn(5) }).unwrap();
        assert_eq!(follower.shared.seen().unwrap(), Lsn(10));
    }
}
