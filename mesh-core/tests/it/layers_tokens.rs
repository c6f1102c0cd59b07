use std::sync::Arc;

use http::{HeaderName, Method, Request};
use mesh_core::Enforced;
use mesh_core::authz::PolicySet;
use mesh_core::authz::policy::Action;
use mesh_core::layers::{RefuseTokensLayer, TokenLocations};
use mesh_core::testing::Caller;
use mesh_core::xds::model::{JwtRule, TokenLocation};
use tower::{Layer, ServiceExt};

use crate::handler::{Handler, from, get, grpc, policy};

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

/// Base64 with the URL's alphabet and without padding, as tokens are written (RFC 7515 section 2).
fn base64url(text: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut encoded = String::new();
    for group in text.as_bytes().chunks(3) {
        let bits = (0..3).fold(0, |bits, at| {
            bits << 8 | group.get(at).map_or(0, |byte| u32::from(*byte))
        });
        for at in 0..=group.len() {
            encoded.push(char::from(ALPHABET[(bits >> (18 - 6 * at) & 63) as usize]));
        }
    }
    encoded
}

/// Tokens that some verifier of the past took for good ones, and some that a right one would take.
fn tokens() -> Vec<String> {
    const GOOD: &str =
        r#"{"iss":"issuer@example.com","sub":"admin","aud":"reviews","exp":4102444800}"#;
    let token = |header: &str, claims: &str, signature: &str| {
        format!("{}.{}.{signature}", base64url(header), base64url(claims))
    };
    let rs256 = r#"{"alg":"RS256","kid":"one"}"#;
    let mut tokens: Vec<String> = [
        // Well formed, by a key that is asked for or is a default's.
        rs256,
        r#"{"alg":"ES256","kid":"default"}"#,
        // Algorithms that need no key, or another kind of key than the issuer's.
        r#"{"alg":"none"}"#,
        r#"{"alg":"nOnE","typ":"JWT"}"#,
        r#"{"alg":"HS256","kid":"one"}"#,
        r#"{"alg":["RS256","none"]}"#,
        r#"{"typ":"JWT"}"#,
        // Keys that the token brings along, or says where to find.
        r#"{"alg":"RS256","kid":"../../../../dev/null"}"#,
        r#"{"alg":"RS256","kid":"' UNION SELECT 'key"}"#,
        r#"{"alg":"RS256","jku":"http://127.0.0.1:1/keys"}"#,
        r#"{"alg":"RS256","x5u":"file:///dev/null"}"#,
        r#"{"alg":"RS256","jwk":{"kty":"oct","k":"AA"}}"#,
        r#"{"alg":"RS256","crit":["exp"],"b64":false}"#,
    ]
    .into_iter()
    .flat_map(|header| ["c2ln", ""].map(|signature| token(header, GOOD, signature)))
    .collect();
    let claims = [
        // An issuer that is missing, unknown, or no text.
        r#"{"sub":"admin","exp":4102444800}"#,
        r#"{"iss":"elsewhere","sub":"admin","exp":4102444800}"#,
        r#"{"iss":["issuer@example.com"],"sub":"admin","exp":4102444800}"#,
        r#"{"iss":null}"#,
        "{}",
        // Times that are missing, of another type, or beyond what a number holds.
        r#"{"iss":"issuer@example.com","sub":"admin"}"#,
        r#"{"iss":"issuer@example.com","exp":"4102444800"}"#,
        r#"{"iss":"issuer@example.com","exp":null,"nbf":null}"#,
        r#"{"iss":"issuer@example.com","exp":[4102444800]}"#,
        r#"{"iss":"issuer@example.com","exp":true}"#,
        r#"{"iss":"issuer@example.com","exp":1e400}"#,
        r#"{"iss":"issuer@example.com","exp":99999999999999999999}"#,
        r#"{"iss":"issuer@example.com","exp":4102444800,"nbf":"0"}"#,
        r#"{"iss":"issuer@example.com","exp":1,"exp":4102444800}"#,
    ];
    tokens.extend(claims.map(|claims| token(rs256, claims, "c2ln")));
    // No token at all, and one that is encrypted.
    let nested = "[".repeat(5000);
    tokens.extend(["", ".", "..", "...", "a.b.c.d.e", "\u{e9}", "null"].map(str::to_owned));
    tokens.push(token(rs256, &nested, "c2ln"));
    tokens.push("e".repeat(20_000));
    tokens
}

/// S-19, S-20: a token proves nothing, whatever stands in it. No key is fetched, none stands in for one that
/// could not be, and no claim is read (CVE-2026-31837, CVE-2026-25537, ISTIO-SECURITY-2021-001,
/// CVE-2022-29226).
#[tokio::test]
async fn no_token_is_believed() {
    assert!(tokens().len() >= 40);
    let demanded = from(|source| source.request_principals = vec!["*".into()]);
    let missed = from(|source| source.not_request_principals = vec!["*".into()]);
    let rule = JwtRule::new("issuer@example.com");
    // Where Istio's rule applies, and where a policy alone asks for a principal.
    let policies = [
        (
            Enforced::new(PolicySet::default()).with_tokens(TokenLocations::from_rules([&rule])),
            401,
        ),
        (Enforced::new(policy(Action::Allow, vec![demanded])), 403),
        (Enforced::new(policy(Action::Deny, vec![missed])), 403),
    ];
    for (enforced, status) in policies {
        let handler = Handler::default();
        let caller = Caller::new(handler.clone()).policies(enforced);
        for token in tokens() {
            let mut request = get("http://h/");
            let value = format!("Bearer {token}");
            let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
            request.headers_mut().insert("authorization", value);
            let answer = caller.call(request).await.unwrap();
            assert_eq!(answer.status(), status, "{token}");
        }
        assert_eq!(handler.count(), 0);
    }
}
