//! Behaviour of mesh-hbone, seen from outside.
#![cfg(any(feature = "aws-lc-rs", feature = "ring"))]

mod authority;
mod cancellation;
mod certificates;
mod close_matrix;
mod connection_end;
mod copy;
mod envoy;
mod envoy_accepts;
mod envoy_certificates;
mod envoy_drains;
mod envoy_load;
mod envoy_opens;
mod foreign;
mod frame_bounds;
mod frame_turns;
mod hostile;
#[cfg(target_os = "linux")]
mod memory_limit;
mod peers;
mod polls;
mod pool;
mod require;
mod security_page;
mod tls_admission;
mod tls_bundle;
mod tls_handshake;
mod tls_malformed;
mod tls_named;
mod tls_remembered;
mod tls_stream;
mod tls_swap;
mod tls_verification;
mod tools;
mod tunnel_connect;
mod tunnel_early;
mod tunnel_end;
mod tunnel_flow;
mod tunnel_liveness;
mod tunnel_refused;
mod tunnel_windows;
