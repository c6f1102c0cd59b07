//! Connections from others: tunnels to the one HBONE acceptor of a workload, and plaintext to its ports.

mod acceptor;
mod account;
#[cfg(feature = "http")]
mod demanded;
mod enforcement;
#[cfg(feature = "http")]
mod http;
mod listener;
mod live;
mod places;
mod plaintext;
mod registry;
mod sessions;
mod validity;

pub(crate) use acceptor::{Acceptor, LAST_WORDS};
pub(crate) use account::baggage;
pub(crate) use enforcement::{Enforcement, Missings};
#[cfg(feature = "http")]
pub(crate) use http::LayerUse;
#[cfg(feature = "axum")]
pub use http::{AxumFuture, AxumService};
#[cfg(feature = "http")]
pub use http::{HttpLayer, HttpListener, Wrapped};
pub use listener::MeshListener;
pub(crate) use listener::PortListener;
pub(crate) use live::{Live, Phase, reaches};
pub(crate) use places::Places;
#[cfg(any(feature = "admin", feature = "istiod"))]
pub(crate) use registry::Judgement;
pub(crate) use registry::Registered;
#[cfg(test)]
pub(crate) use registry::Registry;
pub(crate) use validity::is_revoked;
