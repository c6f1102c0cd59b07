use bytes::Buf;
use proptest::prelude::*;

use super::*;
use crate::payloads::Placeholder;

fn header(kind: u8, stream: u32, length: usize) -> Vec<u8> {
    let mut header = (length as u32).to_be_bytes()[1..].to_vec();
    header.extend([kind, 0]);
    header.extend(stream.to_be_bytes());
    header
}

fn frame_buf(bytes: &[u8]) -> FrameBuf {
    let mut frame = FrameBuf::with_capacity(bytes.len());
    frame.extend(bytes);
    frame
}

fn give(payloads: &Arc<Payloads>, stream: u32, bytes: &[u8]) -> Placeholder {
    payloads.give(stream, frame_buf(bytes), Arc::default())
}

/// What h2 writes of a frame with a placeholder: its first `count` bytes.
fn written(placeholder: &mut Placeholder, stream: u32, count: usize) -> Vec<u8> {
    let mut frame = header(DATA, stream, count);
    frame.extend_from_slice(&placeholder.chunk()[..count]);
    placeholder.advance(count);
    frame
}

fn leave(framing: &mut Framing, out: &mut Vec<u8>) {
    while let Some(frame) = framing.next() {
        assert!((1..=16 * 1024).contains(&frame.len()), "one TLS record");
        out.extend(frame.bytes());
        *frame = FrameBuf::default();
    }
}

fn take_all(framing: &mut Framing, mut bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        if framing.must_leave() {
            leave(framing, out);
        }
        let count = framing.take(bytes)?;
        assert!(count > 0, "nothing moves");
        bytes = &bytes[count..];
    }
    Ok(())
}

/// What a connection does.
#[derive(Debug, Clone)]
enum Step {
    /// h2 writes a frame of its own.
    Control(usize),
    /// A tunnel gives h2 so many bytes, and h2 writes them in frames of at most so many.
    Data(u32, usize, usize),
    /// As that, but the stream is reset after the first frame.
    Reset(u32, usize, usize),
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..40usize, 900..1200usize, 16_300..=16_375usize];
    let data = || {
        (
            1..4u32,
            size.clone(),
            prop_oneof![1..2000usize, Just(16_384)],
        )
    };
    prop_oneof![
        prop_oneof![0..50usize, 0..20_000usize].prop_map(Step::Control),
        data().prop_map(|(stream, size, most)| Step::Data(stream, size, most)),
        data().prop_map(|(stream, size, most)| Step::Reset(stream, size, most)),
        Just(Step::Flush),
    ]
}

proptest! {
    #[test]
    fn frames_leave_in_order_with_the_bytes_they_stand_for(
        steps in prop::collection::vec(step(), 1..40),
        pieces in prop::collection::vec(1..20_000usize, 1..20),
        preface in 0..30usize,
    ) {
        let mut framing = Framing::new(Arc::default(), preface);
        let payloads = Arc::clone(framing.payloads());
        let mut pieces = pieces.iter().copied().cycle();
        let mut expected = vec![b'P'; preface];
        let mut out = Vec::new();
        let mut h2 = expected.clone();
        let mut byte = 0_u8;
        for step in steps {
            match step {
                Step::Control(length) => {
                    let mut frame = header(4, 0, length);
                    frame.resize(9 + length, b'C');
                    expected.extend(&frame);
                    h2.extend(frame);
                }
                Step::Data(stream, size, most) | Step::Reset(stream, size, most) => {
                    let bytes: Vec<u8> = (0..size).map(|_| { byte = byte.wrapping_add(1); byte }).collect();
                    let mut placeholder = give(&payloads, stream, &bytes);
                    let chunks = if size == 0 { vec![&[][..]] } else { bytes.chunks(most).collect() };
                    for chunk in chunks {
                        let frame = written(&mut placeholder, stream, chunk.len());
                        prop_assert_eq!(frame.len(), 9 + chunk.len());
                        expected.extend(&frame[..9]);
                        expected.extend(chunk);
                        h2.extend(frame);
                        if matches!(step, Step::Reset(..)) {
                            break;
                        }
                    }
                    // Of a stream that is reset h2 forgets the rest, whether or not what it has
                    // written has come this far. Nothing of the stream follows that.
                    drop(placeholder);
                    if matches!(step, Step::Reset(..)) {
                        take_all(&mut framing, &std::mem::take(&mut h2), &mut out).unwrap();
                    }
                }
                Step::Flush => leave(&mut framing, &mut out),
            }
            while h2.len() > 20_000 {
                let piece: Vec<u8> = h2.drain(..pieces.next().unwrap().min(h2.len())).collect();
                take_all(&mut framing, &piece, &mut out).unwrap();
            }
        }
        while !h2.is_empty() {
            let piece: Vec<u8> = h2.drain(..pieces.next().unwrap().min(h2.len())).collect();
            take_all(&mut framing, &piece, &mut out).unwrap();
        }
        leave(&mut framing, &mut out);
        prop_assert!(out == expected);
        prop_assert!(payloads.is_empty());
    }
}

#[test]
fn nothing_is_sent_in_place_of_data_that_nobody_gave() {
    let flags = |flags: u8| {
        let mut frame = header(DATA, 1, 4);
        frame[4] = flags;
        frame
    };
    for (given, frame) in [
        (&b""[..], header(DATA, 1, 4)),
        // More than the next payload has; of another stream; padded.
        (b"abc", header(DATA, 1, 4)),
        (b"abcd", header(DATA, 3, 4)),
        (b"abcd", flags(PADDED)),
    ] {
        let mut framing = Framing::new(Arc::default(), 0);
        let _placeholder = give(framing.payloads(), 1, given);
        framing.take(&frame).unwrap_err();
        assert!(framing.next().is_none());
        framing.take(&header(4, 0, 0)).unwrap_err();
        assert!(framing.next().is_none());
    }
}

#[test]
fn what_h2_throws_away_is_forgotten_and_what_it_has_written_is_not() {
    let mut framing = Framing::new(Arc::default(), 0);
    let payloads = Arc::clone(framing.payloads());
    let token = Arc::new(());
    let given = |bytes: &[u8]| payloads.give(1, frame_buf(bytes), Arc::clone(&token));
    let (mut first, second, third) = (given(b"first"), given(b"second"), given(b"third"));
    let frame = written(&mut first, 1, 5);
    drop(second);
    assert_eq!(Arc::strong_count(&token), 3);
    drop(third);
    drop(first);
    assert_eq!(Arc::strong_count(&token), 2);

    let mut out = Vec::new();
    take_all(&mut framing, &frame, &mut out).unwrap();
    leave(&mut framing, &mut out);
    assert_eq!(&out[9..], b"first");
    assert_eq!(Arc::strong_count(&token), 1);
    assert!(payloads.is_empty());
}

#[test]
fn the_end_of_a_stream_holds_its_token_while_h2_has_it() {
    let payloads = Arc::new(Payloads::default());
    let token = Arc::new(());
    let end = payloads.give(1, FrameBuf::default(), Arc::clone(&token));
    assert_eq!(Arc::strong_count(&token), 2);
    drop(end);
    assert_eq!(Arc::strong_count(&token), 1);
}

#[test]
fn what_has_left_in_part_leaves_whole_before_more_joins_it() {
    let mut framing = Framing::new(Arc::default(), 0);
    framing.take(&header(4, 0, 0)).unwrap();
    assert!(!framing.must_leave());
    framing.next().unwrap().advance(4);
    assert!(framing.must_leave());
    assert_eq!(framing.take(&header(4, 0, 0)).unwrap(), 0);
    framing.next().unwrap().advance(5);
    assert!(!framing.must_leave());
    assert_eq!(framing.take(&header(4, 0, 0)).unwrap(), 9);
}

#[test]
fn a_large_frame_leaves_in_the_buffer_it_came_in() {
    let mut framing = Framing::new(Arc::default(), 0);
    let bytes = frame_buf(&[7; 16_375]);
    let place = bytes.bytes().as_ptr();
    let mut placeholder = framing.payloads().give(1, bytes, Arc::default());
    let frame = written(&mut placeholder, 1, 16_375);
    framing.take(&frame).unwrap();
    let leaves = framing.next().unwrap();
    assert_eq!(leaves.bytes()[9..].as_ptr(), place);
}
