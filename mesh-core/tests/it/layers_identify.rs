use http::Request;
use mesh_core::ConnectionContext;
use mesh_core::layers::{AuthorizeLayer, IdentifyLayer, LocalResponse, PeerIdentity};
use mesh_core::{ErrorKind, authz::PolicySet};
use tower::{Layer, ServiceExt};

use crate::handler::{Handler, REVIEWS, get, grpc, plaintext, tunnel};

#[tokio::test]
async fn a_request_without_a_context_is_refused_not_anonymous() {
    let handler = Handler::default();
    let identify = IdentifyLayer::new().layer(handler.clone());
    let response = identify.oneshot(get("http://reviews/")).await.unwrap();
    assert_eq!(response.status(), 500);
    let local = response.extensions().get::<LocalResponse>().unwrap();
    assert_eq!(local.kind(), ErrorKind::Internal);

    // Neither does authorization take it for a plaintext one, whatever the policies say.
    let authorize = AuthorizeLayer::new(PolicySet::default()).layer(handler.clone());
    let response = authorize.oneshot(get("http://reviews/")).await.unwrap();
    assert_eq!(response.status(), 500);

    let authorize = AuthorizeLayer::new(PolicySet::default()).layer(handler.clone());
    let response = authorize.oneshot(grpc("http://reviews/")).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["grpc-status"], "2");
    assert_eq!(handler.count(), 0);
}

#[tokio::test]
async fn the_handler_learns_who_calls() {
    let handler = Handler::default();
    let service = IdentifyLayer::for_connection(tunnel()).layer(handler.clone());
    service.oneshot(get("/")).await.unwrap();
    let head = handler.last();
    let peer = head.extensions.get::<PeerIdentity>().unwrap();
    assert_eq!(peer.identity().unwrap().to_string(), REVIEWS);
    let context = head.extensions.get::<ConnectionContext>().unwrap();
    assert!(context.is_mutual_tls());

    let service = IdentifyLayer::new().layer(handler.clone());
    let mut request = get("/");
    request.extensions_mut().insert(plaintext());
    service.oneshot(request).await.unwrap();
    let head = handler.last();
    assert!(
        head.extensions
            .get::<PeerIdentity>()
            .unwrap()
            .identity()
            .is_none()
    );
}

#[tokio::test]
async fn the_connections_context_wins_over_the_requests() {
    let handler = Handler::default();
    let service = IdentifyLayer::for_connection(plaintext()).layer(handler.clone());
    let mut request = get("/");
    request.extensions_mut().insert(tunnel());
    request
        .extensions_mut()
        .insert(PeerIdentity::from(&tunnel()));
    service.oneshot(request).await.unwrap();
    let head = handler.last();
    assert!(
        head.extensions
            .get::<PeerIdentity>()
            .unwrap()
            .identity()
            .is_none()
    );
    assert!(
        !head
            .extensions
            .get::<ConnectionContext>()
            .unwrap()
            .is_mutual_tls()
    );
}

fn forged() -> Request<String> {
    let mut request = get("/");
    for name in [
        "x-forwarded-client-cert",
        "x-envoy-peer-metadata",
        "x-envoy-peer-metadata-id",
        "x-envoy-original-path",
        "x-envoy-internal",
        "x-istio-attributes",
        "x-forwarded-for",
        "x-request-id",
        "traceparent",
    ] {
        let headers = request.headers_mut();
        headers.append(name, "a".parse().unwrap());
        headers.append(name, "b".parse().unwrap());
    }
    request
}

/// S-17, CVE-2023-27487, CVE-2023-27493.
#[tokio::test]
async fn forged_headers_do_not_reach_the_handler() {
    let handler = Handler::default();
    let names = |handler: &Handler| {
        let mut names: Vec<String> = handler
            .last()
            .headers
            .keys()
            .map(ToString::to_string)
            .collect();
        names.sort();
        names
    };
    let kept = ["traceparent", "x-forwarded-for", "x-request-id"];

    let service = IdentifyLayer::for_connection(plaintext()).layer(handler.clone());
    service.oneshot(forged()).await.unwrap();
    assert_eq!(names(&handler), kept);

    let service = IdentifyLayer::for_connection(tunnel()).layer(handler.clone());
    service.oneshot(forged()).await.unwrap();
    let of_the_mesh = [
        "x-envoy-internal",
        "x-envoy-original-path",
        "x-istio-attributes",
    ];
    let mut expected = [&kept[..], &of_the_mesh[..]].concat();
    expected.sort_unstable();
    assert_eq!(names(&handler), expected);
}
