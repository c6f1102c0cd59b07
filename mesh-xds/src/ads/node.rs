//! Who we say we are.

use std::collections::BTreeMap;

use crate::proto::envoy::config::core::v3 as core;
use crate::proto::google::protobuf::{Struct, Value, value::Kind};

/// Who asks: the id, and what istiod wants to know of the workload.
///
/// # Examples
///
/// ```
/// use mesh_xds::ads::{Node, NodeValue};
///
/// let node = Node::new("sidecar~10.10.2.11~details-v1-1.default~default.svc.cluster.local")
///     .with_metadata("NAME", "details-v1-1")
///     .with_metadata("NAMESPACE", "default")
///     .with_metadata("GENERATOR", "grpc")
///     .with_metadata("ENABLE_HBONE", "true")
///     .with_metadata("LABELS", NodeValue::map([("app", "details")]));
/// assert!(node.id().starts_with("sidecar~"));
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    pub(super) id: String,
    cluster: String,
    metadata: BTreeMap<String, NodeValue>,
    locality: Option<[String; 3]>,
}

/// A value of a node's metadata.
///
/// istiod is strict about kinds: what it calls a boolean is the text `"true"`, and `INSTANCE_IPS` is one
/// text with commas. A wrong kind ends the stream with INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum NodeValue {
    /// A text.
    Text(String),
    /// A number.
    Number(f64),
    /// A boolean.
    Bool(bool),
    /// Values in order.
    List(Vec<NodeValue>),
    /// Values by name, such as labels.
    Map(BTreeMap<String, NodeValue>),
}

impl NodeValue {
    /// Values by name.
    pub fn map<K: Into<String>, V: Into<Self>>(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        let entries = entries.into_iter();
        Self::Map(entries.map(|(k, v)| (k.into(), v.into())).collect())
    }

    fn to_proto(&self) -> Value {
        let kind = match self {
            Self::Text(text) => Kind::StringValue(text.clone()),
            Self::Number(number) => Kind::NumberValue(*number),
            Self::Bool(value) => Kind::BoolValue(*value),
            Self::List(values) => Kind::ListValue(crate::proto::google::protobuf::ListValue {
                values: values.iter().map(Self::to_proto).collect(),
            }),
            Self::Map(values) => Kind::StructValue(to_struct(values)),
        };
        Value { kind: Some(kind) }
    }
}

fn to_struct(values: &BTreeMap<String, NodeValue>) -> Struct {
    let fields = values.iter().map(|(k, v)| (k.clone(), v.to_proto()));
    Struct {
        fields: fields.collect(),
    }
}

impl From<&str> for NodeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for NodeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<f64> for NodeValue {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for NodeValue {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl Node {
    /// A node with this id; for istiod `<type>~<address>~<name>.<namespace>~<namespace>.svc.cluster.local`.
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            cluster: String::new(),
            metadata: BTreeMap::new(),
            locality: None,
        }
    }

    /// Sets the name of the cluster of proxies that it belongs to; istiod does not need it.
    #[must_use]
    pub fn with_cluster(mut self, cluster: impl Into<String>) -> Self {
        self.cluster = cluster.into();
        self
    }

    /// Sets a value of the metadata.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<NodeValue>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Sets where it runs; each part may be empty.
    #[must_use]
    pub fn with_locality(
        mut self,
        region: impl Into<String>,
        zone: impl Into<String>,
        subzone: impl Into<String>,
    ) -> Self {
        self.locality = Some([region.into(), zone.into(), subzone.into()]);
        self
    }

    /// The id.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn to_proto(&self) -> core::Node {
        let locality = self.locality.clone();
        let locality = locality.map(|[region, zone, sub_zone]| core::Locality {
            region,
            zone,
            sub_zone,
        });
        core::Node {
            id: self.id.clone(),
            cluster: self.cluster.clone(),
            metadata: Some(to_struct(&self.metadata)),
            locality,
            ..core::Node::default()
        }
    }
}
