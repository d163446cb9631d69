//! Joint sample paths of all shards and resources: what risk is read from.

use serde::{Deserialize, Serialize};

use crate::{LoadPaths, Resource, ShardId, Step, Timestamp};

/// Why values are no scenario set.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScenarioError {
    /// The number of values is not resources x shards x steps x scenarios.
    #[error(
        "{got} values given, {resources} resources x {shards} shards x {steps} steps x {scenarios} scenarios want {want}"
    )]
    Shape {
        /// Values given.
        got: usize,
        /// Values wanted.
        want: usize,
        /// Resources.
        resources: usize,
        /// Shards.
        shards: usize,
        /// Steps.
        steps: usize,
        /// Scenarios.
        scenarios: usize,
    },
    /// A value is not finite.
    #[error("scenario value of shard {shard}, {resource} is not a finite number")]
    NotFinite {
        /// Whose.
        shard: ShardId,
        /// Of what.
        resource: Resource,
    },
    /// A shard or a resource occurs twice.
    #[error("{name} occurs more than once")]
    Twice {
        /// What.
        name: String,
    },
}

/// Dense joint sample paths: resource x shard x step x scenario, in units of load.
///
/// Scenario `k` is one possible future of everything at once: the same `k` of two shards belongs together, so sums over
/// shards and maxima over steps are right without any assumption of independence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ScenarioSet {
    issued_at: Timestamp,
    step: Step,
    resources: Vec<Resource>,
    shards: Vec<ShardId>,
    steps: usize,
    scenarios: usize,
    values: Vec<f32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    issued_at: Timestamp,
    step: Step,
    resources: Vec<Resource>,
    shards: Vec<ShardId>,
    steps: usize,
    scenarios: usize,
    values: Vec<f32>,
}

impl TryFrom<Unchecked> for ScenarioSet {
    type Error = ScenarioError;
    fn try_from(raw: Unchecked) -> Result<Self, ScenarioError> {
        let Unchecked { issued_at, step, resources, shards, steps, scenarios, values } = raw;
        Self::new(issued_at, step, resources, shards, (steps, scenarios), values)
    }
}

impl ScenarioSet {
    /// Checks and takes values, laid out `[resource][shard][step][scenario]`; `shape` is (steps, scenarios).
    ///
    /// # Errors
    /// [`ScenarioError`] if the shape does not fit, a value is not finite, or a name occurs twice.
    pub fn new(
        issued_at: Timestamp,
        step: Step,
        resources: Vec<Resource>,
        shards: Vec<ShardId>,
        shape: (usize, usize),
        values: Vec<f32>,
    ) -> Result<Self, ScenarioError> {
        let (steps, scenarios) = shape;
        let want = [resources.len(), shards.len(), steps, scenarios].iter().try_fold(1usize, |a, b| a.checked_mul(*b));
        if want != Some(values.len()) || scenarios == 0 {
            return Err(ScenarioError::Shape {
                got: values.len(),
                want: want.unwrap_or(usize::MAX),
                resources: resources.len(),
                shards: shards.len(),
                steps,
                scenarios,
            });
        }
        let set = Self { issued_at, step, resources, shards, steps, scenarios, values };
        set.check_names()?;
        set.check_finite()?;
        Ok(set)
    }

    fn check_names(&self) -> Result<(), ScenarioError> {
        let mut names: Vec<&str> = self.shards.iter().map(ShardId::as_str).collect();
        names.sort_unstable();
        let mut resources = self.resources.clone();
        resources.sort_unstable();
        let twice = names.windows(2).find(|p| p[0] == p[1]).map(|p| format!("shard {}", p[0]));
        let twice = twice.or_else(|| resources.windows(2).find(|p| p[0] == p[1]).map(|p| format!("resource {}", p[0])));
        twice.map_or(Ok(()), |name| Err(ScenarioError::Twice { name }))
    }

    fn check_finite(&self) -> Result<(), ScenarioError> {
        let lane = (self.steps * self.scenarios).max(1);
        let Some(bad) = self.values.iter().position(|v| !v.is_finite()) else { return Ok(()) };
        let (resource, shard) = (bad / lane / self.shards.len(), bad / lane % self.shards.len());
        Err(ScenarioError::NotFinite { shard: self.shards[shard].clone(), resource: self.resources[resource] })
    }

    /// Grid time of the last complete step before the window.
    pub fn issued_at(&self) -> Timestamp {
        self.issued_at
    }

    /// Length of a step.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Number of scenarios.
    pub fn scenarios(&self) -> usize {
        self.scenarios
    }

    /// Resources, in the order of the first axis.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Shards, in the order of the second axis.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// All values: `[resource][shard][step][scenario]`.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Index of a shard on the second axis.
    pub fn shard_index(&self, shard: &ShardId) -> Option<usize> {
        self.shards.iter().position(|s| s == shard)
    }

    /// Index of a resource on the first axis.
    pub fn resource_index(&self, resource: Resource) -> Option<usize> {
        self.resources.iter().position(|r| *r == resource)
    }

    /// The paths of one shard and resource, step-major; `None` if either index is out of range.
    pub fn lane(&self, resource: usize, shard: usize) -> Option<&[f32]> {
        if resource >= self.resources.len() || shard >= self.shards.len() {
            return None;
        }
        let lane = self.steps * self.scenarios;
        let from = (resource * self.shards.len() + shard) * lane;
        self.values.get(from..from + lane)
    }

    /// The summed load of the given shards (indices of the second axis) on one resource; unknown indices add nothing.
    pub fn node_sum(&self, resource: usize, members: impl IntoIterator<Item = usize>) -> LoadPaths {
        let mut sum = LoadPaths::zero(self.steps, self.scenarios);
        for lane in members.into_iter().filter_map(|shard| self.lane(resource, shard)) {
            sum.add_scaled(lane, 1.0, 0..self.steps);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: Vec<f32>) -> Result<ScenarioSet, ScenarioError> {
        let shards = ["a", "b"].map(|s| ShardId::new(s).unwrap()).to_vec();
        ScenarioSet::new(Timestamp::from_ms(0), Step::FIVE_MINUTES, vec![Resource::Cpu], shards, (2, 2), values)
    }

    #[test]
    fn node_sum_keeps_scenarios_together() {
        let set = set(vec![1.0, 2.0, 3.0, 4.0, 10.0, 20.0, 30.0, 40.0]).unwrap();
        assert_eq!(set.node_sum(0, [0, 1]).values(), [11.0, 22.0, 33.0, 44.0]);
        assert_eq!(set.node_sum(0, [1, 7]).values(), [10.0, 20.0, 30.0, 40.0]);
        assert_eq!(set.lane(0, 2), None);
        let text = serde_json::to_string(&set).unwrap();
        assert_eq!(serde_json::from_str::<ScenarioSet>(&text).unwrap(), set);
    }

    #[test]
    fn refuses_bad_shapes_and_values() {
        assert!(matches!(set(vec![0.0; 7]), Err(ScenarioError::Shape { want: 8, .. })));
        let mut values = vec![0.0; 8];
        values[5] = f32::NAN;
        assert!(matches!(set(values), Err(ScenarioError::NotFinite { shard, .. }) if shard.as_str() == "b"));
        let twice = vec![ShardId::new("a").unwrap(); 2];
        let made = ScenarioSet::new(
            Timestamp::from_ms(0),
            Step::FIVE_MINUTES,
            vec![Resource::Cpu],
            twice,
            (1, 1),
            vec![0.0; 2],
        );
        assert!(matches!(made, Err(ScenarioError::Twice { .. })));
    }
}
