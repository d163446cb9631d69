//! Filling gaps with values from before them.

/// A series without gaps, filled causally, and where it was observed.
///
/// A missing value takes the one a season earlier, else the previous one; only a gap at the very beginning takes the
/// first value observed. Filling a longer series never changes what stands before its old end, so features computed
/// during training and during service agree to the bit.
#[derive(Debug, Clone)]
pub struct Filled {
    values: Vec<f32>,
    /// Number of observed values before each index; one longer than `values`.
    observed_before: Vec<u32>,
}

impl Filled {
    /// Fills a series; without any finite value everything becomes 0.
    pub fn new(raw: &[f32], season_steps: usize) -> Self {
        let first = raw.iter().copied().find(|v| v.is_finite()).unwrap_or(0.0);
        let mut values: Vec<f32> = Vec::with_capacity(raw.len());
        let mut observed_before = Vec::with_capacity(raw.len() + 1);
        let mut observed = 0u32;
        observed_before.push(0);
        for (i, v) in raw.iter().enumerate() {
            let value = if v.is_finite() {
                observed = observed.saturating_add(1);
                *v
            } else {
                let season = i.checked_sub(season_steps).and_then(|j| values.get(j));
                season.or(values.last()).copied().unwrap_or(first)
            };
            values.push(value);
            observed_before.push(observed);
        }
        Self { values, observed_before }
    }

    /// The values, finite throughout.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// How many of the values in `from..to` were observed; indices past the end count as the end.
    pub fn observed(&self, from: usize, to: usize) -> usize {
        let at = |i: usize| self.observed_before.get(i.min(self.values.len())).copied().unwrap_or(0);
        usize::try_from(at(to).saturating_sub(at(from.min(to)))).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAN: f32 = f32::NAN;

    #[test]
    fn takes_the_season_then_the_previous_value() {
        let filled = Filled::new(&[NAN, 2.0, NAN, 4.0, 5.0, NAN], 3);
        assert_eq!(filled.values(), [2.0, 2.0, 2.0, 4.0, 5.0, 2.0]);
        assert_eq!((filled.observed(0, 6), filled.observed(3, 5), filled.observed(5, 99)), (3, 2, 0));
        assert_eq!(Filled::new(&[NAN, NAN], 3).values(), [0.0, 0.0]);
    }

    #[test]
    fn d1_filling_more_never_changes_what_stands_before() {
        let raw: Vec<f32> = (0..50).map(|i| if i % 7 < 2 { NAN } else { i as f32 }).collect();
        let all = Filled::new(&raw, 12);
        for end in 10..50 {
            assert_eq!(Filled::new(&raw[..end], 12).values(), &all.values()[..end]);
        }
    }
}
