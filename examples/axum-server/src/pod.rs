//! The server as a Pod of a stock Istio.

use std::net::SocketAddr;
use std::pin::pin;

use axum::Router;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh, config::Xds};
use tokio::net::TcpListener;
use tokio::runtime::{self, Handle, Runtime};

use crate::config::Pod;
use crate::{BoxError, PORT, print, serve, told_to_end};

/// Istio's ports: whoever scrapes or probes a Pod looks there.
const METRICS: u16 = 15020;
const READY: u16 = 15021;
const ADMIN: u16 = 15000;

pub(crate) async fn run(pod: Pod, router: Router) -> Result<(), BoxError> {
    let control = control_runtime()?;
    let ended = join(pod, router, control.handle().clone()).await;
    // Dropping it would wait.
    control.shutdown_background();
    ended
}

/// What istiod says is taken in by one thread, so that a whole push in a large mesh keeps no request waiting.
fn control_runtime() -> std::io::Result<Runtime> {
    runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("mesh-control")
        .enable_all()
        .build()
}

/// The thread gives way to all others from now on.
fn give_way(control: &Handle) {
    #[cfg(target_os = "linux")] // where a thread has a nice value of its own
    control.spawn(async { rustix::process::setpriority_process(None, 19) });
    #[cfg(not(target_os = "linux"))]
    let _ = control;
}

async fn join(pod: Pod, router: Router, control: Handle) -> Result<(), BoxError> {
    let mut xds = Xds::istiod(pod.control_plane.clone()).addresses(pod.addresses.clone());
    if let Some(cluster) = &pod.cluster {
        xds = xds.cluster_id(cluster.as_str());
    }
    let mut control_plane = pod.control_plane.clone();
    if let Some(cluster) = &pod.cluster {
        control_plane = control_plane.cluster_id(cluster.as_str());
    }
    let mut builder = Mesh::builder()
        .control_runtime(control.clone())
        .workload(pod.namespace, pod.name, pod.service_account)
        .config(xds)
        .identity(Istiod::new(control_plane));
    if let Some(trust_domain) = pod.trust_domain {
        builder = builder.trust_domain(trust_domain);
    }
    // Before anything is waited for: the first process of a container is not ended by a signal that it does not handle.
    let mut told = pin!(told_to_end()?);
    let mesh = builder.build()?;

    // Before the mesh is ready: kubelet asks whether it is. All questions are answered to the Pod itself alone.
    let own = pod.addresses[0];
    let mut pages = vec![
        (SocketAddr::new(own, READY), mesh.admin().readiness_only()),
        (SocketAddr::new(own, METRICS), mesh.admin().metrics_only()),
    ];
    if pod.admin {
        pages.push((SocketAddr::from(([127, 0, 0, 1], ADMIN)), mesh.admin()));
    }
    for (address, page) in pages {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| format!("{address}: {error}"))?;
        tokio::spawn(page.serve(listener));
    }
    let http = tokio::select! {
        http = mesh.listen_http(PORT) => http.map_err(|error| hint(&error))?,
        () = &mut told => return Ok(()),
    };
    // Not before: until then all wait for what it does.
    give_way(&control);
    print(&format!("hello is up on {own}:{PORT}\n"));
    serve(&mesh, http, router, told).await
}

/// What people trip over in a cluster.
fn hint(error: &mesh_core::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    let text = causes.join(": ");
    match error.kind() {
        ErrorKind::Bind => format!(
            "{text}; has the node's ztunnel taken the Pod's port 15008? The Pod needs the label istio.io/dataplane-mode: none"
        ),
        _ => text,
    }
}
