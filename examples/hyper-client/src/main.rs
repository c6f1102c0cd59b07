//! Two HTTP clients in the mesh: its own, which balances by request, and hyper-util's over the
//! mesh's connector, which balances by connection.
//!
//! `hyper-client http://service:port/path` calls a member of `mesh.yaml`; `--once` starts one to call.

use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh_core::{Mesh, Node, config, identity};
use tower::service_fn;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn call(mesh: &Mesh, uri: Uri) -> Result<(), BoxError> {
    let request = || Request::get(uri.clone()).body(Empty::<Bytes>::new());

    let response = mesh.http_client().request(request()?).await?;
    let body = response.into_body().collect().await?.to_bytes();
    print(&format!(
        "the mesh's client:   {}",
        String::from_utf8_lossy(&body)
    ));

    let client = Client::builder(TokioExecutor::new()).build(mesh.connector());
    let response = client.request(request()?).await?;
    let body = response.into_body().collect().await?.to_bytes();
    print(&format!(
        "hyper-util's client: {}",
        String::from_utf8_lossy(&body)
    ));
    Ok(())
}

async fn hello(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from("hello\n")))
}

/// Two HTTP clients in the mesh.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Start a server to call, call it, and exit.
    #[arg(long)]
    once: bool,

    /// What to call: `http://service:port/path` of the manifests.
    #[arg(required_unless_present = "once", conflicts_with = "once")]
    uri: Option<Uri>,

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

    let node = Node::builder()
        .config(config::File::watch(&args.file))
        .identity(identity::DevCa::in_dir(&args.ca_dir, "cluster.local"))
        .build_node()?;
    let caller = node.workload("default", "caller", "caller")?;
    if let Some(uri) = args.uri {
        return call(&caller, uri).await;
    }
    let mesh = node.workload("default", "hello", "hello")?;
    let http = mesh.listen_http(8080).await?;
    let server = tokio::spawn(http.serve(service_fn(hello)));
    call(&caller, Uri::from_static("http://hello:8080/")).await?;
    mesh.shutdown(Duration::from_secs(5)).await;
    server.await?;
    Ok(())
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
