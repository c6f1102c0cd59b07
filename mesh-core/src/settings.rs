use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_hbone::config::Config as HboneConfig;
use mesh_hbone::tls::AdmissionLimits;
use tokio::time::Instant;

use crate::identity;
use crate::net::Transport;
use crate::telemetry::MetricsSettings;

/// What happens to a connection to a host that the mesh does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OutboundPolicy {
    /// The host resolves the name and the connection goes out in plaintext; counted as
    /// `PassthroughCluster` and logged once per host. Istio's default.
    #[default]
    AllowAny,
    /// The connection is refused.
    RegistryOnly,
}

/// Where istio/ztunnel takes what a Pod sends, plaintext, tunnels and SOCKS, and where it refuses tunnels as well (its
/// `illegal_ports`): one to them would leave it again in the Pod's name.
const PROXY_PORTS: [u16; 4] = [15001, 15006, 15008, 15080];

/// Everything a builder can set, with its default.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) start_timeout: Duration,
    pub(crate) policy_wait: Duration,
    pub(crate) connect_attempts: usize,
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) response_idle_timeout: Option<Duration>,
    pub(crate) outbound_policy: OutboundPolicy,
    pub(crate) strict: bool,
    pub(crate) bind: Option<IpAddr>,
    pub(crate) hbone_port: Option<u16>,
    pub(crate) forward_unlistened: bool,
    pub(crate) drain_notice: Duration,
    pub(crate) listener_queue: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_plaintext_connections: Option<usize>,
    pub(crate) max_node_connections: usize,
    pub(crate) admission: AdmissionLimits,
    pub(crate) close_expired: bool,
    pub(crate) header_timeout: Duration,
    pub(crate) http_idle_timeout: Duration,
    pub(crate) metrics: MetricsSettings,
    pub(crate) idle_connections_per_endpoint: usize,
    pub(crate) max_idle_connections: usize,
    pub(crate) replay_buffer: usize,
    pub(crate) max_lookups: usize,
    pub(crate) lookup_cache: usize,
    pub(crate) lookup_ttl: Duration,
    pub(crate) network: String,
    pub(crate) cluster_domain: String,
    pub(crate) root_namespace: String,
    /// Said by nobody unless set; then `cluster.local`.
    pub(crate) trust_domain: Option<String>,
    pub(crate) trust_domain_of: identity::TrustDomain,
    pub(crate) trust_domain_aliases: Vec<String>,
    pub(crate) hbone: HboneConfig,
    pub(crate) transport: Option<Transport>,
    pub(crate) control_runtime: Option<tokio::runtime::Handle>,
    pub(crate) provider: Option<mesh_hbone::tls::Provider>,
    pub(crate) wall_clock: WallClock,
    pub(crate) rng_seed: Option<u64>,
    /// What the workload's record is expected to be, where that is known, for who waits for it.
    pub(crate) record_is: Option<String>,
    #[cfg(feature = "istiod")]
    pub(crate) readiness_probe: Option<crate::health::Probe>,
    #[cfg(feature = "istiod")]
    pub(crate) registering: Option<crate::bootstrap::Registering>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            // A cold control plane and a cold CA together answer well within this.
            start_timeout: Duration::from_secs(30),
            policy_wait: Duration::from_secs(5),
            connect_attempts: 3,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Some(Duration::from_secs(30)),
            // Envoy's for an idle stream.
            response_idle_timeout: Some(Duration::from_secs(300)),
            outbound_policy: OutboundPolicy::AllowAny,
            strict: false,
            bind: None,
            hbone_port: None,
            forward_unlistened: false,
            // A caller in the same country has heard of it by then.
            drain_notice: Duration::from_millis(500),
            listener_queue: 1024,
            max_connections: 10_000,
            max_plaintext_connections: None,
            max_node_connections: 50_000,
            admission: AdmissionLimits::default(),
            close_expired: false,
            header_timeout: Duration::from_secs(30),
            // Less than servers wait for a next request: ours 30 s, most others 60 s and more.
            http_idle_timeout: Duration::from_secs(25),
            metrics: MetricsSettings::default(),
            idle_connections_per_endpoint: 64,
            max_idle_connections: 1024,
            replay_buffer: 64 << 10,
            max_lookups: 32,
            lookup_cache: 1024,
            lookup_ttl: Duration::from_secs(5),
            network: String::new(),
            cluster_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            trust_domain: None,
            trust_domain_of: identity::TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            hbone: HboneConfig::default(),
            transport: None,
            control_runtime: None,
            provider: None,
            wall_clock: WallClock::default(),
            rng_seed: None,
            record_is: None,
            #[cfg(feature = "istiod")]
            readiness_probe: None,
            #[cfg(feature = "istiod")]
            registering: None,
        }
    }
}

impl Settings {
    pub(crate) fn trust_domain(&self) -> &str {
        self.trust_domain.as_deref().unwrap_or("cluster.local")
    }

    /// Whether a tunnel to this port, on which nothing listens through the mesh, is forwarded to the host.
    pub(crate) fn forwards_to(&self, port: u16, tunnels: u16) -> bool {
        self.forward_unlistened && port != tunnels && !PROXY_PORTS.contains(&port)
    }

    pub(crate) fn plaintext_limit(&self) -> usize {
        let half = self.max_connections.div_ceil(2);
        self.max_plaintext_connections.unwrap_or(half)
    }

    pub(crate) fn tls_options(&self) -> mesh_hbone::tls::Options {
        let clock = self.wall_clock.clone();
        mesh_hbone::tls::Options::default()
            .trust_domain_aliases(self.trust_domain_aliases.iter().map(String::as_str))
            .clock(move || clock.now())
    }

    /// What manifests do not say of the mesh itself.
    #[cfg(feature = "file")]
    pub(crate) fn file_settings(&self) -> mesh_xds::file::Settings {
        mesh_xds::file::Settings::new()
            .with_trust_domain(self.trust_domain())
            .with_trust_domain_aliases(
                self.trust_domain_aliases
                    .iter()
                    .map(|alias| alias.as_str().into())
                    .collect(),
            )
            .with_root_namespace(self.root_namespace.as_str())
            .with_cluster_domain(self.cluster_domain.as_str())
            .with_network(self.network.as_str())
    }
}

/// The time of day, as a function so that tests can own it.
#[derive(Clone)]
pub(crate) struct WallClock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl WallClock {
    pub(crate) fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(crate) fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl Default for WallClock {
    fn default() -> Self {
        Self::new(SystemTime::now)
    }
}

impl std::fmt::Debug for WallClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WallClock")
    }
}

/// For how long a certificate is valid yet; `None` when it is over. TLS compares whole seconds, as certificates have them
/// (RFC 5280 section 4.1.2.5): all of the last one counts. Who judged otherwise would take no connection that TLS takes.
pub(crate) fn valid_for(not_after: SystemTime, now: SystemTime) -> Option<Duration> {
    let end = not_after.checked_add(Duration::from_secs(1))?;
    let left = end.duration_since(now).ok()?;
    (!left.is_zero()).then_some(left)
}

/// Whether a certificate is valid no more.
pub(crate) fn has_expired(not_after: SystemTime, now: SystemTime) -> bool {
    valid_for(not_after, now).is_none()
}

/// When a wait that begins now ends; one that is too long to be said, in thirty years.
pub(crate) fn deadline(wait: Duration) -> Instant {
    const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(wait).unwrap_or_else(|| now + LONG)
}
