//! A tonic server and client in the mesh. `tonic-greeter` serves; `--once` also calls it and exits.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use clap::Parser;
use mesh_core::layers::PeerIdentity;
use mesh_core::{Mesh, Node, config, identity};
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated"
)]
mod helloworld {
    include!(concat!(env!("OUT_DIR"), "/helloworld.Greeter.rs"));
}
use helloworld::greeter_client::GreeterClient;
use helloworld::greeter_server::{Greeter, GreeterServer};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who is to be greeted.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HelloRequest {
    /// The name.
    #[prost(string, tag = "1")]
    pub name: String,
}

/// The greeting.
#[derive(Clone, PartialEq, prost::Message)]
pub struct HelloReply {
    /// The text.
    #[prost(string, tag = "1")]
    pub message: String,
}

struct Hello;

#[tonic::async_trait]
impl Greeter for Hello {
    async fn say_hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloReply>, Status> {
        let peer = request
            .extensions()
            .get::<PeerIdentity>()
            .and_then(PeerIdentity::identity)
            .cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("no identity"))?;
        let message = format!(
            "hello {}, says the greeter to {peer}",
            request.into_inner().name
        );
        Ok(Response::new(HelloReply { message }))
    }
}

/// A tonic server in the mesh: serves until Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Also call it as another workload, by two clients, and exit.
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
    let mesh = node.workload("default", "greeter", "greeter")?;
    let http = tokio::select! {
        http = mesh.listen_http(50051) => http?,
        () = &mut told => return Ok(()),
    };
    let server = Server::builder()
        .layer(http.layer)
        .add_service(GreeterServer::new(Hello))
        .serve_with_incoming_shutdown(http.listener, mesh.draining());
    let server = tokio::spawn(server);

    if args.once {
        let caller = node.workload("default", "caller", "caller")?;
        tokio::select! {
            outcome = call(&caller) => outcome?,
            () = told => return Err("told to end before the answer was seen".into()),
        }
    } else {
        print("greeter is up on 127.0.14.1:50051, for members of the mesh; Ctrl-C ends\n");
        told.await;
    }
    mesh.shutdown(Duration::from_secs(5)).await;
    server.await??;
    Ok(())
}

/// Calls the greeter by two clients.
async fn call(caller: &Mesh) -> Result<(), BoxError> {
    // A channel of tonic's own, over the mesh's connector: balances by connection.
    let endpoint = Endpoint::from_static("http://greeter:50051");
    let channel = endpoint.connect_with_connector(caller.connector()).await?;
    greet(GreeterClient::new(channel), "channel").await?;
    // The mesh's client, which balances by request.
    let origin = "http://greeter:50051".parse()?;
    greet(
        GreeterClient::with_origin(caller.http_client(), origin),
        "client",
    )
    .await
}

async fn greet<T>(mut client: GreeterClient<T>, name: &str) -> Result<(), BoxError>
where
    T: tonic::client::GrpcService<tonic::body::Body>,
    T::Error: Into<BoxError>,
    T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<BoxError> + Send,
{
    let reply = client
        .say_hello(HelloRequest {
            name: name.to_owned(),
        })
        .await?
        .into_inner();
    print(&format!("{}\n", reply.message));
    if reply.message.ends_with("/sa/caller") {
        Ok(())
    } else {
        Err("wrong greeting".into())
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
