//! The WorkloadGroup of a host that is configured, as it is in the manifests.
//!
//! Not the loader's: that has no more of a probe than that there is one, and lays labels as istiod does for entries.

use std::path::Path;

use mesh_xds::ads::NodeValue;
use mesh_xds::file::{Change, Limits, Watcher};
use serde_json::{Map, Value, json};

use crate::BoxError;

/// What of a group becomes part of a host's files.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// Of its entries: those of `spec.metadata` under those of the template, as istioctl lays them.
    pub(crate) labels: Map<String, Value>,
    pub(crate) service_account: Option<String>,
    pub(crate) ports: Vec<(String, u64)>,
    /// `spec.probe`, unchanged.
    pub(crate) probe: Option<Value>,
}

impl Group {
    /// Finds the group in a file or folder of manifests.
    pub(crate) fn find(path: &Path, namespace: &str, name: &str) -> Result<Self, BoxError> {
        let mut watcher = Watcher::new(path, Limits::default());
        let files = loop {
            if let Change::Settled(files) = watcher.poll()? {
                break files;
            }
        };
        let mut names = Vec::new();
        for (file, content) in files {
            let text = String::from_utf8(content)?;
            for document in documents(&file, &text)? {
                if is_group(&document, namespace, name) {
                    return Ok(Self::read(&document["spec"]));
                }
                names.extend(group_name(&document));
            }
        }
        let path = path.display();
        let there = match names.is_empty() {
            true => "there is none".to_owned(),
            false => format!("there is {}", names.join(", ")),
        };
        Err(format!("--config {path}: expected a WorkloadGroup {namespace}/{name}, {there}").into())
    }

    fn read(spec: &Value) -> Self {
        let labels = |of: &Value| of["labels"].as_object().cloned().unwrap_or_default();
        let mut all = labels(&spec["metadata"]);
        let template = &spec["template"];
        all.extend(labels(template));
        let account = template["serviceAccount"].as_str();
        let ports = template["ports"].as_object().into_iter().flatten();
        Self {
            labels: all,
            service_account: account
                .filter(|account| !account.is_empty())
                .map(str::to_owned),
            ports: ports
                .filter_map(|(name, port)| Some((name.clone(), port.as_u64()?)))
                .collect(),
            probe: spec.get("probe").cloned(),
        }
    }
}

fn documents(file: &Path, text: &str) -> Result<Vec<Value>, BoxError> {
    let mut found = Vec::new();
    for document in text.split("\n---") {
        let value = NodeValue::read_yaml(file, document)?;
        found.push(to_json(&value));
    }
    Ok(found)
}

fn is_group(document: &Value, namespace: &str, name: &str) -> bool {
    group_name(document).is_some_and(|group| group == format!("{namespace}/{name}"))
}

/// The namespace and name of a group, if it is one.
fn group_name(document: &Value) -> Option<String> {
    let metadata = &document["metadata"];
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let name = metadata["name"].as_str();
    let name = name.filter(|_| document["kind"] == "WorkloadGroup")?;
    Some(format!("{namespace}/{name}"))
}

fn to_json(of: &NodeValue) -> Value {
    match of {
        NodeValue::Text(text) => json!(text),
        // Manifests have no fractions; those of protobuf would read as others.
        #[expect(clippy::cast_possible_truncation, reason = "a whole number")]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_found_among_manifests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mesh.yaml");
        let text = "
kind: Namespace
metadata: {name: bank}
---
kind: WorkloadGroup
metadata: {name: forum, namespace: bank}
spec:
  metadata: {labels: {app: forum, version: v1}}
  template: {serviceAccount: teller, labels: {version: v2}, ports: {http: 8080}}
  probe: {periodSeconds: 1, httpGet: {path: /ready, port: 8080}}
";
        std::fs::write(&path, text).unwrap();
        let group = Group::find(&path, "bank", "forum").unwrap();
        assert_eq!(
            Value::Object(group.labels),
            json!({ "app": "forum", "version": "v2" })
        );
        assert_eq!(group.service_account.as_deref(), Some("teller"));
        assert_eq!(group.ports, [("http".to_owned(), 8080)]);
        let probe = json!({ "periodSeconds": 1, "httpGet": { "path": "/ready", "port": 8080 } });
        assert_eq!(group.probe, Some(probe));
        let missing = Group::find(&path, "bank", "other").unwrap_err().to_string();
        assert!(
            missing.ends_with("expected a WorkloadGroup bank/other, there is bank/forum"),
            "{missing}"
        );
    }
}
