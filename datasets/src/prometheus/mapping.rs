//! What a series becomes.

use foreshard_domain::{IdError, NodeId, ShardId};
use serde::{Deserialize, Serialize};

use super::{LabelTemplate, LabelValue, Measurement, Selector, TemplateError};

/// Series that are sent here, and what they become. One series for each shard and metric: sums are for the sender to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceivedSeries {
    /// Which.
    pub select: Selector,
    /// What their values are.
    pub metric: Measurement,
    /// Whose.
    pub shard: LabelTemplate,
    /// The node that carried it; not told if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<LabelTemplate>,
    /// What a value is multiplied by to have the unit of the metric.
    #[serde(default = "one")]
    pub scale: f64,
}

pub(super) const fn one() -> f64 {
    1.0
}

/// Why a series becomes no observation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// A name cannot be put together.
    #[error("its {of} has no name")]
    Template {
        /// `shard` or `node`.
        of: &'static str,
        /// Why not.
        #[source]
        source: TemplateError,
    },
    /// What is put together is no name.
    #[error("its {of} cannot be called so")]
    Name {
        /// `shard` or `node`.
        of: &'static str,
        /// Why not.
        #[source]
        source: IdError,
    },
    /// The factor is no positive number.
    #[error("scale must be a positive finite number, not {scale}")]
    Scale {
        /// What was given.
        scale: String,
    },
}

/// Where the values of one series go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeriesTarget {
    /// Whose they are.
    pub shard: ShardId,
    /// The node that carried it, where the mapping tells.
    pub node: Option<NodeId>,
}

impl SeriesTarget {
    /// Whose the values of a series are.
    ///
    /// # Errors
    /// [`MappingError`] if the labels of the series make no names.
    pub fn of(
        shard: &LabelTemplate,
        node: Option<&LabelTemplate>,
        value: &LabelValue<'_>,
    ) -> Result<Self, MappingError> {
        let filled =
            |of, template: &LabelTemplate| template.fill(value).map_err(|source| MappingError::Template { of, source });
        let shard = ShardId::new(filled("shard", shard)?);
        let node = node.map(|node| filled("node", node)).transpose()?.map(NodeId::new).transpose();
        Ok(Self {
            shard: shard.map_err(|source| MappingError::Name { of: "shard", source })?,
            node: node.map_err(|source| MappingError::Name { of: "node", source })?,
        })
    }
}

impl ReceivedSeries {
    /// Whether the mapping can be used.
    ///
    /// # Errors
    /// [`MappingError::Scale`]: everything else is found while it is read.
    pub fn check(&self) -> Result<(), MappingError> {
        check_scale(self.scale)
    }
}

pub(super) fn check_scale(scale: f64) -> Result<(), MappingError> {
    let sound = scale.is_finite() && scale > 0.0;
    if sound { Ok(()) } else { Err(MappingError::Scale { scale: scale.to_string() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_is_read_whole_or_refused() {
        let read = |text: &str| toml::from_str::<ReceivedSeries>(text).map_err(|error| error.to_string());
        let text = "select = 'shard:cpu'\nmetric = 'cpu_util'\nshard = '${db}'\n";
        let mapping = read(text).unwrap();
        assert_eq!((mapping.scale, &mapping.node), (1.0, &None));
        assert_eq!(mapping.check(), Ok(()));
        assert_eq!(read(&toml::to_string(&mapping).unwrap()).unwrap(), mapping);
        assert!(read(&format!("{text}scal = 2")).unwrap_err().contains("scal"));
        assert!(read(&text.replace("cpu_util", "cpu")).unwrap_err().contains("write_bytes_per_s"));
        assert!(read(&text.replace("${db}", "${db")).unwrap_err().contains("name of a label"));
        assert!(read(&text.replace("'shard:cpu'", "'{'")).unwrap_err().contains("name of a label"));
        for scale in ["0.0", "-1.0", "nan", "inf"] {
            assert!(read(&format!("{text}scale = {scale}")).unwrap().check().is_err(), "{scale}");
        }
    }

    #[test]
    fn targets_are_named_by_labels() {
        let template = |text: &str| text.parse::<LabelTemplate>().unwrap();
        let labels = |label: &str| if label == "db" { "orders" } else { "" };
        let target = |shard: &str, node: &str| SeriesTarget::of(&template(shard), Some(&template(node)), &labels);
        let good = target("eu-${db}", "n1").unwrap();
        assert_eq!((good.shard.as_str(), good.node.unwrap().as_str()), ("eu-orders", "n1"));
        assert!(matches!(target("${x}", "n1"), Err(MappingError::Template { of: "shard", .. })));
        assert!(matches!(target("a", "${x}"), Err(MappingError::Template { of: "node", .. })));
        assert!(matches!(target(&"x".repeat(300), "n"), Err(MappingError::Name { of: "shard", .. })));
    }
}
