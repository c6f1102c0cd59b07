//! Connections: TLS, then HTTP/2 with the service on it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_xds::serve::{Peer, Service};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::{BoxError, tls};

/// Connections at a time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;

const HANDSHAKE: Duration = Duration::from_secs(10);

pub(crate) async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, service: Service) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, service) = (acceptor.clone(), service.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(acceptor, stream, service).await {
                tracing::debug!(error, "a connection ends");
            }
            drop(place);
        });
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    service: Service,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    // A certificate that names nobody we know is not the same as none: its token must not count instead.
    let peer = match leaf.map(tls::identity) {
        Some(None) => return Err("the client's certificate names no workload".into()),
        Some(Some(identity)) => Some(Peer::new(identity)),
        None => None,
    };
    let service = tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        let mut service = service.clone();
        if let Some(peer) = peer.clone() {
            request.extensions_mut().insert(peer);
        }
        async move {
            let answer = tower_service::Service::call(&mut service, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(100)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await?;
    Ok(())
}
