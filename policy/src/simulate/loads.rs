//! Loads of all shards on one grid, and the part of them that a policy may see.

use foreshard_domain::{Resource, ShardId, Step, Timestamp};

use super::SimError;

/// Loads of all shards on one grid: `[resource][shard][step]`, no value missing.
#[derive(Debug, Clone, PartialEq)]
pub struct SimLoads {
    start: Timestamp,
    step: Step,
    resources: Vec<Resource>,
    shards: Vec<ShardId>,
    steps: usize,
    values: Vec<f32>,
}

impl SimLoads {
    /// Takes loads, laid out `[resource][shard][step]`. Missing values (NaN) take the value before them, those at the
    /// beginning the first that there is; a series without any value is zero.
    ///
    /// # Errors
    /// [`SimError::Shape`] if the number of values is wrong, [`SimError::Load`] if one is negative or infinite.
    pub fn new(
        start: Timestamp,
        step: Step,
        resources: Vec<Resource>,
        shards: Vec<ShardId>,
        steps: usize,
        mut values: Vec<f32>,
    ) -> Result<Self, SimError> {
        let want = resources.len().saturating_mul(shards.len()).saturating_mul(steps);
        if want != values.len() || want == 0 {
            let what = format!("{} resources x {} shards x {steps} steps", resources.len(), shards.len());
            return Err(SimError::Shape { got: values.len(), want, what });
        }
        for (i, lane) in values.chunks_exact_mut(steps).enumerate() {
            if let Some(value) = lane.iter().copied().find(|v| v.is_infinite() || *v < 0.0) {
                return Err(SimError::Load { shard: shards[i % shards.len()].clone(), value });
            }
            fill(lane);
        }
        Ok(Self { start, step, resources, shards, steps, values })
    }

    /// Time of the first step.
    pub fn start(&self) -> Timestamp {
        self.start
    }

    /// Length of a step.
    pub fn step(&self) -> Step {
        self.step
    }

    /// Resources, in the order of the first axis.
    pub fn resources(&self) -> &[Resource] {
        &self.resources
    }

    /// Shards, in the order of the second axis.
    pub fn shards(&self) -> &[ShardId] {
        &self.shards
    }

    /// Number of steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Beginning of a step.
    pub fn time(&self, step: usize) -> Timestamp {
        self.start.plus_steps(i64::try_from(step).unwrap_or(i64::MAX), self.step)
    }

    /// One series; empty if either index is out of range.
    pub fn lane(&self, resource: usize, shard: usize) -> &[f32] {
        if resource >= self.resources.len() || shard >= self.shards.len() {
            return &[];
        }
        let from = (resource * self.shards.len() + shard) * self.steps;
        self.values.get(from..from + self.steps).unwrap_or(&[])
    }

    /// One value; 0 past the ends.
    pub(crate) fn at(&self, resource: usize, shard: usize, step: usize) -> f32 {
        self.lane(resource, shard).get(step).copied().unwrap_or(0.0)
    }
}

fn fill(lane: &mut [f32]) {
    let mut last = lane.iter().copied().find(|v| !v.is_nan()).unwrap_or(0.0);
    for value in lane {
        if value.is_nan() {
            *value = last;
        }
        last = *value;
    }
}

/// The completed steps: all that a policy may see.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    loads: &'a SimLoads,
    steps: usize,
}

impl<'a> Seen<'a> {
    /// The first `steps` steps of loads.
    pub fn new(loads: &'a SimLoads, steps: usize) -> Self {
        Self { loads, steps: steps.min(loads.steps()) }
    }

    /// Number of completed steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Beginning of the step that comes next.
    pub fn now(&self) -> Timestamp {
        self.loads.time(self.steps)
    }

    /// Beginning of the last completed step: when scenarios are issued.
    pub fn issued_at(&self) -> Timestamp {
        self.now().plus_steps(-1, self.step())
    }

    /// Beginning of the first step.
    pub fn start(&self) -> Timestamp {
        self.loads.start()
    }

    /// Length of a step.
    pub fn step(&self) -> Step {
        self.loads.step()
    }

    /// Resources, in the order of the first axis.
    pub fn resources(&self) -> &'a [Resource] {
        self.loads.resources()
    }

    /// Shards, in the order of the second axis.
    pub fn shards(&self) -> &'a [ShardId] {
        self.loads.shards()
    }

    /// The completed steps of one series.
    pub fn lane(&self, resource: usize, shard: usize) -> &'a [f32] {
        self.loads.lane(resource, shard).get(..self.steps).unwrap_or(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(values: Vec<f32>) -> Result<SimLoads, SimError> {
        let shards = vec![ShardId::new("a").unwrap()];
        SimLoads::new(Timestamp::from_ms(0), Step::FIVE_MINUTES, vec![Resource::Cpu], shards, 4, values)
    }

    #[test]
    fn gaps_are_filled_and_the_future_is_not_seen() {
        let loads = loads(vec![f32::NAN, 2.0, f32::NAN, 3.0]).unwrap();
        assert_eq!(loads.lane(0, 0), [2.0, 2.0, 2.0, 3.0]);
        let seen = Seen::new(&loads, 3);
        assert_eq!(seen.lane(0, 0), [2.0, 2.0, 2.0]);
        assert_eq!(seen.issued_at(), Timestamp::from_ms(600_000));
        assert_eq!(seen.now(), Timestamp::from_ms(900_000));
    }

    #[test]
    fn bad_loads_are_refused() {
        assert!(matches!(loads(vec![1.0; 3]), Err(SimError::Shape { want: 4, .. })));
        assert!(matches!(loads(vec![1.0, -1.0, 0.0, 0.0]), Err(SimError::Load { value: -1.0, .. })));
    }
}
