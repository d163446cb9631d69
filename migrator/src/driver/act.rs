//! Carrying out the actions of a state and telling what came of them.

use foreshard_domain::RealTime;
use futures::future::BoxFuture;
use std::sync::atomic::Ordering;

use super::cut_over::{CutOver, CutOverLimits, CutOverObservation, decide_cut_over};
use super::follow::Figures;
use super::{Driver, DriverError};
use crate::cause::with_causes;
use crate::store::MigrationRecord;
use crate::transition::{Action, Event, MigrationState};
use crate::{BackendError, CopyProgress, Left, Position, Proof, Verification, Way};

/// What came of the actions of a state.
pub(super) struct Performed {
    pub events: Vec<Event>,
    pub figures: Figures,
}

impl From<Event> for Performed {
    fn from(event: Event) -> Self {
        Self { events: vec![event], figures: Figures::default() }
    }
}

impl Driver {
    /// Carries out all actions of the record's state.
    pub(super) async fn act(&self, record: &MigrationRecord) -> Result<Performed, DriverError> {
        let mut performed = Performed { events: Vec::new(), figures: Figures::default() };
        for action in record.state.actions() {
            performed = self.perform(record, &action).await?;
            if performed.events.iter().any(|event| matches!(event, Event::SealFound { .. })) {
                // Past the point of no return nothing more of this state is to be done, least of all to be undone.
                break;
            }
        }
        Ok(performed)
    }

    async fn perform(&self, record: &MigrationRecord, action: &Action) -> Result<Performed, DriverError> {
        match action {
            Action::Preflight => {
                let spec = record.spec(Way::There);
                let done = self.call("checking before the move", None, || self.backend.preflight(&spec)).await;
                self.or_broke(record, done, |()| Event::Admitted { fences_left: self.config.more_fences }.into())
            }
            Action::Prepare => {
                let spec = record.spec(Way::There);
                let done = self.call("preparing the target", None, || self.backend.prepare(&spec)).await;
                self.or_broke(record, done, |()| Event::Prepared.into())
            }
            Action::Copy { cursor } => self.copy(record, cursor.as_deref()).await,
            Action::CatchUp { way } => self.catch_up(record, *way, false).await,
            Action::CloseIn { way } => self.catch_up(record, *way, true).await,
            Action::Verify { way, so_far } => self.verify(record, *way, so_far.as_ref()).await,
            Action::TryWayBack => {
                let spec = record.spec(Way::There);
                let done = self.call("trying the way back", None, || self.backend.try_way_back(&spec)).await;
                self.or_broke(record, done, |()| Event::WayBackTried.into())
            }
            Action::Fence { way, deadline } => self.fence(record, *way, *deadline).await,
            Action::Prove { way, fence_at, verified, deadline } => {
                self.prove(record, *way, *fence_at, verified, *deadline).await
            }
            Action::Seal { way, proof } => self.seal(record, *way, proof).await,
            Action::SwitchOwner { way } => Ok(Event::OwnerSwitched { epoch: record.next_owner(*way).epoch }.into()),
            Action::OpenTarget { way, epoch } => {
                let spec = record.spec(*way);
                let done = self.call("opening the new owner", None, || self.backend.open_target(&spec, *epoch)).await;
                done.map(|()| Event::TargetOpened.into()).map_err(|e| stuck(record, e))
            }
            Action::Route { way, epoch } => {
                let (shard, owner) = (record.shard(), record.next_owner(*way).node);
                let route = || self.backend.route(shard, &owner, *epoch);
                self.call("sending clients to the new owner", None, route).await.map_err(|e| stuck(record, e))?;
                let until = self.clock.model().plus_ms(self.config.retention_ms.max(0));
                Ok(Event::Routed { until }.into())
            }
            Action::OpenWayBack => {
                let spec = record.spec(Way::There);
                let done = self.call("opening the way back", None, || self.backend.open_way_back(&spec)).await;
                done.map(|()| Event::WayBackOpened.into()).map_err(|e| stuck(record, e))
            }
            Action::LiftFence { way } => self.give_back(record, *way).await,
            Action::Undo => {
                let spec = record.spec(Way::There);
                match record.lost {
                    None => self.remove(record, "undoing the move", || self.backend.undo(&spec)).await?,
                    Some(_) => self.clear_owner(record).await?,
                }
                Ok(Event::Undone.into())
            }
            Action::Finish { way } => {
                let spec = record.spec(*way);
                match record.lost {
                    None => self.remove(record, "removing the old copy", || self.backend.finish(&spec)).await?,
                    Some(_) => self.clear_owner(record).await?,
                }
                Ok(Event::Finished.into())
            }
        }
    }

    /// Before the fence every failure makes the move go back; a bug of the engine stops it for a person to look at.
    fn or_broke<T>(
        &self,
        record: &MigrationRecord,
        done: Result<T, BackendError>,
        then: impl FnOnce(T) -> Performed,
    ) -> Result<Performed, DriverError> {
        match done {
            Ok(value) => Ok(then(value)),
            Err(error @ BackendError::Bug { .. }) => Err(stuck(record, error)),
            Err(error) => Ok(Event::Broke { why: with_causes(&error) }.into()),
        }
    }

    async fn copy(&self, record: &MigrationRecord, cursor: Option<&str>) -> Result<Performed, DriverError> {
        let spec = record.spec(Way::There);
        let began = self.clock.real();
        let done = self.call("copying", None, || self.backend.copy(&spec, cursor)).await;
        if let Ok(piece) = &done {
            self.keep_pace(piece, began).await;
        }
        self.or_broke(record, done, |piece| Performed {
            events: vec![Event::Copied { next: piece.next }],
            figures: Figures { rows: piece.rows, bytes: piece.bytes, ..Figures::default() },
        })
    }

    /// Waits until the piece has taken as long as the pace allows.
    async fn keep_pace(&self, piece: &CopyProgress, began: RealTime) {
        let Some(pace) = self.config.pace_bytes_per_s.filter(|p| p.is_finite() && *p > 0.0) else { return };
        // Saturating by the rules of `as` for floats.
        let model_ms = (piece.bytes as f64 / pace * 1000.0) as i64;
        let taken = self.clock.real().since(began);
        tokio::time::sleep(self.clock.real_duration(model_ms).saturating_sub(taken)).await;
    }

    async fn catch_up(&self, record: &MigrationRecord, way: Way, then_fence: bool) -> Result<Performed, DriverError> {
        let spec = record.spec(Way::There);
        let done = match way {
            Way::There => self.call("applying changes", None, || self.backend.catch_up(&spec)).await,
            Way::Back => self.call("applying changes", None, || self.backend.reverse_catch_up(&spec)).await,
        };
        let limits = CutOverLimits { near_changes: self.config.near_changes, rounds: self.config.catch_up_rounds };
        self.or_broke(record, done, |lag| {
            let observed = CutOverObservation { lag, rounds: record.progress.rounds };
            let event = match decide_cut_over(&observed, &limits) {
                CutOver::Go if then_fence && self.no_fences.load(Ordering::SeqCst) => Event::Behind,
                CutOver::Go if then_fence => Event::Near { deadline: self.clock.real().plus(self.config.fence_limit) },
                CutOver::Go => Event::CaughtUp,
                CutOver::Wait => Event::Behind,
                CutOver::Abort { why } => Event::Broke { why },
            };
            let figures = Figures { behind: Some(lag.changes), ..Figures::default() };
            Performed { events: vec![event], figures }
        })
    }

    /// Compares the next piece; what has been found is committed, so that a restart goes on from there.
    async fn verify(
        &self,
        record: &MigrationRecord,
        way: Way,
        so_far: Option<&Verification>,
    ) -> Result<Performed, DriverError> {
        let spec = record.spec(way);
        let done = self.call("comparing source and target", None, || self.backend.verify(&spec, so_far)).await;
        self.or_broke(record, done, |verification| Performed {
            figures: Figures { verified_rows: Some(verification.rows), ..Figures::default() },
            events: vec![Event::Verified { verification }],
        })
    }

    /// Removes piece by piece until nothing is left. Every piece makes progress, so their number has no limit; before each
    /// further one the store is asked who is in charge.
    async fn remove<'a>(
        &self,
        record: &MigrationRecord,
        doing: &str,
        piece: impl Fn() -> BoxFuture<'a, Result<Left, BackendError>>,
    ) -> Result<(), DriverError> {
        while self.call(doing, None, &piece).await.map_err(|e| stuck(record, e))? == Left::More {
            self.still_in_charge().await?;
        }
        Ok(())
    }

    /// Ends on the owner alone: the other node is gone for good.
    async fn clear_owner(&self, record: &MigrationRecord) -> Result<(), DriverError> {
        let (spec, owner) = (record.spec(Way::There), record.owner().node);
        self.remove(record, "ending without the lost node", || self.backend.clear_owner(&spec, &owner)).await
    }

    async fn fence(&self, record: &MigrationRecord, way: Way, deadline: RealTime) -> Result<Performed, DriverError> {
        let spec = record.spec(way);
        let since = self.clock.real();
        match self.call("stopping writes", Some(deadline), || self.backend.fence(&spec, deadline)).await {
            Ok(fence_at) => Ok(Performed {
                events: vec![Event::Fenced { fence_at }],
                figures: Figures { fenced_since: Some(since), ..Figures::default() },
            }),
            Err(error) => self.fence_failed(record, way, error).await,
        }
    }

    async fn prove(
        &self,
        record: &MigrationRecord,
        way: Way,
        fence_at: Position,
        verified: &Verification,
        deadline: RealTime,
    ) -> Result<Performed, DriverError> {
        let spec = record.spec(way);
        let prove = || self.backend.prove(&spec, fence_at, verified);
        match self.call("proving that the target has everything", Some(deadline), prove).await {
            Ok(proof) if proof.fence_at == fence_at => Ok(Event::Proved { proof }.into()),
            Ok(proof) => Err(self.contradiction(
                record,
                format!("the proof is of position {}, the fence at {}", proof.fence_at.0, fence_at.0),
            )),
            Err(error) => self.fence_failed(record, way, error).await,
        }
    }

    /// Before the seal a fence that could not be used is lifted; whether another is tried depends on what failed.
    async fn fence_failed(
        &self,
        record: &MigrationRecord,
        way: Way,
        error: BackendError,
    ) -> Result<Performed, DriverError> {
        if matches!(error, BackendError::Bug { .. }) {
            // A person has to look, but clients must not wait for that.
            if let Err(held) = self.lift_fence(&record.spec(way)).await {
                tracing::warn!(migration = %record.id, error = with_causes(&held), "the fence could not be lifted");
            }
            return Err(stuck(record, error));
        }
        let permanent = matches!(error, BackendError::Permanent { .. });
        let why = with_causes(&error);
        if self.lift_fence(&record.spec(way)).await.map_err(|e| stuck(record, e))? {
            return self.seal_found(record, way);
        }
        Ok(if permanent { Event::Broke { why } } else { Event::FenceLost { why } }.into())
    }

    /// Asks for the seal until it is known whether it was done.
    async fn seal(&self, record: &MigrationRecord, way: Way, proof: &Proof) -> Result<Performed, DriverError> {
        let spec = record.spec(way);
        let error = match self.call("sealing the source", None, || self.backend.seal(&spec, proof)).await {
            Ok(()) => return Ok(self.sealed(record, way)),
            Err(error @ BackendError::Bug { .. }) => return Err(stuck(record, error)),
            Err(error) => error,
        };
        if self.lift_fence(&spec).await.map_err(|e| stuck(record, e))? {
            return Ok(self.sealed(record, way));
        }
        Ok(Event::FenceLost { why: with_causes(&error) }.into())
    }

    /// The seal and the change of owner are recorded in one commit: writes wait meanwhile, and a crash in between is found by
    /// asking the source.
    pub(super) fn sealed(&self, record: &MigrationRecord, way: Way) -> Performed {
        let epoch = record.next_owner(way).epoch;
        Performed { events: vec![Event::SourceSealed, Event::OwnerSwitched { epoch }], figures: Figures::default() }
    }

    /// Lifts the fence of an owner change that has been given up.
    async fn give_back(&self, record: &MigrationRecord, way: Way) -> Result<Performed, DriverError> {
        if self.lift_fence(&record.spec(way)).await.map_err(|e| stuck(record, e))? {
            return self.seal_found(record, way);
        }
        Ok(Event::Released.into())
    }

    /// The source turns out to be sealed by this migration in this epoch, though its seal is not recorded: a seal under an
    /// earlier fence came through after its answer was given up, while a later fence stood at the same position.
    ///
    /// Going forward is right if a proof is known that covers the position where the source stands, and only then (M4). The
    /// engine seals only at the fence position of the proof that it is shown, and the driver asks for a seal only with a whole
    /// proof, which it records first. Positions never decrease and nothing is written behind a seal, so if the source is
    /// sealed it was with the last of these proofs, the target holds everything up to there, and nobody but this migration
    /// changes the target. Where the fence position is known, it must be the proof's. Removal of the target's copy cannot have
    /// begun: it does so only after the source was seen open with no fence that a seal could use. And should all this be
    /// wrong, the engine opens the target only if it stands exactly where the source was sealed.
    fn seal_found(&self, record: &MigrationRecord, way: Way) -> Result<Performed, DriverError> {
        let covers = |proof: &&Proof| match &record.state {
            MigrationState::Proving { fence_at, .. } => proof.fence_at == *fence_at,
            _ => true,
        };
        let Some(proof) = record.proof.as_ref().filter(covers) else {
            let what = "the source is sealed, but no proof is known that entitled to it".to_owned();
            return Err(self.contradiction(record, what));
        };
        tracing::warn!(migration = %record.id, state = record.state.name(), "a seal whose answer was lost was found");
        let epoch = record.next_owner(way).epoch;
        let events = vec![Event::SealFound { proof: proof.clone() }, Event::OwnerSwitched { epoch }];
        Ok(Performed { events, figures: Figures::default() })
    }

    fn contradiction(&self, record: &MigrationRecord, what: String) -> DriverError {
        DriverError::Contradiction { id: record.id.clone(), state: record.state.name(), what }
    }

    /// What a restart must find out before the actions of the stored state can be carried out again.
    pub(super) async fn look(&self, record: &MigrationRecord) -> Result<Option<Performed>, DriverError> {
        match &record.state {
            MigrationState::Fencing { leg, .. } | MigrationState::Proving { leg, .. } => {
                let why = "the controller stopped under the fence".to_owned();
                let error = BackendError::Fenced { doing: "going on after a restart".into(), why };
                self.fence_failed(record, leg.way(), error).await.map(Some)
            }
            MigrationState::Sealing { leg, .. } => {
                let spec = record.spec(leg.way());
                let ask = || self.backend.source_state(&spec);
                let found = self.call("asking the source for its state", None, ask).await;
                match found.map_err(|e| stuck(record, e))? {
                    crate::SourceState::Sealed => Ok(Some(self.sealed(record, leg.way()))),
                    // The seal itself, repeated, finds out the rest.
                    crate::SourceState::Fenced | crate::SourceState::Open => Ok(None),
                }
            }
            MigrationState::Copying { cursor: Some(_), .. } if !self.backend.capabilities().resumable_copy => {
                Ok(Some(Event::CopyLost.into()))
            }
            _ => Ok(None),
        }
    }
}

fn stuck(record: &MigrationRecord, source: BackendError) -> DriverError {
    DriverError::Stuck { id: record.id.clone(), state: record.state.name(), source }
}
