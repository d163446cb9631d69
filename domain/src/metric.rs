//! Metrics of a history and the resources that a placement competes for.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::{Index, IndexMut};

/// A column of a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// CPU demand; 100 = all CPU of one reference node.
    CpuUtil,
    /// Memory demand; 100 = all memory of one reference node.
    MemUtil,
    /// I/O operations per second.
    IoOps,
    /// Latency in milliseconds: a signal, never summed against a capacity.
    LatencyMs,
    /// Transactions per second: a signal, never summed against a capacity.
    TxnRate,
    /// The only metric of a series that came from a wide file; it has no bounds and no unit.
    Value,
}

/// A name that is no metric or resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown name {name:?}; known are {known}")]
pub struct UnknownName {
    /// What was given.
    pub name: String,
    /// What would have been accepted.
    pub known: &'static str,
}

impl Metric {
    /// All metrics, in the order of the columns of a history.
    pub const ALL: [Metric; 6] =
        [Metric::CpuUtil, Metric::MemUtil, Metric::IoOps, Metric::LatencyMs, Metric::TxnRate, Metric::Value];

    /// The column name.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::CpuUtil => "cpu_util",
            Metric::MemUtil => "mem_util",
            Metric::IoOps => "io_ops",
            Metric::LatencyMs => "latency_ms",
            Metric::TxnRate => "txn_rate",
            Metric::Value => "value",
        }
    }

    /// The resource that this metric is a load on; `None` for signals.
    pub const fn resource(self) -> Option<Resource> {
        match self {
            Metric::CpuUtil => Some(Resource::Cpu),
            Metric::MemUtil => Some(Resource::Memory),
            Metric::IoOps => Some(Resource::Io),
            Metric::LatencyMs | Metric::TxnRate | Metric::Value => None,
        }
    }

    /// Least value that is physically possible; `None` where the metric has no bound.
    pub const fn lower_bound(self) -> Option<f64> {
        match self {
            Metric::Value => None,
            Metric::CpuUtil | Metric::MemUtil | Metric::IoOps | Metric::LatencyMs | Metric::TxnRate => Some(0.0),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Metric {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Metric::ALL.into_iter().find(|m| m.name() == name).ok_or_else(|| UnknownName {
            name: name.to_owned(),
            known: "cpu_util, mem_util, io_ops, latency_ms, txn_rate, value",
        })
    }
}

/// Something that a node has a limited amount of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Processor time.
    Cpu,
    /// Memory.
    Memory,
    /// I/O operations.
    Io,
}

impl Resource {
    /// All resources, in their order everywhere.
    pub const ALL: [Resource; 3] = [Resource::Cpu, Resource::Memory, Resource::Io];

    /// The metric that measures the load on this resource.
    pub const fn metric(self) -> Metric {
        match self {
            Resource::Cpu => Metric::CpuUtil,
            Resource::Memory => Metric::MemUtil,
            Resource::Io => Metric::IoOps,
        }
    }

    /// Its name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Resource::Cpu => "cpu",
            Resource::Memory => "memory",
            Resource::Io => "io",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for Resource {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        Resource::ALL
            .into_iter()
            .find(|r| r.name() == name)
            .ok_or_else(|| UnknownName { name: name.to_owned(), known: "cpu, memory, io" })
    }
}

/// One value for each resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PerResource<T> {
    /// For the processor.
    pub cpu: T,
    /// For memory.
    pub memory: T,
    /// For I/O.
    pub io: T,
}

impl<T> PerResource<T> {
    /// Computes the value of each resource.
    pub fn from_fn(mut f: impl FnMut(Resource) -> T) -> Self {
        Self { cpu: f(Resource::Cpu), memory: f(Resource::Memory), io: f(Resource::Io) }
    }

    /// Applies `f` to the value of each resource.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> PerResource<U> {
        PerResource { cpu: f(self.cpu), memory: f(self.memory), io: f(self.io) }
    }
}

impl<T> Index<Resource> for PerResource<T> {
    type Output = T;
    fn index(&self, resource: Resource) -> &T {
        match resource {
            Resource::Cpu => &self.cpu,
            Resource::Memory => &self.memory,
            Resource::Io => &self.io,
        }
    }
}

impl<T> IndexMut<Resource> for PerResource<T> {
    fn index_mut(&mut self, resource: Resource) -> &mut T {
        match resource {
            Resource::Cpu => &mut self.cpu,
            Resource::Memory => &mut self.memory,
            Resource::Io => &mut self.io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for m in Metric::ALL {
            assert_eq!(m.name().parse::<Metric>(), Ok(m));
        }
        for r in Resource::ALL {
            assert_eq!(r.name().parse::<Resource>(), Ok(r));
            assert_eq!(r.metric().resource(), Some(r));
        }
        assert!("cpu_utl".parse::<Metric>().unwrap_err().to_string().contains("cpu_util"));
    }
}
