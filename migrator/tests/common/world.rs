//! A scripted engine in memory that moves one shard between two nodes, takes a client's write before every call, and notes
//! whatever must not happen.

use async_trait::async_trait;
use foreshard_domain::{
    BackendKind, Clock, Consistency, Epoch, ManualClock, NodeId, Observation, Owner, RealTime, ShardId, Timestamp,
};
use foreshard_migrator::{
    Backend, BackendError, Capabilities, CopyProgress, Lag, Left, MoveSpec, Position, Proof, SourceState, StateStore,
    Verification, Way,
};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::common::node;

/// How long the source's data is kept in these tests, model milliseconds.
pub const RETENTION_MS: i64 = 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Importing,
    Open,
    Fenced { deadline: RealTime, at: u64 },
    Sealed,
}

/// One node's copy of the shard.
#[derive(Debug, Clone)]
pub struct Copy {
    pub mode: Mode,
    pub epoch: Epoch,
    pub rows: BTreeMap<u64, u64>,
    /// Changes since capturing began; a position is a number of them.
    log: Option<Vec<(u64, u64)>>,
    /// How many changes of the other copy's log have been applied.
    applied: usize,
}

#[derive(Debug, Default)]
pub struct Inner {
    pub copies: BTreeMap<NodeId, Copy>,
    pub route: Option<(NodeId, Epoch)>,
    pub acknowledged: BTreeMap<u64, u64>,
    pub objects: BTreeSet<String>,
    pub violations: Vec<String>,
    probed: bool,
    kept_until: Option<Timestamp>,
    written: u64,
    /// The target's copy gets a row wrong that no client writes, while this call runs.
    pub damage_in: Option<&'static str>,
    /// No client writes, so that positions stand still.
    pub quiet: bool,
    /// The first seal's answer is lost, and it comes through late: in this call, under a later fence.
    pub late_seal: Option<&'static str>,
    late_proof: Option<Proof>,
    fences: u32,
    /// Calls that compared.
    pub verify_pieces: u32,
    /// The controller sleeps this long after proving.
    pub sleep_after_proof_ms: Vec<i64>,
}

pub struct World {
    pub clock: Arc<ManualClock>,
    pub store: Arc<dyn StateStore>,
    pub reverse_log: bool,
    pub resumable: bool,
    inner: Mutex<Inner>,
}

fn refused(why: impl Into<String>) -> BackendError {
    BackendError::Fenced { doing: "a test".into(), why: why.into() }
}

impl Inner {
    fn check(&mut self, holds: bool, what: impl Into<String>) {
        if !holds {
            self.violations.push(what.into());
        }
    }

    pub fn copy(&mut self, node: &NodeId) -> Result<&mut Copy, BackendError> {
        self.copies.get_mut(node).ok_or_else(|| refused(format!("no copy on {node}")))
    }

    /// Fences expire by themselves.
    fn expire(&mut self, now: RealTime) {
        for copy in self.copies.values_mut() {
            if matches!(copy.mode, Mode::Fenced { deadline, .. } if deadline <= now) {
                copy.mode = Mode::Open;
            }
        }
    }

    /// A client writes where it is sent; what the node refuses is not acknowledged.
    fn write(&mut self) {
        let open: Vec<_> = self.copies.iter().filter(|(_, c)| c.mode == Mode::Open).map(|(n, _)| n.clone()).collect();
        self.check(open.len() <= 1, format!("M2: {open:?} accept writes"));
        let Some((node, epoch)) = self.route.clone().filter(|_| !self.quiet) else { return };
        self.written += 1;
        let (key, value) = (self.written % 7, self.written);
        let Some(copy) = self.copies.get_mut(&node) else { return };
        if copy.mode == Mode::Open && copy.epoch == epoch {
            copy.rows.insert(key, value);
            if let Some(log) = &mut copy.log {
                log.push((key, value));
            }
            self.acknowledged.insert(key, value);
        }
    }

    /// Applies changes of one copy to the other; returns how far it is behind.
    fn apply(&mut self, from: &NodeId, to: &NodeId, upto: usize, most: usize) -> Result<Lag, BackendError> {
        let log = self.copy(from)?.log.clone().ok_or_else(|| refused(format!("{from} keeps no log")))?;
        let target = self.copy(to)?;
        for (key, value) in log.iter().take(upto).skip(target.applied).take(most) {
            target.rows.insert(*key, *value);
            target.applied += 1;
        }
        let behind = log.len().saturating_sub(target.applied);
        Ok(Lag { changes: behind as u64, applied: Position(target.applied as u64) })
    }

    fn compare(&mut self, spec: &MoveSpec, upto: u64) -> Result<Verification, BackendError> {
        let (source, target) = (self.copy(&spec.source)?.rows.clone(), self.copy(&spec.target)?.rows.clone());
        let keys: BTreeSet<u64> = source.keys().chain(target.keys()).copied().collect();
        let differing = keys.iter().filter(|k| source.get(k) != target.get(k)).map(|k| format!("row {k}")).collect();
        Ok(Verification { ranges: 1, rows: source.len() as u64, differing, up_to: Position(upto), next: None })
    }

    /// Removes five rows of a copy, or the copy when it is empty.
    fn remove_piece(&mut self, node: &NodeId) -> Left {
        let Some(copy) = self.copies.get_mut(node) else { return Left::Nothing };
        let before = copy.rows.len();
        for _ in 0..5 {
            copy.rows.pop_first();
        }
        if before > 5 {
            return Left::More;
        }
        self.copies.remove(node);
        Left::Nothing
    }

    /// The seal that was given up comes through, if this is its moment and the fence is like its own.
    fn seal_late(&mut self, call: &str, spec: &MoveSpec) {
        if self.late_seal == Some(call)
            && self.fences > 1
            && let Some(proof) = self.late_proof.clone()
            && let Some(copy) = self.copies.get_mut(&spec.source)
            && matches!(copy.mode, Mode::Fenced { at, .. } if at == proof.fence_at.0)
        {
            copy.mode = Mode::Sealed;
            self.late_seal = None;
        }
    }

    fn damage(&mut self, call: &str, spec: &MoveSpec) {
        if self.damage_in == Some(call)
            && let Some(value) = self.copies.get_mut(&spec.target).and_then(|c| c.rows.get_mut(&7))
        {
            *value += 1_000_000;
        }
    }
}

impl World {
    /// A shard with a few rows, open on node 0 in epoch 1.
    pub fn new(store: Arc<dyn StateStore>) -> Self {
        let rows: BTreeMap<u64, u64> = (0..8).map(|k| (k, 0)).collect();
        let copy = Copy { mode: Mode::Open, epoch: Epoch(1), rows: rows.clone(), log: None, applied: 0 };
        let inner = Inner {
            copies: BTreeMap::from([(node(0), copy)]),
            route: Some((node(0), Epoch(1))),
            acknowledged: rows,
            ..Inner::default()
        };
        let clock = Arc::new(ManualClock::new(Timestamp::from_ms(10_800_000), RealTime::from_ms(1_000)));
        Self { clock, store, reverse_log: true, resumable: true, inner: Mutex::new(inner) }
    }

    /// What is there, without anything happening.
    pub fn look(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Before every call a millisecond passes and a client writes.
    fn enter(&self) -> MutexGuard<'_, Inner> {
        self.clock.advance_ms(1);
        let mut inner = self.look();
        inner.expire(self.clock.real());
        inner.write();
        inner
    }

    fn end_of_log(inner: &mut Inner, node: &NodeId) -> Result<u64, BackendError> {
        Ok(inner.copy(node)?.log.as_ref().map_or(0, Vec::len) as u64)
    }
}

#[async_trait]
impl Backend for World {
    fn kind(&self) -> BackendKind {
        BackendKind::Embedded
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            consistency: vec![Consistency::Strict],
            reverse_log: self.reverse_log,
            resumable_copy: self.resumable,
        }
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        ["log", "place"].map(|what| format!("{}/{what}", spec.migration)).into()
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut inner = self.enter();
        let open = inner.copy(&spec.source)?.mode == Mode::Open;
        if open { Ok(()) } else { Err(refused("the source is not open")) }
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let rows = self.store.read().await.unwrap().objects;
        let mut inner = self.enter();
        for name in self.external_objects(spec) {
            inner.check(rows.contains_key(&name), format!("M6: {name} has no row"));
            inner.objects.insert(name);
        }
        inner.copy(&spec.source)?.log.get_or_insert_default();
        let empty = Copy { mode: Mode::Importing, epoch: spec.epoch, rows: BTreeMap::new(), log: None, applied: 0 };
        inner.copies.entry(spec.target.clone()).or_insert(empty);
        Ok(())
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        let mut inner = self.enter();
        let from: u64 = cursor.map_or(0, |c| c.parse().unwrap());
        let source = inner.copy(&spec.source)?.rows.clone();
        let piece: Vec<(u64, u64)> = source.range(from..).take(3).map(|(k, v)| (*k, *v)).collect();
        let next = piece.last().map(|(k, _)| k + 1).filter(|k| source.range(k..).next().is_some());
        inner.copy(&spec.target)?.rows.extend(piece.iter().copied());
        inner.damage("copy", spec);
        let (rows, bytes) = (piece.len() as u64, piece.len() as u64 * 16);
        Ok(CopyProgress { next: next.map(|k| k.to_string()), snapshot_at: Position(0), rows, bytes })
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        self.enter().apply(&spec.source, &spec.target, usize::MAX, 2)
    }

    /// Three keys a call.
    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        let mut inner = self.enter();
        inner.apply(&spec.source, &spec.target, usize::MAX, usize::MAX)?;
        inner.damage("verify", spec);
        let upto = Self::end_of_log(&mut inner, &spec.source)?;
        let empty = Verification { ranges: 0, rows: 0, differing: Vec::new(), up_to: Position(upto), next: None };
        let mut found = so_far.cloned().unwrap_or(empty);
        let from: u64 = found.next.as_deref().map_or(0, |next| next.parse().unwrap());
        let last = inner.copies.values().filter_map(|copy| copy.rows.keys().last().copied()).max().unwrap_or(0);
        let differing = inner.compare(spec, upto)?.differing;
        let here = (from..from + 3).map(|key| format!("row {key}"));
        found.differing.extend(here.filter(|row| differing.contains(row)));
        found.ranges += 1;
        found.rows += inner.copy(&spec.source)?.rows.range(from..from + 3).count() as u64;
        found.next = Some(from + 3).filter(|next| *next <= last).map(|next| next.to_string());
        inner.verify_pieces += 1;
        Ok(found)
    }

    async fn try_way_back(&self, _: &MoveSpec) -> Result<(), BackendError> {
        self.enter().probed = true;
        Ok(())
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        let mut inner = self.enter();
        let probed = inner.probed;
        inner.check(probed, "M8: fenced before the way back was tried");
        let at = Self::end_of_log(&mut inner, &spec.source)?;
        let now = self.clock.real();
        let copy = inner.copy(&spec.source)?;
        match copy.mode {
            _ if deadline <= now || copy.epoch != spec.epoch => Err(refused("deadline or epoch has passed")),
            Mode::Open | Mode::Fenced { .. } => {
                copy.mode = Mode::Fenced { deadline, at };
                inner.fences += 1;
                inner.seal_late("fence", spec);
                match inner.copy(&spec.source)?.mode {
                    Mode::Sealed => Err(refused("the answer was lost, and then the source was sealed")),
                    _ => Ok(Position(at)),
                }
            }
            Mode::Importing | Mode::Sealed => Err(refused(format!("the source is {:?}", copy.mode))),
        }
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let mut inner = self.enter();
        inner.seal_late("unfence", spec);
        let copy = inner.copy(&spec.source)?;
        if matches!(copy.mode, Mode::Fenced { .. }) {
            copy.mode = Mode::Open;
        }
        Ok(())
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, _: &Verification) -> Result<Proof, BackendError> {
        let mut inner = self.enter();
        inner.seal_late("prove", spec);
        match inner.copy(&spec.source)?.mode {
            Mode::Fenced { at, .. } if at == fence_at.0 => {}
            mode => return Err(refused(format!("the source is {mode:?}"))),
        }
        inner.damage("prove", spec);
        let upto = usize::try_from(fence_at.0).unwrap();
        let applied = inner.apply(&spec.source, &spec.target, upto, usize::MAX)?.applied;
        let verification = inner.compare(spec, fence_at.0)?;
        if let Some(ms) = inner.sleep_after_proof_ms.pop() {
            self.clock.advance_ms(ms);
        }
        Ok(Proof { fence_at, applied, verification })
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        let mut inner = self.enter();
        if inner.late_seal.is_some() && inner.late_proof.is_none() {
            inner.late_proof = Some(proof.clone());
            return Err(refused("the answer is lost"));
        }
        let copy = inner.copy(&spec.source)?;
        match copy.mode {
            Mode::Sealed => return Ok(()),
            Mode::Fenced { at, .. } if at == proof.fence_at.0 && copy.epoch == spec.epoch => copy.mode = Mode::Sealed,
            mode => return Err(refused(format!("the source is {mode:?}"))),
        }
        let equal = inner.compare(spec, 0)?.differing.is_empty();
        inner.check(equal, "M4: sealed with a difference");
        Ok(())
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        let mut inner = self.enter();
        match inner.copy(&spec.source)?.mode {
            Mode::Open => Ok(SourceState::Open),
            Mode::Fenced { .. } => Ok(SourceState::Fenced),
            Mode::Sealed => Ok(SourceState::Sealed),
            Mode::Importing => Err(refused("the source is being filled")),
        }
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        let owner = self.store.read().await.unwrap().owners[&spec.shard].clone();
        let mut inner = self.enter();
        let sealed = inner.copy(&spec.source)?.mode == Mode::Sealed;
        inner.check(sealed, "M2: opened beside an open source");
        inner.check(owner == Owner { node: spec.target.clone(), epoch }, format!("M2: opened, but owned by {owner:?}"));
        let copy = inner.copy(&spec.target)?;
        if copy.mode != Mode::Open {
            let grown = epoch > copy.epoch;
            copy.mode = Mode::Open;
            copy.epoch = epoch;
            copy.log = Some(Vec::new());
            inner.copy(&spec.source)?.applied = 0;
            inner.check(grown, "M3: opened in an old epoch");
        }
        Ok(())
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        assert_eq!(*shard, crate::common::shard(0));
        let kept_until = self.clock.model().plus_ms(RETENTION_MS);
        let mut inner = self.enter();
        inner.route = Some((owner.clone(), epoch));
        inner.kept_until = Some(kept_until);
        Ok(())
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        assert_eq!(spec.way, Way::There);
        self.enter().apply(&spec.target, &spec.source, usize::MAX, 2)
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let mut inner = self.enter();
        let source = inner.copy(&spec.source)?;
        let open = source.mode == Mode::Open;
        source.log = None;
        inner.check(open, "M7: undone while the source is not open");
        if inner.remove_piece(&spec.target) == Left::More {
            return Ok(Left::More);
        }
        inner.objects.clear();
        inner.probed = false;
        Ok(Left::Nothing)
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let now = self.clock.model();
        let mut inner = self.enter();
        let due = spec.way == Way::Back || inner.kept_until.is_some_and(|until| until <= now);
        inner.check(due, "M5: removed before the retention was over");
        if inner.copies.get(&spec.source).is_some_and(|c| c.mode != Mode::Sealed) {
            inner.violations.push("removed a copy that is not sealed".into());
        }
        if inner.remove_piece(&spec.source) == Left::More {
            return Ok(Left::More);
        }
        inner.copy(&spec.target)?.log = None;
        inner.objects.clear();
        Ok(Left::Nothing)
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        Ok(Vec::new())
    }
}

/// The rows that an owner must have, and that it is the only open copy.
pub fn check_owner(world: &World, owner: &Owner, context: &str) {
    let inner = world.look();
    assert!(inner.violations.is_empty(), "{context}: {:?}", inner.violations);
    let copy = &inner.copies[&owner.node];
    assert_eq!((copy.mode, copy.epoch), (Mode::Open, owner.epoch), "{context}");
    assert_eq!(inner.route, Some((owner.node.clone(), owner.epoch)), "{context}");
    assert_eq!(copy.rows, inner.acknowledged, "{context}: M1");
    let open = inner.copies.values().filter(|c| c.mode == Mode::Open).count();
    assert_eq!(open, 1, "{context}: M2");
}
