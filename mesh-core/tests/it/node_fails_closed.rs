//! What a node does about what is wrong around it: certificates of somebody else, another account than the
//! record's, headers that nobody verified, refusals that stand.

use std::time::Duration;

use futures_util::StreamExt;
use mesh_core::authz::Identity;
use mesh_core::config::{File, Fixed};
use mesh_core::identity::{CertificateSource, CertificateStream, DevCa};
use mesh_core::xds::file::{Loader, Settings};
use mesh_core::xds::model::Update;
use mesh_core::{ErrorKind, Node};
use tower::{Layer, ServiceExt};

use crate::handler::{Handler, get, tunnel};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: reviews-v1, labels: {networking.istio.io/tunnel: http}}\nspec: {serviceAccountName: reviews}\nstatus: {podIP: 127.0.0.1}\n";

fn read(text: &str) -> Vec<Update> {
    let loaded = Loader::new(Settings::default()).load(vec![("mesh.yaml".into(), text.into())]);
    assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
    loaded.into_parts().0.into_parts().0
}

fn node(text: &str, identity: impl CertificateSource) -> Node {
    Node::builder()
        .bind([127, 0, 0, 1].into())
        .hbone_port(0)
        .start_timeout(Duration::from_secs(20))
        .config(Fixed::new(read(text)))
        .identity(identity)
        .build_node()
        .unwrap()
}

/// Gives everybody the certificate of one identity, then ends.
struct Somebody(DevCa, Identity);

impl CertificateSource for Somebody {
    fn watch(&self, _: Identity) -> CertificateStream {
        Box::pin(self.0.watch(self.1.clone()).take(1))
    }
}

/// Waits until what is pending reads so.
async fn pending(node: &Node, wanted: &str) {
    let waits = async {
        while !node.readiness().to_string().contains(wanted) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waits).await;
    assert!(waited.is_ok(), "{}", node.readiness());
}

#[tokio::test]
async fn a_certificate_of_somebody_else_is_not_used() {
    let ca = DevCa::ephemeral("cluster.local");
    let other = Identity::new("cluster.local", "default", "other").unwrap();
    let node = node(POD, Somebody(ca, other));
    let mesh = node.workload("default", "reviews-v1", "reviews").unwrap();
    // The mismatch says more than the end of the source after it.
    pending(&node, "the source gave one of").await;
    let error = mesh.ready().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity, "{error:?}");
    assert!(mesh.certificate().is_none());
}

#[tokio::test]
async fn a_source_that_ends_leaves_a_good_certificate() {
    let ca = DevCa::ephemeral("cluster.local");
    let own = Identity::new("cluster.local", "default", "reviews").unwrap();
    let node = node(POD, Somebody(ca, own.clone()));
    let mesh = node.workload("default", "reviews-v1", "reviews").unwrap();
    mesh.ready().await.unwrap();
    assert_eq!(*mesh.certificate().unwrap().identity(), own);
    assert!(node.readiness().is_ready());
}

#[tokio::test]
async fn another_account_than_the_records_is_said() {
    let node = node(POD, DevCa::ephemeral("cluster.local"));
    let mesh = node.workload("default", "reviews-v1", "typo").unwrap();
    let error = mesh.listen(0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Identity);
    let text = format!("{error} {error:?}");
    for account in ["ns/default/sa/typo", "ns/default/sa/reviews"] {
        assert!(text.contains(account), "{text}");
    }
    let mesh = node.workload("default", "reviews-v1", "reviews").unwrap();
    mesh.listen(0).await.unwrap();
}

#[tokio::test]
async fn headers_of_verified_tokens_are_nobody_elses() {
    let text = format!(
        "{POD}---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {{name: jwt}}\n\
         spec: {{jwtRules: [{{issuer: a, outputPayloadToHeader: x-payload, outputClaimToHeaders: [{{header: x-sub, claim: sub}}]}}]}}\n"
    );
    let node = node(&text, DevCa::ephemeral("cluster.local"));
    let mesh = node.workload("default", "reviews-v1", "reviews").unwrap();
    let http = mesh.listen_http(0).await.unwrap();
    let handler = Handler::default();
    let service = http.layer.for_connection(tunnel()).layer(handler.clone());
    let mut request = get("http://h/");
    for name in ["x-payload", "x-sub", "x-other"] {
        request.headers_mut().insert(name, "admin".parse().unwrap());
    }
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let headers = handler.last().headers;
    assert!(!headers.contains_key("x-payload") && !headers.contains_key("x-sub"));
    assert!(headers.contains_key("x-other"));
}

async fn problems(node: &Node, wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let waits = async {
        loop {
            let problems = node.problems();
            if wanted(&problems) {
                return problems;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), waits).await;
    waited.unwrap_or_else(|_| panic!("{:?}", node.problems()))
}

#[tokio::test]
async fn a_refusal_stands_until_it_is_accepted_or_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    let write = |pods: &[(&str, &str)]| {
        let pod = |(name, ip): &(&str, &str)| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nstatus: {{podIP: {ip}}}\n"
            )
        };
        let new = folder.path().join("new");
        std::fs::write(&new, pods.iter().map(pod).collect::<String>()).unwrap();
        std::fs::rename(&new, &path).unwrap();
    };
    write(&[("a", "224.0.0.1"), ("b", "10.0.0.2")]);
    let node = Node::builder()
        .config(File::watch(&path).every(Duration::from_millis(2)))
        .identity(DevCa::ephemeral("cluster.local"))
        .build_node()
        .unwrap();
    let names = |all: &[String], name: &str| all.iter().any(|one| one.contains(name));
    problems(&node, |all| names(all, "default/a")).await;
    // Another edit says nothing of it; the problem of `c` tells when it took effect.
    write(&[("a", "224.0.0.1"), ("b", "10.0.0.3"), ("c", "224.0.0.2")]);
    let all = problems(&node, |all| names(all, "default/c")).await;
    assert!(names(&all, "default/a"), "{all:?}");
    // Gone the one, right the other.
    write(&[("b", "10.0.0.3"), ("c", "10.0.0.4")]);
    problems(&node, <[String]>::is_empty).await;
}
