//! Refuses requests that carry a token, as long as tokens cannot be verified.

use std::borrow::Cow;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{
    ACCESS_CONTROL_REQUEST_METHOD, COOKIE, HeaderMap, HeaderName, HeaderValue, ORIGIN,
    WWW_AUTHENTICATE,
};
use http::{Method, Request, Response, Uri};
use mesh_xds::model::{JwtRule, TokenLocation};
use tower_layer::Layer;
use tower_service::Service;

use super::reply::{Reply, ReplyBody, ReplyFuture, is_grpc};
use crate::ErrorKind;

/// Where a request may carry a token, and which headers only a verified token may fill.
///
/// The default looks nowhere; [`from_rules`](Self::from_rules) reads it from Istio's rules. Cloning is
/// a reference count.
///
/// # Examples
///
/// ```
/// use http::Request;
/// use mesh_core::layers::TokenLocations;
///
/// let places = TokenLocations::istio_defaults();
/// let request = Request::get("/?access_token=eyJ").body(())?;
/// assert!(places.has_token(request.uri(), request.headers()));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenLocations {
    /// `None` is the common case: no RequestAuthentication applies.
    places: Option<Arc<Places>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Places {
    /// With the prefix that stands before the token.
    headers: Vec<(HeaderName, Arc<str>)>,
    params: Vec<Arc<str>>,
    cookies: Vec<Arc<str>>,
    outputs: Vec<HeaderName>,
}

impl TokenLocations {
    /// `Authorization: Bearer <token>` and `?access_token=<token>`.
    pub fn istio_defaults() -> Self {
        Self::from_locations(&TokenLocation::defaults())
    }

    /// Looks in all of `locations`.
    pub fn from_locations<'a>(locations: impl IntoIterator<Item = &'a TokenLocation>) -> Self {
        let mut places = Places::default();
        places.add(locations);
        Self::of(places)
    }

    /// Looks in every place that some rule names, and removes from requests the headers that a rule
    /// would fill from a verified token (`outputPayloadToHeader`, `outputClaimToHeaders`).
    pub fn from_rules<'a>(rules: impl IntoIterator<Item = &'a JwtRule>) -> Self {
        let mut places = Places::default();
        for rule in rules {
            places.add(rule.locations());
            places
                .outputs
                .extend(rule.output_payload_to_header().cloned());
            places.outputs.extend(
                rule.output_claims_to_headers()
                    .iter()
                    .map(|(name, _)| name.clone()),
            );
        }
        Self::of(places)
    }

    fn of(places: Places) -> Self {
        Self {
            places: (places != Places::default()).then(|| Arc::new(places)),
        }
    }

    /// Whether no place is looked at.
    pub fn is_empty(&self) -> bool {
        self.places.is_none()
    }

    /// Whether the request carries something where a token is looked for.
    ///
    /// The scheme before a token is compared without regard to case
    /// ([RFC 9110 §11.1](https://www.rfc-editor.org/rfc/rfc9110#section-11.1)), so that `bearer` does
    /// not slip through; parameter names are compared decoded.
    pub fn has_token(&self, uri: &Uri, headers: &HeaderMap) -> bool {
        let Some(places) = &self.places else {
            return false;
        };
        places.in_headers(headers) || places.in_query(uri) || places.in_cookies(headers)
    }

    /// Decides on one request: what is left of it to forward, or the refusal.
    pub(crate) fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &mut HeaderMap,
    ) -> Result<(), Reply> {
        let Some(places) = &self.places else {
            return Ok(());
        };
        // None of these can come from a verified token.
        for name in &places.outputs {
            headers.remove(name);
        }
        if is_preflight(method, headers) || !self.has_token(uri, headers) {
            return Ok(());
        }
        Err(refusal(uri, headers))
    }
}

impl Places {
    fn add<'a>(&mut self, locations: impl IntoIterator<Item = &'a TokenLocation>) {
        for location in locations {
            match location {
                TokenLocation::Header { name, prefix } => {
                    push_new(&mut self.headers, (name.clone(), prefix.clone()));
                }
                TokenLocation::QueryParam(name) => push_new(&mut self.params, name.clone()),
                TokenLocation::Cookie(name) => push_new(&mut self.cookies, name.clone()),
                // A place of a kind that is not known here cannot be looked at. Istio's default
                // places are looked at instead of none.
                _ => self.add(&TokenLocation::defaults()),
            }
        }
    }

    fn in_headers(&self, headers: &HeaderMap) -> bool {
        self.headers.iter().any(|(name, prefix)| {
            headers
                .get_all(name)
                .iter()
                .any(|value| contains_ignore_case(value.as_bytes(), prefix.as_bytes()))
        })
    }

    fn in_query(&self, uri: &Uri) -> bool {
        let Some(query) = uri.query().filter(|_| !self.params.is_empty()) else {
            return false;
        };
        query.split('&').any(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            let name = percent_decode(name);
            self.params.iter().any(|param| param.as_bytes() == &*name)
        })
    }

    fn in_cookies(&self, headers: &HeaderMap) -> bool {
        if self.cookies.is_empty() {
            return false;
        }
        headers.get_all(COOKIE).iter().any(|value| {
            value.as_bytes().split(|byte| *byte == b';').any(|pair| {
                let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default();
                let name = name.trim_ascii();
                self.cookies.iter().any(|cookie| cookie.as_bytes() == name)
            })
        })
    }
}

/// Rules often share their places.
fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// A preflight passes, as its answer says nothing and it cannot carry a token
/// ([Fetch](https://fetch.spec.whatwg.org/#cors-preflight-fetch)). One that has no origin is none.
fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    let present = |name| headers.get(name).is_some_and(|value| !value.is_empty());
    method == Method::OPTIONS && present(ORIGIN) && present(ACCESS_CONTROL_REQUEST_METHOD)
}

/// `Bearer realm="<scheme>://<host><path>", error="invalid_token"`, the realm at most 256 bytes.
fn refusal(uri: &Uri, headers: &HeaderMap) -> Reply {
    const REALM: usize = 256;
    let host = match (uri.authority(), headers.get(http::header::HOST)) {
        (Some(authority), _) => authority.as_str(),
        (None, Some(host)) => host.to_str().unwrap_or_default(),
        (None, None) => "",
    };
    let realm: String = format!(
        "{}://{host}{}",
        uri.scheme_str().unwrap_or("http"),
        uri.path()
    )
    .chars()
    .filter(|c| !matches!(c, '"' | '\\'))
    .take(REALM)
    .collect();
    let value = format!("Bearer realm=\"{realm}\", error=\"invalid_token\"");
    let value = HeaderValue::try_from(value)
        .unwrap_or_else(|_| HeaderValue::from_static("Bearer error=\"invalid_token\""));
    Reply::new(ErrorKind::Unauthenticated)
        .body("Jwt verification is not supported")
        .details("jwt_authn_access_denied{Jwt_verification_is_not_supported}")
        .header(WWW_AUTHENTICATE, value)
}

/// Envoy takes what follows the prefix wherever it stands in the value.
fn contains_ignore_case(value: &[u8], prefix: &[u8]) -> bool {
    prefix.is_empty()
        || value
            .windows(prefix.len())
            .any(|window| window.eq_ignore_ascii_case(prefix))
}

/// Decodes `%41` as servers do before they compare a parameter's name.
fn percent_decode(name: &str) -> Cow<'_, [u8]> {
    if !name.contains(['%', '+']) {
        return Cow::Borrowed(name.as_bytes());
    }
    let bytes = name.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| {
            bytes
                .get(i)
                .and_then(|byte| char::from(*byte).to_digit(16))
                .map(|digit| digit as u8)
        };
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 2;
            }
            (b'+', ..) => decoded.push(b' '),
            (byte, ..) => decoded.push(byte),
        }
        at += 1;
    }
    Cow::Owned(decoded)
}

/// Answers 401 to requests that carry a token, and passes the others on.
///
/// Tokens are not verified yet, and a policy that asks for one must not be fooled by one that nobody
/// looked at. A request without a token passes, as in Istio: only an authorization policy can demand
/// one. [`AuthorizeLayer::live`](super::AuthorizeLayer::live) does the same with the places of its
/// [`Policies`](crate::Policies); this layer is for servers that want nothing else.
///
/// # Examples
///
/// ```
/// use mesh_core::layers::{RefuseTokensLayer, TokenLocations};
///
/// let layer = RefuseTokensLayer::new(TokenLocations::istio_defaults());
/// let app = axum::Router::<()>::new().layer(layer);
/// # let _ = app;
/// ```
#[derive(Debug, Clone)]
pub struct RefuseTokensLayer {
    tokens: TokenLocations,
}

impl RefuseTokensLayer {
    /// Looks in `tokens`.
    pub fn new(tokens: TokenLocations) -> Self {
        Self { tokens }
    }
}

impl<S> Layer<S> for RefuseTokensLayer {
    type Service = RefuseTokens<S>;

    fn layer(&self, inner: S) -> RefuseTokens<S> {
        RefuseTokens {
            inner,
            tokens: self.tokens.clone(),
        }
    }
}

/// The service of [`RefuseTokensLayer`].
#[derive(Debug, Clone)]
pub struct RefuseTokens<S> {
    inner: S,
    tokens: TokenLocations,
}

super::accessors!(RefuseTokens);

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for RefuseTokens<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<ReplyBody<ResBody>>;
    type Error = S::Error;
    type Future = ReplyFuture<S::Future, ResBody>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match self
            .tokens
            .check(&head.method, &head.uri, &mut head.headers)
        {
            Ok(()) => ReplyFuture::inner(self.inner.call(Request::from_parts(head, body))),
            Err(reply) => ReplyFuture::reply(reply.into_response(is_grpc(&head.headers))),
        }
    }
}
