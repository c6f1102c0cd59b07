use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use mesh_hbone::config::Config as HboneConfig;
use mesh_hbone::tls::{AdmissionLimits, Provider};
use tokio::sync::Semaphore;

use crate::Error;
use crate::config::ConfigSource;
use crate::identity::{CertificateSource, TrustDomain};
use crate::mesh::{Mesh, WorkloadId};
use crate::net::Transport;
use crate::node::{Node, StartConfig};
use crate::settings::{OutboundPolicy, Settings, WallClock};
use crate::telemetry::MetricsSettings;

/// Nobody said yet.
#[derive(Debug)]
#[non_exhaustive]
pub struct Missing;

/// Builds a [`Mesh`], or a [`Node`] that several share.
///
/// Three decisions have no default, and `build` exists only once they are made: who am I
/// ([`workload`](Self::workload)), where does configuration come from ([`config`](Self::config)),
/// who vouches for me ([`identity`](Self::identity)). All else is a setter with a default.
pub struct Builder<W, C, I> {
    workload: W,
    config: C,
    identity: I,
    settings: Settings,
}

impl Builder<Missing, Missing, Missing> {
    pub(crate) fn new() -> Self {
        Self {
            workload: Missing,
            config: Missing,
            identity: Missing,
            settings: Settings::default(),
        }
    }
}

#[cfg(feature = "istiod")]
impl Builder<Missing, Missing, Missing> {
    /// Says all three for a host outside Kubernetes, by the files that `istioctl x workload entry configure`
    /// writes: `cluster.env`, `mesh.yaml`, `root-cert.pem`, `istio-token` and `hosts`. They are looked for in
    /// the folder, and below it where istio-agent has them, so that `/` is a host on which that is installed.
    ///
    /// The host registers with its WorkloadGroup (`--autoregister`), or has the WorkloadEntry that
    /// `ISTIO_META_WORKLOAD_ENTRY` or `ISTIO_META_WORKLOAD_NAME` names. `ISTIOD_SAN` is the name that the control plane's
    /// certificate has to have, if it is not the one of its address. Where `hosts` pins the control plane
    /// no `/etc/hosts` is needed. Where `ISTIO_SVC_IP` is not set the host is known by the address from which it
    /// reaches the control plane. A host that registers has its address in its name, and so must know it here, where
    /// no name is looked up: unless the control plane is pinned, or its address is an IP address, it is the one
    /// that the last process kept ([`state_dir`](Self::state_dir)) if the host still has it, else the one of the default
    /// route, and without a network that of the last process again. Network and trust domain are set, unless the files have
    /// none: the trust domain is then that of the certificate in use, as with istio-agent, unless
    /// [`trust_domain`](Self::trust_domain) says it. The group's readiness probe is made, as by [`readiness_probe`](Self::readiness_probe): before it
    /// succeeds first the host gets no traffic.
    ///
    /// Reads the files, and waits for it; for the network it never waits.
    ///
    /// # Errors
    ///
    /// A file is missing or cannot be read, or says too little: the error names file and key. The token
    /// may come later. That there is no address to register by is an error of [`build`](Self::build), for the
    /// state directory may have it.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), mesh_core::Error> {
    /// let mesh = mesh_core::Mesh::builder().bootstrap_dir("/etc/forum/mesh")?.build()?;
    /// let http = mesh.listen_http(8080).await?;
    /// # let _ = http;
    /// # Ok(())
    /// # }
    /// ```
    pub fn bootstrap_dir(
        mut self,
        dir: impl AsRef<std::path::Path>,
    ) -> Result<Builder<WorkloadId, crate::config::Xds, crate::identity::Istiod>, Error> {
        let host = crate::bootstrap::Host::read(dir.as_ref())?;
        let mut identity = crate::identity::Istiod::new(host.authority);
        match host.trust_domain {
            Some(trust_domain) => self = self.trust_domain(trust_domain),
            None if self.settings.trust_domain.is_some() => {}
            None => {
                self.settings.trust_domain_of = TrustDomain::Issued;
                identity = identity.any_trust_domain();
            }
        }
        if !host.network.is_empty() {
            self.settings.network = host.network;
        }
        self.settings.readiness_probe = host.probe;
        self.settings.registering = host.registering;
        self.settings.record_is = Some(host.record_is);
        Ok(Builder {
            workload: host.workload,
            config: host.xds,
            identity,
            settings: self.settings,
        })
    }
}

#[cfg(feature = "istiod")]
impl<C, I> Builder<WorkloadId, C, I> {
    /// Finds out by a probe whether the application is to get traffic, and reports it to the control plane
    /// that this host is registered with: none unless set, or unless
    /// [`bootstrap_dir`](Builder::bootstrap_dir) found one in the host's files.
    #[must_use]
    pub fn readiness_probe(mut self, probe: crate::health::Probe) -> Self {
        self.settings.readiness_probe = Some(probe);
        self
    }
}

#[cfg(feature = "istiod")]
impl Builder<WorkloadId, crate::config::Xds, crate::identity::Istiod> {
    /// Keeps certificates and configuration in a directory, for the next start: see
    /// [`Istiod::state_dir`](crate::identity::Istiod::state_dir) and [`Xds::state_dir`](crate::config::Xds::state_dir).
    /// With both, neither an expired token nor an absent control plane keeps the process from serving.
    ///
    /// Of a host that registers by an address that its files do not have
    /// ([`bootstrap_dir`](Builder::bootstrap_dir)) the address is looked for here, and waited for.
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<std::path::PathBuf>) -> Self {
        let path = path.into();
        let registering = self.settings.registering.as_mut();
        if let Some((id, own)) = registering.and_then(|host| host.restore(&path)) {
            self.workload = id;
            self.config = self.config.addresses([own]);
        }
        self.config = self.config.state_dir(path.clone());
        if let Some(host) = &self.settings.registering {
            self.config = self.config.registering(host.clone());
        }
        self.identity = self.identity.state_dir(path);
        self
    }
}

impl<C, I> Builder<Missing, C, I> {
    /// Says who the application is: its namespace, its name (the Pod's or WorkloadEntry's
    /// `metadata.name`) and its service account.
    pub fn workload(
        self,
        namespace: impl Into<String>,
        name: impl Into<String>,
        service_account: impl Into<String>,
    ) -> Builder<WorkloadId, C, I> {
        Builder {
            workload: WorkloadId::new(namespace, name, service_account),
            config: self.config,
            identity: self.identity,
            settings: self.settings,
        }
    }
}

impl<W, I> Builder<W, Missing, I> {
    /// Says where configuration comes from.
    pub fn config<C: ConfigSource>(self, config: C) -> Builder<W, C, I> {
        Builder {
            workload: self.workload,
            config,
            identity: self.identity,
            settings: self.settings,
        }
    }
}

impl<W, C> Builder<W, C, Missing> {
    /// Says who vouches for the application: where its certificates come from.
    pub fn identity<I: CertificateSource>(self, identity: I) -> Builder<W, C, I> {
        Builder {
            workload: self.workload,
            config: self.config,
            identity,
            settings: self.settings,
        }
    }
}

impl<C: ConfigSource, I: CertificateSource> Builder<WorkloadId, C, I> {
    /// Builds the mesh. Binds nothing and waits for nothing: [`Mesh::listen`] and
    /// [`Mesh::connect`] do.
    ///
    /// # Errors
    ///
    /// When a setting or the workload's identity is invalid, when a host that registers has no address, when no
    /// crypto provider is compiled in, or when called outside a tokio runtime, on which the mesh's tasks will run.
    pub fn build(self) -> Result<Mesh, Error> {
        // Checked before any task is started.
        #[cfg(feature = "istiod")]
        if let Some(host) = &self.settings.registering {
            host.check()?;
        }
        let identity = self.workload.identity(self.settings.trust_domain())?;
        #[cfg(feature = "istiod")]
        let probe = self.settings.readiness_probe.clone();
        #[cfg(feature = "istiod")]
        probe.iter().try_for_each(crate::health::Probe::validate)?;
        let node = Node::start(self.settings, StartConfig::new(self.config), self.identity)?;
        let mesh = node.mesh(self.workload, identity)?;
        #[cfg(feature = "istiod")]
        if let Some(probe) = probe {
            node.inner.board.probing();
            let probing = crate::health::run(std::sync::Arc::downgrade(&mesh.inner), probe);
            mesh.inner.supervise("readiness probe", probing);
        }
        Ok(mesh)
    }
}

impl<C: ConfigSource, I: CertificateSource> Builder<Missing, C, I> {
    /// Builds a node without a workload: [`Node::workload`] adds them.
    ///
    /// # Errors
    ///
    /// When a setting is invalid, when no crypto provider is compiled in, or when called outside a
    /// tokio runtime.
    pub fn build_node(self) -> Result<Node, Error> {
        Node::start(self.settings, StartConfig::new(self.config), self.identity)
    }
}

impl<W, C, I> Builder<W, C, I> {
    /// Sets how long `listen` and `connect` wait for the first configuration and certificate: 30 s
    /// unless set, within which a cold control plane and a cold certificate authority answer.
    #[must_use]
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.settings.start_timeout = timeout;
        self
    }

    /// Runs what keeps configuration and certificates current on another runtime than the one on which the mesh is
    /// built, where listeners, connections and requests stay. Unless set all runs on the one.
    ///
    /// For a mesh of 100 000 workloads on few cores: a full push takes a second of a core, in small bites, each of which may
    /// keep a connection waiting. On a thread of a lower priority the push waits for connections instead; where all
    /// cores stay busy it is in effect later, and with it each DENY in it: lower it when the mesh is
    /// [`ready`](Mesh::ready), which it should be soon. The runtime needs timers and I/O
    /// (`enable_all`), and must live as long as the mesh, or until its [`shutdown`](Mesh::shutdown) begins: with it end news
    /// and new certificates. That is told by an error in the log (`mesh::node`), and takes the mesh's readiness away.
    ///
    /// # Examples
    ///
    /// ```
    /// # use mesh_core::{Mesh, config::ConfigSource, identity::CertificateSource};
    /// # fn lower_priority() {}
    /// # async fn start(source: impl ConfigSource, certificates: impl CertificateSource) -> Result<(), Box<dyn std::error::Error>> {
    /// let control = tokio::runtime::Builder::new_multi_thread()
    ///     .worker_threads(1)
    ///     .thread_name("mesh-control")
    ///     .enable_all()
    ///     .build()?;
    /// let mesh = Mesh::builder()
    ///     .control_runtime(control.handle().clone())
    ///     .workload("default", "reviews-v1", "reviews")
    ///     .config(source)
    ///     .identity(certificates)
    ///     .build()?;
    /// mesh.ready().await?;
    /// // Of its only thread, which on Linux has a nice value of its own: `rustix::process::setpriority_process(None, 19)`.
    /// control.spawn(async { lower_priority() });
    /// // … At the end, after the mesh; dropping a runtime would wait, which an async function must not:
    /// drop(mesh);
    /// control.shutdown_background();
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn control_runtime(mut self, runtime: tokio::runtime::Handle) -> Self {
        self.settings.control_runtime = Some(runtime);
        self
    }

    /// Sets how long a new inbound connection waits for policies that its workload lists and that
    /// have not arrived, before it is refused: 5 s unless set, as long as ztunnel waits for a workload.
    #[must_use]
    pub fn policy_wait(mut self, wait: Duration) -> Self {
        self.settings.policy_wait = wait;
        self
    }

    /// Sets how many endpoints a connection tries before it fails: 3 unless set, at least 1.
    #[must_use]
    pub fn connect_attempts(mut self, attempts: usize) -> Self {
        self.settings.connect_attempts = attempts.max(1);
        self
    }

    /// Sets how long a TCP connect may take, and the look-up of a host's addresses: 5 s unless set.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// Sets how long a request of [`Mesh::http_client`] may take until its response's head is here:
    /// 30 s unless set; `None` sets no bound.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// Sets for how long a response's body of [`Mesh::http_client`] may stall: 5 minutes unless set, Envoy's
    /// `stream_idle_timeout`; `None` sets no bound. It begins anew with each frame, and counts only while the
    /// application waits for one.
    ///
    /// Responses to gRPC requests have none whatever is set: a stream may be silent for as long as it likes, a call has
    /// its deadline (`grpc-timeout`), and whether the peer still lives the tunnel's PINGs find out.
    #[must_use]
    pub fn response_idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.settings.response_idle_timeout = timeout;
        self
    }

    /// Sets what happens to connections to hosts that the mesh does not know:
    /// [`OutboundPolicy::AllowAny`] unless set.
    #[must_use]
    pub fn outbound_policy(mut self, policy: OutboundPolicy) -> Self {
        self.settings.outbound_policy = policy;
        self
    }

    /// Refuses plaintext on every port of this application, whatever PeerAuthentication says.
    #[must_use]
    pub fn strict(mut self) -> Self {
        self.settings.strict = true;
        self
    }

    /// Binds listeners to this address instead of the workload's own: `0.0.0.0` in a container.
    #[must_use]
    pub fn bind(mut self, address: IpAddr) -> Self {
        self.settings.bind = Some(address);
        self
    }

    /// Listens for tunnels on this port instead of the one in the workload's record (15008 unless
    /// its configuration says otherwise).
    #[must_use]
    pub fn hbone_port(mut self, port: u16) -> Self {
        self.settings.hbone_port = Some(port);
        self
    }

    /// How long a drain waits before [`Mesh::draining`](crate::Mesh::draining) resolves and servers close what is idle. Until then
    /// callers are told: tunnels go elsewhere (GOAWAY), answers to HTTP/1 requests say `connection: close`. At most a quarter of
    /// the deadline of [`shutdown`](crate::Mesh::shutdown). Default: 500 ms, many round trips.
    /// Of several calls the first one's stands.
    #[must_use]
    pub fn drain_notice(mut self, notice: Duration) -> Self {
        self.settings.drain_notice = notice;
        self
    }

    /// Whether a tunnel to a port on which nothing listens through the mesh is forwarded to that
    /// port on this host, for applications that are only partly ours. Refused with 503 unless set, and
    /// always to the port of the tunnels themselves: what came in that way would come from our own address. So are
    /// 15001, 15006, 15008 and 15080, where Istio's node proxy listens in a Pod.
    #[must_use]
    pub fn forward_unlistened(mut self, forward: bool) -> Self {
        self.settings.forward_unlistened = forward;
        self
    }

    /// Sets how many accepted connections may wait for the application, per listener: 1024 unless
    /// set. A tunnel that finds the queue full is answered 503.
    #[must_use]
    pub fn listener_queue(mut self, connections: usize) -> Self {
        self.settings.listener_queue = connections.max(1);
        self
    }

    /// Sets how many inbound connections may live at once, per workload: 10 000 unless set (Envoy's
    /// advice for edges). It bounds the sockets, and it bounds the tunnels and plaintext connections:
    /// beyond it a socket is closed and a tunnel is answered 503. 0 lets nobody in.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.settings.max_connections = connections.min(Semaphore::MAX_PERMITS);
        self
    }

    /// Sets how many plaintext connections of the above may live at once, per workload: half of
    /// [`max_connections`](Self::max_connections) unless set. Anybody can open them, so they must not
    /// take the room of tunnels.
    #[must_use]
    pub fn max_plaintext_connections(mut self, connections: usize) -> Self {
        self.settings.max_plaintext_connections = Some(connections.min(Semaphore::MAX_PERMITS));
        self
    }

    /// Sets how many inbound sockets may live at once in all workloads of the node: 50 000 unless set.
    /// One more is closed.
    #[must_use]
    pub fn max_node_connections(mut self, connections: usize) -> Self {
        self.settings.max_node_connections = connections.min(Semaphore::MAX_PERMITS);
        self
    }

    /// Sets the bounds on TLS handshakes in progress and on connections that have not begun one, of which
    /// there are at most half of [`max_connections`](Self::max_connections), whatever is set here.
    #[must_use]
    pub fn admission(mut self, limits: AdmissionLimits) -> Self {
        self.settings.admission = limits;
        self
    }

    /// Whether live connections end when the certificate expires with which their peer proved itself.
    /// They do not unless set, as in Istio: the peer has renewed it long before, which only new
    /// connections can show. Either way no tunnel is opened on such a connection any more, and a workload
    /// whose own certificate expires without a successor closes all its tunnels.
    #[must_use]
    pub fn close_expired(mut self, close: bool) -> Self {
        self.settings.close_expired = close;
        self
    }

    /// Sets how long a client of an HTTP listener may take for its first byte and, with
    /// [`HttpListener::serve`](crate::HttpListener::serve), for the head of each HTTP/1.1 request, idle
    /// time before it included: 30 s unless set, as hyper. Other servers have settings of their own for
    /// the latter.
    #[must_use]
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.settings.header_timeout = timeout;
        self
    }

    /// Sets how long [`Mesh::http_client`] keeps a connection that no request uses: 25 s unless set,
    /// less than servers do, so that a request seldom meets a connection that is being closed.
    #[must_use]
    pub fn http_idle_timeout(mut self, timeout: Duration) -> Self {
        self.settings.http_idle_timeout = timeout;
        self
    }

    /// Sets the bounds of the node's metrics.
    #[must_use]
    pub fn metrics(mut self, settings: MetricsSettings) -> Self {
        self.settings.metrics = settings;
        self
    }

    /// Sets how many idle HTTP/1.1 connections [`Mesh::http_client`] keeps per endpoint: 64 unless set.
    #[must_use]
    pub fn idle_connections_per_endpoint(mut self, connections: usize) -> Self {
        self.settings.idle_connections_per_endpoint = connections;
        self
    }

    /// Sets how many HTTP connections that no request uses [`Mesh::http_client`] keeps, over all
    /// endpoints: 1 024 unless set. Beyond, those that were not used for the longest time go, of HTTP/2 when the next
    /// request looks for its connection.
    ///
    /// Where the node's tunnels ([`hbone`](Self::hbone): `max_connections`) are all taken and some
    /// serve nothing but such connections, these go first: a new peer is not refused for the sake of
    /// an idle one.
    #[must_use]
    pub fn max_idle_connections(mut self, connections: usize) -> Self {
        self.settings.max_idle_connections = connections;
        self
    }

    /// Sets how much of a request's body [`Mesh::http_client`] keeps until the request is answered, in bytes: 65 536
    /// unless set, what linkerd keeps; 0 keeps nothing. With what is kept a request is sent again
    /// that its server refused before it looked at it (`REFUSED_STREAM`, `GOAWAY`); one of which more
    /// was read fails. At most 64 frames are kept: those up to 1 KiB as copies, larger ones shared with the body, and
    /// so with the whole buffer that a frame is a slice of.
    #[must_use]
    pub fn replay_buffer(mut self, bytes: usize) -> Self {
        self.settings.replay_buffer = bytes;
        self
    }

    /// Sets how many host names the node looks up at once: 32 unless set, at least 1. The system's
    /// resolver holds a thread for each, be it for as long as it pleases; more wait, at most the
    /// [connect time-out](Self::connect_timeout).
    ///
    /// Looked up are hosts that the mesh does not know, and workloads with a hostname and no address.
    #[must_use]
    pub fn max_lookups(mut self, lookups: usize) -> Self {
        self.settings.max_lookups = lookups.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Sets of how many hosts the node remembers the addresses, those being looked up included: 1 024
    /// unless set, and at least [`max_lookups`](Self::max_lookups). When all are being looked up,
    /// another is refused.
    #[must_use]
    pub fn lookup_cache(mut self, hosts: usize) -> Self {
        self.settings.lookup_cache = hosts;
        self
    }

    /// Sets for how long the addresses of a host are remembered: 5 s unless set, as often as Envoy asks
    /// again (`dns_refresh_rate`); the system's resolver does not tell how long they hold. 0 is not at all.
    #[must_use]
    pub fn lookup_ttl(mut self, time: Duration) -> Self {
        self.settings.lookup_ttl = time;
        self
    }

    /// Sets the network that this host is on: the empty one unless set.
    #[must_use]
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.settings.network = network.into();
        self
    }

    /// Sets the cluster's DNS domain: `cluster.local` unless set.
    #[must_use]
    pub fn cluster_domain(mut self, domain: impl Into<String>) -> Self {
        self.settings.cluster_domain = domain.into();
        self
    }

    /// Sets the mesh's root namespace, whose policies apply everywhere: `istio-system` unless set.
    #[must_use]
    pub fn root_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.settings.root_namespace = namespace.into();
        self
    }

    /// Sets the trust domain of this workload's identity: `cluster.local` unless set. Of a host whose files have none,
    /// it is the certificate's unless set, and changes with that: see [`Mesh::identity`].
    #[must_use]
    pub fn trust_domain(mut self, trust_domain: impl Into<String>) -> Self {
        self.settings.trust_domain = Some(trust_domain.into());
        self.settings.trust_domain_of = TrustDomain::Asked;
        self
    }

    /// Sets further trust domains whose certificates are accepted from clients: none unless set.
    #[must_use]
    pub fn trust_domain_aliases(
        mut self,
        aliases: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.settings.trust_domain_aliases = aliases.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the tunnel's own settings: windows, limits, keep-alive, time-outs.
    #[must_use]
    pub fn hbone(mut self, config: HboneConfig) -> Self {
        self.settings.hbone = config;
        self
    }

    /// Sets the crypto provider: aws-lc-rs before ring unless set, by the features compiled in. The
    /// process default is never read nor set.
    #[must_use]
    pub fn crypto(mut self, provider: Provider) -> Self {
        self.settings.provider = Some(provider);
        self
    }

    /// Sets where connections come from: TCP sockets unless set.
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.settings.transport = Some(transport);
        self
    }

    /// Sets the time of day by which certificates are judged: the system's unless set. Monotonic
    /// time is tokio's.
    #[must_use]
    pub fn clock(mut self, wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.wall_clock = WallClock::new(wall);
        self
    }

    /// Makes random choices (endpoints, jitter) repeat from this seed.
    #[must_use]
    pub fn rng(mut self, seed: u64) -> Self {
        self.settings.rng_seed = Some(seed);
        self
    }
}

impl<W: fmt::Debug, C, I> fmt::Debug for Builder<W, C, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("workload", &self.workload)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
