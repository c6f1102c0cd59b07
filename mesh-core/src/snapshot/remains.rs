//! A snapshot that nobody reads any more, let go of little by little.

use std::sync::Arc;

use mesh_xds::model::ServiceName;

use super::endpoints::Endpoints;
use super::{Snapshot, Tables};

/// What is left of a snapshot. To drop one of which everything was replaced takes as long as some ten connections:
/// whoever waits for the core that does it has them wait, too.
pub(crate) struct Remains {
    tables: Tables,
    /// Those that are still in it.
    services: Vec<ServiceName>,
    /// Of the last one that was taken out.
    endpoints: Endpoints,
    networks: Vec<Arc<str>>,
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
        // A record goes with the last table that has it.
        tables.workload_names.shed() || tables.workloads.shed()
    }
}
