//! Workloads of WorkloadEntries and of the endpoints of ServiceEntries.

use std::sync::Arc;

use super::workloads::{health, sorted};
use super::{Assembled, World};
use crate::manifest::core::{Service, TargetPort};
use crate::manifest::entries::{EntrySpec, Resolution, ServiceEntry, WorkloadEntry};
use crate::manifest::meta::Meta;
use crate::model::{Membership, Port, ServiceName, Workload, WorkloadType};

impl World<'_> {
    pub(super) fn make_workload_entries(&self, made: &mut Assembled) {
        for (at, entry) in &self.workload_entries {
            made.resources
                .push((*at, self.workload_entry(entry).into()));
        }
    }

    fn workload_entry(&self, entry: &WorkloadEntry) -> Workload {
        let meta = &entry.meta;
        let uid = format!(
            "{}/networking.istio.io/WorkloadEntry/{}/{}",
            self.settings.cluster_id(),
            meta.namespace,
            meta.name
        );
        let mut services: Vec<_> = self
            .service_selectors
            .choosing(&meta.namespace, &meta.labels)
            .into_iter()
            .map(|(_, service)| self.entry_membership(service, &entry.spec))
            .collect();
        for chosen in self.entry_selectors.choosing(&meta.namespace, &meta.labels) {
            services.extend(self.entry_memberships(chosen, Some(&entry.spec)));
        }
        // What a group's host registered is one of the group's, as a Pod is of its controller.
        let group = meta.controller.as_ref();
        let group = group.filter(|owner| *owner.kind == *"WorkloadGroup");
        let name = group.map_or(&meta.name, |owner| &owner.name);
        let workload = Workload::new(uid, Arc::clone(&meta.namespace), Arc::clone(&meta.name))
            .with_workload_name(Arc::clone(name))
            .with_health(health(entry.healthy))
            .with_services(sorted(services));
        let workload = self.placed(
            workload,
            &entry.spec,
            meta.label("topology.istio.io/network"),
        );
        let workload = self.named(workload, &meta.labels, name);
        // A namespace's label is for its Pods: a host is in the mesh when its own entry says so.
        let enrolled = meta.label("istio.io/dataplane-mode") == Some("ambient");
        self.protected(self.tunnelled(workload, meta, enrolled), meta)
    }

    /// What an entry's `spec` says of place and identity.
    fn placed(&self, workload: Workload, spec: &EntrySpec, label: Option<&str>) -> Workload {
        let network = if !spec.network.is_empty() {
            Arc::clone(&spec.network)
        } else {
            label.map_or_else(|| Arc::clone(&self.network), Into::into)
        };
        let workload = workload
            .with_network(network)
            .with_service_account(Arc::clone(&spec.service_account))
            .with_locality(spec.locality.clone())
            .with_capacity(spec.weight)
            .with_workload_type(WorkloadType::Pod);
        match spec.ip() {
            Some(ip) => workload.with_addresses(vec![ip]),
            None => workload.with_hostname(Arc::clone(&spec.address)),
        }
    }

    fn entry_membership(&self, service: &Service, spec: &EntrySpec) -> Membership {
        let ports = service.ports.iter().filter_map(|port| {
            let target = match &port.target {
                TargetPort::Number(target) => spec.port(&port.name).unwrap_or(*target),
                TargetPort::Name(name) => spec.port(name).or_else(|| spec.port(&port.name))?,
            };
            Some(Port::new(port.port).with_target_port(target))
        });
        Membership::new(self.service_name(service)).with_ports(ports.collect())
    }

    /// A membership for each host; `spec` may have ports of its own.
    pub(super) fn entry_memberships(
        &self,
        entry: &ServiceEntry,
        spec: Option<&EntrySpec>,
    ) -> Vec<Membership> {
        let ports: Vec<_> = entry
            .ports
            .iter()
            .map(|port| {
                let own = spec.and_then(|spec| spec.port(&port.name));
                Port::new(port.number).with_target_port(own.unwrap_or(port.target))
            })
            .collect();
        let member = |host: &Arc<str>| {
            let name = ServiceName::new(Arc::clone(&entry.meta.namespace), Arc::clone(host));
            Membership::new(name).with_ports(ports.clone())
        };
        entry.hosts.iter().map(member).collect()
    }

    /// The endpoints that a ServiceEntry lists, or its hosts where DNS tells.
    pub(super) fn make_inline_endpoints(
        &self,
        at: usize,
        entry: &ServiceEntry,
        made: &mut Assembled,
    ) {
        if entry.resolution == Resolution::None {
            return;
        }
        for spec in &entry.endpoints {
            let services = self.entry_memberships(entry, Some(spec));
            let workload = self.inline_endpoint(&entry.meta, spec, services);
            made.resources.push((at, workload.into()));
        }
        if entry.resolution == Resolution::Dns
            && entry.endpoints.is_empty()
            && entry.selector.is_empty()
        {
            let services = self.entry_memberships(entry, None);
            for (host, service) in entry.hosts.iter().zip(services) {
                let spec = EntrySpec {
                    address: Arc::clone(host),
                    weight: 1,
                    service_account: "default".into(),
                    ..EntrySpec::default()
                };
                let workload = self.inline_endpoint(&entry.meta, &spec, vec![service]);
                made.resources.push((at, workload.into()));
            }
        }
    }

    fn inline_endpoint(
        &self,
        meta: &Meta,
        spec: &EntrySpec,
        services: Vec<Membership>,
    ) -> Workload {
        let uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            self.settings.cluster_id(),
            meta.namespace,
            meta.name,
            spec.address
        );
        let workload = Workload::new(uid, Arc::clone(&meta.namespace), Arc::clone(&meta.name))
            .with_workload_name(Arc::clone(&meta.name))
            .with_services(sorted(services));
        let workload = self.placed(workload, spec, None);
        let workload = self.named(workload, &spec.labels, &meta.name);
        let labelled = Meta {
            labels: spec.labels.clone(),
            ..Meta::default()
        };
        let workload = self.tunnelled(workload, &labelled, false);
        self.bound(workload, &meta.namespace, &spec.labels)
    }
}
