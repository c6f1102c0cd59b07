//! A server that is told what a real istiod said sends what that istiod sent: the same messages.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{Batch, ResourceName, Update};
use mesh_xds::serve::Server;
use prost::Message;
use serde_json::Value;

use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;
use crate::proto::istio::security::{Authorization, Clause, Match};
use crate::proto::istio::workload::{Address, address};
use crate::proto::type_url;
use crate::require;
use crate::serve::{Tokens, open, serve};

/// Where ours differs on purpose; each must be met.
const INGRESS: &str = "ingress_use_waypoint is for gateways, which the model does not have";
const EMPTY_MATCH: &str =
    "a condition that a DENY lost is left out; istiod sends a match without fields";

#[tokio::test]
async fn bookinfo() {
    replay("bookinfo", "ztunnel", &[EMPTY_MATCH]).await;
}

#[tokio::test]
async fn every_field_of_the_workload_api() {
    replay("networks", "ztunnel", &[INGRESS]).await;
}

#[tokio::test]
async fn several_networks() {
    replay("networks-multicluster", "ztunnel", &[INGRESS]).await;
}

async fn replay(recording: &str, client: &str, exceptions: &[&'static str]) {
    let Some(data) = require::data(recording) else {
        return;
    };
    let folder = data.join("istiod").join(recording).join(client);
    let server = Server::builder(Tokens).build();
    server.apply(Batch::default());
    let uri = serve(&server, None).await;
    let mut stream = open(&uri, "default/a").await.unwrap();
    for url in [type_url::ADDRESS, type_url::AUTHORIZATION] {
        stream.ask(url, &[]).await;
        let first = stream.next().await;
        assert!(first.resources.is_empty());
        stream.say(url, &[], Some(&first.nonce), None).await;
    }
    let mut met = BTreeSet::new();
    let mut theirs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut ours = theirs.clone();
    let lines = fs::read_to_string(folder.join("stream.jsonl")).unwrap();
    let lines = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    for line in lines.filter(|line| line["from"] == "server") {
        let file = line["file"].as_str().unwrap();
        let bytes = fs::read(folder.join(format!("{file}.pb"))).unwrap();
        let message = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        let kind = ResourceType::from_url(&message.type_url).unwrap();
        let mut updates: Vec<Update> = Vec::new();
        for one in &message.resources {
            let value = &one.resource.as_ref().unwrap().value;
            let update = Decoder::new().decode(kind, &one.name, value).unwrap();
            updates.extend(update);
        }
        let removed = message.removed_resources.iter();
        let removed: Vec<ResourceName> = removed.flat_map(|name| kind.removed(name)).collect();
        server.apply(Batch::new(updates, removed));
        let before = theirs.clone();
        advance(&mut theirs, &message);
        if theirs == before {
            continue;
        }
        // What istiod sends again although it is the same, we do not.
        let response = stream.next().await;
        assert_eq!(response.type_url, message.type_url, "{file}");
        stream
            .say(&response.type_url, &[], Some(&response.nonce), None)
            .await;
        advance(&mut ours, &response);
        let names = |of: &BTreeMap<String, Vec<u8>>| of.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{file}");
        for (name, value) in &theirs {
            same(name, &ours[name], value, exceptions, &mut met);
        }
        let newly = response
            .resources
            .iter()
            .all(|one| message.resources.iter().any(|r| r.name == one.name));
        assert!(newly, "{file}: something else was sent");
    }
    assert_eq!(
        met,
        exceptions.iter().copied().collect(),
        "exceptions that are met"
    );
}

fn advance(state: &mut BTreeMap<String, Vec<u8>>, message: &DeltaDiscoveryResponse) {
    for name in &message.removed_resources {
        state.remove(name);
    }
    for one in &message.resources {
        let any = one.resource.as_ref().unwrap();
        assert_eq!(any.type_url, message.type_url);
        state.insert(one.name.clone(), any.value.to_vec());
    }
}

fn same(
    name: &str,
    ours: &[u8],
    theirs: &[u8],
    exceptions: &[&'static str],
    met: &mut BTreeSet<&'static str>,
) {
    let mut meet = |exception: &'static str| {
        assert!(exceptions.contains(&exception), "{name}: {exception}");
        met.insert(exception);
    };
    // A policy has no uid, an address no action: neither reads as the other by accident.
    let address = Address::decode(theirs)
        .ok()
        .filter(|one| one.r#type.is_some());
    let is_policy = |bytes: &[u8]| {
        Authorization::decode(bytes)
            .ok()
            .filter(|one| format!("{}/{}", one.namespace, one.name) == name)
    };
    if let Some(mut theirs) = is_policy(theirs) {
        let ours = is_policy(ours).unwrap();
        for rule in &mut theirs.rules {
            let before = rule.clauses.len();
            let empty = Default::default();
            rule.clauses
                .retain(|clause| !clause.matches.contains(&empty));
            if rule.clauses.len() != before {
                meet(EMPTY_MATCH);
            }
        }
        assert_eq!(split(ours), split(theirs));
        return;
    }
    let mut theirs = address.unwrap_or_else(|| panic!("{name}"));
    let mut ours = Address::decode(ours).unwrap();
    match &mut theirs.r#type {
        Some(address::Type::Service(service)) if service.ingress_use_waypoint => {
            service.ingress_use_waypoint = false;
            meet(INGRESS);
        }
        Some(address::Type::Service(_)) | None => {}
        Some(address::Type::Workload(workload)) => {
            // Lists whose order says nothing.
            workload.authorization_policies.sort();
            if workload.cluster_id.is_empty() {
                workload.cluster_id = "Kubernetes".to_owned();
            }
        }
    }
    if let Some(address::Type::Workload(workload)) = &mut ours.r#type {
        workload.authorization_policies.sort();
    }
    assert_eq!(ours, theirs, "{name}");
}

/// A clause that is one match is as good as a clause for each field of it.
fn split(mut policy: Authorization) -> Authorization {
    for rule in &mut policy.rules {
        let clauses = std::mem::take(&mut rule.clauses);
        for clause in clauses {
            match <[Match; 1]>::try_from(clause.matches) {
                Ok([one]) => rule.clauses.extend(fields(&one)),
                Err(matches) => rule.clauses.push(Clause { matches }),
            }
        }
    }
    policy
}

fn fields(of: &Match) -> Vec<Clause> {
    let mut found = Vec::new();
    macro_rules! each {
        ($($field:ident),*) => {$(
            if !of.$field.is_empty() {
                let matches = vec![Match { $field: of.$field.clone(), ..Match::default() }];
                found.push(Clause { matches });
            }
        )*};
    }
    each!(
        namespaces,
        not_namespaces,
        principals,
        not_principals,
        source_ips,
        not_source_ips
    );
    each!(
        destination_ips,
        not_destination_ips,
        destination_ports,
        not_destination_ports
    );
    each!(service_accounts, not_service_accounts);
    found
}
