//! Random policies, connections and requests, of values few enough to meet.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use mesh_authz::matcher::{PathMatch, PathTemplate, StringMatch, parse_cidr};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Identity};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::subjects::{Connection, Request};

pub(crate) const DOMAINS: [&str; 3] = ["cluster.local", "td-b", "td"];
pub(crate) const NAMESPACES: [&str; 4] = ["a", "b", "ab", "a.b"];
pub(crate) const ACCOUNTS: [&str; 4] = ["x", "y", "xy", "x.y"];
pub(crate) const PORTS: [u16; 4] = [80, 8080, 443, 0];
pub(crate) const METHODS: [&str; 4] = ["GET", "POST", "GETS", "get"];
pub(crate) const HOSTS: [&str; 5] = ["a.com", "A.com:80", "b.a.com", "a.com.", ""];
pub(crate) const PATHS: [&str; 8] = ["/", "/a", "/a/b", "/a/b/c", "/b", "/a/", "/a?x=/b", "/A"];
pub(crate) const TEMPLATES: [&str; 4] = ["/{*}", "/a/{*}", "/{**}/b", "/{*}/{**}"];
pub(crate) const HEADERS: [&str; 3] = ["x-a", "x-b", "accept"];
pub(crate) const VALUES: [&str; 6] = ["v", "w", "vw", "", "V", "v.w"];
pub(crate) const SNIS: [&str; 3] = ["a.com", "b.a.com", "b.com"];
pub(crate) const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.1.1",
    "10.1.0.1",
    "192.168.0.1",
    "::ffff:10.0.0.1",
    "::ffff:192.168.0.1",
    "fd00::1",
    "fd00:1::1",
    "2001:db8::1",
];
pub(crate) const BLOCKS: [&str; 11] = [
    "10.0.0.1",
    "10.0.0.0/24",
    "10.0.0.9/16",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "192.168.0.1/32",
    "::ffff:10.0.0.0/104",
    "::/0",
    "fd00::/16",
    "fd00::1/128",
    "::ffff:0:0/95",
];

pub(crate) fn identity() -> impl Strategy<Value = Identity> {
    (
        select(&DOMAINS[..]),
        select(&NAMESPACES[..]),
        select(&ACCOUNTS[..]),
    )
        .prop_map(|(domain, namespace, account)| Identity::new(domain, namespace, account).unwrap())
}

fn attribute<T: Clone + std::fmt::Debug>(
    value: impl Strategy<Value = T>,
    unknown: u32,
) -> impl Strategy<Value = Attribute<T>> {
    (value, 0..10_u32).prop_map(move |(value, die)| match die {
        0 | 1 => Attribute::Absent,
        die if die < 2 + unknown => Attribute::Unknown,
        _ => Attribute::Present(value),
    })
}

pub(crate) fn address() -> impl Strategy<Value = IpAddr> {
    select(&ADDRESSES[..]).prop_map(|text| text.parse().unwrap())
}

/// A connection of which everything is known.
pub(crate) fn known_connection() -> impl Strategy<Value = Connection> {
    connection_with(0)
}

/// A connection of which some things may be unknown.
pub(crate) fn connection() -> impl Strategy<Value = Connection> {
    connection_with(2)
}

fn connection_with(unknown: u32) -> impl Strategy<Value = Connection> {
    (
        attribute(identity(), unknown),
        address(),
        address(),
        select(&PORTS[..]),
        attribute(select(&SNIS[..]), unknown),
    )
        .prop_map(|(identity, source, destination, port, sni)| Connection {
            identity,
            source: SocketAddr::new(source, 51000),
            destination: SocketAddr::new(destination, port),
            sni: match sni {
                Attribute::Present(sni) => Attribute::Present(sni.to_owned()),
                Attribute::Absent => Attribute::Absent,
                Attribute::Unknown => Attribute::Unknown,
            },
        })
}

pub(crate) fn request() -> impl Strategy<Value = Request> {
    (
        select(&METHODS[..]),
        proptest::option::weighted(0.9, select(&HOSTS[..])),
        select(&PATHS[..]),
        vec((select(&HEADERS[..]), select(&VALUES[..])), 0..4),
        proptest::option::of(address()),
    )
        .prop_map(|(method, host, path, headers, remote_ip)| Request {
            method: method.parse().unwrap(),
            host: host.map(str::to_owned),
            path: path.to_owned(),
            headers: headers
                .into_iter()
                .map(|(name, value)| {
                    (
                        HeaderName::from_static(name),
                        HeaderValue::from_static(value),
                    )
                })
                .collect(),
            remote_ip,
        })
}

fn string(values: &'static [&'static str]) -> impl Strategy<Value = StringMatch> + Clone {
    (select(values), 0..9_u32, 0..8_usize).prop_map(|(value, form, cut)| {
        let at = value.len() * cut / 8;
        match form {
            0 => StringMatch::Present,
            1 | 2 => StringMatch::Prefix(value[..at].into()),
            3 | 4 => StringMatch::Suffix(value[at..].into()),
            5 => StringMatch::regex(&format!("{}.*", value.replace('.', r"\."))).unwrap(),
            _ => StringMatch::Exact(value.into()),
        }
    })
}

const PRINCIPALS: [&str; 6] = [
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/a/sa/y",
    "td/ns/a/sa/x",
    "td-b/ns/ab/sa/x.y",
    "td-b/ns/a.b/sa/xy",
    "td/ns/b/sa/x",
];

fn block() -> impl Strategy<Value = ipnet::IpNet> + Clone {
    // Read plainly, so that neither host bits nor mapped blocks are canonical.
    select(&BLOCKS[..]).prop_map(|text| match text.split_once('/') {
        Some(_) => text.parse().unwrap(),
        None => parse_cidr(text).unwrap(),
    })
}

fn l4_matcher() -> impl Strategy<Value = Matcher> + Clone {
    prop_oneof![
        string(&PRINCIPALS).prop_map(Matcher::Principal),
        string(&NAMESPACES).prop_map(Matcher::Namespace),
        (select(&NAMESPACES[..]), select(&ACCOUNTS[..])).prop_map(|(namespace, name)| {
            Matcher::ServiceAccount {
                namespace: namespace.into(),
                name: name.into(),
            }
        }),
        string(&DOMAINS).prop_map(Matcher::TrustDomain),
        block().prop_map(Matcher::SourceIp),
        block().prop_map(Matcher::DestinationIp),
        select(&PORTS[..]).prop_map(Matcher::DestinationPort),
        string(&SNIS).prop_map(Matcher::Sni),
    ]
}

fn l7_matcher() -> impl Strategy<Value = Matcher> + Clone {
    prop_oneof![
        block().prop_map(Matcher::RemoteIp),
        string(&HOSTS).prop_map(Matcher::Host),
        string(&METHODS).prop_map(Matcher::Method),
        string(&PATHS).prop_map(|value| Matcher::Path(PathMatch::String(value))),
        select(&TEMPLATES[..]).prop_map(|template| {
            Matcher::Path(PathMatch::Template(PathTemplate::parse(template).unwrap()))
        }),
        (select(&HEADERS[..]), string(&VALUES)).prop_map(|(name, value)| Matcher::Header {
            name: HeaderName::from_static(name),
            value,
        }),
        Just(Matcher::request_principal("issuer/subject")),
        Just(Matcher::Audience(StringMatch::Present)),
        Just(Matcher::Presenter(StringMatch::Present)),
        Just(Matcher::Claim {
            path: vec!["group".into()],
            value: StringMatch::Present,
        }),
        Just(Matcher::EnvoyMetadata {
            filter: "envoy.filters.a".into(),
            key: "k".into(),
            value: StringMatch::Present,
        }),
    ]
}

/// Lists long enough to become sets.
fn long_list() -> impl Strategy<Value = Expr> + Clone {
    (vec(l4_matcher(), 0..3), 0..5_u32).prop_map(|(more, kind)| {
        let list: Vec<Matcher> = match kind {
            0 => (0..12)
                .map(|n| PRINCIPALS[n % 6].replacen('x', &"x".repeat(1 + n / 6), 1))
                .map(|text| Matcher::Principal(StringMatch::Exact(text.into())))
                .collect(),
            1 => BLOCKS
                .iter()
                .map(|text| Matcher::SourceIp(parse_cidr(text).unwrap()))
                .skip(1)
                .filter(
                    |matcher| !matches!(matcher, Matcher::SourceIp(net) if net.prefix_len() == 0),
                )
                .collect(),
            2 => (440..452).map(Matcher::DestinationPort).collect(),
            3 => NAMESPACES
                .iter()
                .flat_map(|namespace| ACCOUNTS.iter().map(move |name| (*namespace, *name)))
                .step_by(2)
                .map(|(namespace, name)| Matcher::ServiceAccount {
                    namespace: namespace.into(),
                    name: name.into(),
                })
                .collect(),
            _ => PATHS
                .iter()
                .chain(["/x", "/y"].iter())
                .skip(2)
                .map(|path| Matcher::Path(PathMatch::String(StringMatch::Exact((*path).into()))))
                .collect(),
        };
        Expr::Any(list.into_iter().chain(more).map(Expr::Is).collect())
    })
}

pub(crate) fn expr() -> impl Strategy<Value = Expr> {
    let leaf = prop_oneof![
        5 => l4_matcher().prop_map(Expr::Is),
        3 => l7_matcher().prop_map(Expr::Is),
        1 => long_list(),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            3 => vec(inner.clone(), 0..4).prop_map(Expr::All),
            3 => vec(inner.clone(), 0..4).prop_map(Expr::Any),
            2 => inner.prop_map(|part| Expr::Not(Box::new(part))),
        ]
    })
}

pub(crate) fn policies() -> impl Strategy<Value = Vec<Arc<Policy>>> {
    let action = prop_oneof![
        6 => Just(Action::Allow),
        4 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => Just(Action::Custom { provider: "p".into() }),
    ];
    let policy = (action, vec(expr(), 0..4), prop::bool::weighted(0.2));
    vec(policy, 0..6).prop_map(|policies| {
        let named = policies.into_iter().enumerate();
        named
            .map(|(at, (action, rules, dry_run))| {
                let name = PolicyName::new("ns", format!("policy-{at}"));
                let rules = rules.into_iter().map(Rule::new).collect();
                Arc::new(Policy::new(name, action, rules).with_dry_run(dry_run))
            })
            .collect()
    })
}

/// What all properties run with.
pub(crate) fn config() -> ProptestConfig {
    ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}
