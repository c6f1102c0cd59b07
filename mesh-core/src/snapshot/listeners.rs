//! What a control plane says of single ports of this process' workloads.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_xds::model::{InboundListener, Rejection, ResourceName};

use super::record::WorkloadRecord;
use super::{Changes, Snapshot, Tables};

impl Snapshot {
    /// The listener of a workload's port: of the first of its addresses that has one there, but a
    /// closed one goes before others.
    pub fn inbound_listener(
        &self,
        workload: &WorkloadRecord,
        port: u16,
    ) -> Option<&Arc<InboundListener>> {
        let listeners = &self.tables.listeners;
        if listeners.is_empty() {
            return None;
        }
        let of = |ip: &IpAddr| listeners.get(&SocketAddr::new(*ip, port));
        let mut own = workload.addresses().iter().filter_map(of);
        let first = own.next()?;
        let mut all = std::iter::once(first).chain(own);
        Some(all.find(|one| one.closed().is_some()).unwrap_or(first))
    }

    /// The ports of a workload that have a listener, in no order.
    pub fn inbound_ports(&self, workload: &WorkloadRecord) -> impl Iterator<Item = u16> {
        // As few as the ports on which this process listens.
        let listeners = self.tables.listeners.keys();
        listeners
            .filter(|address| workload.addresses().contains(&address.ip()))
            .map(SocketAddr::port)
    }
}

impl Tables {
    pub(super) fn put_listener(
        &mut self,
        listener: &Arc<InboundListener>,
        changes: &mut Changes,
    ) -> Result<(), Rejection> {
        let address = listener.address();
        if address.ip().is_unspecified() || address.ip().is_multicast() || address.port() == 0 {
            let reason = format!("address {address}: expected a port of one workload");
            return Err(Rejection::new(reason));
        }
        if self.listeners.get(&address) != Some(listener) {
            self.listeners.insert_mut(address, Arc::clone(listener));
            self.note_listener(address, changes);
        }
        Ok(())
    }

    pub(super) fn remove_listener(&mut self, address: SocketAddr, changes: &mut Changes) {
        if self.listeners.remove_mut(&address) {
            self.note_listener(address, changes);
        }
    }

    fn note_listener(&mut self, address: SocketAddr, changes: &mut Changes) {
        self.attachments_mut().touch();
        changes.policy(ResourceName::InboundListener(address));
    }
}
