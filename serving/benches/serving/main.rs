//! How a serving process answers, measured at a client on the same machine: the shipped network, distinct shards, and no cache
//! unless `cache=MIB` asks for one.
//!
//! `cargo bench -p foreshard-serving --bench serving -- PART [NAME=VALUE ...]`, with the parts
//!
//! - `latency`: one series of the next day a request, at a fixed rate;
//! - `stream`: the next day of all shards in one `ForecastStream`;
//! - `reload`: the same as `latency` while versions are exchanged, beside runs without;
//! - `overload`: four times what the server can bear;
//! - `start`: from the start of the process until it answers.
//!
//! The server is a process of its own, over a history and a registry that are written once for each set of sizes. Requests leave
//! at moments that were fixed before (an open loop) and are timed from those moments, whatever happens to earlier ones.
#![allow(missing_docs, clippy::expect_used, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "a benchmark measures real time")]

mod floor;
mod load;
mod parts;
mod place;
mod server;

use std::collections::BTreeMap;

/// Sizes, from the command line.
#[derive(Debug, Clone)]
pub struct Options(BTreeMap<String, usize>);

impl Options {
    /// The value of an option, or its default.
    pub fn get(&self, name: &str, default: usize) -> usize {
        self.0.get(name).copied().unwrap_or(default)
    }
}

fn main() {
    // Cargo adds a word of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    if let [word, place, days, cache_mib] = words.as_slice()
        && word == "serve"
    {
        return server::serve(place.as_ref(), days.parse().expect("days"), cache_mib.parse().expect("MiB"));
    }
    let number = |word: &String| word.split_once('=').and_then(|(name, n)| Some((name.to_owned(), n.parse().ok()?)));
    let options = Options(words.iter().filter_map(number).collect());
    let parts: Vec<&str> = words.iter().map(String::as_str).filter(|word| !word.contains('=')).collect();
    for part in if parts.is_empty() { vec!["latency"] } else { parts } {
        match part {
            "latency" => parts::latency(&options),
            "stream" => parts::stream(&options),
            "reload" => parts::reload(&options),
            "overload" => parts::overload(&options),
            "start" => parts::start(&options),
            other => panic!("{other} is none of latency, stream, reload, overload and start"),
        }
    }
}
