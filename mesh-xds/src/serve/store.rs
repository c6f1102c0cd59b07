//! What there is to serve, by type, with a log of what changed when.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use mesh_authz::policy::PolicyName;

use crate::encode;
use crate::model::{
    AttachedPolicy, Batch, BatchReply, Rejection, ResourceName, Service, Update, Verdict, Workload,
};

/// Names of resources that are gone, by table; who has not heard of older ones has to connect anew.
const MAX_GONE: usize = 100_000;

/// A type of resources that the model fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Before addresses: a workload that lists a policy should not come before the policy.
    Authorization,
    Address,
}

/// All resources. The revision grows with every change.
#[derive(Debug, Default)]
pub(super) struct Store {
    revision: u64,
    addresses: Table,
    authorizations: Table,
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    /// Policies that are here and that nobody is sent.
    withheld: HashSet<PolicyName>,
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

    /// Applies a batch: removals, then updates. Returns what to answer, and with what.
    pub(super) fn apply(&mut self, batch: Batch) -> (BatchReply, Vec<Verdict>) {
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
            Update::Workload(workload) => self.set_workload(workload),
            Update::Service(service) => self.set_service(service),
            Update::Policy(policy) => self.set_policy(policy, relisted)?,
            // The ambient stream has no such thing.
            _ => {}
        }
        Ok(())
    }

    fn set_workload(&mut self, workload: &Arc<Workload>) {
        let name: Arc<str> = workload.uid().into();
        let value = encode::workload(workload, |policy| self.withheld.contains(policy));
        let network = workload.network();
        let addresses = workload.addresses().iter();
        let services = workload.services().iter();
        let resource = Resource {
            version: version(&value),
            value,
            aliases: addresses.map(|ip| format!("{network}/{ip}")).collect(),
            services: services.map(|one| one.service().to_string()).collect(),
            changed: 0,
        };
        self.workloads.insert(name.clone(), Arc::clone(workload));
        self.addresses.set(&mut self.revision, name, resource);
    }

    fn set_service(&mut self, service: &Service) {
        let value = encode::service(service);
        let addresses = service.addresses().iter();
        let resource = Resource {
            version: version(&value),
            value,
            aliases: addresses
                .filter(|one| one.ip().is_some())
                .map(ToString::to_string)
                .collect(),
            services: Vec::new(),
            changed: 0,
        };
        let name = service.name().to_string().into();
        self.addresses.set(&mut self.revision, name, resource);
    }

    fn set_policy(
        &mut self,
        policy: &AttachedPolicy,
        relisted: &mut HashSet<PolicyName>,
    ) -> Result<(), Rejection> {
        let name = policy.policy().name();
        let key: Arc<str> = name.to_string().into();
        let Some(value) = encode::policy(policy)? else {
            if self.withheld.insert(name.clone()) {
                relisted.insert(name.clone());
            }
            self.authorizations.remove(&mut self.revision, &key);
            return Ok(());
        };
        if self.withheld.remove(name) {
            relisted.insert(name.clone());
        }
        let resource = Resource {
            version: version(&value),
            value,
            aliases: Vec::new(),
            services: Vec::new(),
            changed: 0,
        };
        self.authorizations.set(&mut self.revision, key, resource);
        Ok(())
    }

    fn remove(&mut self, name: &ResourceName, relisted: &mut HashSet<PolicyName>) {
        match name {
            ResourceName::Workload(uid) => {
                self.workloads.remove(uid);
                self.addresses.remove(&mut self.revision, uid);
            }
            ResourceName::Service(name) => {
                self.addresses.remove(&mut self.revision, &name.to_string());
            }
            ResourceName::Policy(name) => {
                if self.withheld.remove(name) {
                    relisted.insert(name.clone());
                }
                self.authorizations
                    .remove(&mut self.revision, &name.to_string());
            }
            _ => {}
        }
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

/// The same text for the same bytes, also after a restart.
fn version(value: &Bytes) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    hasher.write(value);
    format!("{:016x}", hasher.finish()).into()
}

/// A resource as it is sent.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) version: Arc<str>,
    pub(super) value: Bytes,
    /// Other names by which it can be asked for: `<network>/<address>`.
    pub(super) aliases: Vec<String>,
    /// Of a workload: the names of the services that it is an endpoint of.
    services: Vec<String>,
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
            if old.version == resource.version && old.value == resource.value {
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
