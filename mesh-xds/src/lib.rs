//! The validated model of an Istio ambient mesh and the sources that produce it.
//!
//! [`model`] is the vocabulary in which every source describes the mesh: plain values, no wire form.
//! With the feature `file` (on by default), [`file`](mod@file) reads them from Kubernetes manifests or from ztunnel's local
//! configuration and keeps them current.

#![forbid(unsafe_code)]

#[cfg(feature = "file")]
pub mod file;
#[cfg(feature = "file")]
mod manifest;
pub mod model;
