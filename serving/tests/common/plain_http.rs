//! Plain HTTP, and what Prometheus sends over it.

use prost::Message;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[derive(Clone, PartialEq, Message)]
struct WriteRequest {
    #[prost(message, repeated, tag = "1")]
    series: Vec<TimeSeries>,
}

#[derive(Clone, PartialEq, Message)]
struct TimeSeries {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(double, tag = "1")]
    value: f64,
    #[prost(int64, tag = "2")]
    timestamp: i64,
}

/// Labels and samples (milliseconds, value).
pub type Series<'a> = (&'a [(&'a str, &'a str)], &'a [(i64, f64)]);

/// The body of a remote write request.
pub fn packed(all: &[Series<'_>]) -> Vec<u8> {
    let series = all.iter().map(|(labels, samples)| TimeSeries {
        labels: labels.iter().map(|(name, value)| Label { name: (*name).into(), value: (*value).into() }).collect(),
        samples: samples.iter().map(|(timestamp, value)| Sample { value: *value, timestamp: *timestamp }).collect(),
    });
    let message = WriteRequest { series: series.collect() }.encode_to_vec();
    snap::raw::Encoder::new().compress_vec(&message).unwrap()
}

pub const REMOTE_WRITE: &str =
    "content-type: application/x-protobuf\r\ncontent-encoding: snappy\r\nx-prometheus-remote-write-version: 0.1.0\r\n";

/// Status and all that was answered.
pub async fn post(addr: SocketAddr, path: &str, headers: &str, body: &[u8]) -> std::io::Result<(u16, String)> {
    let head = format!("POST {path} HTTP/1.0\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n", body.len());
    asked(addr, &[head.as_bytes(), body].concat()).await
}

pub async fn get(addr: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    asked(addr, format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n").as_bytes()).await
}

async fn asked(addr: SocketAddr, request: &[u8]) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(request).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, answer))
}
