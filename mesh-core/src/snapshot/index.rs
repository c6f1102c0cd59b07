//! The snapshot's small persistent structures: grouped tables, tables of networks, shared values.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_xds::model::Visibility;
use rpds::HashTrieMapSync;

use super::record::{ServiceRecord, WorkloadRecord};
use super::weighted::{Order, WeightedTree};
use super::{Services, Workloads};

/// Workloads that claim the same thing, the one to prefer first.
#[derive(Clone, Copy, Default)]
pub(super) struct ByPrecedence;

impl Order<Arc<WorkloadRecord>> for ByPrecedence {
    fn compare(&self, a: &Arc<WorkloadRecord>, b: &Arc<WorkloadRecord>) -> Ordering {
        a.precedence().cmp(&b.precedence())
    }
}

/// Workloads by uid.
#[derive(Clone, Copy, Default)]
pub(super) struct ByUid;

impl Order<Arc<WorkloadRecord>> for ByUid {
    fn compare(&self, a: &Arc<WorkloadRecord>, b: &Arc<WorkloadRecord>) -> Ordering {
        a.uid.cmp(&b.uid)
    }
}

/// Workloads by namespace and name; of one name, the one to prefer first.
#[derive(Clone, Copy, Default)]
pub(super) struct ByName;

impl Order<Arc<WorkloadRecord>> for ByName {
    fn compare(&self, a: &Arc<WorkloadRecord>, b: &Arc<WorkloadRecord>) -> Ordering {
        full_name(a)
            .cmp(&full_name(b))
            .then_with(|| a.precedence().cmp(&b.precedence()))
    }
}

pub(super) fn full_name(workload: &WorkloadRecord) -> (&str, &str) {
    (workload.namespace(), workload.name())
}

/// Services that claim the same thing, those that everybody may see and that own it first.
#[derive(Clone, Copy, Default)]
pub(super) struct ByOwnership;

impl Order<Arc<ServiceRecord>> for ByOwnership {
    fn compare(&self, a: &Arc<ServiceRecord>, b: &Arc<ServiceRecord>) -> Ordering {
        ownership(a).cmp(&ownership(b))
    }
}

fn ownership(service: &ServiceRecord) -> (bool, bool, &str, &str) {
    (
        service.visibility() != Visibility::Public,
        !service.canonical(),
        service.namespace(),
        service.hostname(),
    )
}

impl Services {
    /// The one that a client in this namespace means: its own namespace's, then the owner's, then
    /// the first of those that it may see.
    pub(super) fn best(&self, namespace: &str) -> Option<&Arc<ServiceRecord>> {
        let own = |private: bool, secondary: bool| {
            let sought = (private, secondary, namespace);
            let key = |service: &Arc<ServiceRecord>| {
                let (private, secondary, _, _) = ownership(service);
                (private, secondary)
            };
            self.find(|service| {
                let (private, secondary) = key(service);
                (private, secondary, service.namespace()).cmp(&sought)
            })
        };
        let classes = [(false, false), (true, false), (false, true), (true, true)];
        let mut classes = classes.into_iter();
        classes
            .find_map(|(private, secondary)| own(private, secondary))
            .or_else(|| self.first_from(|_| false))
            .filter(|service| service.visible_to(namespace))
    }
}

impl<T, O: Default> Default for WeightedTree<T, O>
where
    T: Clone,
    O: Order<T>,
{
    fn default() -> Self {
        Self::new(O::default())
    }
}

/// A table of tables that holds no empty one.
#[derive(Clone)]
pub(super) struct Grouped<K: Eq + Hash, V> {
    groups: HashTrieMapSync<Arc<str>, HashTrieMapSync<K, V>>,
}

impl<K: Eq + Hash + Clone, V: Clone> Grouped<K, V> {
    pub(super) fn get<Q>(&self, group: &str, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.groups.get(group)?.get(key)
    }
}

impl<K: Eq + Hash + Clone, T: Clone, O: Order<T> + Default + Clone> Grouped<K, WeightedTree<T, O>> {
    pub(super) fn insert(&mut self, group: &Arc<str>, key: K, item: T) {
        if let Some(table) = self.groups.get_mut(&**group) {
            insert_into(table, key, item);
        } else {
            let mut table = HashTrieMapSync::new_sync();
            insert_into(&mut table, key, item);
            self.groups.insert_mut(Arc::clone(group), table);
        }
    }

    pub(super) fn remove<Q>(&mut self, group: &str, key: &Q, item: &T)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let Some(table) = self.groups.get_mut(group) else {
            return;
        };
        remove_from(table, key, item);
        if table.is_empty() {
            self.groups.remove_mut(group);
        }
    }
}

impl<K: Eq + Hash, V> Default for Grouped<K, V> {
    fn default() -> Self {
        Self {
            groups: HashTrieMapSync::new_sync(),
        }
    }
}

/// Workloads by network and address. Nearly every address has one workload, which needs no tree.
#[derive(Clone)]
pub(super) struct AddressTable {
    /// The one to prefer.
    first: HashTrieMapSync<Arc<str>, HashTrieMapSync<Ipv6Addr, Arc<WorkloadRecord>>>,
    /// All of them, where there are several.
    contested: Grouped<Ipv6Addr, Workloads>,
}

impl AddressTable {
    /// The workload to prefer of those that have the address.
    pub(super) fn get(&self, network: &str, ip: IpAddr) -> Option<&Arc<WorkloadRecord>> {
        self.first.get(network)?.get(&key(ip))
    }

    pub(super) fn insert(&mut self, network: &Arc<str>, ip: IpAddr, workload: Arc<WorkloadRecord>) {
        let first = match self.get(network, ip).map(Arc::clone) {
            None => workload,
            Some(other) => {
                self.contested.insert(network, key(ip), Arc::clone(&other));
                self.contested
                    .insert(network, key(ip), Arc::clone(&workload));
                self.best_of_several(network, ip).unwrap_or(workload)
            }
        };
        if let Some(table) = self.first.get_mut(&**network) {
            table.insert_mut(key(ip), first);
        } else {
            let table = HashTrieMapSync::new_sync().insert(key(ip), first);
            self.first.insert_mut(Arc::clone(network), table);
        }
    }

    pub(super) fn remove(&mut self, network: &str, ip: IpAddr, workload: &Arc<WorkloadRecord>) {
        self.contested.remove(network, &key(ip), workload);
        let rest = self.best_of_several(network, ip);
        let several = self.contested.get(network, &key(ip)).map(WeightedTree::len);
        if let (Some(last), Some(1)) = (&rest, several) {
            self.contested.remove(network, &key(ip), last);
        }
        let Some(table) = self.first.get_mut(network) else {
            return;
        };
        match rest {
            Some(rest) => table.insert_mut(key(ip), rest),
            None if table
                .get(&key(ip))
                .is_some_and(|one| one.uid == workload.uid) =>
            {
                table.remove_mut(&key(ip));
            }
            None => {}
        }
        if table.is_empty() {
            self.first.remove_mut(network);
        }
    }

    fn best_of_several(&self, network: &str, ip: IpAddr) -> Option<Arc<WorkloadRecord>> {
        let several = self.contested.get(network, &key(ip))?;
        several.first_from(|_| false).cloned()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.contested.groups.is_empty()
    }
}

impl Default for AddressTable {
    fn default() -> Self {
        Self {
            first: HashTrieMapSync::new_sync(),
            contested: Grouped::default(),
        }
    }
}

/// One form for both families takes 16 bytes less: an address is canonical, so none is mapped already.
fn key(ip: IpAddr) -> Ipv6Addr {
    match ip {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    }
}

/// Adds an item to the tree under a key.
pub(super) fn insert_into<K, T, O>(
    table: &mut HashTrieMapSync<K, WeightedTree<T, O>>,
    key: K,
    item: T,
) where
    K: Eq + Hash + Clone,
    T: Clone,
    O: Order<T> + Default + Clone,
{
    if let Some(tree) = table.get_mut(&key) {
        tree.insert(item, 0);
    } else {
        let mut tree = WeightedTree::default();
        tree.insert(item, 0);
        table.insert_mut(key, tree);
    }
}

/// Takes an item from the tree under a key, and the tree with its last.
pub(super) fn remove_from<K, Q, T, O>(
    table: &mut HashTrieMapSync<K, WeightedTree<T, O>>,
    key: &Q,
    item: &T,
) where
    K: Eq + Hash + Clone + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
    T: Clone,
    O: Order<T> + Default + Clone,
{
    let Some(tree) = table.get_mut(key) else {
        return;
    };
    tree.remove(item);
    if tree.is_empty() {
        table.remove_mut(key);
    }
}

/// Services by networks of virtual addresses. Looked up once per length of prefix that is in use.
#[derive(Clone, Default)]
pub(super) struct CidrTable {
    ranges: Ranges,
    /// How many ranges there are of each family (IPv4 or not) and length.
    lengths: Arc<BTreeMap<(bool, u8), u32>>,
}

type Ranges = HashTrieMapSync<IpNet, Services>;

impl CidrTable {
    pub(super) fn insert(&mut self, range: IpNet, service: Arc<ServiceRecord>) {
        if !self.ranges.contains_key(&range) {
            *Arc::make_mut(&mut self.lengths)
                .entry(length(range))
                .or_default() += 1;
        }
        insert_into(&mut self.ranges, range, service);
    }

    pub(super) fn remove(&mut self, range: IpNet, service: &Arc<ServiceRecord>) {
        let before = self.ranges.size();
        remove_from(&mut self.ranges, &range, service);
        if self.ranges.size() == before {
            return;
        }
        let lengths = Arc::make_mut(&mut self.lengths);
        if let Some(count) = lengths.get_mut(&length(range)) {
            *count -= 1;
            if *count == 0 {
                lengths.remove(&length(range));
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Ranked as ztunnel does: the client's own namespace, then the longer prefix, then the owner.
    pub(super) fn best(&self, ip: IpAddr, namespace: &str) -> Option<&Arc<ServiceRecord>> {
        let family = (ip.is_ipv4(), 0)..=(ip.is_ipv4(), u8::MAX);
        let mut found: Option<&Arc<ServiceRecord>> = None;
        for ((_, length), _) in self.lengths.range(family).rev() {
            let Ok(range) = IpNet::new(ip, *length) else {
                continue;
            };
            let Some(service) = self
                .ranges
                .get(&range.trunc())
                .and_then(|all| all.best(namespace))
            else {
                continue;
            };
            if service.namespace() == namespace {
                return Some(service);
            }
            found = found.or(Some(service));
        }
        found
    }
}

fn length(range: IpNet) -> (bool, u8) {
    (range.addr().is_ipv4(), range.prefix_len())
}

/// Values that many records share, counted by how many do.
#[derive(Clone)]
pub(super) struct Interner<T: Eq + Hash> {
    uses: HashTrieMapSync<Arc<T>, usize>,
}

impl<T: Eq + Hash> Interner<T> {
    /// The shared value, one use more, and whether it is new.
    pub(super) fn acquire(&mut self, value: T) -> (Arc<T>, bool) {
        if let Some((shared, _)) = self.uses.get_key_value(&value) {
            let shared = Arc::clone(shared);
            if let Some(uses) = self.uses.get_mut(&value) {
                *uses += 1;
            }
            return (shared, false);
        }
        let shared = Arc::new(value);
        self.uses.insert_mut(Arc::clone(&shared), 1);
        (shared, true)
    }

    /// One use less; whether it was the last.
    pub(super) fn release(&mut self, value: &T) -> bool {
        let Some(uses) = self.uses.get_mut(value) else {
            return false;
        };
        *uses -= 1;
        if *uses > 0 {
            return false;
        }
        self.uses.remove_mut(value)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.uses.size()
    }
}

impl<T: Eq + Hash> Default for Interner<T> {
    fn default() -> Self {
        Self {
            uses: HashTrieMapSync::new_sync(),
        }
    }
}
