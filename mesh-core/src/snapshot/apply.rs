//! From one snapshot to the next.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_xds::model::{
    Batch, NetworkMode, Rejection, ResourceName, Service, ServiceName, Update, Verdict, Workload,
    WorkloadPlace, WorkloadProfile,
};

use super::draft::verdicts;
use super::endpoints::{Endpoint, Shape};
use super::index::{CidrTable, Ledger, Made, Uses, insert_into, remove_from};
use super::late::Late;
use super::record::{Addresses, Place, Profile, Rare, ServiceRecord, WorkloadRecord};
use super::{ServiceTable, Snapshot, Tables};

/// What applying a batch gave.
#[derive(Debug)]
#[non_exhaustive]
pub struct Applied {
    /// The mesh with the batch in it.
    pub snapshot: Snapshot,
    /// One verdict per updated resource, in the batch's order.
    pub verdicts: Vec<Verdict>,
    /// What is different.
    pub changes: Changes,
}

/// Which resources are different after a batch: added, replaced by something unequal, or removed.
///
/// A service counts as changed when its own record did, not when an endpoint did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    workloads: Vec<Arc<str>>,
    services: Vec<ServiceName>,
    policies: Vec<ResourceName>,
    attachments: bool,
}

impl Changes {
    /// The uids of workloads.
    pub fn workloads(&self) -> &[Arc<str>] {
        &self.workloads
    }

    /// The services.
    pub fn services(&self) -> &[ServiceName] {
        &self.services
    }

    /// The policies, request authentications and inbound listeners.
    pub fn policies(&self) -> &[ResourceName] {
        &self.policies
    }

    /// Whether some workload may have other policies than before, so that live connections are to
    /// be judged again where [`Snapshot::policies`] gives another set.
    pub fn may_change_policies(&self) -> bool {
        self.attachments || !self.workloads.is_empty()
    }

    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty() && self.services.is_empty() && self.policies.is_empty()
    }

    pub(super) fn policy(&mut self, name: ResourceName) {
        self.policies.push(name);
        self.attachments = true;
    }

    pub(super) fn attachments(&mut self) {
        self.attachments = true;
    }
}

impl Snapshot {
    /// Makes the snapshot that has the batch in it: removals first, then updates.
    ///
    /// A resource that is wrong is rejected alone, with a reason; its last good version stays and
    /// the rest applies. An update whose name is also removed replaces. Costs O(log n) per changed
    /// record; a service whose routing preference, health policy, IP families or unnamed target
    /// ports change sorts its endpoints again.
    pub fn apply(&self, batch: &Batch) -> Applied {
        let mut draft = self.draft();
        let mut changes = Changes::default();
        let rejected = draft.put(batch, &mut changes);
        Applied {
            snapshot: draft.finish(),
            verdicts: verdicts(batch, rejected),
            changes,
        }
    }
}

/// What the workloads of a batch share.
#[derive(Default)]
pub(super) struct Sharing {
    places: Made<WorkloadPlace, Place>,
    profiles: Made<WorkloadProfile, Profile>,
    place_uses: Ledger<Place>,
    profile_uses: Ledger<Profile>,
    /// Workloads that are not found by name and address yet, where before there were none: of a whole mesh
    /// those tables are sorted once, and have no holes.
    late: Option<Late>,
    /// The trust domain and the revision that were read last: most have one.
    domain: Arc<str>,
    revision: Arc<str>,
}

/// One allocation for a text and the one before that is equal.
fn share(last: &mut Arc<str>, text: &mut Arc<str>) {
    let (kept, other) = if last == text {
        (text, last)
    } else {
        (last, text)
    };
    *kept = Arc::clone(other);
}

/// How often values are used since they were counted last.
pub(super) struct Unsettled {
    places: Uses<Place>,
    profiles: Uses<Profile>,
}

impl Sharing {
    pub(super) fn new(is_first: bool) -> Self {
        Self {
            late: is_first.then(Late::default),
            ..Self::default()
        }
    }

    /// Whether it is of the first workloads, which are found by name and address when all of them are there.
    #[cfg(feature = "istiod")]
    pub(super) fn is_first(&self) -> bool {
        self.late.is_some()
    }

    /// Lets go of what sources do not share any more.
    pub(super) fn tidy(&mut self) {
        self.places.tidy();
        self.profiles.tidy();
    }

    /// Has a profile share its texts with others, and with its services.
    fn texts(&mut self, profile: &mut Profile, services: &ServiceTable) {
        share(&mut self.domain, &mut profile.trust_domain);
        share(&mut self.revision, &mut profile.canonical_revision);
        for membership in &mut profile.memberships {
            let Some((name, _)) = services.get_key_value(membership.service()) else {
                continue;
            };
            membership.name(name);
            if **name.shared_namespace() == *profile.namespace {
                profile.namespace = Arc::clone(name.shared_namespace());
            }
        }
    }

    fn count(&mut self, record: &WorkloadRecord, change: isize) {
        self.place_uses.add(&record.place, change);
        self.profile_uses.add(&record.profile, change);
    }
}

impl Tables {
    pub(super) fn put(
        &mut self,
        update: &Update,
        sharing: &mut Sharing,
        changes: &mut Changes,
    ) -> Result<(), Rejection> {
        match update {
            Update::Workload(workload) => self.put_workload(workload, sharing, changes),
            Update::Service(service) => self.put_service(service, changes),
            Update::Policy(policy) => self.put_policy(policy, changes),
            Update::RequestAuthentication(rule) => self.put_authentication(rule, changes),
            Update::InboundListener(listener) => self.put_listener(listener, changes),
            // Routes and gateways are not routed by yet: nothing of them is kept.
            _ => Ok(()),
        }
    }

    pub(super) fn remove(
        &mut self,
        name: &ResourceName,
        sharing: &mut Sharing,
        changes: &mut Changes,
    ) {
        match name {
            ResourceName::Workload(uid) => self.remove_workload(uid, sharing, changes),
            ResourceName::Service(name) => self.remove_service(name, changes),
            ResourceName::Policy(_) | ResourceName::RequestAuthentication(_) => {
                self.remove_attachment(name, changes);
            }
            ResourceName::InboundListener(address) => self.remove_listener(*address, changes),
            _ => {}
        }
    }

    fn put_workload(
        &mut self,
        workload: &Workload,
        sharing: &mut Sharing,
        changes: &mut Changes,
    ) -> Result<(), Rejection> {
        WorkloadRecord::check(workload)?;
        let profile = match sharing.profiles.get(workload.profile()) {
            Some(profile) => profile,
            None => {
                let mut profile = Profile::of(workload)?;
                sharing.texts(&mut profile, &self.services);
                let profile = self.share_profile(profile);
                sharing.profiles.insert(workload.profile(), &profile);
                profile
            }
        };
        let place = match sharing.places.get(workload.place()) {
            Some(place) => place,
            None => {
                let (place, _) = self.places.share(Place::of(workload));
                sharing.places.insert(workload.place(), &place);
                place
            }
        };
        let own = |old: &Arc<WorkloadRecord>| (*old.uid).cmp(workload.uid());
        let old = self.workloads.find_at_the_end(own).cloned();
        let uid = old.as_ref().map_or(workload.shared_uid(), |old| &old.uid);
        let listed = self.listed_since(old.as_deref(), &profile);
        let record = Arc::new(WorkloadRecord {
            uid: Arc::clone(uid),
            addresses: Addresses::new(workload.addresses()),
            rare: Rare::new(workload, listed),
            place,
            profile,
            capacity: workload.capacity(),
            hbone_port: workload.hbone_port(),
            health: workload.health(),
            name_length: WorkloadRecord::name_length(uid),
        });
        sharing.count(&record, 1);
        if let Some(old) = old {
            self.index_late(sharing);
            if *old == *record {
                sharing.count(&record, -1);
                return Ok(());
            }
            if !stands_where(&old, &record) {
                self.unindex_workload(&old);
            }
            sharing.count(&old, -1);
        }
        changes.workloads.push(Arc::clone(&record.uid));
        self.index_workload(&record, sharing);
        self.workloads.insert(record, 0);
        Ok(())
    }

    fn remove_workload(&mut self, uid: &str, sharing: &mut Sharing, changes: &mut Changes) {
        let Some(record) = self.workload(uid).cloned() else {
            return;
        };
        self.index_late(sharing);
        self.workloads.remove(&record);
        self.unindex_workload(&record);
        sharing.count(&record, -1);
        changes.workloads.push(Arc::clone(&record.uid));
    }

    /// Lets go of what no workload shares any more.
    pub(super) fn settle(&mut self, sharing: Sharing) {
        let mut unsettled = self.unsettled(sharing);
        while self.settle_some(&mut unsettled, usize::MAX) {}
    }

    /// What is still to be settled of these.
    pub(super) fn unsettled(&mut self, mut sharing: Sharing) -> Unsettled {
        self.index_late(&mut sharing);
        Unsettled {
            places: sharing.place_uses.into_uses(),
            profiles: sharing.profile_uses.into_uses(),
        }
    }

    /// Settles this many values; `false` if there are no more. Nothing is to be put in before.
    pub(super) fn settle_some(&mut self, unsettled: &mut Unsettled, room: usize) -> bool {
        let Unsettled { places, profiles } = unsettled;
        self.places.settle(places.by_ref().take(room));
        for unused in self.profiles.settle(profiles.by_ref().take(room)) {
            if unused.lists_any() {
                self.attachments_mut().unrefer(listed_names(&unused));
            }
        }
        places.len() + profiles.len() > 0
    }

    /// Since which version a workload has listed each of the names: the same workload keeps the age of a
    /// name that it lists on, whatever else of it changes; a replica's list says nothing of its own.
    fn listed_since(&self, old: Option<&WorkloadRecord>, profile: &Arc<Profile>) -> Box<[u64]> {
        if !profile.lists_any() {
            return Box::default();
        }
        if let Some(old) = old
            && Arc::ptr_eq(&old.profile, profile)
        {
            return old.listed().into();
        }
        let since = |name: ResourceName| {
            let old = old?;
            let at = listed_names(&old.profile).position(|listed| listed == name)?;
            old.listed().get(at).copied()
        };
        listed_names(profile)
            .map(|name| since(name).unwrap_or(self.version))
            .collect()
    }

    fn share_profile(&mut self, profile: Profile) -> Arc<Profile> {
        let (profile, new) = self.profiles.share(profile);
        if new && profile.lists_any() {
            let names = listed_names(&profile);
            self.attachments_mut().refer(names);
        }
        profile
    }

    fn index_workload(&mut self, record: &Arc<WorkloadRecord>, sharing: &mut Sharing) {
        if let Some(late) = &mut sharing.late {
            late.push(record, indexed_addresses(record));
        } else {
            for (network, ip) in indexed_addresses(record) {
                self.workload_addresses
                    .insert(network, ip, Arc::clone(record));
            }
            self.workload_names.insert(Arc::clone(record), 0);
        }
        if let Some(hostname) = record.hostname() {
            let hostname = Arc::clone(hostname);
            insert_into(&mut self.workload_hostnames, hostname, Arc::clone(record));
        }
        for (position, membership) in record.memberships().iter().enumerate() {
            let endpoint = Endpoint::new(Arc::clone(record), position);
            if let Some(entry) = self.services.get_mut(membership.service()) {
                entry.endpoints.insert(endpoint);
            } else {
                let mut entry = super::ServiceEntry::default();
                entry.endpoints.insert(endpoint);
                self.services
                    .insert_mut(membership.service().clone(), entry);
            }
        }
    }

    /// Finds the workloads by name and address that are not found so yet.
    fn index_late(&mut self, sharing: &mut Sharing) {
        if let Some(late) = sharing.late.take().filter(|late| !late.is_empty()) {
            (self.workload_addresses, self.workload_names) = late.tables();
        }
    }

    fn unindex_workload(&mut self, record: &Arc<WorkloadRecord>) {
        for (network, ip) in indexed_addresses(record) {
            self.workload_addresses.remove(network, ip, record);
        }
        self.workload_names.remove(record);
        if let Some(hostname) = record.hostname() {
            remove_from(&mut self.workload_hostnames, hostname, record);
        }
        for (position, membership) in record.memberships().iter().enumerate() {
            let Some(entry) = self.services.get_mut(membership.service()) else {
                continue;
            };
            entry
                .endpoints
                .remove(&Endpoint::new(Arc::clone(record), position));
            if entry.record.is_none() && entry.endpoints.is_empty() {
                self.services.remove_mut(membership.service());
            }
        }
    }

    fn put_service(&mut self, service: &Service, changes: &mut Changes) -> Result<(), Rejection> {
        let record = ServiceRecord::new(service)?;
        let record = Arc::new(match self.services.get_key_value(service.name()) {
            Some((name, _)) => record.named(name),
            None => record,
        });
        let old = self.service(record.name()).cloned();
        if old.as_deref() == Some(&*record) {
            return Ok(());
        }
        if let Some(old) = &old {
            self.unindex_service(old);
        }
        self.index_service(&record);
        let shape = Shape::of(&record);
        if let Some(entry) = self.services.get_mut(record.name()) {
            entry.record = Some(Arc::clone(&record));
            entry.endpoints.reshape(shape);
        } else {
            let mut entry = super::ServiceEntry {
                record: Some(Arc::clone(&record)),
                ..Default::default()
            };
            entry.endpoints.reshape(shape);
            self.services.insert_mut(record.name().clone(), entry);
        }
        self.note_service(record.name(), old.as_deref(), Some(&record), changes);
        Ok(())
    }

    fn remove_service(&mut self, name: &ServiceName, changes: &mut Changes) {
        let Some(record) = self.service(name).cloned() else {
            return;
        };
        self.unindex_service(&record);
        if let Some(entry) = self.services.get_mut(name) {
            entry.record = None;
            entry.endpoints.reshape(Shape::default());
            if entry.endpoints.is_empty() {
                self.services.remove_mut(name);
            }
        }
        self.note_service(name, Some(&record), None, changes);
    }

    fn index_service(&mut self, record: &Arc<ServiceRecord>) {
        let hostname = Arc::clone(record.name().shared_hostname());
        insert_into(&mut self.service_hostnames, hostname, Arc::clone(record));
        for address in record.addresses() {
            let network: Arc<str> = address.network().into();
            if let Some(ip) = address.ip() {
                self.virtual_addresses
                    .insert(&network, ip, Arc::clone(record));
            } else if let Some(table) = self.virtual_ranges.get_mut(&network) {
                table.insert(address.range(), Arc::clone(record));
            } else {
                let mut table = CidrTable::default();
                table.insert(address.range(), Arc::clone(record));
                self.virtual_ranges.insert_mut(network, table);
            }
        }
    }

    fn unindex_service(&mut self, record: &Arc<ServiceRecord>) {
        remove_from(&mut self.service_hostnames, record.hostname(), record);
        for address in record.addresses() {
            let network = address.network();
            if let Some(ip) = address.ip() {
                self.virtual_addresses.remove(network, &ip, record);
            } else if let Some(table) = self.virtual_ranges.get_mut(network) {
                table.remove(address.range(), record);
                if table.is_empty() {
                    self.virtual_ranges.remove_mut(network);
                }
            }
        }
    }

    /// Notes a changed service; policies that target it bind otherwise when its waypoint comes or goes.
    fn note_service(
        &mut self,
        name: &ServiceName,
        old: Option<&ServiceRecord>,
        new: Option<&ServiceRecord>,
        changes: &mut Changes,
    ) {
        changes.services.push(name.clone());
        let binding = |service: Option<&ServiceRecord>| {
            let object = service.map(|service| Arc::clone(service.object_name()));
            (object, service.is_some_and(ServiceRecord::has_waypoint))
        };
        if binding(old) != binding(new) && self.attachments.has_targets() {
            self.attachments_mut().touch();
            changes.attachments();
        }
    }
}

/// Where a workload is found: the host's addresses belong to the host (ztunnel.md 3.4).
fn indexed_addresses(record: &WorkloadRecord) -> impl Iterator<Item = (&Arc<str>, IpAddr)> {
    let addresses = match record.network_mode() {
        NetworkMode::HostNetwork => &[],
        _ => record.addresses(),
    };
    addresses.iter().map(|ip| (record.network(), *ip))
}

/// Whether a new record takes the old one's place in every index, so that none has to be left first.
fn stands_where(old: &WorkloadRecord, new: &WorkloadRecord) -> bool {
    let (a, b) = (&old.profile, &new.profile);
    let profiles = Arc::ptr_eq(a, b)
        || (a.protocol == b.protocol
            && a.network_mode == b.network_mode
            && a.namespace == b.namespace
            && a.application_tunnel == b.application_tunnel
            && a.memberships == b.memberships);
    profiles
        && old.place == new.place
        && old.addresses == new.addresses
        && old.name() == new.name()
        && old.hostname() == new.hostname()
}

/// The order of [`WorkloadRecord::listed`].
pub(super) fn listed_names(profile: &Profile) -> impl Iterator<Item = ResourceName> + '_ {
    let policies = profile.policies.iter().cloned();
    let authentications = profile.request_authentications.iter().cloned();
    policies
        .map(ResourceName::Policy)
        .chain(authentications.map(ResourceName::RequestAuthentication))
}
