//! An axum server in the mesh. `axum-server` serves until Ctrl-C or SIGTERM; `axum-server --once` also calls
//! itself as another workload, shows the answer, and exits. In Kubernetes, by `k8s.yaml`, it joins istiod.

mod config;
mod pod;

use std::future::IntoFuture;
use std::pin::pin;
use std::time::Duration;

use axum::{Extension, Router, routing::get};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_core::layers::PeerIdentity;
use mesh_core::{HttpListener, Mesh, Node, identity};

use crate::config::{Args, Pod};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const PORT: u16 = 8080;

async fn hello(Extension(peer): Extension<PeerIdentity>) -> String {
    match peer.identity() {
        Some(identity) => format!("hello {identity}\n"),
        None => "hello, whoever you are\n".to_owned(),
    }
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_writer(std::io::stderr)
        .init();
    let router = Router::new().route("/", get(hello));
    match Pod::from_env()? {
        Some(pod) => pod::run(pod, router).await,
        None => by_files(&args, router).await,
    }
}

async fn by_files(args: &Args, router: Router) -> Result<(), BoxError> {
    // Before anything is waited for: the first process of a container is not ended by a signal that it does not handle.
    let mut told = pin!(told_to_end()?);
    let node = Node::builder()
        .config(mesh_core::config::File::watch(&args.file))
        .identity(identity::DevCa::in_dir(&args.ca_dir, "cluster.local"))
        .build_node()?;
    let mesh = node.workload("default", "hello", "hello")?;
    let http = tokio::select! {
        http = mesh.listen_http(PORT) => http?,
        () = &mut told => return Ok(()),
    };
    if !args.once {
        print("hello is up on 127.0.10.1:8080, for members of the mesh; Ctrl-C ends\n");
        return serve(&mesh, http, router, told).await;
    }
    let caller = node.workload("default", "caller", "caller")?.http_client();
    let calls = async move {
        let request = Request::get("http://hello:8080/").body(Empty::<Bytes>::new())?;
        let response = caller.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        print(&format!("{status}: {}", String::from_utf8_lossy(&body)));
        if status != 200 || !body.ends_with(b"/sa/caller\n") {
            return Err("the server did not see its caller's identity".into());
        }
        Ok::<_, BoxError>(())
    };
    let until = async {
        tokio::select! {
            outcome = calls => outcome,
            () = told => Err("told to end before the answer was seen".into()),
        }
    };
    serve(&mesh, http, router, until).await?
}

/// Serves until something has ended, and lets requests end that are under way.
async fn serve<T>(
    mesh: &Mesh,
    http: HttpListener,
    router: Router,
    until: impl Future<Output = T>,
) -> Result<T, BoxError> {
    let server =
        axum::serve(http.listener, http.layer.wrap(router)).with_graceful_shutdown(mesh.draining());
    let server = tokio::spawn(server.into_future());
    let outcome = until.await;
    mesh.shutdown(Duration::from_secs(5)).await;
    server.await??;
    Ok(outcome)
}

/// Until Ctrl-C, or until SIGTERM: what Kubernetes sends some time before it kills. Both are heard from this call on.
fn told_to_end() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
