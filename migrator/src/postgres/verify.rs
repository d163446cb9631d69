//! Comparing source and target: the reader of changes, the comparison, and the marker that tells what has been applied.

use std::sync::Arc;
use std::time::Duration;

use super::backend::{Comparing, Ends, Live, PostgresBackend};
use super::compare::{self, Comparison, Sides, Step};
use super::mutant::Mutant;
use super::names::Names;
use super::pace::{Pace, Pacer};
use super::tracker::{self, ChangeTracker, ChangedKeys, TrackedSlot, TrackerError};
use super::wire::ConnectParams;
use super::{catalog, replication, sequences};
use crate::{BackendError, MoveSpec, Verification, Way};

/// How long one call compares.
const BUDGET: Duration = Duration::from_millis(1500);
/// How long rows in doubt are compared in each round before the fence.
const SETTLING: Duration = Duration::from_millis(500);
/// How long a call waits for the marker.
const ROUND: Duration = Duration::from_millis(500);
/// How long an exchange of the reader of changes with the server may take.
const TRACKER: Duration = Duration::from_secs(60);

impl PostgresBackend {
    /// Compares some more. What is in doubt is kept in memory, so after a restart the comparison begins anew.
    pub(super) async fn compare_piece(
        &self,
        live: &mut Live,
        spec: &MoveSpec,
        so_far: Option<&Verification>,
    ) -> Result<Verification, BackendError> {
        let ends = live.ends(self, spec).await?;
        if so_far.is_none() || live.comparing.as_ref().is_none_or(|c| c.way != spec.way) {
            live.comparing = None;
            let pacer = Arc::new(Pacer::begin(self, spec).await);
            live.comparing = Some(self.begin_comparing(spec, &ends, pacer.pace()).await?);
            live.pacer = Some(pacer);
        }
        let pacer = live.pacer.clone();
        let Some(comparing) = live.comparing.as_mut() else {
            return Err(BackendError::Bug { what: "no comparison".into() });
        };
        self.has_room(&ends.source, spec).await?;
        if spec.way == Way::There {
            replication::advance_slot(&ends.target, &Names::new(&spec.migration).slot(Way::Back)).await?;
        }
        let step = comparing.step(&ends, spec);
        let mut stepped = match pacer {
            Some(pacer) => pacer.during(self, spec, step).await,
            None => step.await,
        };
        if self.is(Mutant::SkipComparison)
            && let Ok(verification) = &mut stepped
        {
            verification.differing.clear();
        }
        if comparing.tracker.seen_up_to().is_err() {
            // What has changed since is lost, and with it all that was found equal.
            live.comparing = None;
            self.leave_pace(live, spec);
            return stepped.and(Err(lost()));
        }
        if stepped.as_ref().is_ok_and(|verification| verification.next.is_none()) {
            self.leave_pace(live, spec);
        }
        stepped
    }

    async fn begin_comparing(&self, spec: &MoveSpec, ends: &Ends, pace: Arc<Pace>) -> Result<Comparing, BackendError> {
        let names = Names::new(&spec.migration);
        let address = self.address(&spec.source)?;
        let login = self.login(&spec.source).await?;
        let params = ConnectParams {
            host: address.host.clone(),
            port: address.port,
            database: spec.shard.as_str().to_owned(),
            user: login.user,
            password: Some(login.password),
            application_name: names.application(),
        };
        let slot = TrackedSlot::Temporary(names.tracker(spec.way));
        let publication = names.publication(spec.way);
        // A reader whose link hangs holds the slot's name until the server notices.
        replication::drop_slot(&ends.source, &names.tracker(spec.way)).await?;
        let tracker = ChangeTracker::start(&params, slot, &publication, tracker::Limits::default(), TRACKER);
        let tracker =
            self.outlasting_transactions(spec, tracker).await?.map_err(|e| failed("beginning to follow changes", e))?;
        let tables = catalog::tables(&ends.source).await?;
        let layouts = compare::layouts(&ends.source, &tables).await?;
        let limits = compare::Limits::new(self.settings.range_rows);
        let sequences = sequences::known(&ends.source).await?;
        let since = tracker.seen_up_to().map_err(|e| failed("beginning to follow changes", e))?.into();
        let comparison = Comparison::new(layouts, limits, Arc::clone(&self.clock)).at_pace(pace);
        Ok(Comparing { way: spec.way, comparison, tracker, sequences, since })
    }

    /// Before the fence: what has changed is compared, so that little is left for it.
    pub(super) async fn settle(&self, live: &mut Live, spec: &MoveSpec) -> Result<(), BackendError> {
        let ends = live.ends(self, spec).await?;
        let Some(comparing) = live.comparing.as_mut().filter(|c| c.way == spec.way) else { return Ok(()) };
        let settled = comparing.settle(&ends, spec).await;
        if comparing.tracker.seen_up_to().is_err() {
            live.comparing = None;
        }
        settled
    }
}

impl Comparing {
    async fn step(&mut self, ends: &Ends, spec: &MoveSpec) -> Result<Verification, BackendError> {
        self.absorb()?;
        let applied = replication::applied(&ends.source, &ends.target, spec.way, ROUND).await?;
        let step = match applied.filter(|applied| *applied >= self.since) {
            Some(applied) => self.comparison.step(ends.sides(), applied, BUDGET).await?,
            None => Step::Waiting(self.since),
        };
        if matches!(step, Step::Waiting(_)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let found = self.comparison.found();
        let going = || self.comparison.cursor().unwrap_or_else(|| "waiting".to_owned());
        Ok(Verification {
            ranges: found.ranges,
            rows: found.rows,
            differing: found.differing.clone(),
            up_to: self.since,
            next: (step != Step::Done).then(going),
        })
    }

    async fn settle(&mut self, ends: &Ends, spec: &MoveSpec) -> Result<(), BackendError> {
        self.absorb()?;
        match replication::applied(&ends.source, &ends.target, spec.way, ROUND).await? {
            Some(applied) => self.comparison.settle(ends.sides(), applied, SETTLING).await,
            None => Ok(()),
        }
    }

    /// Takes in what has changed.
    pub(super) fn absorb(&mut self) -> Result<(), BackendError> {
        let changed = self.tracker.take().map_err(|e| failed("following changes", e))?;
        let rows = |keys: ChangedKeys| match keys {
            ChangedKeys::Keys { columns, keys, .. } => compare::ChangedRows::Keys { columns, keys },
            ChangedKeys::WholeTable(_) => compare::ChangedRows::Whole,
        };
        let tables = changed.tables.into_iter().map(|(name, keys)| (name, rows(keys))).collect();
        self.comparison.absorb(compare::Changed { tables, up_to: changed.seen_up_to.into() })
    }
}

impl Ends {
    pub(super) fn sides(&self) -> Sides<'_> {
        Sides { source: &self.source, target: &self.target }
    }
}

/// The reader's errors pass: comparing begins anew.
pub(super) fn failed(doing: &str, error: TrackerError) -> BackendError {
    BackendError::Transient { doing: doing.to_owned(), source: Box::new(error) }
}

fn lost() -> BackendError {
    BackendError::Transient {
        doing: "comparing source and target".to_owned(),
        source: "the changes were lost sight of; the comparison begins anew".into(),
    }
}
