//! `topology.toml`: nodes, capacities, zones and rules.

use std::path::{Path, PathBuf};

use foreshard_domain::{Topology, TopologyErrors};

/// Why there is no topology.
#[derive(Debug, thiserror::Error)]
pub enum TopologyFileError {
    /// The file cannot be read.
    #[error("cannot read topology file {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or has keys or types that a topology does not have.
    #[error("topology file {path} cannot be parsed")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// The topology contradicts itself.
    #[error("topology file {path} cannot be used")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong.
        #[source]
        source: TopologyErrors,
    },
}

/// Reads and checks a topology; unknown keys are errors.
///
/// # Errors
/// [`TopologyFileError`].
pub fn read_topology(path: &Path) -> Result<Topology, TopologyFileError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| TopologyFileError::Io { path: path.to_owned(), source })?;
    let topology: Topology = toml::from_str(&text)
        .map_err(|source| TopologyFileError::Toml { path: path.to_owned(), source: Box::new(source) })?;
    topology.validate().map_err(|source| TopologyFileError::Invalid { path: path.to_owned(), source })?;
    Ok(topology)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foreshard_domain::NodeId;

    const TEXT: &str = r#"
        [[nodes]]
        id = "n1"
        zone = "a"
        capacity = { cpu = 100.0, io = 5000.0 }

        [[nodes]]
        id = "n2"
        zone = "b"
        speed = 2.0
        state = "draining"

        [[groups]]
        id = "replicas"
        shards = ["s1", "s2"]
        spread = "zone"

        [[pins]]
        shard = "s1"
        node = "n1"

        [[links]]
        a = "a"
        b = "b"
        latency_ms = 2.5
    "#;

    fn read(text: &str) -> Result<Topology, TopologyFileError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("topology.toml");
        std::fs::write(&path, text).unwrap();
        read_topology(&path)
    }

    #[test]
    fn reads_what_the_format_has() {
        let topology = read(TEXT).unwrap();
        assert_eq!(topology.nodes.len(), 2);
        let (n1, n2) = (NodeId::new("n1").unwrap(), NodeId::new("n2").unwrap());
        assert_eq!(topology.node(&n1).unwrap().capacity.memory, None);
        assert_eq!(topology.latency_ms(&n1, &n2), 2.5);
    }

    #[test]
    fn unknown_keys_and_contradictions_are_errors() {
        let told = |error: TopologyFileError| std::error::Error::source(&error).unwrap().to_string();
        let unknown = read(&TEXT.replace("speed", "sped")).unwrap_err();
        assert!(matches!(unknown, TopologyFileError::Toml { .. }));
        assert!(told(unknown).contains("sped"));
        let twice = read(&TEXT.replace("\"n2\"", "\"n1\"")).unwrap_err();
        assert!(matches!(twice, TopologyFileError::Invalid { .. }));
        let absent = read_topology(Path::new("/absent/topology.toml")).unwrap_err();
        assert!(matches!(absent, TopologyFileError::Io { .. }));
    }
}
