//! Policies of ten rules each on one destination, as people write them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, Method};
use mesh_authz::policy::istio::{AuthorizationPolicy, Operation, Rule, Source};
use mesh_authz::policy::{Action, Policy, TrustDomains};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};

/// Makes a set of policies, each of ten rules, of which no two ask for the same.
///
/// Every tenth policy denies. Of the rules, two ask for a principal, the others for a namespace and a
/// port, a service account and a method, a trust domain's prefix, a suffix, a block of addresses, a
/// path, the beginning of a path with a method, and a namespace without one of its addresses.
///
/// # Panics
///
/// When mesh-authz refuses one of them.
pub fn set(count: u32) -> PolicySet {
    PolicySet::new((0..count).map(|at| Arc::new(policy(at))))
}

fn policy(at: u32) -> Policy {
    let mut resource = AuthorizationPolicy::new("shop", format!("policy-{at}"));
    if at % 10 == 9 {
        resource.action = Action::Deny;
    }
    resource.rules = (0..10).map(|part| rule(at, part)).collect();
    let lowered = resource.lower(&TrustDomains::new("cluster.local"));
    lowered.expect("a policy that Istio accepts")
}

fn rule(at: u32, part: u32) -> Rule {
    let (mut source, mut operation) = (Source::default(), Operation::default());
    match part {
        0 | 1 => source.principals = list(format_args!("cluster.local/ns/team-{at}/sa/app-{part}")),
        2 => {
            source.namespaces = list(format_args!("open-{at}"));
            operation.ports = list(format_args!("{}", 8_000 + at % 100));
        }
        3 => {
            source.service_accounts = list(format_args!("jobs-{at}/runner"));
            operation.methods = list(format_args!("PUT"));
        }
        4 => source.principals = list(format_args!("td-{at}.example/*")),
        5 => source.principals = list(format_args!("*/ns/mirror-{at}/sa/reader")),
        6 => source.ip_blocks = list(format_args!("{}", block(at))),
        7 => operation.paths = list(format_args!("/v1/items/{at}")),
        8 => {
            operation.paths = list(format_args!("/v2/area-{at}/*"));
            operation.methods = list(format_args!("GET"));
        }
        _ => {
            source.namespaces = list(format_args!("guests-{at}"));
            source.not_ip_blocks = list(format_args!("192.0.2.0/24"));
        }
    }
    let mut rule = Rule::default();
    if source != Source::default() {
        rule.from = vec![source];
    }
    if operation != Operation::default() {
        rule.to = vec![operation];
    }
    rule
}

fn list(value: fmt::Arguments<'_>) -> Vec<String> {
    vec![value.to_string()]
}

fn block(at: u32) -> String {
    format!("10.{}.{}.0/24", at / 256, at % 256)
}

/// One request, and what the policies of [`set`] say of it.
#[derive(Debug)]
pub struct Request {
    /// What is special about it.
    pub name: &'static str,
    /// Whether it is admitted when everything is known.
    pub allowed: bool,
    identity: Identity,
    source: SocketAddr,
    destination: SocketAddr,
    method: Method,
    path: String,
    headers: HeaderMap,
}

impl Request {
    /// A request as the policies see it.
    pub fn attributes(&self) -> Attributes<'_> {
        let request = RequestAttributes::new(
            &self.method,
            Some("shop.example:8080"),
            &self.path,
            &self.headers,
        );
        Attributes::new(self.source, self.destination)
            .with_identity(Attribute::Present(&self.identity))
            .with_request(request)
    }
}

/// One request for each way in which a set of `count` policies can decide.
///
/// # Panics
///
/// When a name or an address that this makes is none.
pub fn requests(count: u32) -> Vec<Request> {
    // In the middle, and of a policy that allows.
    let at = count / 2 / 10 * 10;
    let denying = at + 9;
    let request = |name, allowed, identity: String, ip: &str, port: u16, path: String| Request {
        name,
        allowed,
        identity: identity.parse().expect("an identity"),
        source: format!("{ip}:51234").parse().expect("an address"),
        destination: SocketAddr::from(([172, 16, 0, 9], port)),
        method: Method::GET,
        path,
        headers: HeaderMap::new(),
    };
    let id = |namespace: String, account: &str| {
        format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
    };
    let stranger = || id("nobody".to_owned(), "knows");
    let (far, root) = ("192.168.7.7", || "/".to_owned());
    let own_block = format!("10.{}.{}.7", at / 256, at % 256);
    let port = 8_000 + u16::try_from(at % 100).expect("less than 100");
    vec![
        request(
            "principal",
            true,
            id(format!("team-{at}"), "app-1"),
            far,
            8080,
            root(),
        ),
        request(
            "namespace and port",
            true,
            id(format!("open-{at}"), "x"),
            far,
            port,
            root(),
        ),
        request(
            "prefix",
            true,
            format!("spiffe://td-{at}.example/ns/a/sa/b"),
            far,
            8080,
            root(),
        ),
        request(
            "suffix",
            true,
            id(format!("mirror-{at}"), "reader"),
            far,
            8080,
            root(),
        ),
        request("block", true, stranger(), &own_block, 8080, root()),
        request(
            "path",
            true,
            stranger(),
            far,
            8080,
            format!("/v1/items/{at}"),
        ),
        request(
            "path's beginning",
            true,
            stranger(),
            far,
            8080,
            format!("/v2/area-{at}/x/y"),
        ),
        request(
            "denied",
            false,
            id(format!("team-{denying}"), "app-0"),
            far,
            8080,
            root(),
        ),
        request(
            "nothing matches",
            false,
            stranger(),
            far,
            8080,
            "/v2/area-x/y".to_owned(),
        ),
    ]
}
