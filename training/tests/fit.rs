//! Fitting on small made-up series: repeatable, resumable, and better than what it has to beat.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use foreshard_datasets::{Bounds, EventCalendar, GridSeries, LoadEvent};
use foreshard_domain::{Metric, Product, QuantileLevels, RiskCalibration, ShardId, Step, Timestamp};
use foreshard_model::{
    Architecture, Context, Features, ForecastSpec, Forecaster, Learned, SeasonalNaive, Version, VersionParts,
    VersionProduct, pretrained, weights_bytes, write_version,
};
use foreshard_training::{
    CheckpointError, CheckpointPolicy, FitControl, FittedModel, MemberSpec, ProductSpec, TrainError, TrainParams,
    TrainSeries, fit,
};

const SEASON: usize = 24;
const HORIZON: usize = 12;

/// Hourly series with a daily wave, a level that wanders, noise and some gaps.
fn series(count: usize, days: usize) -> Vec<TrainSeries> {
    (0..count)
        .map(|s| {
            let mut noise = (s as u32 + 1).wrapping_mul(2_654_435_761);
            let mut random = move || {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(noise >> 8) / f64::from(1u32 << 24) - 0.5
            };
            let mut level = 0.0;
            let values = (0..days * SEASON).map(|i| {
                level = 0.97 * level + 4.0 * random();
                let wave = (i as f64 / SEASON as f64 * std::f64::consts::TAU).sin() * 10.0;
                if i % 53 == 20 { f32::NAN } else { (40.0 + wave + level + random()) as f32 }
            });
            let step = Step::from_ms(3_600_000).unwrap();
            let series = GridSeries { start: Timestamp::from_ms(0), step, values: values.collect() };
            let usable = series.values.len() - 10 * SEASON;
            TrainSeries {
                shard: ShardId::new(format!("s{s}")).unwrap(),
                metric: Metric::CpuUtil,
                series,
                usable,
                events: Default::default(),
            }
        })
        .collect()
}

fn product() -> ProductSpec {
    let forecast = ForecastSpec {
        step: Step::from_ms(3_600_000).unwrap(),
        horizon: HORIZON,
        season_steps: SEASON,
        levels: QuantileLevels::standard(),
        bounds: Bounds::Load,
        zone: "UTC".to_owned(),
    };
    ProductSpec { name: "hourly".into(), forecast }
}

fn params() -> TrainParams {
    TrainParams {
        products: vec![product()],
        members: vec![
            MemberSpec { encoder: 8, decoder: 16, ..MemberSpec::LSTM },
            MemberSpec { decoder: 16, ..MemberSpec::DECODER },
        ],
        steps: 40,
        batch: 32,
        origins: 600,
        warm_up: 5,
        validate_every: 10,
        threads: 1,
        ..TrainParams::default()
    }
}

fn data() -> BTreeMap<String, Vec<TrainSeries>> {
    BTreeMap::from([("hourly".to_owned(), series(4, 60))])
}

fn run(params: TrainParams, data: &BTreeMap<String, Vec<TrainSeries>>) -> Result<FittedModel, TrainError> {
    let spec = params.check().unwrap();
    fit(data, &spec, &mut FitControl { progress: &mut |_| {}, checkpoint: None, stop: &|| false })
}

/// The networks of a fit, as bytes.
fn networks(model: &FittedModel) -> Vec<u8> {
    bytes(model).0
}

/// Everything that a fit made, as bytes.
fn bytes(model: &FittedModel) -> (Vec<u8>, String) {
    let products = model.version_products();
    let networks = products.iter().flat_map(|p| {
        let name = |i| format!("{}.{i}", p.trained.name);
        p.trained.learned.networks().iter().enumerate().map(move |(i, m)| (name(i), m.clone()))
    });
    let of = |p: &VersionProduct| format!("{:?}", (&p.trained.widths, &p.templates, &p.trained.events, p.trained.risk));
    let rest: Vec<String> = products.iter().map(of).collect();
    (weights_bytes(&networks.collect()).unwrap(), format!("{rest:?}"))
}

#[test]
fn f2_same_seed_same_bytes_at_any_number_of_threads() {
    let data = data();
    let one = bytes(&run(params(), &data).unwrap());
    assert_eq!(bytes(&run(TrainParams { threads: 2, ..params() }, &data).unwrap()), one);
    assert_eq!(bytes(&run(TrainParams { threads: 5, ..params() }, &data).unwrap()), one);
    assert_ne!(bytes(&run(TrainParams { seed: 2, ..params() }, &data).unwrap()).0, one.0);
}

/// Runs until `stop_after` steps, with a checkpoint.
fn run_until(dir: &Path, stop_after: usize, params: TrainParams) -> Result<FittedModel, TrainError> {
    let taken = Cell::new(0);
    let checkpoint = Some(CheckpointPolicy { dir: dir.to_owned(), every_steps: 7 });
    let spec = params.check().unwrap();
    let mut progress = |_| taken.set(taken.get() + 1);
    fit(&data(), &spec, &mut FitControl { progress: &mut progress, checkpoint, stop: &|| taken.get() >= stop_after })
}

#[test]
fn f2_interrupted_and_resumed_equals_uninterrupted() {
    let whole = bytes(&run(params(), &data()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    // Stopped within the first network, again within the second and within the first on all values, then to the end;
    // with other thread counts.
    assert!(matches!(run_until(folder.path(), 23, params()), Err(TrainError::Stopped { step: 23, .. })));
    assert!(matches!(
        run_until(folder.path(), 30, TrainParams { threads: 2, ..params() }),
        Err(TrainError::Stopped { step: 13, .. })
    ));
    assert!(matches!(run_until(folder.path(), 40, params()), Err(TrainError::Stopped { step: 13, .. })));
    let resumed = run_until(folder.path(), usize::MAX, params()).unwrap();
    assert_eq!(bytes(&resumed), whole);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a finished fit leaves no checkpoint");
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(run_until(folder.path(), 8, params()).is_err());
    let other = run_until(folder.path(), 8, TrainParams { seed: 9, ..params() });
    assert!(matches!(other, Err(TrainError::Checkpoint(CheckpointError::Other { .. }))));
    let file = folder.path().join("checkpoint.safetensors");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let damaged = run_until(folder.path(), 8, params());
    assert!(matches!(damaged, Err(TrainError::Checkpoint(CheckpointError::Damaged { .. }))));
}

#[test]
fn the_held_back_end_is_learned_from_by_the_second_fit_alone() {
    let honest = data();
    let mut moved = honest.clone();
    for one in moved.get_mut("hourly").unwrap() {
        // Within the held-back end, a tenth of the 50 usable days.
        one.series.values[one.usable - 2 * SEASON..one.usable].iter_mut().for_each(|v| *v += 25.0);
    }
    // One look alone, after the last step: early stop cannot tell the two histories apart.
    let once = TrainParams { validate_every: 1000, refit: false, ..params() };
    assert_eq!(networks(&run(once.clone(), &honest).unwrap()), networks(&run(once.clone(), &moved).unwrap()));
    let twice = TrainParams { refit: true, ..once.clone() };
    let (one, other) = (run(twice.clone(), &honest).unwrap(), run(twice, &moved).unwrap());
    assert_ne!(networks(&one), networks(&other));
    // Widths and ranks are those of the fit that had not seen the end.
    assert_eq!(bytes(&one).1, bytes(&run(once, &honest).unwrap()).1);
}

/// Mean pinball loss over rolling windows in the part that was not usable.
fn score(forecaster: &dyn Forecaster, data: &[TrainSeries]) -> f64 {
    let mut total = 0.0;
    for one in data {
        for origin in (one.usable..one.series.values.len() - HORIZON).step_by(HORIZON) {
            let values = one.series.window_up_to(origin);
            let context = Context {
                shard: &one.shard,
                metric: one.metric,
                start: one.series.start,
                step: one.series.step,
                values,
                events: None,
            };
            let answer = forecaster.forecast(&[context]).remove(0);
            assert_eq!(answer.fallback, None);
            for (row, y) in answer.forecast.values().chunks(13).zip(&one.series.values[origin..origin + HORIZON]) {
                for (q, level) in row.iter().zip(QuantileLevels::standard().as_slice()) {
                    let error = f64::from(y - q);
                    total += if y.is_finite() { (level * error).max((level - 1.0) * error) } else { 0.0 };
                }
            }
        }
    }
    total
}

#[test]
fn a_short_fit_beats_seasonal_naive_on_a_wandering_level() {
    let data = data();
    let model = run(TrainParams { steps: 150, ..params() }, &data).unwrap();
    let own = score(model.forecaster("hourly").unwrap(), &data["hourly"]);
    let naive = score(&SeasonalNaive::new(product().forecast), &data["hourly"]);
    assert!(own < 0.85 * naive, "network {own}, naive {naive}");
    assert!(model.templates("hourly").unwrap().len() >= 40);
}

#[test]
fn d1_values_past_the_usable_part_change_nothing() {
    let honest = data();
    let mut corrupt = honest.clone();
    for one in corrupt.get_mut("hourly").unwrap() {
        let usable = one.usable;
        one.series.values[usable..].fill(1e9);
    }
    assert_eq!(bytes(&run(params(), &honest).unwrap()), bytes(&run(params(), &corrupt).unwrap()));
}

#[test]
fn too_little_history_and_what_cannot_be_scaled_are_told() {
    let short = BTreeMap::from([("hourly".to_owned(), series(2, 14))]);
    let error = run(params(), &short).unwrap_err();
    assert!(matches!(error, TrainError::TooLittleHistory { series: 2, .. }), "{error}");
    assert!(matches!(run(params(), &BTreeMap::new()), Err(TrainError::NoSeries { .. })));
    // Values whose sums overflow have no scale; the series is named.
    let mut wild = data();
    wild.get_mut("hourly").unwrap()[2].series.values.iter_mut().for_each(|v| *v *= 8e36);
    let error = run(params(), &wild).unwrap_err();
    assert!(matches!(&error, TrainError::TooLarge { series } if series.0.as_str() == "s2"), "{error}");
}

fn version_parts(products: Vec<VersionProduct>) -> VersionParts {
    VersionParts {
        model: "m".into(),
        number: 1,
        products,
        metrics: vec![Metric::CpuUtil],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(1),
        data_fingerprint: String::new(),
        seed: 1,
        parent: None,
        report_json: String::new(),
        report_html: String::new(),
        card_md: String::new(),
    }
}

#[test]
fn a_version_is_a_warm_start() {
    let data = data();
    let model = run(params(), &data).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_version(&folder.path().join("1"), &version_parts(model.version_products())).unwrap();
    let version = Version::load(&folder.path().join("1")).unwrap();
    let own = score(model.forecaster("hourly").unwrap(), &data["hourly"]);
    let loaded = score(version.forecaster("hourly").unwrap(), &data["hourly"]);
    assert!((own - loaded).abs() < 1e-9 * own);
    let brief = TrainParams { steps: 10, validate_every: 1, ..params() };
    let first = |warm_start| {
        let looks = Cell::new(f64::NAN);
        let spec = TrainParams { warm_start, ..brief.clone() }.check().unwrap();
        let mut progress = |p: foreshard_training::FitProgress| {
            if looks.get().is_nan() {
                looks.set(p.validation.unwrap());
            }
        };
        fit(&data, &spec, &mut FitControl { progress: &mut progress, checkpoint: None, stop: &|| false }).unwrap();
        looks.get()
    };
    let (warm, cold) = (first(Some(Arc::new(version))), first(None));
    assert!(warm < 0.9 * cold, "warm {warm}, cold {cold}");
}

#[test]
fn a_start_that_cannot_be_computed_with_is_told_at_once() {
    let data = data();
    let mut products = run(TrainParams { steps: 10, ..params() }, &data).unwrap().version_products();
    for product in &mut products {
        let mut members = product.trained.learned.networks().to_vec();
        members.iter_mut().flat_map(|weights| &mut weights.values).for_each(|w| *w *= 1e37);
        product.trained.learned = Learned::Lstm(members);
    }
    let folder = tempfile::tempdir().unwrap();
    write_version(&folder.path().join("1"), &version_parts(products)).unwrap();
    let version = Version::load(&folder.path().join("1")).unwrap();
    let error = run(TrainParams { warm_start: Some(Arc::new(version)), ..params() }, &data).unwrap_err();
    assert!(matches!(error, TrainError::NotFinite { step: 0, .. }), "{error}");
    assert!(error.to_string().contains("at step 0"), "{error}");
}

/// The same series, whose load a sale of six hours doubles now and then; the last one lies in the window after `usable`.
fn with_sales() -> (BTreeMap<String, Vec<TrainSeries>>, Arc<EventCalendar>) {
    let mut data = data();
    let window = data["hourly"][0].usable;
    let starts = [20, 26, 33, 38, 44].map(|day| day * SEASON + 9).into_iter().chain([window + 3]);
    let hours: Vec<usize> = starts.collect();
    let at = |hour: usize| Timestamp::from_ms(hour as i64 * 3_600_000);
    let sale = |hour: &usize| LoadEvent { start: at(*hour), end: at(hour + 6), name: "sale".to_owned(), shard: None };
    let events = Arc::new(EventCalendar::new(hours.iter().map(sale)));
    for one in data.get_mut("hourly").unwrap() {
        one.events = events.clone();
        hours.iter().flat_map(|hour| *hour..hour + 6).for_each(|i| one.series.values[i] *= 2.0);
    }
    (data, events)
}

#[test]
fn what_events_do_is_learned_and_foreseen() {
    let (data, events) = with_sales();
    let model = run(params(), &data).unwrap();
    assert!(!model.version_products()[0].trained.events.is_empty());
    let forecaster = model.forecaster("hourly").unwrap();
    for one in &data["hourly"] {
        let (start, step, values) = (one.series.start, one.series.step, one.series.window_up_to(one.usable));
        let median = |events| {
            let context = Context { shard: &one.shard, metric: one.metric, start, step, values, events };
            let forecast = forecaster.forecast(&[context]).remove(0).forecast;
            (0..HORIZON).map(|step| forecast.row(step).unwrap()[6]).collect::<Vec<f32>>()
        };
        let (with, without) = (median(Some(&events)), median(None));
        let rise = with[6] / without[6];
        assert!((1.5..2.3).contains(&rise), "{} is foreseen {rise} times as high", one.shard);
        assert!((with[0] / without[0] - 1.0).abs() < 0.1, "nothing happens before: {} {}", with[0], without[0]);
    }
    // Without the list the sales are noise, and nothing is foreseen.
    let mut blind = data;
    blind.get_mut("hourly").unwrap().iter_mut().for_each(|one| one.events = Arc::default());
    assert!(run(params(), &blind).unwrap().version_products()[0].trained.events.is_empty());
}

#[test]
fn what_events_do_is_not_learned_from_what_judges() {
    // One more sale, in the last tenth of what may be learned from.
    let sold = |times: f32| {
        let (mut data, events) = with_sales();
        let one = &data["hourly"][0];
        let hour = one.usable - 30;
        let start = Timestamp::from_ms(hour as i64 * 3_600_000);
        let sale = LoadEvent { start, end: start.plus_ms(6 * 3_600_000), name: "sale".to_owned(), shard: None };
        let events = Arc::new(EventCalendar::new(events.of(&one.shard).cloned().chain([sale])));
        for one in data.get_mut("hourly").unwrap() {
            one.events = events.clone();
            one.series.values[hour..hour + 6].iter_mut().for_each(|v| *v *= times);
        }
        data
    };
    let effects = |refit, times| {
        run(TrainParams { refit, ..params() }, &sold(times)).unwrap().version_products()[0].trained.events.clone()
    };
    assert_eq!(effects(false, 1.0), effects(false, 4.0));
    assert_ne!(effects(true, 1.0), effects(true, 4.0), "the second fit learns from all of it");
}

#[test]
fn a_fit_corrects_what_it_says_of_limits() {
    let model = run(params(), &data()).unwrap();
    let risk = model.risk("hourly");
    assert_ne!((risk.series, risk.groups), (RiskCalibration::default(), RiskCalibration::default()));
    assert!(risk.series.is_sound() && risk.groups.is_sound() && risk.series.slope > 0.3, "{risk:?}");
    let one = &data()["hourly"][0];
    let (start, step, values) = (one.series.start, one.series.step, one.series.window_up_to(one.usable));
    let context = Context { shard: &one.shard, metric: one.metric, start, step, values, events: None };
    let forecast = model.forecaster("hourly").unwrap().forecast(&[context]).remove(0).forecast;
    let said = |limit| foreshard_model::any_step(model.templates("hourly"), &one.shard, one.metric, &forecast, limit);
    let limit = f64::from(forecast.row(6).unwrap()[11]);
    assert!((0.0..1.0).contains(&said(limit)));
    let corrected = model.p_any("hourly", &context, &forecast, limit);
    assert!((corrected - risk.series.apply(said(limit))).abs() < 1e-12);
}

/// Two series in quarters of an hour, for the next day.
fn quarters() -> BTreeMap<String, Vec<TrainSeries>> {
    let step = Step::from_ms(900_000).unwrap();
    let of = |s: TrainSeries| {
        let values: Vec<f32> = s.series.values.iter().flat_map(|v| [*v; 4]).collect();
        TrainSeries { usable: values.len(), series: GridSeries { step, values, ..s.series }, ..s }
    };
    BTreeMap::from([("next_day".to_owned(), series(2, 30).into_iter().map(of).collect())])
}

fn pretrained_params() -> TrainParams {
    TrainParams {
        products: vec![ProductSpec::from(Product::NextDay)],
        members: vec![MemberSpec::PRETRAINED; 2],
        steps: 6,
        batch: 16,
        origins: 60,
        warm_up: 0,
        validate_every: 2,
        patience: 1,
        ..TrainParams::default()
    }
}

#[test]
fn a_fit_begins_from_what_is_known_of_loads() {
    let features = Features::new(&ProductSpec::from(Product::NextDay).forecast);
    let known = pretrained(&features, Architecture::new(&features)).unwrap();
    // Steps so long can only harm: what was known before the first of them serves best, and answers as it is.
    let harmful = TrainParams { learning_rate: 1.0, ..pretrained_params() };
    let fitted = run(harmful, &quarters()).unwrap().into_members("next_day").unwrap();
    assert_eq!(fitted, [known.clone(), known.clone()]);
    // Steps that are next to nothing lead next to nowhere.
    let small = TrainParams { learning_rate: 1e-9, refit: false, ..pretrained_params() };
    for member in run(small, &quarters()).unwrap().into_members("next_day").unwrap() {
        assert_eq!(member.architecture, known.architecture);
        let far = member.values.iter().zip(&known.values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(far < 1e-6, "{far}");
    }
}

#[test]
fn f2_a_look_before_the_first_step_counts_once() {
    let data = quarters();
    let params = || TrainParams {
        members: vec![MemberSpec::PRETRAINED],
        learning_rate: 1e-3,
        steps: 24,
        batch: 64,
        origins: 300,
        validate_every: 4,
        patience: 2,
        ..pretrained_params()
    };
    let fitted = run(params(), &data).unwrap();
    let whole = networks(&fitted);
    // Otherwise nothing would show: a step has to serve better than none.
    let features = Features::new(&ProductSpec::from(Product::NextDay).forecast);
    let known = pretrained(&features, Architecture::new(&features)).unwrap();
    assert!(fitted.into_members("next_day").unwrap().iter().all(|member| *member != known));
    let folder = tempfile::tempdir().unwrap();
    let until = |stop_after: usize| {
        let taken = Cell::new(0);
        let checkpoint = Some(CheckpointPolicy { dir: folder.path().to_owned(), every_steps: 1 });
        let mut progress = |_| taken.set(taken.get() + 1);
        let stop = || taken.get() >= stop_after;
        fit(&data, &params().check().unwrap(), &mut FitControl { progress: &mut progress, checkpoint, stop: &stop })
    };
    // Twice before the first step, then to the end.
    for _ in 0..2 {
        assert!(matches!(until(0), Err(TrainError::Stopped { step: 0, .. })));
    }
    assert_eq!(networks(&until(usize::MAX).unwrap()), whole);
}

#[test]
fn shapes_without_a_pretrained_network_take_the_decoder() {
    let params = TrainParams { members: vec![MemberSpec::PRETRAINED; 2], steps: 2, ..params() };
    let fitted = run(params, &data()).unwrap().into_members("hourly").unwrap();
    assert_eq!((fitted.len(), fitted[0].architecture.encoder), (1, 0));
}
