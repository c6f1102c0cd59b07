use std::cell::Cell;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::{CONTINUATION, Frames, HEADERS, PREFACE, Rate};
use crate::config::Config;

const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;

fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
    let length = u32::try_from(payload).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
    frame.resize(9 + payload, 0xff);
    frame
}

fn strict() -> Frames {
    let config = Config::default()
        .max_control_frames(10)
        .max_resets_per_second(1);
    Frames::new(&config, 0)
}

#[test]
fn a_rate_bears_a_burst_and_then_its_even_share() {
    let start = Instant::now();
    let mut rate = Rate::new(10);
    assert!((0..10).all(|_| rate.admits(start)));
    assert!(!rate.admits(start));
    let mut rate = Rate::new(10);
    assert!((0..1_000).all(|second| rate.admits(start + Duration::from_secs(second))));
    // Twice the share is borne for as long as the burst lasts.
    let half = |step: u32| start + Duration::from_secs(2_000) + Duration::from_millis(500) * step;
    let borne = (0..1_000).position(|step| !rate.admits(half(step)));
    assert_eq!(borne, Some(19));
}

#[test]
fn frames_that_carry_nothing_are_counted_and_others_are_not() {
    let now = Instant::now;
    let mut frames = strict();
    for (kind, flags, payload) in [
        (0, 0, 9),
        (0, 1, 0),
        (1, 4, 20),
        (1, 4, 0),
        (4, 1, 0),
        (8, 0, 4),
    ] {
        for _ in 0..1_000 {
            frames.arrived(&frame(kind, flags, payload), now).unwrap();
        }
    }
    // Empty DATA, PRIORITY, SETTINGS, PING and its answer, GOAWAY, unknown.
    for (kind, flags) in [(0, 0), (2, 0), (4, 0), (6, 0), (6, 1), (7, 0), (99, 0)] {
        let mut frames = strict();
        let refused = (0..20).position(|_| frames.arrived(&frame(kind, flags, 0), now).is_err());
        assert_eq!(refused, Some(10), "{kind}");
    }
    let mut frames = strict();
    let refused = (0..20).position(|_| frames.arrived(&frame(RST_STREAM, 0, 4), now).is_err());
    assert_eq!(refused, Some(10));
}

#[test]
fn resets_of_tunnels_that_were_used_do_not_count() {
    let now = Instant::now;
    let mut frames = strict();
    let mut arrive = |kind, stream: u32, payload| {
        let mut bytes = frame(kind, 0, payload);
        bytes[5..9].copy_from_slice(&stream.to_be_bytes());
        frames.arrived(&bytes, now)
    };
    // A hundred at a time.
    for turn in 0..20_u32 {
        let streams = (0..100).map(|at| (turn * 100 + at) * 2 + 1);
        for stream in streams.clone() {
            arrive(DATA, stream, 1).unwrap();
        }
        for stream in streams {
            arrive(RST_STREAM, stream, 4).unwrap();
        }
    }
    let refused = (5_000..5_020).position(|at| arrive(RST_STREAM, at * 2 + 1, 4).is_err());
    assert_eq!(refused, Some(10));
}

#[test]
fn a_header_block_counts_from_its_first_byte_to_its_last() {
    let start = Instant::now();
    let time = Cell::new(start);
    let mut frames = strict();
    let mut arrive = |bytes: &[u8], seconds| {
        time.set(start + Duration::from_secs(seconds));
        frames.arrived(bytes, || time.get()).unwrap();
        frames.block_since()
    };
    let begun = Some(start + Duration::from_secs(3));
    assert_eq!(arrive(&frame(HEADERS, 4, 20), 1), None);
    assert_eq!(arrive(&frame(PING, 0, 8), 2), None);
    assert_eq!(arrive(&frame(HEADERS, 0, 20), 3), begun);
    assert_eq!(arrive(&frame(CONTINUATION, 0, 20), 4), begun);
    let last = frame(CONTINUATION, 4, 20);
    assert_eq!(arrive(&last[..28], 5), begun);
    assert_eq!(arrive(&last[28..], 6), None);
    // One whole frame of which a part is missing.
    let whole = frame(HEADERS, 4, 20);
    let begun = Some(start + Duration::from_secs(7));
    assert_eq!(arrive(&whole[..9], 7), begun);
    assert_eq!(arrive(&whole[9..], 8), None);
}

proptest! {
    /// However the bytes are cut, the same frame is one too many.
    #[test]
    fn chunks_do_not_matter(
        kinds in proptest::collection::vec((0..11_u8, any::<u8>(), 0..40_usize), 1..40),
        cuts in proptest::collection::vec(1..30_usize, 1..20),
    ) {
        let start = Instant::now();
        let mut bytes = vec![b'P'; PREFACE];
        let config = Config::default().max_control_frames(5).max_resets_per_second(1);
        let mut whole = Frames::new(&config, PREFACE);
        whole.arrived(&bytes, || start).unwrap();
        let mut refused = None;
        for &(kind, flags, payload) in &kinds {
            let frame = frame(kind, flags, payload);
            bytes.extend_from_slice(&frame);
            if let Err(what) = whole.arrived(&frame, || start) {
                refused = Some(what);
                break;
            }
        }
        let mut chunked = Frames::new(&config, PREFACE);
        let mut rest = &bytes[..];
        let mut cuts = cuts.iter().cycle();
        let mut told = None;
        while !rest.is_empty() && told.is_none() {
            let (chunk, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            told = chunked.arrived(chunk, || start).err();
            rest = later;
        }
        prop_assert_eq!(told, refused);
        if refused.is_none() {
            prop_assert_eq!(chunked.block_since(), whole.block_since());
        }
    }
}
