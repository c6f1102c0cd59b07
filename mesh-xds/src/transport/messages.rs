//! The messages of a gRPC stream as they came.
//!
//! tonic's own `Streaming` keeps the buffer of the largest message for as long as the stream lives, and decodes a
//! message as a whole. Here nothing is kept: a message is handed on piece by piece.

use std::future::{Future, poll_fn};
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use http::header::{CONTENT_TYPE, HeaderName, TE};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, Version};
use http_body::Body as _;
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codec::{EncodeBody, EncodeBuf, Encoder};
use tonic::{Code, Status};
use tower_service::Service as _;

use super::driver::Driver;
use crate::error::{Error, ErrorKind};

/// A message's flag and length.
const HEADER: usize = 5;

/// So much is taken before the connection is looked at while there is more: each look tells the server of the room that
/// there is, in a record and a system call of its own. A quarter of the window, so that the server goes on meanwhile.
const LOOK: usize = super::WINDOW as usize / 4;

/// So long at most: its pings are not answered meanwhile.
const PATIENCE: Duration = Duration::from_millis(100);

/// The responses of a stream.
pub(crate) struct Messages {
    body: Body,
    driver: Driver,
    /// When the connection was looked at, and what was taken since.
    looked: Instant,
    taken: usize,
    max: usize,
    /// What came of the next header.
    header: BytesMut,
    message: Option<Partial>,
    /// What came and was not handed on yet.
    rest: Bytes,
    trailers: Option<HeaderMap>,
}

/// A message that is on its way.
struct Partial {
    length: usize,
    missing: usize,
}

/// A piece of a message, as it came; the pieces of one message follow each other.
pub(crate) struct Piece {
    pub(crate) data: Bytes,
    /// Of the whole message.
    pub(crate) length: usize,
    /// Whether the message ends with it.
    pub(crate) ends: bool,
}

/// Opens a stream, on which requests leave at once; returns when the server has answered. The channel's connection is
/// moved by who waits for that, and then for messages.
///
/// # Errors
///
/// The server's status, or `Connection`.
pub(crate) async fn open<M: Message + 'static>(
    (mut channel, mut driver): (tonic::transport::Channel, Driver),
    origin: &Uri,
    path: &'static str,
    request: tonic::Request<()>,
    requests: impl Stream<Item = M> + Send + 'static,
    max: usize,
) -> Result<Messages, Error> {
    let lost = |error: tonic::transport::Error| Error::from(Status::from_error(Box::new(error)));
    poll_fn(|cx| {
        driver.run(cx);
        channel.poll_ready(cx)
    })
    .await
    .map_err(lost)?;
    let encoder = Encoding(PhantomData);
    let body = EncodeBody::new_client(encoder, requests.map(Ok), None, None);
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(path));
    let uri = Uri::from_parts(parts).map_err(|error| {
        Error::new(ErrorKind::InvalidSettings, origin.to_string()).with_source(error)
    })?;
    let (metadata, _, ()) = request.into_parts();
    let mut request = http::Request::new(Body::new(body));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = uri;
    *request.headers_mut() = metadata.into_headers();
    let headers = request.headers_mut();
    headers.insert(TE, HeaderValue::from_static("trailers"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut answer = channel.call(request);
    let response = poll_fn(|cx| {
        driver.run(cx);
        Pin::new(&mut answer).poll(cx)
    })
    .await
    .map_err(lost)?;
    let (head, body) = response.into_parts();
    // A status here is in the place of trailers: there are no messages, and there may be nothing wrong.
    let status = Status::from_header_map(&head.headers);
    let is_whole = status.is_some();
    if let Some(status) = status.filter(|status| status.code() != Code::Ok) {
        return Err(status.into());
    }
    if !is_whole && head.status != StatusCode::OK {
        // Whatever is in its body, it is none of ours.
        let text = format!("HTTP {}, expected an answer of gRPC", head.status.as_u16());
        return Err(Status::new(code(head.status), text).into());
    }
    let encoding = HeaderName::from_static("grpc-encoding");
    if let Some(encoding) = head.headers.get(encoding).filter(|of| *of != "identity") {
        let text = format!("grpc-encoding: {encoding:?}, expected none, for none was offered");
        return Err(Status::unimplemented(text).into());
    }
    Ok(Messages {
        body,
        driver,
        looked: Instant::now(),
        taken: 0,
        max,
        header: BytesMut::with_capacity(HEADER),
        message: None,
        rest: Bytes::new(),
        trailers: is_whole.then_some(head.headers),
    })
}

impl Messages {
    /// The next piece of a message; `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The status with which the server ends the stream, `TooLarge` for a message beyond the limit.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped nothing is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            if let Some(piece) = self.take()? {
                return Ok(Some(piece));
            }
            let frame = poll_fn(|cx| {
                if self.taken < LOOK
                    && self.looked.elapsed() < PATIENCE
                    && let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx)
                {
                    return Poll::Ready(frame);
                }
                self.look(cx);
                Pin::new(&mut self.body).poll_frame(cx)
            })
            .await;
            let Some(frame) = frame else {
                return self.end().map(|()| None);
            };
            match frame.map_err(Error::from)?.into_data() {
                Ok(data) => {
                    self.taken += data.len();
                    self.rest = data;
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.trailers = Some(trailers);
                    }
                }
            }
        }
    }

    /// Moves the connection, and takes nothing from it; never ends.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped nothing is lost.
    pub(crate) async fn wait(&mut self) {
        poll_fn(|cx| {
            self.look(cx);
            Poll::<()>::Pending
        })
        .await;
    }

    fn look(&mut self, cx: &mut Context<'_>) {
        self.taken = 0;
        self.looked = Instant::now();
        self.driver.run(cx);
    }

    /// A piece out of what is left of the last frame, if there is one.
    fn take(&mut self) -> Result<Option<Piece>, Status> {
        if self.message.is_none() {
            let wanted = HEADER - self.header.len();
            let taken = self.rest.split_to(wanted.min(self.rest.len()));
            self.header.extend_from_slice(&taken);
            if self.header.len() < HEADER {
                return Ok(None);
            }
            self.message = Some(self.begin()?);
        }
        let Some(Partial { length, missing }) = &mut self.message else {
            return Ok(None);
        };
        if self.rest.is_empty() && *missing > 0 {
            return Ok(None);
        }
        let data = self.rest.split_to((*missing).min(self.rest.len()));
        *missing -= data.len();
        let (length, ends) = (*length, *missing == 0);
        if ends {
            self.message = None;
        }
        Ok(Some(Piece { data, length, ends }))
    }

    fn begin(&mut self) -> Result<Partial, Status> {
        let flag = self.header.get_u8();
        let length = self.header.get_u32() as usize;
        self.header.clear();
        if flag != 0 {
            let text = format!("a message with flag {flag}, expected 0: not compressed");
            return Err(Status::internal(text));
        }
        if length > self.max {
            let max = self.max;
            let text = format!("a message of {length} bytes, expected at most {max}");
            return Err(Status::out_of_range(text));
        }
        Ok(Partial {
            length,
            missing: length,
        })
    }

    /// Whether the stream ended as it should.
    fn end(&mut self) -> Result<(), Error> {
        let trailers = self.trailers.take();
        if let Some(status) = trailers.as_ref().and_then(Status::from_header_map) {
            if status.code() != Code::Ok {
                return Err(status.into());
            }
        } else {
            return Err(Status::unknown("the stream ended without a status").into());
        }
        match self.message.is_some() || !self.header.is_empty() {
            true => Err(Status::internal("the stream ended within a message").into()),
            false => Ok(()),
        }
    }
}

/// What a status of HTTP says where one of gRPC should be:
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>.
fn code(of: StatusCode) -> Code {
    match of {
        StatusCode::BAD_REQUEST => Code::Internal,
        StatusCode::UNAUTHORIZED => Code::Unauthenticated,
        StatusCode::FORBIDDEN => Code::PermissionDenied,
        StatusCode::NOT_FOUND => Code::Unimplemented,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Code::Unavailable,
        _ => Code::Unknown,
    }
}

/// Writes requests.
struct Encoding<M>(PhantomData<fn(M)>);

impl<M: Message + 'static> Encoder for Encoding<M> {
    type Item = M;
    type Error = Status;

    fn encode(&mut self, message: M, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        message
            .encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
