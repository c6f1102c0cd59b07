//! Behaviour of the crate as its users see it.
//!
//! The properties run 256 cases each; `PROPTEST_CASES=100000 cargo test --release -p mesh-authz` runs
//! as many as a release wants.

mod cidr;
mod crd;
mod decisions;
mod equivalence;
mod generate;
mod headers;
mod interpreter;
mod istio_goldens;
mod lowering;
mod monotone;
mod normalisation;
mod require;
mod scale;
mod spiffe_ids;
mod strings;
mod subjects;
mod ztunnel_clauses;
