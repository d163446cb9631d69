//! How the loop runs.

use foreshard_domain::{Consistency, Product};
use foreshard_policy::PolicySettings;

/// What the loop may do by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Plan, check, record; move nothing.
    #[default]
    Advise,
    /// Plan, check, record, and carry out accepted plans.
    Auto,
}

impl Mode {
    /// Its name in files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Advise => "advise",
            Mode::Auto => "auto",
        }
    }
}

/// Settings of [`crate::ControlLoop`]. Times are model time.
#[derive(Debug, Clone, PartialEq)]
pub struct LoopSettings {
    /// What it may do.
    pub mode: Mode,
    /// Name under which it takes the lead.
    pub holder: String,
    /// How often engines are observed, milliseconds.
    pub observe_every_ms: i64,
    /// How often a plan is made, milliseconds.
    pub plan_every_ms: i64,
    /// Which product the plan rests on.
    pub product: Product,
    /// Scenarios asked for each plan.
    pub scenarios: usize,
    /// Seed of scenarios and plans; the round's number is mixed in.
    pub seed: u64,
    /// Guarantee of the moves that it starts.
    pub consistency: Consistency,
    /// How late a move may still start, milliseconds; then the next plan decides.
    pub lateness_ms: i64,
    /// Observations kept while serving cannot be reached.
    pub buffer_rows: usize,
    /// Observations handed over in one call.
    pub ingest_batch: usize,
    /// What the planner wants and may do.
    pub policy: PolicySettings,
}

impl Default for LoopSettings {
    fn default() -> Self {
        Self {
            mode: Mode::Advise,
            holder: "control".to_owned(),
            observe_every_ms: 60_000,
            plan_every_ms: 300_000,
            product: Product::NextHours,
            scenarios: 100,
            seed: 1,
            consistency: Consistency::Strict,
            lateness_ms: 900_000,
            // A day of 1,000 shards at five minutes: some 50 MB.
            buffer_rows: 288_000,
            ingest_batch: 4096,
            policy: PolicySettings::default(),
        }
    }
}

/// One thing wrong with [`LoopSettings`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("control setting {name} is {value}; it must be {must}")]
pub struct BadSetting {
    /// Which one.
    pub name: &'static str,
    /// What it is.
    pub value: String,
    /// What it may be.
    pub must: &'static str,
}

impl LoopSettings {
    /// Everything that is wrong, the policy's own settings included.
    pub fn problems(&self) -> Vec<BadSetting> {
        let mut found = Vec::new();
        let positive = |name, value: i64| BadSetting { name, value: value.to_string(), must: "positive" };
        let times = [("observe_every_ms", self.observe_every_ms), ("plan_every_ms", self.plan_every_ms)];
        found.extend(times.into_iter().filter(|(_, value)| *value <= 0).map(|(name, value)| positive(name, value)));
        let counts =
            [("scenarios", self.scenarios), ("buffer_rows", self.buffer_rows), ("ingest_batch", self.ingest_batch)];
        found.extend(counts.into_iter().filter(|(_, value)| *value == 0).map(|(name, _)| positive(name, 0)));
        if self.lateness_ms < 0 {
            let value = self.lateness_ms.to_string();
            found.push(BadSetting { name: "lateness_ms", value, must: "zero or more" });
        }
        let policy = self.policy.validate().err().unwrap_or_default();
        found.extend(policy.into_iter().map(|e| BadSetting {
            name: e.name,
            value: e.value.to_string(),
            must: e.wanted,
        }));
        if self.holder.is_empty() {
            found.push(BadSetting { name: "holder", value: "empty".to_owned(), must: "a name" });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_at_once() {
        assert_eq!(LoopSettings::default().problems(), []);
        let policy = PolicySettings { confidence: 1.5, ..PolicySettings::default() };
        let bad =
            LoopSettings { observe_every_ms: 0, scenarios: 0, lateness_ms: -1, policy, ..LoopSettings::default() };
        let names: Vec<&str> = bad.problems().iter().map(|p| p.name).collect();
        assert_eq!(names, ["observe_every_ms", "scenarios", "lateness_ms", "confidence"]);
    }
}
