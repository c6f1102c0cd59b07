//! The bytes of resources to the model: `Decoder::decode(type, name, bytes) -> update`.
//!
//! A resource that is wrong is refused alone, with the path of its field and what was expected there;
//! whoever decodes a response applies the others.
//!
//! # Examples
//!
//! ```
//! use mesh_xds::decode::{Decoder, ResourceType};
//! use mesh_xds::model::{ResourceName, Update};
//!
//! let kind = ResourceType::from_url("type.googleapis.com/istio.workload.Address").unwrap();
//! // Address { workload: Workload { uid: "c//Pod/ns/a", addresses: [10.0.0.1] } }
//! let bytes = b"\x0a\x14\x1a\x04\x0a\x00\x00\x01\xa2\x01\x0bc//Pod/ns/a";
//! let Some(Update::Workload(workload)) = Decoder::new().decode(kind, "c//Pod/ns/a", bytes)? else {
//!     panic!("it is a workload");
//! };
//! assert_eq!(workload.addresses()[0].to_string(), "10.0.0.1");
//! assert_eq!(workload.trust_domain(), "cluster.local");
//!
//! let error = Decoder::new().decode(kind, "c//Pod/ns/b", bytes).unwrap_err();
//! assert!(error.to_string().starts_with("workload.uid: \"c//Pod/ns/a\", expected"));
//! # Ok::<(), mesh_xds::model::Rejection>(())
//! ```

mod authorization;
mod field;
mod listener;
mod rbac;
mod replicas;
mod service;
mod text;
pub(crate) mod wire;
mod workload;

use std::sync::Arc;

use mesh_authz::policy::PolicyName;
use mesh_authz::policy::ztunnel::EmptyMatch;
use prost::Message;

use crate::model::{InboundListener, Rejection, ResourceName, ServiceName, Update};
use crate::proto::istio::workload::{Address, address};
use crate::proto::{envoy, istio, type_url};
use field::{Field, Problem};
pub(crate) use replicas::Replicas;

/// A kind of resource that has a place in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ResourceType {
    /// `istio.workload.Address`: workloads and services.
    Address,
    /// `istio.security.Authorization`: policies in their L4 reduction.
    Authorization,
    /// `envoy.config.listener.v3.Listener`: of which the inbound listeners of proxyless servers.
    Listener,
}

impl ResourceType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Address, Self::Authorization, Self::Listener];

    /// The type that a type URL names, if the model has a place for it.
    pub fn from_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.url() == type_url)
    }

    /// The type URL.
    pub fn url(self) -> &'static str {
        match self {
            Self::Address => type_url::ADDRESS,
            Self::Authorization => type_url::AUTHORIZATION,
            Self::Listener => type_url::LISTENER,
        }
    }

    /// What the removal of a resource with this name takes away: nothing for a name without a place in
    /// the model, and two candidates where the name may be a workload's or a service's.
    pub fn removed(self, name: &str) -> Vec<ResourceName> {
        let parts = || name.split_once('/');
        match self {
            Self::Address => {
                let workload = ResourceName::Workload(name.into());
                let service = parts().filter(|(_, hostname)| !hostname.contains('/'));
                let service = service.map(|(namespace, hostname)| {
                    ResourceName::Service(ServiceName::new(namespace, hostname))
                });
                std::iter::once(workload).chain(service).collect()
            }
            Self::Authorization => parts()
                .map(|(namespace, name)| ResourceName::Policy(PolicyName::new(namespace, name)))
                .into_iter()
                .collect(),
            Self::Listener => InboundListener::address_in(name)
                .map(ResourceName::InboundListener)
                .into_iter()
                .collect(),
        }
    }
}

/// Reads resources into the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Decoder {
    empty_match: EmptyMatch,
}

impl Decoder {
    /// Reads as the SDK does.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how a match without fields counts, which stands for conditions that a policy lost. Default
    /// [`EmptyMatch::AsLost`]: no decision becomes more permissive for it. istio/ztunnel does as
    /// [`EmptyMatch::NeverMatches`] says.
    #[must_use]
    pub fn with_empty_match(mut self, empty_match: EmptyMatch) -> Self {
        self.empty_match = empty_match;
        self
    }

    /// Reads a resource. `name` is that of the discovery response, empty where the response has none
    /// (state of the world); `bytes` is the value of its `Any`.
    ///
    /// `None` for a resource that has no place in the model: a listener that is not a proxyless server's.
    ///
    /// # Errors
    ///
    /// [`Rejection`] with the path of the field, what it holds and what was expected there. Of a listener
    /// only what makes its address uncertain is an error: where something in it can refuse requests and
    /// is not understood, the listener is closed ([`InboundListener::closed`]).
    ///
    /// [`InboundListener::closed`]: crate::model::InboundListener::closed
    pub fn decode(
        &self,
        kind: ResourceType,
        name: &str,
        bytes: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        let update = match kind {
            ResourceType::Address => self.address(bytes, name).map(Some),
            ResourceType::Authorization => self.authorization(bytes, name).map(Some),
            ResourceType::Listener => self.listener(bytes, name),
        };
        update.map_err(|problem| Rejection::new(problem.to_string()))
    }

    /// Reads resources one after the other, sharing what workloads have in common.
    pub fn reader(self) -> Reader {
        Reader {
            decoder: self,
            replicas: Replicas::default(),
        }
    }

    /// As [`decode`](Self::decode), with what was read before.
    pub(crate) fn decode_with(
        &self,
        replicas: &mut Replicas,
        kind: ResourceType,
        name: &str,
        bytes: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        if kind == ResourceType::Address
            && let Some(workload) = replicas.workload(bytes, name)
        {
            return Ok(Some(workload.into()));
        }
        self.decode(kind, name, bytes)
    }

    fn address(&self, bytes: &[u8], name: &str) -> Result<Update, Problem> {
        let address: Address = parse(bytes)?;
        match address.r#type {
            Some(address::Type::Workload(workload)) => {
                let field = Field::root("workload");
                let workload = workload::workload(workload, &field)?;
                field.at("uid").is_named(workload.uid(), name)?;
                Ok(workload.into())
            }
            Some(address::Type::Service(service)) => {
                let field = Field::root("service");
                let service = service::service(service, &field)?;
                field.is_named(&service.name().to_string(), name)?;
                Ok(service.into())
            }
            None => Err(Field::root("type").missing("a workload or a service")),
        }
    }

    fn authorization(&self, bytes: &[u8], name: &str) -> Result<Update, Problem> {
        let policy: istio::security::Authorization = parse(bytes)?;
        let policy = authorization::authorization(policy, self.empty_match)?;
        let own = policy.policy().name().to_string();
        Field::root("name").is_named(&own, name)?;
        Ok(policy.into())
    }

    fn listener(&self, bytes: &[u8], name: &str) -> Result<Option<Update>, Problem> {
        let listener: envoy::config::listener::v3::Listener = parse(bytes)?;
        if !name.is_empty() {
            Field::root("name").is_named(&listener.name, name)?;
        }
        Ok(listener::inbound(&listener)?.map(Update::from))
    }
}

/// Reads the resources of a response: of workloads, what replicas have in common and what those of a node have is
/// decoded once, and shared by those that follow. Of each at most 16 384 are remembered, by at most 8 MiB of the bytes
/// that they were read from: whatever comes beyond that begins anew.
#[derive(Debug, Default)]
pub struct Reader {
    decoder: Decoder,
    replicas: Replicas,
}

impl Reader {
    /// As [`Decoder::decode`]: the same of the same bytes.
    ///
    /// # Errors
    ///
    /// As [`Decoder::decode`].
    pub fn decode(
        &mut self,
        kind: ResourceType,
        name: &str,
        bytes: &[u8],
    ) -> Result<Option<Update>, Rejection> {
        self.decoder
            .decode_with(&mut self.replicas, kind, name, bytes)
    }
}

fn parse<M: Message + Default>(bytes: &[u8]) -> Result<M, Problem> {
    M::decode(bytes).map_err(|error| Problem::malformed(&error))
}

/// An empty text is the default that Istio documents.
fn or_default(text: &str, default: &'static str) -> Arc<str> {
    match text {
        "" => default.into(),
        text => text.into(),
    }
}
