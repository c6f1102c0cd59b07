//! The service mesh as a library: `mesh.listen_http(port) -> listener + layer`, `mesh.connect("host:port") -> stream`.
//!
//! An application wraps its hyper, axum or tonic service in the mesh's layer and is a member of an
//! Istio ambient mesh: SPIFFE mutual TLS in HBONE tunnels, discovery, L4 and L7 authorization,
//! configuration that changes while it runs. No proxy stands beside it.
//!
//! ```no_run
//! use axum::{Router, routing::get};
//! use mesh_core::{Mesh, config, identity}; // with the feature `axum`
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let router = Router::new().route("/", get(|| async { "hello" }));
//!
//! let mesh = Mesh::builder()
//!     .workload("default", "reviews-v1", "bookinfo-reviews")
//!     .config(config::File::watch("bookinfo.yaml"))
//!     .identity(identity::DevCa::in_dir(".mesh-dev", "cluster.local"))
//!     .build()?;
//! let http = mesh.listen_http(9080).await?;
//! axum::serve(http.listener, http.layer.wrap(router)).with_graceful_shutdown(mesh.draining()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # By role
//!
//! - **HTTP servers**: [`Mesh::listen_http`] gives a listener and a layer as one value. axum takes
//!   both as above (feature `axum`); tonic takes `Server::builder().layer(http.layer)` and
//!   `serve_with_incoming_shutdown(http.listener, mesh.draining())` (feature `tonic`); any tower
//!   service goes to [`HttpListener::serve`]. Handlers find the caller in
//!   [`layers::PeerIdentity`] and [`ConnectionContext`], in the request's extensions.
//! - **Any other server**: [`Mesh::listen`], whose streams are tokio's `AsyncRead + AsyncWrite`.
//! - **HTTP clients**: [`Mesh::http_client`] balances by request; [`Mesh::connector`] fits
//!   hyper-util's and tonic's own clients.
//! - **Any other client**: [`Mesh::connect`].
//! - **Several workloads in one process**: a [`Node`] that they share.
//! - **Operations**: [`Mesh::admin`] explains decisions, dumps what is known and has the metrics; [`telemetry`];
//!   [`Mesh::shutdown`] and [`Mesh::draining`].
//! - **istiod, and hosts outside Kubernetes** (feature `istiod`): `ControlPlane`, `config::Xds` and `identity::Istiod`;
//!   `Builder::bootstrap_dir` and `health::Probe`.
//! - **Manifests**: the kinds and fields that [`config::File`] reads are in [`xds::file`].
//! - **Errors**: one [`Error`], with [`Error::kind`], [`Error::is_denied`] and the [`Error::reply`] of a proxy. `Display` (`{}`) is
//!   its own text, `Debug` (`{:?}`) has the causes as well.
//! - **Tests**: [`testing`] calls a handler as any identity, in memory.
//! - **Your own sources**: [`config::ConfigSource`] and [`identity::CertificateSource`], one method
//!   each. Everything else extends by tower's `Service` and `Layer`.
//!
//! # Features
//!
//! Default: `aws-lc-rs` (crypto), `file` (manifests), `dev-ca` (certificates without an authority), `http` (layers and
//! client), `metrics`, `admin`. Off: `ring` (other crypto), `istiod` (control plane, hosts outside Kubernetes), `workload-api`
//! (SPIRE), `axum` (for `axum::serve`), `tonic` (its server).
//! Features add and never change behaviour; `aws-lc-rs` and `ring` may both be on. The crypto
//! provider is a value of the builder: the process default is neither read nor set.
//!
//! # Logs
//!
//! Events of `tracing`, under these targets. What somebody should look at is WARN or ERROR; each denial is DEBUG, since
//! who is denied can repeat it as often as it likes.
//!
//! | target | says |
//! |---|---|
//! | `mesh::access` | connections and requests as they end: [`telemetry::AccessLog`], [`telemetry::RequestLog`] |
//! | `mesh::admin` | connections to the admin service that failed |
//! | `mesh::authz` | connections and requests that were refused, with policy and rule; dry runs |
//! | `mesh::config` | configuration that was applied, refused or passed over; what is waited for; the control plane |
//! | `mesh::hbone` | tunnels and their connections, in detail |
//! | `mesh::health` | the readiness probe |
//! | `mesh::identity` | certificates and roots: what was renewed, what could not be, what is waited for |
//! | `mesh::inbound` | listeners: connections that failed before they were judged, layers that are missing |
//! | `mesh::layers` | errors that a layer answered, requests that came around the listener |
//! | `mesh::net` | sockets |
//! | `mesh::node` | tasks that ended, drains that cut |
//! | `mesh::outbound` | hosts outside of the mesh, connections that were tried again or closed |
//! | `mesh::retry` | [`layers::RetryLayer`]: requests that were sent again |
//!
//! # Stability
//!
//! Before 1.0 every minor version may break. Not covered by any promise: `Debug` output, the text of
//! errors and logs, and the exact bytes of what the admin service answers.

// The README's code compiles, with the features that its servers need.
#[cfg(all(
    doctest,
    feature = "axum",
    feature = "tonic",
    feature = "file",
    feature = "dev-ca",
    feature = "istiod"
))]
#[doc = include_str!("../../README.md")]
struct Readme;

// Tests in here share files with those outside.
#[cfg(test)]
extern crate self as mesh_core;

mod account;
#[cfg(feature = "admin")]
pub mod admin;
#[cfg(feature = "istiod")]
mod bootstrap;
mod builder;
pub mod config;
mod context;
#[cfg(feature = "istiod")]
#[cfg_attr(
    not(any(feature = "aws-lc-rs", feature = "ring")),
    allow(dead_code, reason = "without crypto there is nothing to fetch or keep")
)]
mod control_plane;
mod error;
#[cfg(feature = "istiod")]
pub mod health;
pub mod identity;
mod inbound;
pub mod layers;
mod mesh;
mod misnamed;
mod missed;
mod net;
mod node;
mod outbound;
mod policies;
mod random;
mod ready;
mod settings;
mod shutdown;
pub mod snapshot;
mod sync;
mod tasks;
pub mod telemetry;
pub mod testing;
mod upkeep;

pub use builder::{Builder, Missing};
pub use context::ConnectionContext;
#[cfg(feature = "istiod")]
pub use control_plane::ControlPlane;
pub use error::{BoxError, Error, ErrorKind, LocalReply, ResponseFlag, Side};
pub use inbound::MeshListener;
#[cfg(feature = "axum")]
pub use inbound::{AxumFuture, AxumService};
#[cfg(feature = "http")]
pub use inbound::{HttpLayer, HttpListener, Wrapped};
pub use mesh::{Mesh, WorkloadId};
pub use mesh_authz as authz;
pub use mesh_hbone as hbone;
pub use mesh_xds as xds;
pub use net::{BoxedIo, Incoming, MeshStream, Transport};
pub use node::Node;
#[cfg(feature = "http")]
pub use outbound::{Connecting, MeshBody, MeshClient, MeshConnector, ResponseFuture};
pub use policies::{Enforced, Policies};
pub use ready::Readiness;
pub use settings::OutboundPolicy;
pub use shutdown::Drained;
