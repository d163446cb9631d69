//! The bytes of a request: a snappy block with a `prometheus.WriteRequest` in it.
//!
//! Series are taken out of the message one after the other, so that a hostile message (millions of empty series or samples,
//! two bytes each) never becomes many times as large in memory as it is.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::borrow::Cow;

use super::refusal::Refusal;

/// Bytes of one series in a message: at two bytes a sample, a few MiB in memory.
const MOST_SERIES_BYTES: usize = 1 << 20;

/// One series with its new samples.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    pub(super) labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Label {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) value: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Sample {
    #[prost(double, tag = "1")]
    pub(super) value: f64,
    /// Milliseconds since 1970.
    #[prost(int64, tag = "2")]
    pub(super) timestamp: i64,
}

impl TimeSeries {
    /// The value of a label; empty if there is none.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|label| label.name == name).map_or("", |label| &label.value)
    }

    /// As Prometheus writes it, for people.
    pub(super) fn told(&self) -> String {
        let labels = self.labels.iter().filter(|label| label.name != "__name__");
        let labels: Vec<String> = labels.map(|label| format!("{}={:?}", label.name, label.value)).collect();
        let told = format!("{}{{{}}}", self.label("__name__"), labels.join(","));
        told.chars().take(300).collect()
    }
}

/// The message in a block.
pub(super) fn unpacked(body: &[u8], most: usize) -> Result<Vec<u8>, Refusal> {
    let undecodable = |error: snap::Error| Refusal::Undecodable(format!("it is no snappy block: {error}").into());
    // The length stands at the beginning: memory is taken only after it was looked at.
    if snap::raw::decompress_len(body).map_err(undecodable)? > most {
        return Err(Refusal::TooLong { most });
    }
    snap::raw::Decoder::new().decompress_vec(body).map_err(undecodable)
}

/// Calls `on` with each series of a message; stops at the first place that is none.
pub(super) fn for_each_series(mut message: &[u8], on: &mut dyn FnMut(TimeSeries)) -> Result<(), Refusal> {
    let broken = |error: prost::DecodeError| undecodable(error.to_string());
    while !message.is_empty() {
        let (tag, kind) = decode_key(&mut message).map_err(broken)?;
        if tag != 1 {
            // Descriptions of metrics, and what later versions add.
            skip_field(kind, tag, &mut message, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        if kind != WireType::LengthDelimited {
            return Err(undecodable("a series is no message"));
        }
        let length = decode_varint(&mut message).map_err(broken)?;
        let length = usize::try_from(length).ok().filter(|length| *length <= message.len());
        let (series, rest) = length
            .and_then(|length| message.split_at_checked(length))
            .ok_or_else(|| undecodable("it ends too early"))?;
        if series.len() > MOST_SERIES_BYTES {
            return Err(undecodable(format!("a series has more than {MOST_SERIES_BYTES} bytes; send fewer samples")));
        }
        on(TimeSeries::decode(series).map_err(broken)?);
        message = rest;
    }
    Ok(())
}

fn undecodable(why: impl Into<Cow<'static, str>>) -> Refusal {
    Refusal::Undecodable(why.into())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A message as Prometheus makes it.
    #[derive(Clone, PartialEq, Message)]
    pub(in super::super) struct WriteRequest {
        #[prost(message, repeated, tag = "1")]
        pub(in super::super) series: Vec<TimeSeries>,
        #[prost(string, tag = "3")]
        pub(in super::super) metadata: String,
    }

    pub(in super::super) fn series(labels: &[(&str, &str)], samples: &[(i64, f64)]) -> TimeSeries {
        let label = |(name, value): &(&str, &str)| Label { name: (*name).into(), value: (*value).into() };
        let sample = |(timestamp, value): &(i64, f64)| Sample { value: *value, timestamp: *timestamp };
        TimeSeries { labels: labels.iter().map(label).collect(), samples: samples.iter().map(sample).collect() }
    }

    fn read(bytes: &[u8]) -> Result<Vec<TimeSeries>, Refusal> {
        let mut all = Vec::new();
        for_each_series(bytes, &mut |series| all.push(series))?;
        Ok(all)
    }

    #[test]
    fn series_are_taken_out_one_by_one() {
        let all = vec![series(&[("__name__", "cpu"), ("db", "a")], &[(1, 2.0), (-5, f64::NAN)]), series(&[], &[])];
        let message = WriteRequest { series: all.clone(), metadata: "more".to_owned() }.encode_to_vec();
        let packed = snap::raw::Encoder::new().compress_vec(&message).unwrap();
        let unpacked = unpacked(&packed, message.len()).unwrap();
        let got = read(&unpacked).unwrap();
        assert_eq!(got[0].labels, all[0].labels);
        assert_eq!((got[0].samples[0].clone(), got[0].samples[1].value.is_nan()), (all[0].samples[0].clone(), true));
        assert_eq!((got.len(), got[0].told()), (2, r#"cpu{db="a"}"#.to_owned()));
        assert!(matches!(super::unpacked(&packed, message.len() - 1), Err(Refusal::TooLong { .. })));
    }

    #[test]
    fn a_promise_of_gigabytes_takes_no_memory() {
        // A length of 4 GiB and nothing behind it.
        assert!(matches!(unpacked(&[0xff, 0xff, 0xff, 0xff, 0x0f], 1000), Err(Refusal::TooLong { most: 1000 })));
        assert!(matches!(unpacked(&[100, 1, 2], 1000), Err(Refusal::Undecodable(_))));
        assert!(matches!(read(&[10, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Refusal::Undecodable(_))));
        assert!(matches!(read(&[8, 1]), Err(Refusal::Undecodable(_))), "field 1 as a number");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            _ = read(&bytes);
            _ = unpacked(&bytes, 10_000).map(|message| read(&message));
        }
    }
}
