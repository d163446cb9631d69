//! Whether the target is near enough for the next stage: a pure decision.

use crate::Lag;

/// What is known when deciding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOverObservation {
    /// How far the target is behind after the last call.
    pub lag: Lag,
    /// Calls that applied changes in this stage before the last one.
    pub rounds: u32,
}

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CutOverLimits {
    /// How many changes the target may be behind.
    pub near_changes: u64,
    /// How many calls may be made.
    pub rounds: u32,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CutOver {
    /// Go on to the next stage.
    Go,
    /// Apply more changes.
    Wait,
    /// The target does not come nearer.
    Abort {
        /// For a person.
        why: String,
    },
}

/// Decides whether the target is near enough.
pub fn decide_cut_over(observed: &CutOverObservation, limits: &CutOverLimits) -> CutOver {
    let (behind, near) = (observed.lag.changes, limits.near_changes);
    if behind <= near {
        CutOver::Go
    } else if observed.rounds.saturating_add(1) < limits.rounds {
        CutOver::Wait
    } else {
        let why =
            format!("after {} rounds the target is still {behind} changes behind, more than {near}", limits.rounds);
        CutOver::Abort { why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Position;

    #[test]
    fn goes_when_near_and_gives_up_at_the_limit() {
        let limits = CutOverLimits { near_changes: 10, rounds: 3 };
        let decide = |changes, rounds| {
            let lag = Lag { changes, applied: Position(0) };
            decide_cut_over(&CutOverObservation { lag, rounds }, &limits)
        };
        assert_eq!(decide(10, 0), CutOver::Go);
        assert_eq!(decide(10, 99), CutOver::Go);
        assert_eq!(decide(11, 1), CutOver::Wait);
        assert!(matches!(decide(11, 2), CutOver::Abort { why } if why.contains("11 changes behind")));
    }
}
