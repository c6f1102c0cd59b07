//! The server: answers every request with 64 bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{Accept, TlsAcceptor};

use crate::args::{Road, Serve, say};
use crate::bare::Keys;
use crate::{Done, connect, member};

const BODY: Bytes = Bytes::from_static(&[b'x'; 64]);

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::from(BODY)))
}

pub(crate) async fn run(of: Serve) -> Done {
    let folder = || of.folder.as_deref().ok_or("--folder: this road needs it");
    let mesh = || member::join(folder()?, "server");
    let keys = || Keys::read(folder()?);
    match of.road {
        Road::Plain => accept(of.listen, serve).await,
        Road::Tls => {
            let acceptor = TlsAcceptor::from(Arc::new(keys()?.server()?));
            accept(of.listen, move |stream| secured(acceptor.accept(stream))).await
        }
        Road::Connect => {
            let acceptor = connect::acceptor(&keys()?)?;
            accept(of.listen, move |stream| streams(acceptor.accept(stream))).await
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

/// A task of `each` for every connection.
async fn accept<F>(at: SocketAddr, each: impl Fn(TcpStream) -> F) -> Done
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(at).await?;
    say("ready");
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(each(stream));
    }
}

/// Of a handshake that fails the client says why.
async fn secured(handshake: Accept<TcpStream>) {
    if let Ok(stream) = handshake.await {
        serve(stream).await;
    }
}

async fn streams(handshake: Accept<TcpStream>) {
    if let Ok(stream) = handshake.await {
        // Clients end connections as they please.
        let _ = connect::serve(stream, serve).await;
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let connection = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), hyper::service::service_fn(answer));
    // Clients end connections as they please.
    let _ = connection.await;
}
