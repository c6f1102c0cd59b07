//! Settings of the stream from istiod that no other test sets.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_core::authz::policy::ztunnel::EmptyMatch;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh};
use prost::Message;

use crate::istiod_discovery::{ADDRESS, AUTHORIZATION, Answer, Any, Locality, Resource};
use crate::istiod_place::{HOUR, Place, SERVER, addresses, dump, greet, until, workload};
use crate::mesh_joins_istiod::{listener_of, serve};
use crate::mesh_world::echo;

#[tokio::test(start_paused = true)]
async fn resources_beyond_the_number_that_is_set_are_refused_by_name() {
    let place = Place::new();
    place.token("client", HOUR);
    let xds = place.xds("client", [10, 0, 0, 1]).max_resources(2);
    let client = place.mesh("client", "client", xds);
    let _server = place.server().await;
    greet(&client).await;
    let third = addresses(vec![workload("third", [10, 0, 0, 3], "1")], &[]);
    let answers = place.say(&third).await;
    // The server has no such bound.
    let refusals = answers.iter().filter_map(|one| one.ask.error.as_ref());
    let refusals: Vec<_> = refusals.map(|error| &*error.message).collect();
    let [refusal] = refusals[..] else {
        panic!("{refusals:?}");
    };
    let words = "Kubernetes//Pod/default/third: there are 2 resources";
    assert!(refusal.contains(words), "{refusal}");
    until("the node says so", || {
        client
            .node()
            .problems()
            .iter()
            .any(|one| one.contains(words))
    })
    .await;
    let dump = dump(&client).await;
    assert_eq!(dump["workloads"].as_array().unwrap().len(), 2);
}

/// The second port waits for nothing: nobody was asked.
#[tokio::test(start_paused = true)]
async fn a_port_beyond_the_names_that_may_be_asked_for_is_said_to_be_so() {
    let place = Place::new();
    place.token("server", HOUR);
    let xds = place.xds("server", [10, 0, 0, 2]).max_names(1);
    let server = place.mesh("server", "server", xds);
    for port in [8080, 8081] {
        serve(&server, port).await;
    }
    let first = listener_of(&server, 8080).await;
    assert!(first.contains("no Service names the port"), "{first}");
    let second = listener_of(&server, 8081).await;
    let words = "the control plane is not asked for it, for as many are as config::Xds::max_names permits: \
                 policies on requests count in their L4 reduction";
    assert_eq!(second, words);
    let asked = place.istiod.discovery.asked();
    let names = asked.iter().flat_map(|one| &one.ask.subscribe);
    assert!(!names.clone().any(|name| name.ends_with(":8081")));
    assert!(names.clone().any(|name| name.ends_with(":8080")));
}

#[tokio::test(start_paused = true)]
async fn a_port_of_the_proxy_of_a_host_is_said_to_get_no_listener() {
    let place = Place::new();
    place.token("server", HOUR);
    let xds = place.xds("server", [10, 0, 0, 2]);
    let xds = xds.node_proxy("default", "ztunnel");
    let server = place.mesh("server", "server", xds);
    serve(&server, 8080).await;
    let told = listener_of(&server, 8080).await;
    assert!(told.contains("the proxy of a host gets none"), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_destination_beyond_the_names_that_may_be_asked_for_is_an_error() {
    let place = Place::new();
    place.token("client", HOUR);
    let _server = place.server().await;
    for (name, address) in [("client", [10, 0, 0, 1]), ("server", [10, 0, 0, 2])] {
        let mut by_address = workload(name, address, "1");
        by_address.aliases = vec![format!("/{}", IpAddr::from(address))];
        place
            .istiod
            .discovery
            .say(&addresses(vec![by_address], &[]));
    }
    // One is its own.
    let xds = place.xds("client", [10, 0, 0, 1]).on_demand().max_names(2);
    let client = place.mesh("client", "client", xds);
    greet(&client).await;
    let error = client.connect("10.0.0.3:80").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Overloaded, "{error:?}");
    greet(&client).await;
}

#[tokio::test(start_paused = true)]
async fn versions_beyond_the_size_that_is_set_are_not_said_on_another_stream() {
    for (bytes, said) in [
        (None, 2),
        (Some(3_670_016), 2),
        (Some(100), 0),
        (Some(0), 0),
    ] {
        let place = Place::new();
        place.token("client", HOUR);
        let mut xds = place.xds("client", [10, 0, 0, 1]);
        if let Some(bytes) = bytes {
            xds = xds.max_initial_versions(bytes);
        }
        let client = place.mesh("client", "client", xds);
        client.ready().await.unwrap();
        place.istiod.discovery.end_streams();
        let again = || {
            let mut asked = place.istiod.discovery.asked().into_iter();
            asked.find(|one| one.stream == 2 && one.ask.type_url == ADDRESS)
        };
        until("another stream", || again().is_some()).await;
        assert_eq!(again().unwrap().ask.versions.len(), said, "{bytes:?}");
        // Whatever was said, what is here stays.
        until("an answer to the answer", || {
            let mut asked = place.istiod.discovery.asked().into_iter();
            asked.any(|one| one.stream == 2 && !one.ask.nonce.is_empty())
        })
        .await;
        let dump = dump(&client).await;
        assert_eq!(dump["workloads"].as_array().unwrap().len(), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn istiod_is_told_in_which_network_and_place_a_host_is() {
    let place = Place::new();
    place.token("client", HOUR);
    let now = Arc::clone(&place.now);
    let xds = place.xds("client", [10, 0, 0, 1]);
    let client = Mesh::builder()
        .workload("default", "client", "client")
        .transport(place.network.clone())
        .clock(move || now())
        .network("net-1")
        .config(xds.locality("here", "z1", "rack-2"))
        .identity(Istiod::new(place.control_plane("client")))
        .build()
        .unwrap();
    client.ready().await.unwrap();
    let asked = place.istiod.discovery.asked();
    let node = asked[0].ask.node.as_ref().unwrap();
    let metadata = &node.metadata.as_ref().unwrap().fields;
    assert_eq!(metadata["NETWORK"].string, "net-1");
    let locality = Locality {
        region: "here".to_owned(),
        zone: "z1".to_owned(),
        subzone: "rack-2".to_owned(),
    };
    assert_eq!(node.locality, Some(locality));
}

/// `istio.security.Authorization`, as far as it is needed.
#[derive(Clone, PartialEq, prost::Message)]
struct Authorization {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(int32, tag = "3")]
    scope: i32,
    #[prost(int32, tag = "4")]
    action: i32,
    #[prost(message, repeated, tag = "5")]
    rules: Vec<Rule>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Rule {
    #[prost(message, repeated, tag = "1")]
    clauses: Vec<Clause>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Clause {
    #[prost(message, repeated, tag = "2")]
    matches: Vec<Match>,
}

/// Nothing is left of it.
#[derive(Clone, PartialEq, prost::Message)]
struct Match {}

/// A DENY of the namespace whose only condition was lost on its way.
fn emptied() -> Answer {
    let clause = Clause {
        matches: vec![Match {}],
    };
    let policy = Authorization {
        name: "emptied".to_owned(),
        namespace: "default".to_owned(),
        scope: 1,
        action: 1,
        rules: vec![Rule {
            clauses: vec![clause],
        }],
    };
    let value = Any {
        type_url: AUTHORIZATION.to_owned(),
        value: policy.encode_to_vec(),
    };
    Answer {
        resources: vec![Resource {
            name: "default/emptied".to_owned(),
            version: "1".to_owned(),
            value: Some(value),
            aliases: Vec::new(),
        }],
        removed: Vec::new(),
        type_url: AUTHORIZATION.to_owned(),
        nonce: String::new(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_that_was_lost_counts_as_set() {
    for (empty_match, denied) in [
        (None, true),
        (Some(EmptyMatch::AsLost), true),
        (Some(EmptyMatch::NeverMatches), false),
    ] {
        let place = Place::new();
        place.istiod.discovery.say(&emptied());
        place.token("server", HOUR);
        let mut xds = place.xds("server", [10, 0, 0, 2]);
        if let Some(empty_match) = empty_match {
            xds = xds.empty_match(empty_match);
        }
        let server = place.mesh("server", "server", xds);
        echo(server.listen(80).await.unwrap());
        let connected = place.client().connect(SERVER).await;
        let refused = connected.as_ref().is_err_and(mesh_core::Error::is_denied);
        assert_eq!(refused, denied, "{empty_match:?}: {connected:?}");
    }
}
