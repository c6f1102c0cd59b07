//! Workloads of Pods and of endpoints that are no Pods.

use std::collections::HashMap;
use std::sync::Arc;

use mesh_authz::policy::PolicyName;

use super::waypoints::{Traffic, is_gateway};
use super::{Assembled, World};
use crate::manifest::core::{Pod, Service, TargetPort};
use crate::manifest::meta::{Labels, Meta};
use crate::model::{
    Health, Locality, Membership, NetworkMode, ObjectName, Port, TunnelProtocol, Workload,
    WorkloadType,
};

impl World<'_> {
    pub(super) fn make_pods(&self, made: &mut Assembled) {
        for (at, pod) in &self.pods {
            let meta = &pod.meta;
            if pod.finished {
                continue;
            }
            if pod.addresses.is_empty() {
                let message = format!(
                    "Pod {}/{} has no address in podIPs or podIP",
                    meta.namespace, meta.name
                );
                made.idle.push((*at, "status", message));
                continue;
            }
            made.resources.push((*at, self.pod(pod).into()));
        }
    }

    fn pod(&self, pod: &Pod) -> Workload {
        let meta = &pod.meta;
        let uid = format!(
            "{}//Pod/{}/{}",
            self.settings.cluster_id(),
            meta.namespace,
            meta.name
        );
        let (kind, controller) = controller(pod);
        let mut services: Vec<_> = self
            .service_selectors
            .choosing(&meta.namespace, &meta.labels)
            .into_iter()
            .map(|(_, service)| self.pod_membership(service, pod))
            .collect();
        for entry in self.entry_selectors.choosing(&meta.namespace, &meta.labels) {
            services.extend(self.entry_memberships(entry, None));
        }
        let network = meta.labels.get("topology.istio.io/network");
        let workload = Workload::new(uid, Arc::clone(&meta.namespace), Arc::clone(&meta.name))
            .with_addresses(pod.addresses.clone())
            .with_network(Arc::clone(network.unwrap_or(&self.network)))
            .with_network_mode(if pod.host_network {
                NetworkMode::HostNetwork
            } else {
                NetworkMode::Standard
            })
            .with_service_account(Arc::clone(&pod.service_account))
            .with_node(Arc::clone(&pod.node))
            .with_locality(self.pod_locality(pod))
            .with_workload_type(kind)
            .with_workload_name(Arc::clone(&controller))
            .with_health(health(pod.ready))
            .with_services(sorted(services));
        let workload = self.named(workload, &meta.labels, &controller);
        self.protected(self.tunnelled(workload, meta, self.enrolled(pod)), meta)
    }

    fn pod_membership(&self, service: &Service, pod: &Pod) -> Membership {
        let ports = service.ports.iter().filter_map(|port| {
            let target = match &port.target {
                TargetPort::Number(target) => *target,
                TargetPort::Name(name) => pod.ports.iter().find(|(found, _)| found == name)?.1,
            };
            Some(Port::new(port.port).with_target_port(target))
        });
        Membership::new(self.service_name(service)).with_ports(ports.collect())
    }

    fn pod_locality(&self, pod: &Pod) -> Locality {
        // Istio's label, with dots because a label has no slashes.
        if let Some(own) = pod.meta.label("istio-locality") {
            let mut parts = own.splitn(3, '.');
            let mut next = || parts.next().unwrap_or_default();
            return Locality::new(next(), next(), next());
        }
        self.nodes.get(&*pod.node).cloned().unwrap_or_default()
    }

    /// Whether labels put the Pod into the mesh, by the rules of istio-cni.
    fn enrolled(&self, pod: &Pod) -> bool {
        let meta = &pod.meta;
        const MODE: &str = "istio.io/dataplane-mode";
        let mode = meta
            .label(MODE)
            .or_else(|| self.namespace_label(&meta.namespace, MODE));
        mode == Some("ambient")
            && !pod.host_network
            && !is_gateway(meta)
            && meta.annotation("sidecar.istio.io/status").is_none()
    }

    /// How the workload takes connections.
    pub(super) fn tunnelled(&self, workload: Workload, meta: &Meta, enrolled: bool) -> Workload {
        let native =
            meta.label("networking.istio.io/tunnel") == Some("http") || meta.hbone_port.is_some();
        let redirected = meta.annotation("ambient.istio.io/redirection") == Some("enabled");
        let workload = workload.with_native_tunnel(native);
        let workload = match meta.hbone_port {
            Some(port) => workload.with_hbone_port(port),
            None => workload,
        };
        if native || redirected || enrolled {
            workload.with_protocol(TunnelProtocol::Hbone)
        } else {
            workload
        }
    }

    /// What is the mesh's own, and the names that metrics use.
    ///
    /// <https://istio.io/latest/docs/ops/deployment/application-requirements/>
    pub(super) fn named(&self, workload: Workload, labels: &Labels, name: &Arc<str>) -> Workload {
        let first = |keys: &[&str]| keys.iter().find_map(|key| labels.get(*key)).cloned();
        let canonical = first(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]);
        let revision = first(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]);
        workload
            .with_trust_domain(self.settings.trust_domain())
            .with_cluster_id(self.settings.cluster_id())
            .with_canonical_name(canonical.unwrap_or_else(|| Arc::clone(name)))
            .with_canonical_revision(revision.unwrap_or_else(|| "latest".into()))
    }

    /// The policies and the waypoint of the workload, and its gateway when it is on another network.
    pub(super) fn protected(&self, workload: Workload, meta: &Meta) -> Workload {
        let workload = self.bound(workload, &meta.namespace, &meta.labels);
        match self.waypoint(meta, Traffic::Workload) {
            Some(waypoint) => workload.with_waypoint(waypoint),
            None => workload,
        }
    }

    /// The policies of the workload, and its gateway when it is on another network.
    pub(super) fn bound(&self, workload: Workload, namespace: &str, labels: &Labels) -> Workload {
        let mut policies: Vec<_> = self
            .policy_selectors
            .choosing(namespace, labels)
            .into_iter()
            .map(|(_, meta)| PolicyName::new(Arc::clone(&meta.namespace), Arc::clone(&meta.name)))
            .collect();
        policies.sort();
        policies.extend(self.peer_modes.policy_of(
            namespace,
            labels,
            self.settings.root_namespace(),
        ));
        let mut requests: Vec<_> = self
            .request_selectors
            .choosing(namespace, labels)
            .into_iter()
            .map(|(_, meta)| ObjectName::new(Arc::clone(&meta.namespace), Arc::clone(&meta.name)))
            .collect();
        requests.sort();
        let gateway = (*workload.network() != *self.network)
            .then(|| self.network_gateways.get(workload.network()))
            .flatten();
        let workload = workload
            .with_authorization_policies(policies)
            .with_request_authentications(requests);
        match gateway {
            Some(gateway) => workload.with_network_gateway(gateway.clone()),
            None => workload,
        }
    }

    /// Endpoints that stand for no Pod become workloads of their own; those that do are left to the
    /// Pod, so that a stale slice keeps nothing alive.
    pub(super) fn make_slices(&self, made: &mut Assembled) {
        let services: HashMap<_, _> = self
            .services
            .iter()
            .map(|(_, service)| ((&*service.meta.namespace, &*service.meta.name), *service))
            .collect();
        for (at, slice) in &self.slices {
            let meta = &slice.meta;
            let Some(service) = services.get(&(&*meta.namespace, &*slice.service)) else {
                continue;
            };
            let ports = slice.ports.iter().filter_map(|(name, port)| {
                let service_port = service.port_by_name(name)?;
                Some(Port::new(service_port.port).with_target_port(*port))
            });
            let membership =
                Membership::new(self.service_name(service)).with_ports(ports.collect());
            for endpoint in &slice.endpoints {
                let uid = format!(
                    "{}/discovery.k8s.io/EndpointSlice/{}/{}/{}",
                    self.settings.cluster_id(),
                    meta.namespace,
                    meta.name,
                    endpoint.address
                );
                let locality = match self.nodes.get(&*endpoint.node) {
                    Some(locality) => locality.clone(),
                    None => Locality::new("", Arc::clone(&endpoint.zone), ""),
                };
                let workload =
                    Workload::new(uid, Arc::clone(&meta.namespace), Arc::clone(&meta.name))
                        .with_addresses(vec![endpoint.address])
                        .with_network(Arc::clone(&self.network))
                        .with_node(Arc::clone(&endpoint.node))
                        .with_locality(locality)
                        .with_workload_type(WorkloadType::Pod)
                        .with_workload_name(Arc::clone(&meta.name))
                        .with_health(health(endpoint.ready))
                        .with_services(vec![membership.clone()]);
                let workload = self.named(workload, &Labels::new(), &service.meta.name);
                let workload = self.bound(workload, &meta.namespace, &Labels::new());
                made.resources.push((*at, workload.into()));
            }
        }
    }
}

pub(super) fn health(ready: bool) -> Health {
    if ready {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

/// Sorted by name; of two memberships of one service, the first counts.
pub(super) fn sorted(mut services: Vec<Membership>) -> Vec<Membership> {
    services.sort_by(|a, b| a.service().cmp(b.service()));
    services.dedup_by(|later, first| later.service() == first.service());
    services
}

/// The kind and name of the controller that made the Pod, as Istio guesses it from names.
fn controller(pod: &Pod) -> (WorkloadType, Arc<str>) {
    let meta = &pod.meta;
    let itself = (WorkloadType::Pod, Arc::clone(&meta.name));
    // A Pod that was given its whole name was made by hand, whoever owns it now.
    let Some(owner) = meta.controller.as_ref().filter(|_| meta.generated_name) else {
        return itself;
    };
    match &*owner.kind {
        "ReplicaSet" => {
            let hash = meta.label("pod-template-hash").unwrap_or_default();
            let name = owner
                .name
                .strip_suffix(hash)
                .and_then(|name| name.strip_suffix('-'))
                .filter(|name| !hash.is_empty() && !name.is_empty());
            match name {
                Some(name) => (WorkloadType::Deployment, name.into()),
                None => itself,
            }
        }
        "Deployment" => (WorkloadType::Deployment, Arc::clone(&owner.name)),
        "Job" => {
            // A CronJob names its Jobs by the minute of the run, eight digits or more.
            let cron = owner.name.rsplit_once('-').filter(|(name, run)| {
                !name.is_empty() && run.len() >= 8 && run.bytes().all(|it| it.is_ascii_digit())
            });
            match cron {
                Some((name, _)) => (WorkloadType::CronJob, name.into()),
                None => (WorkloadType::Job, Arc::clone(&owner.name)),
            }
        }
        "CronJob" => (WorkloadType::CronJob, Arc::clone(&owner.name)),
        _ => itself,
    }
}
