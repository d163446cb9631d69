//! What Prometheus answers (its documentation, "HTTP API").

use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// A whole answer, good or bad.
#[derive(Debug, Deserialize)]
pub(super) struct Answer {
    #[serde(default, rename = "errorType")]
    pub(super) error_type: String,
    #[serde(default)]
    pub(super) error: String,
    #[serde(default)]
    pub(super) warnings: Vec<String>,
    pub(super) data: Option<Data>,
}

/// What a query gave.
#[derive(Debug, Deserialize)]
pub(super) struct Data {
    /// `matrix` for a range.
    #[serde(rename = "resultType")]
    pub(super) kind: String,
    pub(super) result: Vec<RangeSeries>,
}

/// One series of a range.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct RangeSeries {
    /// Its labels, the name of the metric (`__name__`) among them where the query keeps it.
    #[serde(rename = "metric")]
    pub labels: BTreeMap<String, String>,
    /// Its values, oldest first. A series of histograms has none.
    #[serde(default)]
    pub values: Vec<Point>,
}

impl RangeSeries {
    /// The value of a label; empty if there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// A value and its time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Milliseconds since 1970.
    pub ts_ms: i64,
    /// Whatever number, also none (`NaN`).
    pub value: f64,
}

impl<'de> Deserialize<'de> for Point {
    /// A pair of seconds as a number and a value as text.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (seconds, value) = <(f64, String)>::deserialize(deserializer)?;
        // What is no time of this earth becomes one that rows are refused for.
        let ts_ms = (seconds * 1e3).round() as i64;
        let value = value.parse().map_err(|_| serde::de::Error::custom(format!("{value:?} is no number")))?;
        Ok(Self { ts_ms, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_read_with_all_numbers_that_there_are() {
        let text = r#"{"status":"success","data":{"resultType":"matrix","result":[
            {"metric":{"__name__":"up","db":"a"},"values":[[1435781430.781,"1"],[1435781445,"NaN"],[1435781460,"+Inf"],[1,"-Inf"],[2,"1e-3"]]},
            {"metric":{},"histograms":[]}]}}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        let Data { kind, result: series } = answer.data.unwrap();
        assert_eq!(kind, "matrix");
        assert_eq!(series[0].values[0], Point { ts_ms: 1_435_781_430_781, value: 1.0 });
        assert!(series[0].values[1].value.is_nan() && series[0].values[2].value == f64::INFINITY);
        assert_eq!((series[0].label("db"), series[0].label("x"), series[1].values.len()), ("a", "", 0));
        assert!(serde_json::from_str::<Answer>(&text.replace("1e-3", "much")).is_err());
    }

    #[test]
    fn an_error_is_read() {
        let text = r#"{"status":"error","errorType":"bad_data","error":"parse error","warnings":["w"]}"#;
        let answer: Answer = serde_json::from_str(text).unwrap();
        assert_eq!((answer.error_type.as_str(), answer.error.as_str()), ("bad_data", "parse error"));
        assert!(answer.data.is_none());
    }
}
