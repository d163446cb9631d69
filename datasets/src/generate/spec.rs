//! What workload to make.

use std::fmt;

use foreshard_domain::{Step, Timestamp};
use serde::{Deserialize, Serialize};

use crate::CalendarError;

/// What workload to make. The default is six weeks of 24 shards of 6 tenants in 5-minute steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkloadSpec {
    /// Number of shards.
    pub shards: usize,
    /// Days of history.
    pub days: u32,
    /// Distance of the rows, in milliseconds when serialised.
    pub step: Step,
    /// Time of the first row, in milliseconds since the epoch when serialised.
    pub start: Timestamp,
    /// From which everything random follows.
    pub seed: u64,
    /// Time zone whose wall clock the rhythms follow (IANA name).
    pub zone: String,
    /// Number of tenants; shard `i` belongs to tenant `i % tenants`. Shards of a tenant rise and fall together.
    pub tenants: usize,
    /// Mean stored size of a shard at the start, in GiB.
    pub data_gib: f64,
    /// Mean CPU load of a shard at the start; 100 = all CPU of a reference node.
    pub mean_cpu: f64,
    /// Share of the rows that are missing, half of them one by one, half in outages of half an hour to two hours.
    pub gap_share: f64,
    /// Factor of all noise; 0 leaves rhythm, growth, bursts and campaigns.
    pub noise: f64,
    /// Growth of load in 30 days, mean over the shards; .04 = 4 %.
    pub growth: f64,
    /// Bursts of a shard in a week: unforeseeable, 10 to 60 minutes.
    pub bursts_per_week: f64,
    /// Campaigns of a tenant in 30 days: known beforehand, some hours.
    pub campaigns_per_month: f64,
}

impl Default for WorkloadSpec {
    fn default() -> Self {
        Self {
            shards: 24,
            days: 42,
            step: Step::FIVE_MINUTES,
            // Monday, 2024-01-01T00:00Z.
            start: Timestamp::from_ms(1_704_067_200_000),
            seed: 1,
            zone: "Europe/Berlin".to_owned(),
            tenants: 6,
            data_gib: 20.0,
            mean_cpu: 8.0,
            gap_share: 0.002,
            noise: 1.0,
            growth: 0.04,
            bursts_per_week: 1.0,
            campaigns_per_month: 1.0,
        }
    }
}

/// One thing that is wrong with a specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecProblem {
    /// The field.
    pub field: &'static str,
    /// What is wrong with it and what would be right.
    pub what: String,
}

impl fmt::Display for SpecProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.what)
    }
}

/// Why a workload cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// Numbers that cannot be; all of them.
    #[error("workload: {}", .0.iter().map(SpecProblem::to_string).collect::<Vec<_>>().join("; "))]
    Spec(Vec<SpecProblem>),
    /// The time zone is unknown.
    #[error("the workload has no calendar")]
    Calendar(#[source] CalendarError),
}

/// Most shards; names have five digits.
const MOST_SHARDS: usize = 100_000;
/// Most days: a century.
const MOST_DAYS: u32 = 36_525;

impl WorkloadSpec {
    /// Finds everything that is wrong.
    pub(crate) fn problems(&self) -> Vec<SpecProblem> {
        let mut problems = Vec::new();
        let mut check = |field, good: bool, what: String| {
            if !good {
                problems.push(SpecProblem { field, what });
            }
        };
        let counted = |n: usize, most: usize| (1..=most).contains(&n);
        let n = self.shards;
        check("shards", counted(n, MOST_SHARDS), format!("must be 1 to {MOST_SHARDS}, not {n}"));
        let tenants = self.tenants;
        check("tenants", counted(tenants, n), format!("must be 1 to the number of shards, not {tenants}"));
        check("days", (1..=MOST_DAYS).contains(&self.days), format!("must be 1 to {MOST_DAYS}, not {}", self.days));
        let whole = Step::DAY.as_ms() % self.step.as_ms() == 0 && self.step.as_ms() >= 1000;
        check("step", whole, format!("must be at least 1 s and divide a day, not {} ms", self.step.as_ms()));
        let early = crate::columns::plausible(self.start.as_ms());
        check("start", early, format!("must lie in the years 1900 to 2200, not {}", self.start));
        for (field, value, most) in [("data_gib", self.data_gib, 1e6), ("mean_cpu", self.mean_cpu, 1e4)] {
            let good = value.is_finite() && value > 0.0 && value <= most;
            check(field, good, format!("must be positive and at most {most}, not {value}"));
        }
        for (field, value, least, most) in [
            ("gap_share", self.gap_share, 0.0, 0.5),
            ("noise", self.noise, 0.0, 5.0),
            ("growth", self.growth, -0.5, 1.0),
            ("bursts_per_week", self.bursts_per_week, 0.0, 28.0),
            ("campaigns_per_month", self.campaigns_per_month, 0.0, 3.0),
        ] {
            check(field, (least..=most).contains(&value), format!("must be {least} to {most}, not {value}"));
        }
        problems
    }
}
