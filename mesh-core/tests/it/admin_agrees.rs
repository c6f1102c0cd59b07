//! What `/explain` says is what the listener and its layer do: random policies, asked and tried.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, StatusCode};
use mesh_core::authz::matcher::{PathMatch, PathNormalization, StringMatch};
use mesh_core::authz::policy::istio::{Condition, Operation, Rule, Source};
use mesh_core::authz::policy::{Action, Expr, Matcher, Policy, PolicyName};
use mesh_core::xds::model::{InboundListener, ResourceName};
use mesh_core::{ConnectionContext, Mesh};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use tower::{Layer, ServiceExt};

use crate::admin::get;
use crate::handler::Handler;
use crate::mesh_world::{PORT, World, connect_to, echo, identity, policy};

const CASES: usize = 300;

fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<String>> {
    // Mostly unset, as in people's policies.
    let chosen = subsequence(of, 1..=of.len());
    let chosen = chosen.prop_map(|all| all.into_iter().map(str::to_owned).collect());
    prop_oneof![2 => Just(Vec::new()), 1 => chosen]
}

const PRINCIPALS: &[&str] = &["cluster.local/ns/default/sa/client", "*"];
const PORTS: &[&str] = &["9080", "9081"];
const HOSTS: &[&str] = &["server", "server.example", "server:9080"];
const PATHS: &[&str] = &["/a", "/a/*", "/b"];
const METHODS: &[&str] = &["GET", "POST"];
const VALUES: &[&str] = &["", "one", "server.example"];
const KEYS: &[&str] = &[
    "connection.sni",
    "request.headers[x-key]",
    "source.ip",
    "destination.port",
];

fn rule() -> impl Strategy<Value = Rule> {
    let source = (
        some(PRINCIPALS),
        some(PRINCIPALS),
        some(&["default", "other"]),
    );
    let operation = (
        some(PORTS),
        some(HOSTS),
        some(PATHS),
        some(METHODS),
        some(PATHS),
    );
    let when = proptest::option::weighted(0.4, (select(KEYS), select(VALUES), any::<bool>()));
    (source, operation, when).prop_map(|(from, to, when)| {
        let mut source = Source::default();
        (source.principals, source.not_principals, source.namespaces) = from;
        let mut operation = Operation::default();
        (
            operation.ports,
            operation.hosts,
            operation.paths,
            operation.methods,
            operation.not_paths,
        ) = to;
        let mut rule = Rule::default();
        if source != Source::default() {
            rule.from = vec![source];
        }
        if operation != Operation::default() {
            rule.to = vec![operation];
        }
        rule.when = when
            .map(|(key, value, not)| {
                let value = match key {
                    "source.ip" => "127.0.0.0/8".to_owned(),
                    "destination.port" => "9080".to_owned(),
                    _ if value.is_empty() => "*".to_owned(),
                    _ => value.to_owned(),
                };
                let mut condition = Condition::default();
                condition.key = key.to_owned();
                match not {
                    true => condition.not_values = vec![value],
                    false => condition.values = vec![value],
                }
                condition
            })
            .into_iter()
            .collect();
        rule
    })
}

fn policies() -> impl Strategy<Value = Vec<(Action, Vec<Rule>)>> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    proptest::collection::vec((action, proptest::collection::vec(rule(), 0..3)), 0..3)
}

async fn says(mesh: &Mesh, query: &str) -> (bool, String) {
    let answer = get(&mesh.admin(), &format!("/explain?format=json&{query}")).await;
    let json = answer.json();
    (json["allowed"].as_bool().unwrap(), answer.text)
}

/// Puts policies `p0`, `p1` … in the place of the last ones.
async fn enforce(world: &World, policies: &[(Action, Vec<Rule>)]) -> bool {
    let gone = (0..3).map(|at| ResourceName::Policy(PolicyName::new("default", format!("p{at}"))));
    world.control.apply(Vec::new(), gone.collect()).await;
    let new = policies.iter().enumerate();
    let new =
        new.map(|(at, (action, rules))| policy(&format!("p{at}"), action.clone(), rules.clone()));
    let verdicts = world.control.apply(new.collect(), Vec::new()).await;
    verdicts.iter().all(|verdict| verdict.result().is_ok())
}

#[tokio::test]
async fn what_explain_says_of_a_request_is_what_the_layer_does() {
    let world = World::new(134);
    let (_, server) = world.pair().await;
    let http = server.listen_http(PORT).await.unwrap();
    let own = SocketAddr::new(world.ip(2), PORT);
    let source = SocketAddr::new(world.ip(1), 40_000);
    let requests = (
        select(METHODS),
        select(&["/a", "/a/x", "//a", "/b", "/a/../b", "/%61", "/%00"][..]),
        proptest::option::of(select(
            &["server", "server.", "server.example.:9080", "SERVER"][..],
        )),
        proptest::option::of(select(&["one", "two"][..])),
        proptest::option::of(select(&["client", "other"][..])),
    );
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 2];
    for case in 0..CASES {
        let policies = policies().new_tree(&mut runner).unwrap().current();
        assert!(enforce(&world, &policies).await, "{policies:?}");
        for _ in 0..4 {
            let (method, path, host, key, account) =
                requests.new_tree(&mut runner).unwrap().current();
            let context = match account {
                Some(account) => ConnectionContext::tunnel(source, own, identity(account)),
                None => ConnectionContext::plaintext(source, own),
            };
            let from = account.map_or("plaintext".to_owned(), |it| identity(it).to_string());
            let mut query = format!(
                "to={PORT}&from={from}&source_ip={}&method={method}&path={}",
                source.ip(),
                path.replace('%', "%25")
            );
            let mut request = Request::builder().method(method).uri(path);
            request = request.version(http::Version::HTTP_2);
            if let Some(host) = host {
                query += &format!("&host={host}");
                request = request.header("host", host);
            }
            if let Some(key) = key {
                query += &format!("&header=x-key:{key}");
                request = request.header("x-key", key);
            }
            let service = http.layer.for_connection(context).layer(Handler::default());
            let request = request.body(String::new()).unwrap();
            let status = service.oneshot(request).await.unwrap().status();
            let (allowed, told) = says(&server, &query).await;
            assert_eq!(
                allowed,
                status == StatusCode::OK,
                "{case}: {query} {status} {told}"
            );
            seen[usize::from(allowed)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > CASES / 4), "{seen:?}");
}

#[tokio::test]
async fn what_explain_says_of_a_connection_is_what_the_listener_does() {
    let world = World::new(135);
    let (_, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let own = SocketAddr::new(world.ip(2), PORT);
    let senders = [
        ("client", world.bare_client("client", 2, "server").await),
        ("other", world.bare_client("other", 2, "server").await),
    ];
    let mut runner = TestRunner::deterministic();
    let mut seen = [0; 2];
    for case in 0..CASES / 3 {
        let policies = policies().new_tree(&mut runner).unwrap().current();
        assert!(enforce(&world, &policies).await, "{policies:?}");
        for (account, sender) in &senders {
            let opened = sender.connect(connect_to(own)).await.is_ok();
            let from = identity(account);
            let query = format!("to={PORT}&from={from}&source_ip=127.0.0.1");
            let (allowed, told) = says(&server, &query).await;
            assert_eq!(allowed, opened, "{case}: {query} {told}");
            seen[usize::from(allowed)] += 1;
        }
    }
    assert!(seen.iter().all(|count| *count > CASES / 30), "{seen:?}");
}

#[tokio::test]
async fn explain_compares_paths_as_the_listener_of_the_port_does() {
    let world = World::new(136);
    let (_, server) = world.pair().await;
    let _http = server.listen_http(PORT).await.unwrap();
    let own = SocketAddr::new(world.ip(2), PORT);
    let below = Matcher::Path(PathMatch::String(StringMatch::Prefix("/a/".into())));
    let rules = vec![mesh_core::authz::policy::Rule::new(Expr::Is(below))];
    let name = PolicyName::new("default", "whole");
    let whole = Arc::new(Policy::new(name, Action::Allow, rules));
    let query = format!("to={PORT}&from={}&path=//a/x", identity("client"));
    for (mode, allowed) in [
        (PathNormalization::Base, false),
        (PathNormalization::MergeSlashes, true),
    ] {
        let listener = InboundListener::new(own, vec![Arc::clone(&whole)]);
        let listener = listener.with_path_normalization(mode);
        world.control.set(vec![listener.into()]).await;
        let (told, text) = says(&server, &query).await;
        assert_eq!(told, allowed, "{mode:?}: {text}");
    }
}
