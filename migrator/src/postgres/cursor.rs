//! Strict reading of the server's messages: nothing is taken for granted about what arrives.

use super::lsn::Lsn;

/// Why bytes are not the message that they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// The message ends too early.
    #[error("{what} needs {needed} bytes, {left} are left")]
    Short {
        /// The part that was read.
        what: &'static str,
        /// Its length.
        needed: usize,
        /// What there was.
        left: usize,
    },
    /// The message goes on after its end.
    #[error("{left} bytes are left after the end of {what}")]
    Long {
        /// The message.
        what: &'static str,
        /// Bytes too many.
        left: usize,
    },
    /// Text without an end.
    #[error("{what} has no end")]
    Endless {
        /// The text.
        what: &'static str,
    },
    /// Not UTF-8, though the session asked for it; a database in `SQL_ASCII` converts nothing.
    #[error("{what} is not UTF-8; a database with the encoding SQL_ASCII cannot be followed")]
    NotText {
        /// The text.
        what: &'static str,
    },
    /// A value that has no meaning here.
    #[error("{what} cannot be {value}")]
    Value {
        /// What has this value.
        what: &'static str,
        /// The value.
        value: i64,
    },
}

/// Reads a message from front to back; every part names itself for the error.
#[derive(Debug, Clone)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// How many bytes are left.
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `n` bytes.
    pub(crate) fn take(&mut self, what: &'static str, n: usize) -> Result<&'a [u8], Malformed> {
        let short = Malformed::Short { what, needed: n, left: self.rest.len() };
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let short = Malformed::Short { what, needed: N, left: self.rest.len() };
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(short)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn i32(&mut self, what: &'static str) -> Result<i32, Malformed> {
        Ok(i32::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn i64(&mut self, what: &'static str) -> Result<i64, Malformed> {
        Ok(i64::from_be_bytes(self.array(what)?))
    }

    pub(crate) fn lsn(&mut self, what: &'static str) -> Result<Lsn, Malformed> {
        Ok(Lsn(u64::from_be_bytes(self.array(what)?)))
    }

    /// A length that must not be negative.
    pub(crate) fn length(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let value = self.i32(what)?;
        usize::try_from(value).map_err(|_| Malformed::Value { what, value: i64::from(value) })
    }

    /// Bytes that must be UTF-8.
    pub(crate) fn text(&mut self, what: &'static str, n: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.take(what, n)?).map_err(|_| Malformed::NotText { what })
    }

    /// Bytes up to a zero byte, which is taken too.
    pub(crate) fn c_bytes(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let end = self.rest.iter().position(|b| *b == 0).ok_or(Malformed::Endless { what })?;
        let bytes = self.take(what, end)?;
        self.u8(what)?;
        Ok(bytes)
    }

    /// Text that ends with a zero byte.
    pub(crate) fn c_str(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.c_bytes(what)?).map_err(|_| Malformed::NotText { what })
    }

    /// Nothing may be left.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), Malformed> {
        match self.left() {
            0 => Ok(()),
            left => Err(Malformed::Long { what, left }),
        }
    }
}
