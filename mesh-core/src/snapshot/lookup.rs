//! Finding workloads and services.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::model::ServiceName;

use super::index::full_name;
use super::record::{ServiceRecord, WorkloadRecord};
use super::{Snapshot, Tables};

/// How many names [`Snapshot::names_near`] gives at most.
const NEAR_NAMES: usize = 3;

impl Tables {
    pub(super) fn workload(&self, uid: &str) -> Option<&Arc<WorkloadRecord>> {
        self.workloads.find(|workload| (*workload.uid).cmp(uid))
    }

    pub(super) fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceRecord>> {
        self.services.get(name)?.record.as_ref()
    }
}

impl Snapshot {
    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<WorkloadRecord>> {
        self.tables.workload(uid)
    }

    /// The workload with this name in this namespace; of several, a Pod first, then one that takes tunnels.
    pub fn workload_named(&self, namespace: &str, name: &str) -> Option<&Arc<WorkloadRecord>> {
        let sought = (namespace, name);
        let names = &self.tables.workload_names;
        names
            .first_from(|workload| full_name(workload) < sought)
            .filter(|workload| full_name(workload) == sought)
    }

    /// All workloads with this name in this namespace, the one to prefer first.
    pub fn workloads_named(
        &self,
        namespace: &str,
        name: &str,
    ) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let names = &self.tables.workload_names;
        let from = names.iter_from(|workload| full_name(workload) < (namespace, name));
        from.take_while(move |workload| full_name(workload) == (namespace, name))
    }

    /// The workload that has this address in this network; of several, a Pod first, then one that
    /// takes tunnels. Workloads in their host's network have no address of their own.
    pub fn workload_at(&self, network: &str, ip: IpAddr) -> Option<&Arc<WorkloadRecord>> {
        let addresses = &self.tables.workload_addresses;
        addresses.get(network, ip.to_canonical())
    }

    /// The workload that is found by this DNS name.
    pub fn workload_with_hostname(&self, hostname: &str) -> Option<&Arc<WorkloadRecord>> {
        let workloads = self.tables.workload_hostnames.get(hostname)?;
        workloads.first()
    }

    /// Names in this namespace that are like a name that is not there, nearest first: for error messages.
    /// Looks at every name of the namespace.
    pub fn names_near(&self, namespace: &str, name: &str) -> Vec<Arc<str>> {
        let names = &self.tables.workload_names;
        let names = names
            .iter_from(|workload| &**workload.namespace() < namespace)
            .take_while(|workload| &**workload.namespace() == namespace)
            .map(|workload| workload.name());
        let mut near: Vec<_> = names
            .filter_map(|other| {
                let distance = distance(name, other);
                let related = distance * 2 <= name.len().max(other.len());
                (related || other.starts_with(name)).then_some((distance, other))
            })
            .collect();
        near.sort();
        near.dedup();
        near.truncate(NEAR_NAMES);
        near.into_iter().map(|(_, name)| name.into()).collect()
    }

    /// Workloads with this name in other namespaces, at most three: `<namespace>/<name>`.
    pub(crate) fn namesakes(&self, name: &str) -> Vec<Arc<str>> {
        let all = self.tables.workload_names.iter_from(|_| false);
        let namesakes = all.filter(|workload| workload.name() == name);
        let mut names: Vec<Arc<str>> = Vec::new();
        for namesake in namesakes {
            let named: Arc<str> = format!("{}/{name}", namesake.namespace()).into();
            if names.last() != Some(&named) {
                names.push(named);
            }
            if names.len() == NEAR_NAMES {
                break;
            }
        }
        names
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<ServiceRecord>> {
        self.tables.service(name)
    }

    /// The service that a client in `namespace` means by this hostname as it is: its own namespace's,
    /// then the one that owns the name, then the first by namespace. Services that it may not see do not count.
    pub fn service_with_hostname(
        &self,
        hostname: &str,
        namespace: &str,
    ) -> Option<&Arc<ServiceRecord>> {
        self.tables.service_hostnames.get(hostname)?.best(namespace)
    }

    /// The service that a client in `namespace` means by this address: one that has just this address
    /// before one that has a range; of ranges, its own namespace's, then the longest prefix, then the owner's.
    pub fn service_at(
        &self,
        network: &str,
        ip: IpAddr,
        namespace: &str,
    ) -> Option<&Arc<ServiceRecord>> {
        let ip = ip.to_canonical();
        let exact = self.tables.virtual_addresses.get(network, &ip);
        exact
            .and_then(|services| services.best(namespace))
            .or_else(|| self.tables.virtual_ranges.get(network)?.best(ip, namespace))
    }

    /// The service that a client in `namespace` means by a name as people write it: short
    /// (`ratings`, `ratings.default`, `ratings.default.svc`), whole, or one that a wildcard covers.
    pub fn service_by_name(
        &self,
        name: &str,
        namespace: &str,
        cluster_domain: &str,
    ) -> Option<&Arc<ServiceRecord>> {
        expand(name, namespace, cluster_domain, |alias| {
            self.service_by_alias(alias, namespace)
        })
    }

    /// The workload that is found by a name as people write it: see [`service_by_name`](Self::service_by_name).
    pub fn workload_by_name(
        &self,
        name: &str,
        namespace: &str,
        cluster_domain: &str,
    ) -> Option<&Arc<WorkloadRecord>> {
        if self.tables.workload_hostnames.is_empty() {
            return None;
        }
        expand(name, namespace, cluster_domain, |alias| {
            self.workload_with_hostname(alias)
        })
    }

    /// All workloads, by uid.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        self.tables.workloads.iter()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceRecord>> {
        let entries = self.tables.services.values();
        entries.filter_map(|entry| entry.record.as_ref())
    }

    /// The workloads that are endpoints of a service, whether or not the service is known yet. They
    /// are sorted by what the service prefers, then by uid.
    pub fn endpoints(&self, service: &ServiceName) -> impl Iterator<Item = &Arc<WorkloadRecord>> {
        let entry = self.tables.services.get(service);
        let endpoints = entry.into_iter().flat_map(|entry| entry.endpoints.iter());
        endpoints.map(|endpoint| &endpoint.workload)
    }

    /// The names of services that have endpoints but are not known yet.
    pub fn staged_services(&self) -> impl Iterator<Item = &ServiceName> {
        let entries = self.tables.services.iter();
        entries.filter_map(|(name, entry)| entry.record.is_none().then_some(name))
    }

    /// How many workloads there are.
    pub fn workload_count(&self) -> usize {
        self.tables.workloads.len()
    }

    /// How many endpoints a service has, those that cannot be used included.
    pub fn endpoint_count(&self, service: &ServiceName) -> usize {
        let entry = self.tables.services.get(service);
        entry.map_or(0, |entry| entry.endpoints.len())
    }

    /// Exact, then wildcards of ever shorter suffix.
    fn service_by_alias(&self, alias: &str, namespace: &str) -> Option<&Arc<ServiceRecord>> {
        if let Some(service) = self.service_with_hostname(alias, namespace) {
            return Some(service);
        }
        let mut wildcard = String::new();
        let mut rest = alias;
        while let Some((_, suffix)) = rest.split_once('.') {
            wildcard.clear();
            wildcard.push_str("*.");
            wildcard.push_str(suffix);
            if let Some(service) = self.service_with_hostname(&wildcard, namespace) {
                return Some(service);
            }
            rest = suffix;
        }
        None
    }
}

/// The services, as `<namespace>/<hostname>`, that a name as people write it can stand for; the namespace
/// of a host that is not of Kubernetes' form is the client's own.
pub(crate) fn service_names(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let suffix = format!(".svc.{domain}");
    let _: Option<()> = expand(name, namespace, domain, |alias| {
        let own = alias.strip_suffix(&*suffix);
        let own = own.and_then(|own| own.split_once('.'));
        let of = own.map_or(namespace, |(_, of)| of);
        // A namespace has no dot, and a service's host has one.
        if alias.contains('.') && !of.contains('.') {
            let service = format!("{of}/{alias}");
            if !names.contains(&service) {
                names.push(service);
            }
        }
        None
    });
    names
}

/// Tries the names that a name can stand for, as a resolver in a pod of this namespace would
/// (ztunnel.md 7, name expansion); gives the first answer.
fn expand<T>(
    name: &str,
    namespace: &str,
    domain: &str,
    mut find: impl FnMut(&str) -> Option<T>,
) -> Option<T> {
    let name = name.strip_suffix('.').unwrap_or(name);
    // DNS names are compared without regard to case (RFC 4343); the mesh's are in lower case.
    let lower;
    let name = if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        lower = name.to_ascii_lowercase();
        &lower
    } else {
        name
    };
    if let Some(found) =
        find(name).or_else(|| expand_kubernetes(name, namespace, domain, &mut find))
    {
        return Some(found);
    }
    let searched = [
        format!(".{namespace}.svc.{domain}"),
        format!(".svc.{domain}"),
        format!(".{domain}"),
    ];
    searched.iter().find_map(|suffix| {
        let stripped = name.strip_suffix(suffix.as_str())?;
        find(stripped).or_else(|| expand_kubernetes(stripped, namespace, domain, &mut find))
    })
}

fn expand_kubernetes<T>(
    name: &str,
    namespace: &str,
    domain: &str,
    find: &mut impl FnMut(&str) -> Option<T>,
) -> Option<T> {
    let labels = name.split('.').count();
    let in_namespace = || format!("{name}.{namespace}.svc.{domain}");
    let in_services = || format!("{name}.svc.{domain}");
    let in_domain = || format!("{name}.{domain}");
    let service = name.ends_with(".svc");
    match labels {
        1 => find(&in_namespace()),
        2 => find(&in_services()).or_else(|| find(&in_namespace())),
        3 if service => find(&in_domain()).or_else(|| find(&in_services())),
        3 => find(&in_services()),
        4 if service => find(&in_domain()),
        _ => None,
    }
}

/// The edit distance: how many characters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
