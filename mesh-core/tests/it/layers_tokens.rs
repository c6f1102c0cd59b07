use std::sync::Arc;

use http::{HeaderName, Method, Request};
use mesh_core::Enforced;
use mesh_core::authz::PolicySet;
use mesh_core::layers::{RefuseTokensLayer, TokenLocations};
use mesh_core::testing::Caller;
use mesh_core::xds::model::{JwtRule, TokenLocation};
use tower::{Layer, ServiceExt};

use crate::handler::{Handler, get, grpc};

fn with(name: &str, value: &str) -> Request<String> {
    let mut request = get("http://h/");
    let name = HeaderName::try_from(name).unwrap();
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

async fn refused(tokens: &TokenLocations, request: Request<String>) -> bool {
    let service = RefuseTokensLayer::new(tokens.clone()).layer(Handler::default());
    match service.oneshot(request).await.unwrap().status().as_u16() {
        401 => true,
        200 => false,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn tokens_are_looked_for_where_istio_does() {
    let tokens = TokenLocations::istio_defaults();
    for (request, expected) in [
        (with("authorization", "Bearer eyJ"), true),
        (with("authorization", "bearer eyJ"), true),
        (with("authorization", "Basic Zm9v, Bearer eyJ"), true),
        (with("authorization", "Basic Zm9v"), false),
        (with("x-token", "Bearer eyJ"), false),
        (get("http://h/?access_token=eyJ"), true),
        (get("http://h/?a=b&access%5Ftoken=eyJ"), true),
        (get("http://h/?access_token"), true),
        (get("http://h/?my_access_token=eyJ"), false),
        (get("http://h/access_token"), false),
        (with("cookie", "access_token=eyJ"), false),
        (get("http://h/"), false),
    ] {
        let told = format!("{request:?}");
        assert_eq!(refused(&tokens, request).await, expected, "{told}");
    }
}

#[tokio::test]
async fn a_second_value_is_looked_at_too() {
    let mut request = with("authorization", "Basic Zm9v");
    let headers = request.headers_mut();
    headers.append("authorization", "Bearer eyJ".parse().unwrap());
    assert!(refused(&TokenLocations::istio_defaults(), request).await);
}

#[tokio::test]
async fn a_rules_own_places_stand_instead_of_the_defaults() {
    let tokens = TokenLocations::from_locations(&[
        TokenLocation::Header {
            name: HeaderName::from_static("x-jwt"),
            prefix: "".into(),
        },
        TokenLocation::Cookie("session".into()),
    ]);
    for (request, expected) in [
        (with("x-jwt", "eyJ"), true),
        (with("cookie", "a=b; session=eyJ"), true),
        (with("cookie", "obsession=eyJ"), false),
        (with("authorization", "Bearer eyJ"), false),
        (get("http://h/?access_token=eyJ"), false),
    ] {
        let told = format!("{request:?}");
        assert_eq!(refused(&tokens, request).await, expected, "{told}");
    }
    assert!(
        !refused(
            &TokenLocations::default(),
            with("authorization", "Bearer eyJ")
        )
        .await
    );
}

#[tokio::test]
async fn the_refusal_says_why() {
    let enforced =
        Enforced::new(PolicySet::default()).with_tokens(TokenLocations::istio_defaults());
    let handler = Handler::default();
    let caller = Caller::new(handler.clone()).policies(enforced);
    let answer = caller
        .call(get("http://h/books?access_token=eyJ"))
        .await
        .unwrap();
    assert_eq!(answer.status(), 401);
    assert_eq!(
        answer.headers()["www-authenticate"],
        r#"Bearer realm="http://h/books", error="invalid_token""#
    );
    assert_eq!(answer.text(), "Jwt verification is not supported");
    // The token itself is told to nobody.
    assert!(!format!("{answer:?}").contains("eyJ"));

    let mut request = grpc("http://h/Hello");
    let headers = request.headers_mut();
    headers.insert("authorization", "Bearer eyJ".parse().unwrap());
    assert_eq!(caller.call(request).await.unwrap().grpc_status(), Some(16));
    assert_eq!(handler.count(), 0);
    assert_eq!(caller.call(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn only_a_whole_preflight_passes() {
    let tokens = TokenLocations::istio_defaults();
    let preflight = |method: Method, headers: &[(&'static str, &str)]| {
        let mut request = with("authorization", "Bearer eyJ");
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        request
    };
    let origin = ("origin", "http://a");
    let asks = ("access-control-request-method", "POST");
    assert!(!refused(&tokens, preflight(Method::OPTIONS, &[origin, asks])).await);
    assert!(refused(&tokens, preflight(Method::GET, &[origin, asks])).await);
    assert!(refused(&tokens, preflight(Method::OPTIONS, &[asks])).await);
    assert!(refused(&tokens, preflight(Method::OPTIONS, &[origin])).await);
    let empty = ("origin", "");
    assert!(refused(&tokens, preflight(Method::OPTIONS, &[empty, asks])).await);
}

/// A header that is filled from a verified token must not come from the client.
#[tokio::test]
async fn claims_cannot_be_forged() {
    let rule = JwtRule::new("issuer@example.com")
        .with_output_payload_to_header(HeaderName::from_static("x-payload"))
        .with_output_claims_to_headers(vec![(
            HeaderName::from_static("x-group"),
            Arc::from("group"),
        )]);
    let handler = Handler::default();
    let layer = RefuseTokensLayer::new(TokenLocations::from_rules([&rule]));
    let mut request = with("x-group", "admin");
    let headers = request.headers_mut();
    headers.insert("x-payload", "e30".parse().unwrap());
    headers.insert("x-other", "kept".parse().unwrap());
    layer.layer(handler.clone()).oneshot(request).await.unwrap();
    let names: Vec<_> = handler.last().headers.keys().cloned().collect();
    assert_eq!(names, ["x-other"]);
}
