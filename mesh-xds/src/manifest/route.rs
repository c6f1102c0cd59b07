//! HTTPRoute of the Gateway API.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use mesh_authz::matcher::StringMatch;

use super::meta::Meta;
use super::quantity::duration;
use super::security::header;
use crate::file::cursor::{Cursor, Fields, Result};
use crate::model::{
    BackendRef, Cors, HeaderChanges, HttpBackend, HttpFilter, HttpMatch, HttpRetry, HttpRoute,
    HttpRouteRule, HttpTimeouts, Mirror, ObjectName, ObjectRef, ParentRef, PathChange, PathRule,
    Redirect, Rewrite, ValueMatch,
};

const GATEWAY_API: &str = "gateway.networking.k8s.io";

pub(crate) fn read(meta: &Meta, fields: &mut Fields<'_>) -> Result<HttpRoute> {
    let namespace = &meta.namespace;
    let spec = fields.need("spec")?;
    let mut spec = spec.fields()?;
    // Experimental, and only says which Gateways to pick by label; nothing here does.
    spec.ignore(&["useDefaultGateways"]);
    let route = HttpRoute::new(ObjectName::new(
        Arc::clone(namespace),
        Arc::clone(&meta.name),
    ))
    .with_hostnames(spec.list("hostnames", Cursor::nonempty)?)
    .with_parents(spec.list("parentRefs", |at| parent(at, namespace))?)
    .with_rules(match spec.get("rules") {
        // Without rules, everything matches and nothing is there to answer.
        None => vec![HttpRouteRule::new()],
        Some(rules) => rules
            .items()?
            .iter()
            .map(|at| rule(at, namespace))
            .collect::<Result<_>>()?,
    });
    spec.finish()?;
    Ok(route)
}

/// Group, kind, namespace and name of a reference, with the given defaults.
fn object_ref(
    fields: &mut Fields<'_>,
    namespace: &Arc<str>,
    group: &str,
    kind: &str,
) -> Result<ObjectRef> {
    let group = match fields.get("group") {
        Some(at) => at.text()?,
        None => group.into(),
    };
    let kind = match fields.get("kind") {
        Some(at) => at.nonempty()?,
        None => kind.into(),
    };
    let namespace = match fields.get("namespace") {
        Some(at) => at.nonempty()?,
        None => Arc::clone(namespace),
    };
    let name = fields.need("name")?.nonempty()?;
    Ok(ObjectRef::new(
        group,
        kind,
        ObjectName::new(namespace, name),
    ))
}

fn parent(at: &Cursor<'_>, namespace: &Arc<str>) -> Result<ParentRef> {
    let mut fields = at.fields()?;
    let mut parent = ParentRef::new(object_ref(&mut fields, namespace, GATEWAY_API, "Gateway")?);
    if let Some(section) = fields.map("sectionName", Cursor::nonempty)? {
        parent = parent.with_section_name(section);
    }
    if let Some(port) = fields.map("port", Cursor::port)? {
        parent = parent.with_port(port);
    }
    fields.finish()?;
    Ok(parent)
}

fn rule(at: &Cursor<'_>, namespace: &Arc<str>) -> Result<HttpRouteRule> {
    let mut fields = at.fields()?;
    // Experimental and without an effect on which backend may be reached.
    fields.ignore(&["sessionPersistence"]);
    let mut rule = HttpRouteRule::new()
        .with_matches(fields.list("matches", http_match)?)
        .with_filters(fields.list("filters", |at| filter(at, namespace))?)
        .with_backends(fields.list("backendRefs", |at| backend(at, namespace))?);
    if let Some(name) = fields.map("name", Cursor::nonempty)? {
        rule = rule.with_name(name);
    }
    if let Some(timeouts) = fields.map("timeouts", timeouts)? {
        rule = rule.with_timeouts(timeouts);
    }
    if let Some(retry) = fields.map("retry", retry)? {
        rule = rule.with_retry(retry);
    }
    fields.finish()?;
    Ok(rule)
}

fn http_match(at: &Cursor<'_>) -> Result<HttpMatch> {
    let mut fields = at.fields()?;
    let mut read = HttpMatch::new()
        .with_headers(fields.list("headers", |at| {
            let mut fields = at.fields()?;
            let name = header(&fields.need("name")?)?;
            Ok(ValueMatch::new(name, value_match(fields)?))
        })?)
        .with_query_params(fields.list("queryParams", |at| {
            let mut fields = at.fields()?;
            let name = fields.need("name")?.nonempty()?;
            Ok(ValueMatch::new(name, value_match(fields)?))
        })?);
    if let Some(path) = fields.map("path", path_rule)? {
        read = read.with_path(path);
    }
    if let Some(method) = fields.map("method", |at| at.parse::<Method>("an HTTP method"))? {
        read = read.with_method(method);
    }
    fields.finish()?;
    Ok(read)
}

fn path_rule(at: &Cursor<'_>) -> Result<PathRule> {
    let mut fields = at.fields()?;
    let kind = fields.text("type")?;
    let value = match fields.get("value") {
        Some(value) => value,
        None if &*kind == "RegularExpression" => fields.need("value")?,
        None => {
            fields.finish()?;
            return Ok(match &*kind {
                "Exact" => PathRule::Exact("/".into()),
                _ => PathRule::default(),
            });
        }
    };
    let path = value.nonempty()?;
    let rule = match &*kind {
        "RegularExpression" => PathRule::Regex(regex(&value)?),
        "Exact" | "PathPrefix" | "" if !path.starts_with('/') => {
            return Err(value.invalid(format_args!(
                "expected a path that begins with /, found {path:?}"
            )));
        }
        "Exact" => PathRule::Exact(path),
        "PathPrefix" | "" => PathRule::Prefix(path),
        other => {
            return Err(at.invalid_below(
                "type",
                format_args!(
                    "expected one of Exact, PathPrefix, RegularExpression, found {other:?}"
                ),
            ));
        }
    };
    fields.finish()?;
    Ok(rule)
}

/// `type` and `value` of a header or query parameter.
fn value_match(mut fields: Fields<'_>) -> Result<StringMatch> {
    let kind = fields.map("type", |at| {
        at.one_of(&[("Exact", true), ("RegularExpression", false)])
    })?;
    let value = fields.need("value")?;
    let read = match kind.unwrap_or(true) {
        true => StringMatch::Exact(value.text()?),
        false => regex(&value)?,
    };
    fields.finish()?;
    Ok(read)
}

fn regex(at: &Cursor<'_>) -> Result<StringMatch> {
    StringMatch::regex(at.str()?).map_err(|_| {
        at.invalid("expected a regular expression in RE2 syntax that compiles to at most 1 MiB")
    })
}

fn filter(at: &Cursor<'_>, namespace: &Arc<str>) -> Result<HttpFilter> {
    let mut fields = at.fields()?;
    let kind = fields.need("type")?;
    let filter = match kind.str()? {
        "RequestHeaderModifier" => {
            HttpFilter::RequestHeaders(header_changes(&fields.need("requestHeaderModifier")?)?)
        }
        "ResponseHeaderModifier" => {
            HttpFilter::ResponseHeaders(header_changes(&fields.need("responseHeaderModifier")?)?)
        }
        "RequestMirror" => HttpFilter::Mirror(mirror(&fields.need("requestMirror")?, namespace)?),
        "RequestRedirect" => HttpFilter::Redirect(redirect(&fields.need("requestRedirect")?)?),
        "URLRewrite" => HttpFilter::Rewrite(rewrite(&fields.need("urlRewrite")?)?),
        "CORS" => HttpFilter::Cors(cors(&fields.need("cors")?)?),
        "ExtensionRef" => {
            let at = fields.need("extensionRef")?;
            let mut reference = at.fields()?;
            reference.need("group")?;
            reference.need("kind")?;
            let target = object_ref(&mut reference, namespace, "", "")?;
            reference.finish()?;
            HttpFilter::Extension(target)
        }
        // A filter that is passed over could have been the one that protects.
        other => {
            return Err(kind.invalid(format_args!(
                "expected one of RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, \
                 RequestRedirect, URLRewrite, CORS, ExtensionRef, found {other:?}"
            )));
        }
    };
    fields.finish()?;
    Ok(filter)
}

fn header_changes(at: &Cursor<'_>) -> Result<HeaderChanges> {
    let mut fields = at.fields()?;
    let changes = HeaderChanges::new()
        .with_set(fields.list("set", header_value)?)
        .with_add(fields.list("add", header_value)?)
        .with_remove(fields.list("remove", header)?);
    fields.finish()?;
    Ok(changes)
}

fn header_value(at: &Cursor<'_>) -> Result<(HeaderName, HeaderValue)> {
    let mut fields = at.fields()?;
    let pair = (
        header(&fields.need("name")?)?,
        fields.need("value")?.parse("the value of an HTTP header")?,
    );
    fields.finish()?;
    Ok(pair)
}

fn mirror(at: &Cursor<'_>, namespace: &Arc<str>) -> Result<Mirror> {
    let mut fields = at.fields()?;
    let target = fields.need("backendRef")?;
    let mut target = target.fields()?;
    let to = backend_ref(&mut target, namespace)?;
    target.finish()?;
    let percent = fields.map("percent", Cursor::u32)?;
    let fraction = fields.map("fraction", |at| {
        let mut fields = at.fields()?;
        let numerator = fields.need("numerator")?.u32()?;
        let denominator = fields.map("denominator", Cursor::u32)?.unwrap_or(100);
        if denominator == 0 || numerator > denominator {
            return Err(at.invalid("expected a share from 0 to 1"));
        }
        fields.finish()?;
        Ok((numerator, denominator))
    })?;
    fields.finish()?;
    let (numerator, denominator) = match (percent, fraction) {
        (Some(_), Some(_)) => {
            return Err(
                at.invalid_below("percent", "excludes fraction: expected only one of the two")
            );
        }
        (Some(percent), None) if percent > 100 => {
            return Err(at.invalid_below("percent", "expected a number from 0 to 100"));
        }
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => fraction,
        (None, None) => (1, 1),
    };
    Ok(Mirror::new(to, numerator, denominator))
}

fn redirect(at: &Cursor<'_>) -> Result<Redirect> {
    let mut fields = at.fields()?;
    let mut redirect = Redirect::new();
    if let Some(scheme) = fields.map("scheme", Cursor::nonempty)? {
        redirect = redirect.with_scheme(scheme);
    }
    if let Some(hostname) = fields.map("hostname", Cursor::nonempty)? {
        redirect = redirect.with_hostname(hostname);
    }
    if let Some(path) = fields.map("path", path_change)? {
        redirect = redirect.with_path(path);
    }
    if let Some(port) = fields.map("port", Cursor::port)? {
        redirect = redirect.with_port(port);
    }
    if let Some(status) = fields.get("statusCode") {
        let code = status.u32()?;
        match u16::try_from(code) {
            Ok(code @ (301 | 302 | 303 | 307 | 308)) => redirect = redirect.with_status_code(code),
            _ => {
                return Err(status.invalid(format_args!(
                    "expected one of 301, 302, 303, 307, 308, found {code}"
                )));
            }
        }
    }
    fields.finish()?;
    Ok(redirect)
}

fn rewrite(at: &Cursor<'_>) -> Result<Rewrite> {
    let mut fields = at.fields()?;
    let mut rewrite = Rewrite::new();
    if let Some(hostname) = fields.map("hostname", Cursor::nonempty)? {
        rewrite = rewrite.with_hostname(hostname);
    }
    if let Some(path) = fields.map("path", path_change)? {
        rewrite = rewrite.with_path(path);
    }
    fields.finish()?;
    Ok(rewrite)
}

fn path_change(at: &Cursor<'_>) -> Result<PathChange> {
    let mut fields = at.fields()?;
    let full = fields
        .need("type")?
        .one_of(&[("ReplaceFullPath", true), ("ReplacePrefixMatch", false)])?;
    let change = if full {
        PathChange::Full(fields.need("replaceFullPath")?.text()?)
    } else {
        PathChange::Prefix(fields.need("replacePrefixMatch")?.text()?)
    };
    fields.finish()?;
    Ok(change)
}

fn cors(at: &Cursor<'_>) -> Result<Cors> {
    let mut fields = at.fields()?;
    let mut cors = Cors::new()
        .with_allow_origins(fields.texts("allowOrigins")?)
        .with_allow_methods(fields.texts("allowMethods")?)
        .with_allow_headers(fields.texts("allowHeaders")?)
        .with_expose_headers(fields.texts("exposeHeaders")?);
    if let Some(credentials) = fields.map("allowCredentials", Cursor::bool)? {
        cors = cors.with_allow_credentials(credentials);
    }
    if let Some(seconds) = fields.map("maxAge", Cursor::u32)? {
        cors = cors.with_max_age(std::time::Duration::from_secs(seconds.into()));
    }
    fields.finish()?;
    Ok(cors)
}

fn backend_ref(fields: &mut Fields<'_>, namespace: &Arc<str>) -> Result<BackendRef> {
    let backend = BackendRef::new(object_ref(fields, namespace, "", "Service")?);
    Ok(match fields.map("port", Cursor::port)? {
        Some(port) => backend.with_port(port),
        None if backend.target().kind() == "Service" && backend.target().group().is_empty() => {
            return Err(fields
                .at()
                .invalid_below("port", "missing: a Service needs one"));
        }
        None => backend,
    })
}

fn backend(at: &Cursor<'_>, namespace: &Arc<str>) -> Result<HttpBackend> {
    let mut fields = at.fields()?;
    let mut backend = HttpBackend::new(backend_ref(&mut fields, namespace)?)
        .with_filters(fields.list("filters", |at| filter(at, namespace))?);
    if let Some(weight) = fields.map("weight", Cursor::u32)? {
        backend = backend.with_weight(weight);
    }
    fields.finish()?;
    Ok(backend)
}

fn timeouts(at: &Cursor<'_>) -> Result<HttpTimeouts> {
    let mut fields = at.fields()?;
    let mut timeouts = HttpTimeouts::new();
    if let Some(request) = fields.map("request", duration)? {
        timeouts = timeouts.with_request(request);
    }
    if let Some(attempt) = fields.map("backendRequest", duration)? {
        timeouts = timeouts.with_backend_request(attempt);
    }
    fields.finish()?;
    Ok(timeouts)
}

fn retry(at: &Cursor<'_>) -> Result<HttpRetry> {
    let mut fields = at.fields()?;
    let mut retry = HttpRetry::new().with_codes(fields.list("codes", |at| {
        let code = at.u32()?;
        match u16::try_from(code) {
            Ok(code @ 400..=599) => Ok(code),
            _ => Err(at.invalid(format_args!(
                "expected a status from 400 to 599, found {code}"
            ))),
        }
    })?);
    if let Some(attempts) = fields.map("attempts", Cursor::u32)? {
        retry = retry.with_attempts(attempts);
    }
    if let Some(backoff) = fields.map("backoff", duration)? {
        retry = retry.with_backoff(backoff);
    }
    fields.finish()?;
    Ok(retry)
}
