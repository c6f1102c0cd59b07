//! TCP sockets of the system. One that is dropped before it was shut down is reset, as a tunnel is:
//! cut data never looks complete.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use super::listener::{Listener, Tcp};
use super::socket::{LingerReset, TcpSettings};
use super::transport::{BoxFuture, Provide};
use super::{BoxedIo, Incoming};

/// Dials and listens with one set of socket options.
pub(super) struct Sockets(pub(super) TcpSettings);

impl Provide for Sockets {
    fn dial(&self, to: SocketAddr) -> BoxFuture<io::Result<BoxedIo>> {
        let settings = self.0.clone();
        Box::pin(async move {
            let stream = settings.connect(to).await?;
            Ok(BoxedIo::new(LingerReset::new(stream)))
        })
    }

    fn listen(&self, on: SocketAddr) -> BoxFuture<io::Result<Box<dyn Incoming>>> {
        let settings = self.0.clone();
        Box::pin(async move {
            let listener = Listener::bind(on, settings)?;
            let local = listener.local_addr()?;
            Ok(Box::new(Accepting { listener, local }) as Box<dyn Incoming>)
        })
    }
}

struct Accepting {
    listener: Listener<Tcp>,
    local: SocketAddr,
}

impl Incoming for Accepting {
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = (BoxedIo, SocketAddr)> + Send + '_>> {
        Box::pin(async move {
            let (stream, source) = self.listener.accept().await;
            (BoxedIo::new(LingerReset::new(stream)), source)
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}
