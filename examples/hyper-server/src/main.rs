//! A plain hyper server in the mesh: any tower service, no framework. `--once` calls it and exits.

use std::convert::Infallible;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use mesh_core::layers::PeerIdentity;
use mesh_core::{Mesh, Node, config, identity};
use tower::service_fn;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn hello(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let peer = request
        .extensions()
        .get::<PeerIdentity>()
        .and_then(PeerIdentity::identity);
    let name = peer.map_or_else(|| "whoever you are".to_owned(), ToString::to_string);
    Ok(Response::new(Full::from(format!("hello {name}\n"))))
}

/// A hyper server in the mesh: serves until Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Also call it as another workload, show the answer, and exit.
    #[arg(long)]
    once: bool,

    /// The manifests to read and watch.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml"))]
    file: PathBuf,

    /// The folder of the development CA: created when absent, shared by processes.
    #[arg(long, default_value = ".mesh-dev")]
    ca_dir: PathBuf,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();

    // Before anything is waited for: the first process of a container is not ended by a signal that it does not handle.
    let mut told = pin!(told_to_end()?);
    let node = Node::builder()
        .config(config::File::watch(&args.file))
        .identity(identity::DevCa::in_dir(&args.ca_dir, "cluster.local"))
        .build_node()?;
    let mesh = node.workload("default", "hello", "hello")?;
    let http = tokio::select! {
        http = mesh.listen_http(8080) => http?,
        () = &mut told => return Ok(()),
    };
    let server = tokio::spawn(http.serve(service_fn(hello)));

    if args.once {
        let caller = node.workload("default", "caller", "caller")?;
        tokio::select! {
            outcome = call(&caller) => outcome?,
            () = told => return Err("told to end before the answer was seen".into()),
        }
    } else {
        print("hello is up on 127.0.11.1:8080, for members of the mesh; Ctrl-C ends\n");
        told.await;
    }
    mesh.shutdown(Duration::from_secs(5)).await;
    server.await?;
    Ok(())
}

async fn call(caller: &Mesh) -> Result<(), BoxError> {
    let request = Request::get("http://hello:8080/").body(Empty::<Bytes>::new())?;
    let response = caller.http_client().request(request).await?;
    let body = response.into_body().collect().await?.to_bytes();
    print(&String::from_utf8_lossy(&body));
    match body.ends_with(b"/sa/caller\n") {
        true => Ok(()),
        false => Err("the server did not see its caller's identity".into()),
    }
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
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
