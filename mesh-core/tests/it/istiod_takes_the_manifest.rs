//! What a live istiod makes of the manifest that examples/axum-server has for a Pod.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use http::{Method, StatusCode};
use mesh_core::identity;
use mesh_xds::ads::NodeValue;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::envoy::soon;
use crate::istiod_live::Cluster;
use crate::istiod_lives::{address, build, xds};
use crate::istiod_place::dump;
use crate::mesh_joins_istiod::{answer, listener_of, serve};

/// Labels that decide how a Pod is reached; `none` keeps the node's ztunnel out.
const TUNNEL: &str = "networking.istio.io/tunnel";
const DATAPLANE: &str = "istio.io/dataplane-mode";

fn to_json(of: &NodeValue) -> Value {
    match of {
        NodeValue::Text(text) => json!(text),
        // Manifests have no fractions, and a port that is written as one is none.
        NodeValue::Number(number) => json!(*number as i64),
        NodeValue::Bool(value) => json!(value),
        NodeValue::List(values) => values.iter().map(to_json).collect(),
        NodeValue::Map(values) => {
            let values = values.iter();
            let values = values.map(|(key, value)| (key.clone(), to_json(value)));
            Value::Object(values.collect())
        }
        _ => Value::Null,
    }
}

/// The object of this kind in the manifest, in the namespace of the test.
fn manifest(cluster: &Cluster, kind: &str) -> Value {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/axum-server/k8s.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let documents = text.split("\n---\n");
    let mut documents = documents.map(|one| to_json(&NodeValue::read_yaml(&file, one).unwrap()));
    let mut object = documents.find(|one| one["kind"] == kind).unwrap();
    object["metadata"]["namespace"] = json!(cluster.namespace());
    object
}

/// A Pod of the manifest's Deployment, whose application is in this process.
async fn pod(cluster: &Cluster, deployment: &Value, name: &str, account: &str, at: Ipv4Addr) {
    let template = &deployment["spec"]["template"];
    let mut metadata = template["metadata"].clone();
    metadata["name"] = json!(name);
    metadata["namespace"] = json!(cluster.namespace());
    let mut spec = template["spec"].clone();
    spec["nodeName"] = json!("node");
    spec["serviceAccountName"] = json!(account);
    cluster
        .apply(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
        .await;
    let ip = at.to_string();
    cluster
        .apply_status(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": cluster.namespace()},
            "status": {
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }))
        .await;
}

/// Its labels alone make it a member that others reach by HBONE: no ztunnel is there to say so, as it does by an
/// annotation of the Pods that it takes in.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_istiod_makes_a_member_of_the_pod_in_the_example_manifest() {
    let test = "a_live_istiod_makes_a_member_of_the_pod_in_the_example_manifest";
    let Some(cluster) = Cluster::new(test).await else {
        return;
    };
    cluster.apply(manifest(&cluster, "ServiceAccount")).await;
    cluster.apply(manifest(&cluster, "Service")).await;
    let deployment = manifest(&cluster, "Deployment");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert!(
        labels[TUNNEL] == "http" && labels[DATAPLANE] == "none",
        "{labels}"
    );
    // Another example's Pod is the caller; one without the label is nobody's member.
    let mut caller = deployment.clone();
    caller["spec"]["template"]["metadata"]["labels"]["app"] = json!("caller");
    let mut outsider = caller.clone();
    let labels = outsider["spec"]["template"]["metadata"]["labels"].as_object_mut();
    labels.unwrap().remove(TUNNEL).unwrap();
    let (at_hello, at_caller) = (address(), address());
    pod(&cluster, &deployment, "hello-1", "hello", at_hello).await;
    pod(&cluster, &caller, "caller-1", "caller", at_caller).await;
    pod(&cluster, &outsider, "outsider-1", "caller", address()).await;
    // Plaintext, which anybody could speak, is not what it is called by.
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "strict", "namespace": cluster.namespace()},
        "spec": {"mtls": {"mode": "STRICT"}},
    });
    cluster.apply(strict).await;
    let principal = format!("cluster.local/ns/{}/sa/caller", cluster.namespace());
    let allow = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "hello", "namespace": cluster.namespace()},
        "spec": {
            "selector": {"matchLabels": {"app": "hello"}},
            "action": "ALLOW",
            "rules": [{
                "from": [{"source": {"principals": [principal]}}],
                "to": [{"operation": {"methods": ["GET"]}}],
            }],
        },
    });
    cluster.apply(allow).await;

    let join = async |name: &str, account: &str, at: Ipv4Addr| {
        let istiod = cluster.control_plane(account).await;
        build(
            &cluster,
            name,
            xds(&istiod, at),
            identity::Istiod::new(istiod),
        )
    };
    let hello = join("hello-1", "hello", at_hello).await;
    let caller = join("caller-1", "caller", at_caller).await;
    serve(&hello, 8080).await;
    soon("the caller is ready", caller.ready()).await.unwrap();
    let uri = format!("http://hello.{}:8080/", cluster.namespace());
    soon("it is answered", async {
        while answer(&caller, Method::GET, &uri).await != StatusCode::OK {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // By policies whole, as the Service names the port.
    let refused = answer(&caller, Method::POST, &uri).await;
    assert_eq!(refused, StatusCode::FORBIDDEN);
    let listener = listener_of(&hello, 8080).await;
    assert!(listener.contains("whole"), "{listener}");

    let told = dump(&caller).await;
    let workloads = told["workloads"].as_array().unwrap();
    let of = |name: &str| {
        let found = workloads.iter().find(|one| one["name"] == name);
        let found = found.unwrap_or_else(|| panic!("{name}: {told}"));
        (found["protocol"].clone(), found["nativeTunnel"].clone())
    };
    for member in ["hello-1", "caller-1"] {
        assert_eq!(of(member), (json!("HBONE"), json!(true)), "{member}");
    }
    assert_eq!(of("outsider-1").0, "TCP", "it is the label that does it");
}
