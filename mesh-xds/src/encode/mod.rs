//! The model to the bytes of resources, as istiod has them on its ambient stream, and the inbound listeners
//! that it has for proxyless servers.
//!
//! What the wire cannot say is left out so that no decision becomes more permissive for it: see
//! [`authorization`].

mod authorization;
mod listener;
mod normal;
mod rbac;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::net::SocketAddr;

use bytes::Bytes;
use mesh_authz::policy::{Action, Policy, PolicyName};
use prost::Message;

use crate::model::{AttachedPolicy, Rejection, Scope, Service, Workload};
use crate::proto::istio::workload::{Address, address};

/// A resource's value, as it is in its `Any`.
pub(crate) type Value = Bytes;

/// A workload; of the policies that it lists those which `withheld` names are left out, because nobody is sent them.
pub(crate) fn workload(of: &Workload, withheld: impl Fn(&PolicyName) -> bool) -> Value {
    let message = workload::workload(of, withheld);
    Address {
        r#type: Some(address::Type::Workload(message)),
    }
    .encode_to_vec()
    .into()
}

/// A service.
pub(crate) fn service(of: &Service) -> Value {
    Address {
        r#type: Some(address::Type::Service(service::service(of))),
    }
    .encode_to_vec()
    .into()
}

/// A policy; `None` for one that only waypoints get, or that decides nothing: see [`is_sent`].
///
/// # Errors
///
/// The wire takes a namespace's policy to be of the namespace that it binds.
pub(crate) fn policy(of: &AttachedPolicy) -> Result<Option<Value>, Rejection> {
    if !is_sent(of) {
        return Ok(None);
    }
    let message = authorization::authorization(of)?;
    Ok(Some(message.encode_to_vec().into()))
}

/// The inbound listener of a name: the policies of the port, whole.
pub(crate) fn listener(name: &str, address: SocketAddr, policies: &[&Policy]) -> Value {
    listener::listener(name, address, policies)
        .encode_to_vec()
        .into()
}

/// Whether clients are sent a policy: not one with `targetRefs`, which only waypoints enforce, and not an
/// AUDIT, which decides nothing and which the wire has no word for.
pub(crate) fn is_sent(policy: &AttachedPolicy) -> bool {
    !matches!(policy.scope(), Scope::Targets(_)) && *policy.policy().action() != Action::Audit
}
