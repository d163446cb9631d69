//! Records of a log file: mark, length, checksum, payload.
//!
//! The mark makes a record recognisable anywhere in a file. So a file whose end was torn by a crash (nothing readable
//! follows, and nothing after the last whole record was ever acknowledged) can be told from one that was damaged later
//! (acknowledged records follow the broken place).

use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

const MARK: [u8; 4] = *b"fsl1";

/// Bytes before the payload: mark, length, checksum.
const HEAD: usize = 4 + 4 + 8;

/// The record that carries `payload`; `None` if it is longer than a length can say.
pub(crate) fn encode(payload: &[u8]) -> Option<Vec<u8>> {
    let length = u32::try_from(payload.len()).ok()?;
    let mut record = Vec::with_capacity(HEAD + payload.len());
    record.extend_from_slice(&MARK);
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    record.extend_from_slice(payload);
    Some(record)
}

/// What a log file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Where the payloads of the whole records lie, from the first to the last before anything broken.
    pub(crate) payloads: Vec<Range<usize>>,
    /// Where the whole records end.
    pub(crate) whole: usize,
    /// Where a whole record lies behind the broken place, if one does: the file is damaged, not torn.
    pub(crate) beyond: Option<usize>,
}

/// Reads the records of a file.
pub(crate) fn scan(bytes: &[u8]) -> Scan {
    let mut found = Scan::default();
    while let Some(payload) = record_at(bytes, found.whole) {
        found.whole = payload.end;
        found.payloads.push(payload);
    }
    let rest = bytes.get(found.whole..).unwrap_or(&[]);
    let marks = rest.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    let mut offsets = marks.map(|(i, _)| found.whole + i);
    found.beyond = offsets.find(|offset| record_at(bytes, *offset).is_some());
    found
}

/// Where the payload of the whole record at `offset` lies.
fn record_at(bytes: &[u8], offset: usize) -> Option<Range<usize>> {
    let head = bytes.get(offset..offset.checked_add(HEAD)?)?;
    let (mark, rest) = head.split_first_chunk::<4>()?;
    let (length, checksum) = rest.split_first_chunk::<4>()?;
    let from = offset + HEAD;
    let payload = from..from.checked_add(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
    let sound = *mark == MARK && xxh3_64(bytes.get(payload.clone())?).to_le_bytes() == checksum;
    sound.then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(payloads: &[Vec<u8>]) -> Vec<u8> {
        payloads.iter().flat_map(|p| encode(p).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn a_torn_tail_leaves_all_whole_records(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8), cut in 0.0f64..1.0
        ) {
            let bytes = file(&payloads);
            let kept = (bytes.len() as f64 * cut) as usize;
            let found = scan(&bytes[..kept]);
            let read: Vec<&[u8]> = found.payloads.iter().map(|r| &bytes[r.clone()]).collect();
            prop_assert_eq!(&read[..], &payloads[..read.len()]);
            prop_assert!(found.whole <= kept && found.beyond.is_none());
            let next = payloads.get(read.len()).map_or(usize::MAX, |p| found.whole + HEAD + p.len());
            prop_assert!(kept < next, "a whole record was left out");
        }
    }

    #[test]
    fn damage_before_whole_records_is_told_from_a_torn_tail() {
        let payloads = [vec![1; 20], vec![2; 20], vec![3; 20]];
        let sound = file(&payloads);
        let mut damaged = sound.clone();
        damaged[HEAD + 20 + HEAD + 3] ^= 1;
        let found = scan(&damaged);
        assert_eq!((found.payloads.len(), found.beyond), (1, Some(2 * (HEAD + 20))));
        let mut zeros = sound.clone();
        zeros.extend_from_slice(&[0; 100]);
        let found = scan(&zeros);
        assert_eq!((found.payloads.len(), found.whole, found.beyond), (3, sound.len(), None));
    }
}
