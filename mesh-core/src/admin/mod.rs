//! What runs, told to people and their tools: `mesh.admin()` is a small service to be bound to loopback.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page that lists these |
//! | `/config_dump` | the mesh as this process sees it: JSON with the keys of ztunnel's, which `istioctl ztunnel-config` reads |
//! | `/explain` | whether a connection or a request would be allowed, where it would go, and why |
//! | `/healthz/ready` | 200 `ready`, or 500 with what is pending |
//! | `/metrics`, `/stats/prometheus` | the metrics as OpenMetrics text |
//!
//! All are read by GET or HEAD; there is nothing here that changes anything. Private keys and the
//! values of headers that carry credentials are never told.
//!
//! # `/explain`
//!
//! Inbound: `?to=<port or ip:port>&from=<SPIFFE id or plaintext>`, with `source_ip=<address>` where a
//! policy asks for it, and `method=`, `path=`, `host=` and any number of `header=<name>:<value>` for
//! a request. Outbound: `?connect=<host>:<port>`. Both: `workload=<namespace>/<name>` where there are
//! several in the process, and `format=json` (or `Accept: application/json`) for tools.
//!
//! ```text
//! $ curl '127.0.0.1:15000/explain?workload=default/details-v1&to=9080&from=plaintext&path=/details/0'
//! DENIED: plaintext to 127.0.1.2:9080 of default/details-v1: allow policies exist, but none allowed
//! …
//! ```
//!
//! # Who may ask
//!
//! Anybody who can connect: the service has no authentication. Bind it to loopback only, as Istio
//! does (`127.0.0.1:15000`), or put it behind your own; [`Admin::readiness_only`] and [`Admin::metrics_only`] are
//! for ports that others can reach. Bound to loopback it answers only requests
//! whose `Host` is an address or `localhost`, so that no page in a browser can read it by pointing a
//! name of its own here.

mod dump;
mod explain;
mod hosts;
mod query;
mod server;
mod service;

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use service::{AdminBody, AdminFuture};

use crate::mesh::MeshInner;
use crate::node::NodeInner;
use crate::{Mesh, Node, WorkloadId};

/// Answers for a node or one of its workloads: see the [module](self).
///
/// It is a tower `Service` for requests with any body, which it does not read, and never fails:
/// [`serve`](Self::serve) it, or mount it in a router of yours. It does not keep the node alive; once
/// that is gone the answer is 503.
///
/// # Examples
///
/// ```no_run
/// # async fn example(mesh: mesh_core::Mesh) -> Result<(), Box<dyn std::error::Error>> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:15000").await?;
/// tokio::spawn(mesh.admin().serve(listener));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Admin {
    node: Weak<NodeInner>,
    /// What questions are about that name no workload.
    workload: Option<WorkloadId>,
    settings: Settings,
    pages: Pages,
    /// Names are checked only where [`Admin::serve`] knows that the socket is a loopback one.
    only_local_names: bool,
}

/// Which pages there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    All,
    Readiness,
    Metrics,
}

#[derive(Debug, Clone, Copy)]
struct Settings {
    header_timeout: Duration,
    connection_timeout: Duration,
    max_connections: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(2),
            connection_timeout: Duration::from_secs(60),
            max_connections: 16,
        }
    }
}

impl Node {
    /// Answers questions about the node and all its workloads: see [`admin`](crate::admin).
    pub fn admin(&self) -> Admin {
        Admin {
            node: Arc::downgrade(&self.inner),
            workload: None,
            settings: Settings::default(),
            pages: Pages::All,
            only_local_names: false,
        }
    }
}

impl Mesh {
    /// As [`Node::admin`]; `/explain` is about this workload unless it is asked about another.
    pub fn admin(&self) -> Admin {
        Admin {
            workload: Some(self.workload().clone()),
            ..self.node().admin()
        }
    }
}

impl Admin {
    /// Answers `/healthz/ready` and nothing else: for a port that others can reach, as kubelet must; Istio's is
    /// 15021.
    #[must_use]
    pub fn readiness_only(mut self) -> Self {
        self.pages = Pages::Readiness;
        self
    }

    /// Answers `/metrics` and `/stats/prometheus` and nothing else: for a port that others can reach, as a
    /// scraper must; Istio's is 15020.
    #[must_use]
    pub fn metrics_only(mut self) -> Self {
        self.pages = Pages::Metrics;
        self
    }
}

/// Settings of [`serve`](Self::serve).
impl Admin {
    /// Sets how long a client may take to send a request's head, and to send another on the same
    /// connection: 2 s unless set, as in ztunnel.
    #[must_use]
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.settings.header_timeout = timeout;
        self
    }

    /// Sets how long a connection may live, whatever it does: 60 s unless set, within which the
    /// slowest reader has the largest dump, and after which one that reads nothing is rid of.
    #[must_use]
    pub fn connection_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connection_timeout = timeout;
        self
    }

    /// Sets how many connections are served at once, at least 1: 16 unless set. More wait in the
    /// socket's queue. It bounds how many dumps are in memory.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.settings.max_connections = connections.max(1);
        self
    }
}

/// The workload that a question is about, and the node it is on.
#[derive(Clone)]
struct Subject {
    node: Arc<NodeInner>,
    mesh: Arc<MeshInner>,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("workload", &self.workload)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
