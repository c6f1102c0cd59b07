//! Calls a handler as any identity, in memory: no sockets, no certificates, no configuration.
//!
//! The handler is what the application gives its server: any tower HTTP service, such as an axum
//! `Router` or tonic's `Routes`. What runs around it is the very stack that a listener puts there,
//! [`InboundLayer`](crate::layers::InboundLayer). Everything here and in the layers takes its time from
//! tokio, so a test under `#[tokio::test(start_paused = true)]` waits for nothing.

mod caller;

pub use caller::{Caller, Received};
