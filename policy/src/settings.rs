//! What the planner is told to aim at and what it must not exceed.

use serde::{Deserialize, Serialize};

/// Which rules may ask for moves; constraints always may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RuleSwitches {
    /// P(load > limit) over the confidence.
    pub threshold: bool,
    /// Expected gain over expected cost.
    pub cost_benefit: bool,
    /// Predicted loads of two nodes differ markedly.
    pub proactive_balancing: bool,
    /// Predicted over one threshold and current over another.
    pub reactive: bool,
}

impl Default for RuleSwitches {
    fn default() -> Self {
        Self { threshold: true, cost_benefit: true, proactive_balancing: true, reactive: true }
    }
}

/// How far the search looks; what it leaves out is counted in the plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SearchLimits {
    /// Shards of one node that are tried, those that relieve it most first.
    pub shards_per_node: usize,
    /// Targets that are tried for one shard, the least loaded first.
    pub targets_per_shard: usize,
    /// Targets of one shard that a plan lists; the others are counted.
    pub listed_targets: usize,
    /// Pairs of moves that are looked at where no single move is worth it; 0 for none.
    pub pairs: usize,
    /// How often the search is tried again at most, each time without one of the moves that it chose first; the best plan
    /// counts. It is tried again only where the first plan leaves something to gain.
    pub repeats: usize,
    /// Evaluations that all these tries may take together; a search that takes more is not tried again.
    pub repeat_evaluations: usize,
}

impl Default for SearchLimits {
    fn default() -> Self {
        Self {
            shards_per_node: 32,
            targets_per_shard: 16,
            listed_targets: 3,
            pairs: 2000,
            repeats: 8,
            repeat_evaluations: 300,
        }
    }
}

/// Share of a capacity below it from which on a load begins to count as over: what a step of the charge at capacity itself
/// would hang on is the rounding of sums.
pub(crate) const NEARLY: f64 = 0.02;

/// Settings of the planner. Shares are of a node's capacity: 1 is full. Costs and gains are in overload minutes: load
/// over the limit, as share of capacity, integrated over minutes and summed over resources, and a part of every minute over
/// capacity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// Share of capacity above which load counts as excess.
    pub limit: f64,
    /// What a minute over capacity counts beside its excess, however small that is: those who wait feel that a node is over,
    /// and only then by how much. Reached linearly over the last fiftieth below capacity, by resource. 0: excess alone.
    pub minute_weight: f64,
    /// Probability of being over the limit above which the threshold rule asks for a move.
    pub confidence: f64,
    /// Quantile over scenarios at which no plan may put a node over capacity.
    pub capacity_quantile: f64,
    /// Which rules may ask.
    pub rules: RuleSwitches,
    /// Reactive rule: predicted share (peak of the mean over scenarios) that must be exceeded.
    pub overload_threshold: f64,
    /// Reactive rule: share that the load last observed must exceed.
    pub high_utilisation_threshold: f64,
    /// Balancing rule: least difference of the predicted mean shares of two nodes.
    pub balance_difference: f64,
    /// Share above the mean of the cluster from which on imbalance is charged.
    pub balance_band: f64,
    /// Overload minutes charged per minute of a full node's load above the band; unused with the balancing rule off.
    pub balance_weight: f64,
    /// Least gain over the cost that is worth a move.
    pub min_gain: f64,
    /// The gain must exceed the cost by this share of it as well.
    pub hysteresis: f64,
    /// How long after a move its nodes must keep within capacity at the capacity quantile, model milliseconds; never less than
    /// until its shard could have moved again (its cool-down and another copy). What lies behind that is charged and left
    /// to later plans. 0: to the end of the window, however long it is.
    pub capacity_window_ms: i64,
    /// What comes late can still be put right by a later plan. Overload counts in full for as long as a shard that moves now
    /// is bound to its target (`cool_down_shard_ms`), then half after each such time, model milliseconds; 0: in full
    /// however far ahead.
    pub foresight_half_life_ms: i64,
    /// Overload minutes charged for each move as such.
    pub churn_weight: f64,
    /// Overload minutes charged per MiB/s sent over one millisecond of latency, for the planning window.
    pub communication_weight: f64,
    /// Overload minutes charged for each shard that is not where the ring would have it, for the planning window.
    pub home_weight: f64,
    /// Copies at once in the cluster.
    pub moves_in_flight: usize,
    /// Copies at once on one node, as source or target.
    pub moves_per_node: usize,
    /// Moves in one plan.
    pub moves_per_plan: usize,
    /// How long a shard stays after it moved, model milliseconds.
    pub cool_down_shard_ms: i64,
    /// How long a node takes no other shard after one arrived, model milliseconds.
    pub cool_down_node_ms: i64,
    /// Whether a node that is over its limit at the capacity quantile, or draining, may carry the copies of shards that
    /// leave it even where they put it over capacity. Without it a node that runs hot could never be relieved by a copy
    /// that costs what is short; the copies are charged in any case.
    pub relief_copies: bool,
    /// How far the search looks.
    pub search: SearchLimits,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            limit: 1.0,
            minute_weight: 0.1,
            confidence: 0.5,
            capacity_quantile: 0.9,
            rules: RuleSwitches::default(),
            overload_threshold: 1.0,
            high_utilisation_threshold: 0.8,
            balance_difference: 0.3,
            balance_band: 0.15,
            balance_weight: 0.1,
            min_gain: 0.5,
            hysteresis: 0.1,
            capacity_window_ms: 14_400_000,
            foresight_half_life_ms: 7_200_000,
            churn_weight: 0.25,
            communication_weight: 0.01,
            home_weight: 1.0,
            moves_in_flight: 2,
            moves_per_node: 2,
            moves_per_plan: 8,
            cool_down_shard_ms: 3_600_000,
            cool_down_node_ms: 0,
            relief_copies: true,
            search: SearchLimits::default(),
        }
    }
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("setting {name} is {value}, it must be {wanted}")]
pub struct SettingsError {
    /// Which.
    pub name: &'static str,
    /// Its value.
    pub value: f64,
    /// What would do.
    pub wanted: &'static str,
}

impl PolicySettings {
    /// Checks every setting.
    ///
    /// # Errors
    /// All settings that are out of range.
    pub fn validate(&self) -> Result<(), Vec<SettingsError>> {
        let mut errors = Vec::new();
        let mut want = |ok: bool, name, value: f64, wanted| {
            if !ok {
                errors.push(SettingsError { name, value, wanted });
            }
        };
        for (name, value) in [
            ("limit", self.limit),
            ("overload_threshold", self.overload_threshold),
            ("high_utilisation_threshold", self.high_utilisation_threshold),
            ("balance_difference", self.balance_difference),
        ] {
            want(value.is_finite() && value > 0.0, name, value, "a positive number");
        }
        for (name, value) in [
            ("balance_band", self.balance_band),
            ("balance_weight", self.balance_weight),
            ("min_gain", self.min_gain),
            ("hysteresis", self.hysteresis),
            ("churn_weight", self.churn_weight),
            ("communication_weight", self.communication_weight),
            ("home_weight", self.home_weight),
        ] {
            want(value.is_finite() && value >= 0.0, name, value, "a number that is not negative");
        }
        // Beyond it the excess would be lost in the rounding of the sums that both go into.
        let weight = self.minute_weight;
        want((0.0..=100.0).contains(&weight), "minute_weight", weight, "a number from 0 to 100");
        want((0.0..1.0).contains(&self.confidence), "confidence", self.confidence, "at least 0 and below 1");
        let q = self.capacity_quantile;
        want(q > 0.0 && q <= 1.0, "capacity_quantile", q, "above 0 and at most 1");
        for (name, value) in [
            ("moves_in_flight", self.moves_in_flight),
            ("moves_per_node", self.moves_per_node),
            ("moves_per_plan", self.moves_per_plan),
            ("search.shards_per_node", self.search.shards_per_node),
            ("search.targets_per_shard", self.search.targets_per_shard),
            ("search.listed_targets", self.search.listed_targets),
        ] {
            want(value > 0, name, value as f64, "at least 1");
        }
        for (name, ms) in [
            ("capacity_window_ms", self.capacity_window_ms),
            ("foresight_half_life_ms", self.foresight_half_life_ms),
            ("cool_down_shard_ms", self.cool_down_shard_ms),
            ("cool_down_node_ms", self.cool_down_node_ms),
        ] {
            want(ms >= 0, name, ms as f64, "a time that is not negative");
        }
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    /// How much a minute of overload counts that is this far ahead.
    pub(crate) fn counts(&self, ahead_ms: i64) -> f64 {
        let late = ahead_ms.saturating_sub(self.cool_down_shard_ms).max(0);
        match self.foresight_half_life_ms {
            0 => 1.0,
            half => (-(late as f64) / half as f64).exp2(),
        }
    }

    /// What a minute at this share of a capacity is charged: the excess over the limit, and being over at all.
    pub(crate) fn charge(&self, share: f64) -> f64 {
        let nearly = (share - (1.0 - NEARLY)).clamp(0.0, NEARLY) / NEARLY;
        (share - self.limit).max(0.0) + self.minute_weight * nearly
    }

    /// What a move that costs `cost` must gain to be worth it.
    pub fn needed(&self, cost: f64) -> f64 {
        cost * (1.0 + self.hysteresis) + self.min_gain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_all_errors_come_at_once() {
        PolicySettings::default().validate().unwrap();
        let bad = PolicySettings {
            limit: 0.0,
            confidence: 1.0,
            capacity_quantile: f64::NAN,
            min_gain: -1.0,
            moves_in_flight: 0,
            cool_down_node_ms: -1,
            ..PolicySettings::default()
        };
        let names: Vec<_> = bad.validate().unwrap_err().into_iter().map(|e| e.name).collect();
        assert_eq!(
            names,
            ["limit", "min_gain", "confidence", "capacity_quantile", "moves_in_flight", "cool_down_node_ms"]
        );
    }

    #[test]
    fn unknown_keys_are_errors_and_missing_ones_defaults() {
        assert!(serde_json::from_str::<PolicySettings>(r#"{"limt": 1.0}"#).is_err());
        let some: PolicySettings = serde_json::from_str(r#"{"rules": {"reactive": false}, "limit": 0.9}"#).unwrap();
        assert!(!some.rules.reactive && some.rules.threshold && some.limit == 0.9 && some.confidence == 0.5);
    }
}
