//! What a node knows of a shard, and every decision about it as a pure function.

use foreshard_domain::{Epoch, MigrationId, NodeId, RealTime, ShardId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{Position, SourceState, Way};

/// What a copy of a shard is there for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShardState {
    /// Accepts writes of its epoch.
    Open,
    /// Refuses writes until its deadline, then counts as open by itself (M7).
    Fenced {
        /// Who fenced it.
        migration: MigrationId,
        /// First moment at which it counts as open again.
        deadline: RealTime,
        /// The position at which writes stopped.
        at: Position,
        /// How long it was to last when it began, real milliseconds; unknown in rows of older versions.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lasts_ms: Option<u64>,
    },
    /// Closed for good in this epoch; its rows are kept and may follow the new owner's, for the way back.
    Sealed {
        /// Who sealed it.
        migration: MigrationId,
    },
    /// Being filled by a move; never accepted a write.
    Importing {
        /// By which.
        migration: MigrationId,
        /// The position from which the log must be replayed onto the copied rows; `None` before the copy began.
        copy_from: Option<Position>,
    },
    /// Being removed; holds only a part of its rows.
    Purging {
        /// By which move.
        migration: MigrationId,
    },
}

/// The meta row of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMeta {
    /// The epoch in which this copy accepts or accepted writes; for a copy being filled, that of its source.
    pub epoch: Epoch,
    /// What it is there for.
    pub state: ShardState,
    /// Position of this copy when this row was written; later writes of an open shard are beyond it.
    pub position: Position,
    /// Who needs the log, and from which position on (exclusive); the log is written while there is anybody.
    #[serde(default)]
    pub captures: BTreeMap<MigrationId, Position>,
}

/// Why a node refused something about a shard. None of these changed anything.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no copy of the shard.
    #[error("node {node} holds no copy of shard {shard}")]
    Absent {
        /// The node.
        node: NodeId,
        /// The shard.
        shard: ShardId,
    },
    /// The caller believes in another epoch than the node (M2).
    #[error("the shard is in epoch {actual} here, not {believed}")]
    Epoch {
        /// What the caller believes.
        believed: Epoch,
        /// What the node knows.
        actual: Epoch,
    },
    /// Writes have to wait.
    #[error("the shard is fenced by migration {by} until {until:?}")]
    Fenced {
        /// Who fenced it.
        by: MigrationId,
        /// Until when.
        until: RealTime,
    },
    /// The shard has left, or is not here yet.
    #[error("the shard is {state} here and serves nobody")]
    Closed {
        /// In which state it is.
        state: &'static str,
    },
    /// The step does not fit the state.
    #[error("the shard is {state} here: {why}")]
    State {
        /// In which state it is.
        state: &'static str,
        /// What is wrong about it, and what to do.
        why: String,
    },
}

impl ShardState {
    /// Its name in messages.
    pub const fn name(&self) -> &'static str {
        match self {
            ShardState::Open => "open",
            ShardState::Fenced { .. } => "fenced",
            ShardState::Sealed { .. } => "sealed",
            ShardState::Importing { .. } => "importing",
            ShardState::Purging { .. } => "being removed",
        }
    }

    /// Whether this is a copy that `migration` fills, or is removing before it was filled.
    pub(super) fn is_filled_by(&self, migration: &MigrationId) -> bool {
        match self {
            ShardState::Importing { migration: by, .. } | ShardState::Purging { migration: by } => by == migration,
            ShardState::Open | ShardState::Fenced { .. } | ShardState::Sealed { .. } => false,
        }
    }

    /// Whether a fence stands that has not expired.
    fn is_fenced(&self, now: RealTime) -> bool {
        match self {
            ShardState::Fenced { deadline, .. } => now < *deadline,
            ShardState::Open
            | ShardState::Sealed { .. }
            | ShardState::Importing { .. }
            | ShardState::Purging { .. } => false,
        }
    }
}

impl ShardMeta {
    /// A shard that accepts writes in `epoch`.
    pub fn open(epoch: Epoch) -> Self {
        Self { epoch, state: ShardState::Open, position: Position(0), captures: BTreeMap::new() }
    }

    /// Whether clients may read here: the node is the owner in this epoch, fenced or not.
    pub(super) fn is_readable(&self) -> bool {
        match self.state {
            ShardState::Open | ShardState::Fenced { .. } => true,
            ShardState::Sealed { .. } | ShardState::Importing { .. } | ShardState::Purging { .. } => false,
        }
    }

    /// The oldest position from which the log is needed, if at all.
    pub(super) fn log_from(&self) -> Option<Position> {
        self.captures.values().min().copied()
    }

    fn same_epoch(&self, believed: Epoch) -> Result<(), Refusal> {
        if self.epoch == believed { Ok(()) } else { Err(Refusal::Epoch { believed, actual: self.epoch }) }
    }

    fn state_error<T>(&self, why: impl Into<String>) -> Result<T, Refusal> {
        Err(Refusal::State { state: self.state.name(), why: why.into() })
    }

    /// Whether a client that believes in `epoch` may be served here at all.
    pub(super) fn serves(&self, epoch: Epoch) -> Result<(), Refusal> {
        self.same_epoch(epoch)?;
        if self.is_readable() { Ok(()) } else { Err(Refusal::Closed { state: self.state.name() }) }
    }

    /// Whether a write is accepted. `Some` is the state to be stored together with the write: a fence that has expired is
    /// taken away by the first write after it, so that a clock set back cannot make it stand again.
    pub(super) fn admit_write(&self, epoch: Epoch, now: RealTime) -> Result<Option<Self>, Refusal> {
        self.serves(epoch)?;
        match &self.state {
            ShardState::Fenced { migration, deadline, .. } if now < *deadline => {
                Err(Refusal::Fenced { by: migration.clone(), until: *deadline })
            }
            ShardState::Fenced { .. } => Ok(Some(Self { state: ShardState::Open, ..self.clone() })),
            ShardState::Open
            | ShardState::Sealed { .. }
            | ShardState::Importing { .. }
            | ShardState::Purging { .. } => Ok(None),
        }
    }

    /// The same with a fence that has ended taken away.
    pub(super) fn without_ended_fence(self, now: RealTime) -> Self {
        match &self.state {
            ShardState::Fenced { .. } if !self.state.is_fenced(now) => Self { state: ShardState::Open, ..self },
            _ => self,
        }
    }

    /// Fences the shard at `position`. Fencing again moves the deadline.
    pub(super) fn fence(
        &self,
        migration: &MigrationId,
        epoch: Epoch,
        deadline: RealTime,
        now: RealTime,
        position: Position,
    ) -> Result<Self, Refusal> {
        self.serves(epoch)?;
        if let ShardState::Fenced { migration: by, deadline: until, .. } = &self.state
            && by != migration
            && self.state.is_fenced(now)
        {
            return Err(Refusal::Fenced { by: by.clone(), until: *until });
        }
        if deadline <= now {
            return self.state_error("the deadline of the fence has passed already; choose a later one");
        }
        let lasts_ms = u64::try_from(deadline.since(now).as_millis()).ok();
        let state = ShardState::Fenced { migration: migration.clone(), deadline, at: position, lasts_ms };
        Ok(Self { state, position, ..self.clone() })
    }

    /// Lifts this migration's fence; `None` if there is nothing to do.
    pub(super) fn unfence(&self, migration: &MigrationId) -> Option<Self> {
        match &self.state {
            ShardState::Fenced { migration: by, .. } if by == migration => {
                Some(Self { state: ShardState::Open, ..self.clone() })
            }
            ShardState::Open
            | ShardState::Fenced { .. }
            | ShardState::Sealed { .. }
            | ShardState::Importing { .. }
            | ShardState::Purging { .. } => None,
        }
    }

    /// Closes the shard for good: the point of no return. `None` if this migration has done so before.
    pub(super) fn seal(
        &self,
        migration: &MigrationId,
        epoch: Epoch,
        proven: Position,
        now: RealTime,
        position: Position,
    ) -> Result<Option<Self>, Refusal> {
        self.same_epoch(epoch)?;
        match &self.state {
            ShardState::Sealed { migration: by } if by == migration => Ok(None),
            ShardState::Fenced { migration: by, deadline, at, .. } if by == migration => {
                if now >= *deadline {
                    return self.state_error("the deadline of the fence has passed; fence again");
                }
                if *at != position || proven != *at {
                    return self.state_error(format!(
                        "the proof is of {proven:?}, writes stopped at {at:?}, the shard is at {position:?}; prove again"
                    ));
                }
                Ok(Some(Self { state: ShardState::Sealed { migration: migration.clone() }, position, ..self.clone() }))
            }
            ShardState::Open
            | ShardState::Fenced { .. }
            | ShardState::Sealed { .. }
            | ShardState::Importing { .. }
            | ShardState::Purging { .. } => self.state_error(format!("migration {migration} holds no fence on it")),
        }
    }

    /// Makes a filled copy the owner in `epoch`; `None` if it is (or was) already. On the way there its changes are recorded
    /// for the way back.
    pub(super) fn take_over(
        &self,
        migration: &MigrationId,
        epoch: Epoch,
        position: Position,
        way: Way,
    ) -> Result<Option<Self>, Refusal> {
        let fills = match &self.state {
            ShardState::Importing { migration: by, copy_from } => by == migration && copy_from.is_some(),
            ShardState::Sealed { migration: by } => by == migration && self.epoch < epoch,
            ShardState::Open | ShardState::Fenced { .. } | ShardState::Purging { .. } => false,
        };
        if fills && self.epoch < epoch {
            let mut captures = self.captures.clone();
            match way {
                Way::There => captures.insert(migration.clone(), position),
                Way::Back => captures.remove(migration),
            };
            return Ok(Some(Self { epoch, state: ShardState::Open, position, captures }));
        }
        if self.epoch == epoch && !matches!(self.state, ShardState::Importing { .. } | ShardState::Purging { .. }) {
            return Ok(None);
        }
        if epoch <= self.epoch {
            return Err(Refusal::Epoch { believed: epoch, actual: self.epoch });
        }
        self.state_error(format!("migration {migration} has not filled it"))
    }

    /// Whether this copy takes changes from another node on behalf of `migration`.
    pub(super) fn follows(&self, migration: &MigrationId) -> Result<(), Refusal> {
        match &self.state {
            ShardState::Importing { migration: by, copy_from: Some(_) } if by == migration => Ok(()),
            ShardState::Sealed { migration: by } if by == migration => Ok(()),
            ShardState::Importing { migration: by, copy_from: None } if by == migration => {
                self.state_error("nothing was copied yet; copy first")
            }
            ShardState::Open
            | ShardState::Fenced { .. }
            | ShardState::Sealed { .. }
            | ShardState::Importing { .. }
            | ShardState::Purging { .. } => {
                self.state_error(format!("it takes no changes on behalf of migration {migration}"))
            }
        }
    }

    /// Begins the removal of a copy; `only` says in which states that may happen. `None` if it has begun already.
    pub(super) fn purge(&self, migration: &MigrationId, only: Removable) -> Result<Option<Self>, Refusal> {
        let removable = match &self.state {
            ShardState::Purging { migration: by } if by == migration => return Ok(None),
            ShardState::Importing { migration: by, .. } => by == migration && only == Removable::Import,
            ShardState::Sealed { migration: by } => by == migration && only == Removable::Sealed,
            ShardState::Open | ShardState::Fenced { .. } | ShardState::Purging { .. } => false,
        };
        if !removable {
            return self.state_error(format!("it is not migration {migration}'s to remove"));
        }
        Ok(Some(Self { state: ShardState::Purging { migration: migration.clone() }, ..self.clone() }))
    }

    /// What the driver is told.
    pub(super) fn source_state(
        &self,
        migration: &MigrationId,
        epoch: Epoch,
        now: RealTime,
    ) -> Result<SourceState, Refusal> {
        match &self.state {
            ShardState::Open => Ok(SourceState::Open),
            ShardState::Fenced { .. } if self.state.is_fenced(now) => Ok(SourceState::Fenced),
            ShardState::Fenced { .. } => Ok(SourceState::Open),
            ShardState::Sealed { migration: by } | ShardState::Purging { migration: by } => {
                self.same_epoch(epoch)?;
                if by == migration {
                    return Ok(SourceState::Sealed);
                }
                self.state_error(format!("it was closed by migration {by}, not by {migration}"))
            }
            ShardState::Importing { .. } => self.state_error("it was never the owner"),
        }
    }
}

/// Which copies a removal is meant for: taking away the wrong one loses data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Removable {
    /// A copy that never was the owner.
    Import,
    /// A copy that was sealed.
    Sealed,
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: RealTime = RealTime::from_ms(1000);
    const LATER: RealTime = RealTime::from_ms(2000);

    fn m(name: &str) -> MigrationId {
        MigrationId::new(name).unwrap()
    }

    fn in_state(state: ShardState) -> ShardMeta {
        ShardMeta { state, position: Position(5), ..ShardMeta::open(Epoch(3)) }
    }

    fn fenced() -> ShardMeta {
        in_state(ShardState::Fenced { migration: m("m"), deadline: LATER, at: Position(5), lasts_ms: Some(1000) })
    }

    fn all() -> Vec<ShardMeta> {
        let migration = m("m");
        vec![
            in_state(ShardState::Open),
            fenced(),
            in_state(ShardState::Sealed { migration: migration.clone() }),
            in_state(ShardState::Importing { migration: migration.clone(), copy_from: Some(Position(1)) }),
            in_state(ShardState::Purging { migration }),
        ]
    }

    #[test]
    fn m2_only_the_owner_accepts_writes_and_only_in_its_epoch() {
        let accepts = |epoch| all().iter().map(|meta| meta.admit_write(epoch, NOW).is_ok()).collect::<Vec<_>>();
        assert_eq!(accepts(Epoch(3)), [true, false, false, false, false]);
        for epoch in [Epoch(2), Epoch(4)] {
            assert_eq!(accepts(epoch), [false; 5]);
        }
    }

    #[test]
    fn m7_the_first_write_after_the_deadline_takes_the_fence_away_for_good() {
        assert!(fenced().admit_write(Epoch(3), RealTime::from_ms(1999)).is_err());
        let opened = fenced().admit_write(Epoch(3), LATER).unwrap().expect("the state changes with the write");
        assert!(opened.seal(&m("m"), Epoch(3), Position(5), NOW, Position(5)).is_err(), "with the clock set back");
        assert_eq!(opened.source_state(&m("m"), Epoch(3), NOW).unwrap(), SourceState::Open);
    }

    #[test]
    fn m4_only_the_fence_that_was_proven_is_sealed() {
        let seal = |meta: &ShardMeta, by: &str, epoch, proven, now, at| {
            meta.seal(&m(by), Epoch(epoch), Position(proven), now, Position(at)).map(|next| next.map(|meta| meta.state))
        };
        let sealed = ShardState::Sealed { migration: m("m") };
        assert_eq!(seal(&fenced(), "m", 3, 5, NOW, 5), Ok(Some(sealed.clone())));
        for (by, epoch, proven, now, at) in [
            ("other", 3, 5, NOW, 5),
            ("m", 2, 5, NOW, 5),
            ("m", 4, 5, NOW, 5),
            ("m", 3, 4, NOW, 5),
            ("m", 3, 6, NOW, 5),
            ("m", 3, 5, LATER, 5),
            ("m", 3, 5, NOW, 6),
        ] {
            assert!(seal(&fenced(), by, epoch, proven, now, at).is_err(), "{by} {epoch} {proven} {now:?} {at}");
        }
        let done = all().iter().map(|meta| seal(meta, "m", 3, 5, NOW, 5)).collect::<Vec<_>>();
        assert!(done[0].is_err() && done[3].is_err() && done[4].is_err());
        assert_eq!(done[2], Ok(None), "what is sealed stays as it is");
    }

    #[test]
    fn m2_only_its_own_seal_tells_a_migration_to_go_forward() {
        let says = |by: &str, epoch| all()[2].source_state(&m(by), Epoch(epoch), NOW);
        assert_eq!(says("m", 3), Ok(SourceState::Sealed));
        assert!(says("other", 3).is_err() && says("m", 2).is_err());
    }

    #[test]
    fn m5_nothing_but_the_right_copy_is_removed() {
        let removable = |by: &str, only| all().iter().map(|meta| meta.purge(&m(by), only).is_ok()).collect::<Vec<_>>();
        assert_eq!(removable("m", Removable::Import), [false, false, false, true, true]);
        assert_eq!(removable("m", Removable::Sealed), [false, false, true, false, true]);
        assert_eq!(removable("other", Removable::Sealed), [false; 5]);
    }

    #[test]
    fn m3_a_copy_takes_over_only_in_a_higher_epoch() {
        let takes = |epoch| {
            let take = |meta: &ShardMeta| meta.take_over(&m("m"), Epoch(epoch), Position(5), Way::There);
            all().iter().map(|meta| take(meta).is_ok_and(|next| next.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(takes(4), [false, false, true, true, false]);
        assert_eq!(takes(3), [false; 5]);
        assert_eq!(takes(2), [false; 5]);
    }

    #[test]
    fn the_meta_row_is_stable_and_strict() {
        let text = r#"{"epoch":3,"state":{"fenced":{"migration":"m","deadline":2000,"at":5,"lasts_ms":1000}},"position":5,"captures":{}}"#;
        assert_eq!(serde_json::from_str::<ShardMeta>(text).unwrap(), fenced());
        assert_eq!(serde_json::to_string(&fenced()).unwrap(), text);
        let old = serde_json::from_str::<ShardMeta>(&text.replace(r#","lasts_ms":1000"#, "")).unwrap();
        assert!(matches!(old.state, ShardState::Fenced { lasts_ms: None, .. }));
        assert!(serde_json::from_str::<ShardMeta>(&text.replace("captures", "unknown")).is_err());
    }
}
