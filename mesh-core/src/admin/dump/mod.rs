//! `/config_dump`: the keys and shapes of istio/ztunnel's, so that `istioctl ztunnel-config` reads it.
//!
//! Keys that ztunnel does not have say what it has no word for; readers skip them.

mod certificate;
mod pem;
mod policy;
mod service;
mod settings;
mod state;
mod workload;

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_xds::model::{GatewayAddress, Health, ServiceName};
use serde::Serialize;

use crate::node::NodeInner;
use crate::snapshot::Snapshot;
use certificate::CertificateDump;
use settings::{SettingsDump, Version};
use state::StateDump;

/// All of it. Values that borrow from the snapshot are written and gone.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Dump {
    #[serde(serialize_with = "workload::all")]
    workloads: Arc<Snapshot>,
    #[serde(serialize_with = "service::all")]
    services: Arc<Snapshot>,
    #[serde(serialize_with = "policy::all")]
    policies: Arc<Snapshot>,
    #[serde(serialize_with = "service::staged")]
    staged_services: Arc<Snapshot>,
    certificates: Vec<CertificateDump>,
    /// By uid; by namespace and name of a workload that has no record.
    workload_state: BTreeMap<String, StateDump>,
    version: Version,
    config: SettingsDump,
    /// What sources of configuration refused. Not of ztunnel.
    problems: Vec<String>,
    /// What they passed over, most likely slips. Not of ztunnel.
    warnings: Vec<String>,
    /// What is waited for, with reasons. Not of ztunnel.
    pending: BTreeMap<String, String>,
    /// Since when and why the configuration is not kept current. Not of ztunnel.
    #[serde(skip_serializing_if = "Option::is_none")]
    stale: Option<StaleDump>,
    /// How many batches were applied. Not of ztunnel.
    snapshot_version: u64,
}

impl Dump {
    pub(super) fn of(node: &NodeInner) -> Self {
        let snapshot = node.snapshot.load_full();
        let mut certificates: Vec<_> = node
            .certificates()
            .into_iter()
            .map(|(identity, state)| {
                CertificateDump::new(&identity, &state, node.settings.wall_clock.now())
            })
            .collect();
        certificates.sort_by(|a, b| a.identity.cmp(&b.identity));
        let states = node.meshes();
        let states = states.iter().map(|mesh| StateDump::of(mesh, &snapshot));
        let readiness = node.gate.current();
        let pending = readiness.pending();
        Self {
            certificates,
            workload_state: states.collect(),
            version: Version::of(&node.settings),
            config: SettingsDump::of(&node.settings),
            problems: node.problems(),
            warnings: node.warnings(),
            pending: pending
                .map(|(name, why)| (name.to_owned(), why.to_owned()))
                .collect(),
            stale: node.staleness().map(|stale| StaleDump {
                since: certificate::rfc3339_of(stale.since),
                reason: stale.reason,
            }),
            snapshot_version: snapshot.version(),
            workloads: Arc::clone(&snapshot),
            services: Arc::clone(&snapshot),
            policies: Arc::clone(&snapshot),
            staged_services: snapshot,
        }
    }
}

#[derive(Serialize)]
struct StaleDump {
    since: String,
    reason: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GatewayDump {
    destination: String,
    hbone_mtls_port: u16,
}

impl GatewayDump {
    fn new(gateway: &GatewayAddress) -> Self {
        Self {
            destination: gateway.destination().to_string(),
            hbone_mtls_port: gateway.hbone_mtls_port(),
        }
    }
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        _ => "Unhealthy",
    }
}

/// Whether to leave a key out.
fn is_empty(text: &str) -> bool {
    text.is_empty()
}
