//! Plaintext connections to a listener's own port.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};

use super::places::Place;
use super::registry::Judgement;
use super::sessions::Entered;
use super::{acceptor, account};
use crate::mesh::MeshInner;
use crate::net::{BoxedIo, Incoming, MeshStream};
use crate::node::NodeInner;
use crate::{ConnectionContext, Error, ErrorKind};

/// Bound sockets that accept nothing yet.
pub(super) struct Sockets {
    sockets: Vec<Box<dyn Incoming>>,
    local: SocketAddr,
}

/// By what an application's address is another.
const SETTING: &str = "`Builder::bind` sets another address";

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
            .listen(SocketAddr::new(address, port), SETTING)
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

    /// Accepts until the listener is dropped or a drain begins. The receiver ends when all sockets
    /// are closed.
    pub(super) fn serve(
        self,
        mesh: &Arc<MeshInner>,
        queue: &mpsc::Sender<MeshStream>,
        judgement: Judgement,
    ) -> watch::Receiver<()> {
        let (open, closed) = watch::channel(());
        for mut socket in self.sockets {
            let weak = Arc::downgrade(mesh);
            let queue = queue.clone();
            let draining = crate::shutdown::drain_begins(mesh);
            let open = open.clone();
            mesh.supervise("plaintext listener", async move {
                tokio::pin!(draining);
                loop {
                    let (io, source) = tokio::select! {
                        accepted = socket.accept() => accepted,
                        () = &mut draining => break,
                        () = queue.closed() => break,
                    };
                    let local = socket.local_addr();
                    let Some(mesh) = weak.upgrade() else { break };
                    let Some(place) = mesh.places.take_plaintext() else {
                        account::early_refused(source, local, &acceptor::too_many());
                        continue;
                    };
                    let Some(arriving) = mesh.live.arrives(source) else {
                        break;
                    };
                    let waiting = Waiting {
                        io,
                        source,
                        local,
                        place,
                        arriving,
                    };
                    let admit = admit(Weak::clone(&weak), waiting, queue.clone(), judgement);
                    mesh.tasks.spawn(admit);
                }
                drop(socket);
                drop(open);
            });
        }
        closed
    }
}

/// A connection that is not judged yet.
struct Waiting {
    io: BoxedIo,
    source: SocketAddr,
    local: SocketAddr,
    place: Place,
    /// Until it is judged.
    arriving: Entered,
}

async fn admit(
    weak: Weak<MeshInner>,
    waiting: Waiting,
    queue: mpsc::Sender<MeshStream>,
    judgement: Judgement,
) {
    let known = match weak.upgrade() {
        Some(mesh) => mesh.policies_known(Some(waiting.local.port())),
        None => return,
    };
    let known = known.await;
    let Some(mesh) = weak.upgrade() else { return };
    let Waiting {
        io,
        source,
        local,
        place,
        arriving,
    } = waiting;
    let own = {
        let snapshot = mesh.node.inner.snapshot.load();
        mesh.record(&snapshot).map_or_else(
            || local.ip(),
            |record| acceptor::own_address(&mesh, record, local.ip()),
        )
    };
    let context = ConnectionContext::plaintext(source, SocketAddr::new(own, local.port()));
    let labels = account::labels(&mesh, &context, None);
    let refuse = |error: Error| account::refused(&mesh, &context, &labels, &error);
    if mesh.settings().strict {
        return refuse(
            Error::new(ErrorKind::Denied)
                .with_detail("plaintext is refused: the mesh is built strict"),
        );
    }
    if let Err(missing) = known {
        return refuse(acceptor::unknown_policies(&missing));
    }
    let registered = match acceptor::admit(&mesh, &context, judgement) {
        Ok(registered) => registered,
        Err(error) => return refuse(error),
    };
    let slot = match queue.try_reserve() {
        Ok(slot) => slot,
        Err(TrySendError::Full(())) => return refuse(acceptor::queue_full()),
        Err(TrySendError::Closed(())) => return refuse(acceptor::nothing_listens(local.port())),
    };
    let stream = MeshStream::plain(io, context.clone()).with_registered(registered.holding(place));
    slot.send(account::accounted(&mesh, stream, &labels, judgement));
    // Before, the queue might close for want of anybody to come.
    drop(arriving);
}

impl NodeInner {
    /// Binds an address. If it cannot, the error says by which setting it is another.
    pub(crate) async fn listen(
        &self,
        on: SocketAddr,
        setting: &'static str,
    ) -> Result<Box<dyn Incoming>, Error> {
        self.transport.listen(on).await.map_err(|error| {
            Error::new(ErrorKind::Bind)
                .with_detail(format!("{on} ({setting})"))
                .with_source(error)
        })
    }
}
