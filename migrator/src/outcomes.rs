//! What a migration cost, beside what was predicted.

use foreshard_domain::{Outcome, OutcomeResult, PerResource, Timestamp};

use crate::Way;
use crate::store::MigrationRecord;
use crate::transition::MigrationState;

const DAY_MS: i64 = 86_400_000;
const HOUR_MS: i64 = 3_600_000;

/// The outcome of a migration whose move is over; `None` while it is under way. A move is done as soon as clients use the target: the retention that follows is no
/// part of its duration. A move that is taken back later has a second outcome, [`OutcomeResult::RolledBack`].
pub fn outcome(record: &MigrationRecord) -> Option<Outcome> {
    let (result, ended_at) = result_of(record)?;
    // A move that was refused by the checks before it took no time.
    let started_at = record.started_at.unwrap_or(record.created_at);
    let planned = &record.planned;
    Some(Outcome {
        migration: record.id.clone(),
        plan: record.plan.clone(),
        shard: planned.shard.clone(),
        source: planned.source.clone(),
        target: planned.target.clone(),
        backend: record.backend,
        consistency: record.consistency,
        planned_at: record.planned_at,
        started_at,
        ended_at,
        hour: hour_of(started_at),
        data_bytes: planned.data_bytes,
        rows: record.progress.rows,
        write_bytes_per_s: planned.write_bytes_per_s,
        source_cpu: planned.cpu_share.0,
        target_cpu: planned.cpu_share.1,
        predicted: planned.predicted,
        actual_duration_ms: ended_at.since_ms(started_at),
        actual_fence_ms: record.fence_ms as f64,
        actual_extra_share: PerResource { cpu: None, memory: None, io: None },
        result,
        why: if result == OutcomeResult::Done { None } else { record.why.clone() },
    })
}

fn result_of(record: &MigrationRecord) -> Option<(OutcomeResult, Timestamp)> {
    use MigrationState as S;
    match &record.state {
        S::Reversible { .. } | S::Releasing { .. } | S::Finishing { way: Way::There } | S::Done => {
            Some((OutcomeResult::Done, record.moved_at?))
        }
        S::Cancelled => Some((OutcomeResult::Cancelled, record.ended_at?)),
        S::Failed { .. } => Some((OutcomeResult::Failed, record.ended_at?)),
        S::RolledBack => Some((OutcomeResult::RolledBack, record.ended_at?)),
        S::Planned
        | S::Preparing { .. }
        | S::Copying { .. }
        | S::CatchingUp { .. }
        | S::Verifying { .. }
        | S::TryingWayBack { .. }
        | S::Nearing { .. }
        | S::Fencing { .. }
        | S::Proving { .. }
        | S::Sealing { .. }
        | S::Sealed { .. }
        | S::Opening { .. }
        | S::Routing { .. }
        | S::OpeningWayBack { .. }
        | S::Finishing { way: Way::Back }
        | S::Undoing { .. }
        | S::Paused { .. } => None,
    }
}

/// Hour of the day, UTC.
fn hour_of(ts: Timestamp) -> u8 {
    u8::try_from(ts.as_ms().rem_euclid(DAY_MS) / HOUR_MS).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_are_of_the_day_in_utc() {
        let hours = [(0, 0), (HOUR_MS - 1, 0), (DAY_MS - 1, 23), (DAY_MS, 0), (-1, 23)];
        for (ms, hour) in hours {
            assert_eq!(hour_of(Timestamp::from_ms(ms)), hour, "{ms}");
        }
    }
}
