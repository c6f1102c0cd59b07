//! Any TCP protocol in the mesh: an echo server and its client.
//!
//! `tcp-app serve` and, beside it, `tcp-app call <text>`; or `tcp-app --once` for both in one process.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use mesh_core::{Mesh, MeshListener, MeshStream, Node, config, identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Knows nothing of the mesh but the type of the stream.
async fn echo(mut stream: MeshStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

async fn serve(mut listener: MeshListener) -> Result<(), BoxError> {
    while let Ok(stream) = listener.accept().await {
        let peer = stream.context().identity().map(ToString::to_string);
        print(&format!(
            "a connection from {}\n",
            peer.as_deref().unwrap_or("plaintext")
        ));
        tokio::spawn(echo(stream));
    }
    Ok(())
}

async fn call(mesh: &Mesh, text: &str) -> Result<(), BoxError> {
    let mut stream = mesh.connect("echo:7000").await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    print(&format!("echo: {answer}\n"));
    if answer == text {
        Ok(())
    } else {
        Err("the echo differs".into())
    }
}

/// An echo server and its client, over TCP in the mesh.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Be both, in one process, and exit.
    #[arg(long)]
    once: bool,

    /// The manifests to read and watch.
    #[arg(long, global = true, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml"))]
    file: PathBuf,

    /// The folder of the development CA: created when absent, shared by processes.
    #[arg(long, global = true, default_value = ".mesh-dev")]
    ca_dir: PathBuf,

    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Echo what members of the mesh say, until Ctrl-C.
    Serve,
    /// Say something to the server, and check the echo.
    Call {
        /// What to say.
        #[arg(default_value = "hello")]
        text: String,
    },
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
    let echo = node.workload("default", "echo", "echo")?;
    let caller = node.workload("default", "caller", "caller")?;
    match args.command {
        Some(Command::Serve) => serve(echo.listen(7000).await?).await,
        Some(Command::Call { text }) => call(&caller, &text).await,
        None if args.once => {
            let server = tokio::spawn(serve(echo.listen(7000).await?));
            let outcome = call(&caller, "hello").await;
            server.abort();
            outcome
        }
        None => Err("expected serve, call or --once; see --help".into()),
    }
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
