use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::error::{BoxError, Error, ErrorKind};

/// Where a body waits until somebody reads it.
pub(crate) struct Slot<B> {
    body: Arc<Mutex<Option<B>>>,
}

impl<B> Slot<B> {
    /// Takes the body: whoever comes first has it.
    pub(crate) fn take(&self) -> Option<B> {
        // A panic cannot have left the option half written.
        self.body
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

pin_project! {
    /// The body of a request that may be sent again as long as nothing has read from it.
    ///
    /// When the request has been sent again, the body of the earlier attempt fails if it is read after
    /// all: the bytes are the later attempt's.
    pub struct ReplayBody<B> {
        slot: Slot<B>,
        #[pin]
        reading: Option<B>,
        begun: bool,
        empty: bool,
        hint: SizeHint,
    }
}

impl<B: Body> ReplayBody<B> {
    pub(crate) fn new(body: B) -> (Self, Slot<B>) {
        let (empty, hint) = (body.is_end_stream(), body.size_hint());
        let body = Arc::new(Mutex::new(Some(body)));
        let replay = Self {
            slot: Slot {
                body: Arc::clone(&body),
            },
            reading: None,
            begun: false,
            empty,
            hint,
        };
        (replay, Slot { body })
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        // Reading nothing from an empty body does not use it up.
        if *this.empty {
            return Poll::Ready(None);
        }
        if !*this.begun {
            *this.begun = true;
            this.reading.set(this.slot.take());
        }
        match this.reading.as_pin_mut() {
            Some(body) => body
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(Into::into))),
            None => Poll::Ready(Some(Err(Error::new(ErrorKind::Internal)
                .with_detail("the request has been sent again")
                .into()))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.reading {
            Some(body) => body.is_end_stream(),
            None => self.empty,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.reading {
            Some(body) => body.size_hint(),
            None => self.hint,
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("begun", &self.begun)
            .field("size_hint", &self.hint)
            .finish_non_exhaustive()
    }
}
