//! From the fence to the new route: pausing, fencing, proving, sealing, opening, routing. Nothing here waits for more than a
//! few round trips, since clients wait meanwhile.

use foreshard_domain::{Epoch, NodeId, RealTime, ShardId};
use futures::future::{join_all, try_join_all};
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Live, PostgresBackend, Ready, fenced, permanent};
use super::mutant::Mutant;
use super::names::Names;
use super::pooler::{Console, Route, write_route};
use super::session::Session;
use super::{guard, opening, replication, sequences, verify};
use crate::{BackendError, MoveSpec, Position, Proof, SourceState, Verification, Way};

/// The driver ends a call at the deadline of its fence; none is ever longer.
const LONGEST_FENCE: Duration = Duration::from_secs(60);
/// Of the time that a fence may last, what may be spent on waiting for running transactions to end.
const PAUSE_SHARE: u32 = 2;
/// How long the source may take to say that it is sealed, before the state store's word is enough.
const SEAL_ANSWER: Duration = Duration::from_millis(250);

impl PostgresBackend {
    /// Opens consoles that are not open yet, before they are needed in a hurry.
    pub(super) async fn ready_consoles(&self, live: &mut Live) -> Result<(), BackendError> {
        if live.consoles.len() != self.settings.poolers.len() || live.consoles.iter().any(Console::is_closed) {
            live.consoles = try_join_all(self.settings.poolers.iter().map(Console::open)).await?;
        }
        Ok(())
    }

    /// Holds back writes at the poolers, then lets the source itself refuse them.
    pub(super) async fn stop_writes(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        deadline: RealTime,
    ) -> Result<Position, BackendError> {
        let doing = "stopping writes";
        live.mark = None;
        if live.comparing.as_ref().is_none_or(|c| c.way != spec.way) {
            return Err(fenced(doing, "what was compared is not known any more; it is compared again"));
        }
        let left = || deadline.since(self.clock.real());
        if left().is_zero() {
            return Err(fenced(doing, "the deadline of the fence has passed already"));
        }
        self.ready_consoles(live).await?;
        let source = live.session(self, spec, &spec.source).await?;
        if let Some(control) = guard::control(&source).await?
            && control.fenced
            && control.migration != spec.migration.as_str()
        {
            return Err(fenced(doing, format!("migration {} holds a fence there", control.migration)));
        }
        self.end_long_transactions(&source).await?;
        if self.is(Mutant::SkipFence) {
            live.mark = Some((Position(1), 0));
            return Ok(Position(1));
        }
        let (shard, patience) = (spec.shard.as_str(), left() / PAUSE_SHARE);
        let paused = join_all(live.consoles.iter().map(|console| console.pause(shard, patience))).await;
        let stopped = match paused.into_iter().collect::<Result<Vec<()>, _>>() {
            Ok(_) => self.fence_and_mark(&source, spec, left()).await,
            Err(error) => Err(error),
        };
        // What failed here is taken back by [`Self::lift`], which looks for a seal first.
        let (at, n) = stopped?;
        live.mark = Some((at, n));
        Ok(at)
    }

    async fn fence_and_mark(
        &self,
        source: &Session,
        spec: &MoveSpec,
        left: Duration,
    ) -> Result<(Position, i64), BackendError> {
        if left.is_zero() {
            return Err(fenced("stopping writes", "running transactions took the whole time of the fence to end"));
        }
        guard::fence(source, spec, left).await?;
        let stopped = async {
            guard::drained(source).await?;
            guard::mark(source, spec).await
        };
        match tokio::time::timeout(left, stopped).await {
            Ok(stopped) => stopped,
            Err(_) => Err(fenced("stopping writes", "writers that came past the poolers did not end in time")),
        }
    }

    /// Resumes every pooler; all are tried before the first error is told, so that one that is away holds up nobody else.
    async fn resume_all(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        live.consoles.retain(|console| !console.is_closed());
        let consoles = &live.consoles;
        let resumed = join_all(self.settings.poolers.iter().map(|pooler| async {
            match consoles.iter().find(|console| console.name() == pooler.name) {
                Some(console) => console.resume(spec.shard.as_str()).await,
                None => Console::open(pooler).await?.resume(spec.shard.as_str()).await,
            }
        }));
        resumed.await.into_iter().collect()
    }

    /// Lifts the fence and releases clients, unless the source is sealed: then they wait for the new route.
    pub(super) async fn lift(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let source = live.session(self, spec, &spec.source).await?;
        guard::unfence(&source, spec).await?;
        if let Some(control) = guard::control(&source).await?
            && (control.state == "sealed" || (control.fenced && control.migration != spec.migration.as_str()))
        {
            return Ok(());
        }
        self.resume_all(live, spec).await
    }

    /// The marker has come over, every change up to the fence has been told, and what is not yet known to be equal is compared.
    pub(super) async fn proof(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        fence_at: Position,
        verified: &Verification,
    ) -> Result<Proof, BackendError> {
        let doing = "proving that the target has everything";
        if !verified.differing.is_empty() || verified.next.is_some() {
            return Err(permanent(doing, "the comparison before the fence found differences or was not finished"));
        }
        let n = match live.mark {
            Some((at, n)) if at == fence_at => n,
            _ => return Err(fenced(doing, format!("this controller did not stop writes at {}", fence_at.0))),
        };
        let ends = live.ends(self, spec).await?;
        let Some(comparing) = live.comparing.as_mut().filter(|c| c.way == spec.way) else {
            return Err(fenced(doing, "what was compared before the fence is not known any more"));
        };
        let known = if self.is(Mutant::SkipSequences) { Vec::new() } else { comparing.sequences.clone() };
        let (n, told_to) = if self.is(Mutant::SkipMarker) { (0, Position(0)) } else { (n, fence_at) };
        let (seen, told, carried) = tokio::join!(
            replication::marker_seen(&ends.target, spec.way, n, LONGEST_FENCE),
            comparing.tracker.wait_until(Position(told_to.0.saturating_add(1)).into(), LONGEST_FENCE),
            sequences::carry_over(&ends.source, &ends.target, &known),
        );
        if !seen? {
            return Err(fenced(doing, "the marker did not come over"));
        }
        told.map_err(|e| verify::failed("following changes", e))?;
        carried?;
        comparing.absorb()?;
        let back = Names::new(&spec.migration).subscription(Way::Back);
        let begins = async {
            match spec.way {
                Way::There => replication::begin_here(&ends.source, &ends.target, &back, &spec.source).await,
                Way::Back => Ok(()),
            }
        };
        let (begins, durable, large, found) = tokio::join!(
            begins,
            guard::note_proven(&ends.target, spec, fence_at),
            no_large_objects(&ends.source),
            comparing.comparison.finish_in_fence(ends.sides(), fence_at),
        );
        begins?;
        durable?;
        large?;
        let found = found?;
        let verification = Verification {
            ranges: verified.ranges.saturating_add(found.ranges),
            rows: verified.rows.saturating_add(found.rows),
            differing: if self.is(Mutant::SkipComparison) { Vec::new() } else { found.differing },
            up_to: fence_at,
            next: None,
        };
        self.still_fenced(&ends.source, spec, fence_at).await?;
        Ok(Proof { fence_at, applied: fence_at, verification })
    }

    /// A difference that writes made after the fence had expired must not be taken for a fault of the copy.
    async fn still_fenced(&self, source: &Session, spec: &MoveSpec, fence_at: Position) -> Result<(), BackendError> {
        match guard::control(source).await? {
            Some(c) if c.fenced && c.fence_at == Some(fence_at) && c.migration == spec.migration.as_str() => Ok(()),
            _ => Err(fenced("proving that the target has everything", "the fence has expired or was lifted meanwhile")),
        }
    }

    /// Closes the source for good, if the proof entitles to it.
    pub(super) async fn close(&self, live: &mut Live, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        let doing = "sealing the source";
        if !proof.verification.differing.is_empty()
            || proof.verification.next.is_some()
            || proof.applied < proof.fence_at
        {
            return Err(permanent(doing, "the proof does not say that the target has everything"));
        }
        if self.is(Mutant::SkipSeal) {
            return Ok(());
        }
        let source = live.session(self, spec, &spec.source).await?;
        guard::seal(&source, spec, proof.fence_at).await
    }

    /// What the source says of itself.
    pub(super) async fn ask_source(&self, live: &mut Live, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        let source = live.session(self, spec, &spec.source).await?;
        match guard::control(&source).await? {
            Some(control) => guard::source_state(&control, spec),
            None => Ok(SourceState::Open),
        }
    }

    /// Opens the target in the new epoch.
    pub(super) async fn open_new_owner(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        epoch: Epoch,
    ) -> Result<(), BackendError> {
        self.not_unsealed(live, spec).await?;
        let target = live.session(self, spec, &spec.target).await?;
        let epoch = if self.is(Mutant::ReuseEpoch) { spec.epoch } else { epoch };
        opening::open(&target, spec, epoch).await?;
        // Clients wait for the route: what it needs is connected already.
        let ready = Ready { owner: spec.target.clone(), session: target, consoles: std::mem::take(&mut live.consoles) };
        self.ready.lock().await.insert(spec.shard.clone(), ready);
        Ok(())
    }

    /// The state store knows that the source is sealed, and a source that is gone must not keep the target closed; but one that
    /// can be asked and says that it is not sealed is believed.
    async fn not_unsealed(&self, live: &Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let Some(source) = live.open_session(&spec.source) else { return Ok(()) };
        match tokio::time::timeout(SEAL_ANSWER, guard::control(&source)).await {
            Ok(Ok(Some(c)))
                if c.migration == spec.migration.as_str() && c.epoch == spec.epoch && c.state != "sealed" =>
            {
                let why = format!("the source, node {}, is {}, not sealed", spec.source, c.state);
                Err(fenced("opening the new owner", why))
            }
            _ => Ok(()),
        }
    }

    /// Sends clients to the owner: every pooler's file, then reload and resume. All poolers are tried before the first error
    /// is told, so that one that is away holds up nobody else.
    pub(super) async fn send_clients(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        let doing = "sending clients to the new owner";
        let ready = self.ready.lock().await.remove(shard).filter(|ready| ready.owner == *owner);
        let (session, consoles) = match ready {
            Some(ready) if !ready.session.is_closed() => (ready.session, ready.consoles),
            _ => (Arc::new(self.session(owner, shard.as_str(), "foreshard route").await?), Vec::new()),
        };
        match guard::control(&session).await? {
            Some(c) if c.state == "open" && c.epoch == epoch => {}
            None if guard::known_epoch(&session).await?.is_none_or(|known| known <= epoch) => {}
            Some(c) => {
                return Err(fenced(
                    doing,
                    format!("node {owner} is {} in epoch {}, not open in epoch {epoch}", c.state, c.epoch),
                ));
            }
            None => return Err(fenced(doing, format!("node {owner} has been opened in a later epoch than {epoch}"))),
        }
        let (host, port) = self.address(owner)?.peer();
        let route = Route { database: shard.as_str(), host, port, epoch };
        let sent = join_all(self.settings.poolers.iter().map(|pooler| async {
            write_route(&pooler.routes, &route)?;
            let opened;
            let console = match consoles.iter().find(|c| c.name() == pooler.name && !c.is_closed()) {
                Some(console) => console,
                None => {
                    opened = Console::open(pooler).await?;
                    &opened
                }
            };
            console.reload().await?;
            console.resume(shard.as_str()).await
        }));
        sent.await.into_iter().collect()
    }
}

/// Large objects are made without a change of the schema or of a table, and nothing carries them.
async fn no_large_objects(source: &Session) -> Result<(), BackendError> {
    let doing = "looking for large objects";
    match source.texts(doing, "SELECT 1 FROM pg_largeobject_metadata LIMIT 1").await?.is_empty() {
        true => Ok(()),
        false => Err(permanent(doing, "large objects were made during the move, and would stay behind")),
    }
}
