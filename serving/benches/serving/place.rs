//! The folders that a server of the benchmark works with.

use foreshard_datasets::HistoryFolder;
use foreshard_domain::{Metric, Observation, Product, ShardId, Timestamp};
use foreshard_model::{
    Architecture, EventEffects, Features, ForecastSpec, Learned, TrainedParts, VersionParts, VersionProduct,
    pretrained, write_version,
};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Options;

/// Networks whose quantiles are averaged, as training makes them.
const MEMBERS: u64 = 3;
/// Versions of the registry, all alike but for their numbers.
pub const VERSIONS: u64 = 4;
/// Shards whose rows are made at once.
const SHARDS_AT_ONCE: usize = 5000;

/// What is served: how many shards with how much history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    pub shards: usize,
    pub metrics: usize,
    pub days: usize,
    pub minutes: usize,
}

impl Sizes {
    pub fn new(options: &Options, shards: usize) -> Self {
        Self {
            shards: options.get("shards", shards),
            metrics: options.get("metrics", 1),
            days: options.get("days", 8),
            minutes: options.get("minutes", 15),
        }
    }
}

pub fn shard(i: usize) -> String {
    format!("shard-{i:06}")
}

fn metrics(sizes: Sizes) -> impl Iterator<Item = Metric> {
    let all = [Metric::CpuUtil, Metric::MemUtil, Metric::IoOps, Metric::LatencyMs, Metric::TxnRate];
    all.into_iter().take(sizes.metrics)
}

/// The folder with a history of these sizes and a registry; written once.
pub fn prepared(sizes: Sizes) -> PathBuf {
    let name = format!("{}x{}-{}d-{}m", sizes.shards, sizes.metrics, sizes.days, sizes.minutes);
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let place = target.join("serving-bench").join(name);
    if !place.join("done").exists() {
        eprintln!("writing {} (once)", place.display());
        _ = fs::remove_dir_all(&place);
        fs::create_dir_all(place.join("registry/load")).expect("a folder");
        (1..=VERSIONS).for_each(|number| version(&place, number));
        label(&place, 1);
        history(&place, sizes);
        fs::write(place.join("done"), "").expect("a file");
    }
    place
}

/// Makes a version the champion.
pub fn label(place: &Path, number: u64) {
    let folder = place.join("registry/load");
    let text = format!(r#"{{"champion": {number}, "challenger": null, "last_good": 1}}"#);
    fs::write(folder.join("labels.new"), text).expect("labels");
    fs::rename(folder.join("labels.new"), folder.join("labels.json")).expect("labels");
}

/// The shipped network of a product.
pub fn product(product: Product) -> TrainedParts {
    let spec = ForecastSpec::of_product(product);
    let features = Features::new(&spec);
    let sizes = Architecture::new(&features);
    let member =
        |seed| pretrained(&features, sizes).unwrap_or_else(|| sizes.initial(&mut ChaCha8Rng::seed_from_u64(seed)));
    TrainedParts {
        name: product.name().to_owned(),
        spec,
        learned: Learned::Lstm((1..=MEMBERS).map(member).collect()),
        widths: None,
        events: EventEffects::default(),
        risk: Default::default(),
    }
}

fn version(place: &Path, number: u64) {
    let products = Product::ALL.map(|p| VersionProduct { trained: product(p), templates: None, judged: None });
    let parts = VersionParts {
        model: "load".into(),
        number,
        products: products.into(),
        metrics: vec![Metric::CpuUtil],
        trained_from: Timestamp::from_ms(0),
        trained_until: Timestamp::from_ms(1),
        data_fingerprint: String::new(),
        seed: 1,
        parent: None,
        report_json: "{}".into(),
        report_html: String::new(),
        card_md: String::new(),
    };
    write_version(&place.join("registry/load").join(number.to_string()), &parts).expect("a version");
}

/// A daily rhythm of each shard's own, with noise that needs no generator, in tenths.
pub fn value(shard: usize, i: usize, a_day: usize) -> f64 {
    let mixed = (shard as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (i as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    let noise = (mixed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f64 / f64::from(1 << 24);
    let phase = (shard % 97) as f64 / 97.0;
    let wave = ((i as f64 / a_day as f64 + phase) * std::f64::consts::TAU).sin();
    ((40.0 + 20.0 * wave + 10.0 * noise) * 10.0).round() / 10.0
}

fn history(place: &Path, sizes: Sizes) {
    let folder = HistoryFolder::open(place.join("history"), "serving").expect("a folder");
    let step = sizes.minutes as i64 * 60_000;
    let a_day = 24 * 60 / sizes.minutes;
    let first = 20_000 * 24 * 3_600_000;
    for day in 0..sizes.days {
        for from in (0..sizes.shards).step_by(SHARDS_AT_ONCE) {
            let until = (from + SHARDS_AT_ONCE).min(sizes.shards);
            let mut rows = Vec::with_capacity((until - from) * a_day);
            for s in from..until {
                let id = ShardId::new(shard(s)).expect("a name");
                for i in day * a_day..(day + 1) * a_day {
                    let mut row = Observation::empty(id.clone(), Timestamp::from_ms(first + i as i64 * step));
                    metrics(sizes).for_each(|metric| row.set(metric, Some(value(s, i, a_day))));
                    rows.push(row);
                }
            }
            folder.append(&rows).expect("rows");
        }
    }
}
