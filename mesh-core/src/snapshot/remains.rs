//! A snapshot that nobody reads any more, let go of little by little.

use std::sync::Arc;

use mesh_xds::model::ServiceName;

use super::claims::Claims;
use super::endpoints::Endpoints;
use super::hashing::HashTable;
use super::index::{ByPrecedence, Grouped};
use super::record::{ServiceRecord, WorkloadRecord};
use super::weighted::WeightedTree;
use super::{Snapshot, Tables};

/// How many values are let go of at once.
const SOME: usize = 32;

/// What is left of a snapshot. To drop one of which everything was replaced takes as long as some ten connections:
/// whoever waits for the core that does it has them wait, too.
pub(crate) struct Remains {
    tables: Tables,
    /// Those that are still in it.
    services: Vec<ServiceName>,
    /// Of the last one that was taken out.
    endpoints: Endpoints,
    networks: Vec<Arc<str>>,
    /// Host names of workloads that are still in it, and what the last one led to that was taken out.
    hostnames: Vec<Arc<str>>,
    workloads: WeightedTree<Arc<WorkloadRecord>, ByPrecedence>,
    /// What was in it of services, whose other tables cannot be let go of little by little.
    records: Vec<Arc<ServiceRecord>>,
}

impl Remains {
    /// # Errors
    ///
    /// The snapshot, if somebody still reads it.
    pub(crate) fn of(snapshot: Arc<Snapshot>) -> Result<Self, Arc<Snapshot>> {
        let Snapshot { tables } = Arc::try_unwrap(snapshot)?;
        let tables = Arc::try_unwrap(tables).map_err(|tables| Arc::new(Snapshot { tables }))?;
        Ok(Self {
            services: tables.services.keys().cloned().collect(),
            endpoints: Endpoints::default(),
            networks: tables.workload_addresses.networks().cloned().collect(),
            hostnames: tables.workload_hostnames.keys().cloned().collect(),
            workloads: WeightedTree::default(),
            records: Vec::new(),
            tables,
        })
    }

    /// Lets go of some 32 items, or of more that another snapshot has, too. `false` when little is left.
    pub(crate) fn shed(&mut self) -> bool {
        let tables = &mut self.tables;
        if self.endpoints.shed() {
            return true;
        }
        if let Some(name) = self.services.pop() {
            if let Some(service) = tables.services.get(&name) {
                self.endpoints = service.endpoints.clone();
                self.records.extend(service.record.clone());
            }
            tables.services.remove_mut(&name);
            self.endpoints.shed();
            return true;
        }
        while let Some(network) = self.networks.last() {
            if tables.workload_addresses.shed(network) {
                return true;
            }
            self.networks.pop();
        }
        if self.workloads.shed() {
            return true;
        }
        if let Some(name) = self.hostnames.pop() {
            if let Some(Claims::Many(workloads)) = tables.workload_hostnames.get(&name) {
                self.workloads = WeightedTree::clone(workloads);
            }
            tables.workload_hostnames.remove_mut(&name);
            self.workloads.shed();
            return true;
        }
        // A record goes with the last table that has it.
        if tables.workload_names.shed() || tables.workloads.shed() {
            return true;
        }
        if tables.profiles.shed() || tables.places.shed() {
            return true;
        }
        if !tables.service_hostnames.is_empty() {
            tables.service_hostnames = HashTable::default();
            tables.virtual_addresses = Grouped::default();
            return true;
        }
        self.records
            .truncate(self.records.len().saturating_sub(SOME));
        !self.records.is_empty()
    }
}
