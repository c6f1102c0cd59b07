//! The server: answers every request with 64 bytes.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;

use crate::args::{Road, Serve, say};
use crate::{BoxError, Done, member};

const BODY: Bytes = Bytes::from_static(&[b'x'; 64]);

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(BODY)))
}

pub(crate) async fn run(of: Serve) -> Done {
    let mesh = || -> Result<_, BoxError> {
        let folder = of.folder.as_deref().ok_or("--folder: a member needs it")?;
        member::join(folder, "server")
    };
    match of.road {
        Road::Plain => {
            let listener = TcpListener::bind(of.listen).await?;
            say("ready");
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tokio::spawn(serve(stream));
            }
        }
        Road::Tunnel => {
            let mesh = mesh()?;
            let mut listener = mesh.listen(of.listen.port()).await?;
            say("ready");
            loop {
                tokio::spawn(serve(listener.accept().await?));
            }
        }
        Road::Http => {
            let mesh = mesh()?;
            let listener = mesh.listen_http(of.listen.port()).await?;
            say("ready");
            listener.serve(tower::service_fn(answer)).await;
            Ok(())
        }
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), hyper::service::service_fn(answer));
    // Clients end connections as they please.
    let _ = connection.await;
}
