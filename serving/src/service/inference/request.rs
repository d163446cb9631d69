//! What is asked for: inputs that are shards, and what else may be said.

use foreshard_api::inference::ModelInferRequest;
use foreshard_domain::{Metric, Product, ShardId};
use std::collections::BTreeMap;
use tonic::Status;

use super::answer::OUTPUTS;
use super::tensor::{Values, inputs};
use crate::service::forecasts::Levels;
use crate::service::status;

/// The inputs: name, type, shape. All but the first may be left out.
pub(super) const INPUTS: [(&str, &str, &[i64]); 5] = [
    ("shards", "BYTES", &[-1]),
    ("metric", "BYTES", &[1]),
    ("product", "BYTES", &[1]),
    ("levels", "FP64", &[-1]),
    ("steps", "INT64", &[1]),
];

/// A request, checked.
#[derive(Debug, Clone)]
pub(super) struct Infer {
    /// In the order of the answer; may name one twice.
    pub(super) shards: Vec<ShardId>,
    pub(super) metric: Metric,
    pub(super) product: Product,
    pub(super) levels: Levels,
    pub(super) steps: usize,
    /// Names of outputs that are wanted; all if empty.
    pub(super) outputs: Vec<String>,
}

impl Infer {
    pub(super) fn from_wire(request: &ModelInferRequest) -> Result<Self, Status> {
        let mut given = inputs(request)?;
        if let Some(name) = given.keys().find(|name| INPUTS.iter().all(|(known, ..)| known != *name)) {
            let name: String = name.chars().take(100).collect();
            return Err(status::invalid("inputs", format!("{name:?} is unknown; {}", known(&INPUTS))));
        }
        let product = match one_text(&mut given, "product")? {
            None => Product::NextDay,
            Some(name) => Product::ALL.into_iter().find(|product| product.name() == name).ok_or_else(|| {
                let known = Product::ALL.map(Product::name).join(" and ");
                status::invalid("inputs", format!("the product {name:?} is unknown; known are {known}"))
            })?,
        };
        let metric = match one_text(&mut given, "metric")? {
            None => Metric::CpuUtil,
            Some(name) => name.parse().map_err(|error| status::invalid("inputs", format!("metric: {error}")))?,
        };
        let outputs: Vec<String> = request.outputs.iter().map(|output| output.name.clone()).collect();
        if let Some(name) = outputs.iter().find(|name| OUTPUTS.iter().all(|(known, ..)| known != name)) {
            let name: String = name.chars().take(100).collect();
            return Err(status::invalid("outputs", format!("{name:?} is unknown; {}", known(&OUTPUTS))));
        }
        let steps = steps(&mut given, product)?;
        let levels = match given.remove("levels") {
            None => Vec::new(),
            Some(Values::Floats(levels)) => levels,
            Some(_) => return Err(status::invalid("inputs", "levels must be FP64 or FP32")),
        };
        let levels = Levels::new(levels)?;
        Ok(Self { shards: shards(&mut given)?, metric, product, levels, steps, outputs })
    }
}

fn known(tensors: &[(&str, &str, &[i64])]) -> String {
    let names: Vec<&str> = tensors.iter().map(|(name, ..)| *name).collect();
    format!("known are {}", names.join(", "))
}

fn shards(given: &mut BTreeMap<&str, Values>) -> Result<Vec<ShardId>, Status> {
    let names = match given.remove("shards") {
        Some(Values::Texts(names)) => names,
        Some(_) => return Err(status::invalid("inputs", "shards must be BYTES: their names")),
        None => return Err(status::invalid("inputs", "shards is missing: the names of the shards to forecast")),
    };
    if names.is_empty() {
        return Err(status::invalid("inputs", "shards is empty: name the shards to forecast"));
    }
    let shard =
        |name: String| ShardId::new(name).map_err(|error| status::invalid("inputs", format!("shards: {error}")));
    names.into_iter().map(shard).collect()
}

fn one_text(given: &mut BTreeMap<&str, Values>, name: &str) -> Result<Option<String>, Status> {
    match given.remove(name) {
        None => Ok(None),
        Some(Values::Texts(texts)) => match <[String; 1]>::try_from(texts) {
            Ok([text]) => Ok(Some(text)),
            Err(texts) => Err(status::invalid("inputs", format!("{name} must be one text, not {}", texts.len()))),
        },
        Some(_) => Err(status::invalid("inputs", format!("{name} must be BYTES"))),
    }
}

fn steps(given: &mut BTreeMap<&str, Values>, product: Product) -> Result<usize, Status> {
    let horizon = product.horizon();
    let steps = match given.remove("steps") {
        None => return Ok(horizon),
        Some(Values::Integers(steps)) => steps,
        Some(_) => return Err(status::invalid("inputs", "steps must be INT64 or INT32")),
    };
    let one = <[i64; 1]>::try_from(steps).ok().and_then(|[steps]| usize::try_from(steps).ok());
    let fits = one.filter(|steps| (1..=horizon).contains(steps));
    fits.ok_or_else(|| {
        status::invalid("inputs", format!("steps must be one number from 1 to {horizon}, for {product}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_api::inference::{InferInputTensor, InferRequestedOutputTensor, InferTensorContents};

    fn input(name: &str, datatype: &str, contents: InferTensorContents) -> InferInputTensor {
        let counts = [contents.bytes_contents.len(), contents.fp64_contents.len(), contents.int64_contents.len()];
        let shape = vec![i64::try_from(counts.iter().sum::<usize>()).unwrap()];
        let (name, datatype) = (name.to_owned(), datatype.to_owned());
        InferInputTensor { name, datatype, shape, contents: Some(contents), ..Default::default() }
    }

    fn texts(name: &str, texts: &[&str]) -> InferInputTensor {
        let bytes_contents = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        input(name, "BYTES", InferTensorContents { bytes_contents, ..Default::default() })
    }

    fn read(inputs: Vec<InferInputTensor>) -> Result<Infer, String> {
        let request = ModelInferRequest { inputs, ..Default::default() };
        Infer::from_wire(&request).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn only_shards_must_be_said() {
        let asked = read(vec![texts("shards", &["a", "b", "a"])]).unwrap();
        assert_eq!((asked.metric, asked.product, asked.steps), (Metric::CpuUtil, Product::NextDay, 96));
        assert_eq!(asked.shards.len(), 3);
        let steps = input("steps", "INT64", InferTensorContents { int64_contents: vec![12], ..Default::default() });
        let more =
            vec![texts("shards", &["a"]), texts("metric", &["io_ops"]), texts("product", &["next_hours"]), steps];
        let asked = read(more).unwrap();
        assert_eq!((asked.metric, asked.product, asked.steps), (Metric::IoOps, Product::NextHours, 12));
    }

    #[test]
    fn each_fault_says_what_would_do() {
        let with = |input: InferInputTensor| read(vec![texts("shards", &["a"]), input]).unwrap_err();
        let integers = |values: &[i64]| {
            let contents = InferTensorContents { int64_contents: values.to_vec(), ..Default::default() };
            input("steps", "INT64", contents)
        };
        for steps in [&[0][..], &[97], &[-1], &[1, 2], &[]] {
            assert!(with(integers(steps)).contains("from 1 to 96"), "{steps:?}");
        }
        assert!(with(texts("steps", &["1"])).contains("INT64"));
        assert!(with(texts("metric", &["cpu"])).contains("cpu_util"));
        assert!(with(texts("metric", &["a", "b"])).contains("one text, not 2"));
        assert!(with(texts("product", &["week"])).contains("next_hours and next_day"));
        assert!(with(texts("levels", &["0.5"])).contains("FP64"));
        assert!(with(texts("shard", &["b"])).contains("known are shards, metric"));
        assert!(read(vec![]).unwrap_err().contains("shards is missing"));
        assert!(read(vec![texts("shards", &[])]).unwrap_err().contains("shards is empty"));
        assert!(read(vec![texts("shards", &[""])]).unwrap_err().contains("must not be empty"));
        let request = ModelInferRequest {
            inputs: vec![texts("shards", &["a"])],
            outputs: vec![InferRequestedOutputTensor { name: "median".into(), ..Default::default() }],
            ..Default::default()
        };
        assert!(Infer::from_wire(&request).unwrap_err().message().contains("known are quantiles"));
    }
}
