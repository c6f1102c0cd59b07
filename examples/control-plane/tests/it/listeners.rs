//! Policies on requests, from the control plane's inbound listeners, in an application of the mesh.

use axum::Router;
use axum::routing::any;

use crate::plane::{Plane, join, request, until};

const URI: &str = "http://details.default:9080/details/1";

const MANIFESTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels:
    istio.io/dataplane-mode: ambient
---
apiVersion: v1
kind: Service
metadata:
  name: details
  namespace: default
spec:
  selector:
    app: details
  ports:
  - port: 9080
    targetPort: 9080
---
apiVersion: v1
kind: Pod
metadata:
  name: details
  namespace: default
  labels:
    app: details
spec:
  serviceAccountName: details
status:
  phase: Running
  conditions:
  - type: Ready
    status: "True"
  podIP: 127.0.1.2
  podIPs:
  - ip: 127.0.1.2
---
apiVersion: v1
kind: Pod
metadata:
  name: caller
  namespace: default
spec:
  serviceAccountName: caller
status:
  phase: Running
  conditions:
  - type: Ready
    status: "True"
  podIP: 127.0.1.3
  podIPs:
  - ip: 127.0.1.3
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: details-viewer
  namespace: default
spec:
  selector:
    matchLabels:
      app: details
  action: ALLOW
  rules:
  - to:
    - operation:
        methods: ["GET"]
        paths: ["/details/*"]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_judged_by_the_listener() {
    let plane = Plane::start(4, MANIFESTS, &[]).await;
    let caller = join(&plane.configure("caller", plane.ip(3)));
    let details = join(&plane.configure("details", plane.ip(2)));
    let http = details.listen_http(9080).await.unwrap();
    let router = Router::new().fallback(any(|| async { "details" }));
    tokio::spawn(async move { axum::serve(http.listener, http.layer.wrap(router)).await });

    // The ambient stream alone allows nothing: such a policy has no rule left there.
    let status = async |method: &str, uri: &str| {
        let answer = request(&caller, method, uri).await;
        answer
            .map(|(status, _)| status.as_u16())
            .unwrap_or_default()
    };
    until("GET is allowed", async || status("GET", URI).await == 200).await;
    for _ in 0..5 {
        assert_eq!(status("GET", URI).await, 200);
        assert_eq!(status("POST", URI).await, 403);
        assert_eq!(
            status("GET", "http://details.default:9080/other").await,
            403
        );
    }
    let page = plane.syncz().await;
    let clients = page["clients"].as_array().unwrap();
    let mut types = clients
        .iter()
        .flat_map(|one| one["types"].as_array().unwrap());
    let listener = types.find(|one| one["type"].as_str().unwrap().ends_with(".Listener"));
    let listener = listener.expect("a listener is asked for");
    assert_eq!(
        (&listener["names"], &listener["refused"]),
        (&1.into(), &serde_json::Value::Null)
    );

    // An edit of what only requests have.
    plane.save(&MANIFESTS.replace(r#"methods: ["GET"]"#, r#"methods: ["POST"]"#));
    until("POST is allowed", async || status("POST", URI).await == 200).await;
    assert_eq!(status("GET", URI).await, 403);
}
