//! Which versions of a model are in use, and what a change of labels does.

use serde::{Deserialize, Serialize};

/// The labels of a model. A version that bears one is never deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Labels {
    /// The version that serves.
    pub champion: Option<u64>,
    /// The newest version, while it is not champion.
    pub challenger: Option<u64>,
    /// The champion before: where a rollback goes.
    pub last_good: Option<u64>,
}

impl Labels {
    /// Labels after a version was published, whether or not it serves.
    #[must_use]
    pub fn with_challenger(self, number: u64) -> Self {
        let challenger = (self.champion != Some(number)).then_some(number);
        Self { challenger, ..self }
    }

    /// Labels after `number` became champion: the champion before becomes `last_good`.
    #[must_use]
    pub fn promoted(self, number: u64) -> Self {
        if self.champion == Some(number) {
            return self;
        }
        let challenger = self.challenger.filter(|n| *n != number);
        Self { champion: Some(number), challenger, last_good: self.champion.or(self.last_good) }
    }

    /// Labels after the champion was withdrawn in favour of `last_good`; `None` where there is nothing to go back to.
    #[must_use]
    pub fn rolled_back(self) -> Option<Self> {
        let back = self.last_good.filter(|n| self.champion != Some(*n))?;
        Some(Self { champion: Some(back), challenger: self.challenger.filter(|n| *n != back), last_good: Some(back) })
    }

    /// Whether a version bears a label.
    pub fn names(&self, number: u64) -> bool {
        [self.champion, self.challenger, self.last_good].contains(&Some(number))
    }

    /// The labels that a version bears.
    pub fn of(&self, number: u64) -> Vec<&'static str> {
        let all = [("champion", self.champion), ("challenger", self.challenger), ("last_good", self.last_good)];
        all.into_iter().filter(|(_, n)| *n == Some(number)).map(|(name, _)| name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn promotion_remembers_the_champion_before() {
        let labels = Labels::default().with_challenger(1).promoted(1);
        assert_eq!(labels, Labels { champion: Some(1), challenger: None, last_good: None });
        assert_eq!(labels.rolled_back(), None);
        let labels = labels.with_challenger(2).promoted(2);
        assert_eq!(labels, Labels { champion: Some(2), challenger: None, last_good: Some(1) });
        assert_eq!(labels.promoted(2), labels);
        assert_eq!(labels.with_challenger(2), labels);
        assert_eq!(labels.of(1), ["last_good"]);
    }

    #[test]
    fn rollback_goes_back_once() {
        let labels = Labels { champion: Some(3), challenger: Some(2), last_good: Some(2) };
        let back = labels.rolled_back().unwrap();
        assert_eq!(back, Labels { champion: Some(2), challenger: None, last_good: Some(2) });
        assert_eq!(back.rolled_back(), None);
        // The version that was withdrawn is not where the next rollback goes.
        assert_eq!(back.promoted(4).last_good, Some(2));
    }
}
