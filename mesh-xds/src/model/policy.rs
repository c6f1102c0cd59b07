//! Policies with what they bind, and where requests may carry tokens.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use mesh_authz::policy::Policy;

use super::ObjectName;

/// A policy and what it binds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachedPolicy {
    policy: Arc<Policy>,
    scope: Scope,
}

impl AttachedPolicy {
    /// Attaches a policy.
    pub fn new(policy: Arc<Policy>, scope: Scope) -> Self {
        Self { policy, scope }
    }

    /// The policy, whole: parts that need a request included.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// What it binds.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

/// What a policy binds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// Every workload of the mesh.
    Mesh,
    /// Every workload of the namespace.
    Namespace(Arc<str>),
    /// The workloads that list it: see [`Workload::authorization_policies`](super::Workload::authorization_policies).
    Workload,
    /// The named services, gateways or classes of gateways (`targetRefs`); never a workload as such.
    Targets(Vec<Target>),
}

/// One of the `targetRefs` of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// A Kubernetes Service.
    Service(ObjectName),
    /// The hosts of a ServiceEntry.
    ServiceEntry(ObjectName),
    /// A Gateway, waypoints included.
    Gateway(ObjectName),
    /// Every Gateway of a class, for example `istio-waypoint`.
    GatewayClass(Arc<str>),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::ServiceEntry(name) => write!(f, "ServiceEntry {name}"),
            Self::Gateway(name) => write!(f, "Gateway {name}"),
            Self::GatewayClass(name) => write!(f, "GatewayClass {name}"),
        }
    }
}

/// Which tokens requests may carry (Istio's RequestAuthentication). A request without any is accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestAuthentication {
    name: ObjectName,
    scope: Scope,
    rules: Vec<JwtRule>,
}

impl RequestAuthentication {
    /// Makes a request authentication.
    pub fn new(name: ObjectName, scope: Scope, rules: Vec<JwtRule>) -> Self {
        Self { name, scope, rules }
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// What it binds; with [`Scope::Workload`], the workloads that list it: see [`Workload::request_authentications`](super::Workload::request_authentications).
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Whose tokens are accepted and where they are looked for.
    pub fn rules(&self) -> &[JwtRule] {
        &self.rules
    }
}

/// Tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwtRule {
    issuer: Arc<str>,
    audiences: Vec<Arc<str>>,
    locations: Vec<TokenLocation>,
    jwks: Option<Jwks>,
    forward_original_token: bool,
    output_payload_to_header: Option<HeaderName>,
    output_claims_to_headers: Vec<(HeaderName, Arc<str>)>,
    space_delimited_claims: Vec<Arc<str>>,
    timeout: Duration,
}

impl JwtRule {
    /// Makes a rule that looks where Istio looks by default.
    pub fn new(issuer: impl Into<Arc<str>>) -> Self {
        Self {
            issuer: issuer.into(),
            audiences: Vec::new(),
            locations: TokenLocation::defaults(),
            jwks: None,
            forward_original_token: false,
            output_payload_to_header: None,
            output_claims_to_headers: Vec::new(),
            space_delimited_claims: Vec::new(),
            timeout: Duration::from_secs(5),
        }
    }

    /// Sets [`audiences`](Self::audiences).
    #[must_use]
    pub fn with_audiences(mut self, audiences: Vec<Arc<str>>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Sets [`locations`](Self::locations).
    #[must_use]
    pub fn with_locations(mut self, locations: Vec<TokenLocation>) -> Self {
        self.locations = locations;
        self
    }

    /// Sets [`jwks`](Self::jwks).
    #[must_use]
    pub fn with_jwks(mut self, jwks: Jwks) -> Self {
        self.jwks = Some(jwks);
        self
    }

    /// Sets [`forward_original_token`](Self::forward_original_token).
    #[must_use]
    pub fn with_forward_original_token(mut self, forward_original_token: bool) -> Self {
        self.forward_original_token = forward_original_token;
        self
    }

    /// Sets [`output_payload_to_header`](Self::output_payload_to_header).
    #[must_use]
    pub fn with_output_payload_to_header(mut self, output_payload_to_header: HeaderName) -> Self {
        self.output_payload_to_header = Some(output_payload_to_header);
        self
    }

    /// Sets [`output_claims_to_headers`](Self::output_claims_to_headers).
    #[must_use]
    pub fn with_output_claims_to_headers(
        mut self,
        output_claims_to_headers: Vec<(HeaderName, Arc<str>)>,
    ) -> Self {
        self.output_claims_to_headers = output_claims_to_headers;
        self
    }

    /// Sets [`space_delimited_claims`](Self::space_delimited_claims).
    #[must_use]
    pub fn with_space_delimited_claims(mut self, space_delimited_claims: Vec<Arc<str>>) -> Self {
        self.space_delimited_claims = space_delimited_claims;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// The issuer (`iss`), compared exactly.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The audiences (`aud`), one of which a token must have; none is any.
    pub fn audiences(&self) -> &[Arc<str>] {
        &self.audiences
    }

    /// Where tokens are looked for. Default: `Authorization: Bearer`, then the query parameter `access_token`.
    pub fn locations(&self) -> &[TokenLocation] {
        &self.locations
    }

    /// Where the keys come from; unset, from the issuer's discovery document.
    pub fn jwks(&self) -> Option<&Jwks> {
        self.jwks.as_ref()
    }

    /// Whether the token stays on the request. Default: no.
    pub fn forward_original_token(&self) -> bool {
        self.forward_original_token
    }

    /// The header that gets the verified payload, base64url.
    pub fn output_payload_to_header(&self) -> Option<&HeaderName> {
        self.output_payload_to_header.as_ref()
    }

    /// Headers that get a claim each.
    pub fn output_claims_to_headers(&self) -> &[(HeaderName, Arc<str>)] {
        &self.output_claims_to_headers
    }

    /// Claims that are lists written as one string.
    pub fn space_delimited_claims(&self) -> &[Arc<str>] {
        &self.space_delimited_claims
    }

    /// How long fetching keys may take. Default: 5 s, as in Istio.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// Where a request may carry a token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenLocation {
    /// A header.
    Header {
        /// The header's name.
        name: HeaderName,
        /// What stands before the token, its trailing space included.
        prefix: Arc<str>,
    },
    /// A query parameter.
    QueryParam(Arc<str>),
    /// A cookie.
    Cookie(Arc<str>),
}

impl TokenLocation {
    /// Where Istio looks when a rule names no place: `Authorization: Bearer <token>`, then `?access_token=<token>`.
    pub fn defaults() -> Vec<Self> {
        vec![
            Self::Header {
                name: http::header::AUTHORIZATION,
                prefix: "Bearer ".into(),
            },
            Self::QueryParam("access_token".into()),
        ]
    }
}

/// Where the keys of an issuer come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Jwks {
    /// The key set itself, as JSON.
    Inline(Arc<str>),
    /// The address of the key set.
    Uri(Arc<str>),
}
