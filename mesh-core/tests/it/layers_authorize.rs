use std::sync::Arc;

use http::{Method, Request, Version};
use http_body::Body as _;
use mesh_core::authz::PolicySet;
use mesh_core::authz::matcher::PathNormalization;
use mesh_core::authz::policy::istio::{AuthorizationPolicy, Condition, Rule};
use mesh_core::authz::policy::{Action, TrustDomains};
use mesh_core::layers::{AuthorizeLayer, IdentifyLayer, InboundLayer};
use mesh_core::testing::Caller;
use mesh_core::{Enforced, Policies};
use tower::{Layer, ServiceExt};

use crate::handler::{Handler, REVIEWS, from, get, grpc, plaintext, policy, to, tunnel};

fn public_only() -> PolicySet {
    let rule = to(|operation| {
        operation.methods = vec!["GET".into()];
        operation.paths = vec!["/public*".into()];
    });
    policy(Action::Allow, vec![rule])
}

#[tokio::test]
async fn a_denial_looks_like_envoys() {
    let handler = Handler::default();
    let caller = Caller::new(handler.clone()).policies(public_only());
    let answer = caller.call(get("/private")).await.unwrap();
    assert_eq!(answer.status(), 403);
    assert_eq!(answer.text(), "RBAC: access denied");
    assert_eq!(answer.headers()["content-type"], "text/plain");
    assert_eq!(answer.headers()["content-length"], "19");
    let details = answer.local().unwrap().details().to_owned();
    assert_eq!(details, "rbac_access_denied_matched_policy[none]");

    let deny = policy(
        Action::Deny,
        vec![
            to(|operation| operation.paths = vec!["/admin".into()]),
            to(|operation| operation.paths = vec!["/secret".into()]),
        ],
    );
    let answer = Caller::new(handler.clone())
        .policies(deny)
        .call(get("/secret"))
        .await
        .unwrap();
    assert_eq!(
        answer.local().unwrap().details(),
        "rbac_access_denied_matched_policy[ns[default]-policy[test]-rule[1]]"
    );
    // What the client reads names no policy.
    assert!(!answer.text().contains("test"));
    assert_eq!(handler.count(), 0);
}

#[tokio::test]
async fn a_denial_of_grpc_is_trailers_only() {
    let service = InboundLayer::new(Policies::fixed(policy(Action::Allow, vec![])))
        .for_connection(tunnel())
        .layer(Handler::default());
    let response = service.oneshot(grpc("http://greeter/Hello")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/grpc");
    assert_eq!(response.headers()["grpc-status"], "7");
    assert_eq!(response.headers()["grpc-message"], "RBAC: access denied");
    assert!(response.body().is_end_stream());
    assert!(!response.headers().contains_key("content-length"));

    for (content_type, is_grpc) in [
        ("application/grpc+proto", true),
        ("Application/GRPC; charset=x", true),
        ("application/grpc-web", false),
        ("application/json", false),
    ] {
        let mut request = grpc("/Hello");
        request
            .headers_mut()
            .insert("content-type", content_type.parse().unwrap());
        let caller = Caller::new(Handler::default()).policies(policy(Action::Allow, vec![]));
        let answer = caller.call(request).await.unwrap();
        assert_eq!(answer.grpc_status() == Some(7), is_grpc, "{content_type}");
    }
}

/// The vectors of Istio's TestAuthz_PathNormalization.
#[tokio::test]
async fn paths_cannot_be_dressed_up() {
    let handler = Handler::default();
    let caller = Caller::new(handler.clone()).policies(public_only());
    for path in ["/public", "/public/../public"] {
        let answer = caller.call(get(path)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        // What was judged is what arrives.
        assert_eq!(handler.last().uri.path(), "/public");
    }
    let before = handler.count();
    let dressed = ["..", "%2E%2E", "%2e%2e", "%2E.", ".%2e"]
        .iter()
        .flat_map(|dots| {
            [
                format!("/public/{dots}/private"),
                format!("/public/./{dots}/private"),
                format!("/public/{dots}/./private"),
                format!("/public/%2E/{dots}/private"),
                format!("/public/{dots}/%2e/private"),
                format!("/public\\{dots}\\private"),
            ]
        });
    for path in dressed.chain(["/private".to_owned()]) {
        let answer = caller.call(get(&path)).await.unwrap();
        assert_eq!(answer.status(), 403, "{path}");
    }
    assert_eq!(handler.count(), before);
}

#[tokio::test]
async fn the_normal_path_goes_on_with_its_query() {
    let handler = Handler::default();
    let alone = |mode| {
        let layer = AuthorizeLayer::new(PolicySet::default()).path_normalization(mode);
        IdentifyLayer::for_connection(plaintext()).layer(layer.layer(handler.clone()))
    };
    let in_the_stack = |mode| {
        InboundLayer::new(Policies::fixed(PolicySet::default()))
            .path_normalization(mode)
            .for_connection(plaintext())
            .layer(handler.clone())
    };
    for (mode, sent, arrives) in [
        (
            PathNormalization::None,
            "http://h/a/../b?q=/../",
            "http://h/a/../b?q=/../",
        ),
        (
            PathNormalization::Base,
            "http://h/a/../b?q=/../",
            "http://h/b?q=/../",
        ),
        (PathNormalization::Base, "http://h/a//b", "http://h/a//b"),
        (
            PathNormalization::MergeSlashes,
            "http://h/a//b?c=//",
            "http://h/a/b?c=//",
        ),
        (
            PathNormalization::DecodeAndMergeSlashes,
            "http://h/a%2F%2fb",
            "http://h/a/b",
        ),
    ] {
        let response = alone(mode).oneshot(get(sent)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(handler.last().uri, arrives);
        let response = in_the_stack(mode).oneshot(get(sent)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(handler.last().uri, arrives);
    }
    let before = handler.count();
    let response = alone(PathNormalization::Base)
        .oneshot(get("http://h/admin%00"))
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(handler.count(), before);

    // A target without a path is none to normalise.
    let mut request = get("*");
    *request.method_mut() = Method::OPTIONS;
    request.headers_mut().insert("host", "h".parse().unwrap());
    let response = alone(PathNormalization::Base)
        .oneshot(request)
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(handler.last().uri.path(), "*");
}

#[tokio::test]
async fn a_request_has_one_host() {
    let rule = to(|operation| operation.hosts = vec!["admin.example.com".into()]);
    let deny_admin = policy(Action::Deny, vec![rule]);
    let ask = async |request: Request<String>| {
        let layer = AuthorizeLayer::new(deny_admin.clone());
        let service =
            IdentifyLayer::for_connection(plaintext()).layer(layer.layer(Handler::default()));
        service.oneshot(request).await.unwrap().status().as_u16()
    };
    let request = |target: &str, hosts: &[&str]| {
        let mut request = get(target);
        for host in hosts {
            request.headers_mut().append("host", host.parse().unwrap());
        }
        request
    };
    for (target, hosts, status) in [
        ("/", &["example.com"][..], 200),
        ("http://example.com/", &[], 200),
        ("http://example.com/", &["EXAMPLE.com"], 200),
        ("/", &["[2001:db8::1]:80"], 200),
        ("/", &["admin.example.com"], 403),
        ("/", &["ADMIN.example.com"], 403),
        // A fully qualified name is the same name.
        ("/", &["admin.example.com."], 403),
        ("http://admin.example.com/", &[], 403),
        // Which of two would be believed?
        ("/", &["example.com", "admin.example.com"], 400),
        ("/", &["example.com", "example.com"], 400),
        ("http://example.com/", &["admin.example.com"], 400),
        ("/", &["user@admin.example.com"], 400),
        ("/", &["example.com, admin.example.com"], 400),
        ("/", &["example.com/admin"], 400),
        ("/", &[""], 400),
        ("/", &[], 400),
    ] {
        assert_eq!(
            ask(request(target, hosts)).await,
            status,
            "{target} {hosts:?}"
        );
    }
    let mut old = request("/", &[]);
    *old.version_mut() = Version::HTTP_10;
    assert_eq!(ask(old).await, 200);
}

/// CVE-2023-35944: of a target with a scheme, only host and path are judged.
#[tokio::test]
async fn the_case_of_a_scheme_hides_nothing() {
    let rule = to(|operation| {
        operation.hosts = vec!["admin.example.com".into()];
        operation.paths = vec!["/secret*".into()];
    });
    let handler = Handler::default();
    let caller = Caller::new(handler.clone()).policies(policy(Action::Deny, vec![rule]));
    for scheme in [
        "http",
        "HTTP",
        "hTtP",
        "https",
        "HTTPS",
        "HtTpS",
        "ws",
        "x-unknown",
    ] {
        for (rest, status) in [
            ("://admin.example.com/secret/a", 403),
            ("://ADMIN.example.com/public/../secret", 403),
            ("://admin.example.com/public", 200),
        ] {
            let answer = caller.call(get(&format!("{scheme}{rest}"))).await.unwrap();
            assert_eq!(answer.status(), status, "{scheme}{rest}");
        }
    }
    assert_eq!(handler.count(), 8);
}

#[tokio::test]
async fn every_value_of_a_header_counts() {
    let header = |action| {
        let mut condition = Condition::default();
        condition.key = "request.headers[x-team]".into();
        condition.values = vec!["red".into()];
        let mut rule = Rule::default();
        rule.when = vec![condition];
        policy(action, vec![rule])
    };
    for (action, values, status) in [
        (Action::Deny, &["red"][..], 403),
        (Action::Deny, &["blue", "red"], 403),
        (Action::Deny, &["red", "blue"], 403),
        (Action::Deny, &["blue"], 200),
        (Action::Deny, &[], 200),
        (Action::Allow, &["red"], 200),
        (Action::Allow, &["red", "blue"], 403),
        (Action::Allow, &["blue", "red"], 403),
        (Action::Allow, &[], 403),
    ] {
        let mut request = get("/");
        for value in values {
            request
                .headers_mut()
                .append("x-team", value.parse().unwrap());
        }
        let caller = Caller::new(Handler::default()).policies(header(action.clone()));
        let answer = caller.call(request).await.unwrap();
        assert_eq!(answer.status(), status, "{action:?} {values:?}");
    }
}

#[tokio::test]
async fn the_original_client_is_believed_only_behind_trusted_proxies() {
    let rule = from(|source| source.remote_ip_blocks = vec!["203.0.113.0/24".into()]);
    let allowed = policy(Action::Allow, vec![rule]);
    for (hops, headers, status) in [
        (0, &["203.0.113.9"][..], 403),
        (1, &["203.0.113.9"], 200),
        (1, &["203.0.113.9, 198.51.100.1"], 403),
        (2, &["203.0.113.9, 198.51.100.1"], 200),
        (2, &["203.0.113.9", "198.51.100.1"], 200),
        (1, &["203.0.113.9", "198.51.100.1"], 403),
        (1, &["::ffff:203.0.113.9"], 200),
        (1, &["203.0.113.9, nonsense"], 403),
        (2, &["203.0.113.9"], 403),
        (1, &[], 403),
    ] {
        let request = || {
            let mut request = get("http://h/");
            for header in headers {
                let name = "x-forwarded-for";
                request.headers_mut().append(name, header.parse().unwrap());
            }
            request
        };
        let alone = AuthorizeLayer::new(allowed.clone()).trusted_hops(hops);
        let alone = alone.layer(Handler::default());
        let alone = IdentifyLayer::for_connection(plaintext()).layer(alone);
        let response = alone.oneshot(request()).await.unwrap();
        assert_eq!(response.status(), status, "{hops} {headers:?}, alone");
        let service = InboundLayer::new(Policies::fixed(allowed.clone()))
            .trusted_hops(hops)
            .for_connection(plaintext())
            .layer(Handler::default());
        let response = service.oneshot(request()).await.unwrap();
        assert_eq!(response.status(), status, "{hops} {headers:?}");
    }
}

#[tokio::test]
async fn identities_are_told_apart() {
    let rule = from(|source| {
        source.principals = vec!["cluster.local/ns/default/sa/bookinfo-reviews".into()];
    });
    let caller = Caller::new(Handler::default()).policies(policy(Action::Allow, vec![rule]));
    let ask = async |caller: Caller<Handler>| {
        let answer = caller.call(get("/")).await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(ask(caller.clone().identity(REVIEWS)).await, 200);
    let other = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews2";
    assert_eq!(ask(caller.clone().identity(other)).await, 403);
    assert_eq!(ask(caller).await, 403);
}

#[tokio::test]
async fn the_next_request_is_judged_by_the_new_policies() {
    let policies = Policies::fixed(PolicySet::default());
    let caller = Caller::new(Handler::default()).live(policies.clone());
    let status = async || caller.call(get("/")).await.unwrap().status().as_u16();
    assert_eq!(status().await, 200);
    policies.store(policy(Action::Allow, vec![]));
    assert_eq!(status().await, 403);
    policies.store(Enforced::default());
    assert_eq!(status().await, 200);
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let mut dry = AuthorizationPolicy::new("default", "dry");
    dry.action = Action::Deny;
    dry.dry_run = true;
    dry.rules = vec![Rule::default()];
    let dry = PolicySet::new([Arc::new(dry.lower(&TrustDomains::default()).unwrap())]);
    let caller = Caller::new(Handler::default()).policies(dry);
    assert_eq!(caller.call(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_denied_request_uses_no_place_of_the_service() {
    let limited = tower::limit::ConcurrencyLimit::new(Handler::default(), 1);
    let layer = AuthorizeLayer::new(public_only());
    let service = IdentifyLayer::for_connection(plaintext()).layer(layer.layer(limited));
    for _ in 0..3 {
        let denied = service
            .clone()
            .oneshot(get("http://h/private"))
            .await
            .unwrap();
        assert_eq!(denied.status(), 403);
        let allowed = service
            .clone()
            .oneshot(get("http://h/public"))
            .await
            .unwrap();
        assert_eq!(allowed.status(), 200);
    }
}
