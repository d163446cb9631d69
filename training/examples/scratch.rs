#![allow(clippy::unwrap_used, clippy::disallowed_methods, missing_docs)]
use foreshard_datasets::*;
use foreshard_domain::*;
use foreshard_model::*;
use foreshard_training::*;
use std::collections::BTreeMap;
use std::time::Instant;

fn score(
    f: &dyn Forecaster,
    p_any: Option<&dyn Fn(&Context<'_>, &QuantileForecast, f64) -> f64>,
    wins: &[(usize, usize)],
    ser: &[EvalSeries],
    h: usize,
    season: usize,
) -> String {
    let t0 = Instant::now();
    let mut loss = 0.0f64;
    let mut abs = 0.0f64;
    let (mut inside, mut n) = (0usize, 0usize);
    let mut geo = vec![];
    let (mut br, mut brn) = (0.0, 0);
    let levels: Vec<f64> = (1..10).map(|i| i as f64 / 10.0).collect();
    let ctx: Vec<Context<'_>> = wins
        .iter()
        .map(|(s, o)| {
            let e = &ser[*s];
            Context {
                shard: &e.shard,
                metric: e.metric,
                start: e.series.start,
                step: e.series.step,
                values: &e.series.values[..*o],
            }
        })
        .collect();
    let answers = f.forecast(&ctx);
    let mut fb = BTreeMap::new();
    for (i, e) in ser.iter().enumerate() {
        let first = wins.iter().filter(|w| w.0 == i).map(|w| w.1).min().unwrap_or(0);
        let scale = e.scale(first, season);
        let thr = EvalSeries { first, ..e.clone() }.threshold(0.95);
        let mut sl = 0.0;
        let mut sn = 0;
        for (k, (s, o)) in wins.iter().enumerate() {
            if *s != i {
                continue;
            }
            let a = &answers[k];
            *fb.entry(format!("{:?}", a.fallback)).or_insert(0) += 1;
            let truth = &e.series.values[*o..*o + h];
            for (step, y) in truth.iter().enumerate() {
                if !y.is_finite() {
                    continue;
                }
                let mut l = 0.0;
                for lv in &levels {
                    let q = a.forecast.quantile(step, *lv).unwrap();
                    let d = f64::from(y - q);
                    l += 2.0 * (lv * d).max((lv - 1.0) * d);
                }
                loss += l / 9.0;
                sl += l / 9.0;
                sn += 1;
                abs += f64::from(y.abs());
                n += 1;
                let (lo, hi) = (a.forecast.quantile(step, 0.1).unwrap(), a.forecast.quantile(step, 0.9).unwrap());
                if *y >= lo - 1e-9 && *y <= hi + 1e-9 {
                    inside += 1
                }
            }
            if let Some(p) = p_any {
                let ev = truth.iter().any(|y| f64::from(*y) > thr + 1e-9);
                let q = p(&ctx[k], &a.forecast, thr);
                br += (q - f64::from(u8::from(ev))).powi(2);
                brn += 1;
            }
        }
        if scale > 1e-9 && sn > 0 {
            geo.push((sl / sn as f64 / scale).max(1e-3).ln())
        }
    }
    let g = (geo.iter().sum::<f64>() / geo.len().max(1) as f64).exp();
    format!(
        "{:>15} wql {:.4} sql_geo {:.4} cover {:.3} brier {:.3} {:.1}s {:?}",
        f.name(),
        loss / abs,
        g,
        inside as f64 / n as f64,
        br / brn.max(1) as f64,
        t0.elapsed().as_secs_f64(),
        fb
    )
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let (proto, file, mode) = (&args[1], &args[2], &args[3]);
    let opt = |k: &str| args.iter().find_map(|a| a.strip_prefix(&format!("{k}=")).map(str::to_owned));
    let p = Protocol::builtin(proto).unwrap();
    let t0 = Instant::now();
    let hist = read_history(std::path::Path::new(&format!("/work/shared/data/{file}.parquet")), &ReadFilter::default())
        .unwrap();
    let (ser, _) = evaluation_series(&hist, &p);
    let season = (p.season.as_ms() / p.step.as_ms()) as usize;
    let spec = ForecastSpec {
        step: p.step,
        horizon: p.horizon,
        season_steps: season,
        levels: QuantileLevels::standard(),
        bounds: p.bounds,
    };
    println!("{file} {proto} {mode}: {} series, read {:.1}s", ser.len(), t0.elapsed().as_secs_f64());
    let mut wins = vec![];
    let mut train = vec![];
    for (i, e) in ser.iter().enumerate() {
        let usable = if mode == "cut" { (e.first as f64 * 0.9) as usize } else { e.first };
        train.push(TrainSeries { shard: e.shard.clone(), metric: e.metric, series: e.series.clone(), usable });
        if mode == "cut" {
            let mut o = usable;
            while o + p.horizon <= e.first {
                wins.push((i, o));
                o += p.horizon;
            }
        } else {
            for w in 0..e.windows {
                wins.push((i, e.origin(w)))
            }
        }
    }
    let mut params = TrainParams {
        products: vec![ProductSpec { name: "p".into(), forecast: spec.clone() }],
        threads: 2,
        ..TrainParams::default()
    };
    if let Some(v) = opt("steps") {
        params.steps = v.parse().unwrap()
    }
    if let Some(v) = opt("origins") {
        params.origins = v.parse().unwrap()
    }
    if let Some(v) = opt("seed") {
        params.seed = v.parse().unwrap()
    }
    if let Some(v) = opt("val") {
        params.validation_share = v.parse().unwrap()
    }
    if let Some(v) = opt("dropout") {
        params.dropout = v.parse().unwrap()
    }
    if let Some(v) = opt("lr") {
        params.learning_rate = v.parse().unwrap()
    }
    if opt("nocal").is_some() {
        params.calibrate = false
    }
    if let Some(v) = opt("m") {
        params.members = v
            .chars()
            .map(|c| match c {
                'A' => MemberSpec::LSTM,
                'B' => MemberSpec { hide_quantiles: 1.0, ..MemberSpec::DECODER },
                'D' => MemberSpec::DECODER,
                _ => MemberSpec { encoder: 48, ..MemberSpec::LSTM },
            })
            .collect()
    }
    let t0 = Instant::now();
    let verbose = opt("v").is_some();
    let mut first = None;
    let m = fit(
        &BTreeMap::from([("p".into(), train)]),
        &params.check().unwrap(),
        &mut FitControl {
            progress: &mut |p| {
                if first.is_none() {
                    first = Some(t0.elapsed());
                    println!("first step after {:.1}s", t0.elapsed().as_secs_f64())
                }
                if verbose && p.validation.is_some() {
                    println!(
                        "{:?} loss {:.4} val {:.4} {:.1}s",
                        p.step,
                        p.loss,
                        p.validation.unwrap(),
                        t0.elapsed().as_secs_f64()
                    )
                }
                if p.step.0 == p.step.1 {
                    println!("steps done {:.1}s", t0.elapsed().as_secs_f64())
                }
            },
            checkpoint: None,
            stop: &|| false,
        },
    )
    .unwrap();
    let prod = m.products().next().unwrap().1;
    println!(
        "fit {:.1}s val {:?} steps {:?} templates {}",
        t0.elapsed().as_secs_f64(),
        prod.validation,
        prod.steps,
        m.templates("p").unwrap().len()
    );
    let pa = |c: &Context<'_>, f: &QuantileForecast, l: f64| m.p_any("p", c, f, l);
    println!("{}", score(m.forecaster("p").unwrap(), Some(&pa), &wins, &ser, p.horizon, season));
    if opt("rivals").is_some() {
        println!("{}", score(&SeasonalNaive::new(spec.clone()), None, &wins, &ser, p.horizon, season));
        println!("{}", score(&LastValue::new(spec), None, &wins, &ser, p.horizon, season));
    }
}
