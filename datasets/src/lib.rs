//! What was measured: load history in and out of Parquet, the regular grid that forecasts live on, evaluation protocols,
//! forecasts, outcomes and decisions as files, topology, events, and a seeded workload generator.
//!
//! Reading never guesses. What a file lacks or has in a wrong type is an error that names the file and the column; values
//! that are no numbers count as missing and are counted in a [`ReadReport`].

mod atomic;
mod bounded;
mod calendar;
mod classes;
mod columns;
mod decode;
mod edges;
mod error;
mod events;
mod fingerprint;
mod folder;
mod forecasts;
pub mod generate;
mod grid;
mod groups;
mod history;
mod import;
mod inspect;
mod outcomes;
pub mod prometheus;
mod protocol;
mod read;
mod rows;
mod scratch;
mod source;
mod table;
mod topology_file;
mod windows;
mod write;

pub use bounded::{BoundedHistory, MemoryBudget};
pub use calendar::{Calendar, CalendarError, CalendarPoint};
pub use edges::{CommunicationEdge, read_communication, write_communication};
pub use error::HistoryError;
pub use events::{EventCalendar, LoadEvent, read_events, write_events};
pub use folder::{HistoryFolder, newest_day};
pub use forecasts::{ForecastRow, ForecastsError, read_forecasts, write_forecasts};
pub use generate::{Workload, WorkloadError, WorkloadSpec};
pub use grid::GridSeries;
pub use history::{History, ReadFilter, ReadReport};
pub use import::{ImportError, ImportOptions, ImportReport, import};
pub use inspect::{Inspection, MetricInspection, inspect};
pub use outcomes::{DecisionLog, OutcomeLog, read_decisions, read_outcomes};
pub use protocol::{Bounds, Event, KeyProblem, Protocol, ProtocolError, Refit, ScaleBasis, Target};
pub use read::{read_history, stream_history};
pub use table::TableError;
pub use topology_file::{TopologyFileError, read_topology};
pub use windows::{EvalSeries, LeftOut, LeftOutReason, evaluation_series, quantile};
pub use write::write_history;
