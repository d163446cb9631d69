//! The table itself.

use super::event::differences;
use super::{Action, Ending, Event, Leg, MigrationState};
use crate::{Proof, Way};

/// An event that a state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a migration that is {state} does not allow {event}{}", why.as_deref().map(|w| format!(": {w}")).unwrap_or_default())]
pub struct IllegalTransition {
    /// Name of the state.
    pub state: &'static str,
    /// Name of the event.
    pub event: &'static str,
    /// Why, where names alone do not tell.
    pub why: Option<String>,
}

/// What follows from an event in a state: the next state, and what is to be done in it.
///
/// # Errors
/// [`IllegalTransition`] if the state does not allow the event; then nothing has changed.
pub fn step(state: &MigrationState, event: &Event) -> Result<(MigrationState, Vec<Action>), IllegalTransition> {
    let next = next(state, event)?;
    let actions = next.actions();
    Ok((next, actions))
}

fn next(state: &MigrationState, event: &Event) -> Result<MigrationState, IllegalTransition> {
    use Event as E;
    use MigrationState as S;
    Ok(match (state, event) {
        (S::Planned, E::Admitted { fences_left }) => S::Preparing { fences_left: *fences_left },
        (S::Planned, E::Broke { why }) => S::Failed { why: why.clone() },
        (S::Planned, E::Cancel) => S::Cancelled,
        (S::Preparing { fences_left }, E::Prepared) => S::Copying { fences_left: *fences_left, cursor: None },
        (S::Copying { fences_left, .. }, E::Copied { next: Some(next) }) => {
            S::Copying { fences_left: *fences_left, cursor: Some(next.clone()) }
        }
        (S::Copying { fences_left, .. }, E::Copied { next: None }) => {
            S::CatchingUp { leg: Leg::There { fences_left: *fences_left } }
        }
        (S::Copying { fences_left, .. }, E::CopyLost) => S::Copying { fences_left: *fences_left, cursor: None },
        (S::CatchingUp { .. } | S::Nearing { .. }, E::Behind) => state.clone(),
        (S::CatchingUp { leg }, E::CaughtUp) => S::Verifying { leg: *leg, so_far: None },
        (S::Verifying { leg, .. }, E::Verified { verification }) => match (differences(verification), *leg) {
            // One difference is enough to give up; comparing the rest would only take longer.
            (Some(why), leg) => give_up(leg, why),
            (None, leg) if verification.next.is_some() => S::Verifying { leg, so_far: Some(verification.clone()) },
            (None, Leg::There { fences_left }) => S::TryingWayBack { fences_left, verified: verification.clone() },
            (None, leg @ Leg::Back { .. }) => S::Nearing { leg, verified: verification.clone() },
        },
        (S::TryingWayBack { fences_left, verified }, E::WayBackTried) => {
            S::Nearing { leg: Leg::There { fences_left: *fences_left }, verified: verified.clone() }
        }
        (S::Nearing { leg, verified }, E::Near { deadline }) => {
            S::Fencing { leg: *leg, verified: verified.clone(), deadline: *deadline }
        }
        (S::Fencing { leg, verified, deadline }, E::Fenced { fence_at }) => {
            S::Proving { leg: *leg, verified: verified.clone(), fence_at: *fence_at, deadline: *deadline }
        }
        (S::Proving { leg, fence_at, deadline, .. }, E::Proved { proof }) if proof.fence_at == *fence_at => {
            match failure_of(proof) {
                None => S::Sealing { leg: *leg, proof: proof.clone(), deadline: *deadline },
                Some(why) => give_up(*leg, why),
            }
        }
        (S::Fencing { leg, .. } | S::Proving { leg, .. } | S::Sealing { leg, .. }, E::FenceLost { why }) => {
            match leg.spend_fence() {
                Some(leg) => S::CatchingUp { leg },
                None => give_up(*leg, format!("no fence was long enough: {why}")),
            }
        }
        (S::Sealing { leg, .. }, E::SourceSealed) => S::Sealed { way: leg.way() },
        (S::Fencing { leg, .. }, E::SealFound { proof }) if failure_of(proof).is_none() => S::Sealed { way: leg.way() },
        (S::Proving { leg, fence_at, .. }, E::SealFound { proof })
            if failure_of(proof).is_none() && proof.fence_at == *fence_at =>
        {
            S::Sealed { way: leg.way() }
        }
        (S::Undoing { .. }, E::SealFound { proof }) if failure_of(proof).is_none() => S::Sealed { way: Way::There },
        (S::Releasing { .. }, E::SealFound { proof }) if failure_of(proof).is_none() => S::Sealed { way: Way::Back },
        (S::Sealed { way }, E::OwnerSwitched { epoch }) => S::Opening { way: *way, epoch: *epoch },
        (S::Opening { way, epoch }, E::TargetOpened) => S::Routing { way: *way, epoch: *epoch },
        (S::Routing { way: Way::There, .. }, E::Routed { until }) => S::OpeningWayBack { until: *until },
        (S::Routing { way: Way::Back, .. }, E::Routed { .. }) => S::Finishing { way: Way::Back },
        (S::OpeningWayBack { until }, E::WayBackOpened) => S::Reversible { until: *until },
        (S::Reversible { until }, E::RollBack { fences_left }) => {
            S::CatchingUp { leg: Leg::Back { fences_left: *fences_left, until: *until } }
        }
        (S::Reversible { until }, E::Finish { now }) if now >= until => S::Finishing { way: Way::There },
        (S::OpeningWayBack { .. } | S::Reversible { .. }, E::NodeLost { .. }) => S::Finishing { way: Way::There },
        (S::Finishing { .. } | S::Undoing { .. }, E::NodeLost { .. }) => state.clone(),
        (S::Reversible { .. }, E::WayBackClosed { .. }) => state.clone(),
        (S::Finishing { way: Way::There }, E::Finished) => S::Done,
        (S::Finishing { way: Way::Back }, E::Finished) => S::RolledBack,
        (S::Releasing { until, .. }, E::Released) => S::Reversible { until: *until },
        (S::Undoing { ending: Ending::Cancelled }, E::Undone) => S::Cancelled,
        (S::Undoing { ending: Ending::Failed { why } }, E::Undone) => S::Failed { why: why.clone() },
        (S::Paused { at }, E::Resume) => at.as_ref().clone(),
        (S::Paused { at }, E::Cancel | E::Broke { .. }) => return next(at, event),
        (state, E::Pause) if state.may_pause() => S::Paused { at: Box::new(state.clone()) },
        (S::Preparing { .. } | S::Copying { .. } | S::TryingWayBack { .. }, E::Broke { .. } | E::Cancel) => {
            S::Undoing { ending: ending(event) }
        }
        (
            S::CatchingUp { leg }
            | S::Verifying { leg, .. }
            | S::Nearing { leg, .. }
            | S::Fencing { leg, .. }
            | S::Proving { leg, .. },
            E::Broke { .. } | E::Cancel,
        ) => match leg {
            Leg::There { .. } => S::Undoing { ending: ending(event) },
            Leg::Back { .. } => give_up(*leg, event.note().unwrap_or_else(|| "the rollback was cancelled".into())),
        },
        (state, event) => return Err(illegal(state, event)),
    })
}

fn ending(event: &Event) -> Ending {
    match event.note() {
        Some(why) => Ending::Failed { why },
        None => Ending::Cancelled,
    }
}

/// Before the seal a move goes back: there by undoing it, back by staying where it is.
fn give_up(leg: Leg, why: String) -> MigrationState {
    match leg {
        Leg::There { .. } => MigrationState::Undoing { ending: Ending::Failed { why } },
        Leg::Back { until, .. } => MigrationState::Releasing { until, why },
    }
}

/// Why a proof does not entitle to the seal (M4).
fn failure_of(proof: &Proof) -> Option<String> {
    if proof.applied < proof.fence_at {
        return Some(format!(
            "the target stopped at position {}, before the fence at {}",
            proof.applied.0, proof.fence_at.0
        ));
    }
    if proof.verification.next.is_some() {
        return Some("the comparison under the fence did not reach every range".to_owned());
    }
    differences(&proof.verification)
}

fn illegal(state: &MigrationState, event: &Event) -> IllegalTransition {
    let why = match (state, event) {
        (MigrationState::Reversible { until }, Event::Finish { .. }) => {
            Some(format!("the source's data is kept until {until}"))
        }
        (MigrationState::Proving { fence_at, .. }, Event::Proved { proof }) => {
            Some(format!("the proof is of position {}, the fence at {}", proof.fence_at.0, fence_at.0))
        }
        (state, Event::NodeLost { .. }) if !state.is_terminal() => {
            Some("a node can be given up once the shard is open on the other, or while the move is undone".into())
        }
        (_, Event::SealFound { .. }) => Some("the proof that is known does not entitle to the seal".into()),
        (state, Event::Pause) if !state.is_at_rest() => Some("it can be paused only before the fence".into()),
        (MigrationState::Sealing { .. }, Event::Cancel) => Some("the source may already be sealed".into()),
        (state, Event::Cancel) if state.must_go_forward() => Some("the source is sealed".into()),
        _ => None,
    };
    IllegalTransition { state: state.name(), event: event.name(), why }
}
