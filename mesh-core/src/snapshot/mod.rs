//! The mesh as one immutable value: `snapshot.apply(&batch) -> next snapshot`, `snapshot.resolve(..) -> route`.
//!
//! Tables are persistent: a new snapshot shares with the last all that did not change, so a change
//! costs O(log n), a clone one reference count, and readers never wait. Each decision reads one
//! snapshot and awaits nothing; where something is missing the answer says what, and the caller
//! asks a newer snapshot again.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//! use mesh_core::snapshot::{Hop, Resolution, Snapshot, Source, Target};
//! use mesh_core::xds::model::{Batch, Membership, Port, Service, ServiceName, TunnelProtocol, Workload};
//!
//! let ratings = ServiceName::new("default", "ratings.default.svc.cluster.local");
//! let batch = Batch::new(
//!     vec![
//!         Service::new(ratings.clone()).with_ports(vec![Port::new(80).with_target_port(9080)]).into(),
//!         Workload::new("Kubernetes//Pod/default/ratings-v1", "default", "ratings-v1")
//!             .with_addresses(vec!["10.0.0.4".parse()?])
//!             .with_protocol(TunnelProtocol::Hbone)
//!             .with_services(vec![Membership::new(ratings)])
//!             .into(),
//!         Workload::new("Kubernetes//Pod/default/reviews-v1", "default", "reviews-v1").into(),
//!     ],
//!     Vec::new(),
//! );
//! let snapshot = Snapshot::new().apply(&batch).snapshot;
//!
//! let reviews = snapshot.workload_named("default", "reviews-v1").unwrap();
//! let source = Source::new(Arc::clone(reviews));
//! let target = Target::Host { name: "ratings", port: 80 };
//! let Resolution::Found(route) = snapshot.resolve(&source, target, &[], &mut || 7) else {
//!     panic!("there is one healthy endpoint");
//! };
//! let Hop::Hbone(tunnel) = route.hop() else { panic!("which takes tunnels") };
//! assert_eq!(tunnel.next_hop(), "10.0.0.4:15008".parse()?);
//! assert_eq!(tunnel.authority().to_string(), "10.0.0.4:9080");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod apply;
mod attach;
mod claims;
mod draft;
mod endpoints;
mod hashing;
mod inbound;
mod index;
mod late;
mod listeners;
mod lookup;
mod policies;
mod record;
mod remains;
mod resolve;
mod route;
mod weighted;

use std::fmt;
use std::sync::Arc;

use mesh_xds::model::{InboundListener, ServiceName};

pub use apply::{Applied, Changes};
pub(crate) use draft::{Draft, verdicts};
pub use inbound::{Inbound, InboundRefusal};
pub(crate) use lookup::service_names;
pub use policies::PolicyView;
pub use record::{MembershipRecord, ServicePort, ServiceRecord, WorkloadRecord};
pub(crate) use remains::Remains;
pub use route::{
    Authority, EndpointId, Hop, Lookup, Refusal, Resolution, Route, Source, Target, Tunnelled,
};

use attach::Attachments;
use claims::Claims;
use endpoints::Endpoints;
use hashing::HashTable;
use index::{AddressTable, ByName, ByOwnership, ByPrecedence, ByUid, CidrTable, Grouped, Interner};
use policies::PolicyCache;
use record::{Place, Profile};
use weighted::WeightedTree;

/// The whole mesh at one moment. Cloning is one reference count.
#[derive(Clone)]
pub struct Snapshot {
    tables: Arc<Tables>,
}

#[derive(Clone)]
struct Tables {
    /// How many batches came before.
    version: u64,
    /// Trees, where hash tables would do: they take half of the memory, and few ask by uid or name.
    workloads: WeightedTree<Arc<WorkloadRecord>, ByUid>,
    workload_names: WeightedTree<Arc<WorkloadRecord>, ByName>,
    workload_addresses: AddressTable,
    workload_hostnames: HashTable<Arc<str>, Workloads>,
    services: ServiceTable,
    service_hostnames: HashTable<Arc<str>, Services>,
    /// By network and address.
    virtual_addresses: Grouped<std::net::IpAddr, Services>,
    /// By network.
    virtual_ranges: HashTable<Arc<str>, CidrTable>,
    /// By address and port.
    listeners: HashTable<std::net::SocketAddr, Arc<InboundListener>>,
    places: Interner<Place>,
    profiles: Interner<Profile>,
    attachments: Arc<Attachments>,
    policy_cache: Arc<PolicyCache>,
}

type ServiceTable = HashTable<ServiceName, ServiceEntry>;
type Workloads = Claims<Arc<WorkloadRecord>, ByPrecedence>;
type Services = Claims<Arc<ServiceRecord>, ByOwnership>;

/// A service and its endpoints; either may be here before the other.
#[derive(Clone, Default)]
struct ServiceEntry {
    record: Option<Arc<ServiceRecord>>,
    endpoints: Endpoints,
}

impl Snapshot {
    /// An empty mesh.
    pub fn new() -> Self {
        Self {
            tables: Arc::new(Tables {
                version: 0,
                workloads: WeightedTree::default(),
                workload_names: WeightedTree::default(),
                workload_addresses: AddressTable::default(),
                workload_hostnames: HashTable::default(),
                services: HashTable::default(),
                service_hostnames: HashTable::default(),
                virtual_addresses: Grouped::default(),
                virtual_ranges: HashTable::default(),
                listeners: HashTable::default(),
                places: Interner::default(),
                profiles: Interner::default(),
                attachments: Arc::default(),
                policy_cache: Arc::default(),
            }),
        }
    }

    /// How many batches were applied since the empty mesh.
    pub fn version(&self) -> u64 {
        self.tables.version
    }

    /// Whether both are the same value (not only equal ones).
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tables, &other.tables)
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot")
            .field("version", &self.tables.version)
            .field("workloads", &self.tables.workloads.len())
            .field("services", &self.tables.services.size())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
