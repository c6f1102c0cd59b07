//! Whether a whole ClientHello is here, without TLS: bytes in, an answer out.

/// Handshake record and message types of RFC 8446, 5.1 and 4.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

const RECORD_HEADER: usize = 5;
const MESSAGE_HEADER: usize = 4;

/// Plaintext of one record at most.
pub(super) const MAX_RECORD: usize = 16 * 1024;

/// Collects one ClientHello, in however many records and pieces it comes.
///
/// Only the message is kept, so a peer that sends it in records of one byte uses no more memory
/// than any other.
#[derive(Debug)]
pub(super) struct ClientHello {
    limit: usize,
    header: [u8; RECORD_HEADER],
    header_len: usize,
    /// Of the current record, bytes still to come.
    record_left: usize,
    message: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    NotTls,
    TooLarge(usize),
    /// Something follows in the record that must hold nothing else (RFC 8446, 5.1).
    NotAlone,
}

impl ClientHello {
    /// `limit` bounds the handshake message with its header, in bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit: limit.min(MAX_RECORD),
            header: [0; RECORD_HEADER],
            header_len: 0,
            record_left: 0,
            message: Vec::new(),
        }
    }

    /// Takes the next bytes; once the message is whole, says how many of them belonged to it.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut rest = bytes;
        while let Some((first, after)) = rest.split_first() {
            if self.record_left == 0 {
                self.header[self.header_len] = *first;
                self.header_len += 1;
                rest = after;
                self.check_header()?;
                continue;
            }
            let count = self.wanted().min(self.record_left).min(rest.len());
            let (piece, after) = rest.split_at(count);
            self.message.extend_from_slice(piece);
            self.record_left -= count;
            rest = after;
            if self.total()? == Some(self.message.len()) {
                if self.record_left > 0 {
                    return Err(Malformed::NotAlone);
                }
                return Ok(Some(bytes.len() - rest.len()));
            }
        }
        Ok(None)
    }

    /// The message as one record: what is signed in TLS is messages, never their framing.
    pub(super) fn into_record(self) -> Vec<u8> {
        let mut record = Vec::with_capacity(RECORD_HEADER + self.message.len());
        // The limit is that of a record, so its length fits.
        let length = self.message.len() as u16;
        record.extend_from_slice(&[HANDSHAKE, 3, 1]);
        record.extend_from_slice(&length.to_be_bytes());
        record.extend_from_slice(&self.message);
        record
    }

    fn check_header(&mut self) -> Result<(), Malformed> {
        let wrong_start =
            self.header[0] != HANDSHAKE || (self.header_len > 1 && self.header[1] != 3);
        if wrong_start {
            return Err(Malformed::NotTls);
        }
        if self.header_len == RECORD_HEADER {
            let length = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
            // Zero-length fragments of handshake messages are forbidden (RFC 8446, 5.1).
            if length == 0 || length > MAX_RECORD {
                return Err(Malformed::NotTls);
            }
            self.record_left = length;
            self.header_len = 0;
        }
        Ok(())
    }

    /// Bytes that the message needs next: its header, then the rest.
    fn wanted(&self) -> usize {
        let total = self.announced().unwrap_or(MESSAGE_HEADER);
        total - self.message.len()
    }

    fn announced(&self) -> Option<usize> {
        match *self.message {
            [_, a, b, c, ..] => Some(MESSAGE_HEADER + u32::from_be_bytes([0, a, b, c]) as usize),
            _ => None,
        }
    }

    fn total(&self) -> Result<Option<usize>, Malformed> {
        if self.message[0] != CLIENT_HELLO {
            return Err(Malformed::NotTls);
        }
        match self.announced() {
            Some(total) if total > self.limit => Err(Malformed::TooLarge(total)),
            total => Ok(total),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ClientHello, Malformed};

    fn message(len: usize) -> Vec<u8> {
        let mut message = vec![1, 0, (len >> 8) as u8, len as u8];
        message.extend((0..len).map(|i| i as u8));
        message
    }

    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|piece| {
                let mut record = vec![22, 3, 1, (piece.len() >> 8) as u8, piece.len() as u8];
                record.extend_from_slice(piece);
                record
            })
            .collect()
    }

    proptest! {
        #[test]
        fn any_framing_gives_the_same_message(
            len in 0..1500_usize,
            record in 1..2000_usize,
            piece in 1..2000_usize,
            extra in 0..10_usize,
        ) {
            let message = message(len);
            let mut bytes = records(&message, record);
            let whole = bytes.len();
            bytes.extend(vec![20; extra]);
            let mut hello = ClientHello::new(2048);
            let mut used = 0;
            for piece in bytes.chunks(piece) {
                if let Some(count) = hello.push(piece).unwrap() {
                    used += count;
                    break;
                }
                used += piece.len();
            }
            prop_assert_eq!(used, whole);
            prop_assert_eq!(hello.into_record(), records(&message, 16_384));
        }

        #[test]
        fn arbitrary_bytes_never_panic_nor_pass_the_limit(
            bytes in proptest::collection::vec(any::<u8>(), 0..4096),
            piece in 1..100_usize,
        ) {
            let mut hello = ClientHello::new(512);
            // Three of four cases get past the first bytes.
            let mut bytes = bytes;
            if bytes.len() > 9 && bytes[8] % 4 != 0 {
                let start = [22, 3, 1, bytes[3] % 64, bytes[4], 1, 0];
                bytes[..7].copy_from_slice(&start);
            }
            for piece in bytes.chunks(piece) {
                if !matches!(hello.push(piece), Ok(None)) {
                    break;
                }
                prop_assert!(hello.message.len() <= 512);
            }
        }
    }

    #[test]
    fn what_is_no_client_hello_is_refused_at_once() {
        let refused = |bytes: &[u8]| ClientHello::new(2048).push(bytes).unwrap_err();
        assert_eq!(refused(b"P"), Malformed::NotTls);
        assert_eq!(refused(&[22, 2]), Malformed::NotTls);
        assert_eq!(refused(&[22, 3, 1, 0, 0]), Malformed::NotTls);
        assert_eq!(refused(&[22, 3, 1, 0, 1, 2]), Malformed::NotTls);
        assert_eq!(refused(&[22, 3, 1, 0x40, 1]), Malformed::NotTls);
        assert_eq!(
            refused(&[22, 3, 1, 0, 4, 1, 0, 8, 0]),
            Malformed::TooLarge(2052)
        );
        assert_eq!(
            refused(&[22, 3, 1, 0, 6, 1, 0, 0, 1, 9, 9]),
            Malformed::NotAlone
        );
    }
}
