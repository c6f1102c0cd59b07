//! What is wrong in a manifest is refused with file, line and field, and what carries security fails closed.

use mesh_authz::policy::{Action, PolicyName};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::*;

fn problems(text: &str) -> Vec<String> {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("dir/mesh.yaml".into(), text.into())]);
    loaded.problems().iter().map(ToString::to_string).collect()
}

/// `body` begins at line 4.
fn object(api_version: &str, kind: &str, body: &str) -> String {
    format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n{body}\n"
    )
}

fn policy(body: &str) -> String {
    object("security.istio.io/v1", "AuthorizationPolicy", body)
}

#[test]
fn objects_with_file_line_and_field() {
    let service = |body| object("v1", "Service", body);
    let pod = |body| object("v1", "Pod", body);
    let entry = |body| object("networking.istio.io/v1", "ServiceEntry", body);
    let vm = |body| object("networking.istio.io/v1", "WorkloadEntry", body);
    let group = |body| object("networking.istio.io/v1", "WorkloadGroup", body);
    let peer = |body| object("security.istio.io/v1", "PeerAuthentication", body);
    let jwt = |body| object("security.istio.io/v1", "RequestAuthentication", body);
    let gateway = |body| object("gateway.networking.k8s.io/v1", "Gateway", body);
    let route = |body| object("gateway.networking.k8s.io/v1", "HTTPRoute", body);
    let slice = |body| object("discovery.k8s.io/v1", "EndpointSlice", body);
    let rule = |kind: &str, body: &str| {
        format!("spec:\n  rules:\n  - matches: []\n  - {kind}:\n    - {body}")
    };
    let cases = [
        (
            service("spec:\n  ports:\n  - {port: 80}\n  - {port: 0}"),
            "7: spec.ports[1].port: expected a port from 1 to 65535, found 0",
        ),
        (
            service("spec:\n  ports: {port: 80}"),
            "5: spec.ports: expected a list, found a mapping",
        ),
        (
            service("spec:\n  clusterIP: ten"),
            "5: spec.clusterIP: expected an IP address or None, found \"ten\"",
        ),
        (
            service("spec:\n  selector: {app: 1}"),
            "5: spec.selector.app: expected a string, found a number (put it in quotes)",
        ),
        (service("data: 1"), "1: spec: missing"),
        (
            pod("status:\n  podIPs:\n  - ip: 10.0.0"),
            "6: status.podIPs[0].ip: expected an IP address, found \"10.0.0\"",
        ),
        (
            pod("spec:\n  hostNetwork: maybe"),
            "5: spec.hostNetwork: expected true or false, found a string",
        ),
        (
            slice("endpoints:\n- addresses: []"),
            "5: endpoints[0].addresses: expected one address at least",
        ),
        (
            entry("spec:\n  hosts: []"),
            "5: spec.hosts: expected one host at least",
        ),
        (
            entry("spec:\n  hosts: [a]\n  resolution: STATICS"),
            "6: spec.resolution: expected one of NONE, STATIC",
        ),
        (
            entry("spec:\n  hosts: [a]\n  addresses: [10.0.0.0/40]"),
            "6: spec.addresses[0]: expected an IP address or a CIDR",
        ),
        (
            entry("spec:\n  hosts: [a]\n  subjectAltNames: ['spiffe://a/b']"),
            "6: spec.subjectAltNames[0]: invalid SPIFFE id",
        ),
        (
            entry("spec:\n  hosts: [a]\n  endpoints: [{address: unix:///x}]"),
            "6: spec.endpoints[0].address: expected an IP address or a hostname",
        ),
        (
            vm("spec:\n  serviceAccount: a"),
            "5: spec.address: missing, and no network either",
        ),
        (
            vm("spec:\n  address: 10.0.0.1\n  port: 1"),
            "6: spec.port: unknown field",
        ),
        (
            group("spec:\n  template: {ports: {a: 99999}}"),
            "5: spec.template.ports.a: expected a port",
        ),
        (
            gateway(
                "spec:\n  gatewayClassName: a\n  listeners: [{name: l, port: 1, protocol: HTTP, allowedRoutes: {namespaces: {from: Some}}}]",
            ),
            "6: spec.listeners[0].allowedRoutes.namespaces.from: expected one of Same, All",
        ),
        (
            peer("spec:\n  mtls: {mode: STRIKT}"),
            "5: spec.mtls.mode: expected one of UNSET, DISABLE, PERMISSIVE, STRICT, found \"STRIKT\"",
        ),
        (
            peer("spec:\n  portLevelMtls: {8080: {mode: STRICT}}"),
            "5: spec.portLevelMtls: needs a selector",
        ),
        (
            peer(
                "spec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls: {http: {mode: STRICT}}",
            ),
            "6: spec.portLevelMtls.http: expected a port from 1 to 65535 as the key",
        ),
        (
            jwt("spec:\n  jwtRules:\n  - jwksUri: https://x"),
            "6: spec.jwtRules[0].issuer: missing",
        ),
        (
            jwt("spec:\n  jwtRules:\n  - issuer: a\n    fromHeader: []"),
            "7: spec.jwtRules[0].fromHeader: unknown field",
        ),
        (
            jwt("spec:\n  jwtRules:\n  - issuer: a\n    timeout: soon"),
            "7: spec.jwtRules[0].timeout: expected a duration",
        ),
        (
            route(&rule("filters", "{type: Magic}")),
            "8: spec.rules[1].filters[0].type: expected one of RequestHeaderModifier",
        ),
        (
            route(&rule(
                "filters",
                "{type: RequestRedirect, requestRedirect: {statusCode: 200}}",
            )),
            "8: spec.rules[1].filters[0].requestRedirect.statusCode: expected one of 301",
        ),
        (
            route(&rule("backendRefs", "{name: s}")),
            "8: spec.rules[1].backendRefs[0].port: missing: a Service needs one",
        ),
        (
            route("spec:\n  rules:\n  - matches:\n    - path: {type: Exact, value: x}"),
            "7: spec.rules[0].matches[0].path.value: expected a path that begins with /",
        ),
        (
            route(
                "spec:\n  rules:\n  - matches:\n    - headers:\n      - {name: a, type: RegularExpression, value: '('}",
            ),
            "8: spec.rules[0].matches[0].headers[0].value: expected a regular expression",
        ),
        (
            policy("spec:\n  action: PERMIT"),
            "5: spec.action: expected one of ALLOW, DENY, AUDIT, CUSTOM, found \"PERMIT\"",
        ),
        (policy("spec:\n  rule: []"), "5: spec.rule: unknown field"),
        (
            policy("spec:\n  rules:\n  - form: []"),
            "6: spec.rules[0].form: unknown field",
        ),
        (
            policy("spec:\n  rules:\n  -"),
            "6: spec.rules[0]: expected a mapping, found nothing",
        ),
        (
            policy("spec:\n  rules:\n  - from: [{}]"),
            "6: spec.rules[0].from[0].source: missing",
        ),
        (
            policy(
                "spec:\n  rules:\n  - from:\n    - source:\n        ipBlocks:\n        - 10.0.0.0/8\n        - 10.0.0.0/99",
            ),
            "10: spec.rules[0].from[0].source.ipBlocks[1]: expected",
        ),
        (
            policy("spec:\n  rules:\n  - to:\n    - operation:\n        ports: [\"http\"]"),
            "8: spec.rules[0].to[0].operation.ports[0]: expected",
        ),
        (
            policy("spec:\n  rules:\n  - when:\n    - key: source.color\n      values: [red]"),
            "7: spec.rules[0].when[0].key: expected",
        ),
        (
            policy("spec:\n  action: CUSTOM"),
            "5: spec.provider: missing: action CUSTOM needs one",
        ),
        (
            policy(
                "spec:\n  selector: {matchLabels: {a: b}}\n  targetRefs: [{kind: Service, name: s}]",
            ),
            "5: spec.selector: excludes targetRefs",
        ),
        (
            policy("spec:\n  targetRefs: [{kind: Deployment, group: apps, name: s}]"),
            "5: spec.targetRefs[0]: expected a Service, ServiceEntry, Gateway or GatewayClass",
        ),
        (
            policy("spec:\n  targetRefs: [{kind: Service, name: s, namespace: bank}]"),
            "5: spec.targetRefs[0].namespace: expected the policy's own namespace \"shop\"",
        ),
        (
            pod("spec:\n  serviceAccountName: a/b"),
            "5: spec.serviceAccountName: no identity can be made of it",
        ),
        (
            vm("spec:\n  address: 10.0.0.1\n  serviceAccount: a b"),
            "6: spec.serviceAccount: no identity can be made of it",
        ),
        (
            object("v2", "Pod", ""),
            "1: apiVersion: expected version v1 of Pod, found \"v2\"",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {hbone-port: \"0\"}}\n"
                .into(),
            "3: metadata.annotations.hbone-port: expected a port",
        ),
        (
            object("security.istio.io/v1", "Forgery", "spec: {}"),
            "1: kind: Forgery of security.istio.io is not known",
        ),
    ];
    for (text, expected) in cases {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{text}{found:#?}");
        let expected = format!("dir/mesh.yaml:{expected}");
        assert!(
            found[0].starts_with(&expected),
            "{text}\n{}\nis not\n{expected}",
            found[0]
        );
    }
}

/// The policy that was there is not removed by a slip in its kind, and nothing begins without it.
#[test]
fn a_slip_in_the_kind_of_a_policy_refuses_the_file() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\nstatus: {podIP: 10.0.0.1}\n";
    let with = |policy: &str| format!("{policy}---\n{pod}");
    let good = policy("spec: {action: DENY, rules: [{}]}");
    for slip in [
        good.replace("AuthorizationPolicy", "AuthorisationPolicy"),
        good.replace("security.istio.io", "security.istio.oi"),
        good.replace("security.istio.io/v1", "v1"),
    ] {
        let file = |text: &str| vec![("mesh.yaml".into(), with(text).into_bytes())];
        let mut loader = Loader::new(Settings::default());
        loader.load(file(&good));
        let loaded = loader.load(file(&slip));
        assert!(loaded.batch().is_empty(), "{slip}");
        let problems: Vec<_> = loaded.problems().iter().map(ToString::to_string).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].contains("could widen access"), "{problems:?}");

        let loaded = Loader::new(Settings::default()).load(file(&slip));
        assert!(loaded.batch().is_empty() && !loaded.is_complete(), "{slip}");
    }
}

#[test]
fn files_whose_objects_cannot_be_told_apart() {
    for (text, expected) in [
        (
            "apiVersion: v1\nkind: [\n",
            "dir/mesh.yaml:2: unclosed bracket",
        ),
        ("a: 1\na: 2\n", "dir/mesh.yaml:2: "),
        ("- 1\n", "dir/mesh.yaml:1: expected a mapping, found a list"),
        ("name: x\n", "dir/mesh.yaml:1: apiVersion: missing"),
        (
            "apiVersion: v1\nkind: Pod\n",
            "dir/mesh.yaml:1: metadata: missing",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a/b}\n",
            "dir/mesh.yaml:3: metadata.name: expected a name of at most 253",
        ),
    ] {
        let found = problems(text);
        assert_eq!(found.len(), 1, "{text}{found:#?}");
        let mut loader = Loader::new(Settings::default());
        let files = vec![("x".into(), text.into())];
        assert!(!loader.load(files).is_complete(), "{text}");
        assert!(
            found[0].starts_with(expected),
            "{}\nis not {expected}",
            found[0]
        );
    }
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("x".into(), b"a: b\nc: \xff".to_vec())]);
    assert_eq!(loaded.problems()[0].to_string(), "x:2: expected UTF-8");
    assert!(!loaded.is_complete());
}

#[test]
fn what_a_file_may_hold_is_bounded() {
    let mut loader = Loader::new(Settings::new().with_max_nodes(50));
    let small = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n";
    let large = format!("{small}list: [{}]\n", "1, ".repeat(60));
    let loaded = loader.load(vec![("x".into(), small.into())]);
    assert!(loaded.problems().is_empty());
    let loaded = loader.load(vec![("x".into(), large.into())]);
    assert_eq!(loaded.problems().len(), 1);
    assert_eq!(loaded.problems()[0].field(), "");
    // Where threads have the stack of a runtime's worker.
    for depth in [33, 100, 100_000] {
        let deep = format!("a: {}{}", "[".repeat(depth), "]".repeat(depth));
        let loaded = loader.load(vec![("x".into(), deep.into())]);
        assert_eq!(loaded.problems().len(), 1);
    }
}

#[test]
fn the_second_of_two_with_one_name_is_refused() {
    let pod = |ip: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nstatus: {{podIP: {ip}}}\n")
    };
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![
        ("b.yaml".into(), pod("10.0.0.2").into()),
        (
            "a.yaml".into(),
            format!("{}---\n{}", pod("10.0.0.1"), pod("10.0.0.3")).into(),
        ),
    ]);
    let found: Vec<_> = loaded.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "a.yaml:6: metadata.name: Pod default/p is already defined at a.yaml:1",
            "b.yaml:1: metadata.name: Pod default/p is already defined at a.yaml:1",
        ]
    );
    let [Update::Workload(workload)] = loaded.batch().updates() else {
        panic!("{loaded:?}");
    };
    assert_eq!(
        workload.addresses(),
        ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[test]
fn two_objects_that_make_one_resource() {
    let entry = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: [h.example], resolution: NONE}}\n"
        )
    };
    let found = problems(&format!("{}---\n{}", entry("a"), entry("b")));
    assert_eq!(
        found,
        [
            "dir/mesh.yaml:6: metadata.name: service default/h.example is already made by dir/mesh.yaml:1"
        ]
    );
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: store}}\nstatus: {podIP: 10.0.0.1}\n";

fn loaded(text: &str) -> (Loader, Vec<String>) {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
    let problems = loaded.problems().iter().map(ToString::to_string).collect();
    (loader, problems)
}

#[test]
fn a_policy_that_was_never_right_denies_what_it_selects() {
    for (selector, scope) in [
        ("selector: {matchLabels: {app: store}}", Scope::Workload),
        (
            "selector: {matchLabel: {app: store}}",
            Scope::Namespace("shop".into()),
        ),
        (
            "targetRefs: [{kind: Service, name: s}]",
            Scope::Targets(vec![Target::Service(ObjectName::new("shop", "s"))]),
        ),
    ] {
        let broken = policy(&format!(
            "spec:\n  {selector}\n  rules: [{{from: [{{source: {{ipBlocks: [x]}}}}]}}]"
        ));
        let (loader, problems) = loaded(&format!("{POD}---\n{broken}"));
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].ends_with("; until it is right, all that it selects is denied"),
            "{problems:?}"
        );
        let name = ResourceName::Policy(PolicyName::new("shop", "x"));
        let stands = loader.resources().find(|update| update.name() == name);
        let Some(Update::Policy(stands)) = stands else {
            panic!("{stands:?}");
        };
        assert_eq!(*stands.scope(), scope);
        assert_eq!(*stands.policy().action(), Action::Deny);
        assert_eq!(stands.policy().rules().len(), 1);
        assert_eq!(
            *stands.policy().rules()[0].when(),
            mesh_authz::policy::Expr::TRUE
        );
    }
}

#[test]
fn a_dry_run_that_was_never_right_denies_nothing() {
    let broken = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, annotations: {istio.io/dry-run: 'true'}}\nspec: {action: NO}\n";
    let (loader, problems) = loaded(broken);
    assert_eq!(problems.len(), 1);
    assert_eq!(loader.resources().count(), 0);
}

#[test]
fn request_authentication_that_was_never_right_refuses_tokens() {
    let broken = object(
        "security.istio.io/v1",
        "RequestAuthentication",
        "spec:\n  selector: {matchLabels: {app: store}}\n  jwtRules: [{}]",
    );
    let (loader, problems) = loaded(&format!("{POD}---\n{broken}"));
    assert_eq!(problems.len(), 1);
    let name = ObjectName::new("shop", "x");
    let stands = RequestAuthentication::new(name.clone(), Scope::Workload, vec![JwtRule::new("")]);
    assert!(
        loader
            .resources()
            .any(|update| *update == stands.clone().into())
    );
    let bound = loader.resources().find_map(|update| match update {
        Update::Workload(workload) => Some(workload.request_authentications().to_vec()),
        _ => None,
    });
    assert_eq!(bound, Some(vec![name]));
}

#[test]
fn peer_authentication_that_was_never_right_is_strict() {
    let broken = object(
        "security.istio.io/v1",
        "PeerAuthentication",
        "spec:\n  selector: {matchLabels: {app: store}}\n  mtls: {mode: NO}",
    );
    let (loader, problems) = loaded(&format!("{POD}---\n{broken}"));
    assert_eq!(problems.len(), 1);
    let bound = loader.resources().find_map(|update| match update {
        Update::Workload(workload) => Some(workload.authorization_policies().to_vec()),
        _ => None,
    });
    let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
    assert_eq!(bound, Some(vec![strict]));
}

/// `labels: {v: 1}` is what people write; it must not cost the policy.
#[test]
fn metadata_that_is_not_right_fails_closed_as_well() {
    let metadata = [
        "labels: {v: 1}",
        "labels: [v]",
        "annotations: {v: true}",
        "ownerReferences: 1",
        "creationTimestamp: 1",
    ];
    let selector = "spec:\n  selector: {matchLabels: {app: store}}\n";
    for odd in metadata {
        let object = |kind: &str, rest: &str| {
            format!(
                "{POD}---\napiVersion: security.istio.io/v1\nkind: {kind}\n\
                 metadata: {{name: x, namespace: shop, {odd}}}\n{selector}{rest}"
            )
        };
        let (loader, problems) = loaded(&object("AuthorizationPolicy", "  action: ALLOW"));
        assert_eq!(problems.len(), 1, "{odd}: {problems:?}");
        let name = PolicyName::new("shop", "x");
        let stands = loader.resources().find_map(|update| match update {
            Update::Policy(policy) if *policy.policy().name() == name => Some(policy),
            _ => None,
        });
        let stands = stands.unwrap_or_else(|| panic!("{odd}: nothing stands for it"));
        assert_eq!(*stands.policy().action(), Action::Deny, "{odd}");
        assert_eq!(*stands.scope(), Scope::Workload, "{odd}");
        let bound = |loader: &Loader| {
            loader.resources().find_map(|update| match update {
                Update::Workload(workload) => Some((
                    workload.authorization_policies().to_vec(),
                    workload.request_authentications().to_vec(),
                )),
                _ => None,
            })
        };
        assert_eq!(bound(&loader), Some((vec![name], vec![])), "{odd}");

        let (loader, _) = loaded(&object("PeerAuthentication", "  mtls: {mode: DISABLE}"));
        let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
        assert_eq!(bound(&loader), Some((vec![strict], vec![])), "{odd}");

        let (loader, _) = loaded(&object(
            "RequestAuthentication",
            "  jwtRules: [{issuer: a}]",
        ));
        let name = ObjectName::new("shop", "x");
        let stands =
            RequestAuthentication::new(name.clone(), Scope::Workload, vec![JwtRule::new("")]);
        assert!(
            loader
                .resources()
                .any(|update| *update == stands.clone().into()),
            "{odd}"
        );
        assert_eq!(bound(&loader), Some((vec![], vec![name])), "{odd}");
    }
}

#[test]
fn a_dry_run_with_odd_labels_denies_nothing() {
    let odd = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, labels: {v: 1}, annotations: {istio.io/dry-run: 'true'}}\n";
    let (loader, problems) = loaded(odd);
    assert_eq!(problems.len(), 1);
    assert_eq!(loader.resources().count(), 0);
}

#[test]
fn a_namespace_keeps_the_labels_that_can_be_read() {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {v: 1, istio.io/dataplane-mode: ambient, istio.io/use-waypoint: 7}}\n---\n";
    let (loader, problems) = loaded(&format!("{namespace}{POD}"));
    assert_eq!(problems.len(), 2, "{problems:?}");
    let pod = loader.resources().find_map(|update| match update {
        Update::Workload(workload) => Some(workload),
        _ => None,
    });
    let pod = pod.unwrap();
    assert_eq!(pod.protocol(), TunnelProtocol::Hbone);
    // Which waypoint is not known, but there is one.
    assert!(pod.waypoint().is_some());
}

#[test]
fn lines_count_from_the_start_of_the_file() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: NAME}\n";
    let text = [
        "# a comment\n%YAML 1.2\n---\n",
        &node.replace("NAME", "a"),
        "---\n---  # nothing here\n",
        "--- # one with text that looks like a marker\n",
        &node.replace(
            "{name: NAME}",
            "\n  name: b\n  annotations:\n    text: |\n      ---\n      -- -",
        ),
        "...\n---\r\n",
        &node.replace("NAME", "c/d"),
    ];
    assert_eq!(
        problems(&text.concat()),
        [
            "dir/mesh.yaml:22: metadata.name: expected a name of at most 253 letters, digits, '-' and '.', found \"c/d\""
        ]
    );
    let broken = text.concat().replace("{name: c/d}", "{name: c}, x");
    let found = problems(&broken);
    assert!(found[0].starts_with("dir/mesh.yaml:22: "), "{found:?}");
    assert!(!found[0].contains("line"), "{found:?}");
    let good = text.concat().replace("c/d", "c");
    assert!(problems(&good).is_empty(), "{:?}", problems(&good));
}
