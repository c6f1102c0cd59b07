//! A request's body that can be sent from its beginning again, as far as it is kept.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::error::BoxError;
use crate::sync::lock;
use crate::telemetry::size;
use crate::{Error, ErrorKind};

/// The body of a request as the application gave it, its type forgotten.
pub(crate) type AppBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// Forgets the type of a body.
pub(crate) fn erase<B>(body: B) -> AppBody
where
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
{
    Box::pin(Erased { inner: body })
}

pin_project! {
    /// A body with our types of data and error.
    struct Erased<B> {
        #[pin]
        inner: B,
    }
}

impl<B> Body for Erased<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let bytes = |mut data: B::Data| data.copy_to_bytes(data.remaining());
        self.project().inner.poll_frame(cx).map(|frame| {
            frame.map(|frame| frame.map(|frame| frame.map_data(bytes)).map_err(Into::into))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How many frames are kept at most: each costs some memory beside its bytes.
const MAX_FRAMES: usize = 64;

/// Frames up to this size are kept as copies: a few bytes may be a slice of a large buffer, which they would hold
/// in memory.
const COPIED: usize = 1024;

/// Keeps what attempts read of a body, while it is no more than the bound.
///
/// Only the latest attempt reads on; what it reads that is not kept is gone, and the body with it. Large frames
/// are shared, not copied. The application's body lives no longer than the last attempt to send it, and is
/// never polled under the lock.
///
/// Dropping it says that there will be no further attempt: nothing is kept any more but for what the latest one has
/// still to send.
pub(crate) struct Replay {
    shared: Arc<Mutex<Shared>>,
    sent: Arc<AtomicU64>,
    empty: bool,
    hint: SizeHint,
}

struct Shared {
    rest: Rest,
    /// What the rest said when it was polled last.
    hint: SizeHint,
    kept: Vec<Kept>,
    /// How many of them the latest attempt has taken.
    given: usize,
    /// Bytes that may still be kept.
    room: usize,
    /// Whether all that was read is kept.
    whole: bool,
    /// The attempt that may read.
    attempt: u32,
    /// Whether that attempt is still being sent by somebody.
    sending: bool,
    /// Wakes the latest attempt while the one before still polls the rest.
    waiting: Option<Waker>,
}

/// What was not read yet of the application's body.
enum Rest {
    Here(AppBody),
    /// An attempt polls it.
    Polled,
    /// There is no more.
    Ended,
    /// It failed, or a frame of it is gone that the latest attempt needs.
    Lost,
}

#[derive(Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// The body of a request that may be sent again, as far as what was read of it is kept.
///
/// When the request has been sent again, the body of the earlier attempt fails if it is read after all: the bytes
/// are the later attempt's.
pub struct ReplayBody {
    shared: Arc<Mutex<Shared>>,
    /// How many bytes of the body the latest attempt has taken, trailers included.
    sent: Arc<AtomicU64>,
    attempt: u32,
    begun: bool,
    empty: bool,
    hint: SizeHint,
}

impl Replay {
    /// Keeps at most `bound` bytes for later attempts than the first, which is returned with it.
    pub(crate) fn begin(body: AppBody, bound: usize) -> (Self, ReplayBody) {
        let replay = Self::new(body, bound);
        let first = replay.next(&mut lock(&replay.shared));
        (replay, first)
    }

    fn new(body: AppBody, bound: usize) -> Self {
        let (empty, hint) = (body.is_end_stream(), body.size_hint());
        let shared = Shared {
            rest: if empty { Rest::Ended } else { Rest::Here(body) },
            hint,
            kept: Vec::new(),
            given: 0,
            room: bound,
            whole: true,
            attempt: 0,
            sending: false,
            waiting: None,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            sent: Arc::default(),
            empty,
            hint,
        }
    }

    /// The body from its beginning, for one more attempt; `None` when its beginning is gone. Earlier
    /// attempts, whoever still holds them, get no more of it.
    pub(crate) fn attempt(&self) -> Option<ReplayBody> {
        let mut shared = lock(&self.shared);
        if !shared.whole {
            return None;
        }
        Some(self.next(&mut shared))
    }

    fn next(&self, shared: &mut Shared) -> ReplayBody {
        shared.attempt += 1;
        shared.sending = true;
        shared.given = 0;
        self.sent.store(0, Ordering::Relaxed);
        ReplayBody {
            shared: Arc::clone(&self.shared),
            sent: Arc::clone(&self.sent),
            attempt: shared.attempt,
            begun: false,
            empty: self.empty,
            hint: self.hint,
        }
    }

    /// Tells how much of the body was sent. Holds nothing of it.
    #[cfg(feature = "http")]
    pub(crate) fn sent(&self) -> Sent {
        Sent(Arc::clone(&self.sent))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        let unsent = {
            let mut shared = lock(&self.shared);
            shared.settle();
            (!shared.sending).then(|| shared.abandon())
        };
        drop(unsent);
    }
}

/// How much of a request's body its latest attempt sent.
#[cfg(feature = "http")]
pub(crate) struct Sent(Arc<AtomicU64>);

#[cfg(feature = "http")]
impl Sent {
    /// In bytes, so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Shared {
    /// The beginning will not be wanted again.
    fn settle(&mut self) {
        self.whole = false;
        self.let_go();
    }

    fn let_go(&mut self) {
        if !self.whole && self.given == self.kept.len() {
            self.kept = Vec::new();
            self.given = 0;
        }
    }

    /// Keeps a frame that was read after all that is kept; whether it could.
    fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        let size = size_of_frame(frame);
        if !self.whole || size > self.room || self.kept.len() == MAX_FRAMES {
            return false;
        }
        let kept = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) if data.len() <= COPIED => Kept::Data(Bytes::copy_from_slice(data)),
            (Some(data), _) => Kept::Data(data.clone()),
            (None, Some(trailers)) => Kept::Trailers(trailers.clone()),
            // Nobody knows how to send it again.
            (None, None) => return false,
        };
        self.room -= size;
        self.kept.push(kept);
        true
    }

    /// What nobody will send, to be dropped without the lock.
    fn abandon(&mut self) -> (Rest, Vec<Kept>) {
        self.given = 0;
        let rest = std::mem::replace(&mut self.rest, Rest::Lost);
        (rest, std::mem::take(&mut self.kept))
    }
}

/// The rest while it is polled without the lock. Dropped by a panic, it is lost.
struct Polling<'a> {
    shared: &'a Mutex<Shared>,
    attempt: u32,
    finished: bool,
}

impl Polling<'_> {
    /// Notes what came of it; whether the attempt is still the latest, to be given the frame.
    fn finish(
        mut self,
        rest: AppBody,
        polled: &Poll<Option<Result<Frame<Bytes>, BoxError>>>,
    ) -> bool {
        self.finished = true;
        let hint = rest.size_hint();
        let ended = rest.is_end_stream();
        let mut rest = Some(rest);
        let mut shared = lock(self.shared);
        let latest = shared.attempt == self.attempt;
        shared.hint = hint;
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let kept = shared.keep(frame);
                match (kept, latest) {
                    (true, true) => shared.given += 1,
                    // The attempt that waits is given it from there.
                    (true, false) => {}
                    (false, true) => shared.settle(),
                    (false, false) => shared.rest = Rest::Lost,
                }
            }
            Poll::Ready(Some(Err(_))) => {
                shared.settle();
                shared.rest = Rest::Lost;
            }
            Poll::Ready(None) => shared.rest = Rest::Ended,
            Poll::Pending => {}
        }
        // Unless all who could read on have gone meanwhile.
        if matches!(shared.rest, Rest::Polled) {
            shared.rest = match rest.take() {
                Some(rest) if !ended => Rest::Here(rest),
                done => {
                    rest = done;
                    Rest::Ended
                }
            };
        }
        let waiting = shared.waiting.take();
        drop(shared);
        // The application's code runs without the lock, its body's end as well.
        drop(rest);
        if let Some(waiting) = waiting {
            waiting.wake();
        }
        latest
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let waiting = {
            let mut shared = lock(self.shared);
            shared.settle();
            shared.rest = Rest::Lost;
            shared.waiting.take()
        };
        if let Some(waiting) = waiting {
            waiting.wake();
        }
    }
}

impl Kept {
    fn data(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

fn size_of_frame(frame: &Frame<Bytes>) -> usize {
    match (frame.data_ref(), frame.trailers_ref()) {
        (Some(data), _) => data.len(),
        (None, Some(trailers)) => size::of_headers(trailers) as usize,
        (None, None) => 0,
    }
}

impl ReplayBody {
    fn again(what: &'static str) -> BoxError {
        Error::new(ErrorKind::Internal).with_detail(what).into()
    }
}

impl Body for ReplayBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        const OVERTAKEN: &str = "the request has been sent again";
        let this = &mut *self;
        let mut shared = lock(&this.shared);
        if shared.attempt != this.attempt {
            return Poll::Ready(Some(Err(Self::again(OVERTAKEN))));
        }
        this.begun = true;
        if let Some(kept) = shared.kept.get(shared.given).cloned() {
            shared.given += 1;
            shared.let_go();
            let frame = kept.frame();
            this.sent
                .fetch_add(size_of_frame(&frame) as u64, Ordering::Relaxed);
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut rest = match std::mem::replace(&mut shared.rest, Rest::Polled) {
            Rest::Here(rest) => rest,
            Rest::Polled => {
                shared.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Rest::Ended => {
                shared.rest = Rest::Ended;
                return Poll::Ready(None);
            }
            Rest::Lost => {
                shared.rest = Rest::Lost;
                return Poll::Ready(Some(Err(Self::again("a part of the body is gone"))));
            }
        };
        drop(shared);
        let polling = Polling {
            shared: &this.shared,
            attempt: this.attempt,
            finished: false,
        };
        let polled = Pin::new(&mut rest).poll_frame(cx);
        if !polling.finish(rest, &polled) {
            return Poll::Ready(Some(Err(Self::again(OVERTAKEN))));
        }
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.sent
                .fetch_add(size_of_frame(frame) as u64, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        if shared.attempt != self.attempt {
            return false;
        }
        match self.begun {
            false => self.empty,
            true => shared.given == shared.kept.len() && matches!(shared.rest, Rest::Ended),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        if shared.attempt != self.attempt {
            return SizeHint::default();
        }
        if !self.begun {
            return self.hint;
        }
        let left: usize = shared.kept.iter().skip(shared.given).map(Kept::data).sum();
        let rest = match shared.rest {
            Rest::Ended => SizeHint::with_exact(0),
            _ => shared.hint,
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left as u64));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(left as u64));
        }
        hint
    }
}

impl Drop for ReplayBody {
    fn drop(&mut self) {
        // Nobody will send it: the application's side of the body may know.
        let unsent = {
            let mut shared = lock(&self.shared);
            let latest = shared.attempt == self.attempt;
            if latest {
                shared.sending = false;
            }
            (latest && !shared.whole).then(|| shared.abandon())
        };
        drop(unsent);
    }
}

impl fmt::Debug for ReplayBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("begun", &self.begun)
            .field("size_hint", &self.hint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
