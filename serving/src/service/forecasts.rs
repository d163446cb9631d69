//! Forecasts in streams: any number of series in parts from one origin, once or whenever a new step is complete.

use foreshard_api::{ForecastQuery, MAX_RESPONSE_BYTES, v1};
use foreshard_domain::{ForecastError, Product, QuantileLevels, RealTime, SeriesForecast, ShardId, Timestamp};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::levels::at_levels;
use super::{ForecastApi, STALLED_AFTER, status};
use crate::context::{SeriesKey, Wanted};
use crate::engine::Bench;

/// Levels of one answer: twice the percentiles. Each costs four bytes for every step of every series.
const MOST_LEVELS: usize = 200;

/// Levels of an answer for which none were named, about: 13 in all shipped products.
const TRAINED_LEVELS: usize = 13;

/// Series of one part: some 3 MiB of next-day forecasts, and a batch that keeps all cores busy without holding up others for
/// long.
const PART: usize = 512;

/// Parts that wait for a slow reader.
const PARTS_AHEAD: usize = 2;

/// Pause before a part that was refused is tried again.
const PART_AGAIN: Duration = Duration::from_millis(20);

/// How often the clock is looked at: a row that lies ahead of it completes a step when its time has come.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Sender = mpsc::Sender<Result<v1::ForecastResponse, Status>>;
type Parts = ReceiverStream<Result<v1::ForecastResponse, Status>>;

/// The levels of an answer: the trained ones, or others.
#[derive(Debug, Clone)]
pub(super) struct Levels(Option<Arc<QuantileLevels>>);

impl Levels {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.as_ref().map_or(TRAINED_LEVELS, |levels| levels.len())
    }

    pub(super) fn new(levels: Vec<f64>) -> Result<Self, Status> {
        if levels.is_empty() {
            return Ok(Self(None));
        }
        if levels.len() > MOST_LEVELS {
            let why = format!("{} were asked for, at most {MOST_LEVELS} are answered", levels.len());
            return Err(status::invalid("levels", why));
        }
        let levels = QuantileLevels::new(levels).map_err(|error| status::invalid("levels", error.to_string()))?;
        Ok(Self(Some(Arc::new(levels))))
    }

    /// What turns forecasts into those at these levels, on a compute thread.
    pub(super) fn maker(
        &self,
    ) -> impl FnOnce(&Bench, Product, Vec<SeriesForecast>) -> Result<Vec<SeriesForecast>, ForecastError> + Send + use<>
    {
        let levels = self.0.clone();
        move |_, _, forecasts| match levels {
            None => Ok(forecasts),
            Some(levels) => at_levels(forecasts, &levels),
        }
    }
}

/// A request, checked.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) product: Product,
    pub(super) shards: Vec<ShardId>,
    pub(super) wanted: Wanted,
    pub(super) levels: Levels,
}

impl Asked {
    pub(super) fn from_wire(request: v1::ForecastRequest) -> Result<Self, Status> {
        let query = ForecastQuery::try_from(request).map_err(|error| status::wire(&error))?;
        let (product, wanted) = (query.product, Wanted::named(&query.metrics));
        Ok(Self { product, shards: query.shards, wanted, levels: Levels::new(query.levels)? })
    }

    /// Whether the answer for so many series goes into one message: found out before it is computed, since what is made of
    /// made-up names alone could fill the memory.
    pub(super) fn check_fits(&self, series: usize) -> Result<(), Status> {
        // The trained ones are computed whatever is asked for.
        let levels = self.levels.count().max(TRAINED_LEVELS);
        let bytes = series.saturating_mul(self.product.horizon()).saturating_mul(levels).saturating_mul(4);
        if bytes <= MAX_RESPONSE_BYTES {
            return Ok(());
        }
        let (mib, most) = (bytes >> 20, MAX_RESPONSE_BYTES >> 20);
        let why = format!("{series} series make an answer of {mib} MiB, and at most {most} go into one message");
        Err(status::invalid("shard_ids", format!("{why}; ForecastStream takes any number")))
    }
}

/// One round of parts: which series, from where, until when.
struct Round<'a> {
    asked: &'a Asked,
    keys: &'a [SeriesKey],
    origin: Timestamp,
    expires: Option<RealTime>,
}

impl ForecastApi {
    /// The last step that is complete now.
    fn origin(&self, product: Product) -> Option<Timestamp> {
        let store = self.contexts.read().unwrap_or_else(PoisonError::into_inner);
        store.issued_at(product.step(), self.clock.model())
    }

    /// Streams one round. Its first part is computed before the stream begins, so that a refusal is one at once.
    pub(super) async fn stream(&self, asked: Asked, expires: Option<RealTime>) -> Result<Parts, Status> {
        let keys = self.select(&asked.shards, &asked.wanted)?;
        let Some(origin) = self.origin(asked.product) else {
            return Err(Status::failed_precondition("nothing was observed up to now"));
        };
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let first = keys.get(..PART.min(keys.len())).unwrap_or(&keys);
        let first = self.part(&Round { asked: &asked, keys: &keys, origin, expires }, first).await?;
        let api = self.clone();
        tokio::spawn(async move {
            let rest = keys.get(PART..).unwrap_or(&[]);
            let round = Round { asked: &asked, keys: rest, origin, expires };
            if send(&sender, Ok(first)).await.is_ok() {
                _ = api.send_round(&round, &sender).await;
            }
        });
        Ok(ReceiverStream::new(receiver))
    }

    /// Streams a round now and whenever a new step is complete.
    pub(super) fn keep_streaming(&self, asked: Asked) -> Result<Parts, Status> {
        // Whoever misspells all names learns it at once.
        self.select(&asked.shards, &asked.wanted)?;
        let place = Arc::clone(&self.watchers).try_acquire_owned();
        let place = place.map_err(|_| status::exhausted_a_while("too many callers watch already".to_owned()))?;
        let (sender, receiver) = mpsc::channel(PARTS_AHEAD);
        let api = self.clone();
        tokio::spawn(async move {
            api.rounds(&asked, &sender).await;
            drop(place);
        });
        Ok(ReceiverStream::new(receiver))
    }

    async fn rounds(&self, asked: &Asked, sender: &Sender) {
        let mut arrived = self.arrived.subscribe();
        let mut told = None;
        loop {
            let origin = self.origin(asked.product);
            if let Some(origin) = origin.filter(|origin| Some(*origin) > told) {
                // Looked up anew: shards come and go.
                let sent = match self.select(&asked.shards, &asked.wanted) {
                    Ok(keys) => self.send_round(&Round { asked, keys: &keys, origin, expires: None }, sender).await,
                    Err(status) => send(sender, Err(status)).await,
                };
                if sent.is_err() {
                    return;
                }
                told = Some(origin);
            }
            tokio::select! {
                // Fails only when the server is gone.
                changed = arrived.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = sender.closed() => return,
                () = self.stop.cancelled() => {
                    _ = send(sender, Err(status::stopped())).await;
                    return;
                }
            }
        }
    }

    /// Computes and sends all parts of a round; fails when the stream has ended.
    async fn send_round(&self, round: &Round<'_>, sender: &Sender) -> Result<(), Ended> {
        for keys in round.keys.chunks(PART) {
            let part = loop {
                match self.part(round, keys).await {
                    // Not in the middle of a stream: what does not fit now waits, as long as its caller does.
                    Err(refused) if refused.code() == Code::ResourceExhausted && !self.is_over(round, sender) => {
                        tokio::time::sleep(PART_AGAIN).await;
                    }
                    part => break part,
                }
            };
            let failed = part.is_err();
            send(sender, part).await?;
            if failed {
                return Err(Ended);
            }
        }
        Ok(())
    }

    fn is_over(&self, round: &Round<'_>, sender: &Sender) -> bool {
        let expired = round.expires.is_some_and(|expires| self.clock.real() >= expires);
        expired || sender.is_closed() || self.cut.is_cancelled()
    }

    async fn part(&self, round: &Round<'_>, keys: &[SeriesKey]) -> Result<v1::ForecastResponse, Status> {
        let Round { asked, origin, expires, .. } = round;
        let at = (asked.product, Some(*origin));
        let receiver = self.engine.submit(at, keys.to_vec(), *expires, asked.levels.maker()).map_err(status::busy)?;
        let made = self.answer(receiver, *expires).await?;
        let series = made.map_err(|error| status::invalid("levels", error.to_string()))?;
        Ok(v1::ForecastResponse { series: series.iter().map(Into::into).collect() })
    }
}

/// The caller is gone, or was told an error, which is the last thing in a stream.
struct Ended;

async fn send(sender: &Sender, part: Result<v1::ForecastResponse, Status>) -> Result<(), Ended> {
    let last = part.is_err();
    match tokio::time::timeout(STALLED_AFTER, sender.send(part)).await {
        Ok(Ok(())) if !last => Ok(()),
        Ok(_) => Err(Ended),
        Err(_) => {
            tracing::warn!(after = ?STALLED_AFTER, "a reader of forecasts takes nothing and is cut off");
            Err(Ended)
        }
    }
}
