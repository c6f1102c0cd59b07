//! `workload configure`: the files with which a host joins, as `istioctl x workload entry configure` writes them.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use mesh_authz::Identity;
use serde_json::{Value, json};

use crate::args::{Args, Configure};
use crate::group::Group;
use crate::state::State;
use crate::tls::SERVER_NAME;
use crate::{BoxError, args};

pub(crate) fn run(all: &Args, of: &Configure) -> Result<(), BoxError> {
    let group = match &of.config {
        Some(path) => Group::find(path, &of.namespace, &of.name)?,
        None => Group::default(),
    };
    let account = of.service_account.as_ref();
    let account = account.or(group.service_account.as_ref());
    let host = Host {
        all,
        of,
        account: account.map_or("default", String::as_str),
        group: &group,
    };
    // Before anything is written: these become an identity.
    Identity::new(&all.trust_domain, &of.namespace, host.account)?;
    let state = State::existing(&all.state, &all.trust_domain)?;
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(&of.output)?;
    let lifetime = Duration::from_secs(of.token_duration);
    let token = state.tokens.issue(&of.namespace, host.account, lifetime);
    let files = [
        ("cluster.env", host.cluster_env(), 0o644),
        ("mesh.yaml", host.mesh_yaml(), 0o644),
        ("root-cert.pem", state.root, 0o644),
        ("istio-token", token, 0o600),
        ("hosts", format!("{} {SERVER_NAME}\n", of.ingress_ip), 0o644),
    ];
    for (name, content, mode) in files {
        put(&of.output.join(name), &content, mode)?;
    }
    args::say(&format!(
        "{}: for {}/{}, with a token for {} s",
        of.output.display(),
        of.namespace,
        host.account,
        of.token_duration
    ));
    Ok(())
}

struct Host<'a> {
    all: &'a Args,
    of: &'a Configure,
    account: &'a str,
    group: &'a Group,
}

impl Host<'_> {
    /// What the host says of itself.
    fn metadata(&self) -> BTreeMap<String, String> {
        let of = self.of;
        let mut labels = self.group.labels.clone();
        let canonical = "service.istio.io/canonical-name";
        labels.entry(canonical).or_insert_with(|| json!(of.name));
        let revision = "service.istio.io/canonical-revision";
        labels.entry(revision).or_insert_with(|| json!("latest"));
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (name, version) = (text(&labels[canonical]), text(&labels[revision]));
        let mut found = BTreeMap::new();
        let mut add = |key: &str, value: &str| _ = found.insert(key.to_owned(), value.to_owned());
        add("CANONICAL_REVISION", &version);
        add("CANONICAL_SERVICE", &name);
        add("ISTIO_METAJSON_LABELS", &Value::Object(labels).to_string());
        add("ISTIO_META_CLUSTER_ID", &of.cluster_id);
        add("ISTIO_META_MESH_ID", "");
        add("ISTIO_META_NETWORK", &of.network);
        add("ISTIO_META_WORKLOAD_NAME", &of.name);
        add("POD_NAMESPACE", &of.namespace);
        add("SERVICE_ACCOUNT", self.account);
        add("TRUST_DOMAIN", &self.all.trust_domain);
        let ports = self.group.ports.iter();
        let ports: Vec<Value> = ports
            .map(|(name, port)| json!({ "name": name, "containerPort": port, "protocol": "" }))
            .collect();
        if !ports.is_empty() {
            add("ISTIO_META_POD_PORTS", &Value::from(ports).to_string());
        }
        if of.autoregister {
            add("ISTIO_META_AUTO_REGISTER_GROUP", &of.name);
        }
        found
    }

    fn cluster_env(&self) -> String {
        let of = self.of;
        let ports = self.group.ports.iter();
        let ports: Vec<_> = ports.map(|(_, port)| port.to_string()).collect();
        let ports = match ports.is_empty() {
            true => "*".to_owned(),
            false => ports.join(","),
        };
        let mut values = self.metadata();
        let mut add = |key: &str, value: &str| _ = values.insert(key.to_owned(), value.to_owned());
        add("ISTIO_INBOUND_PORTS", &ports);
        add("ISTIO_LOCAL_EXCLUDE_PORTS", "22,15090,15021,15020");
        add("ISTIO_NAMESPACE", &of.namespace);
        add("ISTIO_SERVICE", &format!("{}.{}", of.name, of.namespace));
        add("ISTIO_SERVICE_CIDR", "*");
        if let Some(ip) = of.internal_ip {
            add("ISTIO_SVC_IP", &ip.to_string());
        }
        let line = |(key, value): (&String, &String)| format!("{key}={}\n", quoted(value));
        values.iter().map(line).collect()
    }

    /// JSON is YAML.
    fn mesh_yaml(&self) -> String {
        let mut config = json!({
            "discoveryAddress": format!("{SERVER_NAME}:{}", self.of.ingress_port),
            "proxyMetadata": self.metadata(),
        });
        if let Some(probe) = &self.group.probe {
            config["readinessProbe"] = probe.clone();
        }
        format!("{:#}\n", json!({ "defaultConfig": config }))
    }
}

/// As a POSIX shell reads it back.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r#"'"'"'"#))
}

/// Puts a file in place at once.
fn put(path: &Path, content: &str, mode: u32) -> Result<(), BoxError> {
    let at = |error: std::io::Error| format!("{}: {error}", path.display());
    let beside = path.with_extension("new");
    // One that is left over may have another mode.
    let _ = fs::remove_file(&beside);
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(at)?;
    file.write_all(content.as_bytes()).map_err(at)?;
    file.sync_all().map_err(at)?;
    fs::rename(&beside, path).map_err(at)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_as_a_shell_reads_them() {
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r#"'it'"'"'s'"#);
    }
}
