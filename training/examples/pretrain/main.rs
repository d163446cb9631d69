//! Makes the networks that fits begin with beside a fresh one (`model/pretrained`): fitted on made-up loads alone.
//!
//! `cargo run --release -p foreshard-training --example pretrain`: some minutes on two cores, 10 GB of memory; one seed, so the
//! same instructions give the same files. They have to be made anew when features or sizes change.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::unwrap_used, clippy::print_stderr)]

mod loads;

use std::collections::BTreeMap;
use std::path::Path;

use foreshard_datasets::GridSeries;
use foreshard_domain::{Metric, Product, ShardId, Timestamp};
use foreshard_model::{PRETRAINED, weights_bytes};
use foreshard_training::{FitControl, MemberSpec, ProductSpec, TrainParams, TrainSeries, fit};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const SERIES: u64 = 12_000;
const ORIGINS: usize = 180_000;
const STEPS: usize = 24_000;
const SEED: u64 = 5;

/// A made-up series in the steps of a product.
fn series(product: &ProductSpec, number: u64) -> TrainSeries {
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    rng.set_stream(number);
    // Long histories mostly; short ones teach what to do where there is little.
    let days = [12, 26, 26, 42, 42][rng.random_range(0..5)];
    let fine = loads::load(&mut rng, days);
    let together = loads::DAY / product.forecast.season_steps;
    let values: Vec<f32> =
        fine.chunks_exact(together).map(|c| (c.iter().sum::<f64>() / together as f64) as f32).collect();
    let step = product.forecast.step;
    // Any phase of the week; the calendar is hidden all the same.
    let start =
        Timestamp::from_ms(1_577_836_800_000 + rng.random_range(0..2016) * 300_000 / step.as_ms() * step.as_ms());
    TrainSeries {
        shard: ShardId::new(format!("made-up-{number:04}")).expect("a name"),
        metric: Metric::CpuUtil,
        usable: values.len(),
        series: GridSeries { start, step, values },
        events: Default::default(),
    }
}

fn main() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/pretrained");
    for product in Product::ALL.map(ProductSpec::from) {
        let name = product.name.clone();
        let all = (0..SERIES).map(|number| series(&product, number)).collect();
        let params = TrainParams {
            products: vec![product],
            members: vec![MemberSpec::LSTM, MemberSpec { encoder: 0, ..MemberSpec::LSTM }],
            seed: SEED,
            steps: STEPS,
            origins: ORIGINS,
            rows: 96 * ORIGINS,
            dropout: 0.1,
            validation_share: 0.02,
            patience: 1_000_000,
            calibrate: false,
            refit: false,
            blend: false,
            calendar: false,
            ..TrainParams::default()
        };
        let mut progress = |p: foreshard_training::FitProgress| {
            if let Some(validation) = p.validation {
                eprintln!(
                    "{} member {} step {}: {:.4}, held back {validation:.4}",
                    p.product, p.member.0, p.step.0, p.loss
                );
            }
        };
        let mut control = FitControl { progress: &mut progress, checkpoint: None, stop: &|| false };
        let series = BTreeMap::from([(name.clone(), all)]);
        let fitted = fit(&series, &params.check().expect("sound parameters"), &mut control).expect("a fit");
        let members = fitted.into_members(&name).expect("the product");
        let networks = PRETRAINED.iter().map(|n| (*n).to_owned()).zip(members).collect();
        let file = folder.join(format!("{name}.safetensors"));
        std::fs::write(&file, weights_bytes(&networks).expect("weights")).expect("a file");
        eprintln!("{} is written", file.display());
    }
}
