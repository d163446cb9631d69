//! Numbers and names as a reader wants them.

/// Text that is safe inside HTML, in elements and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

/// A figure with four decimals, or a dash where there is none.
pub(crate) fn figure(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| "–".to_owned(), |v| format!("{v:.4}"))
}

/// A share in percent with one decimal, or a dash.
pub(crate) fn percent(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map_or_else(|| "–".to_owned(), |v| format!("{:.1} %", v * 100.0))
}

/// A number on an axis: as many digits as its distance to the next needs, thousands as k, M, G.
pub(crate) fn tick(value: f64, distance: f64) -> String {
    let (factor, unit) = match distance.abs().max(value.abs() / 100.0) {
        d if d >= 1e9 => (1e9, "G"),
        d if d >= 1e6 => (1e6, "M"),
        d if d >= 1e3 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let digits = (0..=6).find(|n| distance / factor * 10f64.powi(*n) >= 0.999).unwrap_or(6);
    let digits = usize::try_from(digits).unwrap_or(0);
    let text = format!("{:.digits$}{unit}", value / factor);
    if text.trim_start_matches('-').chars().all(|c| c == '0' || c == '.') { text.replace('-', "") } else { text }
}

/// A length of time in minutes as minutes, hours or days.
pub(crate) fn duration(minutes: f64) -> String {
    let number = |v: f64| {
        let text = format!("{v:.1}");
        text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
    };
    match minutes.abs() {
        m if m < 60.0 => format!("{} min", number(minutes)),
        m if m < 48.0 * 60.0 => format!("{} h", number(minutes / 60.0)),
        _ => format!("{} d", number(minutes / 1440.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(escape("<a href='x'>&\""), "&lt;a href=&#39;x&#39;&gt;&amp;&quot;");
    }

    #[test]
    fn ticks_have_the_digits_they_need() {
        let cases = [(0.5, 0.2, "0.5"), (20.0, 10.0, "20"), (2500.0, 500.0, "2500"), (4000.0, 2000.0, "4k")];
        for (value, distance, text) in cases {
            assert_eq!(tick(value, distance), text);
        }
        assert_eq!(tick(-0.0, 0.1), "0.0");
    }

    #[test]
    fn durations_and_missing_figures() {
        assert_eq!(duration(15.0), "15 min");
        assert_eq!(duration(60.0), "1 h");
        assert_eq!(duration(240.0), "4 h");
        assert_eq!(duration(10_080.0), "7 d");
        assert_eq!(figure(Some(f64::NAN)), "–");
        assert_eq!(percent(Some(0.7968)), "79.7 %");
    }
}
