//! A member of the mesh, from a folder that has its files.

use std::path::Path;

use mesh_core::{Mesh, config, identity};

use crate::BoxError;

/// The workload `default/<name>`, with its name as its service account.
pub(crate) fn join(folder: &Path, name: &str) -> Result<Mesh, BoxError> {
    let path = |file: &str| folder.join(file);
    let mesh = Mesh::builder()
        .workload("default", name, name)
        .config(config::File::watch(path("mesh.yaml")))
        .identity(identity::Files::new(
            path(&format!("{name}.crt")),
            path(&format!("{name}.key")),
            path("root.pem"),
        ))
        .build()?;
    Ok(mesh)
}
