//! The steps of a move between embedded nodes.

use async_trait::async_trait;
use foreshard_domain::{BackendKind, Consistency, Epoch, NodeId, Observation, RealTime, ShardId};

use super::backend::{EmbeddedBackend, Ends, MIB, failed, permanent, snapshot};
use super::node::{EmbeddedNode, NodeError};
use super::piece::{Cursor, read_piece};
use super::shard::{Refusal, Removable, ShardState};
use super::verify::{Pair, nothing_compared};
use crate::{
    Backend, BackendError, Capabilities, CopyProgress, Found, Lag, Left, MoveSpec, Position, Proof, SourceState,
    Verification, Way,
};

fn object(kind: &str, node: &NodeId, spec: &MoveSpec) -> String {
    format!("embedded/{node}/{kind}/{}/{}", spec.shard, spec.migration)
}

impl EmbeddedBackend {
    /// All that speaks against a move.
    async fn findings(&self, spec: &MoveSpec, ends: &Ends<'_>) -> Result<Vec<String>, BackendError> {
        let fail = |error| failed("checking the move", error, false);
        let mut findings = Vec::new();
        if spec.consistency != Consistency::Strict {
            findings.push(format!("consistency {} is not offered, only strict is", spec.consistency.name()));
        }
        let shard = spec.shard.clone();
        match ends.source.call(move |node| node.status(&shard)).await.map_err(fail)? {
            None => findings.push(format!("source {} holds no copy of shard {}", spec.source, spec.shard)),
            Some((meta, _)) => {
                if let Err(refusal) = meta.serves(spec.epoch) {
                    findings.push(format!("source {}: {refusal}", spec.source));
                }
            }
        }
        let shard = spec.shard.clone();
        if let Some((meta, _)) = ends.target.call(move |node| node.status(&shard)).await.map_err(fail)?
            && !matches!(&meta.state, ShardState::Importing { migration, .. } if *migration == spec.migration)
        {
            findings.push(format!(
                "target {} still holds a copy of shard {} that is {}; finish the migration that it belongs to first",
                spec.target,
                spec.shard,
                meta.state.name()
            ));
        }
        Ok(findings)
    }

    /// Whether the source was sealed by this migration, and where; `None` if it holds no copy any more.
    async fn sealed_at(&self, doing: &str, spec: &MoveSpec, ends: &Ends<'_>) -> Result<Option<Position>, BackendError> {
        let shard = spec.shard.clone();
        let status = ends.source.call(move |node| node.status(&shard)).await;
        match status.map_err(|error| failed(doing, error, false))? {
            None => Ok(None),
            Some((meta, position)) => match &meta.state {
                ShardState::Sealed { migration } | ShardState::Purging { migration }
                    if *migration == spec.migration =>
                {
                    Ok(Some(position))
                }
                other => Err(BackendError::Fenced {
                    doing: doing.to_owned(),
                    why: format!("the source is {} and not sealed by migration {}", other.name(), spec.migration),
                }),
            },
        }
    }

    /// Takes the probes of the way back away, wherever they are.
    async fn remove_probes(&self, doing: &str, spec: &MoveSpec, ends: &Ends<'_>) -> Result<(), BackendError> {
        for end in [&ends.target, &ends.source] {
            let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
            let removed = end.call(move |node| node.remove_probe(&shard, &migration)).await;
            removed.map_err(|error| failed(doing, error, false))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Backend for EmbeddedBackend {
    fn kind(&self) -> BackendKind {
        BackendKind::Embedded
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { consistency: vec![Consistency::Strict], reverse_log: true, resumable_copy: true }
    }

    fn external_objects(&self, spec: &MoveSpec) -> Vec<String> {
        vec![
            object("capture", &spec.source, spec),
            object("import", &spec.target, spec),
            object("probe", &spec.source, spec),
            object("probe", &spec.target, spec),
            object("capture", &spec.target, spec),
        ]
    }

    async fn find(&self, shard: &ShardId, on: Option<&NodeId>) -> Result<Vec<Found>, BackendError> {
        let owner = self.engine.owners().get(shard).cloned().flatten();
        let Some(owner) = owner.filter(|owner| on.is_none_or(|on| *on == owner.node)) else { return Ok(Vec::new()) };
        let size = self.engine.size(shard).await;
        let (_, bytes) = size.map_err(|source| BackendError::Transient {
            doing: "looking for the shard".to_owned(),
            source: Box::new(source),
        })?;
        Ok(vec![Found { node: owner.node, bytes }])
    }

    async fn preflight(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let ends = self.ends("checking the move", spec)?;
        let findings = self.findings(spec, &ends).await?;
        if findings.is_empty() { Ok(()) } else { Err(permanent("checking the move", findings.join("; "))) }
    }

    async fn prepare(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let doing = "preparing the move";
        let ends = self.hold(doing, spec).await?;
        let fail = |error| failed(doing, error, false);
        let (shard, migration, epoch) = (spec.shard.clone(), spec.migration.clone(), spec.epoch);
        ends.target.call(move |node| node.prepare_import(&shard, &migration, epoch)).await.map_err(fail)?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        ends.source.call(move |node| node.start_capture(&shard, &migration, epoch)).await.map_err(fail)
    }

    async fn copy(&self, spec: &MoveSpec, cursor: Option<&str>) -> Result<CopyProgress, BackendError> {
        let doing = "copying";
        let cursor = match cursor.map(|text| Cursor::parse(&spec.shard, text)) {
            None => None,
            Some(Some(cursor)) => Some(cursor),
            Some(None) => return Err(permanent(doing, format!("{cursor:?} is no place from which to go on"))),
        };
        let ends = self.hold(doing, spec).await?;
        let fail = |error| failed(doing, error, false);
        let at = source_position(spec, &ends).await.map_err(fail)?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let copy_from = ends.target.call(move |node| node.begin_copy(&shard, &migration, at)).await.map_err(fail)?;
        let (shard, most) = (spec.shard.clone(), self.settings.chunk_bytes.max(1));
        let read = move |node: &EmbeddedNode| read_piece(node, &shard, cursor, copy_from, most);
        let piece = ends.source.call(read).await.map_err(fail)?;

        let bytes = piece.bytes();
        let mib = bytes as f64 / MIB;
        self.throttle.serve(bytes as f64).await.map_err(|source| BackendError::Transient {
            doing: "waiting for the copy's rate limit".to_owned(),
            source: Box::new(source),
        })?;
        for member in [ends.source.member, ends.target.member] {
            let (service, io) = (mib * self.settings.service_per_mib, mib * self.settings.io_per_mib);
            self.work(member, service, io, true).await?;
        }
        let rows = piece.rows.len() as u64;
        let next = piece.next.as_ref().map(Cursor::text);
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        ends.target
            .call(move |node| node.fill(&shard, &migration, &piece.rows, &piece.write_ids))
            .await
            .map_err(fail)?;
        Ok(CopyProgress { next, snapshot_at: copy_from, rows, bytes })
    }

    async fn catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let doing = "catching up";
        let ends = self.hold(doing, spec).await?;
        let (applied, newest) =
            self.apply_batch(doing, spec, &ends.source, &ends.target, Position(u64::MAX), true).await?;
        Ok(Lag { changes: newest.0.saturating_sub(applied.0), applied })
    }

    async fn verify(&self, spec: &MoveSpec, so_far: Option<&Verification>) -> Result<Verification, BackendError> {
        let doing = "verifying";
        let ends = self.hold(doing, spec).await?;
        if spec.way == Way::Back {
            self.going_back().insert(spec.shard.clone());
        }
        self.compare_piece(doing, spec, &ends, so_far).await
    }

    async fn try_way_back(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let doing = "trying the way back";
        let ends = self.hold(doing, spec).await?;
        let fail = |error| failed(doing, error, false);
        let says = format!("{} from {} to {}", spec.migration, spec.target, spec.source).into_bytes();
        let (shard, migration, probe) = (spec.shard.clone(), spec.migration.clone(), says.clone());
        ends.target.call(move |node| node.put_probe(&shard, &migration, &probe)).await.map_err(fail)?;
        // What is carried is what the target's store gives back, not what is in hand here.
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let carried = ends.target.call(move |node| node.probe(&shard, &migration)).await.map_err(fail)?;
        let carried = carried.ok_or_else(|| permanent(doing, "the target does not give the probe back"))?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        ends.source.call(move |node| node.put_probe(&shard, &migration, &carried)).await.map_err(fail)?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let seen = ends.source.call(move |node| node.probe(&shard, &migration)).await.map_err(fail)?;
        if seen.as_deref() != Some(says.as_slice()) {
            return Err(permanent(doing, "the probe that the target wrote was not seen on the source"));
        }
        self.remove_probes(doing, spec, &ends).await
    }

    async fn fence(&self, spec: &MoveSpec, deadline: RealTime) -> Result<Position, BackendError> {
        let doing = "fencing";
        let ends = self.hold(doing, spec).await?;
        let (shard, migration, epoch) = (spec.shard.clone(), spec.migration.clone(), spec.epoch);
        let fenced = ends.source.call(move |node| node.fence(&shard, &migration, epoch, deadline)).await;
        fenced.map_err(|error| failed(doing, error, true))
    }

    async fn unfence(&self, spec: &MoveSpec) -> Result<(), BackendError> {
        let doing = "lifting the fence";
        let ends = self.hold(doing, spec).await?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let lifted = ends.source.call(move |node| node.unfence(&shard, &migration)).await;
        lifted.map_err(|error| failed(doing, error, true))?;
        self.going_back().remove(&spec.shard);
        self.engine.router().wake(&spec.shard);
        Ok(())
    }

    async fn prove(&self, spec: &MoveSpec, fence_at: Position, verified: &Verification) -> Result<Proof, BackendError> {
        let doing = "proving";
        let ends = self.hold(doing, spec).await?;
        if !verified.differing.is_empty() || verified.next.is_some() {
            let found = verified.differing.join(", ");
            return Err(permanent(doing, format!("the verification is not complete or found differences: {found}")));
        }
        // Clients wait behind the fence: this work takes capacity, but no turn.
        let applied = self.apply_to(doing, spec, &ends, fence_at, false).await?;
        let source = snapshot(doing, spec, &ends.source, fence_at).await?;
        let pair = Pair::new(doing, spec, &ends, (fence_at, source), false).await?;
        let after = verified.up_to;
        let verification = if after <= fence_at && self.is_logged(&pair, after).await? {
            let mut found = nothing_compared(after);
            self.compare_changed(&pair, fence_at, &mut found).await?;
            self.compare_write_ids(&pair, Some(after), &mut found).await?;
            found
        } else {
            // The log no longer tells what has changed since: compare everything.
            self.compare_all(&pair).await?
        };
        Ok(Proof { fence_at, applied, verification })
    }

    async fn seal(&self, spec: &MoveSpec, proof: &Proof) -> Result<(), BackendError> {
        let doing = "sealing";
        let ends = self.hold(doing, spec).await?;
        let compared = proof.verification.differing.is_empty() && proof.verification.next.is_none();
        if !compared || proof.applied < proof.fence_at {
            let why = format!(
                "the target is no equal copy: applied {:?} of {:?}, differing: {}",
                proof.applied,
                proof.fence_at,
                proof.verification.differing.join(", ")
            );
            return Err(permanent(doing, why));
        }
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let (epoch, proven) = (spec.epoch, proof.fence_at);
        let sealed = ends.source.call(move |node| node.seal(&shard, &migration, epoch, proven)).await;
        sealed.map_err(|error| failed(doing, error, true))
    }

    async fn source_state(&self, spec: &MoveSpec) -> Result<SourceState, BackendError> {
        let doing = "asking the source for its state";
        let (shard, migration, epoch) = (spec.shard.clone(), spec.migration.clone(), spec.epoch);
        // What it says must not be changed afterwards by a call that was given up.
        let ends = self.hold(doing, spec).await?;
        let state = ends.source.call(move |node| node.source_state(&shard, &migration, epoch)).await;
        state.map_err(|error| failed(doing, error, false))
    }

    async fn open_target(&self, spec: &MoveSpec, epoch: Epoch) -> Result<(), BackendError> {
        let doing = "opening the target";
        let ends = self.hold(doing, spec).await?;
        let sealed_at = self.sealed_at(doing, spec, &ends).await?;
        let (shard, migration, way) = (spec.shard.clone(), spec.migration.clone(), spec.way);
        let opened = ends
            .target
            .call(move |node| {
                let Some((meta, position)) = node.status(&shard)? else {
                    return Err(Refusal::Absent { node: node.id().clone(), shard }.into());
                };
                // An owner of this epoch is beyond the source already; a copy being opened stands exactly where it was sealed.
                if meta.epoch != epoch && sealed_at != Some(position) {
                    let why = format!("it stands at {position:?}, the source was sealed at {sealed_at:?}");
                    return Err(Refusal::State { state: meta.state.name(), why }.into());
                }
                node.take_over(&shard, &migration, epoch, way)
            })
            .await;
        opened.map_err(|error| failed(doing, error, true))
    }

    async fn route(&self, shard: &ShardId, owner: &NodeId, epoch: Epoch) -> Result<(), BackendError> {
        let doing = "sending clients to the owner";
        self.member(doing, owner)?;
        let routed = self.engine.router().set(shard, owner, epoch);
        routed.map_err(|error| BackendError::Fenced { doing: doing.to_owned(), why: error.to_string() })
    }

    async fn reverse_catch_up(&self, spec: &MoveSpec) -> Result<Lag, BackendError> {
        let doing = "carrying changes back";
        let ends = self.hold(doing, spec).await?;
        let (applied, newest) =
            self.apply_batch(doing, spec, &ends.target, &ends.source, Position(u64::MAX), true).await?;
        // A rollback compares what has changed since its verification, and needs the log for that.
        if self.going_back().contains(&spec.shard) {
            return Ok(Lag { changes: newest.0.saturating_sub(applied.0), applied });
        }
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let mut piece = self.settings.remove_rows.max(1);
        // What this call leaves goes with the next.
        let release = move |node: &EmbeddedNode| node.release_log(&shard, &migration, Some(applied), &mut piece);
        ends.target.call(release).await.map_err(|error| failed(doing, error, false))?;
        Ok(Lag { changes: newest.0.saturating_sub(applied.0), applied })
    }

    async fn undo(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let doing = "undoing the move";
        let ends = self.hold(doing, spec).await?;
        let fail = |error| failed(doing, error, false);
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let mut piece = self.settings.remove_rows.max(1);
        let source = ends.source.call(move |node| {
            let Some((meta, _)) = node.status(&shard)? else { return Ok((Left::Nothing, piece)) };
            if matches!(&meta.state, ShardState::Sealed { migration: by } if *by == migration) {
                let why = "it can no longer be undone, only finished or rolled back".to_owned();
                return Err(Refusal::State { state: meta.state.name(), why }.into());
            }
            if meta.is_readable() {
                node.unfence(&shard, &migration)?;
            }
            let left = node.release_log(&shard, &migration, None, &mut piece)?;
            Ok((left, piece))
        });
        let (left, mut piece) = source.await.map_err(fail)?;
        self.engine.router().wake(&spec.shard);
        if left == Left::More {
            return Ok(Left::More);
        }
        self.remove_probes(doing, spec, &ends).await?;
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let target = ends.target.call(move |node| match node.status(&shard)? {
            Some((meta, _)) if meta.state.is_filled_by(&migration) => {
                node.purge(&shard, &migration, Removable::Import, &mut piece)
            }
            // A copy that is not this migration's is none of its business.
            _ => Ok(Left::Nothing),
        });
        target.await.map_err(fail)
    }

    async fn finish(&self, spec: &MoveSpec) -> Result<Left, BackendError> {
        let doing = "finishing the move";
        let ends = self.hold(doing, spec).await?;
        let fail = |error| failed(doing, error, false);
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let target = ends.target.call(move |node| node.status(&shard)).await.map_err(fail)?;
        if target.is_some_and(|(meta, _)| meta.epoch <= spec.epoch) {
            return Err(permanent(doing, "the target was never opened; the source's copy is the only one"));
        }
        self.going_back().remove(&spec.shard);
        let shard = spec.shard.clone();
        let mut piece = self.settings.remove_rows.max(1);
        let purge = move |node: &EmbeddedNode| {
            let left = node.purge(&shard, &migration, Removable::Sealed, &mut piece)?;
            Ok((left, piece))
        };
        let (left, mut piece) = ends.source.call(purge).await.map_err(fail)?;
        if left == Left::More {
            return Ok(Left::More);
        }
        let (shard, migration) = (spec.shard.clone(), spec.migration.clone());
        let release = move |node: &EmbeddedNode| node.release_log(&shard, &migration, None, &mut piece);
        if ends.target.call(release).await.map_err(fail)? == Left::More {
            return Ok(Left::More);
        }
        self.remove_probes(doing, spec, &ends).await?;
        Ok(Left::Nothing)
    }

    async fn observe(&self) -> Result<Vec<Observation>, BackendError> {
        self.engine.observe().await.map_err(|source| BackendError::Transient {
            doing: "observing the load".to_owned(),
            source: Box::new(source),
        })
    }
}

/// Where the source stands.
async fn source_position(spec: &MoveSpec, ends: &Ends<'_>) -> Result<Position, NodeError> {
    let shard = spec.shard.clone();
    ends.source.call(move |node| node.with_shard(&shard, |cell, _| Ok(cell.position))).await
}
