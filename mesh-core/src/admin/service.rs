use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use tower_service::Service;

use super::{Admin, Pages, dump, explain, hosts};
use crate::node::NodeInner;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text;charset=utf-8;version=1.0.0";

impl<B> Service<Request<B>> for Admin {
    type Response = Response<AdminBody>;
    type Error = Infallible;
    type Future = AdminFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> AdminFuture {
        let (head, _) = request.into_parts();
        if self.only_local_names && !hosts::is_local(&head.uri, &head.headers) {
            return AdminFuture::ready(refusal(
                StatusCode::FORBIDDEN,
                "host: expected an address or localhost\n",
            ));
        }
        let page = Page::at(head.uri.path());
        let Some(page) = page.filter(|page| page.is_among(self.pages)) else {
            return AdminFuture::ready(refusal(StatusCode::NOT_FOUND, ""));
        };
        if head.method != Method::GET && head.method != Method::HEAD {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "");
            let allow = HeaderValue::from_static("GET, HEAD");
            response.headers_mut().insert(ALLOW, allow);
            return AdminFuture::ready(response);
        }
        let Some(node) = self.node.upgrade() else {
            return AdminFuture::ready(refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the node has ended\n",
            ));
        };
        match page {
            Page::Index => AdminFuture::ready(answer(StatusCode::OK, HTML, INDEX)),
            Page::Ready => AdminFuture::ready(readiness(&node)),
            // Their cost grows with the mesh, so they stay off the runtime's workers.
            Page::Dump => node.clone().blocking(move || config_dump(&node)),
            Page::Metrics => node.clone().blocking(move || metrics(&node, &head.headers)),
            Page::Explain => {
                let admin = self.clone();
                node.clone()
                    .blocking(move || admin.explain(node, &head.uri, &head.headers))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Page {
    Index,
    Dump,
    Explain,
    Ready,
    Metrics,
}

impl Page {
    fn is_among(self, pages: Pages) -> bool {
        match pages {
            Pages::All => true,
            Pages::Readiness => matches!(self, Self::Ready),
            Pages::Metrics => matches!(self, Self::Metrics),
        }
    }

    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/" => Self::Index,
            "/config_dump" => Self::Dump,
            "/explain" => Self::Explain,
            "/healthz/ready" => Self::Ready,
            "/metrics" | "/stats/prometheus" => Self::Metrics,
            _ => return None,
        })
    }
}

impl NodeInner {
    fn blocking(
        self: Arc<Self>,
        answer: impl FnOnce() -> Response<AdminBody> + Send + 'static,
    ) -> AdminFuture {
        let running = self.work.runtime().spawn_blocking(answer);
        drop(self);
        AdminFuture {
            answer: Box::pin(async move {
                running.await.unwrap_or_else(|error| {
                    tracing::error!(target: "mesh::admin", %error, "no answer");
                    refusal(StatusCode::INTERNAL_SERVER_ERROR, "no answer\n")
                })
            }),
        }
    }
}

/// As ztunnel answers it: names alone, sorted.
fn readiness(node: &NodeInner) -> Response<AdminBody> {
    let readiness = node.gate.current();
    if readiness.is_ready() {
        return answer(StatusCode::OK, TEXT, "ready\n");
    }
    let mut pending: Vec<&str> = readiness.pending().map(|(name, _)| name).collect();
    pending.sort_unstable();
    let text = format!("not ready, pending: {}\n", pending.join(", "));
    answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, text)
}

fn config_dump(node: &Arc<NodeInner>) -> Response<AdminBody> {
    json(&dump::Dump::of(node))
}

fn metrics(node: &NodeInner, headers: &HeaderMap) -> Response<AdminBody> {
    let kind = if accepts(headers, "application/openmetrics-text") {
        OPEN_METRICS
    } else {
        TEXT
    };
    answer(StatusCode::OK, kind, node.metrics.encode())
}

impl Admin {
    fn explain(self, node: Arc<NodeInner>, uri: &Uri, headers: &HeaderMap) -> Response<AdminBody> {
        let asked_json = accepts(headers, JSON);
        match explain::answer(&self, node, uri.query().unwrap_or_default()) {
            Ok((explained, format)) => {
                if format.unwrap_or(asked_json) {
                    json(&explained)
                } else {
                    answer(StatusCode::OK, TEXT, explained.to_text())
                }
            }
            Err(bad) => answer(StatusCode::BAD_REQUEST, TEXT, format!("{bad}\n")),
        }
    }
}

/// Whether some `Accept` names the type.
fn accepts(headers: &HeaderMap, kind: &str) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| {
        let ranges = value.as_bytes().split(|byte| *byte == b',');
        ranges
            .filter_map(|range| range.split(|byte| *byte == b';').next())
            .any(|range| range.trim_ascii().eq_ignore_ascii_case(kind.as_bytes()))
    })
}

fn json(value: &impl serde::Serialize) -> Response<AdminBody> {
    match serde_json::to_vec_pretty(value) {
        Ok(mut text) => {
            text.push(b'\n');
            answer(StatusCode::OK, JSON, text)
        }
        Err(error) => {
            tracing::error!(target: "mesh::admin", %error, "no answer");
            refusal(StatusCode::INTERNAL_SERVER_ERROR, "no answer\n")
        }
    }
}

fn refusal(status: StatusCode, text: &'static str) -> Response<AdminBody> {
    answer(status, TEXT, text)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<AdminBody> {
    let mut response = Response::new(AdminBody(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

const INDEX: &str = r#"<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>mesh admin</title></head>
<body>
<h1>mesh admin</h1>
<ul>
<li><a href="/config_dump">/config_dump</a>: the mesh as this process sees it, as JSON</li>
<li><a href="/explain">/explain</a>: whether a connection or request would be allowed, where it would go, and why</li>
<li><a href="/healthz/ready">/healthz/ready</a>: whether it can carry traffic</li>
<li><a href="/metrics">/metrics</a>: metrics as OpenMetrics text (also <a href="/stats/prometheus">/stats/prometheus</a>)</li>
</ul>
</body>
</html>
"#;

/// An answer of [`Admin`], in one piece.
#[derive(Debug)]
pub struct AdminBody(Full<Bytes>);

impl Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// The future of [`Admin`]; `Send` and never failing.
pub struct AdminFuture {
    answer: Pin<Box<dyn Future<Output = Response<AdminBody>> + Send>>,
}

impl AdminFuture {
    fn ready(response: Response<AdminBody>) -> Self {
        Self {
            answer: Box::pin(std::future::ready(response)),
        }
    }
}

impl Future for AdminFuture {
    type Output = Result<Response<AdminBody>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.answer.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for AdminFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminFuture").finish_non_exhaustive()
    }
}
