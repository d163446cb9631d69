//! Networks that were fitted on made-up loads before any history was seen: what loads do in general, from which a fit on few
//! series can begin.
//!
//! `training/examples/pretrain` makes them; nothing of any measured trace is in them. They fit the features of one shape
//! each: the products, and protocols of the same season and horizon.

use std::collections::BTreeMap;

use foreshard_domain::Product;

use crate::{Architecture, Features, ForecastSpec, Weights, read_weights};

/// Names of the networks in a file: the whole one, and the same without its recurrent part, which tells what that is worth.
pub const PRETRAINED: [&str; 2] = ["lstm", "lags"];

fn file(product: Product) -> &'static [u8] {
    match product {
        Product::NextHours => include_bytes!("../pretrained/next_hours.safetensors"),
        Product::NextDay => include_bytes!("../pretrained/next_day.safetensors"),
    }
}

/// The network of these sizes for features of this shape, if there is one.
pub fn pretrained(features: &Features, architecture: Architecture) -> Option<Weights> {
    let shape = |f: &Features| (f.season, f.horizon);
    let fits = |product: &Product| shape(&Features::new(&ForecastSpec::of_product(*product))) == shape(features);
    let product = Product::ALL.into_iter().find(fits)?;
    let name = PRETRAINED[usize::from(architecture.encoder == 0)];
    let wanted = BTreeMap::from([(name.to_owned(), architecture)]);
    // Of other sizes there is none.
    read_weights(file(product), &wanted).ok()?.remove(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FeatureTable, Filled, Lanes};
    use foreshard_domain::Timestamp;

    /// The networks know features by their place: if one comes to mean something else, they have to be made anew
    /// (`cargo run --release -p foreshard-training --example pretrain`), and these sums with them.
    #[test]
    fn features_are_those_that_they_were_fitted_on() {
        let known = [[-1.6116, -0.8159, -1.4236, 1.3114, -1.5470], [2.8186, -1.0581, -1.0210, 1.3113, -0.2649]];
        for (product, known) in Product::ALL.into_iter().zip(known) {
            let spec = ForecastSpec::of_product(product);
            let n = spec.season_steps * 30;
            let wave = |i: usize| (i as f32 / spec.season_steps as f32 * std::f32::consts::TAU).sin();
            let values: Vec<f32> = (0..n).map(|i| 40.0 + 20.0 * wave(i) + ((i * 7919) % 101) as f32 / 10.0).collect();
            let filled = Filled::new(&values, spec.season_steps);
            let start = Timestamp::from_ms(1_700_006_400_000);
            let lanes = Lanes::new(1).unwrap();
            let table = FeatureTable::new(Features::new(&spec), &[(&filled, n, start)], &lanes);
            let steps: Vec<usize> = (0..spec.horizon).collect();
            let batch = table.batch(&[0], &steps, |_| false);
            let lists =
                [&batch.step_inputs, &batch.origin_inputs, &batch.anchors, &batch.spreads, batch.patches.as_ref()];
            let sum =
                |list: &Vec<f32>| list.iter().enumerate().map(|(i, v)| f64::from(*v) * (i as f64).cos()).sum::<f64>();
            for (own, known) in lists.map(sum).into_iter().zip(known) {
                assert!((own - known).abs() < 2e-2, "{}: {:?}", product.name(), lists.map(sum));
            }
        }
    }

    #[test]
    fn there_is_one_for_each_product_and_kind() {
        for product in Product::ALL {
            let features = Features::new(&ForecastSpec::of_product(product));
            let full = Architecture::new(&features);
            for sizes in [full, full.without_encoder()] {
                let weights = pretrained(&features, sizes).unwrap();
                assert_eq!(weights.values.len(), sizes.size());
                let mut blind = weights.clone();
                sizes.blind_to_calendar(&mut blind);
                assert_eq!(blind, weights, "made-up loads have no calendar");
            }
            assert!(pretrained(&features, Architecture { decoder: 32, ..full }).is_none());
            let other = Features { horizon: features.horizon + 1, ..features };
            assert!(pretrained(&other, full).is_none());
        }
    }
}
