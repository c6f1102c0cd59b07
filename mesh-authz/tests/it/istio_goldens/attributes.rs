//! Requests made of what a filter's matchers ask for.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::{Attribute, Attributes, Identity};

use super::rbac::{Filter, Form, Node, Text};
use crate::subjects::{Connection, Request};

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) connection: Connection,
    pub(super) request: Request,
}

impl Sample {
    pub(super) fn with<T>(&self, ask: impl FnOnce(&Attributes<'_>) -> T) -> T {
        ask(&self.connection.with(&self.request))
    }

    pub(super) fn with_connection<T>(&self, ask: impl FnOnce(&Attributes<'_>) -> T) -> T {
        ask(&self.connection.attributes())
    }

    pub(super) fn path(&self) -> &str {
        self.request.path.split('?').next().unwrap()
    }

    pub(super) fn remote_ip(&self) -> IpAddr {
        self.request
            .remote_ip
            .unwrap_or(self.connection.source.ip())
    }
}

/// Values by attribute, with some that nothing asks for.
#[derive(Debug, Default)]
pub(super) struct Literals {
    principals: Vec<String>,
    hosts: Vec<String>,
    methods: Vec<String>,
    paths: Vec<String>,
    snis: Vec<String>,
    headers: Vec<(String, String)>,
    ips: Vec<IpAddr>,
    ports: Vec<u16>,
}

impl Literals {
    pub(super) fn collect(&mut self, filter: &Filter) {
        filter.nodes().for_each(|node| self.node(node));
    }

    fn node(&mut self, node: &Node) {
        match node {
            Node::And(parts) | Node::Or(parts) => parts.iter().for_each(|part| self.node(part)),
            Node::Not(part) => self.node(part),
            Node::Principal(text) => self.principals.extend(likes(text)),
            Node::Header(name, Some(text)) => match name.as_str() {
                ":authority" => {
                    self.hosts.extend(likes(text));
                    self.hosts
                        .extend(likes(text).map(|host| host.to_uppercase()));
                }
                ":method" => self.methods.extend(likes(text)),
                name => self
                    .headers
                    .extend(likes(text).map(|value| (name.to_owned(), value))),
            },
            Node::Header(name, None) => {
                if !name.starts_with(':') {
                    self.headers.push((name.clone(), String::new()));
                }
            }
            Node::Path(text) => self.paths.extend(likes(text)),
            Node::Template(template) => {
                for (many, one) in [("q", "q"), ("", "q"), ("q/r", "q/r")] {
                    self.paths
                        .push(template.replace("{**}", many).replace("{*}", one));
                }
            }
            Node::Port(port) => self.ports.push(*port),
            Node::DestinationIp(block) | Node::SourceIp(block) | Node::RemoteIp(block) => {
                self.ips.push(block.address);
            }
            Node::Sni(text) => self.snis.extend(likes(text)),
            Node::Any(_) | Node::Metadata => {}
        }
    }

    pub(super) fn samples(mut self, count: usize) -> Vec<Sample> {
        let (domains, namespaces, accounts) = self.identities();
        self.hosts.extend(["other.com".into(), String::new()]);
        self.methods.extend(["GET".into(), "POST".into()]);
        self.paths.extend(["/".into(), "/other?/exact".into()]);
        self.snis.push("other.com".into());
        self.headers.push(("x-other".into(), "v".into()));
        self.ips
            .extend(["10.11.12.13", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        self.ports.push(4321);

        let mut dice = Dice(0x9e37_79b9);
        (0..count)
            .map(|_| {
                let identity = Identity::new(
                    dice.pick::<String>(&domains),
                    dice.pick::<String>(&namespaces),
                    dice.pick::<String>(&accounts),
                );
                let connection = Connection {
                    identity: match identity {
                        Ok(identity) if dice.roll(8) > 0 => Attribute::Present(identity),
                        _ => Attribute::Absent,
                    },
                    source: SocketAddr::new(*dice.pick(&self.ips), 1000),
                    destination: SocketAddr::new(*dice.pick(&self.ips), *dice.pick(&self.ports)),
                    sni: match dice.roll(4) {
                        0 => Attribute::Absent,
                        _ => Attribute::Present(dice.pick(&self.snis).clone()),
                    },
                };
                let mut headers = HeaderMap::new();
                for _ in 0..dice.roll(3) {
                    let (name, value) = dice.pick(&self.headers);
                    // One value each: with several, Envoy compares them joined.
                    headers.insert(
                        HeaderName::try_from(name).unwrap(),
                        HeaderValue::try_from(value).unwrap(),
                    );
                }
                let request = Request {
                    method: dice.pick(&self.methods).parse().unwrap(),
                    host: Some(dice.pick(&self.hosts).clone()),
                    path: dice.pick(&self.paths).clone(),
                    headers,
                    remote_ip: (dice.roll(2) > 0).then(|| *dice.pick(&self.ips)),
                };
                Sample {
                    connection,
                    request,
                }
            })
            .collect()
    }

    /// Trust domains, namespaces and accounts of which principals that match can be put together.
    fn identities(&self) -> (Vec<String>, Vec<String>, Vec<String>) {
        let mut domains = vec![
            "td1".to_owned(),
            "cluster.local".into(),
            "other".into(),
            "foobar".into(),
        ];
        let mut namespaces = vec!["other".to_owned(), "foo".into()];
        let mut accounts = vec!["other".to_owned()];
        for principal in &self.principals {
            let principal = principal.trim_start_matches("spiffe://");
            let mut parts = principal.split('/');
            domains.extend(parts.next().map(str::to_owned));
            while let Some(part) = parts.next() {
                match part {
                    "ns" => namespaces.extend(parts.next().map(str::to_owned)),
                    "sa" => accounts.extend(parts.next().map(str::to_owned)),
                    _ => {}
                }
            }
            accounts.extend(principal.rsplit('/').next().map(str::to_owned));
        }
        (domains, namespaces, accounts)
    }
}

/// Texts that match, and some that nearly do.
fn likes(text: &Text) -> impl Iterator<Item = String> {
    let matching = match &text.form {
        Form::Exact(text) => vec![text.clone(), format!("{text}z")],
        Form::Prefix(text) => vec![text.clone(), format!("{text}z"), format!("z{text}")],
        Form::Suffix(text) => vec![text.clone(), format!("z{text}"), format!("{text}z")],
        Form::Regex(text) => {
            let plain = text
                .replace("(.+/|)", "")
                .replace("(/.+)?", "")
                .replace('\\', "");
            vec![
                plain.replace(".+", "z").replace(".*", "z"),
                plain.replace(".*", ""),
            ]
        }
    };
    matching.into_iter().filter(|text| !text.is_empty())
}

/// Reproducible choices (a linear congruential generator).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}
