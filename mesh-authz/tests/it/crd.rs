//! Istio's resource, interpreted straight from its documentation, against lowering and evaluation.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_authz::matcher::parse_cidr;
use mesh_authz::policy::istio::{AuthorizationPolicy, Condition, Operation, Rule, Source};
use mesh_authz::policy::{Action, TrustDomains};
use mesh_authz::{Attribute, Identity, PolicySet};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::generate::{
    ACCOUNTS, BLOCKS, DOMAINS, HEADERS, HOSTS, METHODS, NAMESPACES, PATHS, PORTS, SNIS, TEMPLATES,
    VALUES, config, known_connection, request,
};
use crate::interpreter::{in_block, template_matches};
use crate::subjects::{Connection, Request};

/// A list that is usually empty, of values and of patterns made of them.
fn patterns(values: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    let pattern = (select(values), 0..8_u32, 0..8_usize).prop_map(|(value, form, cut)| {
        let at = value.len() * cut / 8;
        match form {
            0 => "*".to_owned(),
            1 => format!("{}*", &value[..at]),
            2 => format!("*{}", &value[at..]),
            _ if value.is_empty() => "*".to_owned(),
            _ => value.to_owned(),
        }
    });
    sometimes(pattern)
}

fn plain<T: ToString + Clone + std::fmt::Debug>(
    values: &'static [T],
) -> impl Strategy<Value = Vec<String>> {
    sometimes(select(values).prop_map(|value| value.to_string()))
}

fn sometimes(value: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<String>> {
    prop_oneof![4 => Just(Vec::new()), 1 => vec(value, 1..4)]
}

const PRINCIPALS: [&str; 6] = [
    "cluster.local/ns/a/sa/x",
    "cluster.local/ns/b/sa/y",
    "td/ns/a/sa/x",
    "td-b/ns/ab/sa/x.y",
    "td-b/ns/a.b/sa/xy",
    "other/ns/a/sa/x",
];
const SERVICE_ACCOUNTS: [&str; 5] = ["x", "a/x", "b/y", "a.b/x.y", "ab/xy"];
const REQUEST_PRINCIPALS: [&str; 3] = ["iss/sub", "iss/*", "*"];
const LOCAL: &str = "a";

prop_compose! {
    fn source()(
        (principals, not_principals) in (patterns(&PRINCIPALS), patterns(&PRINCIPALS)),
        (request_principals, not_request_principals) in
            (plain(&REQUEST_PRINCIPALS), plain(&REQUEST_PRINCIPALS)),
        (namespaces, not_namespaces) in (patterns(&NAMESPACES), patterns(&NAMESPACES)),
        (ip_blocks, not_ip_blocks) in (plain(&BLOCKS), plain(&BLOCKS)),
        (remote_ip_blocks, not_remote_ip_blocks) in (plain(&BLOCKS), plain(&BLOCKS)),
        (service_accounts, not_service_accounts) in
            (plain(&SERVICE_ACCOUNTS), plain(&SERVICE_ACCOUNTS)),
        (trust_domains, not_trust_domains) in (plain(&DOMAINS), plain(&DOMAINS)),
        by_account in any::<bool>(),
    ) -> Source {
        let mut source = Source::default();
        if by_account {
            source.service_accounts = service_accounts;
            source.not_service_accounts = not_service_accounts;
        } else {
            source.principals = principals;
            source.not_principals = not_principals;
            source.namespaces = namespaces;
            source.not_namespaces = not_namespaces;
        }
        source.request_principals = request_principals;
        source.not_request_principals = not_request_principals;
        source.ip_blocks = ip_blocks;
        source.not_ip_blocks = not_ip_blocks;
        source.remote_ip_blocks = remote_ip_blocks;
        source.not_remote_ip_blocks = not_remote_ip_blocks;
        source.trust_domains = trust_domains;
        source.not_trust_domains = not_trust_domains;
        if source == Source::default() {
            source.namespaces = vec!["*".into()];
        }
        source
    }
}

prop_compose! {
    fn operation()(
        (hosts, not_hosts) in (patterns(&HOSTS), patterns(&HOSTS)),
        (ports, not_ports) in (plain(&PORTS), plain(&PORTS)),
        (methods, not_methods) in (patterns(&METHODS), patterns(&METHODS)),
        (paths, not_paths) in (patterns(&PATHS), patterns(&PATHS)),
        (templates, not_templates) in (plain(&TEMPLATES), plain(&TEMPLATES)),
    ) -> Operation {
        let mut operation = Operation::default();
        operation.hosts = hosts;
        operation.not_hosts = not_hosts;
        operation.ports = ports;
        operation.not_ports = not_ports;
        operation.methods = methods;
        operation.not_methods = not_methods;
        operation.paths = [paths, templates].concat();
        operation.not_paths = [not_paths, not_templates].concat();
        if operation == Operation::default() {
            operation.ports = vec!["80".into()];
        }
        operation
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let of = |key: &'static str, values: BoxedStrategy<Vec<String>>| {
        (values.clone(), values).prop_map(move |(values, not_values)| {
            let mut condition = Condition::default();
            condition.key = key.to_owned();
            condition.values = values;
            condition.not_values = not_values;
            if condition.values.is_empty() && condition.not_values.is_empty() {
                let any = match key {
                    "source.ip" | "remote.ip" | "destination.ip" => "0.0.0.0/0",
                    "destination.port" => "80",
                    "source.trustDomain" => "td",
                    "source.serviceAccount" => "x",
                    _ => "*",
                };
                condition.not_values = vec![any.to_owned()];
            }
            condition
        })
    };
    prop_oneof![
        4 => select(&HEADERS[..]).prop_flat_map(move |name| {
            let key: &'static str = match name {
                "x-a" => "request.headers[X-A]",
                "x-b" => "request.headers[x-b]",
                _ => "request.headers[Accept]",
            };
            of(key, patterns(&VALUES).boxed())
        }),
        1 => of("request.headers[:method]", patterns(&METHODS).boxed()),
        1 => of("request.headers[:authority]", patterns(&HOSTS).boxed()),
        1 => of("source.ip", plain(&BLOCKS).boxed()),
        1 => of("remote.ip", plain(&BLOCKS).boxed()),
        1 => of("source.namespace", patterns(&NAMESPACES).boxed()),
        1 => of("source.principal", patterns(&PRINCIPALS).boxed()),
        1 => of("source.serviceAccount", plain(&SERVICE_ACCOUNTS).boxed()),
        1 => of("source.trustDomain", plain(&DOMAINS).boxed()),
        1 => of("request.auth.principal", plain(&REQUEST_PRINCIPALS).boxed()),
        1 => of("request.auth.audiences", patterns(&ACCOUNTS).boxed()),
        1 => of("request.auth.presenter", patterns(&ACCOUNTS).boxed()),
        1 => of("request.auth.claims[a][b]", patterns(&ACCOUNTS).boxed()),
        1 => of("destination.ip", plain(&BLOCKS).boxed()),
        1 => of("destination.port", plain(&PORTS).boxed()),
        1 => of("connection.sni", patterns(&SNIS).boxed()),
        1 => of("experimental.envoy.filters.a.b[c]", patterns(&ACCOUNTS).boxed()),
    ]
}

prop_compose! {
    fn rule()(
        from in prop_oneof![1 => Just(Vec::new()), 2 => vec(source(), 1..3)],
        to in prop_oneof![1 => Just(Vec::new()), 2 => vec(operation(), 1..3)],
        when in vec(condition(), 0..2),
    ) -> Rule {
        let mut rule = Rule::default();
        rule.from = from;
        rule.to = to;
        rule.when = when;
        rule
    }
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let action = prop_oneof![
        5 => Just(Action::Allow),
        3 => Just(Action::Deny),
        1 => Just(Action::Audit),
        1 => Just(Action::Custom { provider: "p".into() }),
    ];
    vec((action, vec(rule(), 0..4), prop::bool::weighted(0.1)), 0..5).prop_map(|policies| {
        let mut named = Vec::new();
        for (at, (action, rules, dry_run)) in policies.into_iter().enumerate() {
            let mut policy = AuthorizationPolicy::new(LOCAL, format!("policy-{at}"));
            policy.action = action;
            policy.rules = rules;
            policy.dry_run = dry_run;
            named.push(policy);
        }
        named
    })
}

/// What the interpreter looks at.
struct Seen<'a> {
    connection: &'a Connection,
    /// `None` at L4.
    request: Option<&'a Request>,
    /// Whether the rule belongs to an action that refuses.
    refuses: bool,
    /// The local trust domain and its aliases.
    domains: &'a [&'a str],
}

fn glob(pattern: &str, value: &str) -> bool {
    if pattern == "*" {
        return !value.is_empty();
    }
    if let Some(suffix) = pattern.strip_prefix('*') {
        return value.ends_with(suffix);
    }
    match pattern.strip_suffix('*') {
        Some(prefix) => value.starts_with(prefix),
        None => pattern == value,
    }
}

/// For attributes that Envoy tests with `present_match`.
fn header_glob(pattern: &str, value: &str) -> bool {
    pattern == "*" || glob(pattern, value)
}

/// A field and its `not` form: no constraint where both are empty.
fn field(values: &[String], not_values: &[String], matches: impl Fn(&str) -> bool) -> bool {
    (values.is_empty() || values.iter().any(|value| matches(value)))
        && !not_values.iter().any(|value| matches(value))
}

impl Seen<'_> {
    fn identity(&self) -> Option<&Identity> {
        match &self.connection.identity {
            Attribute::Present(identity) => Some(identity),
            _ => None,
        }
    }

    fn principal(&self, pattern: &str) -> bool {
        let Some(identity) = self.identity() else {
            return false;
        };
        let parts: Vec<&str> = pattern.split('/').collect();
        let [domain, rest @ ..] = parts.as_slice() else {
            unreachable!()
        };
        let covered = |known: &&str| match domain.strip_prefix('*') {
            Some(suffix) => known.ends_with(suffix),
            None => known == domain,
        };
        let known = self.domains.iter().any(covered);
        if parts.len() != 5 || *domain == "*" || !(known || *domain == "cluster.local") {
            return glob(pattern, identity.principal());
        }
        // The same account in the local trust domain and in every alias.
        let moved = format!("{}/{}", identity.trust_domain(), rest.join("/"));
        (known && glob(pattern, identity.principal()))
            || (self.domains.contains(&identity.trust_domain())
                && glob(&moved, identity.principal()))
    }

    fn service_account(&self, value: &str) -> bool {
        let (namespace, name) = value.split_once('/').unwrap_or((LOCAL, value));
        self.identity()
            .is_some_and(|id| id.namespace() == namespace && id.service_account() == name)
    }

    fn namespace(&self, pattern: &str) -> bool {
        self.identity()
            .is_some_and(|id| glob(pattern, id.namespace()))
    }

    fn trust_domain(&self, value: &str) -> bool {
        self.identity().is_some_and(|id| id.trust_domain() == value)
    }

    fn in_block(&self, block: &str, ip: IpAddr) -> bool {
        in_block(&parse_cidr(block).unwrap(), ip)
    }

    fn source_ip(&self, block: &str) -> bool {
        self.in_block(block, self.connection.source.ip())
    }

    fn destination_ip(&self, block: &str) -> bool {
        self.in_block(block, self.connection.destination.ip())
    }

    fn port(&self, port: &str) -> bool {
        port == self.connection.destination.port().to_string()
    }

    fn sni(&self, pattern: &str) -> bool {
        match &self.connection.sni {
            Attribute::Present(sni) => glob(pattern, sni),
            _ => false,
        }
    }

    fn source(&self, source: &Source) -> bool {
        let l4 = field(&source.principals, &source.not_principals, |v| {
            self.principal(v)
        }) && field(&source.namespaces, &source.not_namespaces, |v| {
            self.namespace(v)
        }) && field(&source.ip_blocks, &source.not_ip_blocks, |v| {
            self.source_ip(v)
        }) && field(
            &source.service_accounts,
            &source.not_service_accounts,
            |v| self.service_account(v),
        ) && field(&source.trust_domains, &source.not_trust_domains, |v| {
            self.trust_domain(v)
        });
        let Some(request) = self.request else {
            return l4;
        };
        let remote = request.remote_ip.unwrap_or(self.connection.source.ip());
        l4 && field(
            &source.request_principals,
            &source.not_request_principals,
            |_| false,
        ) && field(
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
            |v| self.in_block(v, remote),
        )
    }

    fn host(request: &Request, pattern: &str) -> bool {
        request
            .host
            .as_deref()
            .is_some_and(|host| header_glob(&pattern.to_lowercase(), &host.to_lowercase()))
    }

    fn operation(&self, operation: &Operation) -> bool {
        let l4 = field(&operation.ports, &operation.not_ports, |v| self.port(v));
        let Some(request) = self.request else {
            return l4;
        };
        let path = request.path.split('?').next().unwrap();
        l4 && field(&operation.hosts, &operation.not_hosts, |v| {
            Self::host(request, v)
        }) && field(&operation.methods, &operation.not_methods, |v| {
            glob(v, request.method.as_str())
        }) && field(&operation.paths, &operation.not_paths, |v| {
            if v.contains('{') {
                template_matches(v, path)
            } else {
                glob(v, path)
            }
        })
    }

    fn condition(&self, condition: &Condition) -> bool {
        let test = |matches: &dyn Fn(&str) -> bool| {
            field(&condition.values, &condition.not_values, matches)
        };
        match condition.key.as_str() {
            "source.ip" => test(&|v| self.source_ip(v)),
            "source.namespace" => test(&|v| self.namespace(v)),
            "source.principal" => test(&|v| self.principal(v)),
            "source.serviceAccount" => test(&|v| self.service_account(v)),
            "source.trustDomain" => test(&|v| self.trust_domain(v)),
            "destination.ip" => test(&|v| self.destination_ip(v)),
            "destination.port" => test(&|v| self.port(v)),
            "connection.sni" => test(&|v| self.sni(v)),
            key => {
                // Lost without a request.
                let Some(request) = self.request else {
                    return true;
                };
                match key {
                    "remote.ip" => {
                        let ip = request.remote_ip.unwrap_or(self.connection.source.ip());
                        test(&|v| self.in_block(v, ip))
                    }
                    "request.headers[:method]" => test(&|v| glob(v, request.method.as_str())),
                    "request.headers[:authority]" => test(&|v| Self::host(request, v)),
                    key if key.starts_with("request.headers") => self.header(condition, request),
                    // No token is verified and there is no metadata.
                    _ => test(&|_| false),
                }
            }
        }
    }

    fn header(&self, condition: &Condition, request: &Request) -> bool {
        let name = condition.key["request.headers[".len()..].trim_end_matches(']');
        let values: Vec<&str> = request
            .headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().unwrap())
            .collect();
        let some = |pattern: &String| values.iter().any(|value| header_glob(pattern, value));
        let each = |pattern: &String| {
            !values.is_empty() && values.iter().all(|value| header_glob(pattern, value))
        };
        let positive = condition.values.is_empty()
            || condition.values.iter().any(|pattern| match self.refuses {
                true => some(pattern),
                false => each(pattern),
            });
        // A refusal spares a request only if every value is the excepted one.
        let negative = condition
            .not_values
            .iter()
            .any(|pattern| match self.refuses {
                true => each(pattern),
                false => some(pattern),
            });
        positive && !negative
    }

    fn rule(&self, rule: &Rule) -> bool {
        if self.request.is_none() && !self.refuses && asks_for_request(rule) {
            return false;
        }
        (rule.from.is_empty() || rule.from.iter().any(|source| self.source(source)))
            && (rule.to.is_empty() || rule.to.iter().any(|operation| self.operation(operation)))
            && rule.when.iter().all(|condition| self.condition(condition))
    }
}

fn asks_for_request(rule: &Rule) -> bool {
    let source = |one: &Source| {
        [
            &one.request_principals,
            &one.not_request_principals,
            &one.remote_ip_blocks,
            &one.not_remote_ip_blocks,
        ]
        .iter()
        .any(|values| !values.is_empty())
    };
    let operation = |one: &Operation| {
        [
            &one.hosts,
            &one.not_hosts,
            &one.methods,
            &one.not_methods,
            &one.paths,
            &one.not_paths,
        ]
        .iter()
        .any(|values| !values.is_empty())
    };
    let condition = |one: &Condition| {
        one.key.starts_with("request.")
            || one.key == "remote.ip"
            || one.key.starts_with("experimental.")
    };
    rule.from.iter().any(source) || rule.to.iter().any(operation) || rule.when.iter().any(condition)
}

fn documented(
    policies: &[AuthorizationPolicy],
    connection: &Connection,
    request: Option<&Request>,
    domains: &[&str],
) -> bool {
    let matches = |policy: &AuthorizationPolicy| {
        let seen = Seen {
            connection,
            request,
            refuses: policy.action != Action::Allow,
            domains,
        };
        policy.rules.iter().any(|rule| seen.rule(rule))
    };
    let enforced: Vec<_> = policies.iter().filter(|policy| !policy.dry_run).collect();
    let of = |wanted: fn(&Action) -> bool| {
        enforced
            .iter()
            .copied()
            .filter(move |policy| wanted(&policy.action))
    };
    if of(|action| matches!(action, Action::Custom { .. } | Action::Deny)).any(matches) {
        return false;
    }
    let mut allows = of(|action| *action == Action::Allow).peekable();
    allows.peek().is_none() || allows.any(matches)
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn decides_as_documented(
        policies in policies(),
        requests in vec((known_connection(), request()), 16),
        aliases in any::<bool>(),
    ) {
        let (trust_domains, domains): (_, &[&str]) = if aliases {
            (TrustDomains::new("td").with_aliases(["td-b"]), &["td", "td-b"])
        } else {
            (TrustDomains::default(), &["cluster.local"])
        };
        let lowered = policies.iter().map(|one| Arc::new(one.lower(&trust_domains).unwrap()));
        let set = PolicySet::new(lowered);
        for (connection, request) in &requests {
            prop_assert_eq!(
                set.evaluate(&connection.with(request)).is_allowed(),
                documented(&policies, connection, Some(request), domains),
                "{:?} {:?}", connection, request
            );
            prop_assert_eq!(
                set.evaluate_l4(&connection.with(request)).is_allowed(),
                documented(&policies, connection, None, domains),
                "L4 {:?}", connection
            );
        }
    }
}
