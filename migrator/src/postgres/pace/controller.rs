//! From what is seen to bytes per second: pure. Faster while nobody suffers, slower at once if somebody does.
//!
//! It begins slowly and grows by half with each look until somebody suffers for the first time; from then on it grows by little and
//! shrinks by a share. It grows only while what it allows is used: an allowance that nobody uses would have to be taken back for
//! long before anything became slower.

/// Bytes per second to begin with.
const START: f64 = 8e6;
/// Growth of each look, until somebody suffers for the first time.
const FIRST_GROWTH: f64 = 1.5;
/// Growth of each look afterwards: so many bytes per second, or so large a share.
const STEP: f64 = 250e3;
const STEP_SHARE: f64 = 0.02;
/// Shrinks to no less than this share at once.
const HALF: f64 = 0.5;
/// Where it stops growing: so far of the way from no slowdown to the target.
const NEAR: f64 = 0.6;
/// The allowance counts as used from this share on.
const USED: f64 = 0.7;
/// Looks after a decrease in which it is not decreased again: it takes effect first.
const SETTLES: u32 = 2;
/// A rest comes after so many looks, and has at most so many until it is known what statements take at rest.
const REST_AFTER: u32 = 30;
const LONGEST_REST: u32 = 4;
/// From this share of the limit on of what our slot keeps back, latency no longer slows the copy: giving the move up would
/// cost clients all of it once more.
const HURRY: f64 = 0.5;

/// What is to be held.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Targets {
    /// Clients' statements may take so many times what they take at rest.
    pub slowdown: f64,
    /// Readers of the logs may be later than before by so many seconds.
    pub lag_s: f64,
    /// Least bytes per second, whatever is seen.
    pub floor: f64,
}

/// What a look has seen.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Seen {
    /// Statements of clients since the last look; `None` if it is not known.
    pub statements: Option<f64>,
    /// Whether it is known what statements take at rest.
    pub knows_rest: bool,
    /// What they take in units of that.
    pub slowdown: Option<f64>,
    /// How much later than before the latest reader of a log is, seconds.
    pub lag_s: f64,
    /// What our slot keeps back, as share of what it may.
    pub backlog: f64,
    /// Bytes per second since the last look.
    pub used: f64,
    /// Most bytes per second.
    pub ceiling: f64,
}

/// What holds the pace where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// Nothing: it grows, or is as fast as servers and network are.
    Nothing,
    /// The statements of clients.
    Clients,
    /// Standbys or other readers of the logs.
    Lag,
    /// A cap of the settings.
    Cap,
}

impl Limit {
    /// Its name for a log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Clients => "clients",
            Self::Lag => "lag",
            Self::Cap => "cap",
        }
    }
}

/// The pace from now on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Order {
    /// Nothing is to flow, so that it can be seen what statements take at rest.
    pub rest: bool,
    /// Bytes per second; infinite for no limit.
    pub rate: f64,
    pub limit: Limit,
    /// Whether this look has decreased it.
    pub slower: bool,
}

/// The state of the loop.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Controller {
    targets: Targets,
    order: Order,
    is_first_growth: bool,
    /// Looks for which it is not decreased again.
    settles: u32,
    /// Looks since the last rest, or in it.
    looks: u32,
    has_clients: bool,
}

impl Controller {
    /// It rests first.
    pub fn new(targets: Targets) -> Self {
        let order = Order { rest: true, rate: START, limit: Limit::Nothing, slower: false };
        Self { targets, order, is_first_growth: true, settles: 0, looks: 0, has_clients: false }
    }

    /// What was ordered last.
    pub fn order(&self) -> Order {
        self.order
    }

    /// What follows from a look.
    pub fn look(&mut self, seen: &Seen) -> Order {
        self.looks = self.looks.saturating_add(1);
        let ceiling = if seen.ceiling.is_nan() { f64::INFINITY } else { seen.ceiling.max(1.0) };
        let asks = seen.statements.is_some_and(|statements| statements > 0.0);
        self.order.slower = false;
        if self.order.rest {
            let is_over = !asks || seen.knows_rest || self.looks >= LONGEST_REST;
            self.has_clients = asks;
            if !is_over {
                return self.order;
            }
            (self.order.rest, self.looks) = (false, 0);
            self.order.rate = self.order.rate.min(ceiling);
            if seen.statements == Some(0.0) {
                self.order.rate = ceiling;
            }
            return self.order;
        }
        let first = asks && !self.has_clients;
        self.has_clients = asks || self.has_clients && self.looks < REST_AFTER;
        self.adjust(seen, ceiling, asks);
        self.settles = self.settles.saturating_sub(1);
        if first || self.has_clients && self.looks >= REST_AFTER {
            (self.order.rest, self.looks) = (true, 0);
        }
        self.order
    }

    fn adjust(&mut self, seen: &Seen, ceiling: f64, asks: bool) {
        let Targets { slowdown: target, lag_s, floor } = self.targets;
        let slowdown = seen.slowdown.unwrap_or(0.0);
        let rate = self.order.rate;
        let (next, limit) = if seen.lag_s > lag_s {
            (self.decreased(seen.used, HALF), Limit::Lag)
        } else if slowdown > target && seen.backlog < HURRY {
            (self.decreased(seen.used, (target / slowdown).clamp(HALF, 0.9)), Limit::Clients)
        } else if seen.statements == Some(0.0) && !self.has_clients {
            self.is_first_growth = true;
            (ceiling, Limit::Nothing)
        } else if slowdown > 1.0 + (target - 1.0) * NEAR {
            (rate, Limit::Clients)
        } else if asks && seen.slowdown.is_none() {
            // Nothing is known yet: a little faster at most, and never so much that it could not be taken back.
            let grown = if seen.used >= rate * USED { rate + STEP } else { rate };
            (grown.min((seen.used * 2.0).max(START)), Limit::Clients)
        } else if seen.used >= rate * USED {
            let step = if self.is_first_growth { rate * (FIRST_GROWTH - 1.0) } else { STEP.max(rate * STEP_SHARE) };
            (rate + step, Limit::Nothing)
        } else {
            (rate, Limit::Nothing)
        };
        let held = next.max(floor).min(ceiling);
        self.order.slower = held < rate;
        let capped = ceiling.is_finite() && held >= ceiling;
        self.order.limit = if capped && limit == Limit::Nothing { Limit::Cap } else { limit };
        self.order.rate = held;
    }

    fn decreased(&mut self, used: f64, by: f64) -> f64 {
        let rate = self.order.rate;
        if self.settles > 0 {
            return rate;
        }
        self.settles = SETTLES + 1;
        self.is_first_growth = false;
        // What was allowed and not used did not make anybody suffer.
        rate.min(used.max(1.0)) * by
    }
}

#[cfg(test)]
mod tests;
