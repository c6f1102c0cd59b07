//! The mesh without a control plane: files of manifests, or of ztunnel's own form, as a source.
//!
//! A file holds either what people already give to `kubectl` or what istio/ztunnel reads locally; a
//! folder may mix them. A [`Watcher`] finds out when files changed, a [`Loader`] turns their contents
//! into a [`Batch`](crate::model::Batch) of what changed. Neither starts a task: whoever drives them says when. Of clocks
//! the watcher's first look alone reads the machine's, which files' times are of.
//!
//! # Kubernetes manifests
//!
//! Any number of documents, `List` included: Namespace, Node, Service, EndpointSlice, Pod,
//! ServiceAccount; WorkloadEntry, WorkloadGroup, ServiceEntry; AuthorizationPolicy,
//! PeerAuthentication, RequestAuthentication; Gateway and HTTPRoute of the Gateway API. They become what istiod makes of them for an ambient
//! mesh, with these differences:
//!
//! * AuthorizationPolicies stay whole; parts that need an HTTP request are not taken out.
//! * A Pod is in the mesh (takes HBONE) when its namespace or itself has the label
//!   `istio.io/dataplane-mode: ambient`; istiod waits until istio-cni has annotated it.
//! * The annotation `hbone-port: "15018"` of a Pod or WorkloadEntry says where it takes HBONE, when several
//!   share a machine. It implies that the workload takes HBONE itself, as the label
//!   `networking.istio.io/tunnel: http` does.
//! * A waypoint that a label names and no Gateway makes stays in the way, so that callers fail; istiod
//!   lets them go around it.
//! * `exportTo: ["."]` of a ServiceEntry makes it visible in its namespace alone.
//! * A selector chooses by the labels that are there; istiod lets every selector choose an endpoint
//!   of a ServiceEntry that has no labels at all.
//! * A container's port without `protocol` is TCP, as Kubernetes fills it in.
//!
//! Other kinds have nothing to say, or not yet, and are named once. With a kind of `security.istio.io`
//! that is not known, or one of its kinds in another group, the whole file is refused: nobody can tell which policy
//! the slip was meant to be.
//!
//! # ztunnel's form
//!
//! `workloads`, `services` and `policies` with ztunnel's keys, unknown ones refused; a workload may
//! have `hbonePort`. String matches are mappings of one key (`{Exact: text}`) or, as ztunnel's own parser wants them, tags
//! (`!Exact text`). Where ztunnel would leave parts of an identity empty, `trustDomain` and `serviceAccount` default to
//! the trust domain of the [`Settings`] and `default`.
//!
//! # What goes wrong
//!
//! A file that does not parse, or holds a document that cannot be told apart, is refused whole; an
//! object that is not right is refused alone. Either way the last good version stays, and a [`Problem`]
//! names file, line and field. Where there is no last good version of an object that carries security, the
//! narrowest thing that it could mean stands for it, as the problem says: what an AuthorizationPolicy selects is denied, what a
//! PeerAuthentication selects is STRICT, and what a RequestAuthentication selects refuses tokens.
//! Of a Namespace, the labels that can be read count.
//!
//! A file that held objects and has become empty is refused as well: a file that is being written, or
//! could not be, looks like that. Removing the file is how to say that its objects are gone.
//!
//! Kubernetes' objects have many fields that say nothing to a mesh. One that the kind does not have at a place
//! that is read (`podIp` for `podIP`) is named as a [warning](Loaded::warnings), and the object holds without it; in
//! the kinds of `security.istio.io`, where that could widen access, and in the `spec` of WorkloadEntry,
//! WorkloadGroup, ServiceEntry and HTTPRoute it is refused.
//!
//! A label `istio.io/use-waypoint` that names no Gateway is a problem too, and holds: callers are sent
//! to the waypoint that would be there, and fail, rather than around it.
//!
//! # Examples
//!
//! ```
//! use mesh_xds::file::{Loader, Settings};
//!
//! let mut loader = Loader::new(Settings::default());
//! let pod = "
//! apiVersion: v1
//! kind: Pod
//! metadata:
//!   name: ratings-v1
//!   labels: {app: ratings, networking.istio.io/tunnel: http}
//! spec: {serviceAccountName: bookinfo-ratings}
//! status: {podIP: 127.0.0.4}
//! ";
//! let loaded = loader.load(vec![("mesh.yaml".into(), pod.into())]);
//! assert!(loaded.problems().is_empty());
//! assert_eq!(loaded.batch().updates().len(), 1);
//!
//! // A broken edit changes nothing, and says where.
//! let loaded = loader.load(vec![("mesh.yaml".into(), pod.replace("127.0.0.4", "127.0.0").into())]);
//! assert!(loaded.batch().is_empty());
//! assert_eq!(
//!     loaded.problems()[0].to_string(),
//!     "mesh.yaml:8: status.podIP: expected an IP address, found \"127.0.0\""
//! );
//! ```

pub(crate) mod cursor;
mod loader;
pub(crate) mod problem;
pub(crate) mod settings;
pub(crate) mod tree;
mod watcher;
mod ztunnel;

pub use loader::{Loaded, Loader};
pub use problem::Problem;
pub use settings::Settings;
pub use watcher::{Change, Limits, Watcher};
