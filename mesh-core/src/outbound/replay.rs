//! A request's body that can be sent from its beginning again, as far as it is kept.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

use crate::error::BoxError;
use crate::telemetry::size;
use crate::{Error, ErrorKind};

/// The body of a request as the application gave it.
pub(super) type AppBody = UnsyncBoxBody<Bytes, BoxError>;

/// How many frames are kept at most: each costs some memory beside its bytes.
const MAX_FRAMES: usize = 64;

/// Keeps what attempts read of a body, while it is no more than the bound.
///
/// Only the latest attempt reads on; what it reads that is not kept is gone, and the body with it. Frames are
/// shared, not copied.
pub(super) struct Replay {
    shared: Arc<Mutex<Shared>>,
    empty: bool,
    hint: SizeHint,
}

struct Shared {
    rest: AppBody,
    kept: Vec<Kept>,
    /// How many of them the latest attempt has taken.
    given: usize,
    /// Bytes that may still be kept.
    room: usize,
    /// Whether all that was read is kept.
    whole: bool,
    /// Whether there is no more to read.
    ended: bool,
    /// The attempt that may read.
    attempt: u32,
    /// How many bytes of the body the latest attempt has taken, trailers included.
    sent: u64,
}

#[derive(Clone)]
enum Kept {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// The body of one attempt.
pub(super) struct RequestBody {
    shared: Arc<Mutex<Shared>>,
    attempt: u32,
    begun: bool,
    empty: bool,
    hint: SizeHint,
}

impl Replay {
    /// Keeps at most `bound` bytes.
    pub(super) fn new(body: AppBody, bound: usize) -> Self {
        let (empty, hint) = (body.is_end_stream(), body.size_hint());
        let shared = Shared {
            rest: body,
            kept: Vec::new(),
            given: 0,
            room: bound,
            whole: true,
            ended: empty,
            attempt: 0,
            sent: 0,
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            empty,
            hint,
        }
    }

    /// The body from its beginning, for one more attempt; `None` when its beginning is gone. Earlier
    /// attempts, whoever still holds them, get no more of it.
    pub(super) fn attempt(&self) -> Option<RequestBody> {
        let mut shared = lock(&self.shared);
        if !shared.whole {
            return None;
        }
        shared.attempt += 1;
        shared.given = 0;
        shared.sent = 0;
        Some(RequestBody {
            shared: Arc::clone(&self.shared),
            attempt: shared.attempt,
            begun: false,
            empty: self.empty,
            hint: self.hint,
        })
    }

    /// Lets go of what is kept, but for what the latest attempt has still to send: the request is answered,
    /// and will not be sent again.
    pub(super) fn settle(&self) {
        lock(&self.shared).settle();
    }

    /// Tells how much of the body was sent.
    pub(super) fn sent(&self) -> Sent {
        Sent(Arc::clone(&self.shared))
    }
}

/// How much of a request's body its latest attempt sent.
pub(super) struct Sent(Arc<Mutex<Shared>>);

impl Sent {
    /// In bytes, so far.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.0).sent
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

    /// Keeps a frame that the latest attempt is given, which has taken all that is kept.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        if !self.whole {
            return;
        }
        let size = size_of_frame(frame);
        let kept = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Kept::Data(data.clone()),
            (None, Some(trailers)) => Kept::Trailers(trailers.clone()),
            // Nobody knows how to send it again.
            (None, None) => return self.settle(),
        };
        if size > self.room || self.kept.len() == MAX_FRAMES {
            return self.settle();
        }
        self.room -= size;
        self.kept.push(kept);
        self.given += 1;
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

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // A body that panicked is not read again: its attempt has failed.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let shared = &mut *lock(&this.shared);
        if shared.attempt != this.attempt {
            let again = Error::new(ErrorKind::Internal)
                .with_detail("the request has been sent again")
                .into();
            return Poll::Ready(Some(Err(again)));
        }
        this.begun = true;
        let frame = match shared.kept.get(shared.given).cloned() {
            Some(kept) => {
                shared.given += 1;
                shared.let_go();
                Some(Ok(kept.frame()))
            }
            None if shared.ended => None,
            None => {
                let frame = ready!(Pin::new(&mut shared.rest).poll_frame(cx));
                match &frame {
                    Some(Ok(frame)) => shared.keep(frame),
                    Some(Err(_)) => shared.settle(),
                    None => shared.ended = true,
                }
                frame
            }
        };
        if let Some(Ok(frame)) = &frame {
            shared.sent += size_of_frame(frame) as u64;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        if !self.begun {
            return self.empty;
        }
        let shared = lock(&self.shared);
        shared.given == shared.kept.len() && (shared.ended || shared.rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if !self.begun {
            return self.hint;
        }
        let shared = lock(&self.shared);
        let left: usize = shared.kept.iter().skip(shared.given).map(Kept::data).sum();
        let rest = shared.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(left as u64));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(left as u64));
        }
        hint
    }
}

#[cfg(test)]
mod tests;
