//! `/debug/syncz`: who has what, who was turned away, what nobody is sent, and what is wrong; `/ready`.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_xds::serve::{ClientStatus, HostEntry, Rejection, Server, Withheld};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::files::Problems;

/// Connections at a time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 100;

/// What there is to tell of.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) server: Server,
    pub(crate) problems: Problems,
    /// Whether clients are served.
    pub(crate) up: Arc<AtomicBool>,
}

pub(crate) async fn serve(listener: TcpListener, pages: Pages) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let pages = pages.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(&request, &pages);
                async { Ok::<_, Infallible>(answer) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, pages: &Pages) -> Response<Full<Bytes>> {
    let server = &pages.server;
    let (status, kind, text) = match request.uri().path() {
        "/debug/syncz" => {
            let page = json!({
                "clients": server.clients().iter().map(client).collect::<Vec<_>>(),
                "hosts": server.registrations().entries().iter().map(host).collect::<Vec<_>>(),
                "problems": pages.problems.get(),
                "turned_away": server.rejections().iter().map(rejection).collect::<Vec<_>>(),
                "withheld": server.withheld().iter().map(withheld).collect::<Vec<_>>(),
            });
            (StatusCode::OK, "application/json", format!("{page:#}\n"))
        }
        "/ready" if pages.up.load(Ordering::Relaxed) => {
            (StatusCode::OK, "text/plain", "ready\n".to_owned())
        }
        "/ready" => {
            let why = pages.problems.get().join("\n");
            let text = format!("not ready\n{why}\n");
            (StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
        }
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "there are /debug/syncz and /ready\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static(kind);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}

fn host(of: &HostEntry) -> Value {
    json!({
        "entry": of.name().to_string(),
        "uid": of.uid(),
        "group": of.group().to_string(),
        "address": of.address().to_string(),
        "healthy": of.health().map(|health| health.is_ok()),
        "unhealthy_because": of.health().and_then(Result::err),
    })
}

fn withheld(of: &Withheld) -> Value {
    json!({
        "policy": of.policy().to_string(),
        "reason": of.reason(),
        "binds": of.binds(),
    })
}

fn rejection(of: &Rejection) -> Value {
    json!({
        "from": of.address().map(|from| from.to_string()),
        "identity": of.identity().map(ToString::to_string),
        "reason": of.reason(),
        "times": of.times(),
        "seconds_ago": of.age().as_secs(),
    })
}

fn client(of: &ClientStatus) -> Value {
    let types = of.subscriptions().iter().map(|one| {
        let refusal = one.refusal();
        json!({
            "type": one.type_url(),
            "everything": one.everything(),
            "names": one.names(),
            "responses": one.responses(),
            "pending": one.pending(),
            "acknowledged": one.acknowledged(),
            "refused": refusal.map(|refusal| json!({
                "version": refusal.version(),
                "error": refusal.text(),
            })),
        })
    });
    json!({
        "stream": of.id(),
        "node": of.node_id(),
        "identity": of.identity().to_string(),
        "version": of.version(),
        "features": {
            "node_type": of.node_type(),
            "generator": of.generator(),
            "hbone": of.hbone(),
            "client_features": of.client_features(),
        },
        "delta": of.is_delta(),
        "healthy": of.health().map(|health| health.is_ok()),
        "unhealthy_because": of.health().and_then(Result::err),
        "types": types.collect::<Vec<_>>(),
    })
}
