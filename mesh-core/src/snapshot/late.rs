//! The workloads of a first snapshot, on their way into the tables that find them by name and address.
//!
//! Those tables are made once, when all workloads are here, and have no holes. What they are sorted by is taken when a
//! workload comes: later it would have to be fetched from all over the memory.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::index::{AddressTable, ByName, Located};
use super::record::WorkloadRecord;
use super::weighted::{Order, WeightedTree};

/// Workloads that are not found by name and address yet.
#[derive(Default)]
pub(super) struct Late {
    /// As they came, where each is behind the one before: by uid most are in this order.
    in_order: Vec<Arc<WorkloadRecord>>,
    others: Vec<Arc<WorkloadRecord>>,
    networks: Vec<(Arc<str>, Vec<Located>)>,
    by_network: HashMap<Arc<str>, usize>,
    /// The network of the last one: mostly there is one.
    last: usize,
}

impl Late {
    pub(super) fn push<'a>(
        &mut self,
        record: &Arc<WorkloadRecord>,
        addresses: impl Iterator<Item = (&'a Arc<str>, IpAddr)>,
    ) {
        for (network, ip) in addresses {
            let of_last = self.networks.get(self.last);
            if of_last.is_none_or(|(last, _)| last != network) {
                self.last = self.network(network);
            }
            let located = Located::new(ip, Arc::clone(record));
            self.networks[self.last].1.push(located);
        }
        let last = self.in_order.last();
        match last.is_none_or(|last| ByName.compare(last, record).is_lt()) {
            true => self.in_order.push(Arc::clone(record)),
            false => self.others.push(Arc::clone(record)),
        }
    }

    fn network(&mut self, name: &Arc<str>) -> usize {
        if let Some(at) = self.by_network.get(name) {
            return *at;
        }
        let at = self.networks.len();
        self.networks.push((Arc::clone(name), Vec::new()));
        self.by_network.insert(Arc::clone(name), at);
        at
    }

    pub(super) fn is_empty(&self) -> bool {
        self.in_order.is_empty()
    }

    /// The tables of all of them.
    pub(super) fn tables(self) -> (AddressTable, WeightedTree<Arc<WorkloadRecord>, ByName>) {
        let mut others = self.others;
        others.sort_unstable_by(|a, b| ByName.compare(a, b));
        let names = WeightedTree::of_sorted(ByName, merged(self.in_order, others));
        // Last: once these are freed, glibc puts what is not larger among what stays, where it leaves holes.
        let addresses = AddressTable::of_all(self.networks);
        (addresses, names)
    }
}

/// All of two lists that are in order. Of the first few are looked at.
fn merged(
    first: Vec<Arc<WorkloadRecord>>,
    second: Vec<Arc<WorkloadRecord>>,
) -> Vec<Arc<WorkloadRecord>> {
    if second.is_empty() {
        return first;
    }
    let mut all = Vec::with_capacity(first.len() + second.len());
    let mut first = first.into_iter();
    for other in second {
        let before = |one: &Arc<WorkloadRecord>| ByName.compare(one, &other).is_lt();
        let count = first.as_slice().partition_point(before);
        all.extend(first.by_ref().take(count));
        all.push(other);
    }
    all.extend(first);
    all
}
