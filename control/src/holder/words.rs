//! What follows in each state of a migration, and how to take it back, in words for a person.

use foreshard_domain::{MigrationId, NodeId};
use foreshard_migrator::{Ending, MigrationRecord, MigrationState, Way};

/// What will be done next.
pub(crate) fn next_step(record: &MigrationRecord) -> String {
    next_of(record, &record.state)
}

fn next_of(record: &MigrationRecord, state: &MigrationState) -> String {
    use MigrationState as S;
    let (source, target, id) = (record.source(), record.target(), &record.id);
    let ends = |way: Way| match way {
        Way::There => (source, target),
        Way::Back => (target, source),
    };
    match state {
        S::Planned => "check before anything is changed".to_owned(),
        S::Preparing { .. } => format!("make the place on {target}, then copy"),
        S::Copying { .. } => format!("copy the rest to {target}, then apply what clients changed meanwhile"),
        S::CatchingUp { leg } => {
            let (from, to) = ends(leg.way());
            format!("apply {from}'s changes to {to}, then compare the two")
        }
        S::Verifying { leg, .. } => {
            let (from, to) = ends(leg.way());
            match leg.way() {
                Way::There => format!("compare the rest of {from} and {to}, then try the way back"),
                Way::Back => format!("compare the rest of {from} and {to}, then close in on the fence"),
            }
        }
        S::TryingWayBack { .. } => format!("see a probe of {target} on {source}, then close in on the fence"),
        S::Nearing { leg, .. } => {
            let (from, to) = ends(leg.way());
            format!("apply changes until {to} is near enough, then stop writes on {from} for a moment")
        }
        S::Fencing { leg, deadline, .. } | S::Proving { leg, deadline, .. } => {
            let (from, to) = ends(leg.way());
            let until = at(*deadline);
            format!("prove that {to} has everything, then seal {from}; the fence ends by itself at {until}")
        }
        S::Sealing { leg, .. } => {
            let (from, to) = ends(leg.way());
            format!("find out whether {from} is sealed; if so {to} becomes owner, if not the fence is tried again")
        }
        S::Sealed { way } | S::Opening { way, .. } | S::Routing { way, .. } => {
            let (_, to) = ends(*way);
            format!("open {to} and send clients to it: the move is past the point of no return and goes forward")
        }
        S::OpeningWayBack { .. } => {
            format!("begin to carry {target}'s changes back to {source}; {}", if_lost(id, source))
        }
        S::Reversible { until } => format!(
            "nothing until {until}: {source}'s copy is kept; then `foreshard control`, or `foreshard migrate finish {id}`, \
             removes it"
        ),
        S::Releasing { .. } => format!("lift the fence on {target}, which goes on serving; the move stays reversible"),
        S::Finishing { .. } | S::Undoing { .. } if record.lost.is_some() => {
            format!("remove what is left on {}; nothing is asked of the lost node", record.owner().node)
        }
        S::Finishing { way } => format!("remove the copy on {}; {}", ends(*way).0, if_lost(id, ends(*way).0)),
        S::Undoing { ending: Ending::Cancelled } => format!("remove what was made on {target}; then it is cancelled"),
        S::Undoing { ending: Ending::Failed { .. } } => format!("remove what was made on {target}; then it has failed"),
        S::Paused { at } => {
            format!("nothing before `foreshard migrate resume {id}`; then: {}", next_of(record, at))
        }
        S::Done => format!("nothing: {target} owns the shard, {source}'s copy is gone"),
        S::Cancelled => format!("nothing: {source} owns the shard, all that was made is gone"),
        S::Failed { .. } => {
            format!(
                "nothing: {source} owns the shard, all that was made is gone; mend the cause and start the move again"
            )
        }
        S::RolledBack => format!("nothing: {source} owns the shard again, {target}'s copy is gone"),
    }
}

/// What a person can do about a node that will never answer again.
fn if_lost(id: &MigrationId, node: &NodeId) -> String {
    format!("if {node} is gone for good, `foreshard migrate finish {id} --lost-node {node}` ends without it")
}

/// How to take it back.
pub(crate) fn undo(record: &MigrationRecord) -> String {
    undo_of(record, &record.state)
}

fn undo_of(record: &MigrationRecord, state: &MigrationState) -> String {
    use MigrationState as S;
    let (source, target, id) = (record.source(), record.target(), &record.id);
    let cancel = |way: Way| match way {
        Way::There => format!("`foreshard migrate cancel {id}` removes what was made; {source} serves as before"),
        Way::Back => format!("`foreshard migrate cancel {id}` gives up the rollback; {target} goes on serving"),
    };
    let past = |way: Way| match way {
        Way::There => format!("not now: it goes forward; once it is reversible, `foreshard migrate rollback {id}`"),
        Way::Back => format!("not now: it goes forward; then a new move of the shard to {target}"),
    };
    match state {
        S::Planned | S::Preparing { .. } | S::Copying { .. } | S::TryingWayBack { .. } => cancel(Way::There),
        S::CatchingUp { leg }
        | S::Verifying { leg, .. }
        | S::Nearing { leg, .. }
        | S::Fencing { leg, .. }
        | S::Proving { leg, .. } => cancel(leg.way()),
        S::Sealing { leg, .. } => past(leg.way()),
        S::Sealed { way } | S::Opening { way, .. } | S::Routing { way, .. } => past(*way),
        S::OpeningWayBack { .. } => past(Way::There),
        S::Reversible { .. } => {
            format!("`foreshard migrate rollback {id}` makes {source} the owner again, with all that was written since")
        }
        S::Releasing { .. } => format!("when the fence is lifted, `foreshard migrate rollback {id}` tries again"),
        S::Finishing { way: Way::There } | S::Done => format!("a new move of the shard to {source}"),
        S::Finishing { way: Way::Back } | S::RolledBack => format!("a new move of the shard to {target}"),
        S::Undoing { .. } => "it is being taken back".to_owned(),
        S::Paused { at } => undo_of(record, at),
        S::Cancelled | S::Failed { .. } => "nothing is left to take back".to_owned(),
    }
}

/// A moment of real time as people write it.
fn at(moment: foreshard_domain::RealTime) -> String {
    foreshard_domain::Timestamp::from_ms(moment.as_ms()).to_string()
}
