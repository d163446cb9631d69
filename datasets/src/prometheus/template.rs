//! Names that are put together from labels.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use super::LabelValue;

/// A name with the values of labels in it: `orders-${datname}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabelTemplate(Vec<Piece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Label(String),
}

/// Why a text is no such name, or cannot be filled in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It says nothing.
    #[error("it must not be empty; write a name, with ${{label}} where the value of a label is to stand")]
    Empty,
    /// A label's name is not closed.
    #[error("after ${{ the name of a label and then }} must stand, not {rest:?}")]
    Open {
        /// What stands there.
        rest: String,
    },
    /// The series has no such label.
    #[error("the series has no label {label}")]
    NoLabel {
        /// Which one.
        label: String,
    },
}

impl LabelTemplate {
    /// The name for a series.
    ///
    /// # Errors
    /// [`TemplateError::NoLabel`] if the series lacks one: half a name would mix shards.
    pub fn fill(&self, value: &LabelValue<'_>) -> Result<String, TemplateError> {
        let mut name = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => name.push_str(text),
                Piece::Label(label) => match value(label) {
                    "" => return Err(TemplateError::NoLabel { label: label.clone() }),
                    value => name.push_str(value),
                },
            }
        }
        Ok(name)
    }
}

/// Whether a label can be called so.
pub(super) fn is_label(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.chars().all(word) && name.chars().next().is_some_and(|first| !first.is_ascii_digit())
}

impl FromStr for LabelTemplate {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let open = || TemplateError::Open { rest: after.to_owned() };
            let (label, behind) = after.split_once('}').ok_or_else(open)?;
            if !is_label(label) {
                return Err(open());
            }
            pieces.extend((!before.is_empty()).then(|| Piece::Text(before.to_owned())));
            pieces.push(Piece::Label(label.to_owned()));
            rest = behind;
        }
        pieces.extend((!rest.is_empty()).then(|| Piece::Text(rest.to_owned())));
        if pieces.is_empty() { Err(TemplateError::Empty) } else { Ok(Self(pieces)) }
    }
}

impl fmt::Display for LabelTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => f.write_str(text)?,
                Piece::Label(label) => write!(f, "${{{label}}}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for LabelTemplate {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        text.parse()
    }
}

impl From<LabelTemplate> for String {
    fn from(template: LabelTemplate) -> String {
        template.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(template: &str) -> Result<String, TemplateError> {
        let template: LabelTemplate = template.parse()?;
        template.fill(&|label| if label == "db" { "orders" } else { "" })
    }

    #[test]
    fn values_stand_where_labels_stood() {
        assert_eq!(filled("${db}").unwrap(), "orders");
        assert_eq!(filled("eu/${db}-${db}.x").unwrap(), "eu/orders-orders.x");
        assert_eq!(filled("fixed $ name").unwrap(), "fixed $ name");
        assert_eq!(filled("${zone}/${db}"), Err(TemplateError::NoLabel { label: "zone".into() }));
    }

    #[test]
    fn what_is_no_name_is_refused_and_the_rest_stays_as_it_was() {
        assert_eq!(filled(""), Err(TemplateError::Empty));
        for wrong in ["${db", "${}", "a${d b}", "${1x}"] {
            assert!(matches!(filled(wrong), Err(TemplateError::Open { .. })), "{wrong}");
        }
        let text = "a${b}c${d}";
        assert_eq!(text.parse::<LabelTemplate>().unwrap().to_string(), text);
    }
}
