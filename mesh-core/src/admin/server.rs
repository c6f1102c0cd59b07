//! The service on a socket of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Admin;
use crate::net::{Accept, Listener};
use crate::{Error, ErrorKind};

/// The largest head of a request: 16 KiB, twice what servers commonly take, as questions come in it.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;

impl Admin {
    /// Serves HTTP/1.1 on `listener` until the node is gone. Bind it to loopback only: see
    /// [who may ask](crate::admin#who-may-ask).
    ///
    /// A request's head may have 16 KiB and 64 headers.
    ///
    /// # Cancel safety
    ///
    /// Dropping it closes the socket and its connections.
    pub async fn serve(self, listener: TcpListener) {
        let local = listener.local_addr();
        let admin = Self {
            only_local_names: local.is_ok_and(|local| local.ip().to_canonical().is_loopback()),
            ..self
        };
        let mut gone = match admin.node.upgrade() {
            Some(node) => node.published(),
            None => return,
        };
        let gone = async move { while gone.changed().await.is_ok() {} };
        tokio::select! {
            () = gone => {}
            () = admin.accept(listener) => {}
        }
    }

    /// As [`serve`](Self::serve), on this address.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Bind`] when it cannot be bound.
    ///
    /// # Cancel safety
    ///
    /// As [`serve`](Self::serve).
    pub async fn serve_on(self, address: SocketAddr) -> Result<(), Error> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Error::new(ErrorKind::Bind)
                .with_detail(format!("admin {address}"))
                .with_source(error)
        })?;
        self.serve(listener).await;
        Ok(())
    }

    async fn accept(&self, listener: TcpListener) {
        let mut listener = Listener::new(Sockets(listener));
        let places = Arc::new(Semaphore::new(self.settings.max_connections));
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (io, _) = listener.accept().await;
            while connections.try_join_next().is_some() {}
            let admin = self.clone();
            connections.spawn(async move {
                admin.serve_connection(io).await;
                drop(place);
            });
        }
    }

    async fn serve_connection(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let settings = self.settings;
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(io), TowerToHyperService::new(self));
        match timeout(settings.connection_timeout, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(target: "mesh::admin", %error, "connection ended");
            }
            Err(_) => tracing::debug!(target: "mesh::admin", "connection lived too long"),
        }
    }
}

struct Sockets(TcpListener);

impl Accept for Sockets {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        Poll::Ready(ready!(self.0.poll_accept(cx)))
    }
}

#[cfg(test)]
mod tests;
