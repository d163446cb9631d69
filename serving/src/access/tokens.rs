//! Tokens and what they allow.
//!
//! One a line: a name, rights (`read`, `ingest`, `admin`, joined by commas) and the token, or `sha256:` and the hex digits of
//! its SHA-256, so that the file itself holds no secret. Empty lines and those that begin with `#` say nothing. Only the
//! digests are kept in memory, and tokens are found by theirs: how long that takes tells nothing of a token.

use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

/// Shorter tokens can be guessed.
const FEWEST_CHARACTERS: usize = 16;

/// What a token may allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Forecasts, risks, scenarios, versions, metrics.
    Read,
    /// Taking observations in.
    Ingest,
    /// Reloads and labels.
    Admin,
}

impl Right {
    const ALL: [Right; 3] = [Right::Read, Right::Ingest, Right::Admin];

    const fn name(self) -> &'static str {
        match self {
            Right::Read => "read",
            Right::Ingest => "ingest",
            Right::Admin => "admin",
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why tokens cannot be used. No text holds a token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("cannot read the tokens {}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A line makes no sense.
    #[error("line {line} of the tokens in {origin} {what}")]
    Line {
        /// File or variable.
        origin: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and how to mend it.
        what: &'static str,
    },
}

/// What one token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    name: String,
    rights: Vec<Right>,
}

impl Grant {
    /// Whose token it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it allows that.
    pub(crate) fn may(&self, right: Right) -> bool {
        self.rights.contains(&right)
    }
}

type DigestOfToken = [u8; 32];

/// The known tokens.
#[derive(Debug, Default)]
pub(crate) struct Grants(HashMap<DigestOfToken, Grant>);

impl Grants {
    /// Adds the tokens of a text; `origin` is what errors call it.
    pub(crate) fn add(&mut self, origin: &str, text: &str) -> Result<(), TokenError> {
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let failed = |what| TokenError::Line { origin: origin.to_owned(), line: i + 1, what };
            let (digest, grant) = parse(line).map_err(failed)?;
            if self.0.insert(digest, grant).is_some() {
                return Err(failed("holds a token that is there already"));
            }
        }
        Ok(())
    }

    /// What a token allows, if it is known.
    pub(crate) fn find(&self, token: &str) -> Option<&Grant> {
        self.0.get(&digest(token))
    }
}

fn digest(token: &str) -> DigestOfToken {
    Sha256::digest(token.as_bytes()).into()
}

fn parse(line: &str) -> Result<(DigestOfToken, Grant), &'static str> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(rights), Some(token), None) = (words.next(), words.next(), words.next(), words.next()) else {
        return Err("must hold a name, rights and a token, and nothing else");
    };
    let right = |word: &str| Right::ALL.into_iter().find(|right| right.name() == word);
    let rights: Option<Vec<Right>> = rights.split(',').map(right).collect();
    let rights = rights.ok_or("names a right other than read, ingest and admin")?;
    let digest = match token.strip_prefix("sha256:") {
        Some(hex) => from_hex(hex).ok_or("holds a digest that is not 64 hex digits")?,
        None if token.len() < FEWEST_CHARACTERS => return Err("holds a token of less than 16 characters"),
        None => digest(token),
    };
    Ok((digest, Grant { name: name.to_owned(), rights }))
}

fn from_hex(text: &str) -> Option<DigestOfToken> {
    let mut digest = DigestOfToken::default();
    if text.len() != 2 * digest.len() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (i, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * i..2 * i + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(text: &str) -> Result<Grants, String> {
        let mut grants = Grants::default();
        grants.add("here", text).map_err(|error| error.to_string())?;
        Ok(grants)
    }

    #[test]
    fn tokens_and_digests_are_found() {
        let known = grants(
            "# who\n\nall read,ingest,admin a-token-of-some-length\n \
             one read sha256:9F86D081884C7D659A2FEAA0C55AD015A3BF4F1B2B0B822CD15D6C15B0F00A08\n",
        )
        .unwrap();
        let all = known.find("a-token-of-some-length").unwrap();
        assert!(Right::ALL.into_iter().all(|right| all.may(right)));
        // The digest of a token that is shorter than one in plain may be.
        let one = known.find("test").unwrap();
        assert_eq!((one.name(), one.may(Right::Read), one.may(Right::Admin)), ("one", true, false));
        assert!(known.find("a-token-of-some-lengtH").is_none() && known.find("").is_none());
        assert!(!format!("{known:?}").contains("a-token"), "nothing that is printed holds a token");
    }

    #[test]
    fn errors_name_the_line_and_never_the_token() {
        for (text, what) in [
            ("a read", "must hold"),
            ("a read secretsecretsecret more", "must hold"),
            ("a reed secretsecretsecret", "names a right"),
            ("a read secretsecret", "less than 16"),
            ("a read sha256:secretsecret", "64 hex digits"),
            ("a read secretsecretsecret\nb read secretsecretsecret", "there already"),
        ] {
            let error = grants(&format!("# first\n{text}")).unwrap_err();
            assert!(error.contains(what) && error.contains("in here") && !error.contains("secret"), "{error}");
            assert!(error.starts_with("line 2") || error.starts_with("line 3"), "{error}");
        }
    }
}
