//! Positions of a server's write-ahead log.

use crate::Position;
use std::fmt;
use std::str::FromStr;

/// A position in the write-ahead log, in bytes since its beginning; written `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(crate) struct Lsn(pub(crate) u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a position of the write-ahead log; one looks like 16/B374D848")]
pub(crate) struct NotAnLsn(String);

impl FromStr for Lsn {
    type Err = NotAnLsn;

    /// One to eight hexadecimal digits on each side of the slash, as the server reads it.
    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let half = |digits: &str| {
            let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        let parsed = text.split_once('/').and_then(|(high, low)| Some((half(high)?, half(low)?)));
        parsed.map(|(high, low)| Self(high << 32 | low)).ok_or_else(|| NotAnLsn(text.to_owned()))
    }
}

impl From<Lsn> for Position {
    fn from(lsn: Lsn) -> Self {
        Self(lsn.0)
    }
}

impl From<Position> for Lsn {
    fn from(position: Position) -> Self {
        Self(position.0)
    }
}

/// Sizes of the log's blocks and segments, in bytes; each begins with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WalGeometry {
    /// `wal_block_size`.
    pub(crate) block: u64,
    /// `wal_segment_size`.
    pub(crate) segment: u64,
}

/// Bytes of the header of a block, and of the first block of a segment (`SizeOfXLogShortPHD`, `SizeOfXLogLongPHD`).
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;

impl WalGeometry {
    /// Where the last record before `lsn` can have ended.
    ///
    /// When a record fills its block, `pg_current_wal_insert_lsn` names the place of the next record, past the header of the
    /// next block, while whoever has read everything stands at the end of the block. Only headers lie between the two, so
    /// that waiting for the former would be waiting for a write that may never come.
    pub(crate) fn end_of_records(self, lsn: Lsn) -> Lsn {
        let (Some(in_block), Some(in_segment)) = (lsn.0.checked_rem(self.block), lsn.0.checked_rem(self.segment))
        else {
            return lsn;
        };
        let header = if in_segment == in_block { LONG_HEADER } else { SHORT_HEADER };
        if in_block <= header { Lsn(lsn.0 - in_block) } else { lsn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn positions_are_written_as_the_server_writes_them() {
        assert_eq!(Lsn(0x16_B374_D848).to_string(), "16/B374D848");
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!("0/0".parse(), Ok(Lsn(0)));
        assert_eq!(Lsn(0).to_string(), "0/0");
        assert_eq!("ffffffff/ffffffff".parse(), Ok(Lsn(u64::MAX)));
        for wrong in ["", "/", "1/", "/1", "1", "1/2/3", "+1/2", " 1/2", "123456789/0", "0/123456789", "0/G", "-1/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_position_past_a_header_is_the_end_of_the_block_before() {
        let wal = WalGeometry { block: 8192, segment: 16 << 20 };
        assert_eq!(wal.end_of_records(Lsn(8192 * 5 + 24)), Lsn(8192 * 5));
        assert_eq!(wal.end_of_records(Lsn(8192 * 5)), Lsn(8192 * 5));
        assert_eq!(wal.end_of_records(Lsn(8192 * 5 + 32)), Lsn(8192 * 5 + 32), "holds the end of a record");
        assert_eq!(wal.end_of_records(Lsn((16 << 20) + 40)), Lsn(16 << 20));
        assert_eq!(wal.end_of_records(Lsn((16 << 20) + 48)), Lsn((16 << 20) + 48));
        assert_eq!(WalGeometry { block: 0, segment: 0 }.end_of_records(Lsn(7)), Lsn(7));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_again(at: u64) {
            prop_assert_eq!(Lsn(at).to_string().parse(), Ok(Lsn(at)));
        }
    }
}
