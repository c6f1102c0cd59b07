//! What there is to serve, by type, with a log of what changed when.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use mesh_authz::Identity;
use mesh_authz::policy::{Action, Expr, Policy, PolicyName, Rule};

use super::outgoing::Encoded;
use super::status::Withheld;
use crate::encode;
use crate::model::{
    AttachedPolicy, Batch, BatchReply, InboundListener, NetworkAddress, NetworkMode, ObjectName,
    Rejection, ResourceName, Scope, Service, ServiceName, Update, Verdict, Workload,
};
use crate::proto::type_url;

/// Names of resources that are gone, by table; who has not heard of older ones has to connect anew.
const MAX_GONE: usize = 100_000;

/// A type of resources that the model fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Before addresses: a workload that lists a policy should not come before the policy.
    Authorization,
    Address,
}

/// Whose listeners a client may ask for.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) identity: Identity,
    /// Where it says that it is; empty, it does not say.
    pub(super) network: Arc<str>,
}

/// The workloads that have an address.
#[derive(Debug, Default)]
struct Occupants {
    uids: BTreeSet<Arc<str>>,
    /// When one of them came, left or became another one last.
    changed: u64,
}

/// All resources. The revision grows with every change.
#[derive(Debug, Default)]
pub(super) struct Store {
    revision: u64,
    /// Whether there has been a batch.
    filled: bool,
    addresses: Table,
    authorizations: Table,
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    by_ip: HashMap<IpAddr, Occupants>,
    services: HashMap<ServiceName, Arc<Service>>,
    /// With the network of the address.
    services_by_ip: HashMap<IpAddr, BTreeSet<(ServiceName, Arc<str>)>>,
    /// Every policy, whole.
    policies: HashMap<PolicyName, Arc<AttachedPolicy>>,
    /// Those of them that bind workloads which do not list them.
    unlisted: BTreeSet<PolicyName>,
    policies_changed: u64,
    /// Groups of hosts, by namespace and name.
    groups: BTreeSet<ObjectName>,
    /// Whether all hosts have had the time to come back.
    settled: bool,
    /// Policies that are here and that nobody is sent.
    withheld: BTreeMap<PolicyName, Withheld>,
}

impl Store {
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn table(&self, kind: Kind) -> &Table {
        match kind {
            Kind::Address => &self.addresses,
            Kind::Authorization => &self.authorizations,
        }
    }

    /// Policies that are here and that nobody is sent, by name.
    pub(super) fn withheld(&self) -> impl Iterator<Item = &Withheld> {
        self.withheld.values()
    }

    /// Whether it is known what there is. Until then a name that stands for nothing is none that is gone.
    pub(super) fn is_filled(&self) -> bool {
        self.filled
    }

    /// Applies a batch: removals, then updates. Returns what to answer, and with what.
    pub(super) fn apply(&mut self, batch: Batch) -> (BatchReply, Vec<Verdict>) {
        self.filled = true;
        let (updates, removed, reply) = batch.into_parts();
        let replaced: HashSet<ResourceName> = updates.iter().map(Update::name).collect();
        // Policies first: whether a workload's list names one depends on them.
        let mut relisted = HashSet::new();
        for name in removed.iter().filter(|name| !replaced.contains(name)) {
            self.remove(name, &mut relisted);
        }
        let mut verdicts: Vec<Option<Verdict>> = vec![None; updates.len()];
        let policies_first = |update: &Update| !matches!(update, Update::Policy(_));
        let mut order: Vec<_> = updates.iter().enumerate().collect();
        order.sort_by_key(|(_, update)| policies_first(update));
        for (at, update) in order {
            let name = update.name();
            verdicts[at] = Some(match self.update(update, &mut relisted) {
                Ok(()) => Verdict::accepted(name),
                Err(rejection) => Verdict::rejected(name, rejection),
            });
        }
        self.encode_again(&relisted);
        (reply, verdicts.into_iter().flatten().collect())
    }

    fn update(
        &mut self,
        update: &Update,
        relisted: &mut HashSet<PolicyName>,
    ) -> Result<(), Rejection> {
        match update {
            Update::Workload(workload) => self.set_workload(&Arc::new(workload.clone())),
            Update::Service(service) => self.set_service(service),
            Update::Policy(policy) => self.set_policy(policy, relisted)?,
            // The ambient stream has no such thing.
            _ => {}
        }
        Ok(())
    }

    fn set_workload(&mut self, workload: &Arc<Workload>) {
        let name: Arc<str> = workload.uid().into();
        let value = encode::workload(workload, |policy| self.withheld.contains_key(policy));
        let network = workload.network();
        let addresses = workload.addresses().iter();
        let aliases = addresses.map(|ip| format!("{network}/{ip}")).collect();
        let services = workload.services().iter();
        let resource = Resource {
            services: services.map(|one| one.service().to_string()).collect(),
            ..Resource::new(type_url::ADDRESS, &name, version(&value), &value, aliases)
        };
        let before = self.workloads.insert(name.clone(), Arc::clone(workload));
        if before.as_ref() != Some(workload) {
            // What it lists and nobody is sent changes its listener alone.
            self.revision += 1;
            if let Some(before) = before {
                self.unlink(&before);
            }
            for ip in workload.addresses() {
                let at = self.by_ip.entry(ip.to_canonical()).or_default();
                at.uids.insert(name.clone());
                at.changed = self.revision;
            }
        }
        self.addresses.set(&mut self.revision, name, resource);
    }

    fn set_service(&mut self, service: &Arc<Service>) {
        let value = encode::service(service);
        let addresses = service.addresses().iter();
        let aliases = addresses
            .filter(|one| one.ip().is_some())
            .map(ToString::to_string)
            .collect();
        let name: Arc<str> = service.name().to_string().into();
        let version = version(&value);
        let resource = Resource::new(type_url::ADDRESS, &name, version, &value, aliases);
        self.unlink_service(service.name());
        self.link_service(service);
        self.services
            .insert(service.name().clone(), Arc::clone(service));
        self.addresses.set(&mut self.revision, name, resource);
    }

    /// The revision is that of the change.
    fn unlink(&mut self, workload: &Workload) {
        for ip in workload.addresses() {
            if let Entry::Occupied(mut at) = self.by_ip.entry(ip.to_canonical()) {
                at.get_mut().uids.remove(workload.uid());
                at.get_mut().changed = self.revision;
                if at.get().uids.is_empty() {
                    at.remove();
                }
            }
        }
    }

    fn set_policy(
        &mut self,
        policy: &Arc<AttachedPolicy>,
        relisted: &mut HashSet<PolicyName>,
    ) -> Result<(), Rejection> {
        let name = policy.policy().name();
        let key: Arc<str> = name.to_string().into();
        let value = encode::policy(policy)?;
        let before = self.policies.insert(name.clone(), Arc::clone(policy));
        if before.is_none_or(|before| before != *policy) {
            self.revision += 1;
            self.policies_changed = self.revision;
        }
        match policy.scope() {
            Scope::Mesh | Scope::Namespace(_) => _ = self.unlisted.insert(name.clone()),
            _ => _ = self.unlisted.remove(name),
        }
        let Some(value) = value else {
            let withheld = withheld(policy);
            let before = self.withheld.insert(name.clone(), withheld.clone());
            if before.is_none() {
                relisted.insert(name.clone());
            }
            match before {
                Some(before) if before == withheld => {}
                _ if withheld.binds => tracing::warn!("{withheld}"),
                _ => tracing::debug!("{withheld}"),
            }
            self.authorizations.remove(&mut self.revision, &key);
            return Ok(());
        };
        if self.withheld.remove(name).is_some() {
            relisted.insert(name.clone());
        }
        // One that binds those who list it, which its version says for who comes back with it.
        let by_list = *policy.scope() == Scope::Workload;
        let version = match by_list {
            true => format!("{}{BY_LIST}", version(&value)).into(),
            false => version(&value),
        };
        let url = type_url::AUTHORIZATION;
        let resource = Resource {
            by_list,
            ..Resource::new(url, &key, version, &value, Vec::new())
        };
        self.authorizations.set(&mut self.revision, key, resource);
        Ok(())
    }

    fn remove(&mut self, name: &ResourceName, relisted: &mut HashSet<PolicyName>) {
        match name {
            ResourceName::Workload(uid) => {
                self.addresses.remove(&mut self.revision, uid);
                if let Some(before) = self.workloads.remove(uid) {
                    self.unlink(&before);
                }
            }
            ResourceName::Service(name) => {
                self.unlink_service(name);
                self.addresses.remove(&mut self.revision, &name.to_string());
            }
            ResourceName::Policy(name) => {
                if self.policies.remove(name).is_some() {
                    self.unlisted.remove(name);
                    self.revision += 1;
                    self.policies_changed = self.revision;
                }
                if self.withheld.remove(name).is_some() {
                    relisted.insert(name.clone());
                }
                self.authorizations
                    .remove(&mut self.revision, &name.to_string());
            }
            _ => {}
        }
    }

    pub(super) fn set_groups<'a>(&mut self, groups: impl Iterator<Item = &'a ObjectName>) {
        self.groups = groups.cloned().collect();
    }

    /// Whether hosts that registered with a server before may still come back.
    pub(super) fn is_waiting(&self) -> bool {
        !self.settled
    }

    /// What has not come back is gone.
    pub(super) fn settle(&mut self) {
        self.settled = true;
        self.revision += 1;
    }

    /// Whether a name that a client has is that of a host of one of the groups, which may come back.
    pub(super) fn may_return(&self, name: &str) -> bool {
        let Some((_, entry)) = name.split_once("/networking.istio.io/WorkloadEntry/") else {
            return false;
        };
        let of = |group: &ObjectName| {
            let rest = entry.strip_prefix(group.namespace());
            let rest = rest.and_then(|rest| rest.strip_prefix('/')?.strip_prefix(group.name()));
            rest.is_some_and(|rest| rest.starts_with('-'))
        };
        self.is_waiting() && self.groups.iter().any(of)
    }

    /// Whether an address that no workload has may be that of a host which is still to come back.
    pub(super) fn may_come(&self, ip: IpAddr) -> bool {
        self.is_waiting() && !self.groups.is_empty() && !self.by_ip.contains_key(&ip.to_canonical())
    }

    /// The workload, other than the entry of that name, or the service that has an address. Without a network
    /// it may be in any; addresses of nodes are for many.
    pub(super) fn occupant(&self, ip: IpAddr, network: &str, but: &ObjectName) -> Option<String> {
        let own = format!(
            "/networking.istio.io/WorkloadEntry/{}/{}",
            but.namespace(),
            but.name()
        );
        let ip = ip.to_canonical();
        let uids = self.by_ip.get(&ip).into_iter().flat_map(|at| &at.uids);
        let mut others = uids
            .filter(|uid| !uid.ends_with(&own))
            .filter_map(|uid| self.workloads.get(uid))
            .filter(|one| network.is_empty() || one.network() == network)
            .filter(|one| one.network_mode() != NetworkMode::HostNetwork);
        if let Some(one) = others.next() {
            return Some(format!("workload {}", one.uid()));
        }
        let services = self.services_by_ip.get(&ip)?;
        let mut services = services
            .iter()
            .filter(|(_, of)| network.is_empty() || **of == *network);
        services.next().map(|(name, _)| format!("service {name}"))
    }

    fn link_service(&mut self, service: &Service) {
        for address in service.addresses() {
            if let Some(ip) = address.ip() {
                let names = self.services_by_ip.entry(ip.to_canonical()).or_default();
                names.insert((service.name().clone(), address.network().into()));
            }
        }
    }

    fn unlink_service(&mut self, name: &ServiceName) {
        let Some(service) = self.services.remove(name) else {
            return;
        };
        for ip in service.addresses().iter().filter_map(NetworkAddress::ip) {
            let ip = ip.to_canonical();
            if let Some(names) = self.services_by_ip.get_mut(&ip) {
                names.retain(|(other, _)| other != name);
                if names.is_empty() {
                    self.services_by_ip.remove(&ip);
                }
            }
        }
    }

    /// The addresses of a workload, if the name is one's.
    pub(super) fn addresses_of(&self, uid: &str) -> impl Iterator<Item = IpAddr> {
        let workload = self.workloads.get(uid);
        let addresses = workload.into_iter().flat_map(|one| one.addresses());
        addresses.copied()
    }

    /// Whether the listener of an address may have become another one since a revision.
    pub(super) fn listener_changed(&self, ip: IpAddr, since: u64) -> bool {
        let at = self.by_ip.get(&ip.to_canonical());
        // Without a workload there is nothing to make.
        at.is_none_or(|at| self.policies_changed.max(at.changed) > since)
    }

    /// The inbound listener of a name, if it is that of a port that some service has on a workload which
    /// runs as `owner` and may be in its network.
    pub(super) fn listener(&self, name: &str, owner: &Owner) -> Option<Bytes> {
        let Owner { identity, network } = owner;
        let address = InboundListener::address_in(name)?;
        let uids = self.by_ip.get(&address.ip())?.uids.iter();
        let is_port = |workload: &Workload| {
            let ports = workload.services().iter().flat_map(|one| one.ports());
            let mut ports = ports.map(|port| port.target_port().unwrap_or(port.service_port()));
            ports.any(|port| port == address.port())
        };
        let workloads = uids.filter_map(|uid| self.workloads.get(uid));
        let own = workloads.filter(|one| {
            one.namespace() == identity.namespace()
                && one.service_account() == identity.service_account()
                && (network.is_empty() || one.network().is_empty() || *one.network() == **network)
                && is_port(one)
        });
        // An address can be somebody's in each network.
        let workload = own.max_by_key(|one| *one.network() == **network)?;
        let policies = self.policies_of(workload);
        let policies: Vec<_> = policies.iter().map(|policy| &**policy).collect();
        Some(encode::listener(name, address, &policies))
    }

    /// What binds a workload's requests, by name: what it lists, and what binds all of its namespace or mesh.
    fn policies_of(&self, workload: &Workload) -> Vec<Arc<Policy>> {
        let unlisted = self.unlisted.iter().filter(|name| {
            let scope = self.policies.get(*name).map(|policy| policy.scope());
            match scope {
                Some(Scope::Namespace(bound)) => **bound == *workload.namespace(),
                scope => scope == Some(&Scope::Mesh),
            }
        });
        let listed = workload.authorization_policies().iter();
        // Those of PeerAuthentication are about connections, and stay on the ambient stream.
        let names: BTreeSet<_> = listed
            .chain(unlisted)
            .filter(|name| !InboundListener::keeps(name))
            .collect();
        let policy = |name: &PolicyName| match self.policies.get(name) {
            Some(policy) => Arc::clone(policy.policy()),
            // Nobody knows what it would refuse.
            None => {
                let everything = vec![Rule::new(Expr::TRUE)];
                Arc::new(Policy::new(name.clone(), Action::Deny, everything))
            }
        };
        names.into_iter().map(policy).collect()
    }

    /// Workloads that list a policy which is now withheld, or is no more.
    fn encode_again(&mut self, relisted: &HashSet<PolicyName>) {
        if relisted.is_empty() {
            return;
        }
        let lists = |workload: &Workload| {
            let mut policies = workload.authorization_policies().iter();
            policies.any(|name| relisted.contains(name))
        };
        let workloads = self.workloads.values().filter(|one| lists(one));
        let workloads: Vec<_> = workloads.cloned().collect();
        for workload in workloads {
            self.set_workload(&workload);
        }
    }
}

fn withheld(policy: &AttachedPolicy) -> Withheld {
    let (reason, binds) = match policy.scope() {
        Scope::Targets(_) => (
            "waypoints enforce what has targetRefs, and none is configured here",
            true,
        ),
        _ => ("an AUDIT decides nothing", false),
    };
    Withheld {
        policy: policy.policy().name().clone(),
        reason,
        binds,
    }
}

/// The same text for the same bytes, also after a restart.
pub(super) fn version(value: &Bytes) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    format!("{:016x}", hasher.finish()).into()
}

/// What the version of a policy ends with that binds nobody by itself.
const BY_LIST: &str = "-by-list";

/// Whether the policy of a version that a client says it has binds nobody by itself. Those of other servers
/// do not say, and may.
pub(super) fn is_by_list(version: &str) -> bool {
    version.ends_with(BY_LIST)
}

/// A resource as it is sent.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) version: Arc<str>,
    pub(super) encoded: Arc<Encoded>,
    /// Other names by which it can be asked for: `<network>/<address>`.
    pub(super) aliases: Vec<String>,
    /// Of a workload: the names of the services that it is an endpoint of.
    services: Vec<String>,
    /// Of a policy: whether it binds who lists it alone.
    pub(super) by_list: bool,
    changed: u64,
}

/// The resources of one type.
#[derive(Debug, Default)]
pub(super) struct Table {
    resources: BTreeMap<Arc<str>, Resource>,
    /// When each name changed last, also of those that are gone.
    log: BTreeMap<u64, Arc<str>>,
    gone: HashMap<Arc<str>, u64>,
    /// Up to here the log has forgotten what is gone.
    forgotten: u64,
    by_alias: HashMap<String, BTreeSet<Arc<str>>>,
    endpoints: HashMap<String, BTreeSet<Arc<str>>>,
}

impl Table {
    pub(super) fn get(&self, name: &str) -> Option<(&Arc<str>, &Resource)> {
        self.resources.get_key_value(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Resource)> {
        self.resources.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.resources.len()
    }

    /// The names that changed after a revision, in the order of their changes. `None` if some that are
    /// gone since are forgotten.
    pub(super) fn changed_after(&self, revision: u64) -> Option<impl Iterator<Item = &Arc<str>>> {
        let range = (Bound::Excluded(revision), Bound::Unbounded);
        (revision >= self.forgotten).then(|| self.log.range(range).map(|(_, name)| name))
    }

    /// Whether so much may have changed after a revision that all resources, and those that are gone, are sooner
    /// looked at than the log.
    pub(super) fn is_sooner_swept(&self, since: u64, now: u64) -> bool {
        let all = self.resources.len() + self.gone.len();
        now.saturating_sub(since) > all as u64 / 4
    }

    /// The resources that changed after a revision, by name.
    pub(super) fn sweep(&self, since: u64) -> impl Iterator<Item = &Resource> {
        let all = self.resources.values();
        all.filter(move |one| one.changed > since)
    }

    /// The names of those that are gone since a revision.
    pub(super) fn gone_after(&self, revision: u64) -> impl Iterator<Item = &Arc<str>> {
        let gone = self.gone.iter().filter(move |(_, at)| **at > revision);
        gone.map(|(name, _)| name)
    }

    /// What a name or an alias stands for, services with their workloads. Empty if there is nothing.
    pub(super) fn resolve(&self, name: &str) -> BTreeSet<Arc<str>> {
        let mut found = BTreeSet::new();
        found.extend(self.get(name).map(|(name, _)| Arc::clone(name)));
        found.extend(self.by_alias.get(name).into_iter().flatten().cloned());
        let endpoints = found.iter().filter_map(|name| self.endpoints.get(&**name));
        let endpoints: Vec<_> = endpoints.flatten().cloned().collect();
        found.extend(endpoints);
        found
    }

    /// Whether a name or alias stands for something.
    pub(super) fn is_known(&self, name: &str) -> bool {
        self.resources.contains_key(name) || self.by_alias.contains_key(name)
    }

    /// The workloads of a service.
    pub(super) fn endpoints(&self, service: &str) -> impl Iterator<Item = &Arc<str>> {
        self.endpoints.get(service).into_iter().flatten()
    }

    fn set(&mut self, revision: &mut u64, name: Arc<str>, mut resource: Resource) {
        if let Some(old) = self.resources.get(&name) {
            if old.encoded == resource.encoded {
                return;
            }
            self.log.remove(&old.changed);
            self.unlink(&name);
        }
        if let Some(old) = self.gone.remove(&name) {
            self.log.remove(&old);
        }
        *revision += 1;
        resource.changed = *revision;
        self.log.insert(*revision, Arc::clone(&name));
        for alias in &resource.aliases {
            link(&mut self.by_alias, alias, &name);
        }
        for service in &resource.services {
            link(&mut self.endpoints, service, &name);
        }
        self.resources.insert(name, resource);
    }

    fn remove(&mut self, revision: &mut u64, name: &str) {
        let Some((key, _)) = self.resources.get_key_value(name) else {
            return;
        };
        let key = Arc::clone(key);
        self.unlink(&key);
        if let Some(old) = self.resources.remove(&key) {
            self.log.remove(&old.changed);
        }
        *revision += 1;
        self.log.insert(*revision, Arc::clone(&key));
        self.gone.insert(key, *revision);
        if self.gone.len() > MAX_GONE {
            self.forget();
        }
    }

    /// Forgets the older half of what is gone.
    fn forget(&mut self) {
        let mut times: Vec<u64> = self.gone.values().copied().collect();
        times.sort_unstable();
        let last = times[times.len() / 2];
        self.gone.retain(|_, time| *time > last);
        for time in times.into_iter().filter(|time| *time <= last) {
            self.log.remove(&time);
        }
        self.forgotten = last;
    }

    fn unlink(&mut self, name: &Arc<str>) {
        let Some(old) = self.resources.get(name) else {
            return;
        };
        for alias in &old.aliases {
            cut(&mut self.by_alias, alias, name);
        }
        for service in &old.services {
            cut(&mut self.endpoints, service, name);
        }
    }
}

impl Resource {
    fn new(url: &str, name: &str, version: Arc<str>, value: &[u8], aliases: Vec<String>) -> Self {
        Self {
            encoded: Arc::new(Encoded::new(url, name, &version, value, &aliases)),
            version,
            aliases,
            services: Vec::new(),
            by_list: false,
            changed: 0,
        }
    }

    /// The names of the services that it is an endpoint of.
    pub(super) fn services(&self) -> &[String] {
        &self.services
    }
}

type Index = HashMap<String, BTreeSet<Arc<str>>>;

fn link(index: &mut Index, key: &str, name: &Arc<str>) {
    index
        .entry(key.to_owned())
        .or_default()
        .insert(Arc::clone(name));
}

fn cut(index: &mut Index, key: &str, name: &Arc<str>) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
