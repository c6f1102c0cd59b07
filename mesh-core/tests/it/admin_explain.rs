//! `/explain` says what would happen, and which policy or which lack makes it so.

use http::{Request, StatusCode};
use mesh_core::{Mesh, Node, OutboundPolicy};
use serde_json::Value;

use crate::admin::{ask, get, node, node_with, read};

/// Reviews call ratings, which permits them to read; details has a waypoint.
pub(crate) const BOOKS: &str = r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ratings-viewers, namespace: default}
spec:
  selector: {matchLabels: {app: ratings}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/reviews"]}}]
    to: [{operation: {methods: [GET], paths: ["/ratings/*"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-intruders, namespace: default}
spec:
  action: DENY
  rules:
  - from: [{source: {namespaces: [outside]}}]
---
apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: default}
spec:
  clusterIP: 10.1.0.1
  selector: {app: ratings}
  ports: [{name: http, port: 9080, targetPort: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: default}
spec:
  clusterIP: 10.1.0.2
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: 9080}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: default}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: v1
kind: Service
metadata: {name: details, namespace: default, labels: {istio.io/use-waypoint: waypoint}}
spec:
  clusterIP: 10.1.0.3
  selector: {app: details}
  ports: [{name: http, port: 9080, targetPort: 9080}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec:
  clusterIP: 10.1.0.4
  selector: {app: nobody}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: ratings, namespace: default, labels: {app: ratings}}
spec: {serviceAccountName: ratings}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}], phase: Running, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: reviews, namespace: default, labels: {app: reviews}}
spec: {serviceAccountName: reviews}
status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}], phase: Running, conditions: [{type: Ready, status: "True"}]}
"#;

const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";

async fn workload(node: &Node, name: &str) -> Mesh {
    let mesh = node.workload("default", name, name).unwrap();
    mesh.ready().await.unwrap();
    mesh
}

async fn explain(mesh: &Mesh, query: &str) -> Value {
    let target = format!("/explain?format=json&{query}");
    get(&mesh.admin(), &target).await.json()
}

#[track_caller]
fn step<'a>(explained: &'a Value, name: &str) -> (bool, &'a str) {
    let steps = explained["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["step"] == name);
    let step = step.unwrap_or_else(|| panic!("no step {name}: {explained}"));
    (
        step["passes"].as_bool().unwrap(),
        step["reason"].as_str().unwrap(),
    )
}

#[tokio::test]
async fn a_request_that_a_policy_allows() {
    let node = node(read(BOOKS));
    let ratings = workload(&node, "ratings").await;
    let http = ratings.listen_http(0).await.unwrap();
    let port = http.listener.local_addr().port();
    let answer = explain(
        &ratings,
        &format!("to={port}&from={REVIEWS}&method=GET&path=/ratings/0"),
    )
    .await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(answer["decidedBy"]["policy"], "default/ratings-viewers");
    assert_eq!(answer["decidedBy"]["rule"], 0);
    assert_eq!(
        step(&answer, "request"),
        (true, "allowed by: default/ratings-viewers")
    );
    assert_eq!(answer["truncated"], false);
    // Paths are compared as the layer compares them.
    let answer = explain(
        &ratings,
        &format!("to={port}&from={REVIEWS}&path=/x/../ratings/0"),
    )
    .await;
    assert_eq!(answer["allowed"], true, "{answer}");
}

#[tokio::test]
async fn a_request_that_no_policy_allows() {
    let node = node(read(BOOKS));
    let ratings = workload(&node, "ratings").await;
    let http = ratings.listen_http(0).await.unwrap();
    let port = http.listener.local_addr().port();
    let answer = explain(
        &ratings,
        &format!("to={port}&from={REVIEWS}&method=DELETE&path=/ratings/0"),
    )
    .await;
    assert_eq!(answer["allowed"], false);
    let none = "allow policies exist, but none allowed";
    assert_eq!(step(&answer, "request"), (false, none));
    assert!(step(&answer, "connection").0, "{answer}");
    let verdict = answer["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with("DENIED: ") && verdict.ends_with(none),
        "{verdict}"
    );
    // For a person, with the condition that failed.
    let target = format!("/explain?to={port}&from={REVIEWS}&method=DELETE&path=/ratings/0");
    let text = get(&ratings.admin(), &target).await;
    assert_eq!(text.kind, "text/plain; charset=utf-8");
    assert!(text.text.starts_with("DENIED: "), "{}", text.text);
    assert!(
        text.text.contains("no: method is GET (it is \"DELETE\")"),
        "{}",
        text.text
    );
}

#[tokio::test]
async fn a_connection_is_judged_as_its_listener_does() {
    let node = node(read(BOOKS));
    let ratings = workload(&node, "ratings").await;
    let http = ratings.listen_http(0).await.unwrap();
    let tcp = ratings.listen(0).await.unwrap();
    let http = http.listener.local_addr().port();
    let tcp_port = tcp.local_addr().port();
    let by_request = explain(&ratings, &format!("to={http}&from={REVIEWS}")).await;
    assert_eq!(by_request["allowed"], true, "{by_request}");
    // An ALLOW that needs a request permits none on a port where requests are not looked at.
    let by_connection = explain(
        &ratings,
        &format!("to={tcp_port}&from={REVIEWS}&path=/ratings/0"),
    )
    .await;
    assert_eq!(by_connection["allowed"], false, "{by_connection}");
    let stranger = explain(&ratings, &format!("to={http}&from=plaintext")).await;
    assert_eq!(stranger["allowed"], false, "{stranger}");
    assert!(
        step(&stranger, "connection")
            .1
            .starts_with("no request could be allowed")
    );
}

#[tokio::test]
async fn a_deny_comes_first_and_is_named() {
    let node = node(read(BOOKS));
    let ratings = workload(&node, "ratings").await;
    let from = "spiffe://cluster.local/ns/outside/sa/reviews";
    let answer = explain(&ratings, &format!("to=9080&from={from}&path=/ratings/0")).await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(
        step(&answer, "request"),
        (false, "explicitly denied by: default/no-intruders")
    );
    assert_eq!(answer["decidedBy"]["policy"], "default/no-intruders");
}

#[tokio::test]
async fn what_fails_before_policies_is_told_with_them() {
    let node = node(read(BOOKS));
    let ratings = workload(&node, "ratings").await;
    let answer = explain(&ratings, &format!("to=9080&from={REVIEWS}&path=/ratings/0")).await;
    assert_eq!(answer["allowed"], false);
    assert_eq!(
        step(&answer, "listener"),
        (false, "nothing listens on port 9080")
    );
    assert!(step(&answer, "request").0);
    let answer = explain(&ratings, &format!("to=10.9.9.9:9080&from={REVIEWS}")).await;
    assert_eq!(
        step(&answer, "tunnel"),
        (false, "ip mismatch: 10.0.0.1 != 10.9.9.9")
    );
    let forwards = node_with(read(BOOKS), |node| node.forward_unlistened(true));
    let ratings = workload(&forwards, "ratings").await;
    let forwarded = "none on port 9080: forwarded to that port of this host";
    let refused = "none on port 15001, a proxy's: tunnels are not forwarded to it";
    for (port, expected) in [(9080, (true, forwarded)), (15001, (false, refused))] {
        let answer = explain(&ratings, &format!("to={port}&from={REVIEWS}")).await;
        assert_eq!(step(&answer, "listener"), expected);
    }
    let strict = node_with(read(BOOKS), mesh_core::Builder::strict);
    let ratings = workload(&strict, "ratings").await;
    let answer = explain(&ratings, "to=9080&from=plaintext").await;
    assert_eq!(
        step(&answer, "plaintext"),
        (false, "the mesh is built strict")
    );
}

#[tokio::test]
async fn policies_that_have_not_arrived_are_named() {
    let node = node(read(
        "workloads: [{uid: r, name: ratings, namespace: default, workloadIps: [10.0.0.1], serviceAccount: ratings, protocol: HBONE, trustDomain: cluster.local, authorizationPolicies: [default/late]}]",
    ));
    let ratings = workload(&node, "ratings").await;
    let answer = explain(&ratings, &format!("to=9080&from={REVIEWS}")).await;
    assert_eq!(answer["allowed"], false);
    let (passes, reason) = step(&answer, "policies");
    assert!(
        !passes && reason.contains("default/late") && reason.contains("5s"),
        "{reason}"
    );
    let unknown = node.workload("default", "rating", "ratings").unwrap();
    let answer = explain(&unknown, "to=9080&from=plaintext").await;
    assert_eq!(
        step(&answer, "record").1,
        "the configuration has no workload default/rating; near it: ratings"
    );
}

#[tokio::test]
async fn a_token_is_refused_where_tokens_are_looked_for() {
    let rule = "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: jwt, namespace: default}\nspec: {jwtRules: [{issuer: issuer.example, jwks: '{\"keys\":[]}'}]}\n";
    let node = node(read(&format!("{BOOKS}{rule}")));
    let ratings = workload(&node, "ratings").await;
    let asked = format!("to=9080&from={REVIEWS}&path=/ratings/0");
    let answer = explain(
        &ratings,
        &format!("{asked}&header=authorization:Bearer%20hunter2"),
    )
    .await;
    assert!(!step(&answer, "token").0, "{answer}");
    assert!(!answer.to_string().contains("hunter2"));
    let answer = explain(&ratings, &asked).await;
    assert!(step(&answer, "token").0, "{answer}");
}

#[tokio::test]
async fn a_connection_to_a_service() {
    let node = node(read(BOOKS));
    let reviews = workload(&node, "reviews").await;
    for name in [
        "ratings:9080",
        "ratings.default.svc.cluster.local:9080",
        "10.1.0.1:9080",
    ] {
        let answer = explain(&reviews, &format!("connect={name}")).await;
        assert_eq!(answer["allowed"], true, "{answer}");
        assert_eq!(answer["hop"], "hbone");
        assert_eq!(answer["nextHop"], "10.0.0.1:15008");
        assert_eq!(answer["authority"], "10.0.0.1:9080");
        let identity = "spiffe://cluster.local/ns/default/sa/ratings";
        assert_eq!(answer["expectedIdentities"], serde_json::json!([identity]));
        assert_eq!(
            answer["service"],
            "default/ratings.default.svc.cluster.local"
        );
        assert_eq!(
            (&answer["endpoints"], &answer["healthyEndpoints"]),
            (&1.into(), &1.into())
        );
    }
    let text = get(&reviews.admin(), "/explain?connect=ratings:9080")
        .await
        .text;
    assert!(
        text.starts_with("ROUTED: default/reviews to ratings:9080: through a tunnel\n"),
        "{text}"
    );
}

#[tokio::test]
async fn a_connection_that_the_mesh_refuses() {
    let node = node(read(BOOKS));
    let reviews = workload(&node, "reviews").await;
    let answer = explain(&reviews, "connect=empty:80").await;
    assert_eq!(answer["allowed"], false);
    let none = "default/empty.default.svc.cluster.local port 80 has no endpoint that can be used";
    assert_eq!(step(&answer, "resolution"), (false, none));
    assert_eq!(answer["endpoints"], 0);
    let answer = explain(&reviews, "connect=ratings:1").await;
    assert!(
        step(&answer, "resolution").1.ends_with("has no port 1"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_connection_to_a_host_that_the_mesh_does_not_know() {
    let open = node(read(BOOKS));
    let reviews = workload(&open, "reviews").await;
    let answer = explain(&reviews, "connect=example.com:443").await;
    assert_eq!(
        (&answer["allowed"], &answer["hop"]),
        (&true.into(), &"passthrough".into())
    );
    let closed = node_with(read(BOOKS), |it| {
        it.outbound_policy(OutboundPolicy::RegistryOnly)
    });
    let reviews = workload(&closed, "reviews").await;
    let answer = explain(&reviews, "connect=example.com:443").await;
    assert_eq!(answer["allowed"], false);
    assert!(
        step(&answer, "resolution").1.contains("RegistryOnly"),
        "{answer}"
    );
}

const BEHIND: &str = r#"
workloads:
- {uid: a, name: a, namespace: ns, workloadIps: [10.0.0.1], protocol: HBONE, trustDomain: cluster.local, serviceAccount: a}
- {uid: b, name: b, namespace: ns, workloadIps: [10.0.0.2], protocol: HBONE, trustDomain: cluster.local, serviceAccount: b,
   services: {ns/b.example: {80: 8080}, ns/lost.example: {80: 8080}}}
- {uid: w, name: w, namespace: ns, workloadIps: [10.0.0.3], protocol: HBONE, trustDomain: cluster.local, serviceAccount: w}
services:
- {name: b, namespace: ns, hostname: b.example, vips: [/10.1.0.1], ports: {80: 8080}, waypoint: {destination: /10.0.0.3, hboneMtlsPort: 15008}}
- {name: lost, namespace: ns, hostname: lost.example, vips: [/10.1.0.2], ports: {80: 8080}, waypoint: {destination: ns/gone.example, hboneMtlsPort: 15008}}
"#;

#[tokio::test]
async fn a_connection_to_what_has_a_waypoint_goes_there() {
    let node = node(read(BEHIND));
    let mesh = node.workload("ns", "a", "a").unwrap();
    mesh.ready().await.unwrap();
    let answer = explain(&mesh, "connect=b.example:80").await;
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(answer["waypoint"], "w (ns/w)");
    assert_eq!(answer["nextHop"], "10.0.0.3:15008");
    assert_eq!(answer["authority"], "10.1.0.1:80");
    let waypoint = "spiffe://cluster.local/ns/ns/sa/w";
    assert_eq!(answer["expectedIdentities"], serde_json::json!([waypoint]));
    assert!(
        answer["verdict"]
            .as_str()
            .unwrap()
            .ends_with("through a tunnel to its waypoint")
    );

    let answer = explain(&mesh, "connect=lost.example:80").await;
    assert_eq!(
        (&answer["allowed"], &answer["waypoint"]),
        (&false.into(), &"ns/gone.example".into())
    );
    assert!(
        step(&answer, "resolution")
            .1
            .contains("never goes around it"),
        "{answer}"
    );
}

#[tokio::test]
async fn what_is_wrong_with_a_question_is_named() {
    let node = node(read(BOOKS));
    let _reviews = workload(&node, "reviews").await;
    let ratings = workload(&node, "ratings").await;
    let wrong = [
        ("", "to: expected a port or ip:port, for an inbound"),
        ("to=9080", "from: expected spiffe://"),
        ("to=9080&from=ratings", "from: expected spiffe://"),
        ("to=0&from=plaintext", "to: expected a port of 1 to 65535"),
        (
            "to=ratings:80&from=plaintext",
            "to: expected a port of 1 to 65535",
        ),
        (
            "to=1&from=plaintext&source_ip=x",
            "source_ip: expected an IP address",
        ),
        (
            "to=1&from=plaintext&method=G%20T",
            "method: expected an HTTP method",
        ),
        ("to=1&from=plaintext&path=x", "path: expected /"),
        ("to=1&from=plaintext&host=a%20b", "host: expected <name>"),
        ("to=1&from=plaintext&host=u@b", "host: expected <name>"),
        (
            "to=1&from=plaintext&header=x",
            "header: expected <name>:<value>",
        ),
        ("to=1&to=2&from=plaintext", "to: expected to be there once"),
        (
            "to=1&from=plaintext&colour=red",
            "colour: expected one of to, from",
        ),
        ("connect=ratings", "connect: expected host:port"),
        (
            "connect=a:1&to=1",
            "connect: expected not to be beside `to`",
        ),
        ("connect=a:1&from=plaintext", "from: expected one of"),
        (
            "connect=a:1&workload=default/x",
            "workload: expected one of default/ratings, default/reviews",
        ),
        ("connect=a:1&format=xml", "format: expected json or text"),
        ("connect=%", "connect: expected UTF-8"),
    ];
    for (query, expected) in wrong {
        let answer = get(&ratings.admin(), &format!("/explain?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query}");
        assert!(
            answer.text.starts_with(expected),
            "{query}: {}",
            answer.text
        );
    }
    // A node with two workloads has to be told which.
    let answer = get(&node.admin(), "/explain?connect=a:1").await;
    assert!(
        answer.text.starts_with("workload: expected one of"),
        "{}",
        answer.text
    );
    let answer = get(
        &node.admin(),
        "/explain?connect=ratings:9080&workload=default/reviews",
    )
    .await;
    assert_eq!(answer.status, StatusCode::OK);
    // Whoever takes JSON gets it.
    let request =
        Request::get("/explain?connect=ratings:9080").header("accept", "application/json");
    let answer = ask(&ratings.admin(), request.body(()).unwrap()).await;
    assert_eq!(answer.json()["direction"], "outbound");
}

#[tokio::test]
async fn answers_are_bounded() {
    let values: Vec<String> = (0..20_000)
        .map(|at| format!("\"/a/rather/long/path/number/{at}\""))
        .collect();
    let policy = format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: long, namespace: default}}\nspec:\n  rules:\n  - to: [{{operation: {{paths: [{}]}}}}]\n",
        values.join(",")
    );
    let node = node(read(&format!("{BOOKS}{policy}")));
    let ratings = workload(&node, "ratings").await;
    let asked = "/explain?to=9080&from=plaintext&path=/x";
    let text = get(&ratings.admin(), asked).await.text;
    assert!(
        text.len() < 300_000 && text.ends_with("cut off here\n"),
        "{}",
        text.len()
    );
    let answer = get(&ratings.admin(), &format!("{asked}&format=json")).await;
    assert_eq!(answer.json()["truncated"], true);
    assert!(answer.text.len() < 3_000_000, "{}", answer.text.len());
}
