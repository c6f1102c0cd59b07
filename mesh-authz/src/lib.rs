//! Who may talk to whom, decided: `PolicySet::evaluate(&Attributes) -> Decision`.
//!
//! Identities and policies of the mesh, with Istio's semantics and without any I/O: nothing here waits,
//! reads a clock, or knows TLS, HTTP connections or protobuf.
//!
//! ```
//! # use std::sync::Arc;
//! # use mesh_authz::policy::{TrustDomains, istio::{AuthorizationPolicy, Rule, Source}};
//! # use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
//! # let mut source = Source::default();
//! # source.namespaces = vec!["shop".into()];
//! # let mut rule = Rule::default();
//! # rule.from = vec![source];
//! # let mut resource = AuthorizationPolicy::new("default", "shop-only");
//! # resource.rules = vec![rule];
//! # let (from, to) = ("10.0.0.7:51000".parse().unwrap(), "10.0.0.9:9080".parse().unwrap());
//! let policies = PolicySet::new([Arc::new(resource.lower(&TrustDomains::default())?)]);
//! let caller = Identity::parse("spiffe://cluster.local/ns/shop/sa/cart")?;
//! let connection = Attributes::new(from, to).with_identity(Attribute::Present(&caller));
//! assert!(policies.evaluate_l4(&connection).is_allowed());
//! println!("{}", policies.explain_l4(&connection));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # By role
//!
//! - **A source of configuration** reads a resource into [`policy::istio`] or [`policy::ztunnel`] and
//!   lowers it to a [`policy::Policy`]; every field that cannot be meant is an [`Error`] with its path.
//! - **A listener for any protocol** asks [`PolicySet::evaluate_l4`].
//! - **An HTTP listener** asks [`PolicySet::could_allow`] when a tunnel opens and
//!   [`PolicySet::evaluate`] for each request, whose path went through
//!   [`PathNormalization`](matcher::PathNormalization).
//! - **A person** asks [`PolicySet::explain`].
//!
//! # What is known, and what is not
//!
//! An attribute is *present*, *absent* or *unknown* ([`Attribute`]). Of an absent one (the identity of a
//! plaintext caller, the claims of a token that nobody verified) a matcher is false and its `not` true.
//! An unknown one counts against access, but in [`PolicySet::could_allow`], which asks whether access is
//! possible at all. Tokens are not verified yet: request principals and claims are always absent.
//!
//! # Stability
//!
//! Semantic versioning covers names, signatures and decisions, with two exceptions: a decision may
//! become stricter where it was found to admit what Istio denies, and the text of [`Explanation`],
//! `Debug` output and the wording of errors may change at any time. Enums and structs are
//! `#[non_exhaustive]`. The texts of [`Decision`] are kept, as they appear in access logs.
//!
//! The types of [`http`] and [`ipnet`] are part of this API. The minimum Rust version is 1.89; raising
//! it is a minor change.
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
