//! Kubernetes and Istio objects as people have them in files, and what they make of a mesh.
//!
//! Reading is per object and strict where a field carries security; [`assemble`] then joins all
//! objects the way istiod does for an ambient mesh.

pub(crate) mod assemble;
mod core;
mod entries;
mod gateway;
mod meta;
mod quantity;
mod route;
mod schema;
mod security;

use std::sync::Arc;

use crate::file::cursor::{Cursor, Result};
use crate::file::problem::Invalid;
use crate::file::settings::Settings;
use crate::model::{HttpRoute, WorkloadGroup};
use meta::Meta;

/// An object that was read.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    Namespace(Meta),
    Node(Meta),
    Service(core::Service),
    EndpointSlice(core::EndpointSlice),
    Pod(core::Pod),
    WorkloadEntry(entries::WorkloadEntry),
    ServiceEntry(entries::ServiceEntry),
    AuthorizationPolicy(security::AuthorizationPolicy),
    PeerAuthentication(security::PeerAuthentication),
    RequestAuthentication(security::RequestAuthentication),
    Gateway(gateway::Gateway),
    HttpRoute(HttpRoute),
    WorkloadGroup(WorkloadGroup),
    /// An object that is right and says nothing of the mesh by itself.
    Silent,
}

/// One object of a file, before it is read.
pub(crate) struct Item<'a> {
    kind: Kind,
    namespace: Arc<str>,
    name: Arc<str>,
    key: String,
    wrong_version: Option<Invalid>,
    pub(crate) at: Cursor<'a>,
}

/// What a document turned out to be.
pub(crate) enum Found<'a> {
    Item(Item<'a>),
    /// Of a kind that has nothing to say, or not yet: what is said of that, and whether who wrote it may miss a workload.
    Skipped(Invalid, bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Namespace,
    Node,
    Service,
    EndpointSlice,
    Pod,
    ServiceAccount,
    WorkloadEntry,
    WorkloadGroup,
    ServiceEntry,
    AuthorizationPolicy,
    PeerAuthentication,
    RequestAuthentication,
    Gateway,
    HttpRoute,
}

const SECURITY: &str = "security.istio.io";

impl Kind {
    /// The kind and the versions of its group that are read.
    fn find(group: &str, kind: &str) -> Option<(Self, &'static [&'static str])> {
        const V1: &[&str] = &["v1"];
        const SECURITY_VERSIONS: &[&str] = &["v1", "v1beta1"];
        const NETWORKING_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];
        Some(match (group, kind) {
            ("", "Namespace") => (Self::Namespace, V1),
            ("", "Node") => (Self::Node, V1),
            ("", "Service") => (Self::Service, V1),
            ("", "Pod") => (Self::Pod, V1),
            ("", "ServiceAccount") => (Self::ServiceAccount, V1),
            ("discovery.k8s.io", "EndpointSlice") => (Self::EndpointSlice, V1),
            ("networking.istio.io", "WorkloadEntry") => (Self::WorkloadEntry, NETWORKING_VERSIONS),
            ("networking.istio.io", "WorkloadGroup") => (Self::WorkloadGroup, NETWORKING_VERSIONS),
            ("networking.istio.io", "ServiceEntry") => (Self::ServiceEntry, NETWORKING_VERSIONS),
            (SECURITY, "AuthorizationPolicy") => (Self::AuthorizationPolicy, SECURITY_VERSIONS),
            (SECURITY, "PeerAuthentication") => (Self::PeerAuthentication, SECURITY_VERSIONS),
            (SECURITY, "RequestAuthentication") => (Self::RequestAuthentication, SECURITY_VERSIONS),
            ("gateway.networking.k8s.io", "Gateway") => (Self::Gateway, SECURITY_VERSIONS),
            ("gateway.networking.k8s.io", "HTTPRoute") => (Self::HttpRoute, SECURITY_VERSIONS),
            _ => return None,
        })
    }
}

/// Finds the objects of a document; fails when it cannot be told what they are.
pub(crate) fn find<'a>(document: &Cursor<'a>, found: &mut Vec<Found<'a>>) -> Result<()> {
    let mut fields = document.fields()?;
    let version_at = fields.need("apiVersion")?;
    let api_version = version_at.str()?;
    let kind = fields.need("kind")?.nonempty()?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if (group, &*kind) == ("", "List") {
        for item in fields.list("items", |at| Ok(at.clone()))? {
            find(&item, found)?;
        }
        return Ok(());
    }
    let Some((known, versions)) = Kind::find(group, &kind) else {
        // Nobody can tell which policy a slip in its kind was meant to be, nor which it replaces.
        if group == SECURITY {
            return Err(document.invalid_below(
                "kind",
                format_args!(
                    "{kind} of {SECURITY} is not known, and passing it over could widen access; \
                     expected AuthorizationPolicy, PeerAuthentication or RequestAuthentication"
                ),
            ));
        }
        if Kind::find(SECURITY, &kind).is_some() {
            return Err(version_at.invalid(format_args!(
                "{kind} of {api_version:?} is not known, and passing it over could widen access; \
                 expected {SECURITY}/v1"
            )));
        }
        let message = format_args!("{kind} says nothing to the mesh: passed over");
        let what = document.invalid_below("kind", message);
        found.push(Found::Skipped(what, is_of_workloads(&kind)));
        return Ok(());
    };
    let wrong_version = (!versions.contains(&version)).then(|| {
        version_at.invalid(format_args!(
            "expected version {} of {kind}, found {version:?}",
            versions.join(" or ")
        ))
    });
    let mut metadata = fields.need("metadata")?.fields()?;
    let (namespace, name) = meta::names(&mut metadata, known.is_namespaced())?;
    found.push(Found::Item(Item {
        kind: known,
        key: format!("{kind} {namespace}/{name}"),
        namespace,
        name,
        wrong_version,
        at: document.clone(),
    }));
    Ok(())
}

/// Whether a kind that is not read has to do with workloads: it has Pods or a template of them, or is a slip of one that is read.
fn is_of_workloads(kind: &str) -> bool {
    const TEMPLATES: [&str; 11] = [
        "Pods",
        "PodList",
        "PodTemplate",
        "Rollout",
        "Deployment",
        "StatefulSet",
        "DaemonSet",
        "ReplicaSet",
        "ReplicationController",
        "Job",
        "CronJob",
    ];
    let mut meant = ["Pod", "WorkloadEntry"].into_iter();
    TEMPLATES.contains(&kind) || meant.any(|meant| schema::alike(kind, meant))
}

impl Kind {
    fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }

    /// Whether a field that is passed over could widen access.
    fn is_security(self) -> bool {
        matches!(
            self,
            Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication
        )
    }
}

impl Item<'_> {
    /// The name under which the last good version of the object is kept.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The fields that the kind does not have and that are passed over, and methods that no request has; fields of a
    /// kind that carries security are not, [`read`](Self::read) refuses them.
    pub(crate) fn passed_over(&self) -> Vec<Invalid> {
        match self.kind {
            Kind::AuthorizationPolicy => security::lower_case_methods(&self.at),
            kind if kind.is_security() => Vec::new(),
            _ => self.unknown(),
        }
    }

    fn unknown(&self) -> Vec<Invalid> {
        let mut unknown = Vec::new();
        schema::unknown(&self.at, self.kind, &mut |invalid| unknown.push(invalid));
        unknown
    }

    /// Reads the object.
    pub(crate) fn read(&self, settings: &Settings) -> Result<Object> {
        if let Some(invalid) = &self.wrong_version {
            return Err(invalid.clone());
        }
        if self.kind.is_security()
            && let Some(unknown) = self.unknown().into_iter().next()
        {
            return Err(unknown);
        }
        let mut fields = self.at.fields()?;
        let meta = self.meta()?;
        Ok(match self.kind {
            Kind::Namespace => Object::Namespace(meta),
            Kind::Node => Object::Node(meta),
            Kind::Service => Object::Service(core::Service::read(meta, &mut fields)?),
            Kind::EndpointSlice => {
                Object::EndpointSlice(core::EndpointSlice::read(meta, &mut fields)?)
            }
            Kind::Pod => Object::Pod(core::Pod::read(meta, &mut fields)?),
            Kind::ServiceAccount => Object::Silent,
            Kind::WorkloadEntry => {
                Object::WorkloadEntry(entries::WorkloadEntry::read(meta, &mut fields)?)
            }
            Kind::WorkloadGroup => Object::WorkloadGroup(entries::read_group(&meta, &mut fields)?),
            Kind::ServiceEntry => {
                Object::ServiceEntry(entries::ServiceEntry::read(meta, &mut fields)?)
            }
            Kind::AuthorizationPolicy => Object::AuthorizationPolicy(
                security::AuthorizationPolicy::read(meta, &self.at, &mut fields, settings)?,
            ),
            Kind::PeerAuthentication => {
                Object::PeerAuthentication(security::PeerAuthentication::read(meta, &mut fields)?)
            }
            Kind::RequestAuthentication => Object::RequestAuthentication(
                security::RequestAuthentication::read(meta, &mut fields, settings)?,
            ),
            Kind::Gateway => Object::Gateway(gateway::Gateway::read(meta, &self.at, &mut fields)?),
            Kind::HttpRoute => Object::HttpRoute(route::read(&meta, &mut fields)?),
        })
    }

    /// What stands for an object that carries security, could not be read, and has no last good
    /// version: the narrowest thing that it could have been. Its metadata counts as far as it can be
    /// read, of which [`find`] has made sure for the names. Of a Namespace, that is all there is. `why` says
    /// where and why it could not be read.
    pub(crate) fn closed(&self, settings: &Settings, why: &str) -> Option<Object> {
        let meta = self.meta().unwrap_or_else(|_| {
            let mut meta = self.partial_meta().unwrap_or_default();
            meta.namespace = Arc::clone(&self.namespace);
            meta.name = Arc::clone(&self.name);
            meta
        });
        let mut fields = self.at.fields().ok()?;
        match self.kind {
            Kind::Namespace => Some(Object::Namespace(meta)),
            Kind::AuthorizationPolicy => {
                security::AuthorizationPolicy::closed(meta, &mut fields, settings, why)
                    .map(Object::AuthorizationPolicy)
            }
            Kind::PeerAuthentication => Some(Object::PeerAuthentication(
                security::PeerAuthentication::closed(meta, &mut fields),
            )),
            Kind::RequestAuthentication => Some(Object::RequestAuthentication(
                security::RequestAuthentication::closed(meta, &mut fields, settings),
            )),
            _ => None,
        }
    }

    /// What [`closed`](Self::closed) does.
    pub(crate) fn until_right(&self) -> &'static str {
        match self.kind {
            Kind::AuthorizationPolicy => "all that it selects is denied",
            Kind::PeerAuthentication => "what it selects is STRICT",
            Kind::RequestAuthentication => "what it selects refuses tokens",
            _ => "what of it can be read counts",
        }
    }

    fn meta(&self) -> Result<Meta> {
        let metadata = self.at.fields()?.need("metadata")?;
        Meta::read(&metadata, self.kind.is_namespaced())
    }

    fn partial_meta(&self) -> Result<Meta> {
        Meta::read_partly(&self.at.fields()?.need("metadata")?)
    }
}
