//! An axum server in the mesh. `axum-server` serves until Ctrl-C; `axum-server --once` also calls
//! itself as another workload, shows the answer, and exits.

use std::future::IntoFuture;
use std::path::PathBuf;
use std::time::Duration;

use axum::{Extension, Router, routing::get};
use bytes::Bytes;
use clap::Parser;
use http::Request;
use http_body_util::{BodyExt, Empty};
use mesh_core::layers::PeerIdentity;
use mesh_core::{Node, config, identity};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn hello(Extension(peer): Extension<PeerIdentity>) -> String {
    match peer.identity() {
        Some(identity) => format!("hello {identity}\n"),
        None => "hello, whoever you are\n".to_owned(),
    }
}

/// An axum server in the mesh: serves until Ctrl-C.
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
    let router = Router::new().route("/", get(hello));

    let node = Node::builder()
        .config(config::File::watch(&args.file))
        .identity(identity::DevCa::in_dir(&args.ca_dir, "cluster.local"))
        .build_node()?;
    let mesh = node.workload("default", "hello", "hello")?;
    let http = mesh.listen_http(8080).await?;
    let server =
        axum::serve(http.listener, http.layer.wrap(router)).with_graceful_shutdown(mesh.draining());
    let server = tokio::spawn(server.into_future());

    if args.once {
        let caller = node.workload("default", "caller", "caller")?.http_client();
        let request = Request::get("http://hello:8080/").body(Empty::<Bytes>::new())?;
        let response = caller.request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        print(&format!("{status}: {}", String::from_utf8_lossy(&body)));
        if status != 200 || !body.ends_with(b"/sa/caller\n") {
            return Err("the server did not see its caller's identity".into());
        }
    } else {
        print("hello is up on 127.0.10.1:8080, for members of the mesh; Ctrl-C ends\n");
        tokio::signal::ctrl_c().await?;
    }
    mesh.shutdown(Duration::from_secs(5)).await;
    server.await??;
    Ok(())
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
