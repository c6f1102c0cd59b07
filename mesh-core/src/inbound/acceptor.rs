//! The HBONE acceptor: TLS, tunnels, judgement, and the way to the listener of the port.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use mesh_authz::Identity;
use mesh_hbone::authority::Authority;
use mesh_hbone::config::Config;
use mesh_hbone::server::{self, Incoming};
use mesh_hbone::tls::{self, Credentials};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tokio::time::timeout;

use super::account;
use super::live::{Phase, reaches};
use super::places::Place;
use super::registry::{Judgement, Refused, Registered};
use super::sessions::Sessions;
use super::validity::{Outcome, Validity};
use crate::mesh::MeshInner;
use crate::net::{BoxedIo, CutReason, MeshStream};
use crate::settings::WallClock;
use crate::snapshot::{self, InboundRefusal, WorkloadRecord};
use crate::{ConnectionContext, Error, ErrorKind};

/// By what the port of tunnels is another.
const SETTING: &str =
    "tunnels come there; `Builder::hbone_port` sets another port, `Builder::bind` another address";

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
                .listen(SocketAddr::new(address, port), SETTING)
                .await?;
            local.push(socket.local_addr());
            sockets.push(socket);
        }
        let admission = mesh.node.inner.admission.listener();
        for mut socket in sockets {
            let weak = Arc::downgrade(mesh);
            let draining = crate::shutdown::drain_begins(mesh);
            let admission = admission.clone();
            mesh.supervise("HBONE acceptor", async move {
                tokio::pin!(draining);
                loop {
                    let (io, source) = tokio::select! {
                        accepted = socket.accept() => accepted,
                        () = &mut draining => return,
                    };
                    let local = socket.local_addr();
                    let Some(mesh) = weak.upgrade() else { return };
                    match Session::new(&mesh, source, local, &admission) {
                        Ok(session) => mesh.tasks.spawn(session.serve(io)),
                        Err(error) => account::early_refused(source, local, &error),
                    }
                }
            });
        }
        Ok(Self { local })
    }

    pub(crate) fn local_addrs(&self) -> &[SocketAddr] {
        &self.local
    }
}

/// One TLS connection, from its socket to its end. Holds no handle of the mesh: an idle peer must not
/// keep it alive.
struct Session {
    mesh: Weak<MeshInner>,
    source: SocketAddr,
    local: SocketAddr,
    credentials: Credentials,
    admission: tls::Admission,
    hbone: Config,
    phase: watch::Receiver<Phase>,
    clock: WallClock,
    close_expired: bool,
    sessions: Arc<Sessions>,
    _place: Place,
}

/// So long the ends of tunnels that were cut have to reach the peer before the connection is closed.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);

impl Session {
    fn new(
        mesh: &Arc<MeshInner>,
        source: SocketAddr,
        local: SocketAddr,
        admission: &tls::Admission,
    ) -> Result<Self, Error> {
        let place = mesh.places.take().ok_or_else(too_many)?;
        let settings = mesh.settings();
        Ok(Self {
            mesh: Arc::downgrade(mesh),
            source,
            local,
            credentials: mesh.credentials()?,
            admission: admission.clone(),
            hbone: settings.hbone.clone(),
            phase: mesh.live.phases(),
            clock: settings.wall_clock.clone(),
            close_expired: settings.close_expired,
            sessions: Arc::clone(&mesh.live.sessions),
            _place: place,
        })
    }

    async fn serve(self, io: BoxedIo) {
        let handshake =
            tls::accept_with(io, self.source.ip(), &self.credentials, &self.admission).await;
        match handshake {
            Ok(stream) => self.tunnels(stream).await,
            Err(error) => account::early_refused(self.source, self.local, &error.into()),
        }
    }

    async fn tunnels(self, stream: tls::TlsStream<BoxedIo>) {
        // Dropped after the connection.
        let _open = self.sessions.enter(self.source);
        let mut validity = Validity::new(
            stream.peer().clone(),
            self.credentials.clone(),
            self.clock.clone(),
            self.close_expired,
        );
        let mut connection = server::handshake(stream, &self.hbone);
        let draining = reaches(self.phase.clone(), Phase::Draining);
        let over = reaches(self.phase.clone(), Phase::Over);
        tokio::pin!(draining, over);
        let mut leaving = false;
        loop {
            let incoming = tokio::select! {
                incoming = connection.accept() => incoming,
                () = &mut draining, if !leaving => {
                    leaving = true;
                    connection.graceful_shutdown();
                    continue;
                }
                () = &mut over => return last_words(connection).await,
                outcome = validity.ends() => match outcome {
                    Outcome::Retire if leaving => continue,
                    Outcome::Retire => {
                        leaving = true;
                        connection.graceful_shutdown();
                        continue;
                    }
                    Outcome::Close(reason) => {
                        self.cut(validity.peer(), reason);
                        return last_words(connection).await;
                    }
                },
            };
            match incoming {
                Some(Ok(incoming)) => self.take(incoming, validity.peer().identity().clone()),
                Some(Err(error)) => {
                    tracing::debug!(target: "mesh::inbound", source = %self.source, peer = %validity.peer().identity(), %error, "tunnel connection failed");
                    return;
                }
                None => return,
            }
        }
    }

    fn take(&self, incoming: Incoming, identity: Identity) {
        let Some(mesh) = self.mesh.upgrade() else {
            return;
        };
        let peer = TunnelPeer {
            source: self.source,
            local: self.local,
            identity,
        };
        mesh.tasks
            .spawn(tunnel(Weak::clone(&self.mesh), incoming, peer));
    }

    fn cut(&self, peer: &tls::Peer, reason: CutReason) {
        let Some(mesh) = self.mesh.upgrade() else {
            return;
        };
        let tunnels = mesh.live.registry.cut_tunnels_of(self.source, reason);
        tracing::info!(target: "mesh::inbound", source = %self.source, peer = %peer.identity(), tunnels, "{}", reason.as_str());
    }
}

/// Lets the resets of cut tunnels out. What does not get out in time ends with the connection.
async fn last_words(mut connection: server::Connection<tls::TlsStream<BoxedIo>>) {
    connection.hasty_shutdown();
    let ends = async { while let Some(Ok(_refused)) = connection.accept().await {} };
    let _ = timeout(LAST_WORDS, ends).await;
}

struct TunnelPeer {
    source: SocketAddr,
    local: SocketAddr,
    identity: Identity,
}

/// Takes one CONNECT from its authority to the listener's queue, or refuses it with a status.
async fn tunnel(weak: Weak<MeshInner>, incoming: Incoming, peer: TunnelPeer) {
    let known = match weak.upgrade() {
        Some(mesh) => {
            let asked = destination(&mesh, incoming.authority(), peer.local.ip());
            mesh.policies_known(asked.ok().map(|destination| destination.port()))
        }
        None => return,
    };
    let known = known.await;
    let Some(mesh) = weak.upgrade() else { return };
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
    if let Err(missing) = known {
        return refuse(incoming, &unknown_policies(&missing));
    }
    let listener = {
        let ports = mesh.ports();
        ports
            .get(&destination.port())
            .map(|port| (port.queue.clone(), port.judgement))
    };
    let judgement = listener
        .as_ref()
        .map_or(Judgement::L4, |(_, judgement)| *judgement);
    // Judged before anything else is told of the port.
    let registered = match admit(&mesh, &context, judgement) {
        Ok(registered) => registered,
        Err(error) => return refuse(incoming, &error),
    };
    let slot = match &listener {
        Some((queue, _)) => queue.try_reserve(),
        // A tunnel to where tunnels come would come from our own address.
        None if mesh
            .settings()
            .forwards_to(destination.port(), peer.local.port()) =>
        {
            drop(listener);
            return forward(mesh, incoming, context, labels, registered).await;
        }
        None if mesh.settings().forward_unlistened => {
            return refuse(incoming, &never_forwarded(destination.port()));
        }
        None => return refuse(incoming, &nothing_listens(destination.port())),
    };
    let slot = match slot {
        Ok(slot) => slot,
        Err(TrySendError::Full(())) => return refuse(incoming, &queue_full()),
        Err(TrySendError::Closed(())) => {
            return refuse(incoming, &nothing_listens(destination.port()));
        }
    };
    let baggage = account::own_baggage(&mesh);
    match incoming.accept(baggage) {
        Ok(tunnel) => {
            let stream = MeshStream::tunnel(tunnel, context.clone()).with_registered(registered);
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
    registered: Registered,
) {
    let mut local = match mesh.node.inner.dial(context.destination()).await {
        Ok(local) => local,
        Err(error) => {
            account::refused(&mesh, &context, &labels, &error);
            incoming.refuse(status_of(&error));
            return;
        }
    };
    let Ok(tunnel) = incoming.accept(account::own_baggage(&mesh)) else {
        return;
    };
    let stream = MeshStream::tunnel(tunnel, context).with_registered(registered);
    let mut stream = account::accounted(&mesh, stream, &labels, Judgement::L4);
    drop(mesh);
    // An error resets both ends by dropping them; the stream's account reports it.
    let _ = mesh_hbone::copy::bidirectional(&mut stream, &mut local).await;
}

/// Takes a connection among those that live, if what its port enforces permits it.
pub(super) fn admit(
    mesh: &MeshInner,
    context: &ConnectionContext,
    judgement: Judgement,
) -> Result<Registered, Error> {
    let admitted = mesh.live.admit(context, judgement, &mesh.enforcement);
    admitted.map_err(|refused| match refused {
        Refused::TooMany => too_many(),
        Refused::Denied(why, missed) => {
            tracing::debug!(
                target: "mesh::authz",
                reason = why,
                policies = missed,
                source = %context.source(),
                identity = %context.who(),
                destination = %context.destination(),
                "denied"
            );
            Error::new(ErrorKind::Denied).with_detail(why)
        }
        Refused::Over => Error::new(ErrorKind::Draining).with_detail("the shutdown is over"),
    })
}

pub(super) fn too_many() -> Error {
    Error::new(ErrorKind::Overloaded).with_detail("too many connections")
}

pub(super) fn queue_full() -> Error {
    Error::new(ErrorKind::Overloaded).with_detail("the listener's queue is full")
}

pub(super) fn nothing_listens(port: u16) -> Error {
    Error::new(ErrorKind::ConnectFailed).with_detail(format!("nothing listens on port {port}"))
}

fn never_forwarded(port: u16) -> Error {
    Error::new(ErrorKind::ConnectFailed).with_detail(format!(
        "nothing listens through the mesh on port {port}, a proxy's: tunnels are not forwarded to it"
    ))
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
pub(super) fn own_address(mesh: &MeshInner, record: &WorkloadRecord, local: IpAddr) -> IpAddr {
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
