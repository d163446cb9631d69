//! Made-up workloads of shards: seeded, random access in time, and like real ones where it matters to forecasts and moves.

mod campaign;
mod noise;
mod shape;
mod spec;
mod workload;

pub use spec::{SpecProblem, WorkloadError, WorkloadSpec};
pub use workload::Workload;
