//! HTTP/2 frames written by hand ([RFC 9113 section 4](https://www.rfc-editor.org/rfc/rfc9113#section-4)).

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0x0;
pub(crate) const HEADERS: u8 = 0x1;
pub(crate) const PRIORITY: u8 = 0x2;
pub(crate) const RST_STREAM: u8 = 0x3;
pub(crate) const SETTINGS: u8 = 0x4;
pub(crate) const PUSH_PROMISE: u8 = 0x5;
pub(crate) const PING: u8 = 0x6;
pub(crate) const GOAWAY: u8 = 0x7;
pub(crate) const WINDOW_UPDATE: u8 = 0x8;
pub(crate) const CONTINUATION: u8 = 0x9;

pub(crate) const ACK: u8 = 0x1;
pub(crate) const END_STREAM: u8 = 0x1;
pub(crate) const END_HEADERS: u8 = 0x4;
pub(crate) const PADDED: u8 = 0x8;

pub(crate) const NO_ERROR: u32 = 0x0;
pub(crate) const PROTOCOL_ERROR: u32 = 0x1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 0x3;
pub(crate) const STREAM_CLOSED: u32 = 0x5;
pub(crate) const FRAME_SIZE_ERROR: u32 = 0x6;
pub(crate) const REFUSED_STREAM: u32 = 0x7;
pub(crate) const CANCEL: u32 = 0x8;
pub(crate) const COMPRESSION_ERROR: u32 = 0x9;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 0xb;

pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 0x3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 0x4;
pub(crate) const MAX_FRAME_SIZE: u16 = 0x5;
pub(crate) const HEADER_TABLE_SIZE: u16 = 0x1;
pub(crate) const ENABLE_PUSH: u16 = 0x2;

/// Any frame; nothing is checked.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(9 + payload.len());
    frame.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A frame of a length that its payload does not have.
pub(crate) fn lying(kind: u8, flags: u8, stream: u32, length: u32) -> Vec<u8> {
    let mut frame = frame(kind, flags, stream, &[]);
    frame[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    frame
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(id, value)| {
            let mut entry = id.to_be_bytes().to_vec();
            entry.extend_from_slice(&value.to_be_bytes());
            entry
        })
        .collect();
    frame(SETTINGS, 0, 0, &payload)
}

pub(crate) fn settings_ack() -> Vec<u8> {
    frame(SETTINGS, ACK, 0, &[])
}

pub(crate) fn ping(flags: u8, payload: u64) -> Vec<u8> {
    frame(PING, flags, 0, &payload.to_be_bytes())
}

pub(crate) fn rst(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &code.to_be_bytes())
}

pub(crate) fn window_update(stream: u32, increment: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &increment.to_be_bytes())
}

pub(crate) fn goaway(last: u32, code: u32) -> Vec<u8> {
    let mut payload = last.to_be_bytes().to_vec();
    payload.extend_from_slice(&code.to_be_bytes());
    frame(GOAWAY, 0, 0, &payload)
}

pub(crate) fn data(stream: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, payload)
}

/// PRIORITY: the stream depends on another.
pub(crate) fn priority(stream: u32, on: u32) -> Vec<u8> {
    let mut payload = on.to_be_bytes().to_vec();
    payload.push(16);
    frame(PRIORITY, 0, stream, &payload)
}

/// HEADERS that are complete.
pub(crate) fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, block)
}

/// A CONNECT to 10.0.0.7:80.
pub(crate) fn connect(stream: u32) -> Vec<u8> {
    headers(stream, 0, &connect_block())
}

pub(crate) fn connect_block() -> Vec<u8> {
    block(&[(":method", "CONNECT"), (":authority", "10.0.0.7:80")])
}

/// The answer that opens a tunnel.
pub(crate) fn accepted(stream: u32) -> Vec<u8> {
    headers(stream, 0, &block(&[(":status", "200")]))
}

/// A header block of literals that enter no table ([RFC 7541 section 6.2.2](https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2)).
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    fields
        .iter()
        .flat_map(|(name, value)| literal(0x00, name, value))
        .collect()
}

/// A literal of the kind that `first` says: 0x00 enters no table, 0x40 enters it, 0x10 never may.
pub(crate) fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![first];
    integer(&mut field, 0x00, 7, name.len());
    field.extend_from_slice(name.as_bytes());
    integer(&mut field, 0x00, 7, value.len());
    field.extend_from_slice(value.as_bytes());
    field
}

/// A field that is in a table.
pub(crate) fn indexed(index: usize) -> Vec<u8> {
    let mut field = Vec::new();
    integer(&mut field, 0x80, 7, index);
    field
}

/// A change of the dynamic table's size.
pub(crate) fn table_size(size: usize) -> Vec<u8> {
    let mut field = Vec::new();
    integer(&mut field, 0x20, 5, size);
    field
}

/// An integer with a prefix of so many bits ([RFC 7541 section 5.1](https://www.rfc-editor.org/rfc/rfc7541#section-5.1)).
fn integer(into: &mut Vec<u8>, first: u8, bits: u32, value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        into.push(first | value as u8);
        return;
    }
    into.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 0x80 {
        into.push(0x80 | (rest & 0x7f) as u8);
        rest >>= 7;
    }
    into.push(rest as u8);
}

/// Header name of the first entry of the dynamic table.
pub(crate) const FIRST_DYNAMIC: usize = 62;

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// Takes one frame off the front of what was read, if a whole one is there.
    pub(crate) fn take(read: &mut Vec<u8>) -> Option<Self> {
        let head = read.get(..9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = read.get(9..9 + length)?.to_vec();
        read.drain(..9 + length);
        Some(Self {
            kind,
            flags,
            stream,
            payload,
        })
    }

    /// The code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}
