//! The service mesh as a library: `Mesh::listen_http(port) -> listener + layer`, `Mesh::connect(host) -> stream`.

mod context;

pub use context::ConnectionContext;
pub use mesh_authz as authz;
pub use mesh_hbone as hbone;
pub use mesh_xds as xds;
