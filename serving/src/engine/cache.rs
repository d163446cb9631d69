//! Answers that were given already.
//!
//! A forecast is the same as long as nothing came that it was made from: no row of its shard, no other origin, version or
//! calendar of events. Those are kept beside it as a stamp, and an answer whose stamp is another one is no answer. What is
//! kept is bounded by its bytes; what was not asked for longest goes first. Only what the model said is kept: fallbacks
//! cost nothing, and whether they answer depends on the clock.

use foreshard_domain::{Metric, Product, SeriesForecast, ShardId, Timestamp};
use quick_cache::sync::Cache;
use quick_cache::{Equivalent, Weighter};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a forecast was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Which of the versions that the slot ever held.
    pub(crate) version: u64,
    /// Last step of its context.
    pub(crate) issued_at: Timestamp,
    /// The newest change of what is known of its shard.
    pub(crate) shard: u64,
    /// The newest change of the known events.
    pub(crate) events: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    product: Product,
    metric: Metric,
    shard: ShardId,
}

/// A key that need not be made to look for one.
#[derive(Hash)]
struct KeyRef<'a> {
    product: Product,
    metric: Metric,
    shard: &'a ShardId,
}

impl Equivalent<Key> for KeyRef<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.product == key.product && self.metric == key.metric && self.shard == &key.shard
    }
}

type Kept = (Stamp, Arc<SeriesForecast>);

#[derive(Debug, Clone)]
struct Bytes;

/// What an entry takes beside its values and its name: keys, stamps, and what the cache itself holds of it.
const ENTRY_BYTES: u64 = 400;

impl Weighter<Key, Kept> for Bytes {
    fn weight(&self, key: &Key, (_, made): &Kept) -> u64 {
        let values = std::mem::size_of_val(made.forecast.values()) as u64;
        ENTRY_BYTES + values + 2 * key.shard.as_str().len() as u64
    }
}

/// The newest answers, by series and product.
pub(crate) struct AnswerCache {
    kept: Cache<Key, Kept, Bytes>,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// Bytes of a usual answer, from which the number of places is guessed.
const USUAL_BYTES: u64 = 5_500;

impl AnswerCache {
    /// A cache of at most so many MiB; `None` for 0.
    pub(crate) fn new(mib: u32) -> Option<Self> {
        let bytes = u64::from(mib) * 1024 * 1024;
        let places = usize::try_from(bytes / USUAL_BYTES).unwrap_or(usize::MAX);
        let counted = || AtomicU64::new(0);
        (mib > 0).then(|| Self { kept: Cache::with_weighter(places, bytes, Bytes), hits: counted(), misses: counted() })
    }

    /// The answer for a series, if it was made from the same.
    pub(crate) fn find(
        &self,
        product: Product,
        (shard, metric): (&ShardId, Metric),
        stamp: Stamp,
    ) -> Option<Arc<SeriesForecast>> {
        let found = self.kept.get(&KeyRef { product, metric, shard });
        let found = found.filter(|(made_from, _)| *made_from == stamp).map(|(_, made)| made);
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Keeps an answer.
    pub(crate) fn keep(&self, product: Product, stamp: Stamp, made: &SeriesForecast) {
        let key = Key { product, metric: made.metric, shard: made.shard.clone() };
        self.kept.insert(key, (stamp, Arc::new(made.clone())));
    }

    /// Series that were found, and series that were not.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.hits.load(Ordering::Relaxed), self.misses.load(Ordering::Relaxed))
    }

    /// Bytes that are held, about.
    pub(crate) fn bytes(&self) -> u64 {
        self.kept.weight()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Calibration, Provenance, QuantileForecast, QuantileLevels};

    const STAMP: Stamp = Stamp { version: 1, issued_at: Timestamp::from_ms(0), shard: 2, events: 3 };

    fn made(name: &str, value: f32) -> SeriesForecast {
        let levels = QuantileLevels::new(vec![0.1, 0.5]).unwrap();
        SeriesForecast {
            shard: ShardId::new(name).unwrap(),
            metric: Metric::CpuUtil,
            issued_at: STAMP.issued_at,
            step: Product::NextDay.step(),
            forecast: QuantileForecast::new(levels, vec![value; 192]).unwrap(),
            provenance: Provenance {
                version: None,
                last_observed: None,
                missing_share: 0.0,
                calibration: Calibration::None,
                fallback: None,
            },
        }
    }

    fn find(cache: &AnswerCache, name: &str, stamp: Stamp) -> Option<f32> {
        let shard = ShardId::new(name).unwrap();
        let found = cache.find(Product::NextDay, (&shard, Metric::CpuUtil), stamp)?;
        found.forecast.values().first().copied()
    }

    #[test]
    fn an_answer_is_found_as_long_as_it_would_be_the_same() {
        let cache = AnswerCache::new(1).unwrap();
        cache.keep(Product::NextDay, STAMP, &made("a", 1.0));
        assert_eq!(find(&cache, "a", STAMP), Some(1.0));
        let later = Timestamp::from_ms(1);
        for other in [
            Stamp { version: 2, ..STAMP },
            Stamp { issued_at: later, ..STAMP },
            Stamp { shard: 3, ..STAMP },
            Stamp { events: 4, ..STAMP },
        ] {
            assert_eq!(find(&cache, "a", other), None, "{other:?}");
        }
        assert_eq!(find(&cache, "b", STAMP), None);
        let shard = ShardId::new("a").unwrap();
        assert!(cache.find(Product::NextHours, (&shard, Metric::CpuUtil), STAMP).is_none());
        assert!(cache.find(Product::NextDay, (&shard, Metric::IoOps), STAMP).is_none());
        assert_eq!(cache.counts(), (1, 7));
        cache.keep(Product::NextDay, Stamp { shard: 3, ..STAMP }, &made("a", 2.0));
        assert_eq!(find(&cache, "a", STAMP), None, "there is one answer of a series");
        assert_eq!(find(&cache, "a", Stamp { shard: 3, ..STAMP }), Some(2.0));
    }

    #[test]
    fn it_never_grows_over_its_bound() {
        let cache = AnswerCache::new(1).unwrap();
        for i in 0..5000 {
            cache.keep(Product::NextDay, STAMP, &made(&format!("shard-{i}"), 1.0));
            assert!(cache.bytes() <= 1024 * 1024);
        }
        assert!(cache.bytes() > 512 * 1024, "and uses it: {}", cache.bytes());
        assert!(find(&cache, "shard-4999", STAMP).is_some(), "the newest is there");
        assert!(AnswerCache::new(0).is_none());
    }
}
