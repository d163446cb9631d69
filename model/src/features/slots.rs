//! The same time of day on earlier days.

/// Days over which a slot is summarised.
pub(super) const SLOT_DAYS: usize = 7;

/// Summaries of every slot of a season over the last seven seasons, by phase: phase 0 is the first step after the origin.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Mean by phase.
    pub mean: Vec<f32>,
    /// Standard deviation by phase.
    pub spread: Vec<f32>,
    /// Maximum by phase.
    pub highest: Vec<f32>,
    /// Mean over the neighbouring slots, by phase, around the clock.
    pub smooth: Vec<f32>,
}

impl Slots {
    /// Summarises the last seven seasons of `z`, which must be at least that long.
    pub(super) fn fill(&mut self, z: &[f32], season: usize, half: usize) {
        let week = z.get(z.len().saturating_sub(season * SLOT_DAYS)..).unwrap_or(&[]);
        for (column, start) in [(&mut self.mean, 0.0), (&mut self.spread, 0.0), (&mut self.highest, f32::NEG_INFINITY)]
        {
            column.clear();
            column.resize(season, start);
        }
        for day in week.chunks_exact(season) {
            for ((mean, highest), v) in self.mean.iter_mut().zip(&mut self.highest).zip(day) {
                *mean += v / SLOT_DAYS as f32;
                *highest = highest.max(*v);
            }
        }
        for day in week.chunks_exact(season) {
            for ((spread, mean), v) in self.spread.iter_mut().zip(&self.mean).zip(day) {
                *spread += (v - mean) * (v - mean) / SLOT_DAYS as f32;
            }
        }
        self.spread.iter_mut().for_each(|s| *s = s.sqrt());
        self.smooth.clear();
        let width = (2 * half + 1).min(season);
        // A running sum around the clock, restarted from the exact terms so that errors cannot pile up.
        for phase in 0..season {
            let total: f32 = (0..width).map(|k| self.at(&self.mean, phase + season + k - half.min(season))).sum();
            self.smooth.push(total / width as f32);
        }
    }

    fn at(&self, column: &[f32], phase: usize) -> f32 {
        column.get(phase % column.len().max(1)).copied().unwrap_or(0.0)
    }

    /// The slot mean at a phase, around the clock.
    pub(super) fn mean_at(&self, phase: usize) -> f32 {
        self.at(&self.mean, phase)
    }

    /// Mean residual of the last `n` values against their slots without themselves, newest last in `z`.
    pub(super) fn residual(&self, z: &[f32], n: usize) -> f32 {
        let season = self.mean.len().max(1);
        let recent = z.get(z.len().saturating_sub(n)..).unwrap_or(&[]);
        let count = recent.len().max(1);
        let slot = |i: usize| self.mean_at(season * (count / season + 1) - count + i);
        let total: f32 = recent.iter().enumerate().map(|(i, v)| v - slot(i)).sum();
        // The slot mean holds the value itself as one of seven; against the other six the residual is 7/6 as large.
        total / count as f32 * (SLOT_DAYS as f32 / (SLOT_DAYS - 1) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summarises_by_phase() {
        let season = 4;
        let z: Vec<f32> = (0..32).map(|i| (i % 4) as f32 + if i / 4 == 7 { 7.0 } else { 0.0 }).collect();
        let mut slots = Slots::default();
        slots.fill(&z, season, 1);
        for phase in 0..4 {
            assert!((slots.mean[phase] - (phase as f32 + 1.0)).abs() < 1e-6);
            assert_eq!(slots.highest[phase], phase as f32 + 7.0);
            assert!((slots.spread[phase] - 6f32.sqrt()).abs() < 1e-5);
        }
        // Neighbours of phase 0 are 3 and 1: (4 + 1 + 2) / 3.
        assert!((slots.smooth[0] - 7.0 / 3.0).abs() < 1e-6);
        // The last day stood 7 above the other six.
        assert!((slots.residual(&z, 3) - 7.0).abs() < 1e-5);
        assert!((slots.residual(&z, 4) - 7.0).abs() < 1e-5);
    }
}
