use std::convert::Infallible;
use std::task::Waker;

use http_body_util::StreamBody;
use proptest::prelude::*;

use super::*;

/// What an application gives: data frames of these sizes, each with bytes of its own, and trailers.
fn body(sizes: &[usize], trailers: bool) -> AppBody {
    let data = sizes.iter().enumerate().map(|(at, size)| {
        let bytes = vec![at as u8; *size];
        Frame::data(Bytes::from(bytes))
    });
    let mut last = HeaderMap::new();
    last.insert("end", "here".parse().unwrap());
    let last = trailers.then(|| Frame::trailers(last));
    let frames: Vec<_> = data.chain(last).map(Ok::<_, Infallible>).collect();
    erase(StreamBody::new(futures_util::stream::iter(frames)))
}

/// Reads at most so many frames: their bytes, and whether it failed.
fn read(body: &mut ReplayBody, frames: usize) -> (Vec<u8>, bool, bool) {
    let (mut bytes, mut trailers) = (Vec::new(), false);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..frames {
        match Pin::new(&mut *body).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => bytes.extend(data),
                Err(_) => trailers = true,
            },
            Poll::Ready(Some(Err(_))) => return (bytes, trailers, true),
            Poll::Ready(None) => break,
            Poll::Pending => unreachable!("all is there"),
        }
    }
    (bytes, trailers, false)
}

proptest! {
    /// Whatever earlier attempts read: the next one sends all of the body or there is none, there is one
    /// exactly while what was read fits into the bound, and who was overtaken gets nothing more.
    #[test]
    fn an_attempt_sends_the_whole_body_or_is_not_made(
        sizes in proptest::collection::vec(0_usize..40, 0..100),
        trailers: bool,
        bound in 0_usize..1500,
        reads in proptest::collection::vec(0_usize..100, 1..4),
    ) {
        let expected: Vec<u8> = sizes
            .iter()
            .enumerate()
            .flat_map(|(at, size)| vec![at as u8; *size])
            .collect();
        let replay = Replay::new(body(&sizes, trailers), bound);
        let mut attempt = replay.attempt().expect("nothing was read");
        let mut furthest = 0;
        for frames in reads {
            prop_assert_eq!(attempt.is_end_stream(), false);
            let (bytes, _, failed) = read(&mut attempt, frames);
            prop_assert!(!failed);
            prop_assert!(expected.starts_with(&bytes));
            let ending = if frames > sizes.len() && trailers { "endhere".len() } else { 0 };
            prop_assert_eq!(replay.sent().bytes() as usize, bytes.len() + ending);
            furthest = furthest.max(frames.min(sizes.len() + usize::from(trailers)));
            let with_trailers = if furthest > sizes.len() { "endhere".len() } else { 0 };
            let kept = sizes.iter().take(furthest).sum::<usize>() + with_trailers;
            let next = replay.attempt();
            prop_assert_eq!(next.is_some(), kept <= bound && furthest <= MAX_FRAMES);
            let Some(next) = next else {
                // The attempt that is under way reads on.
                let (rest, _, failed) = read(&mut attempt, usize::MAX);
                prop_assert!(!failed);
                prop_assert_eq!([bytes, rest].concat(), expected);
                return Ok(());
            };
            let mut overtaken = std::mem::replace(&mut attempt, next);
            let (nothing, _, failed) = read(&mut overtaken, 1);
            prop_assert!(nothing.is_empty() && failed);
        }
        drop(replay);
        let (bytes, ended, failed) = read(&mut attempt, usize::MAX);
        prop_assert!(!failed);
        prop_assert_eq!(bytes, expected);
        prop_assert_eq!(ended, trailers);
    }
}

#[test]
fn a_body_that_failed_is_not_sent_again() {
    let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Err("lost")];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let replay = Replay::new(erase(body), 100);
    let mut attempt = replay.attempt().unwrap();
    assert!(read(&mut attempt, 2).2);
    assert!(replay.attempt().is_none());
}

#[test]
fn an_empty_body_is_one_from_the_start() {
    let replay = Replay::new(erase(http_body_util::Empty::<Bytes>::new()), 0);
    let attempt = replay.attempt().unwrap();
    assert!(attempt.is_end_stream());
    assert_eq!(attempt.size_hint().exact(), Some(0));
    assert!(replay.attempt().is_some());
}

/// A body that goes on as long as somebody holds the other end.
struct Channel(tokio::sync::mpsc::Receiver<Bytes>);

impl Body for Channel {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0
            .poll_recv(cx)
            .map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

#[test]
fn a_body_ends_with_the_attempt_to_send_it_whoever_still_asks_how_much_was_sent() {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    sender.try_send(Bytes::from_static(b"abc")).unwrap();
    let replay = Replay::new(erase(Channel(receiver)), 100);
    let overtaken = replay.attempt().unwrap();
    let mut attempt = replay.attempt().unwrap();
    let sent = replay.sent();
    let mut cx = Context::from_waker(Waker::noop());
    assert!(Pin::new(&mut attempt).poll_frame(&mut cx).is_ready());
    assert!(Pin::new(&mut attempt).poll_frame(&mut cx).is_pending());
    drop(replay);
    assert!(!sender.is_closed(), "it is still being sent");
    drop(attempt);
    assert!(sender.is_closed());
    assert_eq!(sent.bytes(), 3);
    drop(overtaken);
}

/// A request that fails leaves attempts behind that a connection has not let go of yet.
#[test]
fn a_body_ends_with_the_request_when_its_latest_attempt_has_ended_before() {
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let replay = Replay::new(erase(Channel(receiver)), 100);
    let overtaken = replay.attempt().unwrap();
    let attempt = replay.attempt().unwrap();
    drop(attempt);
    assert!(!sender.is_closed(), "it may be sent again");
    drop(replay);
    assert!(sender.is_closed());
    drop(overtaken);
}

#[test]
fn nothing_is_kept_for_a_request_that_will_not_be_sent_again() {
    let replay = Replay::new(body(&[30, 30], false), 100);
    let mut attempt = replay.attempt().unwrap();
    read(&mut attempt, 1);
    let shared = Arc::clone(&replay.shared);
    assert_eq!(lock(&shared).kept.len(), 1);
    drop(replay);
    assert_eq!(lock(&shared).kept.len(), 0);
    read(&mut attempt, 1);
    assert_eq!(lock(&shared).kept.len(), 0);
}

#[test]
fn an_overtaken_attempt_never_looks_complete() {
    for sizes in [&[][..], &[3]] {
        let replay = Replay::new(body(sizes, false), 100);
        let mut overtaken = replay.attempt().unwrap();
        read(&mut overtaken, 5);
        let mut attempt = replay.attempt().unwrap();
        read(&mut attempt, 5);
        assert!(attempt.is_end_stream());
        assert!(!overtaken.is_end_stream());
        assert_eq!(overtaken.size_hint().exact(), None);
    }
}

/// A body that asks how much of it was sent, and what its latest attempt looks like, while it is polled.
struct Asks(Arc<Mutex<Option<(Sent, Replay)>>>);

impl Body for Asks {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let asked = self.0.lock().unwrap().take();
        let Some((sent, replay)) = asked else {
            return Poll::Ready(None);
        };
        assert_eq!(sent.bytes(), 0);
        // Overtaken while it polls: the next attempt waits, and is given what is read here.
        let mut next = replay.attempt().unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut next).poll_frame(&mut cx).is_pending());
        let rest = (next, replay);
        NEXT.with(|slot| slot.replace(Some(rest)));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"data")))))
    }
}

thread_local! {
    static NEXT: std::cell::RefCell<Option<(ReplayBody, Replay)>> = const { std::cell::RefCell::new(None) };
}

#[test]
fn a_body_is_polled_without_the_lock_and_a_new_attempt_gets_what_the_old_one_read() {
    let slot = Arc::new(Mutex::new(None));
    let replay = Replay::new(erase(Asks(Arc::clone(&slot))), 100);
    let mut attempt = replay.attempt().unwrap();
    *slot.lock().unwrap() = Some((replay.sent(), replay));
    let (bytes, _, failed) = read(&mut attempt, 1);
    assert!(bytes.is_empty() && failed, "it was overtaken");
    let (mut next, _replay) = NEXT.take().unwrap();
    assert_eq!(read(&mut next, 5), (b"data".to_vec(), false, false));
}

#[test]
fn a_small_frame_does_not_keep_the_buffer_that_it_is_a_slice_of() {
    struct Large(#[expect(dead_code, reason = "counted")] Arc<()>);
    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &[7; 100_000]
        }
    }
    let held = Arc::new(());
    let frame = Bytes::from_owner(Large(Arc::clone(&held))).slice(..10);
    let frames = [Ok::<_, Infallible>(Frame::data(frame))];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let replay = Replay::new(erase(body), 100);
    let mut attempt = replay.attempt().unwrap();
    assert_eq!(read(&mut attempt, 5).0, [7; 10]);
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(read(&mut replay.attempt().unwrap(), 5).0, [7; 10]);
}
