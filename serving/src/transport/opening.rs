//! What a client must have said before it counts as one.
//!
//! A byte is not enough: who sends one and no more would hold a connection until its age. From the end of the opening on the
//! server above knows its client: HTTP/2 asks it for signs of life, and HTTP/1.1 bounds every head by itself.

use super::Inside;

/// How every HTTP/2 connection begins (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How the head of an HTTP/1.1 request ends.
const HEAD_END: &[u8] = b"\r\n\r\n";

/// Listens for the opening of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opening {
    inside: Inside,
    /// Bytes of the preface, or of the end of a head, that were heard one after another; `None` once there can be none.
    matched: Option<usize>,
}

impl Opening {
    /// Of a connection that is to speak so.
    pub(crate) const fn of(inside: Inside) -> Self {
        Self { inside, matched: Some(0) }
    }

    /// Hears more bytes; true once the opening is complete.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> bool {
        let whole = match self.inside {
            Inside::Grpc => PREFACE,
            Inside::Http => HEAD_END,
        };
        for &byte in bytes {
            let Some(matched) = self.matched else { return false };
            if matched == whole.len() {
                return true;
            }
            self.matched = match (whole.get(matched) == Some(&byte), self.inside) {
                (true, _) => Some(matched + 1),
                // No other beginning leads to HTTP/2.
                (false, Inside::Grpc) => None,
                (false, Inside::Http) => Some(usize::from(byte == b'\r')),
            };
        }
        self.matched == Some(whole.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_preface_opens_and_no_part_of_it() {
        for cut in 0..PREFACE.len() {
            let mut opening = Opening::of(Inside::Grpc);
            assert!(!opening.hear(&PREFACE[..cut]));
            assert!(opening.hear(&PREFACE[cut..]), "in two parts, cut at {cut}");
        }
        let mut other = Opening::of(Inside::Grpc);
        assert!(!other.hear(b"GET / HTTP/1.1\r\n\r\n") && !other.hear(PREFACE), "another protocol stays another");
        assert!(Opening::of(Inside::Grpc).hear(&[PREFACE, b"frames"].concat()));
    }

    #[test]
    fn the_end_of_a_head_opens_wherever_it_is_cut() {
        let head = b"GET / HTTP/1.1\r\nhost: a\r\r\n\r\n";
        for cut in 0..head.len() {
            let mut opening = Opening::of(Inside::Http);
            assert!(!opening.hear(&head[..cut]));
            assert!(opening.hear(&head[cut..]), "cut at {cut}");
        }
        assert!(!Opening::of(Inside::Http).hear(b"GET / HTTP/1.1\r\nhost: a\r\n"));
    }
}
