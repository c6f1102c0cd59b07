//! Plaintext connections to a listener's own port.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use super::account;
use super::registry::Judgement;
use crate::mesh::MeshInner;
use crate::net::{BoxedIo, Incoming, Io, MeshStream};
use crate::node::NodeInner;
use crate::{ConnectionContext, Error, ErrorKind};

/// Bound sockets that accept nothing yet.
pub(super) struct Sockets {
    sockets: Vec<Box<dyn Incoming>>,
    local: SocketAddr,
}

/// Binds `port` on each address.
pub(super) async fn bind(
    mesh: &MeshInner,
    addresses: &[IpAddr],
    port: u16,
) -> Result<Sockets, Error> {
    let mut sockets = Vec::with_capacity(addresses.len());
    let mut port = port;
    for &address in addresses {
        let socket = mesh
            .node
            .inner
            .listen(SocketAddr::new(address, port))
            .await?;
        // Port 0 is chosen by the first socket and shared by the others.
        port = socket.local_addr().port();
        sockets.push(socket);
    }
    let local = sockets
        .first()
        .map(|socket| socket.local_addr())
        .ok_or_else(|| {
            Error::new(ErrorKind::Bind).with_detail("expected at least one address to bind")
        })?;
    Ok(Sockets { sockets, local })
}

impl Sockets {
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Accepts until the listener is dropped or a drain begins.
    pub(super) fn serve(
        self,
        mesh: &Arc<MeshInner>,
        queue: &mpsc::Sender<MeshStream>,
        judgement: Judgement,
    ) {
        for mut socket in self.sockets {
            let weak = Arc::downgrade(mesh);
            let queue = queue.clone();
            let draining = crate::mesh::drain_begins(mesh);
            mesh.tasks.spawn(async move {
                tokio::pin!(draining);
                loop {
                    let (io, source) = tokio::select! {
                        accepted = socket.accept() => accepted,
                        () = &mut draining => return,
                        () = queue.closed() => return,
                    };
                    let destination = socket.local_addr();
                    let Some(mesh) = weak.upgrade() else { return };
                    let queue = queue.clone();
                    let weak = Weak::clone(&weak);
                    mesh.tasks.spawn(async move {
                        admit(weak, io, source, destination, queue, judgement).await;
                    });
                }
            });
        }
    }
}

async fn admit(
    mesh: Weak<MeshInner>,
    io: BoxedIo,
    source: SocketAddr,
    destination: SocketAddr,
    queue: mpsc::Sender<MeshStream>,
    judgement: Judgement,
) {
    let Some(mesh) = mesh.upgrade() else { return };
    let context = ConnectionContext::plaintext(source, destination);
    let labels = account::labels(&mesh, &context, None);
    let refuse = |error: Error| account::refused(&mesh, &context, &labels, &error);
    if mesh.settings().strict {
        return refuse(
            Error::new(ErrorKind::Denied)
                .with_detail("plaintext is refused: the mesh is built strict"),
        );
    }
    if let Err(missing) = mesh.policies_known().await {
        return refuse(super::acceptor::unknown_policies(&missing));
    }
    let Ok(slot) = queue.try_reserve() else {
        return refuse(
            Error::new(ErrorKind::Overloaded).with_detail("the listener's queue is full"),
        );
    };
    let Some(registered) = mesh.registry.enter(context.clone(), judgement) else {
        return refuse(Error::new(ErrorKind::Overloaded).with_detail("too many connections"));
    };
    if let Err(error) = super::acceptor::judge(&mesh, &context, judgement) {
        return refuse(error);
    }
    let stream = MeshStream::new(Io::Plain(io), context.clone()).with_registered(registered);
    slot.send(account::accounted(&mesh, stream, &labels, judgement));
}

impl NodeInner {
    /// Binds an address.
    pub(crate) async fn listen(&self, on: SocketAddr) -> Result<Box<dyn Incoming>, Error> {
        self.transport.listen(on).await.map_err(|error| {
            Error::new(ErrorKind::Bind)
                .with_detail(on.to_string())
                .with_source(error)
        })
    }
}
