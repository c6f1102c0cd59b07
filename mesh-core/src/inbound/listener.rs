use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use mesh_xds::model::TunnelProtocol;
use tokio::sync::{mpsc, watch};

use super::acceptor::Acceptor;
use super::plaintext;
use super::registry::Judgement;
use crate::mesh::MeshInner;
use crate::net::MeshStream;
use crate::{Error, ErrorKind, Mesh};

/// Where connections to one port of the workload go.
#[derive(Debug)]
pub(crate) struct PortListener {
    pub(crate) queue: mpsc::Sender<MeshStream>,
    pub(crate) judgement: Judgement,
}

/// The connections to one port of a workload: tunnels and, where policy permits it, plaintext.
///
/// Dropping it stops listening on the port. It is an axum `Listener` (feature `axum`), and a
/// [`Stream`] of connections, which is what tonic wants.
pub struct MeshListener {
    mesh: Arc<MeshInner>,
    port: u16,
    local: SocketAddr,
    queue: mpsc::Receiver<MeshStream>,
    /// Ends when the port's sockets are closed.
    closed: watch::Receiver<()>,
    /// Resolves when nothing more is accepted, and what was is judged.
    draining: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
    /// What is asked of the control plane for as long as this lives.
    #[cfg(feature = "http")]
    demanded: Option<super::demanded::Demanded>,
    #[cfg(feature = "http")]
    layer: Option<super::LayerUse>,
}

impl MeshListener {
    /// Waits for the next connection.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Draining`] once a drain has begun and no accepted connection is left.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no connection is lost.
    pub async fn accept(&mut self) -> Result<MeshStream, Error> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Resolves when callers have had notice of the drain.
    #[cfg(feature = "http")]
    pub(crate) fn noticed(&self) -> impl Future<Output = ()> + Send + use<> {
        crate::shutdown::noticed(&self.mesh)
    }

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<MeshStream, Error>> {
        let accepted = self.poll_queue(cx);
        #[cfg(feature = "http")]
        if let Some(layer) = &self.layer {
            return accepted.map_ok(|stream| stream.with_layer(layer.clone()));
        }
        accepted
    }

    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Result<MeshStream, Error>> {
        if let Poll::Ready(Some(stream)) = self.queue.poll_recv(cx) {
            return Poll::Ready(Ok(stream));
        }
        if self.draining.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.draining = Box::pin(std::future::ready(()));
        // What comes from now on is told so; what was admitted before is still given out.
        self.queue.close();
        self.queue
            .poll_recv(cx)
            .map(|last| last.ok_or_else(|| Error::new(ErrorKind::Draining)))
    }

    #[cfg(feature = "http")]
    pub(super) fn keep(&mut self, demanded: Option<super::demanded::Demanded>) {
        self.demanded = demanded;
    }

    /// Gives out connections that only a service with the layer around it can read.
    #[cfg(feature = "http")]
    pub(super) fn only_with(&mut self, layer: super::LayerUse) {
        self.layer = Some(layer);
    }

    #[cfg(feature = "http")]
    pub(super) fn header_timeout(&self) -> std::time::Duration {
        self.mesh.settings().header_timeout
    }

    /// The address that plaintext connections come to; tunnels come to the workload's HBONE port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for MeshListener {
    fn drop(&mut self) {
        // Who finds no listener here has to find that its sockets are still open.
        self.mesh.forget_left();
        self.mesh.leaving().insert(self.port, self.closed.clone());
        self.mesh.ports().remove(&self.port);
    }
}

impl fmt::Debug for MeshListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshListener")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

impl Stream for MeshListener {
    type Item = io::Result<MeshStream>;

    /// Ends when a drain has begun.
    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<MeshStream>>> {
        self.get_mut().poll_accept(cx).map(|next| next.ok().map(Ok))
    }
}

#[cfg(feature = "axum")]
impl axum::serve::Listener for MeshListener {
    type Io = MeshStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (MeshStream, SocketAddr) {
        match MeshListener::accept(self).await {
            Ok(stream) => {
                let source = stream.context().source();
                (stream, source)
            }
            // axum's own shutdown signal ends its loop.
            Err(_) => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

impl Mesh {
    /// Listens on a port for any protocol; connections are judged by the L4 reduction of the
    /// workload's policies.
    ///
    /// Waits, at most the start time-out, for the first configuration, the first certificate and the
    /// workload's own record. Tunnels come to the workload's HBONE port, which is bound with the
    /// first listener and shared by all; plaintext comes to `port` itself, on the same addresses.
    ///
    /// # Errors
    ///
    /// As [`ready`](Mesh::ready), and [`ErrorKind::Draining`] where it would listen after a [`shutdown`](Mesh::shutdown) has begun;
    /// [`ErrorKind::NoRecord`] after the start time-out, or at once where the
    /// configuration is in files or in code, which are all there is;
    /// [`ErrorKind::Identity`] also when the record has another identity than the builder was given (of a host
    /// whose trust domain nobody set, another namespace or service account), [`ErrorKind::Bind`] when a port cannot be bound, with the address.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a port that was bound meanwhile is released, but for the HBONE port, which stays
    /// bound for the next listener.
    pub async fn listen(&self, port: u16) -> Result<MeshListener, Error> {
        self.listen_judged(port, Judgement::L4).await
    }

    pub(crate) async fn listen_judged(
        &self,
        port: u16,
        judgement: Judgement,
    ) -> Result<MeshListener, Error> {
        let mesh = &self.inner;
        mesh.ready().await?;
        let record = mesh.record_to_listen().await?;
        if mesh.live.is_draining() {
            return Err(mesh.not_started());
        }
        let expected = record.identity();
        if let Some(misnamed) = expected.and_then(|expected| mesh.misnamed_by(expected)) {
            return Err(Error::new(ErrorKind::Identity).with_detail(misnamed.to_string()));
        }
        if record.protocol() != TunnelProtocol::Hbone {
            tracing::warn!(
                target: "mesh::config",
                workload = %mesh.id,
                "this workload's record is not in the mesh, so callers speak plaintext to it; in manifests the \
                 Namespace or Pod wants the label istio.io/dataplane-mode: ambient",
            );
        }
        let settings = mesh.settings();
        let addresses: Vec<IpAddr> = match settings.bind {
            Some(address) => vec![address],
            None => record.addresses().to_vec(),
        };
        if addresses.is_empty() {
            return Err(Error::new(ErrorKind::Bind)
                .with_detail("the workload's record has no address: give it one, or set `bind`"));
        }
        let hbone_port = settings.hbone_port.unwrap_or_else(|| record.hbone_port());
        {
            let mut acceptor = mesh.acceptor.lock().await;
            if acceptor.is_none() {
                *acceptor = Some(Acceptor::bind(mesh, &addresses, hbone_port).await?);
            }
        }
        mesh.left(port).await;
        let sockets = plaintext::bind(mesh, &addresses, port).await?;
        let local = sockets.local_addr();
        let port = local.port();
        let (queue, receiver) = mpsc::channel(settings.listener_queue);
        {
            let mut ports = mesh.ports();
            if ports.contains_key(&port) {
                return Err(Error::new(ErrorKind::Bind)
                    .with_detail(format!("port {port} has a listener already")));
            }
            ports.insert(
                port,
                PortListener {
                    queue: queue.clone(),
                    judgement,
                },
            );
        }
        let closed = sockets.serve(mesh, &queue, judgement);
        Ok(MeshListener {
            mesh: Arc::clone(mesh),
            port,
            local,
            queue: receiver,
            closed,
            draining: Box::pin(mesh.live.all_judged()),
            #[cfg(feature = "http")]
            demanded: None,
            #[cfg(feature = "http")]
            layer: None,
        })
    }
}
