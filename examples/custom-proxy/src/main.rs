//! A proxy of your own: a tunnel in, a layer of yours, a tunnel out. `--once` shows it and exits.
//!
//! The layer, in `layer.rs`, counts requests per caller and adds a header; put yours in its place.

mod args;
mod layer;

use std::future::IntoFuture;
use std::io::{self, Write as _};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use mesh_core::{MeshClient, Node, config, identity};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Whatever comes in goes out to the backend.
async fn forward(State(client): State<MeshClient>, mut request: Request) -> Response {
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str());
    match format!("http://backend:8080{path}").parse::<Uri>() {
        Ok(uri) => *request.uri_mut() = uri,
        Err(_) => return StatusCode::BAD_REQUEST.into_response(),
    }
    match client.request(request).await {
        Ok(response) => response.map(Body::new),
        Err(error) => (error.reply().status(), error.to_string()).into_response(),
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args = args::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let node = Node::builder()
        .config(config::File::watch(&args.file))
        .identity(identity::DevCa::in_dir(&args.ca_dir, "cluster.local"))
        .build_node()?;
    let proxy = node.workload("default", "proxy", "proxy")?;
    let router = Router::new()
        .fallback(forward)
        .with_state(proxy.http_client())
        .layer(middleware::from_fn_with_state(
            layer::Counts::default(),
            layer::count,
        ));
    let http = proxy.listen_http(8080).await?;
    let server = axum::serve(http.listener, http.layer.wrap(router));
    if !args.once {
        return Ok(server.with_graceful_shutdown(proxy.draining()).await?);
    }

    tokio::spawn(
        server
            .with_graceful_shutdown(proxy.draining())
            .into_future(),
    );
    let backend = node
        .workload("default", "backend", "backend")?
        .listen_http(8080)
        .await?;
    let app = Router::new().fallback(|| async { "from the backend" });
    tokio::spawn(axum::serve(backend.listener, backend.layer.wrap(app)).into_future());
    let caller = node.workload("default", "caller", "caller")?.http_client();
    let request = Request::get("http://proxy:8080/").body(Empty::<Bytes>::new())?;
    let response = caller.request(request).await?;
    let seen = response.headers().get("x-requests-seen").cloned();
    let body = response.into_body().collect().await?.to_bytes();
    proxy.shutdown(Duration::from_secs(5)).await;
    if body != "from the backend" || seen.is_none_or(|seen| seen != "1") {
        return Err("the request did not pass through the layer and the backend".into());
    }
    writeln!(
        io::stdout(),
        "passed: caller -> proxy, whose layer counted the request -> backend"
    )?;
    Ok(())
}
