//! What Prometheus sends: `POST /api/v1/write` of its remote write protocol, version 1.
//!
//! Series that a mapping names become rows of shards, which go the way of all rows: what was acknowledged is on disk. How a
//! sender goes on is decided by the status of the answer: after 204 it forgets what it sent, after 4xx too (and says so), after
//! 5xx it tries again.

mod counts;
mod gather;
mod message;
mod owners;
mod refusal;

pub(crate) use counts::RemoteWriteCounts;

use bytes::Bytes;
use foreshard_datasets::prometheus::ReceivedSeries;
use foreshard_domain::Observation;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::IngestError;
use crate::ingest::{Arrival, reason};
use crate::service::ForecastApi;
use gather::{Gathered, MOST_ROWS, end, gather};
use owners::Owners;
use refusal::Refusal;

/// Bytes of a request as they come. Prometheus sends 500 to 2000 samples at once, some 100 KiB.
const MOST_COMPRESSED: usize = 8 << 20;

/// Bytes of a request once they are unpacked.
const MOST_BYTES: usize = 32 << 20;

/// Requests that are read at once; one more is asked to come again. Prometheus sends over 200 connections at most by itself.
const REQUESTS_AT_ONCE: usize = 64;

/// Requests that are unpacked and stored at once. The log takes one after the other anyway.
const STORED_AT_ONCE: usize = 4;

/// How long a request may take to come, and to wait for its turn.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const TURN_WITHIN: Duration = Duration::from_secs(5);

/// Refusals are written down once in so long.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// Rows of one record of the log.
const ROWS_AT_ONCE: usize = 20_000;

/// Takes what Prometheus sends.
pub(crate) struct Receiver {
    parts: ForecastApi,
    mappings: Arc<[ReceivedSeries]>,
    owners: Arc<Mutex<Owners>>,
    requests: Semaphore,
    turns: Arc<Semaphore>,
    /// When a refusal was written down last: a sender that is set up wrongly sends several requests a second.
    told: Mutex<Option<Duration>>,
}

impl Receiver {
    /// A receiver of the series that `mappings` name. Blocks on the disk if there are any.
    ///
    /// # Errors
    /// [`IngestError`] if the newest rows of the history cannot be read.
    pub(crate) fn new(parts: ForecastApi, mappings: Vec<ReceivedSeries>) -> Result<Self, IngestError> {
        if !mappings.is_empty() {
            parts.ingestor.expect_parts()?;
        }
        Ok(Self {
            parts,
            mappings: mappings.into(),
            owners: Arc::default(),
            requests: Semaphore::new(REQUESTS_AT_ONCE),
            turns: Arc::new(Semaphore::new(STORED_AT_ONCE)),
            told: Mutex::default(),
        })
    }

    /// Answers a request whose sender may ingest.
    pub(crate) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let taken = self.take(request).await;
        let counts = &self.parts.metrics.remote_write;
        match taken {
            Ok(()) => {
                counts.request("taken");
                let mut response = Response::new(Full::default());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response
            }
            Err(refusal) => {
                counts.request(refusal.code());
                self.tell(&refusal);
                refusal.response()
            }
        }
    }

    fn tell(&self, refusal: &Refusal) {
        let now = self.parts.clock.monotonic();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if refusal.is_worth_telling() && told.is_none_or(|told| now.saturating_sub(told) >= TELL_EVERY) {
            *told = Some(now);
            tracing::warn!(error = reason(refusal), "remote write refused; there may be more, see the metrics");
        }
    }

    async fn take(&self, request: Request<Incoming>) -> Result<(), Refusal> {
        if self.mappings.is_empty() {
            return Err(Refusal::NoMappings);
        }
        check_form(request.headers())?;
        if self.parts.stop.is_cancelled() {
            return Err(Refusal::Stopping);
        }
        let _place = self.requests.try_acquire().map_err(|_| Refusal::Busy)?;
        let body = body(request.into_body()).await?;
        let turn = timeout(TURN_WITHIN, Arc::clone(&self.turns).acquire_owned()).await;
        let turn = turn.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::Stopping)?;
        let (parts, mappings, owners) = (self.parts.clone(), Arc::clone(&self.mappings), Arc::clone(&self.owners));
        // The turn goes where the work goes: a sender that leaves does not make room for another before it is done.
        let storing = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            store(&parts, &mappings, &owners, &body)
        });
        storing.await.map_err(|error| Refusal::Panicked(error.to_string()))?
    }
}

/// Version 1 of the protocol, in the one packing that it knows.
fn check_form(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (packing, kind) = (text(CONTENT_ENCODING), text(CONTENT_TYPE));
    if !packing.eq_ignore_ascii_case("snappy") {
        return Err(Refusal::Form(format!("the content-encoding must be snappy, not {packing:?}")));
    }
    let mut parts = kind.split(';').map(str::trim);
    let is_protobuf = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/x-protobuf"));
    let other = parts.find_map(|part| part.strip_prefix("proto=")).filter(|proto| *proto != "prometheus.WriteRequest");
    if !is_protobuf || other.is_some() {
        let wanted = "application/x-protobuf of prometheus.WriteRequest (remote write 1.0)";
        return Err(Refusal::Form(format!("the content-type must be {wanted}, not {kind:?}")));
    }
    Ok(())
}

async fn body(body: Incoming) -> Result<Bytes, Refusal> {
    let read = timeout(BODY_WITHIN, Limited::new(body, MOST_COMPRESSED).collect()).await;
    match read.map_err(|_| Refusal::Slow)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLong { most: MOST_COMPRESSED }),
        Err(_) => Err(Refusal::Slow),
    }
}

/// Unpacks a request and stores what it has for the mapped series. What can be taken is taken even if something else cannot.
fn store(parts: &ForecastApi, mappings: &[ReceivedSeries], owners: &Mutex<Owners>, body: &[u8]) -> Result<(), Refusal> {
    let bytes = message::unpacked(body, MOST_BYTES)?;
    let arrival = Arrival { now: parts.clock.model(), ahead_at_most_ms: parts.ahead_at_most_ms };
    let mut gathered = Gathered::default();
    message::for_each_series(&bytes, &mut |series| {
        end(&series, mappings, &mut owners.lock().unwrap_or_else(PoisonError::into_inner));
    })?;
    let whole = message::for_each_series(&bytes, &mut |series| {
        let mut owners = owners.lock().unwrap_or_else(PoisonError::into_inner);
        gather(&series, (mappings, &mut owners), arrival, &mut gathered);
    });
    // Half a message is no message: the sender drops it whole, and nothing of it stays behind.
    whole?;
    drop(bytes);
    let Gathered { rows, samples, refused, example, too_many } = gathered;
    if too_many {
        return Err(Refusal::TooManyRows { most: MOST_ROWS });
    }
    store_rows(parts, rows.into_values())?;
    parts.metrics.ingested(0, 0, refused);
    parts.metrics.remote_write.samples(&samples);
    match example {
        Some(example) => Err(Refusal::Samples { refused, example }),
        None => Ok(()),
    }
}

fn store_rows(parts: &ForecastApi, mut rows: impl Iterator<Item = Observation>) -> Result<(), Refusal> {
    loop {
        let some: Vec<Observation> = rows.by_ref().take(ROWS_AT_ONCE).collect();
        if some.is_empty() {
            return Ok(());
        }
        let taken = parts.ingestor.take_parts(some).map_err(Refusal::Ingest)?;
        parts.metrics.ingested(taken.accepted, taken.duplicates, 0);
        parts.arrived.send_replace(());
        if taken.flush_now {
            parts.flush_now.notify_one();
        }
    }
}
