//! SPIFFE identities in the form that Istio gives them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE id accepted, in bytes ([SPIFFE-ID §2.3](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md)).
const MAX_URI: usize = 2048;

/// Longest trust domain accepted, in bytes (the same section: it is a URI's host).
const MAX_TRUST_DOMAIN: usize = 255;

/// Names one workload identity: `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
///
/// Cloning is one reference count. Comparison is exact and case-sensitive, as SPIFFE demands: no
/// folding, no decoding, no wildcard.
///
/// # Examples
///
/// ```
/// use mesh_authz::Identity;
///
/// let id: Identity = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse()?;
/// assert_eq!(id.service_account(), "bookinfo-reviews");
/// assert_eq!(id.principal(), "cluster.local/ns/default/sa/bookinfo-reviews");
/// assert!("spiffe://cluster.local/ns//sa/x".parse::<Identity>().is_err());
/// # Ok::<(), mesh_authz::InvalidIdentity>(())
/// ```
#[derive(Clone, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// `td/ns/<namespace>/sa/<service account>`; the offsets are recomputed from the lengths below.
    principal: Arc<str>,
    trust_domain: u16,
    namespace: u16,
}

impl Identity {
    /// Makes an identity from its three parts.
    ///
    /// # Errors
    ///
    /// [`InvalidIdentity`] names the part that is empty or has a character that SPIFFE refuses.
    pub fn new(
        trust_domain: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, InvalidIdentity> {
        check("trust domain", trust_domain, is_trust_domain_char)?;
        if trust_domain.len() > MAX_TRUST_DOMAIN {
            return Err(InvalidIdentity::new("trust domain", "at most 255 bytes"));
        }
        check("namespace", namespace, is_path_char)?;
        check("service account", service_account, is_path_char)?;
        let principal = format!("{trust_domain}/ns/{namespace}/sa/{service_account}");
        if principal.len() + SCHEME.len() > MAX_URI {
            return Err(InvalidIdentity::new("id", "at most 2048 bytes"));
        }
        Ok(Self {
            principal: principal.into(),
            // Both fit: the whole is at most MAX_URI.
            trust_domain: trust_domain.len() as u16,
            namespace: namespace.len() as u16,
        })
    }

    /// Parses a SPIFFE URI.
    ///
    /// # Errors
    ///
    /// [`InvalidIdentity`] for any other scheme, any other path shape, an empty segment, or a
    /// character outside SPIFFE's set (so percent signs, NUL, queries and ports are refused).
    pub fn parse(uri: &str) -> Result<Self, InvalidIdentity> {
        let rest = uri
            .strip_prefix(SCHEME)
            .ok_or_else(|| InvalidIdentity::new("scheme", "the prefix spiffe://"))?;
        Self::from_principal(rest)
    }

    /// Parses the form without a scheme that policies use: `td/ns/<namespace>/sa/<account>`.
    ///
    /// # Errors
    ///
    /// As [`Identity::parse`].
    pub fn from_principal(principal: &str) -> Result<Self, InvalidIdentity> {
        let mut parts = principal.split('/');
        let shape = || InvalidIdentity::new("path", "/ns/<namespace>/sa/<service account>");
        let mut next = || parts.next().ok_or_else(shape);
        let (trust_domain, ns, namespace, sa, account) =
            (next()?, next()?, next()?, next()?, next()?);
        if ns != "ns" || sa != "sa" || parts.next().is_some() {
            return Err(shape());
        }
        Self::new(trust_domain, namespace, account)
    }

    /// The trust domain, for example `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        &self.principal[..usize::from(self.trust_domain)]
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        let start = usize::from(self.trust_domain) + "/ns/".len();
        &self.principal[start..start + usize::from(self.namespace)]
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        let start = usize::from(self.trust_domain) + usize::from(self.namespace) + "/ns//sa/".len();
        &self.principal[start..]
    }

    /// The id without its scheme, as policies name principals: `td/ns/<namespace>/sa/<account>`.
    pub fn principal(&self) -> &str {
        &self.principal
    }
}

const SCHEME: &str = "spiffe://";

fn check(part: &'static str, value: &str, allowed: fn(u8) -> bool) -> Result<(), InvalidIdentity> {
    if value.is_empty() {
        return Err(InvalidIdentity::new(part, "not to be empty"));
    }
    // SPIFFE-ID 2.2: relative segments have no meaning in an id.
    if value == "." || value == ".." {
        return Err(InvalidIdentity::new(part, "no relative path segment"));
    }
    if !value.bytes().all(allowed) {
        return Err(InvalidIdentity::new(
            part,
            "only a-z, A-Z, 0-9, '.', '-' and '_'",
        ));
    }
    Ok(())
}

/// SPIFFE-ID 2.1 allows lower case only; case is kept here and compared exactly, as Istio does.
fn is_trust_domain_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

/// SPIFFE-ID 2.2.
fn is_path_char(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_')
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        // The lengths follow from the text, and clones have one text.
        Arc::ptr_eq(&self.principal, &other.principal) || self.principal == other.principal
    }
}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.principal.hash(state);
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.principal)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Identity {
    type Err = InvalidIdentity;

    fn from_str(uri: &str) -> Result<Self, InvalidIdentity> {
        Self::parse(uri)
    }
}

/// Says which part of a SPIFFE id is wrong and what was expected there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid SPIFFE id: {part}: expected {expected}")]
pub struct InvalidIdentity {
    part: &'static str,
    expected: &'static str,
}

impl InvalidIdentity {
    fn new(part: &'static str, expected: &'static str) -> Self {
        Self { part, expected }
    }

    /// The part that is wrong: `scheme`, `path`, `trust domain`, `namespace`, `service account` or `id`.
    pub fn part(&self) -> &'static str {
        self.part
    }
}

#[cfg(test)]
mod tests;
