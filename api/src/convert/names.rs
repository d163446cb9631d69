//! Enumerations, identifiers and limits.

use foreshard_domain::{
    BackendKind, Calibration, Consistency, Fallback, Metric, PerResource, Product, Resource, ShardId,
};

use crate::{WireError, v1};

impl From<Metric> for v1::Metric {
    fn from(metric: Metric) -> Self {
        match metric {
            Metric::CpuUtil => v1::Metric::CpuUtil,
            Metric::MemUtil => v1::Metric::MemUtil,
            Metric::IoOps => v1::Metric::IoOps,
            Metric::LatencyMs => v1::Metric::LatencyMs,
            Metric::TxnRate => v1::Metric::TxnRate,
            Metric::Value => v1::Metric::Value,
        }
    }
}

pub(crate) fn metric_from_wire(field: &'static str, value: i32) -> Result<Metric, WireError> {
    match v1::Metric::try_from(value) {
        Ok(v1::Metric::CpuUtil) => Ok(Metric::CpuUtil),
        Ok(v1::Metric::MemUtil) => Ok(Metric::MemUtil),
        Ok(v1::Metric::IoOps) => Ok(Metric::IoOps),
        Ok(v1::Metric::LatencyMs) => Ok(Metric::LatencyMs),
        Ok(v1::Metric::TxnRate) => Ok(Metric::TxnRate),
        Ok(v1::Metric::Value) => Ok(Metric::Value),
        Ok(v1::Metric::Unspecified) | Err(_) => Err(WireError::UnknownEnum { field, value, expected: "metric" }),
    }
}

impl From<Resource> for v1::Resource {
    fn from(resource: Resource) -> Self {
        match resource {
            Resource::Cpu => v1::Resource::Cpu,
            Resource::Memory => v1::Resource::Memory,
            Resource::Io => v1::Resource::Io,
        }
    }
}

pub(crate) fn resource_from_wire(field: &'static str, value: i32) -> Result<Resource, WireError> {
    match v1::Resource::try_from(value) {
        Ok(v1::Resource::Cpu) => Ok(Resource::Cpu),
        Ok(v1::Resource::Memory) => Ok(Resource::Memory),
        Ok(v1::Resource::Io) => Ok(Resource::Io),
        Ok(v1::Resource::Unspecified) | Err(_) => Err(WireError::UnknownEnum { field, value, expected: "resource" }),
    }
}

impl From<Product> for v1::Product {
    fn from(product: Product) -> Self {
        match product {
            Product::NextHours => v1::Product::NextHours,
            Product::NextDay => v1::Product::NextDay,
        }
    }
}

/// The product that field `product` of a request names.
///
/// # Errors
/// [`WireError::UnknownEnum`] if it names none.
pub fn product_from_wire(value: i32) -> Result<Product, WireError> {
    match v1::Product::try_from(value) {
        Ok(v1::Product::NextHours) => Ok(Product::NextHours),
        Ok(v1::Product::NextDay) => Ok(Product::NextDay),
        Ok(v1::Product::Unspecified) | Err(_) => {
            Err(WireError::UnknownEnum { field: "product", value, expected: "product" })
        }
    }
}

impl From<Option<Fallback>> for v1::Fallback {
    fn from(fallback: Option<Fallback>) -> Self {
        match fallback {
            None => v1::Fallback::Unspecified,
            Some(Fallback::NoModel) => v1::Fallback::NoModel,
            Some(Fallback::ShortHistory) => v1::Fallback::ShortHistory,
            Some(Fallback::Stale) => v1::Fallback::Stale,
            Some(Fallback::MissingContext) => v1::Fallback::MissingContext,
            Some(Fallback::UnknownSeries) => v1::Fallback::UnknownSeries,
        }
    }
}

pub(crate) fn fallback_from_wire(value: i32) -> Result<Option<Fallback>, WireError> {
    match v1::Fallback::try_from(value) {
        Ok(v1::Fallback::Unspecified) => Ok(None),
        Ok(v1::Fallback::NoModel) => Ok(Some(Fallback::NoModel)),
        Ok(v1::Fallback::ShortHistory) => Ok(Some(Fallback::ShortHistory)),
        Ok(v1::Fallback::Stale) => Ok(Some(Fallback::Stale)),
        Ok(v1::Fallback::MissingContext) => Ok(Some(Fallback::MissingContext)),
        Ok(v1::Fallback::UnknownSeries) => Ok(Some(Fallback::UnknownSeries)),
        // A reason that a newer server knows must not pass for "the model answered".
        Err(_) => Err(WireError::UnknownEnum { field: "fallback", value, expected: "fallback" }),
    }
}

impl From<Calibration> for v1::Calibration {
    fn from(calibration: Calibration) -> Self {
        match calibration {
            Calibration::None => v1::Calibration::None,
            Calibration::SplitConformal => v1::Calibration::SplitConformal,
        }
    }
}

pub(crate) fn calibration_from_wire(value: i32) -> Result<Calibration, WireError> {
    match v1::Calibration::try_from(value) {
        Ok(v1::Calibration::None) => Ok(Calibration::None),
        Ok(v1::Calibration::SplitConformal) => Ok(Calibration::SplitConformal),
        Ok(v1::Calibration::Unspecified) | Err(_) => {
            Err(WireError::UnknownEnum { field: "calibration", value, expected: "calibration" })
        }
    }
}

impl From<BackendKind> for v1::BackendKind {
    fn from(kind: BackendKind) -> Self {
        match kind {
            BackendKind::Embedded => v1::BackendKind::Embedded,
            BackendKind::Postgres => v1::BackendKind::Postgres,
            BackendKind::Redis => v1::BackendKind::Redis,
        }
    }
}

pub(crate) fn backend_from_wire(value: i32) -> Result<BackendKind, WireError> {
    match v1::BackendKind::try_from(value) {
        Ok(v1::BackendKind::Embedded) => Ok(BackendKind::Embedded),
        Ok(v1::BackendKind::Postgres) => Ok(BackendKind::Postgres),
        Ok(v1::BackendKind::Redis) => Ok(BackendKind::Redis),
        Ok(v1::BackendKind::Unspecified) | Err(_) => {
            Err(WireError::UnknownEnum { field: "backend", value, expected: "backend" })
        }
    }
}

impl From<Consistency> for v1::Consistency {
    fn from(consistency: Consistency) -> Self {
        match consistency {
            Consistency::Strict => v1::Consistency::Strict,
            Consistency::Bounded => v1::Consistency::Bounded,
            Consistency::Eventual => v1::Consistency::Eventual,
        }
    }
}

pub(crate) fn consistency_from_wire(value: i32) -> Result<Consistency, WireError> {
    match v1::Consistency::try_from(value) {
        Ok(v1::Consistency::Strict) => Ok(Consistency::Strict),
        Ok(v1::Consistency::Bounded) => Ok(Consistency::Bounded),
        Ok(v1::Consistency::Eventual) => Ok(Consistency::Eventual),
        Ok(v1::Consistency::Unspecified) | Err(_) => {
            Err(WireError::UnknownEnum { field: "consistency", value, expected: "consistency" })
        }
    }
}

pub(crate) fn shard_from_wire(field: &'static str, name: String) -> Result<ShardId, WireError> {
    ShardId::new(name).map_err(|source| WireError::Id { field, source })
}

pub(crate) fn limits_from_wire(limits: Option<v1::Limits>) -> Result<PerResource<Option<f64>>, WireError> {
    let v1::Limits { cpu, memory, io } = limits.ok_or(WireError::Missing { field: "limits" })?;
    let limits = PerResource { cpu, memory, io };
    let bad = Resource::ALL.into_iter().filter_map(|r| limits[r]).find(|limit| !limit.is_finite() || *limit < 0.0);
    match bad {
        None => Ok(limits),
        Some(limit) => {
            let expected = "finite and not negative for every resource";
            Err(WireError::Range { field: "limits", value: limit.to_string(), expected })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_goes_both_ways() {
        for metric in Metric::ALL {
            assert_eq!(metric_from_wire("metric", v1::Metric::from(metric).into()), Ok(metric));
        }
        for resource in Resource::ALL {
            assert_eq!(resource_from_wire("resource", v1::Resource::from(resource).into()), Ok(resource));
        }
        for product in Product::ALL {
            assert_eq!(product_from_wire(v1::Product::from(product).into()), Ok(product));
        }
        let fallbacks = [
            None,
            Some(Fallback::NoModel),
            Some(Fallback::ShortHistory),
            Some(Fallback::Stale),
            Some(Fallback::MissingContext),
            Some(Fallback::UnknownSeries),
        ];
        for fallback in fallbacks {
            assert_eq!(fallback_from_wire(v1::Fallback::from(fallback).into()), Ok(fallback));
        }
        for calibration in [Calibration::None, Calibration::SplitConformal] {
            assert_eq!(calibration_from_wire(v1::Calibration::from(calibration).into()), Ok(calibration));
        }
        for kind in [BackendKind::Embedded, BackendKind::Postgres, BackendKind::Redis] {
            assert_eq!(backend_from_wire(v1::BackendKind::from(kind).into()), Ok(kind));
        }
        for consistency in [Consistency::Strict, Consistency::Bounded, Consistency::Eventual] {
            assert_eq!(consistency_from_wire(v1::Consistency::from(consistency).into()), Ok(consistency));
        }
    }

    #[test]
    fn numbers_without_a_name_are_refused() {
        assert!(metric_from_wire("metric", 0).is_err() && metric_from_wire("metric", 77).is_err());
        assert!(resource_from_wire("resource", 0).is_err());
        assert!(product_from_wire(0).is_err() && calibration_from_wire(0).is_err());
        assert!(fallback_from_wire(77).is_err());
    }
}
