//! The fields of the snapshot's records, by their names.

use std::collections::BTreeMap;
use std::fmt::Debug;

use mesh_core::snapshot::{ServiceRecord, WorkloadRecord};

/// What a resource says, field by field, as it is printed.
pub(crate) type Fields = BTreeMap<&'static str, String>;

macro_rules! fields {
    ($one:ident: $($field:ident),* $(,)?) => {
        BTreeMap::from([$((stringify!($field), text(&$one.$field()))),*])
    };
}

fn text(value: &impl Debug) -> String {
    format!("{value:?}")
}

/// All but the request authentications, of which the ambient stream has no word.
pub(crate) fn of_workload(one: &WorkloadRecord) -> Fields {
    fields!(one: uid, name, namespace, addresses, hostname, network, network_mode, protocol, hbone_port, identity,
        trust_domain, service_account, node, cluster_id, region, zone, subzone, canonical_name, canonical_revision,
        workload_type, workload_name, native_tunnel, application_tunnel, authorization_policies, health, capacity,
        waypoint, network_gateway, memberships)
}

pub(crate) fn of_service(one: &ServiceRecord) -> Fields {
    fields!(one: name, object_name, addresses, ports, subject_alt_names, waypoint, weighted_waypoints,
        routing_preference, load_balancing_mode, health_policy, ip_families, canonical, visibility)
}
