//! HTTPRoute of the Gateway API, parsed in full.
//!
//! Field meanings are those of <https://gateway-api.sigs.k8s.io/reference/spec/>.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};
use mesh_authz::matcher::StringMatch;

use super::{HttpFilter, ObjectName, ObjectRef};

/// An HTTPRoute of the Gateway API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpRoute {
    name: ObjectName,
    hostnames: Vec<Arc<str>>,
    parents: Vec<ParentRef>,
    rules: Vec<HttpRouteRule>,
}

impl HttpRoute {
    /// Makes a route without parents and rules.
    pub fn new(name: ObjectName) -> Self {
        Self {
            name,
            hostnames: Vec::new(),
            parents: Vec::new(),
            rules: Vec::new(),
        }
    }

    /// Sets [`hostnames`](Self::hostnames).
    #[must_use]
    pub fn with_hostnames(mut self, hostnames: Vec<Arc<str>>) -> Self {
        self.hostnames = hostnames;
        self
    }

    /// Sets [`parents`](Self::parents).
    #[must_use]
    pub fn with_parents(mut self, parents: Vec<ParentRef>) -> Self {
        self.parents = parents;
        self
    }

    /// Sets [`rules`](Self::rules).
    #[must_use]
    pub fn with_rules(mut self, rules: Vec<HttpRouteRule>) -> Self {
        self.rules = rules;
        self
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// The hosts it serves; a first label of `*` is a wildcard. None: every host of its parents.
    pub fn hostnames(&self) -> &[Arc<str>] {
        &self.hostnames
    }

    /// What it attaches to.
    pub fn parents(&self) -> &[ParentRef] {
        &self.parents
    }

    /// Its rules; the most specific match wins.
    pub fn rules(&self) -> &[HttpRouteRule] {
        &self.rules
    }
}

/// What a route attaches to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ParentRef {
    target: ObjectRef,
    section_name: Option<Arc<str>>,
    port: Option<u16>,
}

impl ParentRef {
    /// Makes a reference to all of a parent.
    pub fn new(target: ObjectRef) -> Self {
        Self {
            target,
            section_name: None,
            port: None,
        }
    }

    /// Sets [`section_name`](Self::section_name).
    #[must_use]
    pub fn with_section_name(mut self, section_name: impl Into<Arc<str>>) -> Self {
        self.section_name = Some(section_name.into());
        self
    }

    /// Sets [`port`](Self::port).
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The Gateway or Service; its namespace is filled in.
    pub fn target(&self) -> &ObjectRef {
        &self.target
    }

    /// The listener or named port that it attaches to; all when unset.
    pub fn section_name(&self) -> Option<&str> {
        self.section_name.as_deref()
    }

    /// The port that it attaches to; all when unset.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// One rule of a route.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpRouteRule {
    name: Option<Arc<str>>,
    matches: Vec<HttpMatch>,
    filters: Vec<HttpFilter>,
    backends: Vec<HttpBackend>,
    timeouts: HttpTimeouts,
    retry: Option<HttpRetry>,
}

impl HttpRouteRule {
    /// Makes a rule that matches everything and leads nowhere.
    pub fn new() -> Self {
        Self {
            name: None,
            matches: Vec::new(),
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: HttpTimeouts::default(),
            retry: None,
        }
    }

    /// Sets [`name`](Self::name).
    #[must_use]
    pub fn with_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets [`matches`](Self::matches).
    #[must_use]
    pub fn with_matches(mut self, matches: Vec<HttpMatch>) -> Self {
        self.matches = matches;
        self
    }

    /// Sets [`filters`](Self::filters).
    #[must_use]
    pub fn with_filters(mut self, filters: Vec<HttpFilter>) -> Self {
        self.filters = filters;
        self
    }

    /// Sets [`backends`](Self::backends).
    #[must_use]
    pub fn with_backends(mut self, backends: Vec<HttpBackend>) -> Self {
        self.backends = backends;
        self
    }

    /// Sets [`timeouts`](Self::timeouts).
    #[must_use]
    pub fn with_timeouts(mut self, timeouts: HttpTimeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// Sets [`retry`](Self::retry).
    #[must_use]
    pub fn with_retry(mut self, retry: HttpRetry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Its name.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Any may match; none is every request.
    pub fn matches(&self) -> &[HttpMatch] {
        &self.matches
    }

    /// What is done to a request, in order.
    pub fn filters(&self) -> &[HttpFilter] {
        &self.filters
    }

    /// Where requests go, by weight.
    pub fn backends(&self) -> &[HttpBackend] {
        &self.backends
    }

    /// How long a request may take.
    pub fn timeouts(&self) -> &HttpTimeouts {
        &self.timeouts
    }

    /// When a request is tried again.
    pub fn retry(&self) -> Option<&HttpRetry> {
        self.retry.as_ref()
    }
}

/// What a request must look like; all parts must match.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpMatch {
    path: PathRule,
    headers: Vec<ValueMatch<HeaderName>>,
    query_params: Vec<ValueMatch<Arc<str>>>,
    method: Option<Method>,
}

impl HttpMatch {
    /// Matches every request.
    pub fn new() -> Self {
        Self {
            path: PathRule::default(),
            headers: Vec::new(),
            query_params: Vec::new(),
            method: None,
        }
    }

    /// Sets [`path`](Self::path).
    #[must_use]
    pub fn with_path(mut self, path: PathRule) -> Self {
        self.path = path;
        self
    }

    /// Sets [`headers`](Self::headers).
    #[must_use]
    pub fn with_headers(mut self, headers: Vec<ValueMatch<HeaderName>>) -> Self {
        self.headers = headers;
        self
    }

    /// Sets [`query_params`](Self::query_params).
    #[must_use]
    pub fn with_query_params(mut self, query_params: Vec<ValueMatch<Arc<str>>>) -> Self {
        self.query_params = query_params;
        self
    }

    /// Sets [`method`](Self::method).
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    /// The path. Default: every path.
    pub fn path(&self) -> &PathRule {
        &self.path
    }

    /// Headers, all of which must match.
    pub fn headers(&self) -> &[ValueMatch<HeaderName>] {
        &self.headers
    }

    /// Query parameters, all of which must match.
    pub fn query_params(&self) -> &[ValueMatch<Arc<str>>] {
        &self.query_params
    }

    /// The method; any when unset.
    pub fn method(&self) -> Option<&Method> {
        self.method.as_ref()
    }
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PathRule {
    /// The whole path.
    Exact(Arc<str>),
    /// The first segments of the path: `/foo` is a prefix of `/foo/bar`, not of `/foobar`.
    Prefix(Arc<str>),
    /// The whole path by expression.
    Regex(StringMatch),
}

impl Default for PathRule {
    /// Every path: the prefix `/`.
    fn default() -> Self {
        Self::Prefix("/".into())
    }
}

/// A named value and what it must be.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ValueMatch<N> {
    name: N,
    value: StringMatch,
}

impl<N> ValueMatch<N> {
    /// Makes a match.
    pub fn new(name: N, value: StringMatch) -> Self {
        Self { name, value }
    }

    /// The name of the header or parameter.
    pub fn name(&self) -> &N {
        &self.name
    }

    /// What the value must be.
    pub fn value(&self) -> &StringMatch {
        &self.value
    }
}

/// Where requests can go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BackendRef {
    target: ObjectRef,
    port: Option<u16>,
}

impl BackendRef {
    /// Makes a reference without a port.
    pub fn new(target: ObjectRef) -> Self {
        Self { target, port: None }
    }

    /// Sets [`port`](Self::port).
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// The Service or other object; its namespace is filled in.
    pub fn target(&self) -> &ObjectRef {
        &self.target
    }

    /// Its port.
    pub fn port(&self) -> Option<u16> {
        self.port
    }
}

/// A backend with its share of the requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpBackend {
    backend: BackendRef,
    weight: u32,
    filters: Vec<HttpFilter>,
}

impl HttpBackend {
    /// Makes a backend of weight 1.
    pub fn new(backend: BackendRef) -> Self {
        Self {
            backend,
            weight: 1,
            filters: Vec::new(),
        }
    }

    /// Sets [`weight`](Self::weight).
    #[must_use]
    pub fn with_weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// Sets [`filters`](Self::filters).
    #[must_use]
    pub fn with_filters(mut self, filters: Vec<HttpFilter>) -> Self {
        self.filters = filters;
        self
    }

    /// Where to.
    pub fn backend(&self) -> &BackendRef {
        &self.backend
    }

    /// Its share, relative to the other weights; 0 is none. Default: 1.
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// What is done to requests that go there.
    pub fn filters(&self) -> &[HttpFilter] {
        &self.filters
    }
}

/// How long a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct HttpTimeouts {
    request: Option<Duration>,
    backend_request: Option<Duration>,
}

impl HttpTimeouts {
    /// Makes no limits.
    pub fn new() -> Self {
        Self {
            request: None,
            backend_request: None,
        }
    }

    /// Sets [`request`](Self::request).
    #[must_use]
    pub fn with_request(mut self, request: Duration) -> Self {
        self.request = Some(request);
        self
    }

    /// Sets [`backend_request`](Self::backend_request).
    #[must_use]
    pub fn with_backend_request(mut self, backend_request: Duration) -> Self {
        self.backend_request = Some(backend_request);
        self
    }

    /// From the request to the end of the response, retries included. Zero: no limit.
    pub fn request(&self) -> Option<Duration> {
        self.request
    }

    /// For one attempt. Zero: no limit.
    pub fn backend_request(&self) -> Option<Duration> {
        self.backend_request
    }
}

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpRetry {
    codes: Vec<u16>,
    attempts: Option<u32>,
    backoff: Option<Duration>,
}

impl HttpRetry {
    /// Makes no retries.
    pub fn new() -> Self {
        Self {
            codes: Vec::new(),
            attempts: None,
            backoff: None,
        }
    }

    /// Sets [`codes`](Self::codes).
    #[must_use]
    pub fn with_codes(mut self, codes: Vec<u16>) -> Self {
        self.codes = codes;
        self
    }

    /// Sets [`attempts`](Self::attempts).
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = Some(attempts);
        self
    }

    /// Sets [`backoff`](Self::backoff).
    #[must_use]
    pub fn with_backoff(mut self, backoff: Duration) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// The statuses on which a request is tried again.
    pub fn codes(&self) -> &[u16] {
        &self.codes
    }

    /// How often it is tried again.
    pub fn attempts(&self) -> Option<u32> {
        self.attempts
    }

    /// The least time between attempts.
    pub fn backoff(&self) -> Option<Duration> {
        self.backoff
    }
}
