//! The checked-in protobuf code is what the `.proto` files say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use prost_build::Config;
use protox::Compiler;
use protox::prost_reflect::DescriptorPool;

/// Types that are Rust's own; the others of `google.protobuf` are generated too, for ours hold bytes
/// without copying them.
const NATIVE: [(&str, &str); 3] = [
    (".google.protobuf.BoolValue", "bool"),
    (".google.protobuf.UInt32Value", "u32"),
    (".google.protobuf.Empty", "()"),
];

fn below(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

fn protos(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            protos(&path, found);
        } else {
            found.insert(path);
        }
    }
}

/// Every `.proto` file, compiled.
pub(crate) fn descriptors() -> DescriptorPool {
    let mut files = BTreeSet::new();
    protos(&below("proto"), &mut files);
    assert!(files.len() > 10, "{files:?}");
    let mut compiler = Compiler::new([below("proto")]).expect("the folder `proto`");
    compiler.include_imports(true);
    compiler.open_files(files).expect("valid .proto files");
    compiler.descriptor_pool()
}

fn generate(to: &Path) {
    let mut config = Config::new();
    config
        .out_dir(to)
        .include_file("mod.rs")
        .compile_well_known_types()
        .bytes(["."])
        .btree_map(["."]);
    for (name, native) in NATIVE {
        config.extern_path(name, native);
    }
    let files = descriptors().file_descriptor_protos().cloned().collect();
    let files = prost_reflect::prost_types::FileDescriptorSet { file: files };
    tonic_prost_build::configure()
        .out_dir(to)
        .client_mod_attribute(".", "#[cfg(feature = \"client\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"server\")]")
        .compile_fds_with_config(files, config)
        .expect("code");
}

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| {
            let name = entry.expect("an entry").file_name();
            name.to_string_lossy().into_owned()
        })
        .collect()
}

/// What is stale is written anew, so that the second run passes.
#[test]
fn checked_in_code_is_current() {
    let folder = tempfile::tempdir().expect("a folder");
    generate(folder.path());
    let checked_in = below("src/proto/generated");
    let mut stale = Vec::new();
    for name in names(folder.path()) {
        let text = fs::read_to_string(folder.path().join(&name)).expect("code");
        if fs::read_to_string(checked_in.join(&name)).ok().as_ref() != Some(&text) {
            fs::write(checked_in.join(&name), text).expect("the folder is ours");
            stale.push(name);
        }
    }
    for name in names(&checked_in).difference(&names(folder.path())) {
        fs::remove_file(checked_in.join(name)).expect("the folder is ours");
        stale.push(name.clone());
    }
    assert!(
        stale.is_empty(),
        "src/proto/generated was stale and has been written; commit it: {stale:?}"
    );
}
