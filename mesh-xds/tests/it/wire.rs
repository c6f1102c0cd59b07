//! What a real istiod sent is read whole, and what is written is what was read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use prost::Message;
use prost::bytes::Bytes;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, ReflectMessage, Value};

use crate::generated::descriptors;
use crate::proto::envoy::config::listener::v3::Listener;
use crate::proto::envoy::extensions::filters::http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute};
use crate::proto::envoy::extensions::filters::http::router::v3::Router;
use crate::proto::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use crate::proto::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use crate::proto::envoy::extensions::path::r#match::uri_template::v3::UriTemplateMatchConfig;
use crate::proto::envoy::extensions::transport_sockets::tls::v3::DownstreamTlsContext;
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::istio::security::Authorization;
use crate::proto::istio::workload::Address;
use crate::proto::type_url;
use crate::require;

/// Where a waypoint's and a proxyless client's configuration has more than the subset: where requests go
/// and what is logged of them. Each must be met.
const LEFT_OUT: [&str; 6] = [
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.R",
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
    "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
    "envoy.extensions.transport_sockets.tls.v3.C",
    // It is enough to see that a listener is matched by a tree.
    "xds.type.matcher.v3.Matcher",
];

/// Reads a message as the type that this crate has for it, and writes it.
fn rewrite(url: &str, bytes: &Bytes) -> Option<Vec<u8>> {
    fn again<M: Message + Default>(bytes: &Bytes) -> Vec<u8> {
        let message = M::decode(bytes.clone()).expect("a message of this type");
        message.encode_to_vec()
    }
    Some(match url {
        type_url::ADDRESS => again::<Address>(bytes),
        type_url::AUTHORIZATION => again::<Authorization>(bytes),
        type_url::LISTENER => again::<Listener>(bytes),
        type_url::HTTP_CONNECTION_MANAGER => again::<HttpConnectionManager>(bytes),
        type_url::NETWORK_RBAC => again::<NetworkRbac>(bytes),
        type_url::HTTP_RBAC => again::<HttpRbac>(bytes),
        type_url::HTTP_RBAC_PER_ROUTE => again::<RbacPerRoute>(bytes),
        type_url::ROUTER => again::<Router>(bytes),
        type_url::URI_TEMPLATE => again::<UriTemplateMatchConfig>(bytes),
        type_url::DOWNSTREAM_TLS => again::<DownstreamTlsContext>(bytes),
        "DiscoveryRequest" => again::<DiscoveryRequest>(bytes),
        "DiscoveryResponse" => again::<DiscoveryResponse>(bytes),
        "DeltaDiscoveryRequest" => again::<DeltaDiscoveryRequest>(bytes),
        "DeltaDiscoveryResponse" => again::<DeltaDiscoveryResponse>(bytes),
        _ => return None,
    })
}

/// Holds messages against what reflection finds in the same bytes, which drops nothing.
struct Reader {
    pool: DescriptorPool,
    /// Fields that the subset does not have, as `message.number`.
    unknown: BTreeSet<String>,
    /// Messages that the subset does not have, by URL.
    foreign: BTreeSet<String>,
    /// How many messages of each type were read.
    read: BTreeMap<String, usize>,
}

impl Reader {
    fn new() -> Self {
        Self {
            pool: descriptors(),
            unknown: BTreeSet::new(),
            foreign: BTreeSet::new(),
            read: BTreeMap::new(),
        }
    }

    /// `name` is a message of discovery or the URL of an `Any`.
    fn message(&mut self, name: &str, bytes: &[u8]) {
        let full = match name.split_once('/') {
            Some((_, full)) => full.to_owned(),
            None => format!("envoy.service.discovery.v3.{name}"),
        };
        let rewritten = rewrite(name, &Bytes::copy_from_slice(bytes));
        let (Some(descriptor), Some(rewritten)) = (self.pool.get_message_by_name(&full), rewritten)
        else {
            self.foreign.insert(name.to_owned());
            return;
        };
        *self.read.entry(name.to_owned()).or_default() += 1;
        let mut original = DynamicMessage::decode(descriptor.clone(), bytes).expect("a message");
        self.nested(&mut original);
        // Anew, because a field that was taken out is not equal to one that never was.
        let known = original.encode_to_vec();
        let original = DynamicMessage::decode(descriptor.clone(), &*known).expect("a message");
        let rewritten = DynamicMessage::decode(descriptor, &*rewritten).expect("a message");
        assert!(original == rewritten, "{original}\nbecame\n{rewritten}");
    }

    /// Notes and takes out what the subset lacks, here and below.
    fn nested(&mut self, message: &mut DynamicMessage) {
        let name = message.descriptor().full_name().to_owned();
        let unknown: Vec<_> = message.unknown_fields().map(|f| f.number()).collect();
        for number in unknown {
            self.unknown.insert(format!("{name}.{number}"));
        }
        let _: Vec<_> = message.take_unknown_fields().collect();
        if name == "google.protobuf.Any" {
            let text = |n| message.get_field_by_number(n).expect("Any").into_owned();
            if let (Value::String(url), Value::Bytes(value)) = (text(1), text(2)) {
                self.message(&url, &value);
            }
        }
        for (_, value) in message.fields_mut() {
            self.value(value);
        }
    }

    fn value(&mut self, value: &mut Value) {
        match value {
            Value::Message(message) => self.nested(message),
            Value::List(values) => values.iter_mut().for_each(|value| self.value(value)),
            Value::Map(values) => {
                let mut keys: Vec<MapKey> = values.keys().cloned().collect();
                keys.sort_by_key(|key| format!("{key:?}"));
                for key in keys {
                    self.value(values.get_mut(&key).expect("a key of this map"));
                }
            }
            _ => {}
        }
    }

    /// One client's stream; says how many messages it had.
    fn stream(&mut self, folder: &Path) -> usize {
        let state_of_the_world = folder
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("proxyless"));
        let mut messages = 0;
        let lines = fs::read_to_string(folder.join("stream.jsonl")).expect("a recording");
        for line in lines.lines() {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let file = folder.join(text("file")).with_extension("pb");
            let bytes = fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            let delta = if state_of_the_world { "" } else { "Delta" };
            let kind = match text("from").as_str() {
                "client" => "Request",
                _ => "Response",
            };
            self.message(&format!("{delta}Discovery{kind}"), &bytes);
            messages += 1;
        }
        assert!(messages > 0, "{}", folder.display());
        messages
    }
}

fn recordings(data: &Path, clients: &[&str]) -> (Reader, usize) {
    let mut reader = Reader::new();
    let mut messages = 0;
    for recording in ["bookinfo", "networks", "networks-multicluster"] {
        for client in clients {
            let folder = data.join("istiod").join(recording).join(client);
            if folder.is_dir() {
                messages += reader.stream(&folder);
            }
        }
    }
    (reader, messages)
}

#[test]
fn streams_of_ambient_clients_are_read_without_loss() {
    let Some(data) = require::data("wire: streams of ambient clients") else {
        return;
    };
    let (reader, messages) = recordings(&data, &["ztunnel", "ondemand", "sdk"]);
    assert!(messages > 100, "{messages}");
    assert_eq!(reader.unknown, BTreeSet::new());
    assert_eq!(reader.foreign, BTreeSet::new());
    for url in [
        type_url::ADDRESS,
        type_url::AUTHORIZATION,
        type_url::LISTENER,
        type_url::HTTP_CONNECTION_MANAGER,
        type_url::HTTP_RBAC,
        type_url::ROUTER,
    ] {
        assert!(reader.read[url] > 5, "{url}: {}", reader.read[url]);
    }
}

#[test]
fn streams_of_others_are_read_as_far_as_the_subset_goes() {
    let Some(data) = require::data("wire: streams of other clients") else {
        return;
    };
    let (reader, messages) = recordings(&data, &["waypoint", "proxyless", "proxyless-server"]);
    assert!(messages > 100, "{messages}");
    let mut met: BTreeSet<&str> = BTreeSet::new();
    for field in &reader.unknown {
        let left_out = LEFT_OUT.iter().find(|prefix| field.starts_with(**prefix));
        assert!(left_out.is_some(), "{field} is left out");
        met.extend(left_out.copied());
    }
    assert_eq!(met.len(), LEFT_OUT.len(), "of {LEFT_OUT:?} only {met:?}");
    // Among them nothing that decides who may do what.
    let security = |name: &String| name.contains(".rbac.") || name.contains(".istio.");
    assert_eq!(reader.foreign.iter().find(|name| security(name)), None);
    for url in [type_url::NETWORK_RBAC, type_url::URI_TEMPLATE] {
        assert!(reader.read[url] > 5, "{url}: {}", reader.read[url]);
    }
}
