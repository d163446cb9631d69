//! Which series are meant, in Prometheus's own form: `name{label="value",other=~"pattern"}`.

use regex::Regex;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

use super::LabelValue;
use super::template::is_label;

/// The label that holds the name of a metric.
const NAME: &str = "__name__";

/// Which series are meant. As in Prometheus, patterns match whole values, and a label that is not there counts as empty.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    text: String,
    matchers: Vec<Matcher>,
}

#[derive(Debug, Clone)]
struct Matcher {
    label: String,
    test: Test,
    /// Whether the test must fail.
    negated: bool,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(String),
    Pattern(Regex),
}

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// Something else stands where something is expected.
    #[error("expected {expected} at {rest:?}")]
    Expected {
        /// What.
        expected: &'static str,
        /// What stands there.
        rest: String,
    },
    /// A pattern is no regular expression.
    #[error("{pattern:?} is no regular expression: {why}")]
    Pattern {
        /// Which.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },
    /// It would take every series.
    #[error("it must name a metric or a label, or everything that comes would be taken")]
    Everything,
}

impl Selector {
    /// Whether a series is meant.
    pub fn matches(&self, value: &LabelValue<'_>) -> bool {
        self.matchers.iter().all(|matcher| matcher.test.passes(value(&matcher.label)) != matcher.negated)
    }
}

impl Test {
    fn passes(&self, value: &str) -> bool {
        match self {
            Test::Equal(wanted) => wanted == value,
            Test::Pattern(pattern) => pattern.is_match(value),
        }
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut rest = Rest(text.trim());
        let mut matchers = Vec::new();
        let name = rest.word(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ':'));
        if !name.is_empty() {
            matchers.push(Matcher { label: NAME.to_owned(), test: Test::Equal(name.to_owned()), negated: false });
        }
        if rest.take("{") {
            while !rest.take("}") {
                matchers.push(rest.matcher()?);
                if !rest.take(",") && !rest.0.starts_with('}') {
                    return Err(rest.expected(", or }"));
                }
            }
        }
        if !rest.0.is_empty() {
            return Err(rest.expected("{ or the end"));
        }
        // What matches a series without any labels matches all that lack the named ones.
        if matchers.iter().all(|matcher| matcher.test.passes("") != matcher.negated) {
            return Err(SelectorError::Everything);
        }
        Ok(Self { text: text.trim().to_owned(), matchers })
    }
}

/// What is not yet read of a selector.
struct Rest<'a>(&'a str);

impl<'a> Rest<'a> {
    fn expected(&self, expected: &'static str) -> SelectorError {
        SelectorError::Expected { expected, rest: self.0.to_owned() }
    }

    fn take(&mut self, mark: &str) -> bool {
        let Some(rest) = self.0.strip_prefix(mark) else { return false };
        self.0 = rest.trim_start();
        true
    }

    fn word(&mut self, belongs: impl Fn(char) -> bool) -> &'a str {
        let end = self.0.find(|c| !belongs(c)).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest.trim_start();
        word
    }

    fn matcher(&mut self) -> Result<Matcher, SelectorError> {
        let label = self.word(|c| c.is_ascii_alphanumeric() || c == '_').to_owned();
        if !is_label(&label) {
            return Err(self.expected("the name of a label"));
        }
        let operators = [("=~", true, false), ("!~", true, true), ("!=", false, true), ("=", false, false)];
        let found = operators.into_iter().find(|(mark, ..)| self.take(mark));
        let (_, is_pattern, negated) = found.ok_or_else(|| self.expected("=, !=, =~ or !~"))?;
        let value = self.quoted()?;
        let test = if is_pattern { Test::Pattern(whole(&value)?) } else { Test::Equal(value) };
        Ok(Matcher { label, test, negated })
    }

    fn quoted(&mut self) -> Result<String, SelectorError> {
        let quote = self.0.chars().next().filter(|c| matches!(c, '"' | '\''));
        let quote = quote.ok_or_else(|| self.expected("a value between quotes"))?;
        let (mut value, mut escaped) = (String::new(), false);
        for (at, c) in self.0.char_indices().skip(1) {
            match c {
                _ if escaped => {
                    value.push(match c {
                        'n' => '\n',
                        't' => '\t',
                        '\\' | '"' | '\'' => c,
                        _ => return Err(self.expected("one of \\n, \\t, \\\\, \\\" and \\'")),
                    });
                    escaped = false;
                }
                '\\' => escaped = true,
                c if c == quote => {
                    self.0 = self.0.get(at.saturating_add(1)..).unwrap_or_default().trim_start();
                    return Ok(value);
                }
                c => value.push(c),
            }
        }
        Err(self.expected("a quote at the end of the value"))
    }
}

fn whole(pattern: &str) -> Result<Regex, SelectorError> {
    Regex::new(&format!("^(?s:{pattern})$"))
        .map_err(|error| SelectorError::Pattern { pattern: pattern.to_owned(), why: error.to_string() })
}

impl TryFrom<String> for Selector {
    type Error = SelectorError;

    fn try_from(text: String) -> Result<Self, SelectorError> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str) -> bool {
        let selector: Selector = selector.parse().unwrap();
        selector.matches(&|label| match label {
            NAME => "shard:cpu",
            "db" => "orders",
            "odd" => "a\"b\\\n",
            _ => "",
        })
    }

    #[test]
    fn matches_as_prometheus_does() {
        for yes in [
            "shard:cpu",
            "shard:cpu{}",
            " shard:cpu { db = \"orders\" , } ",
            r#"{__name__="shard:cpu",db!="x",zone=""}"#,
            "{db=~'ord.*'}",
            r#"shard:cpu{db=~"x|orders"}"#,
            r#"{db!~"ord",zone!~".+",db!=""}"#,
            r#"{odd="a\"b\\\n"}"#,
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in ["cpu", r#"{db=~"ord"}"#, r#"{db="orders",zone!=""}"#, r#"shard:cpu{db!~"o.*"}"#, r#"{zone=~".+"}"#] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn errors_say_where() {
        let error = |text: &str| text.parse::<Selector>().unwrap_err().to_string();
        assert!(error("a{db}").contains("=, !=, =~ or !~ at \"}\""), "{}", error("a{db}"));
        assert!(error("a{db=orders}").contains("between quotes"));
        assert!(error(r#"a{db="x" b="y"}"#).contains(", or }"));
        assert!(error(r#"a{db="x"#).contains("a quote at the end"));
        assert!(error(r#"a{db="x"} + 1"#).contains("the end"));
        assert!(error(r#"a{1db="x"}"#).contains("name of a label"));
        assert!(error(r#"a{db=~"("}"#).contains("no regular expression"));
        for everything in ["", "{}", r#"{db=""}"#, r#"{db=~".*"}"#, r#"{db!="x"}"#] {
            assert_eq!(everything.parse::<Selector>().unwrap_err(), SelectorError::Everything, "{everything}");
        }
    }
}
