//! The validated model of an Istio ambient mesh and the sources that produce it.
//!
//! [`model`] is the vocabulary in which every source describes the mesh: plain values, no wire form.
//! With the feature `file` (on by default), [`file`](mod@file) reads them from Kubernetes manifests or from ztunnel's local
//! configuration and keeps them current.
//!
//! With the feature `client` (off by default), `transport` reaches a control plane over connections that the caller
//! makes, `ads` follows what it says of the mesh, which `decode` reads, `ca` gets certificates there, and
//! `grpc_health` asks a gRPC server how it is. With the feature `server` (off by default), `serve` is the other side:
//! the model out, and certificates. No type of protobuf or gRPC is part of any interface.

#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod ads;
#[cfg(feature = "client")]
pub mod ca;
#[cfg(feature = "client")]
pub mod decode;
#[cfg(feature = "server")]
mod encode;
#[cfg(any(feature = "client", feature = "server"))]
mod error;
#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "client")]
pub mod grpc_health;
#[cfg(feature = "client")]
mod hashing;
#[cfg(feature = "file")]
mod manifest;
pub mod model;
#[cfg(any(feature = "client", feature = "server"))]
mod proto;
#[cfg(feature = "server")]
pub mod serve;
#[cfg(feature = "client")]
pub mod transport;
#[cfg(feature = "workload-api")]
pub mod workload_api;

#[cfg(any(feature = "client", feature = "server"))]
pub use error::{Error, ErrorKind};
