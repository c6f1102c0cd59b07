//! A member of the mesh, from a folder that has its files.

use std::fs;
use std::mem;
use std::net::SocketAddr;
use std::path::Path;

use mesh_core::{ControlPlane, Mesh, config, identity};
use mesh_hbone::tls::{Bundle, Credentials, Options, Provider};
use rustix::process::setpriority_process;
use tokio::runtime::{self, Handle};

use crate::BoxError;
use crate::certificates::CONTROL;

/// The workload `default/<name>`, with its name as its service account.
pub(crate) fn join(folder: &Path, name: &str) -> Result<Mesh, BoxError> {
    let mesh = Mesh::builder()
        .workload("default", name, name)
        .config(config::File::watch(folder.join("mesh.yaml")))
        .identity(files(folder, name))
        .build()?;
    Ok(mesh)
}

/// The same, with configuration and certificate from the control plane, as a ztunnel has them.
pub(crate) fn join_control(
    folder: &Path,
    name: &str,
    control: SocketAddr,
    own: SocketAddr,
) -> Result<Mesh, BoxError> {
    let token = folder.join(format!("{name}.token"));
    fs::write(&token, name)?;
    let control_plane = ControlPlane::new(format!("{CONTROL}:{}", control.port()))
        .at(control.ip())
        .root_cert_file(folder.join("root.pem"))
        .token_file(token);
    let runtime = control_runtime()?;
    let mesh = Mesh::builder()
        .control_runtime(runtime.clone())
        .workload("default", name, name)
        .config(config::Xds::istiod(control_plane.clone()).addresses([own.ip()]))
        .identity(identity::Istiod::new(control_plane))
        .build()?;
    let started = mesh.clone();
    runtime.spawn(async move {
        // Of the one thread; where it cannot be, the figures are others, and nothing is wrong.
        if started.ready().await.is_ok() {
            let _ = setpriority_process(None, 19);
        }
    });
    Ok(mesh)
}

/// One thread, of the lowest priority when the mesh is ready, for as long as the process lives: what `control_runtime` advises.
fn control_runtime() -> Result<Handle, BoxError> {
    let runtime = runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    mem::forget(runtime);
    Ok(handle)
}

pub(crate) fn files(folder: &Path, name: &str) -> identity::Files {
    identity::Files::new(
        folder.join(format!("{name}.crt")),
        folder.join(format!("{name}.key")),
        folder.join("root.pem"),
    )
}

/// What a bare HBONE client shows.
pub(crate) fn credentials(folder: &Path, name: &str) -> Result<Credentials, BoxError> {
    let read = |name: String| fs::read(folder.join(name));
    let bundle = Bundle::from_pem(
        &read(format!("{name}.crt"))?,
        &read(format!("{name}.key"))?,
        &read("root.pem".into())?,
        b"",
    )?;
    // It meets one server, of whose certificates a soak makes many.
    let options = Options::default().remembered_certificates(16);
    let credentials = Credentials::new(Provider::aws_lc_rs(), bundle, options)?;
    Ok(credentials)
}
