//! Grid, choice of series, thresholds, scales and base rates on real traces against figures of the independent scorer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use foreshard_datasets::{Protocol, ReadFilter, evaluation_series, read_history};

/// What the scorer computes of one file: sums over its series.
struct Expected {
    protocol: &'static str,
    file: &'static str,
    series: usize,
    left_out: usize,
    values: usize,
    threshold: f64,
    scale: f64,
    base_rate: f64,
    issued_ms: i64,
}

#[rustfmt::skip]
const EXPECTED: [Expected; 16] = [
    Expected { protocol: "5T", file: "web_services", series: 43, left_out: 0, values: 556_836, threshold: 2052.79877, scale: 221.666955, base_rate: 12.4382239, issued_ms: 68_025_299_100_000 },
    Expected { protocol: "5T", file: "bitbrains_faststorage", series: 60, left_out: 0, values: 517_205, threshold: 1865.78283, scale: 630.053394, base_rate: 20.6863905, issued_ms: 82_724_040_000_000 },
    Expected { protocol: "5T", file: "smd", series: 10, left_out: 0, values: 94_782, threshold: 313.788351, scale: 53.5341658, base_rate: 2.32795699, issued_ms: 15_494_895_600_000 },
    Expected { protocol: "5T", file: "azure_vm_2017", series: 60, left_out: 0, values: 498_456, threshold: 1016.26307, scale: 152.115618, base_rate: 47.4719119, issued_ms: 89_138_062_800_000 },
    Expected { protocol: "5T", file: "mscloud_rate_1min", series: 5, left_out: 0, values: 15_840, threshold: 2789269.28, scale: 289674.924, base_rate: 0.809090909, issued_ms: 7_626_958_500_000 },
    Expected { protocol: "5T", file: "cluster_aggregates", series: 2, left_out: 0, values: 10_080, threshold: 110.462335, scale: 9.3409002, base_rate: 0.686254366, issued_ms: 3_074_223_000_000 },
    Expected { protocol: "5T", file: "nab_cloudwatch", series: 7, left_out: 1, values: 42_242, threshold: 183.9369, scale: 14.1776936, base_rate: 3.86712329, issued_ms: 9_774_585_000_000 },
    Expected { protocol: "15T", file: "web_services", series: 43, left_out: 0, values: 185_631, threshold: 2033.24372, scale: 211.239988, base_rate: 24.6538462, issued_ms: 68_006_697_300_000 },
    Expected { protocol: "15T", file: "bitbrains_faststorage", series: 60, left_out: 0, values: 172_773, threshold: 1818.66144, scale: 636.635562, base_rate: 34.9166667, issued_ms: 82_698_084_000_000 },
    Expected { protocol: "15T", file: "smd", series: 10, left_out: 0, values: 31_590, threshold: 289.415334, scale: 43.7932411, base_rate: 6.19230769, issued_ms: 15_490_566_000_000 },
    Expected { protocol: "15T", file: "azure_vm_2017", series: 60, left_out: 0, values: 166_152, threshold: 628.048417, scale: 116.996542, base_rate: 50.8861284, issued_ms: 89_112_106_800_000 },
    Expected { protocol: "15T", file: "mscloud_rate_1min", series: 5, left_out: 0, values: 5_280, threshold: 2769729.85, scale: 355396.058, base_rate: 2.5, issued_ms: 7_624_795_500_000 },
    Expected { protocol: "15T", file: "cluster_aggregates", series: 1, left_out: 1, values: 2_688, threshold: 52.5883417, scale: 3.29913403, base_rate: 0.613636364, issued_ms: 1_558_507_500_000 },
    Expected { protocol: "15T", file: "nab_cloudwatch", series: 7, left_out: 1, values: 14_082, threshold: 158.4956, scale: 12.1683772, base_rate: 5.28571429, issued_ms: 9_771_554_700_000 },
    Expected { protocol: "ETT_1H", file: "published/ETTh1", series: 7, left_out: 0, values: 121_940, threshold: 75.8102997, scale: 9.75963715, base_rate: 3.69642857, issued_ms: 10_625_605_200_000 },
    Expected { protocol: "ETT_1H", file: "published/ETTh2", series: 7, left_out: 0, values: 121_940, threshold: 227.263996, scale: 15.8872809, base_rate: 2.04166667, issued_ms: 10_625_605_200_000 },
];

#[test]
fn series_and_thresholds_equal_those_of_the_scorer() {
    let data = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data"));
    if !data.is_dir() {
        eprintln!("SKIPPED: no traces at {}; nothing was compared with the scorer", data.display());
        return;
    }
    for e in &EXPECTED {
        let protocol = Protocol::builtin(e.protocol).unwrap();
        let history = read_history(&data.join(format!("{}.parquet", e.file)), &ReadFilter::default()).unwrap();
        let (series, left_out) = evaluation_series(&history, &protocol);
        let name = format!("{} {}", e.protocol, e.file);
        assert_eq!((series.len(), left_out.len()), (e.series, e.left_out), "{name}");
        let known = |v: &[f32]| v.iter().filter(|v| v.is_finite()).count();
        assert_eq!(series.iter().map(|s| known(&s.series.values)).sum::<usize>(), e.values, "{name}");
        assert_eq!(series.iter().map(|s| s.issued_at(0).as_ms()).sum::<i64>(), e.issued_ms, "{name}");
        let close = |got: f64, wanted: f64, what: &str| {
            assert!((got - wanted).abs() <= 1e-6 * wanted.abs(), "{name}: {what} {got}, not {wanted}");
        };
        close(series.iter().map(|s| s.threshold(0.95)).sum(), e.threshold, "threshold");
        close(series.iter().map(|s| s.scale(s.first, protocol.season_steps())).sum(), e.scale, "scale");
        close(series.iter().map(|s| s.base_rate(s.threshold(0.95))).sum(), e.base_rate, "base rate");
        for s in &series {
            let last = s.origin(s.windows - 1) + s.horizon;
            assert_eq!(last, s.series.values.len(), "{name}: the windows end with the series");
        }
    }
}
