//! The snapshot's small persistent structures: grouped tables, tables of networks, shared values.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::hash_map::IntoValues;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mesh_xds::model::Visibility;

use super::Services;
use super::claims::Claims;
use super::hashing::{HashTable, Seeded};
use super::record::{ServiceRecord, WorkloadRecord};
use super::weighted::{Order, WeightedTree};

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
        // Of one deployment all have one namespace.
        let namespaces = match Arc::ptr_eq(a.namespace(), b.namespace()) {
            true => Ordering::Equal,
            false => a.namespace().cmp(b.namespace()),
        };
        namespaces
            .then_with(|| a.name().cmp(b.name()))
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
            .or_else(|| self.first())
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

/// A table of tables of claims that holds no empty one.
#[derive(Clone)]
pub(super) struct Grouped<K: Eq + Hash, V> {
    groups: HashTable<Arc<str>, HashTable<K, V>>,
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

impl<K: Eq + Hash + Clone, T: Clone, O: Order<T> + Default + Clone> Grouped<K, Claims<T, O>> {
    pub(super) fn insert(&mut self, group: &Arc<str>, key: K, item: T) {
        if let Some(table) = self.groups.get_mut(&**group) {
            insert_into(table, key, item);
        } else {
            let mut table = HashTable::default();
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
            groups: HashTable::default(),
        }
    }
}

/// Workloads by network and address; of one address, the one to prefer first.
#[derive(Clone, Default)]
pub(super) struct AddressTable {
    networks: HashTable<Arc<str>, WeightedTree<Located, ByAddress>>,
}

/// A workload at one of its addresses, which is here so that a search need not go where the workload is.
#[derive(Clone)]
pub(super) struct Located {
    address: Key,
    workload: Arc<WorkloadRecord>,
}

impl Located {
    pub(super) fn new(ip: IpAddr, workload: Arc<WorkloadRecord>) -> Self {
        Self {
            address: key(ip),
            workload,
        }
    }
}

/// The two halves of an address: of one form for both families, and in as few bytes as it has.
type Key = (u64, u64);

#[derive(Clone, Copy, Default)]
struct ByAddress;

impl Order<Located> for ByAddress {
    fn compare(&self, a: &Located, b: &Located) -> Ordering {
        a.address
            .cmp(&b.address)
            .then_with(|| a.workload.precedence().cmp(&b.workload.precedence()))
    }
}

impl AddressTable {
    /// The workload to prefer of those that have the address.
    pub(super) fn get(&self, network: &str, ip: IpAddr) -> Option<&Arc<WorkloadRecord>> {
        let address = key(ip);
        let found = self
            .networks
            .get(network)?
            .first_from(|located| located.address < address)?;
        (found.address == address).then_some(&found.workload)
    }

    /// The table of all of these, by network; each network is there once.
    pub(super) fn of_all(networks: Vec<(Arc<str>, Vec<Located>)>) -> Self {
        let mut table = Self::default();
        for (network, mut located) in networks {
            located.sort_unstable_by(|a, b| ByAddress.compare(a, b));
            // An address may be there twice.
            located.dedup_by(|a, b| ByAddress.compare(a, b).is_eq());
            let tree = WeightedTree::of_sorted(ByAddress, located);
            table.networks.insert_mut(network, tree);
        }
        table
    }

    pub(super) fn insert(&mut self, network: &Arc<str>, ip: IpAddr, workload: Arc<WorkloadRecord>) {
        let located = Located::new(ip, workload);
        if let Some(table) = self.networks.get_mut(&**network) {
            table.insert(located, 0);
        } else {
            let mut table = WeightedTree::default();
            table.insert(located, 0);
            self.networks.insert_mut(Arc::clone(network), table);
        }
    }

    pub(super) fn remove(&mut self, network: &str, ip: IpAddr, workload: &Arc<WorkloadRecord>) {
        let Some(table) = self.networks.get_mut(network) else {
            return;
        };
        table.remove(&Located::new(ip, Arc::clone(workload)));
        if table.is_empty() {
            self.networks.remove_mut(network);
        }
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = &Arc<str>> {
        self.networks.keys()
    }

    /// Lets go of some of a network's workloads. `false` if there are none.
    pub(super) fn shed(&mut self, network: &str) -> bool {
        let table = self.networks.get_mut(network);
        table.is_some_and(WeightedTree::shed)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }
}

/// An address is canonical, so none of IPv4 is mapped already.
fn key(ip: IpAddr) -> Key {
    let six = match ip {
        IpAddr::V4(four) => four.to_ipv6_mapped(),
        IpAddr::V6(six) => six,
    };
    let bits = u128::from(six);
    ((bits >> 64) as u64, bits as u64)
}

/// Adds an item to those under a key.
pub(super) fn insert_into<K, T, O>(table: &mut HashTable<K, Claims<T, O>>, key: K, item: T)
where
    K: Eq + Hash + Clone,
    T: Clone,
    O: Order<T> + Default + Clone,
{
    if let Some(claims) = table.get_mut(&key) {
        claims.insert(item);
    } else {
        table.insert_mut(key, Claims::One(item));
    }
}

/// Takes an item from those under a key, and the key with its last.
pub(super) fn remove_from<K, Q, T, O>(table: &mut HashTable<K, Claims<T, O>>, key: &Q, item: &T)
where
    K: Eq + Hash + Clone + Borrow<Q>,
    Q: Eq + Hash + ?Sized,
    T: Clone,
    O: Order<T> + Default + Clone,
{
    let Some(claims) = table.get_mut(key) else {
        return;
    };
    if !claims.remove(item) {
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

type Ranges = HashTable<IpNet, Services>;

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
pub(super) struct Interner<T> {
    /// A tree, which can be let go of little by little.
    values: WeightedTree<Used<T>, ByHash>,
    hasher: Seeded,
}

struct Used<T> {
    hash: u64,
    value: Arc<T>,
    uses: usize,
}

/// By hash; of those that hash alike each is at a place of its own.
#[derive(Clone, Copy, Default)]
struct ByHash;

impl<T> Order<Used<T>> for ByHash {
    fn compare(&self, a: &Used<T>, b: &Used<T>) -> Ordering {
        let place = |used: &Used<T>| (used.hash, pointer(&used.value));
        place(a).cmp(&place(b))
    }
}

impl<T: Eq + Hash> Interner<T> {
    /// The shared value, and whether it is new. Its uses are counted by a [`Ledger`], which is
    /// [settled](Self::settle) after it.
    pub(super) fn share(&mut self, value: T) -> (Arc<T>, bool) {
        let hash = self.hasher.hash_one(&value);
        if let Some(used) = self.find(hash, &value) {
            return (Arc::clone(&used.value), false);
        }
        let value = Arc::new(value);
        let shared = Arc::clone(&value);
        let used = Used {
            hash,
            value,
            uses: 0,
        };
        self.values.insert(used, 0);
        (shared, true)
    }

    fn find(&self, hash: u64, value: &T) -> Option<&Used<T>> {
        let first = self.values.first_from(|used| used.hash < hash)?;
        if first.hash != hash || *first.value == *value {
            return (first.hash == hash).then_some(first);
        }
        let mut alike = self.values.iter_from(|used| used.hash < hash);
        alike
            .by_ref()
            .take_while(|used| used.hash == hash)
            .find(|used| *used.value == *value)
    }

    /// Counts what changed, and tells which values nobody uses any more.
    pub(super) fn settle(&mut self, uses: impl Iterator<Item = (Arc<T>, isize)>) -> Vec<Arc<T>> {
        let mut unused = Vec::new();
        for (value, change) in uses {
            let hash = self.hasher.hash_one(&*value);
            let Some(used) = self.find(hash, &value) else {
                continue;
            };
            let used = Used {
                uses: used.uses.saturating_add_signed(change),
                ..used.clone()
            };
            if used.uses == 0 {
                self.values.remove(&used);
                unused.push(value);
            } else if change != 0 {
                self.values.insert(used, 0);
            }
        }
        unused
    }

    /// Lets go of some of the values. `false` if there are none.
    pub(super) fn shed(&mut self) -> bool {
        self.values.shed()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

impl<T> Clone for Used<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            ..*self
        }
    }
}

impl<T> Default for Interner<T> {
    fn default() -> Self {
        Self {
            values: WeightedTree::default(),
            hasher: Seeded::default(),
        }
    }
}

/// How many records more or less use shared values after a batch: one look-up by value for each, however many
/// records there are.
pub(super) struct Ledger<T> {
    changes: ByPointer<(Arc<T>, isize)>,
}

/// What a ledger has, one value after the other.
pub(super) type Uses<T> = IntoValues<usize, (Arc<T>, isize)>;

impl<T> Ledger<T> {
    pub(super) fn into_uses(self) -> Uses<T> {
        self.changes.into_values()
    }

    pub(super) fn add(&mut self, value: &Arc<T>, change: isize) {
        let of = self.changes.entry(pointer(value));
        of.or_insert_with(|| (Arc::clone(value), 0)).1 += change;
    }
}

impl<T> Default for Ledger<T> {
    fn default() -> Self {
        Self {
            changes: ByPointer::default(),
        }
    }
}

/// What was made of values that sources share, for as long as a batch is applied.
pub(super) struct Made<S, T> {
    made: ByPointer<(Arc<S>, Arc<T>)>,
    last: Option<(Arc<S>, Arc<T>)>,
    /// How many there were when it was tidied last.
    kept: usize,
}

/// So many are kept in any case.
const FEW_MADE: usize = 64;

impl<S, T> Made<S, T> {
    pub(super) fn get(&mut self, of: &Arc<S>) -> Option<Arc<T>> {
        if let Some((last, made)) = &self.last
            && Arc::ptr_eq(last, of)
        {
            return Some(Arc::clone(made));
        }
        let found = self.made.get(&pointer(of))?;
        self.last = Some(found.clone());
        Some(Arc::clone(&found.1))
    }

    /// Forgets those that no source has any more, when there are twice as many as were left the last time.
    pub(super) fn tidy(&mut self) {
        if self.made.len() < FEW_MADE.max(2 * self.kept) {
            return;
        }
        self.last = None;
        self.made.retain(|_, (of, _)| Arc::strong_count(of) > 1);
        self.kept = self.made.len();
    }

    pub(super) fn insert(&mut self, of: &Arc<S>, made: &Arc<T>) {
        let pair = (Arc::clone(of), Arc::clone(made));
        self.made.insert(pointer(of), pair.clone());
        self.last = Some(pair);
    }
}

impl<S, T> Default for Made<S, T> {
    fn default() -> Self {
        Self {
            made: ByPointer::default(),
            last: None,
            kept: 0,
        }
    }
}

/// Values by the address of something that they keep alive.
type ByPointer<V> = HashMap<usize, V, BuildHasherDefault<PointerHasher>>;

fn pointer<T>(of: &Arc<T>) -> usize {
    Arc::as_ptr(of).addr()
}

/// Nobody chooses where things are allocated: spreading the bits is enough.
#[derive(Default)]
struct PointerHasher(u64);

impl Hasher for PointerHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_usize(usize::from(*byte));
        }
    }

    fn write_usize(&mut self, value: usize) {
        // 2^64 divided by the golden ratio.
        let spread = (self.0 ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = spread ^ (spread >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
