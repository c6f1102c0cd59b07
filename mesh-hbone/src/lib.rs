//! HBONE tunnels: SPIFFE mutual TLS and HTTP/2 CONNECT.
#![forbid(unsafe_code)]

mod error;
mod flush;
pub mod tls;

pub use error::{Error, ErrorKind, Side};
pub use flush::DeferredFlush;
