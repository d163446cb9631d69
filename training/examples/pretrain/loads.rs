//! Made-up loads: rhythms of a day and a week, wandering levels, regimes, bursts, periodic jobs, idle and switching series,
//! with every size drawn anew, so that a network that has seen a thousand of them has seen most of what loads do.

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, Pareto, Poisson, StandardNormal, StudentT};

/// Steps of five minutes in a day.
pub const DAY: usize = 288;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Without an upper bound.
    Rate,
    /// At most 100.
    Share,
    /// Near zero.
    Idle,
    /// On and off.
    Square,
}

/// One series of `days` days in steps of five minutes; never below zero.
pub fn load(rng: &mut ChaCha8Rng, days: usize) -> Vec<f64> {
    let n = days * DAY;
    let kinds = [(Kind::Rate, 0.35), (Kind::Share, 0.4), (Kind::Idle, 0.15), (Kind::Square, 0.1)];
    let kind = kinds.choose_weighted(rng, |(_, share)| *share).expect("shares").0;
    let mut x = base(rng, n, kind);
    let noise = log_uniform(rng, 0.005, 0.4);
    let power = *[0.0, 0.5, 1.0].choose(rng).expect("a power");
    let heavy = rng.random_bool(0.4);
    for x in &mut x {
        let e = if heavy { StudentT::new(3.0).expect("freedom").sample(rng) } else { normal(rng) };
        *x += noise * e * x.powf(power);
    }
    for _ in 0..rng.random_range(0..3) {
        bursts(rng, &mut x);
    }
    let jobs = [(0, 0.5), (1, 0.3), (2, 0.2)].choose_weighted(rng, |(_, share)| *share).expect("shares").0;
    for _ in 0..jobs {
        job(rng, &mut x);
    }
    if kind == Kind::Square {
        switch(rng, &mut x);
    }
    scale(rng, &mut x, kind);
    x
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

fn log_uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    rng.random_range(low.ln()..high.ln()).exp()
}

fn count(rng: &mut ChaCha8Rng, mean: f64) -> usize {
    Poisson::new(mean).expect("a mean").sample(rng) as usize
}

/// A path of unit deviation that forgets itself over `tau` steps.
fn wander(rng: &mut ChaCha8Rng, n: usize, tau: f64) -> Vec<f64> {
    let keep = (-1.0 / tau).exp();
    let fresh = (1.0 - keep * keep).sqrt();
    let mut v = normal(rng);
    (0..n)
        .map(|_| {
            v = keep * v + fresh * normal(rng);
            v
        })
        .collect()
}

/// The level before noise, around one.
fn base(rng: &mut ChaCha8Rng, n: usize, kind: Kind) -> Vec<f64> {
    let amplitude = match kind {
        Kind::Idle => *[0.0, 0.2].choose(rng).expect("one"),
        _ if rng.random_bool(0.2) => 0.0,
        _ => rng.random_range(0.05..0.8),
    };
    let mut s: Vec<f64> = rhythm(rng, n).into_iter().map(|p| amplitude * p).collect();
    if rng.random_bool(0.3) {
        let tau = DAY as f64 * rng.random_range(1.0..7.0);
        let path = wander(rng, n, tau);
        s.iter_mut().zip(path).for_each(|(s, w)| *s *= 1.0 + 0.3 * w);
    }
    for _ in 0..rng.random_range(1..4) {
        let (size, tau) = (log_uniform(rng, 0.01, 0.5), log_uniform(rng, 1.0, 2000.0));
        let path = wander(rng, n, tau);
        s.iter_mut().zip(path).for_each(|(s, w)| *s += size * w);
    }
    if rng.random_bool(0.5) {
        regimes(rng, &mut s);
    }
    if rng.random_bool(0.3) {
        let slope = rng.random_range(-1.0..1.0) * rng.random::<f64>();
        s.iter_mut().enumerate().for_each(|(i, s)| *s += slope * i as f64 / n as f64);
    }
    let log = rng.random_bool(0.6);
    let mut x: Vec<f64> =
        s.into_iter().map(|s| if log { s.clamp(-6.0, 4.0).exp() } else { (1.0 + s).max(0.0) }).collect();
    if kind == Kind::Idle {
        let floor = *[0.0, 0.1].choose(rng).expect("one");
        x.iter_mut().for_each(|x| *x = 0.05 * *x + floor);
    }
    x
}

/// A profile of the day, maybe with two days of the week that differ.
fn rhythm(rng: &mut ChaCha8Rng, n: usize) -> Vec<f64> {
    let start = rng.random_range(0.0..7.0);
    let days: Vec<f64> = (0..n).map(|i| start + i as f64 / DAY as f64).collect();
    let tau = std::f64::consts::TAU;
    let mut p = vec![0.0; n];
    let mut add = |f: &dyn Fn(f64) -> f64| p.iter_mut().zip(&days).for_each(|(p, t)| *p += f(t.rem_euclid(1.0)));
    match rng.random_range(0..4) {
        0 => {
            for j in 1..=rng.random_range(1..5) {
                let (size, phase) = (normal(rng) / j as f64, rng.random::<f64>());
                add(&|d| size * (tau * (j as f64 * d - phase)).cos());
            }
        }
        1 => {
            let (opens, length, edge) =
                (rng.random::<f64>(), rng.random_range(0.1..0.6), rng.random_range(0.005..0.08));
            let rise = |u: f64, at: f64| 1.0 / (1.0 + (-(u - at) / edge).exp());
            add(&|d| {
                let u = (d - opens).rem_euclid(1.0);
                rise(u, 0.1) - rise(u, 0.1 + length)
            });
        }
        2 => {
            for _ in 0..rng.random_range(1..4) {
                let (size, narrow, at) = (rng.random_range(0.3..1.0), rng.random_range(2.0..30.0), rng.random::<f64>());
                add(&|d| size * (narrow * ((tau * (d - at)).cos() - 1.0)).exp());
            }
        }
        _ => {}
    }
    let mean = p.iter().sum::<f64>() / n as f64;
    let deviation = (p.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
    if deviation > 0.0 {
        p.iter_mut().for_each(|v| *v = (*v - mean) / deviation);
    }
    if rng.random_bool(0.5) {
        let (first, shift) = (rng.random_range(0..7), rng.random::<f64>());
        let (factor, drop) = (rng.random_range(0.1..1.2), rng.random::<f64>());
        for (p, t) in p.iter_mut().zip(&days) {
            let day = (t + shift).floor() as i64;
            if (day - first).rem_euclid(7) < 2 {
                *p = *p * factor + drop * (factor - 1.0);
            }
        }
    }
    p
}

/// Sudden changes of the level, in half of the cases between two levels only.
fn regimes(rng: &mut ChaCha8Rng, s: &mut [f64]) {
    let often = log_uniform(rng, 0.5, 40.0);
    let mut changes: Vec<usize> = (0..count(rng, often)).map(|_| rng.random_range(0..s.len())).collect();
    changes.sort_unstable();
    let size = rng.random_range(0.1..1.0);
    let mut levels: Vec<f64> = (0..=changes.len()).map(|_| size * normal(rng)).collect();
    if rng.random_bool(0.5) {
        let (first, apart) = (levels[0], rng.random_range(-1.0..1.5));
        levels.iter_mut().enumerate().for_each(|(i, level)| *level = first + if i % 2 == 0 { 0.0 } else { apart });
    }
    let mut number = 0;
    for (i, s) in s.iter_mut().enumerate() {
        while changes.get(number).is_some_and(|at| *at <= i) {
            number += 1;
        }
        *s += levels[number];
    }
}

/// Bursts at random times, as boxes or with a tail.
fn bursts(rng: &mut ChaCha8Rng, x: &mut [f64]) {
    let often = log_uniform(rng, 0.1, 10.0) * x.len() as f64 / DAY as f64;
    let (lasts, height) = (log_uniform(rng, 1.0, 60.0), log_uniform(rng, 0.2, 8.0));
    let tail = rng.random_bool(0.5);
    for _ in 0..count(rng, often) {
        let at = rng.random_range(0..x.len());
        let height = height * Pareto::new(1.0, 2.5).expect("a shape").sample(rng);
        let length = if tail { (lasts * 4.0) as usize + 1 } else { lasts as usize + 1 };
        for (i, x) in x.iter_mut().skip(at).take(length).enumerate() {
            *x += if tail { height * (-(i as f64) / lasts).exp() } else { height };
        }
    }
}

/// A job that comes back, now and then late or left out.
fn job(rng: &mut ChaCha8Rng, x: &mut [f64]) {
    let period: usize = *[3, 6, 12, 24, 36, 72, 144, 288, 2016].choose(rng).expect("a period");
    let length = ((period as f64 * rng.random_range(0.02..0.4)) as usize).max(1);
    let (height, late) = (log_uniform(rng, 0.1, 4.0), *[0.0, 2.0].choose(rng).expect("one"));
    for at in (rng.random_range(0..period)..x.len()).step_by(period) {
        if rng.random_bool(0.95) {
            let from = (at as f64 + late * normal(rng)).max(0.0) as usize;
            let height = height * (0.2 * normal(rng)).exp();
            x.iter_mut().skip(from).take(length).for_each(|x| *x += height);
        }
    }
}

/// On for a while, off for a while.
fn switch(rng: &mut ChaCha8Rng, x: &mut [f64]) {
    let stay = Exp::new(1.0 / log_uniform(rng, 6.0, 600.0)).expect("a rate");
    let off = rng.random_range(0.0..0.5);
    let (mut on, mut until) = (true, stay.sample(rng));
    for (i, x) in x.iter_mut().enumerate() {
        while until < i as f64 {
            on = !on;
            until += stay.sample(rng);
        }
        if !on {
            *x *= off;
        }
    }
}

fn scale(rng: &mut ChaCha8Rng, x: &mut [f64], kind: Kind) {
    let unit = if kind == Kind::Rate { rng.random_range(0.0f64..10.0).exp() } else { log_uniform(rng, 1.0, 60.0) };
    x.iter_mut().for_each(|x| *x = x.max(0.0) * unit);
    if kind != Kind::Rate {
        x.iter_mut().for_each(|x| *x = x.min(100.0));
        if rng.random_bool(0.3) {
            let digits = 10f64.powi(rng.random_range(0..3));
            x.iter_mut().for_each(|x| *x = (*x * digits).round() / digits);
        }
    }
}
