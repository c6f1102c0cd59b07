//! The mesh as a control plane or a file describes it: workloads, services, policies, routes.
//!
//! Types are plain values without a wire form: made by constructors and `with_` setters, read by
//! accessors. A source hands them over in a [`Batch`]; whoever applies it answers one [`Verdict`] per
//! resource.
//!
//! # Examples
//!
//! ```
//! use mesh_xds::model::{Membership, Port, Service, ServiceName, TunnelProtocol, Workload};
//!
//! let name = ServiceName::new("default", "ratings.default.svc.cluster.local");
//! let port = Port::new(9080).with_target_port(9080);
//! let ratings = Service::new(name.clone()).with_ports(vec![port]);
//! let pod = Workload::new("Kubernetes//Pod/default/ratings-v1", "default", "ratings-v1")
//!     .with_addresses(vec!["127.0.0.4".parse()?])
//!     .with_protocol(TunnelProtocol::Hbone)
//!     .with_service_account("bookinfo-ratings")
//!     .with_services(vec![Membership::new(name).with_ports(vec![port])]);
//! assert_eq!(ratings.namespace(), "default");
//! assert_eq!(
//!     pod.identity()?.to_string(),
//!     "spiffe://cluster.local/ns/default/sa/bookinfo-ratings"
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod filter;
mod gateway;
mod group;
mod inbound;
mod policy;
mod route;
mod service;
mod update;
mod workload;

pub use address::{GatewayAddress, GatewayDestination, NetworkAddress, ObjectName, ObjectRef};
pub use filter::{Cors, HeaderChanges, HttpFilter, Mirror, PathChange, Redirect, Rewrite};
pub use gateway::{AllowedNamespaces, Gateway, Listener, WaypointFor};
pub use group::WorkloadGroup;
pub use inbound::InboundListener;
pub use policy::{
    AttachedPolicy, Jwks, JwtRule, RequestAuthentication, Scope, Target, TokenLocation,
};
pub use route::{
    BackendRef, HttpBackend, HttpMatch, HttpRetry, HttpRoute, HttpRouteRule, HttpTimeouts,
    ParentRef, PathRule, ValueMatch,
};
pub use service::{
    AppProtocol, HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, LocalityScope, Port,
    Service, ServiceName, Visibility, WeightedWaypoint,
};
pub use update::{Batch, BatchReply, Rejection, ResourceName, Update, Verdict};
pub use workload::{
    ApplicationProtocol, ApplicationTunnel, HBONE_PORT, Health, Locality, Membership, NetworkMode,
    TunnelProtocol, Workload, WorkloadPlace, WorkloadProfile, WorkloadType,
};
