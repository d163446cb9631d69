//! Series of Prometheus as observations: which of them are taken, and what they become.
//!
//! A series has labels and one number a time; an observation has a shard, perhaps a node, and a measurement. A mapping says
//! how one becomes the other: [`Selector`] which series it means (those that are sent here), [`LabelTemplate`] how shard and
//! node are called, [`Measurement`] the column, and a factor the unit.

mod mapping;
mod measurement;
mod selector;
mod template;

pub use mapping::{MappingError, ReceivedSeries, SeriesTarget};
pub use measurement::Measurement;
pub use selector::{Selector, SelectorError};
pub use template::{LabelTemplate, TemplateError};

/// The value of a label by its name; empty where a series has no such label, as in Prometheus.
pub type LabelValue<'a> = dyn Fn(&str) -> &'a str + 'a;
