//! Answers that the mesh gives in the application's place.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::ErrorKind;

/// Marks a response that the mesh gave in the application's place; found in its extensions.
///
/// # Examples
///
/// ```
/// # fn example<B>(response: http::Response<B>) {
/// use mesh_core::layers::LocalResponse;
///
/// if let Some(local) = response.extensions().get::<LocalResponse>() {
///     println!("not the application's answer: {}", local.details());
/// }
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LocalResponse {
    kind: ErrorKind,
    details: Cow<'static, str>,
}

impl LocalResponse {
    /// Why the application was not asked, or did not answer.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Envoy's response code details, for logs: they may name a policy.
    pub fn details(&self) -> &str {
        &self.details
    }

    pub(crate) fn cloned_details(&self) -> Cow<'static, str> {
        self.details.clone()
    }
}

/// A reply in the making: the table's row for a kind of failure, with what is particular to it.
pub(crate) struct Reply {
    kind: ErrorKind,
    body: Option<&'static str>,
    details: Option<Cow<'static, str>>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Reply {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self {
            kind,
            body: None,
            details: None,
            header: None,
        }
    }

    /// Replaces the table's text.
    pub(crate) fn body(mut self, body: &'static str) -> Self {
        self.body = Some(body);
        self
    }

    /// Replaces the table's details.
    pub(crate) fn details(mut self, details: impl Into<Cow<'static, str>>) -> Self {
        self.details = Some(details.into());
        self
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }

    /// The response: plain text, or for gRPC trailers only
    /// ([gRPC over HTTP/2](https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md)).
    pub(crate) fn into_response<B>(self, grpc: bool) -> Response<ReplyBody<B>> {
        let row = self.kind.reply();
        let body = self.body.unwrap_or(row.body());
        let details = self.details.unwrap_or(Cow::Borrowed(row.details()));
        let mut response = if grpc {
            grpc_response(row.grpc_status(), body)
        } else {
            http_response(row.status(), body)
        };
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response.extensions_mut().insert(LocalResponse {
            kind: self.kind,
            details,
        });
        response
    }
}

fn http_response<B>(status: StatusCode, body: &'static str) -> Response<ReplyBody<B>> {
    let mut response = Response::new(ReplyBody::local(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, body.len().into());
    if !body.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    }
    response
}

fn grpc_response<B>(status: u8, message: &'static str) -> Response<ReplyBody<B>> {
    let mut response = Response::new(ReplyBody::local(Bytes::new()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, u16::from(status).into());
    // Every text of ours is printable ASCII without `%`, which needs no encoding.
    if let Ok(message) = HeaderValue::from_str(message) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request or response is gRPC: `application/grpc`, `application/grpc+…` or with
/// parameters; gRPC-Web is not.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let value = value.as_bytes();
    const GRPC: &[u8] = b"application/grpc";
    value.len() >= GRPC.len()
        && value[..GRPC.len()].eq_ignore_ascii_case(GRPC)
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';'))
}

pin_project! {
    /// The body of a response: the inner service's, or a short text of the mesh's own.
    pub struct ReplyBody<B> {
        #[pin]
        inner: Content<B>,
    }
}

pin_project! {
    #[project = ContentProjection]
    enum Content<B> {
        Inner { #[pin] body: B },
        Local { text: Bytes },
    }
}

impl<B> ReplyBody<B> {
    pub(crate) fn inner(body: B) -> Self {
        Self {
            inner: Content::Inner { body },
        }
    }

    pub(crate) fn local(text: Bytes) -> Self {
        Self {
            inner: Content::Local { text },
        }
    }
}

impl<B> Body for ReplyBody<B>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().inner.project() {
            ContentProjection::Inner { body } => body.poll_frame(cx),
            ContentProjection::Local { text } if text.is_empty() => Poll::Ready(None),
            ContentProjection::Local { text } => {
                Poll::Ready(Some(Ok(Frame::data(std::mem::take(text)))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Content::Inner { body } => body.is_end_stream(),
            Content::Local { text } => text.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Content::Inner { body } => body.size_hint(),
            Content::Local { text } => SizeHint::with_exact(text.len() as u64),
        }
    }
}

impl<B> fmt::Debug for ReplyBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.inner {
            Content::Inner { .. } => "ReplyBody::Inner",
            Content::Local { .. } => "ReplyBody::Local",
        })
    }
}

pin_project! {
    /// The future of a layer that either asks the inner service or answers at once.
    pub struct ReplyFuture<F, B> {
        #[pin]
        inner: State<F, B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, B> {
        Inner { #[pin] future: F },
        Reply { response: Option<Response<ReplyBody<B>>> },
    }
}

impl<F, B> ReplyFuture<F, B> {
    pub(crate) fn inner(future: F) -> Self {
        Self {
            inner: State::Inner { future },
        }
    }

    pub(crate) fn reply(response: Response<ReplyBody<B>>) -> Self {
        Self {
            inner: State::Reply {
                response: Some(response),
            },
        }
    }
}

impl<F, B, E> Future for ReplyFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ReplyBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().inner.project() {
            StateProjection::Inner { future } => future
                .poll(cx)
                .map_ok(|response| response.map(ReplyBody::inner)),
            StateProjection::Reply { response } => Poll::Ready(Ok(response
                .take()
                .expect("a future is not polled after it has completed"))),
        }
    }
}

impl<F, B> fmt::Debug for ReplyFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyFuture").finish_non_exhaustive()
    }
}
