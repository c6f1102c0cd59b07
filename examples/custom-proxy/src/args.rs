//! The command line.

use std::path::PathBuf;

use clap::Parser;

/// A proxy of your own in the mesh: serves until Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Also start a backend, call it through the proxy, and exit.
    #[arg(long)]
    pub(crate) once: bool,

    /// The manifests to read and watch.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/mesh.yaml"))]
    pub(crate) file: PathBuf,

    /// The folder of the development CA: created when absent, shared by processes.
    #[arg(long, default_value = ".mesh-dev")]
    pub(crate) ca_dir: PathBuf,
}

pub(crate) fn parse() -> Args {
    Args::parse()
}
