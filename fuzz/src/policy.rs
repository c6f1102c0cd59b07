//! Policies, connections and requests of bytes: the compiled set decides as the interpreter does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use ipnet::IpNet;
use mesh_authz::matcher::{PathMatch, PathTemplate, StringMatch};
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attribute, Decision, Explanation, Identity, PolicySet};

use crate::interpreter::{Answer, Question, decide};
use crate::subjects::{Connection, Request};

/// What the bytes choose; when they are used up, the first of everything.
struct Choices<'a>(std::slice::Iter<'a, u8>);

/// Conditions inside of conditions.
const DEPTH: usize = 3;

const NAMES: &[u8] = b"ab.-xyz1";
const TEXTS: &[u8] = b"ab/.*AB:%?=- xv{";

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.0.next().copied().unwrap_or_default()
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    fn text(&mut self, alphabet: &[u8], longest: usize) -> String {
        let length = self.below(longest + 1);
        let letter = |_| char::from(alphabet[self.below(alphabet.len())]);
        (0..length).map(letter).collect()
    }

    /// A name of few letters, so that names meet.
    fn name(&mut self) -> String {
        format!("a{}", self.text(NAMES, 3))
    }

    fn address(&mut self) -> IpAddr {
        let four = Ipv4Addr::new(10, self.byte() & 3, 0, self.byte() & 7);
        match self.below(4) {
            0 | 1 => four.into(),
            2 => four.to_ipv6_mapped().into(),
            _ => Ipv6Addr::new(0xfd00, u16::from(self.byte() & 3), 0, 0, 0, 0, 0, 1).into(),
        }
    }

    fn block(&mut self) -> IpNet {
        let address = self.address();
        let bits = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, self.byte() % (bits + 1)).expect("no longer than the address")
    }

    fn port(&mut self) -> u16 {
        440 + u16::from(self.byte() & 15)
    }

    fn identity(&mut self) -> Identity {
        Identity::new(&self.name(), &self.name(), &self.name()).expect("names that SPIFFE takes")
    }

    fn attribute<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Attribute<T> {
        match self.below(8) {
            0 => Attribute::Absent,
            1 => Attribute::Unknown,
            _ => Attribute::Present(value(self)),
        }
    }

    fn connection(&mut self) -> Connection {
        Connection {
            identity: self.attribute(Self::identity),
            source: SocketAddr::new(self.address(), 51_000),
            destination: SocketAddr::new(self.address(), self.port()),
            sni: self.attribute(|choices| choices.text(NAMES, 4)),
        }
    }

    fn request(&mut self) -> Request {
        let headers = (0..self.below(4)).map(|_| {
            let value = HeaderValue::from_str(&self.text(TEXTS, 4)).expect("visible ASCII");
            (self.header(), value)
        });
        let headers: HeaderMap = headers.collect();
        Request {
            method: self.method().parse().unwrap_or(Method::GET),
            host: (self.below(8) > 0).then(|| self.text(TEXTS, 4)),
            path: format!("/{}", self.text(TEXTS, 6)),
            headers,
            remote_ip: (self.below(2) > 0).then(|| self.address()),
        }
    }

    fn method(&mut self) -> &'static str {
        ["GET", "POST", "GETS", "get"][self.below(4)]
    }

    fn header(&mut self) -> HeaderName {
        HeaderName::from_static(["x-a", "x-b", "accept"][self.below(3)])
    }

    fn string(&mut self, value: impl FnOnce(&mut Self) -> String) -> StringMatch {
        let form = self.below(8);
        let value = value(self);
        let part = |cut: usize| value.len() * (cut % 8) / 8;
        match form {
            0 => StringMatch::Present,
            1 | 2 => StringMatch::Prefix(value[..part(self.below(8))].into()),
            3 | 4 => StringMatch::Suffix(value[part(self.below(8))..].into()),
            // What is no expression is one of its letters.
            5 => StringMatch::regex(&value.replace('a', ".*"))
                .unwrap_or_else(|_| StringMatch::Exact(value.into())),
            _ => StringMatch::Exact(value.into()),
        }
    }

    fn texts(&mut self) -> StringMatch {
        self.string(|choices| choices.text(TEXTS, 4))
    }

    fn path(&mut self) -> PathMatch {
        let path = format!("/{}", self.text(TEXTS, 6));
        let path = path
            .replace('*', "{*}")
            .replace('{', ["{", "{**}"][self.below(2)]);
        match PathTemplate::parse(&path) {
            Ok(template) if self.below(2) == 0 => PathMatch::Template(template),
            _ => PathMatch::String(self.string(|_| path)),
        }
    }

    fn matcher(&mut self) -> Matcher {
        match self.below(16) {
            0 => Matcher::Principal(self.string(|choices| choices.identity().principal().into())),
            1 => Matcher::Namespace(self.string(Self::name)),
            2 => Matcher::ServiceAccount {
                namespace: self.name().into(),
                name: self.name().into(),
            },
            3 => Matcher::TrustDomain(self.string(Self::name)),
            4 => Matcher::SourceIp(self.block()),
            5 => Matcher::DestinationIp(self.block()),
            6 => Matcher::DestinationPort(self.port()),
            7 => Matcher::Sni(self.string(|choices| choices.text(NAMES, 4))),
            8 => Matcher::RemoteIp(self.block()),
            9 => Matcher::Host(self.texts()),
            10 => Matcher::Method(self.string(|choices| choices.method().into())),
            11 | 12 => Matcher::Path(self.path()),
            13 => Matcher::Header {
                name: self.header(),
                value: self.texts(),
            },
            14 => Matcher::request_principal(&self.text(TEXTS, 4)),
            _ => Matcher::Audience(self.texts()),
        }
    }

    /// A list of matchers of one kind, long enough to become a set.
    fn list(&mut self) -> Expr {
        let kind = self.below(4);
        let matcher = |_| match kind {
            0 => Matcher::Principal(StringMatch::Exact(self.identity().principal().into())),
            1 => Matcher::SourceIp(self.block()),
            2 => Matcher::DestinationPort(self.port()),
            _ => Matcher::Path(PathMatch::String(StringMatch::Exact(
                format!("/{}", self.text(TEXTS, 2)).into(),
            ))),
        };
        Expr::Any((0..12).map(matcher).map(Expr::Is).collect())
    }

    fn expr(&mut self, depth: usize) -> Expr {
        let parts = |choices: &mut Self| {
            let count = choices.below(4);
            (0..count).map(|_| choices.expr(depth - 1)).collect()
        };
        match self.below(8) {
            1 | 2 if depth > 0 => Expr::All(parts(self)),
            3 | 4 if depth > 0 => Expr::Any(parts(self)),
            5 if depth > 0 => Expr::Not(Box::new(self.expr(depth - 1))),
            6 => self.list(),
            _ => Expr::Is(self.matcher()),
        }
    }

    fn policy(&mut self, at: usize) -> Policy {
        let form = self.byte();
        let action = match form % 8 {
            0..=2 => Action::Allow,
            3..=5 => Action::Deny,
            6 => Action::Audit,
            _ => Action::Custom {
                provider: "p".into(),
            },
        };
        let rules = (0..self.below(4)).map(|_| Rule::new(self.expr(DEPTH)));
        let rules = rules.collect();
        Policy::new(PolicyName::new("ns", format!("policy-{at}")), action, rules)
            .with_dry_run(form >= 192)
    }
}

fn place(set: &PolicySet, name: &PolicyName) -> usize {
    let mut policies = set.policies().iter();
    let at = policies.position(|policy| policy.name() == name);
    at.expect("one of the set's")
}

fn answer(set: &PolicySet, decision: &Decision<'_>) -> Answer {
    let by = decision.policy().zip(decision.rule());
    let by = by.map(|(name, rule)| (place(set, name), rule));
    (decision.reason(), by)
}

fn told(set: &PolicySet, told: &Explanation) -> Answer {
    let by = told.decided_by();
    let by = by.map(|(name, rule)| (place(set, name), rule));
    (told.reason(), by)
}

/// Policies, and what connections and requests they decide on.
pub fn policy(data: &[u8]) {
    let mut choices = Choices(data.iter());
    let count = choices.below(6);
    let policies: Vec<_> = (0..count).map(|at| Arc::new(choices.policy(at))).collect();
    let set = PolicySet::new(policies.clone());
    for _ in 0..4 {
        let (connection, request) = (choices.connection(), choices.request());
        let naive = |request, question, dry| decide(&policies, &connection, request, question, dry);
        for (attributes, request) in [
            (connection.attributes(), None),
            (connection.with(&request), Some(&request)),
        ] {
            for (decision, explanation, question) in [
                (
                    set.evaluate(&attributes),
                    set.explain(&attributes),
                    Question::Full,
                ),
                (
                    set.evaluate_l4(&attributes),
                    set.explain_l4(&attributes),
                    Question::L4,
                ),
                (
                    set.could_allow(&attributes),
                    set.explain_could_allow(&attributes),
                    Question::CouldAllow,
                ),
            ] {
                let expected = naive(request, question, false);
                assert_eq!(answer(&set, &decision), expected, "{question:?}");
                assert_eq!(
                    told(&set, &explanation),
                    expected,
                    "{question:?}, explained"
                );
            }
            let dry_run = set.evaluate_dry_run(&attributes);
            let would = naive(request, Question::Full, true).0.is_allowed();
            assert_eq!(dry_run.decision().is_allowed(), would);
        }
    }
}
