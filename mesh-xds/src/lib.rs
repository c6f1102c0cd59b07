//! The validated model of an Istio ambient mesh and the sources that produce it.

#![forbid(unsafe_code)]

pub mod model;
