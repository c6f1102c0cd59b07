//! The services with their meshes: what a cluster would be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use mesh_core::admin::Admin;
use mesh_core::layers::PeerIdentity;
use mesh_core::{Builder, Mesh};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use crate::source::Source;
use crate::{BoxError, config, services};

/// Name, service account and port of each service.
const SERVICES: [(&str, &str); 6] = [
    ("productpage-v1", "bookinfo-productpage"),
    ("details-v1", "bookinfo-details"),
    ("reviews-v1", "bookinfo-reviews"),
    ("reviews-v2", "bookinfo-reviews"),
    ("reviews-v3", "bookinfo-reviews"),
    ("ratings-v1", "bookinfo-ratings"),
];

const PORT: u16 = 9080;

/// Where the services accept tunnels.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ports {
    /// On the port of their records.
    AsConfigured,
    /// On another one: something stands before them.
    Hbone(u16),
}

impl Ports {
    pub(crate) fn set<W, C, I>(self, builder: Builder<W, C, I>) -> Builder<W, C, I> {
        match self {
            Self::AsConfigured => builder,
            // The scenes choose endpoints by the same random numbers at each run.
            Self::Hbone(port) => builder.hbone_port(port).rng(1),
        }
    }
}

/// A request that one service answered to another.
#[derive(Debug, Clone)]
pub(crate) struct Hop {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) request: String,
    pub(crate) status: u16,
}

impl Hop {
    fn line(&self) -> String {
        format!(
            "  {} -> {}  {}  {}",
            self.from, self.to, self.request, self.status
        )
    }
}

#[derive(Debug)]
pub(crate) struct Cluster {
    source: Source,
    ports: Ports,
    meshes: BTreeMap<&'static str, Mesh>,
    hops: broadcast::Sender<Hop>,
    servers: Vec<JoinHandle<()>>,
    page: Option<SocketAddr>,
}

impl Cluster {
    /// Starts all services.
    pub(crate) async fn start(source: Source, ports: Ports) -> Result<Self, BoxError> {
        let mut cluster = Self::new(source, ports);
        for (name, account) in SERVICES {
            cluster.add(name, account).await?;
        }
        Ok(cluster)
    }

    /// Starts one service.
    pub(crate) async fn start_one(source: Source, service: &str) -> Result<Self, BoxError> {
        let (name, account) = SERVICES
            .into_iter()
            .find(|(name, _)| *name == service)
            .ok_or_else(|| {
                let names: Vec<_> = SERVICES.iter().map(|(name, _)| *name).collect();
                format!("serve {service}: expected one of {}", names.join(", "))
            })?;
        let mut cluster = Self::new(source, Ports::AsConfigured);
        cluster.add(name, account).await?;
        Ok(cluster)
    }

    fn new(source: Source, ports: Ports) -> Self {
        Self {
            source,
            ports,
            meshes: BTreeMap::new(),
            hops: broadcast::Sender::new(4096),
            servers: Vec::new(),
            page: None,
        }
    }

    /// Adds a service: this is all that makes an axum router a member of the mesh.
    async fn add(&mut self, name: &'static str, account: &str) -> Result<(), BoxError> {
        let mesh = self.source.workload(name, account, self.ports)?;
        let client = mesh.http_client();
        let router = match name {
            "productpage-v1" => services::productpage(client),
            "details-v1" => services::details(),
            "ratings-v1" => services::ratings(),
            "reviews-v1" => services::reviews(client, "reviews-v1", None),
            "reviews-v2" => services::reviews(client, "reviews-v2", Some("black")),
            _ => services::reviews(client, "reviews-v3", Some("red")),
        };
        let router = self.watched(&mesh, router);
        let http = mesh.listen_http(PORT).await?;
        if name == "productpage-v1" {
            self.page = Some(http.listener.local_addr());
        }
        let draining = mesh.draining();
        self.servers.push(tokio::spawn(async move {
            let server = axum::serve(http.listener, http.layer.wrap(router));
            if let Err(error) = server.with_graceful_shutdown(draining).await {
                config::say(&format!("{name}: {error}"));
            }
        }));
        self.meshes.insert(name, mesh);
        Ok(())
    }

    /// Reports each request with the identities of both ends.
    fn watched(&self, mesh: &Mesh, router: Router) -> Router {
        let state = (self.hops.clone(), mesh.identity().to_string());
        router.layer(middleware::from_fn_with_state(state, report))
    }

    /// A further workload, which serves nothing.
    pub(crate) fn caller(&mut self, name: &str, account: &str) -> Result<Mesh, BoxError> {
        self.source.workload(name, account, self.ports)
    }

    /// A workload that serves nothing and has no tunnels yet.
    pub(crate) fn another(&self, name: &str, account: &str) -> Result<Mesh, BoxError> {
        self.source.another(name, account)
    }

    /// What is wrong with the manifests.
    pub(crate) fn problems(&self) -> Vec<String> {
        self.source.problems()
    }

    /// Answers questions about all services of the page's node: on files, about all.
    pub(crate) fn admin(&self) -> Admin {
        self.mesh("productpage-v1").node().admin()
    }

    pub(crate) fn mesh(&self, name: &str) -> &Mesh {
        &self.meshes[name]
    }

    /// Where a browser finds the page, if it is served here.
    pub(crate) fn page(&self) -> Option<String> {
        self.page.map(|page| format!("http://{page}/productpage"))
    }

    pub(crate) fn hops(&self) -> broadcast::Receiver<Hop> {
        self.hops.subscribe()
    }

    /// Prints hops as they happen.
    pub(crate) fn print_hops(&self) {
        let mut hops = self.hops();
        tokio::spawn(async move {
            loop {
                match hops.recv().await {
                    Ok(hop) => config::say(&hop.line()),
                    Err(broadcast::error::RecvError::Lagged(missed)) => {
                        config::say(&format!("  ({missed} hops not shown)"));
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        });
    }

    /// Drains all services.
    pub(crate) async fn shutdown(self) {
        for mesh in self.meshes.values() {
            mesh.shutdown(Duration::from_secs(5)).await;
        }
        for server in self.servers {
            let _ = server.await;
        }
    }
}

async fn report(
    State((hops, to)): State<(broadcast::Sender<Hop>, String)>,
    request: Request,
    next: Next,
) -> Response {
    let peer = request
        .extensions()
        .get::<PeerIdentity>()
        .and_then(PeerIdentity::identity);
    let from = peer.map_or_else(|| "plaintext".to_owned(), ToString::to_string);
    let line = format!("{} {}", request.method(), request.uri().path());
    let response = next.run(request).await;
    let hop = Hop {
        from,
        to,
        request: line,
        status: response.status().as_u16(),
    };
    // Nobody may be listening.
    let _ = hops.send(hop);
    response
}
