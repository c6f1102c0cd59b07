use std::time::Duration;

use serde::Serialize;

use crate::settings::{OutboundPolicy, Settings};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Version {
    version: &'static str,
    git_revision: &'static str,
    rust_version: &'static str,
    build_profile: &'static str,
    build_status: &'static str,
    istio_version: &'static str,
    crypto_provider: &'static str,
}

const UNKNOWN: &str = "unknown";

impl Version {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            git_revision: UNKNOWN,
            rust_version: UNKNOWN,
            build_profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            build_status: UNKNOWN,
            istio_version: UNKNOWN,
            crypto_provider: match settings.provider {
                Some(_) => "custom",
                None if cfg!(feature = "aws-lc-rs") => "aws-lc-rs",
                None => "ring",
            },
        }
    }
}

/// What the builder was told. Names are ztunnel's where it has the setting.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SettingsDump {
    network: String,
    cluster_domain: String,
    trust_domain: String,
    trust_domain_aliases: Vec<String>,
    root_namespace: String,
    outbound_policy: &'static str,
    strict: bool,
    forward_unlistened: bool,
    bind: Option<std::net::IpAddr>,
    hbone_port: Option<u16>,
    start_timeout: Time,
    policy_wait: Time,
    connect_timeout: Time,
    request_timeout: Option<Time>,
    connect_attempts: usize,
    listener_queue: usize,
    max_connections: usize,
    idle_connections_per_endpoint: usize,
}

/// As ztunnel writes its times.
#[derive(Serialize)]
struct Time {
    secs: u64,
    nanos: u32,
}

impl From<Duration> for Time {
    fn from(time: Duration) -> Self {
        Self {
            secs: time.as_secs(),
            nanos: time.subsec_nanos(),
        }
    }
}

impl SettingsDump {
    pub(super) fn of(settings: &Settings) -> Self {
        Self {
            network: settings.network.clone(),
            cluster_domain: settings.cluster_domain.clone(),
            trust_domain: settings.trust_domain().to_owned(),
            trust_domain_aliases: settings.trust_domain_aliases.clone(),
            root_namespace: settings.root_namespace.clone(),
            outbound_policy: match settings.outbound_policy {
                OutboundPolicy::AllowAny => "AllowAny",
                OutboundPolicy::RegistryOnly => "RegistryOnly",
            },
            strict: settings.strict,
            forward_unlistened: settings.forward_unlistened,
            bind: settings.bind,
            hbone_port: settings.hbone_port,
            start_timeout: settings.start_timeout.into(),
            policy_wait: settings.policy_wait.into(),
            connect_timeout: settings.connect_timeout.into(),
            request_timeout: settings.request_timeout.map(Time::from),
            connect_attempts: settings.connect_attempts,
            listener_queue: settings.listener_queue,
            max_connections: settings.max_connections,
            idle_connections_per_endpoint: settings.idle_connections_per_endpoint,
        }
    }
}
