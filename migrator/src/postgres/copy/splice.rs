//! What several `COPY ... TO STDOUT` say, as one `COPY ... FROM STDIN` takes it.
//!
//! Text is rows and nothing else. The binary format has a header before the rows and a trailer behind them
//! (PostgreSQL's documentation of `COPY`, "Binary Format"); of several, the first header and the last trailer stay.

use bytes::{Bytes, BytesMut};

/// What begins the binary format: 11 bytes by which it is known, flags, and the length of what else is in the header.
const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
const HEADER: usize = SIGNATURE.len() + 4 + 4;
/// What ends it: a number of columns that no row has.
const TRAILER: [u8; 2] = [0xff, 0xff];

/// Rows on their way.
#[derive(Debug)]
pub(super) struct Splice {
    is_binary: bool,
    /// Bytes passed on at once.
    chunk: usize,
    buffer: BytesMut,
    /// Whether a header has gone through.
    has_header: bool,
    /// Whether the next bytes are the first of a statement's answer.
    begins: bool,
}

impl Splice {
    pub fn new(is_binary: bool, chunk: usize) -> Self {
        Self { is_binary, chunk, buffer: BytesMut::with_capacity(2 * chunk), has_header: false, begins: true }
    }

    /// Takes a message of the server; what is to be passed on now, if it is enough.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, message: &Bytes) -> Result<Option<Bytes>, &'static str> {
        let mut rows = message.as_ref();
        if self.is_binary && std::mem::replace(&mut self.begins, false) {
            // The server sends the header together with the first row, or with the trailer if there is none.
            let (header, rest) = rows.split_at_checked(HEADER).ok_or("half a header")?;
            if !header.starts_with(SIGNATURE) || header.get(SIGNATURE.len()..).is_none_or(|rest| rest != [0; 8]) {
                return Err("a header that is not known");
            }
            if std::mem::replace(&mut self.has_header, true) {
                rows = rest;
            }
        }
        self.buffer.extend_from_slice(rows);
        // The last bytes may be a trailer, which is not passed on yet.
        let kept = if self.is_binary { TRAILER.len() } else { 0 };
        let ready = self.buffer.len().saturating_sub(kept);
        Ok((ready >= self.chunk).then(|| self.buffer.split_to(ready).freeze()))
    }

    /// A statement's answer has ended, and another statement may follow.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn end(&mut self) -> Result<(), &'static str> {
        if self.is_binary {
            let rows = self.buffer.len().saturating_sub(TRAILER.len());
            if self.begins || self.buffer.get(rows..) != Some(&TRAILER) {
                return Err("no trailer");
            }
            self.buffer.truncate(rows);
            self.begins = true;
        }
        Ok(())
    }

    /// What is left to be passed on when no statement follows.
    pub fn finish(mut self) -> Bytes {
        if self.is_binary {
            self.buffer.extend_from_slice(&TRAILER);
        }
        self.buffer.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Vec<u8> {
        [SIGNATURE.as_slice(), &[0; 8]].concat()
    }

    /// The messages of a statement: the first bears the header, the last is the trailer.
    fn answer(rows: &[Vec<u8>]) -> Vec<Bytes> {
        let mut messages: Vec<Vec<u8>> = rows.to_vec();
        messages.push(TRAILER.to_vec());
        let first = messages.remove(0);
        messages.insert(0, [header(), first].concat());
        messages.into_iter().map(Bytes::from).collect()
    }

    fn spliced(mut splice: Splice, answers: &[Vec<Bytes>]) -> Vec<u8> {
        let mut all = Vec::new();
        for answer in answers {
            for message in answer {
                let ready = splice.take(message).unwrap();
                assert!(ready.as_ref().is_none_or(|ready| ready.len() >= splice.chunk));
                all.extend(ready.unwrap_or_default());
            }
            splice.end().unwrap();
        }
        all.extend(splice.finish());
        all
    }

    proptest! {
        #[test]
        fn several_answers_are_as_one(
            answers in prop::collection::vec(prop::collection::vec(prop::collection::vec(any::<u8>(), 2..40), 0..6), 1..6),
            chunk in 1usize..64,
        ) {
            let rows = answers.concat().concat();
            let sent: Vec<_> = answers.iter().map(|rows| answer(rows)).collect();
            let expected = [header(), rows.clone(), TRAILER.to_vec()].concat();
            prop_assert_eq!(spliced(Splice::new(true, chunk), &sent), expected);
            let sent: Vec<Vec<Bytes>> =
                answers.iter().map(|rows| rows.iter().cloned().map(Bytes::from).collect()).collect();
            prop_assert_eq!(spliced(Splice::new(false, chunk), &sent), rows);
        }
    }

    #[test]
    fn what_is_no_answer_is_found_out() {
        let mut splice = Splice::new(true, 8);
        assert_eq!(splice.take(&Bytes::from_static(b"PGCOPY\n")).unwrap_err(), "half a header");
        let mut with_more = header();
        with_more[18] = 1;
        assert_eq!(Splice::new(true, 8).take(&with_more.into()).unwrap_err(), "a header that is not known");
        assert_eq!(Splice::new(true, 8).end().unwrap_err(), "no trailer", "nothing came at all");
        let mut cut_off = Splice::new(true, 8);
        let message = [header(), vec![0, 1, 0, 0, 0, 0]].concat();
        cut_off.take(&message.into()).unwrap();
        assert_eq!(cut_off.end().unwrap_err(), "no trailer");
    }
}
