//! Who may talk to whom, decided: `PolicySet::evaluate(&Attributes) -> Decision`.
//!
//! Identities and policies of the mesh, with Istio's semantics and without any I/O.
#![forbid(unsafe_code)]

mod attributes;
mod decision;
mod engine;
mod error;
pub mod explain;
mod identity;
pub mod matcher;
pub mod policy;

pub use attributes::{Attribute, Attributes, RequestAttributes};
pub use decision::{Decision, DryRun, Reason};
pub use engine::PolicySet;
pub use error::{Error, ErrorKind};
pub use explain::Explanation;
pub use identity::{Identity, InvalidIdentity};
