use std::borrow::Cow;
use std::task::{Context, Poll};

use http::uri::PathAndQuery;
use http::{Request, Response, Uri};
use mesh_authz::matcher::PathNormalization;
use mesh_authz::{Attribute, Attributes, Decision, RequestAttributes};
use tower_service::Service;
use tracing::{debug, enabled};

use super::facts;
use super::layer::Settings;
use crate::layers::identify::no_context;
use crate::layers::reply::{Reply, ReplyBody, ReplyFuture, is_grpc};
use crate::missed::missed;
use crate::policies::Enforced;
use crate::{ConnectionContext, ErrorKind, Policies};

/// The service of [`AuthorizeLayer`](super::AuthorizeLayer).
#[derive(Debug, Clone)]
pub struct Authorize<S> {
    inner: S,
    policies: Policies,
    settings: Settings,
}

crate::layers::accessors!(Authorize);

impl<S> Authorize<S> {
    pub(super) fn new(inner: S, policies: Policies, settings: Settings) -> Self {
        Self {
            inner,
            policies,
            settings,
        }
    }
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for Authorize<S>
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
        // The one load: whatever is asked about this request is asked of this value.
        let judged = judge(&mut head, &self.policies.load(), self.settings);
        match judged {
            Ok(()) => ReplyFuture::inner(self.inner.call(Request::from_parts(head, body))),
            Err(reply) => ReplyFuture::reply(reply.into_response(is_grpc(&head.headers))),
        }
    }
}

/// Normalises the request and decides on it.
fn judge(
    head: &mut http::request::Parts,
    enforced: &Enforced,
    settings: Settings,
) -> Result<(), Reply> {
    let normalization = enforced
        .path_normalization()
        .unwrap_or(settings.normalization);
    normalize(&mut head.uri, normalization).map_err(|NotNormal| malformed("path"))?;
    let Some(context) = head.extensions.get::<ConnectionContext>() else {
        return Err(no_context());
    };
    enforced
        .tokens()
        .check(&head.method, &head.uri, &mut head.headers)?;
    let host = facts::host(&head.uri, &head.headers, head.version)
        .map_err(|facts::AmbiguousHost| malformed("host"))?;

    let mut request = RequestAttributes::new(
        &head.method,
        host.as_deref(),
        head.uri.path(),
        &head.headers,
    );
    if let Some(client) = facts::remote_ip(&head.headers, settings.trusted_hops) {
        request = request.with_remote_ip(client);
    }
    // The request was read in plain: nothing inside the tunnel named a TLS server.
    let attributes = context
        .attributes()
        .with_sni(Attribute::Absent)
        .with_request(request);
    let decision = enforced.policies().evaluate(&attributes);
    if enforced.has_dry_run() {
        report_dry_run(enforced, &attributes);
    }
    if decision.is_allowed() {
        return Ok(());
    }
    report_denial(&decision, enforced, context, head);
    Err(Reply::new(ErrorKind::Denied).details(details(&decision)))
}

/// Says that a path cannot be normalised.
pub(crate) struct NotNormal;

/// Puts the normal form of the path in the place of the path.
pub(crate) fn normalize(uri: &mut Uri, mode: PathNormalization) -> Result<(), NotNormal> {
    // CONNECT names no path, and `OPTIONS *` none that has segments.
    let Some(target) = uri.path_and_query().filter(|target| target.path() != "*") else {
        return Ok(());
    };
    let normal = match mode.normalize(target.as_str()) {
        Ok(Cow::Borrowed(same)) if same.len() == target.as_str().len() => return Ok(()),
        Ok(changed) => PathAndQuery::try_from(&*changed).map_err(|_| NotNormal)?,
        Err(_) => return Err(NotNormal),
    };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(normal);
    *uri = Uri::from_parts(parts).map_err(|_| NotNormal)?;
    Ok(())
}

fn malformed(what: &'static str) -> Reply {
    debug!(target: "mesh::authz", what, "refused a malformed request");
    Reply::new(ErrorKind::BadRequest)
}

/// As Envoy names the rule in its logs, with Istio's policy ids.
fn details(decision: &Decision<'_>) -> String {
    match (decision.policy(), decision.rule()) {
        (Some(policy), Some(rule)) => format!(
            "rbac_access_denied_matched_policy[ns[{}]-policy[{}]-rule[{rule}]]",
            policy.namespace(),
            policy.name()
        ),
        _ => "rbac_access_denied_matched_policy[none]".to_owned(),
    }
}

fn report_denial(
    decision: &Decision<'_>,
    enforced: &Enforced,
    context: &ConnectionContext,
    head: &http::request::Parts,
) {
    debug!(
        target: "mesh::authz",
        policy = decision.policy().map(tracing::field::display),
        rule = decision.rule(),
        policies = missed(decision, enforced.policies()),
        unreadable = decision.unreadable(),
        reason = %decision.reason(),
        source = %context.source(),
        identity = %context.who(),
        destination = %context.destination(),
        method = %head.method,
        path = head.uri.path(),
        "denied"
    );
}

fn report_dry_run(enforced: &Enforced, attributes: &Attributes<'_>) {
    if !enabled!(target: "mesh::authz", tracing::Level::DEBUG) {
        return;
    }
    let dry_run = enforced.policies().evaluate_dry_run(attributes);
    let decision = dry_run.decision();
    debug!(
        target: "mesh::authz",
        dry_run = true,
        allowed = decision.is_allowed(),
        policy = decision.policy().map(tracing::field::display),
        rule = decision.rule(),
        reason = %decision.reason(),
        source = %attributes.source(),
        destination = %attributes.destination(),
        "dry run"
    );
}
