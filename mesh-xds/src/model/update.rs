//! What a source hands over: a batch of changes, and the verdicts it gets back.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_authz::policy::PolicyName;

use super::{
    AttachedPolicy, Gateway, HttpRoute, InboundListener, ObjectName, RequestAuthentication,
    Service, ServiceName, Workload,
};

/// A resource in its newest version.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Update {
    /// A workload: of these there are many, in one allocation.
    Workload(Workload),
    /// A service.
    Service(Arc<Service>),
    /// A policy with what it binds.
    Policy(Arc<AttachedPolicy>),
    /// Where requests may carry tokens.
    RequestAuthentication(Arc<RequestAuthentication>),
    /// An HTTP route.
    HttpRoute(Arc<HttpRoute>),
    /// A gateway.
    Gateway(Arc<Gateway>),
    /// The policies of one port of a workload.
    InboundListener(Arc<InboundListener>),
}

impl Update {
    /// The name under which the resource is kept, replaced and removed.
    pub fn name(&self) -> ResourceName {
        match self {
            Self::Workload(workload) => ResourceName::Workload(Arc::clone(workload.shared_uid())),
            Self::Service(service) => ResourceName::Service(service.name().clone()),
            Self::Policy(policy) => ResourceName::Policy(policy.policy().name().clone()),
            Self::RequestAuthentication(rule) => {
                ResourceName::RequestAuthentication(rule.name().clone())
            }
            Self::HttpRoute(route) => ResourceName::HttpRoute(route.name().clone()),
            Self::Gateway(gateway) => ResourceName::Gateway(gateway.name().clone()),
            Self::InboundListener(listener) => ResourceName::InboundListener(listener.address()),
        }
    }
}

macro_rules! update_from {
    ($($kind:ident: $type:ty),* $(,)?) => {$(
        impl From<$type> for Update {
            fn from(resource: $type) -> Self {
                Self::$kind(Arc::new(resource))
            }
        }
    )*};
}

impl From<Workload> for Update {
    fn from(workload: Workload) -> Self {
        Self::Workload(workload)
    }
}

update_from! {
    Service: Service,
    Policy: AttachedPolicy,
    RequestAuthentication: RequestAuthentication,
    HttpRoute: HttpRoute,
    Gateway: Gateway,
    InboundListener: InboundListener,
}

/// Names a resource of the mesh by kind and unique name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ResourceName {
    /// A workload, by uid.
    Workload(Arc<str>),
    /// A service.
    Service(ServiceName),
    /// A policy.
    Policy(PolicyName),
    /// A request authentication.
    RequestAuthentication(ObjectName),
    /// An HTTP route.
    HttpRoute(ObjectName),
    /// A gateway.
    Gateway(ObjectName),
    /// The policies of one port of a workload, by address and port.
    InboundListener(SocketAddr),
}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(uid) => write!(f, "workload {uid}"),
            Self::Service(name) => write!(f, "service {name}"),
            Self::Policy(name) => write!(f, "policy {name}"),
            Self::RequestAuthentication(name) => write!(f, "request authentication {name}"),
            Self::HttpRoute(name) => write!(f, "HTTP route {name}"),
            Self::Gateway(name) => write!(f, "gateway {name}"),
            Self::InboundListener(address) => write!(f, "inbound listener {address}"),
        }
    }
}

type Reply = Box<dyn FnOnce(Vec<Verdict>) + Send>;

/// Changes that take effect together, in one swap of the snapshot.
///
/// Removals come before updates: a name that is in both is replaced.
///
/// # Examples
///
/// ```
/// use mesh_xds::model::{Batch, Update, Verdict, Workload};
///
/// let workload = Workload::new("Kubernetes//Pod/default/a", "default", "a");
/// let batch = Batch::new(vec![workload.into()], Vec::new()).with_reply(|verdicts| {
///     assert!(verdicts.iter().all(|verdict| verdict.result().is_ok()));
/// });
/// let (updates, _removed, reply) = batch.into_parts();
/// let verdicts = updates.iter().map(|update| Verdict::accepted(update.name())).collect();
/// reply.send(verdicts);
/// ```
#[derive(Default)]
pub struct Batch {
    updates: Vec<Update>,
    removed: Vec<ResourceName>,
    reply: BatchReply,
}

impl Batch {
    /// Makes a batch that wants no answer.
    pub fn new(updates: Vec<Update>, removed: Vec<ResourceName>) -> Self {
        Self {
            updates,
            removed,
            reply: BatchReply::default(),
        }
    }

    /// Sets what is called, once, with one verdict per updated resource.
    ///
    /// It runs where the batch is applied, so it must not block. It is not called when the batch is
    /// dropped before it was applied.
    #[must_use]
    pub fn with_reply(mut self, reply: impl FnOnce(Vec<Verdict>) + Send + 'static) -> Self {
        self.reply = BatchReply(Some(Box::new(reply)));
        self
    }

    /// The resources in their newest versions.
    pub fn updates(&self) -> &[Update] {
        &self.updates
    }

    /// The names of resources that are no more.
    pub fn removed(&self) -> &[ResourceName] {
        &self.removed
    }

    /// Whether there is nothing to apply.
    pub fn is_empty(&self) -> bool {
        self.updates.is_empty() && self.removed.is_empty()
    }

    /// Takes the batch apart: updates, removals, and where the verdicts go.
    pub fn into_parts(self) -> (Vec<Update>, Vec<ResourceName>, BatchReply) {
        (self.updates, self.removed, self.reply)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("updates", &self.updates)
            .field("removed", &self.removed)
            .finish_non_exhaustive()
    }
}

/// Takes the verdicts on a batch to its source.
#[derive(Default)]
pub struct BatchReply(Option<Reply>);

impl BatchReply {
    /// Hands the verdicts over; does nothing when the source wants none.
    pub fn send(self, verdicts: Vec<Verdict>) {
        if let Some(reply) = self.0 {
            reply(verdicts);
        }
    }

    /// Whether anybody wants the verdicts.
    pub fn is_wanted(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for BatchReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BatchReply")
            .field(&self.is_wanted())
            .finish()
    }
}

/// What became of one resource of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    resource: ResourceName,
    result: Result<(), Rejection>,
}

impl Verdict {
    /// The resource is in effect.
    pub fn accepted(resource: ResourceName) -> Self {
        Self {
            resource,
            result: Ok(()),
        }
    }

    /// The resource is refused; its last good version stays.
    pub fn rejected(resource: ResourceName, rejection: Rejection) -> Self {
        Self {
            resource,
            result: Err(rejection),
        }
    }

    /// The resource.
    pub fn resource(&self) -> &ResourceName {
        &self.resource
    }

    /// Whether it is in effect, or why not.
    pub fn result(&self) -> Result<(), &Rejection> {
        self.result.as_ref().copied()
    }
}

/// Why a resource was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejection {
    reason: Arc<str>,
}

impl Rejection {
    /// Makes a rejection; the reason names the field and what was expected.
    pub fn new(reason: impl Into<Arc<str>>) -> Self {
        Self {
            reason: reason.into(),
        }
    }

    /// The reason, for a person.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}
