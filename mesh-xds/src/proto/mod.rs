//! Protobuf, as discovery and istiod's certificate authority speak it. Nothing of this leaves the crate.
//!
//! The code in `generated` comes from the `.proto` files in `proto/`: our own subset of each interface,
//! in our own words; the field numbers are facts. `tests/it/generated.rs` writes it anew and fails when
//! it was stale. A message's fields that are not in the subset are dropped, so what carries security has
//! every field and every alternative: one without an alternative is one that nobody knows, and is refused.

#[rustfmt::skip]
#[allow(
    dead_code,
    missing_docs,
    unnameable_types,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::cloned_instead_of_copied,
    clippy::exhaustive_enums,
    clippy::needless_pass_by_value,
    clippy::redundant_clone,
    clippy::semicolon_if_nothing_returned,
    reason = "it is generated"
)]
mod generated;

#[allow(unused_imports, reason = "what a feature does not need")]
pub(crate) use generated::{envoy, google, grpc, istio};

/// SPIFFE's Workload API, which has no package.
#[allow(unused_imports, reason = "what a feature does not need")]
pub(crate) mod workload_api {
    #[cfg(feature = "client")]
    pub(crate) use super::generated::spiffe_workload_api_client;
    pub(crate) use super::generated::{X509svid, X509svidRequest, X509svidResponse};
}

/// The names of resource types, as discovery requests have them.
#[allow(dead_code, reason = "what a feature does not need")]
pub(crate) mod type_url {
    /// Workloads and services.
    pub(crate) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    /// Policies in their L4 reduction.
    pub(crate) const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    /// Envoy's listeners.
    pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
    /// A host's health, reported on the discovery stream; no message has this name.
    pub(crate) const HEALTH: &str = "type.googleapis.com/istio.v1.HealthInformation";
    /// In an extension.
    pub(crate) const UINT32_VALUE: &str = "type.googleapis.com/google.protobuf.UInt32Value";
    /// The name of a workload's extension with the port of its HBONE listener, where that is not 15008.
    pub(crate) const HBONE_PORT_EXTENSION: &str = "mesh.hbone_port";
    /// In a network filter.
    pub(crate) const HTTP_CONNECTION_MANAGER: &str = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    /// In a network filter.
    pub(crate) const NETWORK_RBAC: &str =
        "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    /// In an HTTP filter.
    pub(crate) const HTTP_RBAC: &str =
        "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
    /// In a route's or virtual host's overrides.
    pub(crate) const HTTP_RBAC_PER_ROUTE: &str =
        "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";
    /// In an HTTP filter.
    pub(crate) const ROUTER: &str =
        "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
    /// In a permission.
    pub(crate) const URI_TEMPLATE: &str =
        "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
    /// In a transport socket.
    pub(crate) const DOWNSTREAM_TLS: &str =
        "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
}
