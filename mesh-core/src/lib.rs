//! The service mesh as a library: `Mesh::listen_http(port) -> listener + layer`, `Mesh::connect(host) -> stream`.

mod context;
mod error;
pub mod identity;
pub mod layers;
mod net;
mod policies;
pub mod snapshot;
pub mod telemetry;
pub mod testing;

pub use context::ConnectionContext;
pub use error::{BoxError, Error, ErrorKind, LocalReply, ResponseFlag, Side};
pub use mesh_authz as authz;
pub use mesh_hbone as hbone;
pub use mesh_xds as xds;
pub use policies::{Enforced, Policies};
