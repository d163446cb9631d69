//! What can be asked, in domain types.

use foreshard_domain::{Metric, PerResource, Product, Resource, ShardId};

use crate::convert::{limits_from_wire, metric_from_wire, product_from_wire, shard_from_wire};
use crate::{WireError, v1};

/// Asks for quantiles.
#[derive(Debug, Clone, PartialEq)]
pub struct ForecastQuery {
    /// Which shards; empty for all that were ever observed.
    pub shards: Vec<ShardId>,
    /// Which metrics; empty for all that were ever observed.
    pub metrics: Vec<Metric>,
    /// How far, in which steps.
    pub product: Product,
    /// Two or more rising levels within the trained ones; empty for the trained ones.
    pub levels: Vec<f64>,
}

/// Asks for the probability that loads are over a limit at any step of a window.
#[derive(Debug, Clone, PartialEq)]
pub struct RiskQuery {
    /// Which shards; empty for all that were ever observed.
    pub shards: Vec<ShardId>,
    /// How far, in which steps.
    pub product: Product,
    /// How many steps from the first; `None` for the whole horizon.
    pub window_steps: Option<usize>,
    /// Limits in units of load; at least one.
    pub limits: PerResource<Option<f64>>,
}

/// Asks for joint sample paths.
#[derive(Debug, Clone, PartialEq)]
pub struct ScenarioQuery {
    /// Which shards; empty for all that were ever observed, residuals included.
    pub shards: Vec<ShardId>,
    /// How far, in which steps.
    pub product: Product,
    /// How many paths.
    pub scenarios: usize,
    /// Same seed, same paths.
    pub seed: u64,
}

fn names(shards: &[ShardId]) -> Vec<String> {
    shards.iter().map(ToString::to_string).collect()
}

fn shards(names: Vec<String>) -> Result<Vec<ShardId>, WireError> {
    names.into_iter().map(|name| shard_from_wire("shard_ids", name)).collect()
}

impl From<&ForecastQuery> for v1::ForecastRequest {
    fn from(query: &ForecastQuery) -> Self {
        Self {
            shard_ids: names(&query.shards),
            metrics: query.metrics.iter().map(|m| v1::Metric::from(*m).into()).collect(),
            product: v1::Product::from(query.product).into(),
            levels: query.levels.clone(),
        }
    }
}

impl TryFrom<v1::ForecastRequest> for ForecastQuery {
    type Error = WireError;
    fn try_from(request: v1::ForecastRequest) -> Result<Self, WireError> {
        let metrics = request.metrics.into_iter().map(|m| metric_from_wire("metrics", m)).collect::<Result<_, _>>()?;
        Ok(Self {
            shards: shards(request.shard_ids)?,
            metrics,
            product: product_from_wire(request.product)?,
            levels: request.levels,
        })
    }
}

impl From<&RiskQuery> for v1::RiskRequest {
    fn from(query: &RiskQuery) -> Self {
        let PerResource { cpu, memory, io } = query.limits;
        Self {
            shard_ids: names(&query.shards),
            product: v1::Product::from(query.product).into(),
            window_steps: query.window_steps.map(|n| u32::try_from(n).unwrap_or(u32::MAX)),
            limits: Some(v1::Limits { cpu, memory, io }),
        }
    }
}

impl TryFrom<v1::RiskRequest> for RiskQuery {
    type Error = WireError;
    fn try_from(request: v1::RiskRequest) -> Result<Self, WireError> {
        let product = product_from_wire(request.product)?;
        let window_steps = match request.window_steps {
            Some(0) => {
                return Err(WireError::Range { field: "window_steps", value: "0".into(), expected: "at least 1" });
            }
            other => other.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        };
        let limits = limits_from_wire(request.limits)?;
        if Resource::ALL.iter().all(|r| limits[*r].is_none()) {
            return Err(WireError::Missing { field: "limits" });
        }
        Ok(Self { shards: shards(request.shard_ids)?, product, window_steps, limits })
    }
}

impl From<&ScenarioQuery> for v1::ScenariosRequest {
    fn from(query: &ScenarioQuery) -> Self {
        Self {
            shard_ids: names(&query.shards),
            product: v1::Product::from(query.product).into(),
            scenarios: u32::try_from(query.scenarios).unwrap_or(u32::MAX),
            seed: query.seed,
        }
    }
}

impl TryFrom<v1::ScenariosRequest> for ScenarioQuery {
    type Error = WireError;
    fn try_from(request: v1::ScenariosRequest) -> Result<Self, WireError> {
        let scenarios = match request.scenarios {
            0 => return Err(WireError::Range { field: "scenarios", value: "0".into(), expected: "at least 1" }),
            n => usize::try_from(n).unwrap_or(usize::MAX),
        };
        let product = product_from_wire(request.product)?;
        Ok(Self { shards: shards(request.shard_ids)?, product, scenarios, seed: request.seed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_go_both_ways() {
        let shards = vec![ShardId::new("a").unwrap(), ShardId::new("@node/n1").unwrap()];
        let forecast = ForecastQuery {
            shards: shards.clone(),
            metrics: vec![Metric::IoOps, Metric::CpuUtil],
            product: Product::NextDay,
            levels: vec![0.1, 0.9],
        };
        assert_eq!(ForecastQuery::try_from(v1::ForecastRequest::from(&forecast)), Ok(forecast));
        let limits = PerResource { cpu: Some(50.0), memory: None, io: Some(1e4) };
        let risk = RiskQuery { shards: shards.clone(), product: Product::NextHours, window_steps: Some(12), limits };
        assert_eq!(RiskQuery::try_from(v1::RiskRequest::from(&risk)), Ok(risk));
        let scenarios = ScenarioQuery { shards, product: Product::NextHours, scenarios: 200, seed: u64::MAX };
        assert_eq!(ScenarioQuery::try_from(v1::ScenariosRequest::from(&scenarios)), Ok(scenarios));
    }

    #[test]
    fn bad_queries_name_their_field() {
        let field = |e: WireError| e.field();
        let unspecified = v1::ForecastRequest::default();
        assert_eq!(ForecastQuery::try_from(unspecified).map_err(field), Err("product"));
        let product = v1::Product::NextDay.into();
        let empty_name = v1::ForecastRequest { shard_ids: vec![String::new()], product, ..Default::default() };
        assert_eq!(ForecastQuery::try_from(empty_name).map_err(field), Err("shard_ids"));
        let no_metric = v1::ForecastRequest { metrics: vec![99], product, ..Default::default() };
        assert_eq!(ForecastQuery::try_from(no_metric).map_err(field), Err("metrics"));
        let no_limit = v1::RiskRequest { product, ..Default::default() };
        assert_eq!(RiskQuery::try_from(no_limit).map_err(field), Err("limits"));
        let limits = Some(v1::Limits { cpu: Some(f64::NAN), ..Default::default() });
        let nan = v1::RiskRequest { product, limits, ..Default::default() };
        assert_eq!(RiskQuery::try_from(nan).map_err(field), Err("limits"));
        let none = v1::ScenariosRequest { product, ..Default::default() };
        assert_eq!(ScenarioQuery::try_from(none).map_err(field), Err("scenarios"));
    }
}
