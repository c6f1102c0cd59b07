//! Who may talk to whom, decided: `PolicySet::evaluate(&Attributes) -> Decision`.
//!
//! Identities and policies of the mesh, with Istio's semantics and without any I/O.

mod attributes;
mod identity;
pub mod matcher;
pub mod policy;

pub use attributes::{Attribute, Attributes, RequestAttributes};
pub use identity::{Identity, InvalidIdentity};
