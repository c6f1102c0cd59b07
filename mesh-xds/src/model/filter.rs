//! What a route does to requests and responses (filters of the Gateway API).

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::{BackendRef, ObjectRef};

/// What is done to a request or its response.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HttpFilter {
    /// Changes the request's headers.
    RequestHeaders(HeaderChanges),
    /// Changes the response's headers.
    ResponseHeaders(HeaderChanges),
    /// Sends a copy of the request elsewhere.
    Mirror(Mirror),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes host and path of the request.
    Rewrite(Rewrite),
    /// Answers preflights and marks answers for other origins.
    Cors(Cors),
    /// An extension that the implementation may know; one that it does not know must fail the request.
    Extension(ObjectRef),
}

/// Changes to headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderChanges {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderChanges {
    /// Makes no changes.
    pub fn new() -> Self {
        Self {
            set: Vec::new(),
            add: Vec::new(),
            remove: Vec::new(),
        }
    }

    /// Sets [`set`](Self::set).
    #[must_use]
    pub fn with_set(mut self, set: Vec<(HeaderName, HeaderValue)>) -> Self {
        self.set = set;
        self
    }

    /// Sets [`add`](Self::add).
    #[must_use]
    pub fn with_add(mut self, add: Vec<(HeaderName, HeaderValue)>) -> Self {
        self.add = add;
        self
    }

    /// Sets [`remove`](Self::remove).
    #[must_use]
    pub fn with_remove(mut self, remove: Vec<HeaderName>) -> Self {
        self.remove = remove;
        self
    }

    /// Headers to overwrite.
    pub fn set(&self) -> &[(HeaderName, HeaderValue)] {
        &self.set
    }

    /// Headers to add to those that are there.
    pub fn add(&self) -> &[(HeaderName, HeaderValue)] {
        &self.add
    }

    /// Headers to remove.
    pub fn remove(&self) -> &[HeaderName] {
        &self.remove
    }
}

/// Where copies of requests go and of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    backend: BackendRef,
    numerator: u32,
    denominator: u32,
}

impl Mirror {
    /// Makes a mirror of a share of the requests; 1 of 1 is all.
    pub fn new(backend: BackendRef, numerator: u32, denominator: u32) -> Self {
        Self {
            backend,
            numerator,
            denominator,
        }
    }

    /// Where the copies go.
    pub fn backend(&self) -> &BackendRef {
        &self.backend
    }

    /// Of [`denominator`](Self::denominator) requests, so many are copied.
    pub fn numerator(&self) -> u32 {
        self.numerator
    }

    /// The base of the share; never 0.
    pub fn denominator(&self) -> u32 {
        self.denominator
    }
}

/// A redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<Arc<str>>,
    hostname: Option<Arc<str>>,
    path: Option<PathChange>,
    port: Option<u16>,
    status_code: u16,
}

impl Redirect {
    /// Makes a redirect that changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`scheme`](Self::scheme).
    #[must_use]
    pub fn with_scheme(mut self, scheme: impl Into<Arc<str>>) -> Self {
        self.scheme = Some(scheme.into());
        self
    }

    /// Sets [`hostname`](Self::hostname).
    #[must_use]
    pub fn with_hostname(mut self, hostname: impl Into<Arc<str>>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Sets [`path`](Self::path).
    #[must_use]
    pub fn with_path(mut self, path: PathChange) -> Self {
        self.path = Some(path);
        self
    }

    /// Sets [`port`](Self::port).
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Sets [`status_code`](Self::status_code).
    #[must_use]
    pub fn with_status_code(mut self, status_code: u16) -> Self {
        self.status_code = status_code;
        self
    }

    /// The scheme; the request's when unset.
    pub fn scheme(&self) -> Option<&str> {
        self.scheme.as_deref()
    }

    /// The host; the request's when unset.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// The path; the request's when unset.
    pub fn path(&self) -> Option<&PathChange> {
        self.path.as_ref()
    }

    /// The port; unset, the scheme's, or the listener's.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The status. Default: 302.
    pub fn status_code(&self) -> u16 {
        self.status_code
    }
}

/// A rewrite.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewrite {
    hostname: Option<Arc<str>>,
    path: Option<PathChange>,
}

impl Rewrite {
    /// Makes a rewrite that changes nothing.
    pub fn new() -> Self {
        Self {
            hostname: None,
            path: None,
        }
    }

    /// Sets [`hostname`](Self::hostname).
    #[must_use]
    pub fn with_hostname(mut self, hostname: impl Into<Arc<str>>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Sets [`path`](Self::path).
    #[must_use]
    pub fn with_path(mut self, path: PathChange) -> Self {
        self.path = Some(path);
        self
    }

    /// The new host.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// The new path.
    pub fn path(&self) -> Option<&PathChange> {
        self.path.as_ref()
    }
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status_code: 302,
        }
    }
}

/// A change of the path.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathChange {
    /// The whole path is replaced.
    Full(Arc<str>),
    /// The prefix that matched is replaced.
    Prefix(Arc<str>),
}

/// Cross-origin resource sharing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cors {
    allow_origins: Vec<Arc<str>>,
    allow_methods: Vec<Arc<str>>,
    allow_headers: Vec<Arc<str>>,
    expose_headers: Vec<Arc<str>>,
    allow_credentials: bool,
    max_age: Option<Duration>,
}

impl Cors {
    /// Allows nothing.
    pub fn new() -> Self {
        Self {
            allow_origins: Vec::new(),
            allow_methods: Vec::new(),
            allow_headers: Vec::new(),
            expose_headers: Vec::new(),
            allow_credentials: false,
            max_age: None,
        }
    }

    /// Sets [`allow_origins`](Self::allow_origins).
    #[must_use]
    pub fn with_allow_origins(mut self, allow_origins: Vec<Arc<str>>) -> Self {
        self.allow_origins = allow_origins;
        self
    }

    /// Sets [`allow_methods`](Self::allow_methods).
    #[must_use]
    pub fn with_allow_methods(mut self, allow_methods: Vec<Arc<str>>) -> Self {
        self.allow_methods = allow_methods;
        self
    }

    /// Sets [`allow_headers`](Self::allow_headers).
    #[must_use]
    pub fn with_allow_headers(mut self, allow_headers: Vec<Arc<str>>) -> Self {
        self.allow_headers = allow_headers;
        self
    }

    /// Sets [`expose_headers`](Self::expose_headers).
    #[must_use]
    pub fn with_expose_headers(mut self, expose_headers: Vec<Arc<str>>) -> Self {
        self.expose_headers = expose_headers;
        self
    }

    /// Sets [`allow_credentials`](Self::allow_credentials).
    #[must_use]
    pub fn with_allow_credentials(mut self, allow_credentials: bool) -> Self {
        self.allow_credentials = allow_credentials;
        self
    }

    /// Sets [`max_age`](Self::max_age).
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// The origins; `*` is a wildcard.
    pub fn allow_origins(&self) -> &[Arc<str>] {
        &self.allow_origins
    }

    /// The methods; `*` is any.
    pub fn allow_methods(&self) -> &[Arc<str>] {
        &self.allow_methods
    }

    /// The request headers; `*` is any.
    pub fn allow_headers(&self) -> &[Arc<str>] {
        &self.allow_headers
    }

    /// The response headers that scripts may read.
    pub fn expose_headers(&self) -> &[Arc<str>] {
        &self.expose_headers
    }

    /// Whether credentials may be sent.
    pub fn allow_credentials(&self) -> bool {
        self.allow_credentials
    }

    /// How long a preflight may be kept.
    pub fn max_age(&self) -> Option<Duration> {
        self.max_age
    }
}
