//! Hosts that registered, as the WorkloadEntries that istiod makes of them: the file source joins them with all
//! else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_xds::model::Locality;
use mesh_xds::serve::HostEntry;
use serde_json::{Map, Value, json};

/// Where messages say that an entry is. After all paths, so that it takes no name from a file.
const FOLDER: &str = "~registered";

/// An entry as a document of its own: what is wrong with one host's is not wrong with another's.
pub(crate) fn document(of: &HostEntry) -> (PathBuf, Vec<u8>) {
    let name = of.name();
    let path = [FOLDER, name.namespace(), &format!("{}.json", name.name())];
    // JSON is YAML.
    (path.iter().collect(), entry(of).to_string().into_bytes())
}

fn entry(of: &HostEntry) -> Value {
    let ports = of.ports().iter();
    let ports = ports.map(|(name, port)| (name.to_string(), json!(port)));
    let mut spec = json!({
        "address": of.address().to_string(),
        "serviceAccount": of.service_account(),
        "labels": texts(of.labels()),
        "ports": ports.collect::<Map<_, _>>(),
    });
    if !of.network().is_empty() {
        spec["network"] = json!(of.network());
    }
    if *of.locality() != Locality::default() {
        let locality = of.locality();
        let parts = [locality.region(), locality.zone(), locality.subzone()];
        spec["locality"] = json!(parts.join("/"));
    }
    if let Some(weight) = of.weight() {
        spec["weight"] = json!(weight);
    }
    let conditions: Vec<Value> = of.health().into_iter().map(condition).collect();
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {
            "name": of.name().name(),
            "namespace": of.name().namespace(),
            "labels": texts(of.labels()),
            "annotations": texts(of.annotations()),
            "ownerReferences": [{
                "apiVersion": "networking.istio.io/v1",
                "kind": "WorkloadGroup",
                "name": of.group().name(),
                "controller": true,
            }],
        },
        "spec": spec,
        "status": { "conditions": conditions },
    })
}

fn texts(of: &BTreeMap<Arc<str>, Arc<str>>) -> Map<String, Value> {
    let pairs = of.iter();
    pairs
        .map(|(key, value)| (key.to_string(), json!(&**value)))
        .collect()
}

fn condition(health: Result<(), &str>) -> Value {
    json!({
        "type": "Healthy",
        "status": if health.is_ok() { "True" } else { "False" },
        "message": health.err().unwrap_or_default(),
    })
}
