//! A server that has been given nothing yet: clients that come back to it keep what they have.

use mesh_xds::model::Batch;
use mesh_xds::serve::Server;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::proto::envoy::config::core::v3::Node;
use crate::proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use crate::proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::proto::type_url;
use crate::serve::{Tokens, batch, node_of, open_as, serve};

/// A type that no server of ours has: answered at once, with nothing.
const OTHER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// A host, which may ask for listeners too.
const HOST: &str = "sidecar~10.0.0.1~a.default~default.svc.cluster.local";

const LISTENER: &str = "xds.istio.io/grpc/lds/inbound/10.0.0.1:9080";

fn host() -> Node {
    let metadata = [
        ("NAMESPACE", "default"),
        ("GENERATOR", "grpc"),
        ("ENABLE_HBONE", "true"),
    ];
    node_of(HOST, &metadata)
}

#[tokio::test]
async fn before_the_first_batch_nobody_is_told_that_all_is_gone() {
    let server = Server::builder(Tokens).build();
    let uri = serve(&server, None).await;
    let mut stream = open_as(&uri, "default/a", host()).await.unwrap();
    let (a, b) = ("c//Pod/default/a", "c//Pod/default/b");
    stream.come_back(type_url::ADDRESS, &[], &[a, b]).await;
    let policy = "default/allow";
    stream
        .come_back(type_url::AUTHORIZATION, &[], &[policy])
        .await;
    stream
        .come_back(type_url::LISTENER, &[LISTENER], &[LISTENER])
        .await;
    stream.ask(OTHER, &["x"]).await;
    let first = stream.next().await;
    assert_eq!(first.type_url, OTHER, "{first:?}");
    assert_eq!(server.clients()[0].subscriptions().len(), 4);

    // What is not in it is gone, and is said to be.
    server.apply(batch(&["a"]));
    let (mut sent, mut removed) = (Vec::new(), Vec::new());
    while removed.len() < 3 {
        let response = stream.next().await;
        stream
            .say(&response.type_url, &[], Some(&response.nonce), None)
            .await;
        removed.extend(response.removed_resources);
        sent.extend(response.resources.into_iter().map(|one| one.name));
    }
    assert_eq!(sent, [a]);
    assert_eq!(removed, [LISTENER, b, policy]);
}

#[tokio::test]
async fn before_the_first_batch_the_state_of_the_world_is_not_empty() {
    let server = Server::builder(Tokens).build();
    let uri = serve(&server, None).await;
    let channel = tonic::transport::Endpoint::from(uri).connect().await;
    let (requests, sent) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(sent));
    let token = "Bearer default/a".parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    for url in [type_url::ADDRESS, type_url::AUTHORIZATION, OTHER] {
        let request = DiscoveryRequest {
            node: Some(host()),
            type_url: url.to_owned(),
            ..Default::default()
        };
        requests.send(request).await.unwrap();
    }
    let mut client = AggregatedDiscoveryServiceClient::new(channel.unwrap());
    let responses = client.stream_aggregated_resources(request).await;
    let mut responses = responses.unwrap().into_inner();
    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(first.type_url, OTHER, "{first:?}");

    // A batch of nothing is an answer too: there is nothing.
    server.apply(Batch::default());
    for url in [type_url::AUTHORIZATION, type_url::ADDRESS] {
        let response = responses.message().await.unwrap().unwrap();
        assert_eq!(response.type_url, url);
        assert!(response.resources.is_empty());
        let answer = DiscoveryRequest {
            type_url: url.to_owned(),
            response_nonce: response.nonce,
            ..Default::default()
        };
        requests.send(answer).await.unwrap();
    }
}

impl crate::serve::Stream {
    /// Asks for names, and says what it has.
    async fn come_back(&self, url: &str, names: &[&str], has: &[&str]) {
        let request = DeltaDiscoveryRequest {
            node: Some(host()),
            type_url: url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            initial_resource_versions: has
                .iter()
                .map(|&name| (name.to_owned(), "before".to_owned()))
                .collect(),
            ..Default::default()
        };
        self.send(request).await;
    }
}
