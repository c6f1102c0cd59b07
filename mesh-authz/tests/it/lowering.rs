//! What lowering refuses, and how it says so.

use mesh_authz::policy::istio::{AuthorizationPolicy, Condition, Operation, Rule, Source};
use mesh_authz::policy::{Action, Expr, Matcher, TrustDomains};
use mesh_authz::{Error, ErrorKind};

fn lower(rule: Rule) -> Result<mesh_authz::policy::Policy, Error> {
    let mut policy = AuthorizationPolicy::new("ns", "name");
    policy.rules = vec![Rule::default(), rule];
    policy.lower(&TrustDomains::default())
}

fn source(change: impl FnOnce(&mut Source)) -> Rule {
    let mut source = Source::default();
    change(&mut source);
    let mut other = Source::default();
    other.namespaces = vec!["a".into()];
    let mut rule = Rule::default();
    rule.from = vec![other, source];
    rule
}

fn operation(change: impl FnOnce(&mut Operation)) -> Rule {
    let mut operation = Operation::default();
    change(&mut operation);
    let mut rule = Rule::default();
    rule.to = vec![operation];
    rule
}

fn when(key: &str, values: &[&str], not_values: &[&str]) -> Rule {
    let owned = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let mut condition = Condition::default();
    condition.key = key.to_owned();
    condition.values = owned(values);
    condition.not_values = owned(not_values);
    let mut rule = Rule::default();
    rule.when = vec![condition];
    rule
}

#[track_caller]
fn refused(rule: Rule, field: &str, kind: ErrorKind) {
    let error = lower(rule).unwrap_err();
    assert_eq!(error.field(), format!("spec.rules[1].{field}"));
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains("expected "), "{error}");
    if let Some(value) = error.value() {
        assert!(error.to_string().contains(&format!("{value:?}")), "{error}");
    }
}

#[test]
fn sources() {
    use ErrorKind::{Cidr, Conflict, Empty, Principal, ServiceAccount};
    for bad in [
        "",
        "10.0.0",
        "10.0.0.0/33",
        "::/129",
        "10.0.0.0/-1",
        "a",
        "10.0.0.1 ",
        "010.0.0.1",
        "fe80::1%eth0",
    ] {
        let kind = if bad.is_empty() { Empty } else { Cidr };
        refused(
            source(|s| s.ip_blocks = vec!["::1".into(), bad.into()]),
            "from[1].source.ipBlocks[1]",
            kind,
        );
        refused(
            source(|s| s.not_ip_blocks = vec![bad.into()]),
            "from[1].source.notIpBlocks[0]",
            kind,
        );
        refused(
            source(|s| s.remote_ip_blocks = vec![bad.into()]),
            "from[1].source.remoteIpBlocks[0]",
            kind,
        );
        refused(
            source(|s| s.not_remote_ip_blocks = vec![bad.into()]),
            "from[1].source.notRemoteIpBlocks[0]",
            kind,
        );
    }
    for bad in ["a/*", "*", "*/x", "x*", "a/b/c", "/x", "a/"] {
        refused(
            source(|s| s.service_accounts = vec![bad.into()]),
            "from[1].source.serviceAccounts[0]",
            ServiceAccount,
        );
        refused(
            source(|s| s.not_service_accounts = vec![bad.into()]),
            "from[1].source.notServiceAccounts[0]",
            ServiceAccount,
        );
    }
    for change in [
        (|s| s.principals = vec!["*".into()]) as fn(&mut Source),
        |s| s.not_principals = vec!["*".into()],
        |s| s.namespaces = vec!["*".into()],
        |s| s.not_namespaces = vec!["*".into()],
    ] {
        let both = source(|s| {
            change(s);
            s.service_accounts = vec!["x".into()];
        });
        refused(both, "from[1].source", Conflict);
        let both = source(|s| {
            change(s);
            s.not_service_accounts = vec!["x".into()];
        });
        refused(both, "from[1].source", Conflict);
    }
    refused(
        source(|s| s.trust_domains = vec!["*".into()]),
        "from[1].source.trustDomains[0]",
        Principal,
    );
    refused(source(|_| {}), "from[1].source", Empty);
    refused(
        source(|s| s.principals = vec!["".into()]),
        "from[1].source.principals[0]",
        Empty,
    );
    refused(
        source(|s| s.not_request_principals = vec!["".into()]),
        "from[1].source.notRequestPrincipals[0]",
        Empty,
    );
}

#[test]
fn operations() {
    use ErrorKind::{Empty, Path, Port};
    for bad in ["a", "65536", "-1", "+80", "80 ", "8*", "0x50"] {
        refused(
            operation(|o| o.ports = vec!["80".into(), bad.into()]),
            "to[0].operation.ports[1]",
            Port,
        );
        refused(
            operation(|o| o.not_ports = vec![bad.into()]),
            "to[0].operation.notPorts[0]",
            Port,
        );
    }
    for bad in ["/a/{*}b", "/a/{**}/{*}", "a/{*}", "/{b}", "/a}", "/{*}/*"] {
        refused(
            operation(|o| o.paths = vec![bad.into()]),
            "to[0].operation.paths[0]",
            Path,
        );
        refused(
            operation(|o| o.not_paths = vec![bad.into()]),
            "to[0].operation.notPaths[0]",
            Path,
        );
    }
    refused(operation(|_| {}), "to[0].operation", Empty);
    refused(
        operation(|o| o.methods = vec!["".into()]),
        "to[0].operation.methods[0]",
        Empty,
    );
}

#[test]
fn conditions() {
    use ErrorKind::{Cidr, Empty, Key, Port};
    for bad in [
        "",
        "source.user",
        "request.headers",
        "request.headers[]",
        "request.headers[a",
        "request.headers[a][b]",
        "request.headers[a b]",
        "request.headers[:path]",
        "request.headersx[a]",
        "request.auth.claims",
        "request.auth.claims[]",
        "request.auth.claims[a][]",
        "request.auth.claims[[a]]",
        "request.auth.claims[a]x",
        "Source.Ip",
        "experimental.other[a]",
        "experimental.envoy.filters.a",
        "experimental.envoy.filters.a[b][c]",
    ] {
        refused(when(bad, &["a"], &[]), "when[0].key", Key);
    }
    refused(when("source.principal", &[], &[]), "when[0]", Empty);
    refused(
        when("source.principal", &["a", ""], &[]),
        "when[0].values[1]",
        Empty,
    );
    refused(when("source.ip", &[], &["x"]), "when[0].notValues[0]", Cidr);
    refused(when("remote.ip", &["x"], &[]), "when[0].values[0]", Cidr);
    refused(
        when("destination.ip", &["x"], &[]),
        "when[0].values[0]",
        Cidr,
    );
    refused(
        when("destination.port", &["http"], &[]),
        "when[0].values[0]",
        Port,
    );
}

#[test]
fn custom_needs_a_provider() {
    let mut policy = AuthorizationPolicy::new("ns", "name");
    policy.action = Action::Custom {
        provider: "".into(),
    };
    let error = policy.lower(&TrustDomains::default()).unwrap_err();
    assert_eq!((error.field(), error.value()), ("spec.provider.name", None));
}

/// The keys of nested claims and of Envoy's metadata are kept as they are written.
#[test]
fn keys() {
    let expr = |rule: Rule| lower(rule).unwrap().rules()[1].when().clone();
    let claim = expr(when("request.auth.claims[a.b][c]", &["v"], &[]));
    assert!(matches!(&claim, Expr::Is(Matcher::Claim { path, .. })
        if path.iter().map(|name| &**name).eq(["a.b", "c"])));
    let metadata = expr(when("experimental.envoy.filters.a.b[c]", &["[v]"], &[]));
    let Expr::Is(Matcher::EnvoyMetadata { filter, key, value }) = metadata else {
        panic!("{metadata:?}")
    };
    assert_eq!(
        (&*filter, &*key, value.to_string().as_str()),
        ("envoy.filters.a.b", "c", "v")
    );
    let host = expr(when("request.headers[Host]", &["a.com"], &[]));
    assert!(matches!(host, Expr::Is(Matcher::Host(_))));
}

#[test]
fn trust_domains() {
    let one = TrustDomains::new("td1").with_aliases(["cluster.local", "old"]);
    assert_eq!(one.local(), "td1");
    assert_eq!(one.aliases().collect::<Vec<_>>(), ["cluster.local", "old"]);
    let all = ["td1/ns/a/sa/x", "cluster.local/ns/a/sa/x", "old/ns/a/sa/x"];
    for principal in all {
        assert_eq!(one.expand(principal), all);
    }
    assert_eq!(
        one.expand("*ld/ns/a/sa/x"),
        ["td1/ns/a/sa/x", "cluster.local/ns/a/sa/x", "*ld/ns/a/sa/x"]
    );
    for itself in [
        "other/ns/a/sa/x",
        "*/ns/a/sa/x",
        "*",
        "a/sa/x",
        "cluster.local/*",
    ] {
        assert_eq!(one.expand(itself), [itself]);
    }
    // The pointer to the local domain, where nobody is called so.
    assert_eq!(
        TrustDomains::new("td1").expand("cluster.local/ns/a/sa/*"),
        ["td1/ns/a/sa/*"]
    );
    let itself = "cluster.local/ns/a/sa/x";
    assert_eq!(TrustDomains::default().expand(itself), [itself]);
}
