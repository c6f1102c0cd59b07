use std::borrow::Cow;
use std::fmt;

/// Says which field of a policy is wrong, what it holds and what was expected there.
///
/// # Examples
///
/// ```
/// use mesh_authz::policy::TrustDomains;
/// use mesh_authz::policy::istio::{AuthorizationPolicy, Rule, Source};
///
/// let mut source = Source::default();
/// source.ip_blocks = vec!["10.0.0.0/33".into()];
/// let mut rule = Rule::default();
/// rule.from = vec![source];
/// let mut policy = AuthorizationPolicy::new("default", "clients");
/// policy.rules = vec![rule];
///
/// let error = policy.lower(&TrustDomains::default()).unwrap_err();
/// assert_eq!(error.field(), "spec.rules[0].from[0].source.ipBlocks[0]");
/// assert_eq!(error.value(), Some("10.0.0.0/33"));
/// assert_eq!(format!("{error:?}"), error.to_string());
/// ```
///
/// `{:?}` is the same text, which is what a `main` that returns it prints; `{:#?}` has the fields.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    field: String,
    value: Option<String>,
    expected: Cow<'static, str>,
}

/// What kind of value a policy got wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An address or an address block.
    Cidr,
    /// A port.
    Port,
    /// The key of a condition.
    Key,
    /// A principal, request principal, namespace or trust domain.
    Principal,
    /// A service account.
    ServiceAccount,
    /// A path or a path template.
    Path,
    /// Something is empty that must hold a value.
    Empty,
    /// Two fields exclude each other.
    Conflict,
}

impl Error {
    pub(crate) fn new(
        kind: ErrorKind,
        field: impl Into<String>,
        value: &str,
        expected: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            kind,
            field: field.into(),
            value: Some(value.to_owned()),
            expected: expected.into(),
        }
    }

    pub(crate) fn empty(field: impl Into<String>, expected: &'static str) -> Self {
        Self {
            kind: ErrorKind::Empty,
            field: field.into(),
            value: None,
            expected: expected.into(),
        }
    }

    pub(crate) fn conflict(field: impl Into<String>, expected: &'static str) -> Self {
        Self {
            kind: ErrorKind::Conflict,
            field: field.into(),
            value: None,
            expected: expected.into(),
        }
    }

    /// What kind of value is wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The path of the field in its document, for example `spec.rules[0].from[1].source.ipBlocks[2]`.
    pub fn field(&self) -> &str {
        &self.field
    }

    /// The value that was refused; `None` when it is missing or when several fields are at odds.
    pub fn value(&self) -> Option<&str> {
        self.value.as_deref()
    }

    /// What was expected instead.
    pub fn expected(&self) -> &str {
        &self.expected
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}: {value:?}: expected {}", self.field, self.expected),
            None => write!(f, "{}: expected {}", self.field, self.expected),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !f.alternate() {
            return fmt::Display::fmt(self, f);
        }
        f.debug_struct("Error")
            .field("kind", &self.kind)
            .field("field", &self.field)
            .field("value", &self.value)
            .field("expected", &self.expected)
            .finish()
    }
}

impl std::error::Error for Error {}
