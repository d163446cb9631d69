//! What stands in the way of a move, found before anything is changed: everything at once.
//!
//! [`facts`] reads both servers, [`judge`] decides, so that every rule can be tried without a server.

mod facts;
mod judge;
#[cfg(test)]
mod tests;

use std::fmt;

use super::session::Session;
use super::settings::PostgresSettings;
use crate::BackendError;

/// Something that stands in the way of a move, or that whoever starts it should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Names the rule; the same for ever.
    pub code: &'static str,
    /// What was found.
    pub what: String,
    /// How to mend it.
    pub mend: String,
    /// Whether the move cannot begin before it is mended.
    pub refuses: bool,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { code, what, mend, refuses } = self;
        let warning = if *refuses { "" } else { "warning: " };
        // The text of a query, or a name, may have line breaks.
        let line = format!("{warning}{code}: {what}; {mend}");
        f.write_str(&line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

/// Both sides of a move as they are reached.
pub(crate) struct Sides<'a> {
    /// In the shard's database.
    pub source: &'a Session,
    /// In another database of the source's server.
    pub source_server: &'a Session,
    /// In another database of the target's server.
    pub target_server: &'a Session,
}

/// Reads both sides and returns all findings. Nothing is changed.
///
/// `pool_modes` are pairs of a pooler's name and its `pool_mode` for the shard; `mark` is the comment by which a database
/// on the target is known as what an earlier attempt of this migration left.
///
/// # Errors
/// If a side cannot be read.
pub(crate) async fn findings(
    sides: &Sides<'_>,
    settings: &PostgresSettings,
    pool_modes: &[(String, String)],
    mark: &str,
) -> Result<Vec<Finding>, BackendError> {
    let facts = facts::read(sides, pool_modes).await?;
    Ok(judge::judge(&facts, settings, mark))
}
