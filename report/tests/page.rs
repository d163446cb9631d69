//! The page as a reader gets it: complete, self-contained, and safe against any name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_domain::{
    ClassFigure, Contender, ContenderRole, EvaluationSection, EventFigures, EventScores, Fact, FanWindow, GateVerdict,
    LevelFigure, LossRatio, Metric, NodeRiskFigures, QuantileForecast, QuantileLevels, RiskBin, Scores, SeriesClass,
    ShardId, Step, StepsFigure, Timestamp,
};
use foreshard_report::{ReportData, evaluation_html};

fn scores(wql: f64) -> Scores {
    let blocks = |value: f64| {
        [(1, 3), (4, 12), (13, 24), (25, 48)]
            .map(|(first, last)| StepsFigure { first, last, value: Some(value) })
            .to_vec()
    };
    let event = EventFigures { p_any: Some(0.05), independent: 0.2, max_marginal: 0.09, climatology: 0.11 };
    Scores {
        series: 60,
        windows: 12,
        horizon: 48,
        points: 34_000,
        missing_points: 560,
        wql: Some(wql),
        sql: Some(wql * 6.0),
        sql_median: Some(wql * 5.0),
        sql_geo: Some(wql * 5.5),
        mase: Some(wql * 7.0),
        mase_median: None,
        series_without_scale: 1,
        coverage_80: Some(0.78),
        width_80: Some(0.31),
        wql_by_level: Vec::new(),
        below_by_level: [0.1, 0.5, 0.9].map(|level| LevelFigure { level, value: level * 0.9 + 0.03 }).to_vec(),
        wql_by_steps: blocks(wql),
        coverage_by_steps: blocks(0.78),
        wql_by_class: [(SeriesClass::Rhythmic, 41, 1.0), (SeriesClass::Erratic, 19, 1.7)]
            .map(|(class, series, factor)| ClassFigure { class, series, value: Some(wql * factor) })
            .to_vec(),
        event: Some(EventScores { windows: 700, rate: 0.13, brier: event, mean_probability: event }),
    }
}

fn fan() -> FanWindow {
    let levels = QuantileLevels::standard();
    let wave = |i: f32| 40.0 + 20.0 * (i / 12.0).sin();
    let spread = [-9.0, -7.0, -5.0, -4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0, 5.0, 7.0, 9.0f32];
    let rows = (0..48).flat_map(|i| spread.map(|s| wave(i as f32) + s * (1.0 + i as f32 / 24.0)));
    let missing = |i: usize, v: f32| (!(30..34).contains(&i)).then_some(v);
    FanWindow {
        caption: "median window".into(),
        shard: ShardId::new("orders <eu>").unwrap(),
        metric: Metric::CpuUtil,
        issued_at: Timestamp::from_ms(1_700_000_000_000 / 300_000 * 300_000),
        step: Step::FIVE_MINUTES,
        history: (0..96).map(|i| Some(wave(i as f32 - 96.0))).collect(),
        actual: (0..48).map(|i| missing(i, wave(i as f32) + 3.0 * (i as f32 * 1.7).sin())).collect(),
        forecast: QuantileForecast::new(levels, rows.collect()).unwrap(),
        wql: Some(0.0712),
    }
}

fn data() -> ReportData {
    let contender = |name: &str, role, wql| {
        let other = role != ContenderRole::Subject;
        let subject_to_it = other.then_some(LossRatio { ratio: 0.108 / wql, low: 0.7, high: 0.9666 });
        Contender { name: name.into(), role, scores: scores(wql), subject_to_it }
    };
    ReportData {
        title: "lstm/7 <script>alert(1)</script>".into(),
        provenance: vec![Fact { name: "trained until".into(), value: "2024-05-01T00:00:00Z".into() }],
        verdict: Some(GateVerdict { promoted: true, reasons: vec!["WQL .771 of seasonal naive".into()] }),
        sections: vec![EvaluationSection {
            node_risk: Some(NodeRiskFigures {
                groups: 200,
                windows: 2400,
                observed: 0.31,
                joint: 0.0912,
                independent: 0.171,
                max_marginal: 0.133,
                bins: vec![RiskBin { windows: 420, predicted: 0.127, observed: 0.118 }],
            }),
            name: "next_hours, cpu_util".into(),
            step: Step::FIVE_MINUTES,
            contenders: vec![
                contender("lstm/7", ContenderRole::Subject, 0.108),
                contender("lstm/6", ContenderRole::Champion, 0.112),
                contender("seasonal naive", ContenderRole::SeasonalNaive, 0.14),
                contender("last value", ContenderRole::Rival, 0.19),
            ],
            fans: vec![fan(), fan()],
        }],
        notes: vec!["shard x left out: too short".into()],
    }
}

#[test]
fn everything_is_on_the_page() {
    let html = evaluation_html(&data());
    for text in [
        "lstm/6",
        "0.771 ▼",
        "1.357 ▲",
        "78.0 %",
        "Promoted",
        "trained until",
        "shard x left out",
        "<svg",
        "0.0912",
        "12.7 %",
        "0.771 (0.700 – 0.967)",
        "erratic (19)",
        "0.1836",
    ] {
        assert!(html.contains(text), "{text}");
    }
    assert_eq!(html.matches("<figure>").count(), 5);
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
}

#[test]
fn nothing_is_loaded_and_names_are_only_text() {
    let html = evaluation_html(&data());
    for text in ["<script", "http:", "https:", "src=", "@import", "url(", "orders <eu>", "NaN", "inf"] {
        assert!(!html.contains(text), "{text}");
    }
    assert!(html.contains("orders &lt;eu&gt;") && html.contains("&lt;script&gt;"));
}

#[test]
fn an_empty_report_is_a_page_too() {
    let empty = ReportData { sections: Vec::new(), notes: Vec::new(), verdict: None, ..data() };
    assert!(evaluation_html(&empty).ends_with("</body></html>\n"));
    let mut bare = data();
    bare.sections[0].contenders.clear();
    bare.sections[0].fans.clear();
    assert!(!evaluation_html(&bare).contains("NaN"));
}

#[test]
fn the_data_survives_its_file() {
    let text = serde_json::to_string(&data()).unwrap();
    assert_eq!(serde_json::from_str::<ReportData>(&text).unwrap(), data());
}
