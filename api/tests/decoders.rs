//! Whatever bytes come in place of a message: an error or a value, never a panic. `PROPTEST_CASES` says how often each is tried;
//! `scripts/nightly decoders` tries a million times.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use foreshard_api::{
    ForecastQuery, Migration, MigrationDetails, ModelInfo, NodeLoad, NodeQuery, RiskQuery, ScenarioAssembler,
    ScenarioQuery, ShardOwner, ShardRisk, StartMigration, v1,
};
use foreshard_domain::{Observation, SeriesForecast};
use proptest::prelude::*;
use prost::Message;

type Decode = fn(&[u8]) -> Option<bool>;

/// Whether the bytes are a message, and whether that is a value.
fn decoded<M: Message + Default, D: TryFrom<M>>(bytes: &[u8]) -> Option<bool> {
    M::decode(bytes).ok().map(|message| D::try_from(message).is_ok())
}

/// A stream of scenarios: each message carries its length.
fn assembled(mut bytes: &[u8]) -> Option<bool> {
    let mut assembler = ScenarioAssembler::default();
    while !bytes.is_empty() {
        let part = v1::ScenariosResponse::decode_length_delimited(&mut bytes).ok()?;
        if assembler.push(part).is_err() {
            return Some(false);
        }
    }
    Some(assembler.finish().is_ok())
}

const DECODERS: [(&str, Decode); 14] = [
    ("forecast", decoded::<v1::ForecastRequest, ForecastQuery>),
    ("risk", decoded::<v1::RiskRequest, RiskQuery>),
    ("scenarios", decoded::<v1::ScenariosRequest, ScenarioQuery>),
    ("nodes", decoded::<v1::NodeForecastRequest, NodeQuery>),
    ("row", decoded::<v1::Observation, Observation>),
    ("series", decoded::<v1::SeriesForecast, SeriesForecast>),
    ("shard risk", decoded::<v1::ShardRisk, ShardRisk>),
    ("node load", decoded::<v1::NodeLoad, NodeLoad>),
    ("model", decoded::<v1::ModelInfo, ModelInfo>),
    ("start", decoded::<v1::StartMigrationRequest, StartMigration>),
    ("migration", decoded::<v1::Migration, Migration>),
    ("details", decoded::<v1::ShowMigrationResponse, MigrationDetails>),
    ("owner", decoded::<v1::ShardOwner, ShardOwner>),
    ("scenario parts", assembled),
];

/// Requests and rows that are as they should be, to be damaged.
fn sound() -> Vec<Vec<u8>> {
    let product = v1::Product::NextDay.into();
    let shard_ids = vec!["a".to_owned(), "shard-2".to_owned()];
    let metrics = vec![v1::Metric::CpuUtil.into(), v1::Metric::IoOps.into()];
    let levels = vec![0.1, 0.5, 0.9];
    let row = v1::Observation {
        shard_id: "a".into(),
        node_id: "n".into(),
        ts: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 5 }),
        cpu_util: Some(1.5),
        data_bytes: Some(1e9),
        ..Default::default()
    };
    let forecast = v1::ForecastRequest { shard_ids: shard_ids.clone(), metrics, product, levels: levels.clone() };
    let limits = Some(v1::Limits { cpu: Some(80.0), ..Default::default() });
    let risk = v1::RiskRequest { shard_ids: shard_ids.clone(), product, window_steps: Some(4), limits };
    let scenarios = v1::ScenariosRequest { shard_ids, product, scenarios: 100, seed: 7 };
    let nodes = v1::NodeForecastRequest { node_ids: vec!["n".into()], product, levels, ..Default::default() };
    vec![
        row.encode_to_vec(),
        forecast.encode_to_vec(),
        risk.encode_to_vec(),
        scenarios.encode_to_vec(),
        nodes.encode_to_vec(),
    ]
}

/// One change of some bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
    Twice(usize, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = || 0..200usize;
    prop_oneof![
        (at(), 1..=u8::MAX).prop_map(|(at, by)| Damage::Flip(at, by)),
        at().prop_map(Damage::Cut),
        (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        (at(), at()).prop_map(|(from, bytes)| Damage::Twice(from, bytes)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damages: &[Damage]) -> Vec<u8> {
    for damage in damages {
        let length = bytes.len() + 1;
        match damage {
            Damage::Flip(at, by) => {
                if let Some(byte) = bytes.get_mut(at % length) {
                    *byte ^= by;
                }
            }
            Damage::Cut(at) => bytes.truncate(at % length),
            Damage::Insert(at, more) => {
                bytes.splice(at % length..at % length, more.iter().copied());
            }
            Damage::Twice(from, n) => {
                let again: Vec<u8> = bytes.iter().skip(from % length).take(*n).copied().collect();
                bytes.extend(again);
            }
        }
    }
    bytes
}

#[test]
fn what_is_sound_is_taken() {
    let decoders = ["row", "forecast", "risk", "scenarios", "nodes"];
    for (name, bytes) in decoders.iter().zip(sound()) {
        let decode = DECODERS.iter().find(|(known, _)| known == name).unwrap().1;
        assert_eq!(decode(&bytes), Some(true), "{name}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, decode) in DECODERS {
            decode(&bytes);
        }
    }

    #[test]
    fn damaged_messages_are_an_error_or_a_value(
        which in 0..5usize,
        damages in prop::collection::vec(damage(), 1..6),
    ) {
        let bytes = damaged(sound().swap_remove(which), &damages);
        for (_, decode) in DECODERS {
            decode(&bytes);
        }
    }

    #[test]
    fn any_numbers_in_a_row_are_an_error_or_a_value(seconds in any::<i64>(), nanos in any::<i32>(), cpu in any::<f64>()) {
        let ts = Some(prost_types::Timestamp { seconds, nanos });
        let row = v1::Observation { shard_id: "a".into(), ts, cpu_util: Some(cpu), ..Default::default() };
        let bytes = row.encode_to_vec();
        prop_assert_eq!(v1::Observation::decode(&bytes[..]).unwrap().ts, ts);
        let _ = Observation::try_from(row);
    }
}
