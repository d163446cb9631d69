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
