//! Connections to others: where to, through which tunnel, and what to do when it fails.

mod account;
#[cfg(feature = "http")]
mod body;
#[cfg(feature = "http")]
mod client;
#[cfg(feature = "http")]
mod connector;
mod dial;
#[cfg(feature = "http")]
mod exchange;
mod hosts;
#[cfg(feature = "http")]
mod http_pool;
#[cfg(feature = "admin")]
mod live;
#[cfg(feature = "http")]
mod report;
#[cfg(feature = "http")]
mod running;
mod seek;
mod target;

#[cfg(feature = "http")]
pub use body::MeshBody;
#[cfg(feature = "http")]
pub use client::{MeshClient, ResponseFuture};
#[cfg(feature = "http")]
pub use connector::{Connecting, MeshConnector};
pub(crate) use dial::PoolKey;
pub(crate) use hosts::Hosts;
#[cfg(feature = "istiod")]
pub(crate) use hosts::in_order;
#[cfg(feature = "http")]
pub(crate) use http_pool::HttpPool;
#[cfg(feature = "admin")]
pub(crate) use live::{Live, Outbound, Tracked};
#[cfg(feature = "admin")]
pub(crate) use target::Destination;
