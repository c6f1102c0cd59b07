use std::net::SocketAddr;

use mesh_authz::policy::ztunnel::{Authorization, Clause, EmptyMatch, Network, ServiceAccount};
use mesh_authz::policy::{PolicyName, Rule, ztunnel};
use mesh_authz::{Attribute, Attributes, Identity, PolicySet};
use proptest::prelude::*;

use super::*;

/// Reads the dump as its readers do.
fn read(dump: &Value, action: Action) -> Policy {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut read = Authorization::new("ns", "policy");
    read.action = action;
    for rule in list(&dump["rules"]) {
        let mut clauses = Vec::new();
        for clause in list(&rule) {
            let mut read = Clause::default();
            read.matches = list(&clause).iter().map(read_match).collect();
            clauses.push(read);
        }
        let mut rule = ztunnel::Rule::default();
        rule.clauses = clauses;
        read.rules.push(rule);
    }
    read.lower(EmptyMatch::AsLost).unwrap()
}

fn read_match(value: &Value) -> ztunnel::Match {
    let mut read = ztunnel::Match::default();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    for (field, values) in value.as_object().unwrap() {
        for value in values.as_array().unwrap() {
            let string = || {
                let (kind, text) = value.as_object().unwrap().iter().next().unwrap();
                let text = text.as_str().unwrap_or_default();
                match &**kind {
                    "Exact" => StringMatch::Exact(text.into()),
                    "Prefix" => StringMatch::Prefix(text.into()),
                    "Suffix" => StringMatch::Suffix(text.into()),
                    _ => StringMatch::Present,
                }
            };
            let account =
                || ServiceAccount::new(text(&value["namespace"]), text(&value["serviceAccount"]));
            let network = || Network::Text(text(value));
            let port = || value.as_u64().unwrap() as u32;
            match &**field {
                "namespaces" => read.namespaces.push(string()),
                "notNamespaces" => read.not_namespaces.push(string()),
                "principals" => read.principals.push(string()),
                "notPrincipals" => read.not_principals.push(string()),
                "serviceAccounts" => read.service_accounts.push(account()),
                "notServiceAccounts" => read.not_service_accounts.push(account()),
                "sourceIps" => read.source_ips.push(network()),
                "notSourceIps" => read.not_source_ips.push(network()),
                "destinationIps" => read.destination_ips.push(network()),
                "notDestinationIps" => read.not_destination_ips.push(network()),
                "destinationPorts" => read.destination_ports.push(port()),
                "notDestinationPorts" => read.not_destination_ports.push(port()),
                other => panic!("{other}"),
            }
        }
    }
    read
}

fn matcher() -> impl Strategy<Value = Matcher> {
    let text = || {
        prop::sample::select(vec!["a", "b", "cluster.local/ns/a/sa/a"]).prop_flat_map(|text| {
            prop::sample::select(vec![
                StringMatch::Exact(text.into()),
                StringMatch::Prefix(text.into()),
                StringMatch::Suffix(text.into()),
                StringMatch::Present,
                StringMatch::regex("[a-c]").unwrap(),
            ])
        })
    };
    let net = || prop::sample::select(vec!["10.0.0.1/32", "10.0.0.0/8", "::/0"]);
    prop_oneof![
        text().prop_map(Matcher::Namespace),
        text().prop_map(Matcher::Principal),
        text().prop_map(Matcher::TrustDomain),
        net().prop_map(|net| Matcher::SourceIp(net.parse().unwrap())),
        net().prop_map(|net| Matcher::DestinationIp(net.parse().unwrap())),
        (1u16..4).prop_map(Matcher::DestinationPort),
        prop::sample::select(vec!["a", "b"]).prop_map(|name| Matcher::ServiceAccount {
            namespace: "a".into(),
            name: name.into(),
        }),
        Just(Matcher::Method(StringMatch::Exact("GET".into()))),
    ]
}

fn expr() -> impl Strategy<Value = Expr> {
    matcher()
        .prop_map(Expr::Is)
        .prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Expr::All),
                prop::collection::vec(inner.clone(), 0..3).prop_map(Expr::Any),
                inner.prop_map(|part| Expr::Not(Box::new(part))),
            ]
        })
}

fn dumped(rule: &Expr, action: Action) -> (Policy, Value) {
    let name = PolicyName::new("ns", "policy");
    let policy = Policy::new(name, action, vec![Rule::new(rule.clone())]);
    let dump = serde_json::to_value(PolicyDump::new(&policy, &Scope::Workload)).unwrap();
    (policy, dump)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(4096)))]

    /// What is told in ztunnel's form decides as the policy does, or admits less and says so.
    #[test]
    fn what_is_read_from_the_dump_decides_alike(
        rule in expr(),
        allow in any::<bool>(),
        caller in prop::option::of(("[ab]", "[ab]")),
        source in prop::sample::select(vec!["10.0.0.1:9", "10.1.0.1:9", "[fd00::1]:9"]),
        port in 1u16..4,
    ) {
        let action = || if allow { Action::Allow } else { Action::Deny };
        let (policy, dump) = dumped(&rule, action());
        let again = read(&dump, action());
        let caller = caller.map(|(namespace, name)| {
            Identity::new("cluster.local", &namespace, &name).unwrap()
        });
        let source: SocketAddr = source.parse().unwrap();
        let attributes = Attributes::new(source, SocketAddr::new([10, 0, 0, 1].into(), port))
            .with_identity(Attribute::from(caller.as_ref()));
        let decide = |policy: Policy| {
            let set = PolicySet::new([Arc::new(policy)]);
            set.evaluate_l4(&attributes).is_allowed()
        };
        let whole = dump.get("expressions").is_none();
        let (original, read_again) = (decide(policy), decide(again));
        if whole {
            prop_assert_eq!(original, read_again, "{}", dump);
        } else {
            prop_assert!(original || !read_again, "{}", dump);
        }
    }
}

#[test]
fn conditions_without_words_are_told_as_expressions() {
    let sni = Expr::Is(Matcher::Sni(StringMatch::Exact("a.example".into())));
    let port = Expr::Is(Matcher::DestinationPort(80));
    let rule = Expr::All(vec![port, Expr::Not(Box::new(sni))]);
    let (_, dump) = dumped(&rule, Action::Allow);
    assert_eq!(dump["rules"], json!([[[{"destinationPorts": [80]}], [{}]]]));
    let when = json!({"all": ["destination port is 80", {"not": "TLS server name is a.example"}]});
    assert_eq!(dump["expressions"], json!([{"rule": 0, "when": when}]));
}
