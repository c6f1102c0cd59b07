//! A stream of gRPC whose responses are sent piece by piece.
//!
//! tonic encodes a response as a whole before it sends a byte of it, and that of a whole mesh takes a while and tens of
//! MB for each client. Here its pieces are made as the connection has room for them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;
use prost::Message;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::{Status, Streaming};
use tonic_prost::ProstDecoder;

use super::outgoing::Outgoing;

/// The requests of a stream, each of at most `max` bytes.
///
/// # Errors
///
/// `Unimplemented`, if they are compressed.
pub(super) fn requests<B, M>(
    headers: &HeaderMap,
    body: B,
    max: usize,
) -> Result<Streaming<M>, Status>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    M: Message + Default + 'static,
{
    let encoding = headers.get(HeaderName::from_static("grpc-encoding"));
    if let Some(encoding) = encoding.filter(|of| *of != "identity") {
        let text = format!("grpc-encoding: {encoding:?}, expected identity");
        return Err(Status::unimplemented(text));
    }
    let decoder = ProstDecoder::new(BufferSettings::default());
    Ok(Streaming::new_request(decoder, body, None, Some(max)))
}

/// What a stream is answered with.
pub(super) fn answer(
    responses: impl Stream<Item = Result<Outgoing, Status>> + Send + 'static,
) -> http::Response<Body> {
    let body = Responses {
        responses: Box::pin(responses),
        sending: None,
        ended: false,
    };
    let mut response = http::Response::new(Body::new(body));
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The responses of a stream, as they are sent. The next one is made when the last was sent.
struct Responses {
    responses: Pin<Box<dyn Stream<Item = Result<Outgoing, Status>> + Send>>,
    sending: Option<Outgoing>,
    ended: bool,
}

impl http_body::Body for Responses {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.sending.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.sending = None;
            if self.ended {
                return Poll::Ready(None);
            }
            let status = match ready!(self.responses.as_mut().poll_next(cx)) {
                Some(Ok(response)) => {
                    self.sending = Some(response);
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.sending.is_none()
    }
}
