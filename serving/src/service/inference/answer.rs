//! Forecasts as tensors.

use foreshard_api::MAX_RESPONSE_BYTES;
use foreshard_api::inference::{InferOutputTensor, ModelInferResponse};
use foreshard_domain::{Fallback, SeriesForecast, ShardId};
use std::collections::BTreeMap;
use tonic::Status;

use super::request::Infer;
use super::tensor::raw_texts;
use crate::service::status;

/// The outputs: name, type, shape.
pub(super) const OUTPUTS: [(&str, &str, &[i64]); 5] = [
    ("quantiles", "FP64", &[-1, -1, -1]),
    ("times", "INT64", &[-1]),
    ("levels", "FP64", &[-1]),
    ("fallback", "BYTES", &[-1]),
    ("last_observed", "INT64", &[-1]),
];

/// What stands for a time that there is not.
const NEVER: i64 = -1;

/// Whether the answer goes into one message: found out before it is computed.
pub(super) fn check_fits(asked: &Infer) -> Result<(), Status> {
    let numbers = asked.shards.len().saturating_mul(asked.steps).saturating_mul(asked.levels.count());
    if numbers.saturating_mul(size_of::<f64>()) <= MAX_RESPONSE_BYTES {
        return Ok(());
    }
    let why = format!("{} shards make more than {MAX_RESPONSE_BYTES} bytes; ask for fewer at once", asked.shards.len());
    Err(status::invalid("inputs", why))
}

/// Puts forecasts into tensors, one entry for each shard that was asked for, in that order.
pub(super) fn answer(asked: &Infer, series: &[SeriesForecast]) -> Result<ModelInferResponse, Status> {
    let by_shard: BTreeMap<&ShardId, &SeriesForecast> = series.iter().map(|series| (&series.shard, series)).collect();
    let rows: Option<Vec<&SeriesForecast>> = asked.shards.iter().map(|shard| by_shard.get(shard).copied()).collect();
    let rows = rows.ok_or_else(|| Status::internal("a shard that was asked for was not forecast"))?;
    let Some(first) = rows.first() else { return Err(Status::internal("nothing was forecast")) };
    let levels = first.forecast.levels().as_slice();
    let numbers = rows.len().saturating_mul(asked.steps).saturating_mul(levels.len());
    let mut response = ModelInferResponse::default();
    for (name, datatype, _) in OUTPUTS {
        if !asked.outputs.is_empty() && asked.outputs.iter().all(|wanted| wanted != name) {
            continue;
        }
        let (shape, bytes) = match name {
            "quantiles" => {
                (vec![rows.len(), asked.steps, levels.len()], quantiles(&rows, asked.steps, levels.len(), numbers)?)
            }
            "times" => (vec![asked.steps], times(first, asked.steps)),
            "levels" => (vec![levels.len()], levels.iter().flat_map(|level| level.to_le_bytes()).collect()),
            "fallback" => {
                let codes = rows.iter().map(|row| row.provenance.fallback.map_or("", Fallback::code));
                (vec![rows.len()], raw_texts(codes).unwrap_or_default())
            }
            _ => {
                let seen = rows.iter().map(|row| row.provenance.last_observed.map_or(NEVER, |ts| ts.as_ms()));
                (vec![rows.len()], seen.flat_map(i64::to_le_bytes).collect())
            }
        };
        response.outputs.push(InferOutputTensor {
            name: name.to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.into_iter().map(|side| i64::try_from(side).unwrap_or(i64::MAX)).collect(),
            ..Default::default()
        });
        response.raw_output_contents.push(bytes);
    }
    Ok(response)
}

fn quantiles(rows: &[&SeriesForecast], steps: usize, levels: usize, numbers: usize) -> Result<Vec<u8>, Status> {
    let mut bytes = Vec::with_capacity(numbers.saturating_mul(size_of::<f64>()));
    for row in rows {
        let values = row.forecast.values().get(..steps.saturating_mul(levels));
        let values = values.filter(|_| row.forecast.levels().as_slice().len() == levels);
        let values = values.ok_or_else(|| Status::internal("forecasts of different shapes"))?;
        bytes.extend(values.iter().flat_map(|value| f64::from(*value).to_le_bytes()));
    }
    Ok(bytes)
}

/// Milliseconds since 1970 of the steps, each of which lasts from there on.
fn times(series: &SeriesForecast, steps: usize) -> Vec<u8> {
    let steps = (1..).take(steps).map(|i| series.issued_at.plus_steps(i, series.step).as_ms());
    steps.flat_map(i64::to_le_bytes).collect()
}
