//! What a node says of a host that wants to be registered.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_authz::Identity;
use tonic::Status;

use super::discovery::text;
use super::registry::Host;
use crate::model::{Locality, ObjectName};
use crate::proto::envoy::config::core::v3::Node;
use crate::proto::google::protobuf::value::Kind;

/// Labels that a host may have, and the bytes of their names and values: as Kubernetes has them.
const MAX_LABELS: usize = 64;
const MAX_LABEL_KEY: usize = 317;
const MAX_LABEL_VALUE: usize = 63;

/// Bytes of the name of a group or network.
const MAX_NAME: usize = 253;

/// Bytes of each part of a locality: they are the values of labels elsewhere.
const MAX_LOCALITY: usize = 63;

/// The host, if the node names a group.
pub(super) fn read(node: &Node, identity: &Identity) -> Result<Option<Host>, Status> {
    let Some(group) = name(node, "AUTO_REGISTER_GROUP")? else {
        return Ok(None);
    };
    let is_ztunnel = node.id.starts_with("ztunnel~");
    Ok(Some(Host {
        group: ObjectName::new(identity.namespace(), group),
        identity: identity.clone(),
        address: address(node)?,
        network: name(node, "NETWORK")?.unwrap_or_default().into(),
        labels: labels(node)?,
        locality: locality(node)?,
        tunnel: is_ztunnel || text(node, "ENABLE_HBONE") == Some("true"),
        probed: is_probed(node),
    }))
}

fn value<'a>(node: &'a Node, key: &str) -> Option<&'a Kind> {
    node.metadata.as_ref()?.fields.get(key)?.kind.as_ref()
}

fn wrong(key: &str, expected: &str) -> Status {
    Status::invalid_argument(format!("node.metadata.{key}: expected {expected}"))
}

/// A text that becomes part of a name, so of the characters that the names of objects have.
fn name<'a>(node: &'a Node, key: &str) -> Result<Option<&'a str>, Status> {
    match value(node, key) {
        None => Ok(None),
        Some(Kind::StringValue(text)) if text.len() <= MAX_NAME && text.bytes().all(fits) => {
            Ok(Some(text.as_str()).filter(|text| !text.is_empty()))
        }
        Some(_) => Err(wrong(
            key,
            "a name of at most 253 letters, digits, '-', '.' and '_'",
        )),
    }
}

fn fits(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':')
}

/// The first of the node's addresses; if one of them is none, that of the node's id.
fn address(node: &Node) -> Result<IpAddr, Status> {
    const KEY: &str = "INSTANCE_IPS";
    let listed = match value(node, KEY) {
        None => None,
        Some(Kind::StringValue(text)) => {
            let all: Result<Vec<IpAddr>, _> = text.split(',').map(str::parse).collect();
            all.ok().and_then(|all| all.first().copied())
        }
        Some(_) => return Err(wrong(KEY, "addresses in one text, with commas")),
    };
    let in_id = || node.id.split('~').nth(1)?.parse().ok();
    let address = listed.or_else(in_id).map(|address| address.to_canonical());
    let address = address.ok_or_else(|| wrong(KEY, "an address, here or in the node's id"))?;
    let is_broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if address.is_unspecified() || address.is_multicast() || is_broadcast {
        let found = format!("an address that one host can have, found {address}");
        return Err(wrong(KEY, &found));
    }
    Ok(address)
}

fn labels(node: &Node) -> Result<BTreeMap<Arc<str>, Arc<str>>, Status> {
    const KEY: &str = "LABELS";
    let fields = match value(node, KEY) {
        None | Some(Kind::NullValue(_)) => return Ok(BTreeMap::new()),
        Some(Kind::StructValue(labels)) if labels.fields.len() <= MAX_LABELS => &labels.fields,
        Some(_) => return Err(wrong(KEY, "at most 64 texts by name")),
    };
    let label = |(key, value): (&String, &crate::proto::google::protobuf::Value)| {
        let Some(Kind::StringValue(text)) = &value.kind else {
            return Err(wrong(KEY, "texts by name"));
        };
        if key.len() > MAX_LABEL_KEY || text.len() > MAX_LABEL_VALUE {
            return Err(wrong(KEY, "names of 317 and values of 63 bytes at most"));
        }
        Ok((key.as_str().into(), text.as_str().into()))
    };
    fields.iter().map(label).collect()
}

fn locality(node: &Node) -> Result<Option<Locality>, Status> {
    let Some(of) = node.locality.as_ref() else {
        return Ok(None);
    };
    for (field, part) in [
        ("region", &of.region),
        ("zone", &of.zone),
        ("sub_zone", &of.sub_zone),
    ] {
        // Where all three are one text, slashes separate them.
        if part.len() > MAX_LOCALITY || part.contains('/') {
            let expected = format!("at most {MAX_LOCALITY} bytes without '/'");
            let text = format!("node.locality.{field}: expected {expected}");
            return Err(Status::invalid_argument(text));
        }
    }
    let found = Locality::new(&*of.region, &*of.zone, &*of.sub_zone);
    Ok((found != Locality::default()).then_some(found))
}

fn is_probed(node: &Node) -> bool {
    match value(node, "PROXY_CONFIG") {
        Some(Kind::StructValue(config)) => {
            let probe = config.fields.get("readinessProbe");
            let probe = probe.and_then(|value| value.kind.as_ref());
            !matches!(probe, None | Some(Kind::NullValue(_)))
        }
        _ => false,
    }
}
