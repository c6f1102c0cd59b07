//! Any TCP protocol in the mesh: an echo server and its client.
//!
//! `tcp-app serve` and, beside it, `tcp-app call <text>`; or `tcp-app --once` for both in one process.

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

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let mut arguments = std::env::args().skip(1);
    let mode = arguments.next().unwrap_or_default();

    let node = Node::builder()
        .config(config::File::watch(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/mesh.yaml"
        )))
        .identity(identity::DevCa::in_dir(".mesh-dev", "cluster.local"))
        .build_node()?;
    let echo = node.workload("default", "echo", "echo")?;
    let caller = node.workload("default", "caller", "caller")?;
    match mode.as_str() {
        "serve" => serve(echo.listen(7000).await?).await,
        "call" => {
            call(
                &caller,
                &arguments.next().unwrap_or_else(|| "hello".to_owned()),
            )
            .await
        }
        "--once" => {
            let server = tokio::spawn(serve(echo.listen(7000).await?));
            let outcome = call(&caller, "hello").await;
            server.abort();
            outcome
        }
        _ => Err("usage: tcp-app serve | call <text> | --once".into()),
    }
}

fn print(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}
