//! Means, ratios and quantiles that say so when there is nothing to compute them from.

/// a / b; `None` unless b is positive and the result a number.
pub(crate) fn ratio(a: f64, b: f64) -> Option<f64> {
    (b > 0.0 && a.is_finite()).then(|| a / b)
}

/// The mean; `None` of nothing.
pub(crate) fn mean(values: &[f64]) -> Option<f64> {
    ratio(values.iter().sum(), values.len() as f64)
}

/// The median; `None` of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    values.get(values.len() / 2 - 1).map(|lower| lower + (upper - lower) / 2.0)
}

/// Quantile of values in rising order, linear between the two nearest; 0 of nothing.
pub(crate) fn sorted_quantile(sorted: &[f32], level: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = level.clamp(0.0, 1.0) * last as f64;
    let low = (at.floor() as usize).min(last);
    let of = |i: usize| sorted.get(i.min(last)).copied().unwrap_or(0.0);
    of(low) + (of(low + 1) - of(low)) * (at - low as f64) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_has_no_middle() {
        assert_eq!((mean(&[]), median(&[]), ratio(1.0, 0.0)), (None, None, None));
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(mean(&[1.0, 2.0]), Some(1.5));
        let quantile = |level| sorted_quantile(&[1.0, 2.0, 4.0], level);
        assert_eq!((quantile(0.0), quantile(0.75), quantile(1.0), sorted_quantile(&[], 0.5)), (1.0, 3.0, 4.0, 0.0));
    }
}
