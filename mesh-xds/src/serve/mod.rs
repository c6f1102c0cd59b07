//! The control plane's side: the model out as discovery, and certificates.
//!
//! A [`Server`] holds what is served. It is fed with the same [`Batch`]es that the sources of this crate
//! yield, and tells each client what concerns it: workloads and services
//! (`istio.workload.Address`) and policies in their L4 reduction (`istio.security.Authorization`), over delta
//! discovery or the state of the world, as istiod sends them to ambient clients. With a [`Ca`] it signs
//! certificates of the identities that an [`Authenticator`] finds its callers to have.
//!
//! [`Server::service`] is a tower service: connections, TLS and tasks are the caller's.
//!
//! # What clients are sent
//!
//! * Everything, or what they name: `<network>/<address>`, the uid of a workload, `<namespace>/<hostname>`, as they
//!   ask; a service comes with its workloads. A name that stands for nothing is answered as removed, and so is
//!   what came with a name that is taken back.
//! * Nothing before the first [`apply`](Server::apply): a server that has been told of nothing yet does not say that
//!   all is gone.
//! * Versions are of the contents, so a client that comes back, even to a server that was started anew, is
//!   sent what differs from what it says it has.
//! * One response of a type is on its way until the client has answered it. What changes meanwhile is
//!   merged into the next one, and a response is made in pieces of 64 KiB as the client reads it, of resources that are
//!   encoded once for all clients: a slow client costs 8 bytes for each, and those that became others since.
//! * Policies come before the addresses that list them and go after those that list them no more, so that
//!   one that has another name now binds all the time. Addresses wait for a client that has not answered
//!   the policies before.
//! * Of a policy on requests clients get what is left of it without them: what an ALLOW cannot say is not
//!   met, what a DENY cannot say is met. CUSTOM ones are sent as the refusals that they are where nobody
//!   asks an external authorizer; istiod does not send them.
//! * AUDIT policies and those with `targetRefs` are not sent: [`Server::withheld`] names them, and a warning
//!   is logged for those that would bind something.
//! * A `sidecar~` node with `GENERATOR=grpc` and `ENABLE_HBONE="true"` may ask for its inbound listeners,
//!   `xds.istio.io/grpc/lds/inbound/<address>:<port>`, which have the policies of a port whole: it gets those of
//!   workloads that run as itself, of ports that a service names.
//! * Other types are answered with nothing.
//!
//! # Hosts
//!
//! A host outside Kubernetes registers with its stream, by `AUTO_REGISTER_GROUP` in its node's metadata: it gets an
//! entry of that name's WorkloadGroup, as with istiod ([`Server::set_workload_groups`], [`Registrations`]). What it
//! reports of its application's health is the entry's; with a readiness probe in the group, or one of its own, it
//! is unhealthy until it says otherwise. One report of a stream counts in an
//! [interval](ServerBuilder::health_interval), the last. The entry goes a while after the host's last stream.
//!
//! # Who is turned away
//!
//! Who does not prove who it is, or asks for what it may not have, is told why, and so is the operator: by a warning,
//! one for each caller and reason in ten seconds and at most twenty in all, and by [`Server::rejections`].
//!
//! [`Batch`]: crate::model::Batch

mod auth;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod ca;
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
mod certificates;
mod discovery;
mod host;
mod outgoing;
mod registrations;
mod registry;
mod rejections;
mod reports;
mod server;
mod service;
mod session;
mod status;
mod store;
mod stream;
mod subscribed;
#[cfg(test)]
mod tests;

pub use auth::{Authenticating, Authenticator, Credentials, Peer, Remote, Unauthenticated};
#[cfg(any(feature = "aws-lc-rs", feature = "ring"))]
pub use ca::Ca;
pub use registrations::Registrations;
pub use registry::HostEntry;
pub use rejections::Rejection;
pub use server::{Server, ServerBuilder};
pub use service::{Answer, Body, Service};
pub use status::{ClientStatus, Refusal, Subscription, Withheld};
