//! Rolling-origin evaluation: what forecasters are told (D1), what comes out, and the figures of a real trace.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_datasets::{
    EvalSeries, GridSeries, History, Protocol, ReadFilter, evaluation_series, read_history, write_forecasts,
};
use foreshard_domain::{
    ContenderRole, EvaluationReport, Fallback, Metric, Observation, QuantileForecast, QuantileLevels, Scores, ShardId,
    Step, Timestamp,
};
use foreshard_model::{Answer, Context, ForecastSpec, Forecaster, Lanes, LastValue, SeasonalNaive};
use foreshard_training::{EvaluateError, evaluate, section};
use std::path::PathBuf;
use std::sync::Mutex;

fn spec(protocol: &Protocol) -> ForecastSpec {
    ForecastSpec {
        step: protocol.step,
        horizon: protocol.horizon,
        season_steps: protocol.season_steps(),
        levels: QuantileLevels::standard(),
        bounds: protocol.bounds,
        zone: "UTC".to_owned(),
    }
}

/// Five shards with a daily rhythm, noise by hashing and a gap each.
fn history() -> History {
    let row = |s: i64, i: i64| {
        let mut row = Observation::empty(ShardId::new(format!("s{s}")).unwrap(), Timestamp::from_ms(i * 300_000));
        let noise = ((i * 7919 + s * 104_729) % 1009) as f64 / 1009.0;
        let rhythm = (i as f64 / 288.0 * std::f64::consts::TAU + s as f64).sin();
        row.cpu_util = (i % 977 > 20).then_some(40.0 + 15.0 * rhythm + 8.0 * noise);
        row
    };
    History::from_observations((0..5).flat_map(|s| (0..5 * 288).map(move |i| row(s, i)))).unwrap()
}

fn short_protocol() -> Protocol {
    Protocol { windows: 6, ..Protocol::builtin("5T").unwrap() }
}

#[test]
fn d1_corrupting_the_future_changes_no_forecast_before_it() {
    let protocol = short_protocol();
    let (series, _) = evaluation_series(&history(), &protocol);
    let cut = 3;
    let corrupt = |s: &EvalSeries| {
        let mut s = s.clone();
        let origin = s.origin(cut);
        s.series.values[origin..].iter_mut().enumerate().for_each(|(i, v)| *v = 1e6 + i as f32);
        s
    };
    let corrupted: Vec<EvalSeries> = series.iter().map(corrupt).collect();
    let rivals: [Box<dyn Forecaster>; 2] =
        [Box::new(SeasonalNaive::new(spec(&protocol))), Box::new(LastValue::new(spec(&protocol)))];
    for rival in rivals {
        let p_any = |c: &Context<'_>, f: &QuantileForecast, limit: f64| {
            f.exceedance(0, limit) * (1.0 / c.values.len() as f64 + 0.5)
        };
        let before = evaluate(rival.as_ref(), Some(&p_any), &series, &protocol).unwrap();
        let after = evaluate(rival.as_ref(), Some(&p_any), &corrupted, &protocol).unwrap();
        let known = |rows: &[foreshard_datasets::ForecastRow]| -> Vec<_> {
            let until = |r: &&foreshard_datasets::ForecastRow| {
                let s = series.iter().find(|s| s.shard == r.shard).unwrap();
                r.issued_at <= s.issued_at(cut)
            };
            rows.iter().filter(until).cloned().collect()
        };
        assert_eq!(known(&before.rows).len(), 5 * (cut + 1) * 48);
        assert_eq!(known(&before.rows), known(&after.rows));
        assert_ne!(before.rows, after.rows);
    }
}

/// Answers a constant and notes what it was told.
struct Spy {
    spec: ForecastSpec,
    seen: Mutex<Vec<(ShardId, usize, Timestamp)>>,
    answers: usize,
}

impl Forecaster for Spy {
    fn name(&self) -> &str {
        "spy"
    }

    fn spec(&self) -> &ForecastSpec {
        &self.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(contexts.iter().map(|c| (c.shard.clone(), c.values.len(), c.issued_at())));
        let values = vec![40.0; self.spec.horizon * self.spec.levels.len()];
        let forecast = QuantileForecast::new(self.spec.levels.clone(), values).unwrap();
        let answer = |c: &Context<'_>| Answer {
            forecast: forecast.clone(),
            last_observed: c.last_observed(),
            missing_share: 0.0,
            fallback: Some(Fallback::Stale),
        };
        contexts.iter().take(self.answers).map(answer).collect()
    }
}

#[test]
fn d1_contexts_end_at_the_origin() {
    let protocol = short_protocol();
    let (series, _) = evaluation_series(&history(), &protocol);
    let spy = Spy { spec: spec(&protocol), seen: Mutex::default(), answers: 99 };
    let evaluation = evaluate(&spy, None, &series, &protocol).unwrap();
    let mut seen = spy.seen.into_inner().unwrap();
    seen.sort();
    let told =
        |s: &EvalSeries| (0..s.windows).map(|w| (s.shard.clone(), s.origin(w), s.issued_at(w))).collect::<Vec<_>>();
    let expected: Vec<_> = series.iter().flat_map(told).collect();
    assert_eq!(seen, expected);
    let row = &evaluation.rows[48 * 2 + 5];
    assert_eq!((row.issued_at, row.model_version.as_str()), (series[0].issued_at(2), "spy"));
    assert_eq!(row.target_ts, row.issued_at.plus_steps(6, Step::FIVE_MINUTES));
    assert_eq!((row.metric, row.fallback.as_deref(), row.p_any), (Metric::CpuUtil, Some("stale"), None));
    assert_eq!(evaluation.scores.width_80, Some(0.0));
}

/// Answers from threads of its own, as the networks do.
struct Threaded {
    inner: Spy,
    lanes: Lanes,
}

impl Forecaster for Threaded {
    fn name(&self) -> &str {
        "threaded"
    }

    fn spec(&self) -> &ForecastSpec {
        &self.inner.spec
    }

    fn forecast(&self, contexts: &[Context<'_>]) -> Vec<Answer> {
        let work = |_: usize, c: &Context<'_>| {
            std::thread::sleep(std::time::Duration::from_micros(20));
            c.values.len()
        };
        assert_eq!(self.lanes.map(contexts, work).len(), contexts.len());
        self.inner.forecast(contexts)
    }
}

#[test]
fn thousands_of_series_do_not_end_the_stack() {
    let protocol = Protocol { windows: 2, horizon: 3, stride: 3, ..Protocol::builtin("5T").unwrap() };
    let one = |i: usize| EvalSeries {
        shard: ShardId::new(format!("s{i}")).unwrap(),
        metric: Metric::CpuUtil,
        series: GridSeries { start: Timestamp::from_ms(0), step: protocol.step, values: vec![40.0; 10] },
        measured: vec![40.0; 10],
        first: 4,
        horizon: 3,
        windows: 2,
        stride: 3,
        events: Default::default(),
    };
    let series: Vec<EvalSeries> = (0..20_000).map(one).collect();
    let inner = Spy { spec: spec(&protocol), seen: Mutex::default(), answers: 99 };
    let threaded = Threaded { inner, lanes: Lanes::new(2).unwrap() };
    let evaluation = evaluate(&threaded, None, &series, &protocol).unwrap();
    assert_eq!(evaluation.scores.points, 20_000 * 2 * 3);
}

#[test]
fn a_forecaster_that_does_not_fit_is_refused() {
    let protocol = short_protocol();
    let (series, _) = evaluation_series(&history(), &protocol);
    let spy =
        |answers, horizon| Spy { spec: ForecastSpec { horizon, ..spec(&protocol) }, seen: Mutex::default(), answers };
    let error = evaluate(&spy(99, 12), None, &series, &protocol).unwrap_err();
    assert!(error.to_string().contains("12 steps of 5 min and cannot be evaluated under protocol 5T"), "{error}");
    let error = evaluate(&spy(2, 48), None, &series, &protocol).unwrap_err();
    assert!(matches!(error, EvaluateError::Answers { got: 2, wanted: 6, .. }), "{error}");
    assert!(matches!(evaluate(&spy(99, 48), None, &[], &protocol), Err(EvaluateError::Score(_))));
}

#[test]
fn a_report_shows_best_median_and_worst_window() {
    let protocol = short_protocol();
    let (series, _) = evaluation_series(&history(), &protocol);
    let naive = evaluate(&SeasonalNaive::new(spec(&protocol)), None, &series, &protocol).unwrap();
    let last = evaluate(&LastValue::new(spec(&protocol)), None, &series, &protocol).unwrap();
    let all = [(ContenderRole::Subject, &last), (ContenderRole::SeasonalNaive, &naive)];
    let section = section("5T", &series, &protocol, &all);
    assert_eq!(section.contenders.len(), 2);
    let fans: Vec<_> = section.fans.iter().map(|f| (f.caption.as_str(), f.wql.unwrap())).collect();
    assert_eq!(fans.len(), 4);
    assert!(fans[0].1 <= fans[1].1 && fans[1].1 <= fans[2].1, "{fans:?}");
    assert!(section.fans.iter().all(|f| f.actual.len() == 48 && f.history.len() == 96));
}

fn shared(file: &str) -> Option<PathBuf> {
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")).join(file);
    if !path.exists() {
        println!("SKIPPED: {} is not there, so the figures of the real trace are not checked", path.display());
        return None;
    }
    Some(path)
}

/// Seasonal naive on a trace. With `FORESHARD_KEEP_FORECASTS=FOLDER` the forecasts file, the figures and a report beside the
/// last value are kept, to be laid before another scorer and looked at.
fn naive_on(protocol: &str, files: &[&str]) -> Option<Scores> {
    let protocol = Protocol::builtin(protocol).unwrap();
    let mut series = Vec::new();
    for file in files {
        let history = read_history(&shared(file)?, &ReadFilter::default()).unwrap();
        series.extend(evaluation_series(&history, &protocol).0);
    }
    let naive = evaluate(&SeasonalNaive::new(spec(&protocol)), None, &series, &protocol).unwrap();
    if let Some(folder) = std::env::var_os("FORESHARD_KEEP_FORECASTS") {
        let stem = files[0].replace('/', "_").replace(".parquet", "");
        let path = PathBuf::from(folder).join(format!("{}-{stem}.parquet", protocol.name));
        write_forecasts(&path, &naive.levels, &naive.rows).unwrap();
        std::fs::write(path.with_extension("scores.json"), serde_json::to_string_pretty(&naive.scores).unwrap())
            .unwrap();
        let last = evaluate(&LastValue::new(spec(&protocol)), None, &series, &protocol).unwrap();
        let all = [(ContenderRole::Subject, &last), (ContenderRole::SeasonalNaive, &naive)];
        let report = EvaluationReport {
            title: format!("last_value on {stem}"),
            provenance: Vec::new(),
            verdict: None,
            sections: vec![section(&protocol.name, &series, &protocol, &all)],
            notes: Vec::new(),
        };
        std::fs::write(path.with_extension("report.json"), serde_json::to_string(&report).unwrap()).unwrap();
    }
    Some(naive.scores)
}

/// WQL, SQL geometric mean, MASE and coverage as an independent program (numpy) computed them from the forecasts file.
#[test]
fn figures_of_real_traces_are_those_of_an_independent_scorer() {
    let cases: [(&str, &[&str], [f64; 4]); 4] = [
        ("5T", &["web_services.parquet"], [0.14030, 0.74338, 0.96005, 0.82784]),
        ("15T", &["web_services.parquet"], [0.12026, 0.75828, 0.94184, 0.81807]),
        ("5T", &["bitbrains_faststorage.parquet"], [0.78711, 0.54078, 0.97293, 0.83940]),
        ("ETT_1H", &["published/ETTh1.parquet", "published/ETTh2.parquet"], [0.19434, 1.06451, 1.32351, 0.79114]),
    ];
    for (protocol, files, figures) in cases {
        let Some(s) = naive_on(protocol, files) else { continue };
        let ours = [s.wql, s.sql_geo, s.mase, s.coverage_80].map(Option::unwrap);
        let close = ours.iter().zip(figures).all(|(a, b)| (a - b).abs() < 5e-4);
        assert!(close, "{protocol} {files:?}: {ours:?}, expected {figures:?}");
    }
}
