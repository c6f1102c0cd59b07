//! HBONE tunnels: SPIFFE mutual TLS and HTTP/2 CONNECT.
//!
//! A tunnel is one CONNECT stream ([RFC 9113 section 8.5](https://www.rfc-editor.org/rfc/rfc9113#section-8.5))
//! of an HTTP/2 connection over mutual TLS; many tunnels share a connection.
//!
//! - [`tls`]: who is at the other end.
//! - [`client`]: opens tunnels; [`pool`] shares connections between callers.
//! - [`server`]: accepts tunnels, or refuses them with a status.
//! - [`Tunnel`]: the bytes, as tokio I/O with real half-close; [`copy`] joins two such streams.
#![forbid(unsafe_code)]

pub mod authority;
pub mod client;
pub mod config;
pub mod copy;
mod driver;
mod error;
mod flows;
mod flush;
mod frame_buf;
mod frames;
mod framing;
pub mod headers;
pub mod keepalive;
mod payloads;
pub mod pool;
pub mod server;
mod shared_io;
mod spares;
mod sync;
pub mod tls;
mod tunnel;
mod windows;

pub use error::{Error, ErrorKind, Side};
pub use flush::DeferredFlush;
pub use frame_buf::FrameBuf;
pub use tunnel::{ResetHandle, Tunnel};
