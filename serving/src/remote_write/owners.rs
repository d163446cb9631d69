//! Which series tells which measurement of which shard.
//!
//! Two series that map to the same would overwrite each other's values, and nobody could say what a load was. So the first one
//! has it, for as long as it goes on: a series that ends (a process that came back elsewhere has other labels) says so by a
//! mark, or falls silent for as long as Prometheus itself looks back.

use foreshard_datasets::prometheus::Measurement;
use foreshard_domain::ShardId;
use std::collections::HashMap;

/// So long Prometheus takes the last sample of a series for its value.
const SILENT_MS: i64 = 5 * 60_000;

/// Beyond so many, those that fell silent are forgotten before another one is remembered.
const MOST: usize = 1_000_000;

#[derive(Debug, Clone, Copy)]
struct Owner {
    series: u64,
    newest_ms: i64,
}

/// Who tells what.
#[derive(Debug, Default)]
pub(super) struct Owners(HashMap<(ShardId, Measurement), Owner>);

impl Owners {
    /// Whether `series` tells a measurement at a time.
    pub(super) fn may(&mut self, key: &(ShardId, Measurement), series: u64, ts_ms: i64) -> bool {
        match self.0.get_mut(key) {
            Some(owner) if owner.series == series => owner.newest_ms = owner.newest_ms.max(ts_ms),
            Some(owner) if ts_ms.saturating_sub(owner.newest_ms) <= SILENT_MS => return false,
            Some(owner) => *owner = Owner { series, newest_ms: ts_ms },
            None => {
                self.make_room(ts_ms);
                self.0.insert(key.clone(), Owner { series, newest_ms: ts_ms });
            }
        }
        true
    }

    /// A series ended.
    pub(super) fn ended(&mut self, key: &(ShardId, Measurement), series: u64) {
        if self.0.get(key).is_some_and(|owner| owner.series == series) {
            self.0.remove(key);
        }
    }

    fn make_room(&mut self, now_ms: i64) {
        if self.0.len() >= MOST {
            self.0.retain(|_, owner| now_ms.saturating_sub(owner.newest_ms) <= SILENT_MS);
        }
        // Where all of them go on, the memory that this takes is little beside that of their loads: all are judged anew.
        if self.0.len() >= MOST {
            self.0.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let mut owners = Owners::default();
        let key = (ShardId::new("s").unwrap(), Measurement::CpuUtil);
        assert!(owners.may(&key, 1, 0) && owners.may(&key, 1, 60_000));
        assert!(!owners.may(&key, 2, 60_000 + SILENT_MS), "the first one goes on");
        assert!(owners.may(&(key.0.clone(), Measurement::IoOps), 2, 0));
        assert!(owners.may(&key, 2, 60_001 + SILENT_MS), "the first one fell silent");
        assert!(!owners.may(&key, 1, 60_002 + SILENT_MS));
        owners.ended(&key, 1);
        assert!(!owners.may(&key, 1, 60_003 + SILENT_MS), "only its owner ends it");
        owners.ended(&key, 2);
        assert!(owners.may(&key, 1, 60_004 + SILENT_MS));
    }
}
