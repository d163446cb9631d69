//! Scenario sets in chunks: one header, then runs of values in order.

use foreshard_domain::{Resource, ScenarioSet, ShardId, Step, Timestamp};

use super::names::{resource_from_wire, shard_from_wire};
use super::{duration_to_wire, step_from_wire, timestamp_from_wire, timestamp_to_wire};
use crate::{SeriesProvenance, WireError, v1};

/// Values in one chunk: 1 MiB of floats, so that a set of any size neither meets a message limit nor holds up the other
/// calls of its connection.
pub const CHUNK_VALUES: usize = 256 * 1024;

/// Most values of one set that are taken off the wire: 1 GiB of floats. A larger set is a broken header.
const MAX_VALUES: usize = 256 * 1024 * 1024;

/// The messages that carry a scenario set, first the header.
pub fn scenario_parts(
    set: &ScenarioSet,
    provenance: &[SeriesProvenance],
) -> impl Iterator<Item = v1::ScenariosResponse> {
    use v1::scenarios_response::Part;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let header = v1::ScenarioHeader {
        issued_at: Some(timestamp_to_wire(set.issued_at())),
        step: Some(duration_to_wire(set.step())),
        resources: set.resources().iter().map(|r| v1::Resource::from(*r).into()).collect(),
        shard_ids: set.shards().iter().map(ToString::to_string).collect(),
        steps: count(set.steps()),
        scenarios: count(set.scenarios()),
        provenance: provenance.iter().map(Into::into).collect(),
    };
    let chunks = set.values().chunks(CHUNK_VALUES).zip((0u64..).step_by(CHUNK_VALUES));
    let chunks = chunks.map(|(values, offset)| Part::Chunk(v1::ScenarioChunk { offset, values: values.to_vec() }));
    std::iter::once(Part::Header(header)).chain(chunks).map(|part| v1::ScenariosResponse { part: Some(part) })
}

/// Puts the messages of a scenario stream together again.
#[derive(Debug, Default)]
pub struct ScenarioAssembler {
    header: Option<Header>,
    values: Vec<f32>,
}

#[derive(Debug)]
struct Header {
    issued_at: Timestamp,
    step: Step,
    resources: Vec<Resource>,
    shards: Vec<ShardId>,
    steps: usize,
    scenarios: usize,
    provenance: Vec<SeriesProvenance>,
    total: usize,
}

fn broken(what: impl Into<String>) -> WireError {
    WireError::Stream { what: what.into() }
}

impl Header {
    fn from_wire(header: v1::ScenarioHeader) -> Result<Self, WireError> {
        let count = |n: u32| usize::try_from(n).unwrap_or(usize::MAX);
        let (steps, scenarios) = (count(header.steps), count(header.scenarios));
        let sizes = [header.resources.len(), header.shard_ids.len(), steps, scenarios];
        let total = sizes.iter().try_fold(1usize, |a, b| a.checked_mul(*b)).filter(|total| *total <= MAX_VALUES);
        let total = total.ok_or_else(|| broken(format!("{sizes:?} is more than {MAX_VALUES} values")))?;
        let resources = header.resources.into_iter().map(|r| resource_from_wire("resources", r));
        let shards = header.shard_ids.into_iter().map(|name| shard_from_wire("shard_ids", name));
        Ok(Self {
            issued_at: timestamp_from_wire("issued_at", header.issued_at)?,
            step: step_from_wire("step", header.step)?,
            resources: resources.collect::<Result<_, _>>()?,
            shards: shards.collect::<Result<_, _>>()?,
            steps,
            scenarios,
            provenance: header.provenance.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?,
            total,
        })
    }
}

impl ScenarioAssembler {
    /// Takes the next message.
    ///
    /// # Errors
    /// [`WireError`] if it is out of order, empty, too long, or its header is broken.
    pub fn push(&mut self, message: v1::ScenariosResponse) -> Result<(), WireError> {
        use v1::scenarios_response::Part;
        match (message.part, &self.header) {
            (Some(Part::Header(header)), None) => {
                self.header = Some(Header::from_wire(header)?);
                Ok(())
            }
            (Some(Part::Header(_)), Some(_)) => Err(broken("a second header came")),
            (Some(Part::Chunk(_)), None) => Err(broken("values came before the header")),
            (Some(Part::Chunk(chunk)), Some(header)) => {
                let have = self.values.len();
                if usize::try_from(chunk.offset) != Ok(have) {
                    return Err(broken(format!("a chunk at {} came where {have} was due", chunk.offset)));
                }
                if chunk.values.len() > header.total - have {
                    return Err(broken(format!("more values came than the {} announced", header.total)));
                }
                self.values.extend_from_slice(&chunk.values);
                Ok(())
            }
            (None, _) => Err(broken("a message without content came")),
        }
    }

    /// The set, once the stream has ended.
    ///
    /// # Errors
    /// [`WireError`] if the stream ended early or the values are no scenario set.
    pub fn finish(self) -> Result<(ScenarioSet, Vec<SeriesProvenance>), WireError> {
        let header = self.header.ok_or_else(|| broken("it ended before the header"))?;
        if self.values.len() != header.total {
            return Err(broken(format!("it ended after {} of {} values", self.values.len(), header.total)));
        }
        let Header { issued_at, step, resources, shards, steps, scenarios, provenance, .. } = header;
        let set = ScenarioSet::new(issued_at, step, resources, shards, (steps, scenarios), self.values);
        Ok((set.map_err(WireError::Scenarios)?, provenance))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::{Fallback, Provenance, ScenarioError};

    fn set() -> (ScenarioSet, Vec<SeriesProvenance>) {
        let shards: Vec<ShardId> = ["a", "@node/n1"].map(|s| ShardId::new(s).unwrap()).to_vec();
        let (steps, scenarios) = (96, 800);
        let values: Vec<f32> = (0..2 * 2 * steps * scenarios).map(|i| i as f32).collect();
        let provenance = Provenance { fallback: Some(Fallback::NoModel), ..Provenance::default() };
        let provenance = SeriesProvenance { shard: shards[1].clone(), resource: Resource::Io, provenance };
        let resources = vec![Resource::Cpu, Resource::Io];
        let ts = Timestamp::from_ms(900_000);
        let set = ScenarioSet::new(ts, Step::QUARTER_HOUR, resources, shards, (steps, scenarios), values).unwrap();
        (set, vec![provenance])
    }

    fn assembled(
        parts: impl IntoIterator<Item = v1::ScenariosResponse>,
    ) -> Result<(ScenarioSet, Vec<SeriesProvenance>), WireError> {
        let mut assembler = ScenarioAssembler::default();
        parts.into_iter().try_for_each(|part| assembler.push(part))?;
        assembler.finish()
    }

    #[test]
    fn a_set_of_several_chunks_goes_both_ways() {
        let (set, provenance) = set();
        let parts: Vec<_> = scenario_parts(&set, &provenance).collect();
        assert_eq!(parts.len(), 3, "a header and two chunks");
        assert_eq!(assembled(parts), Ok((set, provenance)));
    }

    #[test]
    fn broken_streams_are_refused() {
        let (set, provenance) = set();
        let parts = || scenario_parts(&set, &provenance);
        let stream_error = |parts: Vec<_>| matches!(assembled(parts), Err(WireError::Stream { .. }));
        assert!(stream_error(vec![]));
        assert!(stream_error(parts().skip(1).collect()), "no header");
        assert!(stream_error(parts().take(2).collect()), "ended early");
        assert!(stream_error(parts().enumerate().filter(|(i, _)| *i != 1).map(|(_, p)| p).collect()), "a gap");
        assert!(stream_error(parts().take(1).chain(parts()).collect()), "two headers");
        assert!(stream_error(vec![v1::ScenariosResponse { part: None }]));
    }

    #[test]
    fn a_header_cannot_ask_for_endless_memory() {
        use v1::scenarios_response::Part;
        let header = v1::ScenarioHeader {
            resources: vec![1, 2, 3],
            shard_ids: vec!["a".into()],
            steps: u32::MAX,
            scenarios: u32::MAX,
            ..Default::default()
        };
        let message = v1::ScenariosResponse { part: Some(Part::Header(header)) };
        assert!(matches!(assembled([message]), Err(WireError::Stream { .. })));
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        use v1::scenarios_response::Part;
        let (set, provenance) = set();
        let mut parts: Vec<_> = scenario_parts(&set, &provenance).collect();
        if let Some(Part::Chunk(chunk)) = &mut parts[2].part {
            chunk.values[0] = f32::INFINITY;
        }
        assert!(matches!(assembled(parts), Err(WireError::Scenarios(ScenarioError::NotFinite { .. }))));
    }
}
