use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::Guard;
use mesh_authz::Identity;
use mesh_hbone::authority::Authority;
use mesh_hbone::client::{self, ConnectRequest, Sender};
use mesh_hbone::pool::Lease;
use mesh_hbone::tls::{self, Credentials};
use mesh_xds::model::GatewayDestination;
use tokio::time::{timeout, timeout_at};

use super::target::Destination;
use super::{account, seek};
use crate::inbound::{Phase, reaches};
use crate::mesh::MeshInner;
use crate::net::{BoxedIo, MeshStream, Transport};
use crate::node::NodeInner;
use crate::settings::{OutboundPolicy, deadline, has_expired};
use crate::snapshot::{
    self, EndpointId, Hop, Refusal, Resolution, Route, Snapshot, Source, Tunnelled,
};
use crate::{ConnectionContext, Error, ErrorKind, Mesh};

/// What tunnels may share a TLS connection: those of one identity to one next hop of which the same
/// identities are expected.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PoolKey {
    source: Identity,
    /// Who the certificate says that we are: of another trust domain than `source` at times.
    shown: Identity,
    expected: Vec<Identity>,
    next_hop: SocketAddr,
}

impl PoolKey {
    /// Whose certificate the connection shows, as it was asked for.
    pub(crate) fn source(&self) -> &Identity {
        &self.source
    }
}

/// The TLS connection that a tunnel shares with others.
pub(super) struct Carrier {
    sender: Sender,
    /// As who we made it.
    #[cfg(feature = "http")]
    shown: Identity,
}

#[cfg(feature = "http")]
impl Carrier {
    /// Whether what goes through the tunnel may go on to: one whose peer goes away (GOAWAY) may be closed just then.
    pub(super) fn is_lasting(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Whether the workload is who it was when the connection was made.
    pub(super) fn is_of(&self, mesh: &MeshInner) -> bool {
        mesh.is(&self.shown)
    }
}

/// What has failed for a connection or request so far, and is passed over while there is anything else.
#[derive(Debug, Default)]
pub(super) struct Tried {
    endpoints: Vec<EndpointId>,
    /// Of hosts that were looked up, one endpoint may have several.
    addresses: Vec<IpAddr>,
    /// Whose certificate would not do: it is the same the next time.
    judged: Vec<EndpointId>,
}

impl Tried {
    pub(super) fn add(&mut self, route: &Route, error: &Error) {
        self.endpoints.extend(route.endpoint());
        if error.is_of_certificate() {
            self.judged.extend(route.endpoint());
        }
        self.addresses
            .extend(account::next_hop(route).map(|address| address.ip()));
    }
}

impl Mesh {
    /// Opens a connection to `host:port` or `ip:port`, of a service or a workload, through the mesh.
    ///
    /// Service names may be short, as Kubernetes expands them: `mysql`, `mysql.db`, `mysql.db.svc`,
    /// `mysql.db.svc.cluster.local`. Endpoints that cannot be reached are passed over for others, as
    /// many as the builder's `connect_attempts`; where there is no other, the same is tried again, but not one whose
    /// certificate would not do. A failed tunnel never falls back to plaintext.
    ///
    /// The stream keeps the mesh: it goes on when all handles are dropped.
    ///
    /// # Errors
    ///
    /// By [`Error::kind`]: what the mesh does not know or has no healthy endpoint for, what refused
    /// or did not answer, [`ErrorKind::NotReady`] after the start time-out, and [`ErrorKind::Draining`] once a
    /// [`shutdown`](Self::shutdown) is over, or has begun before the mesh was ready.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a connection that was being opened is closed or, if other callers wait for the
    /// same tunnel, opened for them.
    pub async fn connect(&self, target: impl AsRef<str>) -> Result<MeshStream, Error> {
        let destination = Destination::parse(target.as_ref())?;
        let (route, stream) = self.inner.connect(&destination).await?;
        let stream = account::accounted(&self.inner, &route, stream);
        Ok(stream.with_mesh(Arc::clone(&self.inner)))
    }
}

impl MeshInner {
    /// Opens a connection to some endpoint of the destination, trying others while that is safe.
    pub(super) async fn connect(
        &self,
        destination: &Destination,
    ) -> Result<(Route, MeshStream), Error> {
        let mut tried = Tried::default();
        let mut attempt = 1;
        loop {
            let route = match self.route(destination, &tried).await {
                Ok(route) => route,
                Err(error) => {
                    account::unrouted(self, destination, &error);
                    return Err(error);
                }
            };
            let error = match self.open(&route).await {
                Ok((stream, _)) => return Ok((route, self.tracked(destination, stream))),
                Err(error) => error,
            };
            attempt += 1;
            tried.add(&route, &error);
            let again = error.is_retry_safe()
                && attempt <= self.settings().connect_attempts
                && self.has_unjudged(destination, &tried);
            account::failed(self, &route, &error, again);
            if !again {
                return Err(error);
            }
            tracing::debug!(target: "mesh::outbound", %destination, %error, "trying another endpoint");
        }
    }

    /// Whether there is an endpoint that was not judged by its certificate: another attempt at such a one ends alike.
    pub(super) fn has_unjudged(&self, destination: &Destination, tried: &Tried) -> bool {
        if tried.judged.is_empty() {
            return true;
        }
        let node = &self.node.inner;
        let snapshot = node.snapshot.load();
        let Some(record) = self.record(&snapshot) else {
            return true;
        };
        let source = Source::new(Arc::clone(record))
            .with_cluster_domain(self.settings().cluster_domain.as_str());
        let mut random = || node.random.next();
        let target = destination.as_target();
        match snapshot.resolve(&source, target, &tried.judged, &mut random) {
            // A host may have other addresses.
            Resolution::Found(route) if !matches!(route.hop(), Hop::Resolve(_)) => route
                .endpoint()
                .is_none_or(|endpoint| !tried.judged.contains(&endpoint)),
            _ => true,
        }
    }

    #[cfg(feature = "admin")]
    fn tracked(&self, destination: &Destination, stream: MeshStream) -> MeshStream {
        let connection = super::Outbound {
            asked: destination.to_string().into(),
            context: stream.context().clone(),
        };
        stream.with_tracked(self.outbound.track(connection))
    }

    #[cfg(not(feature = "admin"))]
    fn tracked(&self, _: &Destination, stream: MeshStream) -> MeshStream {
        stream
    }

    /// Decides where a connection goes, on the newest snapshot.
    pub(super) async fn route(
        &self,
        destination: &Destination,
        tried: &Tried,
    ) -> Result<Route, Error> {
        // Nothing goes out before the first snapshot, or after the end.
        let record = tokio::select! {
            biased;
            () = reaches(self.live.phases(), Phase::Over) => return Err(over(destination)),
            record = async {
                self.ready().await?;
                self.record_known().await
            } => record?,
        };
        let source =
            Source::new(record).with_cluster_domain(self.settings().cluster_domain.as_str());
        let node = &self.node.inner;
        let mut published = node.published();
        let mut answered = node.board.answered();
        let deadline = deadline(self.settings().policy_wait);
        let route = loop {
            published.borrow_and_update();
            answered.borrow_and_update();
            let resolution = {
                let snapshot: Guard<Arc<Snapshot>> = node.snapshot.load();
                let mut random = || node.random.next();
                let mut without = |tried: &[_]| {
                    let target = destination.as_target();
                    snapshot.resolve(&source, target, tried, &mut random)
                };
                let resolution = without(&tried.endpoints);
                // Where all were tried any is found: rather one that may do now.
                let endpoint = match &resolution {
                    Resolution::Found(route) => route.endpoint(),
                    _ => None,
                };
                match endpoint {
                    Some(endpoint) if tried.judged.contains(&endpoint) => without(&tried.judged),
                    _ => resolution,
                }
            };
            match resolution {
                Resolution::Found(route) => break route,
                Resolution::Unknown if node.board.is_by_name() => {
                    let names = seek::destination(destination, &source);
                    if !seek::want(&node.board, &names)? {
                        return self.unknown(destination, tried).await;
                    }
                    let changes = async {
                        tokio::select! {
                            _ = published.changed() => {}
                            _ = answered.changed() => {}
                        }
                    };
                    if timeout_at(deadline, changes).await.is_err() {
                        return Err(seek::unanswered(&names));
                    }
                }
                Resolution::Unknown => return self.unknown(destination, tried).await,
                Resolution::Refused(refusal) => return Err(refused(&refusal)),
                // Its waypoint is on its way: never around it.
                Resolution::Missing(waypoint) => {
                    if node.board.is_by_name() {
                        seek::want(&node.board, &seek::waypoint(&waypoint))?;
                    }
                    if timeout_at(deadline, published.changed()).await.is_err() {
                        return Err(unknown_waypoint(&waypoint));
                    }
                }
            }
        };
        match route.hop() {
            Hop::Resolve(lookup) => {
                let ip = self.look_up(lookup.hostname(), tried).await?;
                Ok(route.with_address(ip))
            }
            _ => Ok(route),
        }
    }

    /// The addresses that the mesh has for a name.
    pub(crate) async fn addresses_of(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        self.ready().await?;
        let own = self.record_known().await?;
        let node = &self.node.inner;
        let domain = self.settings().cluster_domain.as_str();
        let names = snapshot::service_names(name, own.namespace(), domain);
        let mut published = node.published();
        let mut answered = node.board.answered();
        let deadline = deadline(self.settings().policy_wait);
        loop {
            published.borrow_and_update();
            answered.borrow_and_update();
            let snapshot = node.snapshot.load_full();
            if let Some(service) = snapshot.service_by_name(name, own.namespace(), domain) {
                let addresses = service.addresses().iter();
                // On other networks they are others'.
                let mine = addresses.filter(|address| *address.network() == **own.network());
                return Ok(mine.filter_map(|address| address.ip()).collect());
            }
            if let Some(workload) = snapshot.workload_by_name(name, own.namespace(), domain) {
                return Ok(workload.addresses().to_vec());
            }
            if !(node.board.is_by_name() && seek::want(&node.board, &names)?) {
                let detail = format!("{name}: the mesh does not know it");
                return Err(Error::new(ErrorKind::UnknownHost).with_detail(detail));
            }
            let changes = async {
                tokio::select! {
                    _ = published.changed() => {}
                    _ = answered.changed() => {}
                }
            };
            if timeout_at(deadline, changes).await.is_err() {
                return Err(seek::unanswered(&names));
            }
        }
    }

    /// An address of a host that was not tried yet, if there is one.
    async fn look_up(&self, host: &str, tried: &Tried) -> Result<IpAddr, Error> {
        let node = &self.node.inner;
        let addresses = node.hosts.look_up(host, &node.work).await?;
        let mut untried = addresses
            .iter()
            .filter(|address| !tried.addresses.contains(address));
        let address = untried.next().or(addresses.first());
        address
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::HostLookup).with_detail(host.to_owned()))
    }

    /// A destination that the mesh does not know goes out in plaintext, if at all.
    async fn unknown(&self, destination: &Destination, tried: &Tried) -> Result<Route, Error> {
        if self.settings().outbound_policy == OutboundPolicy::RegistryOnly {
            return Err(Error::new(ErrorKind::UnknownHost).with_detail(format!(
                "{destination}: the mesh does not know it, and the outbound policy is RegistryOnly"
            )));
        }
        let address = match destination {
            Destination::Addr(address) => *address,
            Destination::Host { name, port } => {
                let found = self.look_up(name, tried).await;
                // Most likely a slip in the name of a service.
                let address = found.map_err(|error| match error.kind() {
                    ErrorKind::HostLookup => {
                        error.with_detail(format!("{name}, which the mesh does not know"))
                    }
                    _ => error,
                })?;
                SocketAddr::new(address, *port)
            }
        };
        account::passthrough(self, destination);
        Ok(Route::passthrough(address))
    }

    /// Opens one connection along a route, with the TLS connection that it shares with others if it is a tunnel.
    pub(super) async fn open(&self, route: &Route) -> Result<(MeshStream, Option<Carrier>), Error> {
        // The way may have been long.
        if self.live.is_over() {
            return Err(over("a connection"));
        }
        match route.hop() {
            Hop::Hbone(tunnel) => {
                let (stream, carrier) = self.open_tunnel(route, tunnel).await?;
                Ok((stream, Some(carrier)))
            }
            Hop::Plain(address) | Hop::Passthrough(address) => {
                Ok((self.open_plain(*address).await?, None))
            }
            // `route` has looked it up.
            Hop::Resolve(lookup) => Err(Error::new(ErrorKind::Internal).with_detail(format!(
                "{}: expected a route with an address",
                lookup.hostname()
            ))),
        }
    }

    async fn open_plain(&self, address: SocketAddr) -> Result<MeshStream, Error> {
        let io = self.node.inner.dial(address).await?;
        let context = ConnectionContext::plaintext(account::own_address(self), address);
        Ok(MeshStream::plain(io, context))
    }
}

fn over(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Draining)
        .with_detail(format!("{what}: nothing goes out after the shutdown"))
}

fn refused(refusal: &Refusal) -> Error {
    let kind = match refusal {
        Refusal::UnsupportedNetwork { .. } => ErrorKind::UnsupportedNetwork,
        Refusal::NoIdentity { .. } => ErrorKind::UnknownWaypoint,
        _ => ErrorKind::NoHealthyUpstream,
    };
    Error::new(kind).with_detail(refusal.to_string())
}

fn unknown_waypoint(waypoint: &GatewayDestination) -> Error {
    Error::new(ErrorKind::UnknownWaypoint).with_detail(waypoint.to_string())
}

impl NodeInner {
    /// Dials TCP, or what stands for it, within the connect time-out.
    pub(crate) async fn dial(&self, to: SocketAddr) -> Result<BoxedIo, Error> {
        let dial = dial(&self.transport, self.settings.connect_timeout, to);
        dial.await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::TimedOut => ErrorKind::ConnectTimeout,
                _ => ErrorKind::ConnectFailed,
            };
            Error::new(kind)
                .with_detail(to.to_string())
                .with_source(error)
        })
    }
}

async fn dial(transport: &Transport, limit: Duration, to: SocketAddr) -> io::Result<BoxedIo> {
    timeout(limit, transport.dial(to))
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {limit:?}"),
            ))
        })
}

impl MeshInner {
    /// Opens a tunnel on a connection shared with others of the same key.
    async fn open_tunnel(
        &self,
        route: &Route,
        tunnelled: &Tunnelled,
    ) -> Result<(MeshStream, Carrier), Error> {
        let credentials = self.ready().await?;
        let next_hop = tunnelled.next_hop();
        let to = authority(tunnelled)?;
        let (tunnel, carrier) = loop {
            let misnamed = self.misnamed();
            if let Some(misnamed) = &misnamed {
                self.tell(misnamed);
            }
            let shown = credentials.identity();
            let leased = self.lease(tunnelled, &credentials, &shown).await;
            // Since then we may have become another.
            let stands = || credentials.proves(&shown);
            let lease = match leased {
                Ok(lease) => lease,
                Err(_) if !stands() => continue,
                Err(error) => return Err(Error::from(error).with_detail(next_hop.to_string())),
            };
            let sender = lease.sender().clone();
            let now = self.settings().wall_clock.now();
            let peer = sender.peer();
            if !stands() || peer.is_some_and(|peer| has_expired(peer.not_after(), now)) {
                // A new connection will show the certificates that the peer and we have now.
                sender.retire();
                continue;
            }
            // Made anew for the next attempt, which there hardly ever is.
            let headers = account::connect_headers(self, route);
            let answer = lease
                .connect(ConnectRequest::new(to.clone(), headers))
                .await;
            // The peer may have taken its time. Whatever it said, it said to who we were.
            if !stands() {
                sender.retire();
                continue;
            }
            let (tunnel, _) = answer.map_err(|error| {
                let error = Error::from(error);
                let to = format!("{to} by {next_hop}");
                // Whose name that is, the peer cannot tell.
                match misnamed.as_ref().filter(|_| error.is_denied()) {
                    Some(misnamed) => error.with_detail(format!("{to}; {misnamed}")),
                    None => error.with_detail(to),
                }
            })?;
            let carrier = Carrier {
                sender,
                #[cfg(feature = "http")]
                shown,
            };
            break (tunnel, carrier);
        };
        let peer = carrier.sender.peer().map(|peer| peer.identity().clone());
        let own = account::own_address(self);
        let context = match peer {
            Some(peer) => ConnectionContext::tunnel(own, next_hop, peer),
            None => ConnectionContext::plaintext(own, next_hop),
        };
        Ok((MeshStream::tunnel(tunnel, context), carrier))
    }

    /// A place on a connection to the next hop. The dial holds no handle: it may outlive the node.
    async fn lease(
        &self,
        tunnelled: &Tunnelled,
        credentials: &Credentials,
        shown: &Identity,
    ) -> Result<Lease, mesh_hbone::Error> {
        let key = PoolKey {
            source: self.asked.clone(),
            shown: shown.clone(),
            expected: tunnelled.identities().to_vec(),
            next_hop: tunnelled.next_hop(),
        };
        let node = &self.node.inner;
        let weak = Arc::downgrade(node);
        let transport = node.transport.clone();
        let credentials = credentials.clone();
        let (expected, next_hop) = (key.expected.clone(), key.next_hop);
        let shown = key.shown.clone();
        let limit = node.settings.connect_timeout;
        let hbone = node.settings.hbone.clone();
        let dial = move || async move {
            // Whoever waits asks again as who we are now.
            let are_we = || match credentials.proves(&shown) {
                true => Ok(()),
                false => Err(mesh_hbone::Error::dial(another_now())),
            };
            // Who waited for a place on another connection dials later than it asked.
            are_we()?;
            let io = dial(&transport, limit, next_hop)
                .await
                .map_err(mesh_hbone::Error::dial)?;
            let stream = tls::connect_unflushed(io, &credentials, &expected).await?;
            are_we()?;
            let peer = stream.peer().clone();
            let (connection, sender) = client::start(stream, &hbone).await?;
            if let Some(node) = weak.upgrade() {
                node.sooner.notify_one();
            }
            Ok((connection, sender.with_peer(peer)))
        };
        // Tunnels that serve nothing but idle HTTP connections are no reason to refuse.
        #[cfg(feature = "http")]
        {
            let mut futile = false;
            loop {
                let answer = node.pool.checkout(key.clone(), dial.clone()).await;
                if !answer.as_ref().is_err_and(is_full) || futile {
                    return answer;
                }
                // Others may have made room, or dial for the same peer.
                if node.end_leaving_http().await {
                    continue;
                }
                let dials = node.pool.dials();
                if !node.end_idle_http().await {
                    return answer;
                }
                // Others use that connection as well, unless they took what was made: the rest is not thrown after it.
                futile = node.pool.is_full() && node.pool.dials() == dials;
            }
        }
        #[cfg(not(feature = "http"))]
        node.pool.checkout(key, dial).await
    }
}

/// The certificate says now that we are somebody else than when the connection was asked for.
fn another_now() -> io::Error {
    io::Error::other("our identity is another since")
}

/// Whether the end of an idle connection may be of use.
#[cfg(feature = "http")]
fn is_full(error: &mesh_hbone::Error) -> bool {
    error.kind() == mesh_hbone::ErrorKind::PoolFull
}

fn authority(tunnel: &Tunnelled) -> Result<Authority, Error> {
    let authority = match tunnel.authority() {
        snapshot::Authority::Host(host, port) => Authority::from_host(host, *port),
        snapshot::Authority::Addr(address) => Ok(Authority::from(*address)),
    };
    authority.map_err(Error::from)
}
