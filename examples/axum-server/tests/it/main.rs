//! The example in Kubernetes: its manifest, and its program with what the manifest gives it.

mod manifest;
mod starts;
