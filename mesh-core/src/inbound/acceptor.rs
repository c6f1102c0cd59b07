//! The HBONE acceptor: TLS, tunnels, judgement, and the way to the listener of the port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use http::StatusCode;
use mesh_hbone::authority::Authority;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls;

use super::account;
use super::registry::Judgement;
use crate::mesh::MeshInner;
use crate::net::{BoxedIo, Io, MeshStream};
use crate::snapshot::{self, InboundRefusal, WorkloadRecord};
use crate::{ConnectionContext, Error, ErrorKind};

/// The bound HBONE port of a workload.
#[derive(Debug)]
pub(crate) struct Acceptor {
    local: Vec<SocketAddr>,
}

impl Acceptor {
    pub(crate) async fn bind(
        mesh: &Arc<MeshInner>,
        addresses: &[IpAddr],
        port: u16,
    ) -> Result<Self, Error> {
        let mut local = Vec::with_capacity(addresses.len());
        let mut sockets = Vec::with_capacity(addresses.len());
        for &address in addresses {
            let socket = mesh
                .node
                .inner
                .listen(SocketAddr::new(address, port))
                .await?;
            local.push(socket.local_addr());
            sockets.push(socket);
        }
        for mut socket in sockets {
            let weak = Arc::downgrade(mesh);
            let draining = crate::mesh::drain_begins(mesh);
            mesh.tasks.spawn(async move {
                tokio::pin!(draining);
                loop {
                    let (io, source) = tokio::select! {
                        accepted = socket.accept() => accepted,
                        () = &mut draining => return,
                    };
                    let local = socket.local_addr();
                    let Some(mesh) = weak.upgrade() else { return };
                    mesh.tasks
                        .spawn(serve(Weak::clone(&weak), io, source, local));
                }
            });
        }
        Ok(Self { local })
    }

    pub(crate) fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }
}

/// Serves one TLS connection for as long as it lives, holding no handle of the mesh meanwhile.
async fn serve(weak: Weak<MeshInner>, io: BoxedIo, source: SocketAddr, local: SocketAddr) {
    let Some(mesh) = weak.upgrade() else { return };
    let node = mesh.node.inner.clone();
    let draining = crate::mesh::drain_begins(&mesh);
    let handshake = async {
        let credentials = mesh.ready().await?;
        tls::accept_with(io, source.ip(), &credentials, &node.admission)
            .await
            .map_err(Error::from)
    };
    let stream = match handshake.await {
        Ok(stream) => stream,
        Err(error) => {
            account::early_refused(source, local, &error);
            return;
        }
    };
    let peer = stream.peer().identity().clone();
    let mut connection = server::handshake(stream, &node.settings.hbone);
    drop((mesh, node));
    tokio::pin!(draining);
    let mut drained = false;
    loop {
        let incoming = tokio::select! {
            incoming = connection.accept() => incoming,
            () = &mut draining, if !drained => {
                drained = true;
                connection.graceful_shutdown();
                continue;
            }
        };
        match incoming {
            Some(Ok(incoming)) => {
                let Some(mesh) = weak.upgrade() else { return };
                let context = TunnelPeer {
                    source,
                    local,
                    identity: peer.clone(),
                };
                let weak = Weak::clone(&weak);
                mesh.tasks.spawn(async move {
                    let Some(mesh) = weak.upgrade() else { return };
                    tunnel(mesh, incoming, context).await;
                });
            }
            Some(Err(error)) => {
                tracing::debug!(target: "mesh::inbound", %source, peer = %peer, %error, "tunnel connection failed");
                return;
            }
            None => return,
        }
    }
}

struct TunnelPeer {
    source: SocketAddr,
    local: SocketAddr,
    identity: mesh_authz::Identity,
}

/// Takes one CONNECT from its authority to the listener's queue, or refuses it with a status.
async fn tunnel(mesh: Arc<MeshInner>, incoming: Incoming, peer: TunnelPeer) {
    let destination = match destination(&mesh, incoming.authority(), peer.local.ip()) {
        Ok(destination) => destination,
        Err((status, error)) => {
            account::early_refused(peer.source, peer.local, &error);
            incoming.refuse(status);
            return;
        }
    };
    let context = ConnectionContext::tunnel(peer.source, destination, peer.identity);
    let labels = account::labels(&mesh, &context, Some(incoming.headers()));
    let refuse = |incoming: Incoming, error: &Error| {
        account::refused(&mesh, &context, &labels, error);
        incoming.refuse(status_of(error));
    };
    if let Err(missing) = mesh.policies_known().await {
        return refuse(incoming, &unknown_policies(&missing));
    }
    let listener = {
        let ports = mesh.ports();
        ports
            .get(&destination.port())
            .map(|port| (port.queue.clone(), port.judgement))
    };
    let Some((queue, judgement)) = listener else {
        if mesh.settings().forward_unlistened {
            return forward(mesh, incoming, context, labels).await;
        }
        let error = Error::new(ErrorKind::ConnectFailed)
            .with_detail(format!("nothing listens on port {}", destination.port()));
        return refuse(incoming, &error);
    };
    let Ok(slot) = queue.try_reserve() else {
        let error = Error::new(ErrorKind::Overloaded).with_detail("the listener's queue is full");
        return refuse(incoming, &error);
    };
    // Entered before judged: see Registry::enter.
    let Some(registered) = mesh.registry.enter(context.clone(), judgement) else {
        let error = Error::new(ErrorKind::Overloaded).with_detail("too many connections");
        return refuse(incoming, &error);
    };
    if let Err(error) = judge(&mesh, &context, judgement) {
        return refuse(incoming, &error);
    }
    let baggage = account::own_baggage(&mesh);
    match incoming.accept(baggage) {
        Ok(tunnel) => {
            let stream =
                MeshStream::new(Io::Tunnel(tunnel), context.clone()).with_registered(registered);
            slot.send(account::accounted(&mesh, stream, &labels, judgement));
        }
        Err(error) => {
            tracing::debug!(target: "mesh::inbound", source = %peer.source, %error, "tunnel gone before it was accepted");
        }
    }
}

/// Serves an application that does not listen through the mesh, on the same host.
async fn forward(
    mesh: Arc<MeshInner>,
    incoming: Incoming,
    context: ConnectionContext,
    labels: crate::telemetry::Labels,
) {
    let refuse = |incoming: Incoming, error: &Error| {
        account::refused(&mesh, &context, &labels, error);
        incoming.refuse(status_of(error));
    };
    let Some(registered) = mesh.registry.enter(context.clone(), Judgement::L4) else {
        let error = Error::new(ErrorKind::Overloaded).with_detail("too many connections");
        return refuse(incoming, &error);
    };
    if let Err(error) = judge(&mesh, &context, Judgement::L4) {
        return refuse(incoming, &error);
    }
    let mut local = match mesh.node.inner.dial(context.destination()).await {
        Ok(local) => local,
        Err(error) => return refuse(incoming, &error),
    };
    let Ok(tunnel) = incoming.accept(account::own_baggage(&mesh)) else {
        return;
    };
    let stream = MeshStream::new(Io::Tunnel(tunnel), context).with_registered(registered);
    let mut stream = account::accounted(&mesh, stream, &labels, Judgement::L4);
    drop(mesh);
    // An error resets both ends by dropping them; the stream's account reports it.
    let _ = mesh_hbone::copy::bidirectional(&mut stream, &mut local).await;
}

/// Judges a connection that is in the registry already.
pub(super) fn judge(
    mesh: &MeshInner,
    context: &ConnectionContext,
    judgement: Judgement,
) -> Result<(), Error> {
    let enforced = mesh.policies.load();
    let attributes = context.attributes();
    let decision = match judgement {
        Judgement::L4 => enforced.policies().evaluate_l4(&attributes),
        Judgement::PerRequest => enforced.policies().could_allow(&attributes),
    };
    if decision.is_allowed() {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::Denied).with_detail(decision.to_string()))
    }
}

pub(super) fn unknown_policies(missing: &str) -> Error {
    Error::new(ErrorKind::Denied).with_detail(format!(
        "policies of this workload have not arrived: {missing}"
    ))
}

/// The address of the application that a tunnel asks for, or the status that refuses it
/// (istio/ztunnel's, in the order in which it checks).
fn destination(
    mesh: &MeshInner,
    authority: &Authority,
    local: IpAddr,
) -> Result<SocketAddr, (StatusCode, Error)> {
    let snapshot = mesh.node.inner.snapshot.load();
    let record = mesh.record(&snapshot).ok_or_else(|| {
        let error = Error::new(ErrorKind::NoRecord).with_detail(mesh.id.to_string());
        (StatusCode::SERVICE_UNAVAILABLE, error)
    })?;
    let own = own_address(mesh, record, local);
    match snapshot.inbound(record, own, &asked(authority)) {
        Ok(inbound) => Ok(SocketAddr::new(own, inbound.port())),
        Err(refusal @ InboundRefusal::IpMismatch { .. }) => Err((
            StatusCode::BAD_REQUEST,
            Error::new(ErrorKind::BadRequest).with_detail(refusal.to_string()),
        )),
        Err(refusal) => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            Error::new(ErrorKind::UnknownHost).with_detail(refusal.to_string()),
        )),
    }
}

/// Where the workload is, for policies: the address that the tunnel came to, or the one of its record
/// where `bind` put the listeners elsewhere.
fn own_address(mesh: &MeshInner, record: &WorkloadRecord, local: IpAddr) -> IpAddr {
    let addresses = record.addresses();
    match addresses.first() {
        Some(&first) if mesh.settings().bind.is_some() && !addresses.contains(&local) => first,
        _ => local,
    }
}

fn asked(authority: &Authority) -> snapshot::Authority {
    match authority.hostname() {
        Some(host) => snapshot::Authority::Host(host.into(), authority.port()),
        None => {
            let ip = authority.ip().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            snapshot::Authority::Addr(SocketAddr::new(ip, authority.port()))
        }
    }
}

/// The status of a refused CONNECT: 401 for policy, as ztunnel answers, else 503.
fn status_of(error: &Error) -> StatusCode {
    match error.kind() {
        ErrorKind::Denied => StatusCode::UNAUTHORIZED,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
