//! What is pulled from Prometheus: queries over the time since the last ones, from time to time.
//!
//! How far each query has come is remembered in a file beside the log, written after the rows are on disk: after a restart, and
//! after a time in which Prometheus could not be reached, it goes on there. What is pulled twice changes nothing.

mod counts;
mod progress;

pub(crate) use counts::PullCounts;

use foreshard_api::Secret;
use foreshard_datasets::prometheus::{PrometheusSource, PulledRows, PulledSeries, SourceError, SourceSettings};
use foreshard_domain::{Observation, Step, Timestamp};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::IngestError;
use crate::config::model_ms;
use crate::ingest::{Arrival, reason, sound};
use crate::service::ForecastApi;
use progress::Progress;

/// Steps of one part: its rows are in memory at once.
const STEPS_AT_ONCE: i64 = 240;

/// Rows of one record of the log.
const ROWS_AT_ONCE: usize = 20_000;

/// Rows of a part beyond which the next ones have fewer steps.
const MOST_ROWS: usize = 200_000;

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// What is pulled, and from where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PullConfig {
    /// Address of Prometheus, with the path that it is served under if there is one.
    pub url: String,
    /// Authorities of its certificate, PEM; needed for https.
    pub ca: Option<PathBuf>,
    /// File that holds a bearer token; read at every pull.
    pub token_file: Option<PathBuf>,
    /// A token as such.
    #[serde(skip)]
    pub token: Option<Secret>,
    /// How often is pulled, real time.
    #[serde(with = "humantime_serde")]
    pub every: Duration,
    /// Distance of the values that are asked for.
    pub step: Step,
    /// How old values must be, so that Prometheus has all of them.
    #[serde(with = "humantime_serde")]
    pub delay: Duration,
    /// How far back is pulled at the first time, and after a long absence.
    #[serde(with = "humantime_serde")]
    pub reach_back: Duration,
    /// How long one answer may take, real time.
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Queries, and what the series that they give become.
    pub series: Vec<PulledSeries>,
}

impl Default for PullConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            ca: None,
            token_file: None,
            token: None,
            every: Duration::from_secs(60),
            step: Step::MINUTE,
            delay: Duration::from_secs(30),
            reach_back: Duration::from_secs(24 * 3600),
            timeout: Duration::from_secs(10),
            series: Vec::new(),
        }
    }
}

impl PullConfig {
    /// Everything that is wrong with it.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |good: bool, what: &str| problems.extend((!good).then(|| what.to_owned()));
        check(!self.series.is_empty(), "names no series: say what is to be asked (series)");
        check(self.series.iter().all(|series| series.check().is_ok()), "has a scale that is no positive finite number");
        check(!self.every.is_zero(), "must be done at some distance (every)");
        check(!self.timeout.is_zero(), "must wait for answers (timeout)");
        // A token that is read at every pull is not needed to see whether the rest makes sense.
        let (url, timeout) = (self.url.clone(), self.timeout);
        let settings = SourceSettings { url, timeout, ..SourceSettings::default() };
        if let Err(error @ SourceError::Url { .. }) = PrometheusSource::new(&settings) {
            problems.push(reason(&error));
        }
        if self.url.starts_with("https://") && self.ca.is_none() {
            problems.push("needs the authorities of Prometheus's certificate (ca)".to_owned());
        }
        problems
    }
}

/// Why a pull ended before it was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    #[error("Prometheus does not tell")]
    Source(#[from] SourceError),
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("what was pulled cannot be stored")]
    Ingest(#[from] IngestError),
    #[error("how far was pulled cannot be remembered in {}", path.display())]
    Progress {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{failed} of {all} queries failed; the first one: {first}")]
    Queries { failed: usize, all: usize, first: String },
}

/// Pulls.
#[derive(Clone)]
pub(crate) struct Puller {
    parts: ForecastApi,
    config: Arc<PullConfig>,
    file: PathBuf,
    stop: CancellationToken,
}

impl Puller {
    /// One that remembers in `file` how far it came. Reads the newest rows of the history; blocks on the disk.
    ///
    /// # Errors
    /// [`IngestError`] if the history cannot be read.
    pub(crate) fn new(parts: ForecastApi, config: PullConfig, file: PathBuf) -> Result<Self, IngestError> {
        parts.ingestor.expect_parts()?;
        let stop = parts.stop.clone();
        Ok(Self { parts, config: Arc::new(config), file, stop })
    }

    /// Pulls from time to time until the server stops; after failures more and more seldom.
    pub(crate) async fn keep_pulling(self) {
        let mut pause = self.config.every;
        loop {
            let puller = self.clone();
            // It ends by itself when the server stops, and what it has stored by then is on disk; the rest is pulled at the
            // next start.
            let pulled = tokio::task::spawn_blocking(move || puller.pull()).await;
            let mut next = self.config.every;
            let wait = match pulled {
                Ok(Ok(())) => {
                    self.parts.metrics.pulls.pulled("done");
                    self.config.every
                }
                Ok(Err(error)) => {
                    self.parts.metrics.pulls.pulled("failed");
                    tracing::warn!(error = reason(&error), again_in = ?pause, "pulling from Prometheus failed");
                    next = pause.saturating_mul(2).min(LONGEST_PAUSE.max(self.config.every));
                    pause
                }
                Err(error) => {
                    tracing::error!(%error, "pulling from Prometheus panicked");
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = self.stop.cancelled() => return,
            }
            pause = next;
        }
    }

    /// Pulls what is new. Blocks on the network and on the disk.
    fn pull(&self) -> Result<(), PullError> {
        let source = self.source()?;
        let mut progress = Progress::read(&self.file, &self.config)
            .map_err(|source| PullError::Progress { path: self.file.clone(), source })?;
        let step = self.config.step;
        let now = self.parts.clock.model();
        // Values before `end` are complete.
        let end = step.floor(now.plus_ms(model_ms(self.config.delay).saturating_neg())).plus_steps(1, step);
        let earliest = step.floor(now.plus_ms(model_ms(self.config.reach_back).saturating_neg()));
        let all: Vec<usize> = (0..self.config.series.len()).collect();
        let mut open = all.clone();
        let mut failures = Vec::new();
        // Part by part over all queries, so that what they tell of one time is stored together.
        let mut start = all.iter().filter_map(|i| progress.until(*i)).chain([end]).min().unwrap_or(end);
        if all.iter().any(|i| progress.until(*i).is_none()) {
            start = earliest;
        }
        let mut start = start.max(earliest);
        let (mut steps, mut any_told) = (STEPS_AT_ONCE, false);
        while start < end && !self.stop.is_cancelled() {
            let part_end = start.plus_steps(steps, step).min(end);
            let mut rows = PulledRows::default();
            let mut told = Vec::new();
            for i in open.clone() {
                let from = progress.until(i).unwrap_or(earliest).max(start);
                let Some(mapping) = self.config.series.get(i).filter(|_| from < part_end) else { continue };
                if self.stop.is_cancelled() {
                    break;
                }
                match source.range(&mapping.query, (from, part_end, step), &mut |series| rows.add(mapping, &series)) {
                    Ok(()) => told.push(i),
                    // Nobody answers, or to nothing: the others would only wait as long.
                    Err(error) if error.is_transient() && !any_told && told.is_empty() && !failures.is_empty() => {
                        return Err(error.into());
                    }
                    Err(error) => {
                        // The others go on; this one is tried again from here at the next pull.
                        failures.push(reason(&error));
                        open.retain(|other| *other != i);
                    }
                }
            }
            any_told |= !told.is_empty();
            // Of very many series fewer steps are in memory at once.
            if self.store(rows)? > MOST_ROWS {
                steps = (steps / 2).max(1);
            }
            told.iter().for_each(|i| progress.reached(*i, part_end));
            progress.write(&self.file).map_err(|source| PullError::Progress { path: self.file.clone(), source })?;
            start = part_end;
        }
        self.parts.metrics.pulls.reached(progress.least().unwrap_or(earliest));
        match failures.first() {
            None => Ok(()),
            Some(first) => Err(PullError::Queries { failed: failures.len(), all: all.len(), first: first.clone() }),
        }
    }

    fn source(&self) -> Result<PrometheusSource, PullError> {
        let read = |path: &PathBuf| fs::read(path).map_err(|source| PullError::File { path: path.clone(), source });
        let ca = self.config.ca.as_ref().map(read).transpose()?;
        let in_file = self.config.token_file.as_ref().map(read).transpose()?;
        let in_file = in_file.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        let token = in_file.or_else(|| self.config.token.as_ref().map(|token| token.expose().to_owned()));
        // What fails for now is tried again at the next pull.
        let PullConfig { url, timeout, .. } = self.config.as_ref();
        let settings = SourceSettings { url: url.clone(), ca, token, timeout: *timeout, tries: 1 };
        Ok(PrometheusSource::new(&settings)?)
    }

    /// Stores what was pulled; returns how many rows that were.
    fn store(&self, pulled: PulledRows) -> Result<usize, PullError> {
        let (mut counts, mut example) = (pulled.counts(), pulled.example().map(str::to_owned));
        let arrival = Arrival { now: self.parts.clock.model(), ahead_at_most_ms: self.parts.ahead_at_most_ms };
        let mut rows: Vec<Observation> = Vec::new();
        for row in pulled.into_rows() {
            match sound(&row, arrival) {
                Ok(()) => rows.push(row),
                Err(why) => {
                    counts.refused += 1;
                    example.get_or_insert(why);
                }
            }
        }
        let count = rows.len();
        let mut rows = rows.into_iter();
        loop {
            let some: Vec<Observation> = rows.by_ref().take(ROWS_AT_ONCE).collect();
            if some.is_empty() {
                break;
            }
            let taken = self.parts.ingestor.take_parts(some)?;
            self.parts.metrics.ingested(taken.accepted, taken.duplicates, 0);
            self.parts.arrived.send_replace(());
            if taken.flush_now {
                self.parts.flush_now.notify_one();
            }
        }
        self.parts.metrics.pulls.values(counts);
        if let Some(example) = example {
            let (refused, doubled) = (counts.refused, counts.doubled);
            tracing::warn!(refused, doubled, example, "values of Prometheus were left out");
        }
        Ok(count)
    }
}

/// Where the values of a series end.
pub(crate) type Until = Option<Timestamp>;
