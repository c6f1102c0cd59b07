use http::HeaderName;

use super::condition;
use super::{AuthorizationPolicy, Operation, Rule, Source};
use crate::error::{Error, ErrorKind};
use crate::matcher::{PathMatch, PathTemplate, StringMatch, parse_cidr};
use crate::policy::{self, Action, Expr, Matcher, Policy, PolicyName, TrustDomains};

impl AuthorizationPolicy {
    /// Checks the policy and lowers it.
    ///
    /// `trust_domains` says what `cluster.local` and its aliases stand for in principals.
    ///
    /// # Errors
    ///
    /// [`Error`] names the first field that does not hold what Istio documents, by the same rules as
    /// Istio's admission; besides, a principal that begins with `spiffe://` is refused, as it could
    /// never match. Nothing is ever dropped.
    pub fn lower(&self, trust_domains: &TrustDomains) -> Result<Policy, Error> {
        if let Action::Custom { provider } = &self.action
            && provider.is_empty()
        {
            return Err(Error::empty(
                "spec.provider.name",
                "the name of an extension provider",
            ));
        }
        let scope = Scope {
            namespace: &self.namespace,
            trust_domains,
        };
        let rules = self
            .rules
            .iter()
            .enumerate()
            .map(|(at, rule)| scope.rule(rule, &format!("spec.rules[{at}]")))
            .collect::<Result<_, _>>()?;
        let name = PolicyName::new(self.namespace.as_str(), self.name.as_str());
        Ok(Policy::new(name, self.action.clone(), rules).with_dry_run(self.dry_run))
    }
}

/// What values are read against.
pub(super) struct Scope<'a> {
    namespace: &'a str,
    trust_domains: &'a TrustDomains,
}

impl Scope<'_> {
    fn rule(&self, rule: &Rule, field: &str) -> Result<policy::Rule, Error> {
        let mut all = Vec::new();
        if !rule.from.is_empty() {
            let any = each(&rule.from, &format!("{field}.from"), |source, field| {
                self.source(source, &format!("{field}.source"))
            })?;
            all.push(any_of(any));
        }
        if !rule.to.is_empty() {
            let any = each(&rule.to, &format!("{field}.to"), |operation, field| {
                self.operation(operation, &format!("{field}.operation"))
            })?;
            all.push(any_of(any));
        }
        for (at, when) in rule.when.iter().enumerate() {
            condition::lower(self, when, &format!("{field}.when[{at}]"), &mut all)?;
        }
        Ok(policy::Rule::new(all_of(all)))
    }

    fn source(&self, source: &Source, field: &str) -> Result<Expr, Error> {
        let by_account =
            !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        let by_name = [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
        ]
        .into_iter()
        .any(|values| !values.is_empty());
        if by_account && by_name {
            return Err(Error::conflict(
                field,
                "either serviceAccounts or principals and namespaces, not both",
            ));
        }
        let mut all = Vec::new();
        let principal = |value: &str, field: &str| self.principal(value, field);
        let account = |value: &str, field: &str| self.service_account(value, field);
        self.pair(
            field,
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            principal,
            &mut all,
        )?;
        self.pair(
            field,
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            request_principal,
            &mut all,
        )?;
        self.pair(
            field,
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
            namespace,
            &mut all,
        )?;
        self.pair(
            field,
            ("ipBlocks", &source.ip_blocks),
            ("notIpBlocks", &source.not_ip_blocks),
            source_ip,
            &mut all,
        )?;
        self.pair(
            field,
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            remote_ip,
            &mut all,
        )?;
        self.pair(
            field,
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
            account,
            &mut all,
        )?;
        self.pair(
            field,
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
            trust_domain,
            &mut all,
        )?;
        if all.is_empty() {
            return Err(Error::empty(field, "at least one field with a value"));
        }
        Ok(all_of(all))
    }

    fn operation(&self, operation: &Operation, field: &str) -> Result<Expr, Error> {
        let mut all = Vec::new();
        self.pair(
            field,
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            host,
            &mut all,
        )?;
        self.pair(
            field,
            ("ports", &operation.ports),
            ("notPorts", &operation.not_ports),
            port,
            &mut all,
        )?;
        self.pair(
            field,
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            method,
            &mut all,
        )?;
        self.pair(
            field,
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
            path,
            &mut all,
        )?;
        if all.is_empty() {
            return Err(Error::empty(field, "at least one field with a value"));
        }
        Ok(all_of(all))
    }

    /// Adds a field and its `not` form to a conjunction.
    pub(super) fn pair(
        &self,
        field: &str,
        (name, values): (&str, &[String]),
        (not_name, not_values): (&str, &[String]),
        lower: impl Fn(&str, &str) -> Result<Expr, Error>,
        all: &mut Vec<Expr>,
    ) -> Result<(), Error> {
        let lower = |value: &String, field: &str| {
            if value.is_empty() {
                return Err(Error::empty(field, "a value that is not empty"));
            }
            lower(value, field)
        };
        if !values.is_empty() {
            all.push(any_of(each(values, &format!("{field}.{name}"), lower)?));
        }
        if !not_values.is_empty() {
            let any = each(not_values, &format!("{field}.{not_name}"), lower)?;
            all.push(Expr::Not(Box::new(any_of(any))));
        }
        Ok(())
    }

    pub(super) fn principal(&self, value: &str, field: &str) -> Result<Expr, Error> {
        if value.starts_with("spiffe://") {
            return Err(Error::new(
                ErrorKind::Principal,
                field,
                value,
                "<trust domain>/ns/<namespace>/sa/<service account>, without spiffe://",
            ));
        }
        let expanded = self.trust_domains.expand(value);
        Ok(any_of(
            expanded
                .iter()
                .map(|one| is(Matcher::Principal(StringMatch::from_istio(one))))
                .collect(),
        ))
    }

    pub(super) fn service_account(&self, value: &str, field: &str) -> Result<Expr, Error> {
        let (namespace, name) = value.split_once('/').unwrap_or((self.namespace, value));
        let plain = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
        if !plain(namespace) || !plain(name) {
            return Err(Error::new(
                ErrorKind::ServiceAccount,
                field,
                value,
                "<service account> or <namespace>/<service account>, without wildcards",
            ));
        }
        Ok(is(Matcher::ServiceAccount {
            namespace: namespace.into(),
            name: name.into(),
        }))
    }
}

fn each<T>(
    values: &[T],
    field: &str,
    lower: impl Fn(&T, &str) -> Result<Expr, Error>,
) -> Result<Vec<Expr>, Error> {
    values
        .iter()
        .enumerate()
        .map(|(at, value)| lower(value, &format!("{field}[{at}]")))
        .collect()
}

pub(super) fn is(matcher: Matcher) -> Expr {
    Expr::Is(matcher)
}

/// A disjunction, without a level that says nothing.
pub(super) fn any_of(parts: Vec<Expr>) -> Expr {
    let mut flat = Vec::with_capacity(parts.len());
    for part in parts {
        match part {
            Expr::Any(inner) => flat.extend(inner),
            part => flat.push(part),
        }
    }
    match flat.len() {
        1 => flat.swap_remove(0),
        _ => Expr::Any(flat),
    }
}

/// A conjunction, without a level that says nothing.
fn all_of(mut parts: Vec<Expr>) -> Expr {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => Expr::All(parts),
    }
}

/// Reads a namespace, in which `*` stands for any characters wherever it is.
pub(super) fn namespace(value: &str, field: &str) -> Result<Expr, Error> {
    let inner = value.trim_matches('*');
    let one_end = value.len() - inner.len() <= 1;
    let value = if !inner.contains('*') && (one_end || value == "*") {
        StringMatch::from_istio(value)
    } else {
        let parts: Vec<String> = value.split('*').map(regex::escape).collect();
        StringMatch::regex(&parts.join(".*")).map_err(|_| {
            Error::new(
                ErrorKind::Principal,
                field,
                value,
                "a namespace of at most 63 characters",
            )
        })?
    };
    Ok(is(Matcher::Namespace(value)))
}

pub(super) fn trust_domain(value: &str, field: &str) -> Result<Expr, Error> {
    if value.contains(['*', '/']) {
        return Err(Error::new(
            ErrorKind::Principal,
            field,
            value,
            "the name of a trust domain, without wildcards",
        ));
    }
    Ok(is(Matcher::TrustDomain(StringMatch::Exact(value.into()))))
}

fn cidr(value: &str, field: &str) -> Result<ipnet::IpNet, Error> {
    parse_cidr(value).map_err(|_| {
        Error::new(
            ErrorKind::Cidr,
            field,
            value,
            "an IP address or <address>/<prefix length>",
        )
    })
}

pub(super) fn source_ip(value: &str, field: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::SourceIp(cidr(value, field)?)))
}

pub(super) fn remote_ip(value: &str, field: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::RemoteIp(cidr(value, field)?)))
}

pub(super) fn destination_ip(value: &str, field: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::DestinationIp(cidr(value, field)?)))
}

pub(super) fn port(value: &str, field: &str) -> Result<Expr, Error> {
    // `u16::from_str` would take a sign.
    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
    match value.parse() {
        Ok(port) if digits => Ok(is(Matcher::DestinationPort(port))),
        _ => Err(Error::new(
            ErrorKind::Port,
            field,
            value,
            "a port, 0 to 65535",
        )),
    }
}

/// Reads a header's value: `*` is presence, and an empty value is present (Envoy's `present_match`).
fn header_value(value: &str) -> StringMatch {
    match value {
        "*" => StringMatch::Prefix("".into()),
        value => StringMatch::from_istio(value),
    }
}

#[allow(clippy::unnecessary_wraps, reason = "one shape for all fields")]
pub(super) fn host(value: &str, _: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::Host(header_value(value))))
}

#[allow(clippy::unnecessary_wraps, reason = "one shape for all fields")]
pub(super) fn method(value: &str, _: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::Method(StringMatch::from_istio(value))))
}

pub(super) fn header(name: &HeaderName, value: &str) -> Expr {
    is(Matcher::Header {
        name: name.clone(),
        value: header_value(value),
    })
}

fn path(value: &str, field: &str) -> Result<Expr, Error> {
    if PathTemplate::is_template(value) {
        return PathTemplate::parse(value)
            .map(|template| is(Matcher::Path(PathMatch::Template(template))))
            .map_err(|error| {
                let expected = format!("a path template: {}", error.reason());
                Error::new(ErrorKind::Path, field, value, expected)
            });
    }
    if value.contains(['{', '}']) {
        return Err(Error::new(
            ErrorKind::Path,
            field,
            value,
            "no braces but those of {*} and {**}",
        ));
    }
    Ok(is(Matcher::Path(PathMatch::String(
        StringMatch::from_istio(value),
    ))))
}

#[allow(clippy::unnecessary_wraps, reason = "one shape for all fields")]
pub(super) fn request_principal(value: &str, _: &str) -> Result<Expr, Error> {
    Ok(is(Matcher::request_principal(value)))
}
