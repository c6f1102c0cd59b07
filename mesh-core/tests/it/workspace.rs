//! What the workspace may depend on, and who on whom.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::require;

/// Every licence that a dependency has us accept; one that nobody needs any more has to go.
const LICENSES: [&str; 6] = [
    "Apache-2.0",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that only some members may depend on, and which.
const WRAPPERS: [(&str, &[&str]); 5] = [
    // rustls stays behind `mesh_hbone::tls`.
    ("rustls", &["mesh-hbone"]),
    ("tokio-rustls", &[]),
    // mesh-core reads its error codes where it decides whether a retry is safe.
    ("h2", &["mesh-hbone", "mesh-core"]),
    ("prometheus-client", &["mesh-core"]),
    ("serde-saphyr", &["mesh-xds"]),
];

/// How many crates an application gets with `mesh-core` and its default features.
const MAX_CRATES: usize = 120;

pub(crate) fn root() -> PathBuf {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_root
        .parent()
        .expect("the crate is in a workspace")
        .to_owned()
}

fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("UTF-8"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn cargo(arguments: &[&str]) -> Result<String, String> {
    run(env!("CARGO"), arguments)
}

/// `cargo metadata` for this platform with all features.
fn metadata() -> &'static Value {
    static METADATA: OnceLock<Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        let versions = run("rustc", &["-vV"]).expect("rustc -vV");
        let host = versions
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .expect("a host");
        let common = [
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            host,
        ];
        let with = |more: &str| cargo(&[&common[..], &[more]].concat());
        let text = with("--all-features").unwrap_or_else(|error| {
            // Whoever is offline has what the default features need, having built them.
            require::skip("workspace: optional dependencies", &error);
            with("--offline").expect("cargo metadata --offline")
        });
        serde_json::from_str(&text).expect("JSON")
    })
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key]
        .as_array()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key]
        .as_str()
        .unwrap_or_else(|| panic!("{key}: {value}"))
}

fn members() -> Vec<&'static Value> {
    let metadata = metadata();
    let ids: BTreeSet<&str> = list(metadata, "workspace_members")
        .iter()
        .map(|id| id.as_str().expect("an id"))
        .collect();
    list(metadata, "packages")
        .iter()
        .filter(|package| ids.contains(text(package, "id")))
        .collect()
}

fn is_library(member: &Value) -> bool {
    text(member, "name").starts_with("mesh-") && text(member, "name") != "mesh-benches"
}

/// What a member names in its manifest: name and kind, `normal` for neither dev nor build.
fn dependencies(member: &Value) -> Vec<(&str, &str)> {
    list(member, "dependencies")
        .iter()
        .map(|dependency| {
            (
                text(dependency, "name"),
                dependency["kind"].as_str().unwrap_or("normal"),
            )
        })
        .collect()
}

/// What a member brings with it, by any number of steps, tests left out.
fn closure(name: &str) -> BTreeSet<&'static str> {
    let metadata = metadata();
    let names: BTreeMap<&str, &str> = list(metadata, "packages")
        .iter()
        .map(|package| (text(package, "id"), text(package, "name")))
        .collect();
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .iter()
        .map(|node| (text(node, "id"), node))
        .collect();
    let start = names.iter().find(|(_, n)| **n == name).expect("a member").0;
    let mut found = BTreeSet::new();
    let mut open = vec![*start];
    while let Some(id) = open.pop() {
        for dependency in list(nodes[id], "deps") {
            let normal = list(dependency, "dep_kinds")
                .iter()
                .any(|kind| kind["kind"].is_null());
            let id = text(dependency, "pkg");
            if normal && found.insert(names[id]) {
                open.push(id);
            }
        }
    }
    found
}

#[test]
fn authorization_is_pure() {
    let closure = closure("mesh-authz");
    assert!(
        closure.contains("regex"),
        "the closure is not one: {closure:?}"
    );
    for forbidden in [
        "tokio", "rustls", "prost", "hyper", "h2", "socket2", "tracing",
    ] {
        assert!(
            !closure.contains(forbidden),
            "mesh-authz reaches {forbidden}"
        );
    }
}

#[test]
fn tunnels_and_the_model_do_not_know_each_other() {
    for (one, other) in [("mesh-hbone", "mesh-xds"), ("mesh-xds", "mesh-hbone")] {
        let member = members()
            .into_iter()
            .find(|m| text(m, "name") == one)
            .expect(one);
        for (dependency, kind) in dependencies(member) {
            assert_ne!(
                dependency, other,
                "{one} has a {kind} dependency on {other}"
            );
            assert_ne!(
                dependency, "mesh-core",
                "{one} has a {kind} dependency on mesh-core"
            );
        }
        assert!(!closure(one).contains(other), "{one} reaches {other}");
    }
}

#[test]
fn foreign_crates_stay_behind_their_wrappers() {
    for (name, allowed) in WRAPPERS {
        for member in members() {
            let member_name = text(member, "name");
            let depends = dependencies(member).contains(&(name, "normal"));
            let may = allowed.contains(&member_name) || !is_library(member);
            assert!(!depends || may, "{member_name} must not depend on {name}");
        }
    }
}

#[test]
fn libraries_have_typed_errors() {
    for member in members().into_iter().filter(|member| is_library(member)) {
        for name in ["anyhow", "eyre", "color-eyre"] {
            let depends = dependencies(member).contains(&(name, "normal"));
            assert!(
                !depends,
                "{} must not depend on {name}",
                text(member, "name")
            );
        }
    }
}

#[test]
fn nothing_can_be_published_by_accident() {
    let members = members();
    assert!(members.len() >= 4);
    for member in members {
        let name = text(member, "name");
        assert_eq!(
            member["publish"],
            Value::Array(Vec::new()),
            "{name}: publish = false is missing"
        );
        assert_eq!(text(member, "license"), "Apache-2.0", "{name}");
        assert_eq!(text(member, "rust_version"), "1.89", "{name}");
    }
}

#[test]
fn licences_are_those_that_we_accept_and_no_more() {
    let mut needed: BTreeSet<&str> = BTreeSet::new();
    for package in list(metadata(), "packages") {
        let name = text(package, "name");
        let expression = text(package, "license");
        assert!(
            Licence::satisfied(expression, &LICENSES),
            "{name}: {expression}"
        );
        for licence in LICENSES {
            let others: Vec<&str> = LICENSES.into_iter().filter(|l| *l != licence).collect();
            if !Licence::satisfied(expression, &others) {
                needed.insert(licence);
            }
        }
    }
    assert_eq!(
        needed,
        BTreeSet::from(LICENSES),
        "a licence on the list is of no dependency"
    );
}

/// An SPDX expression, read as it is judged: `OR` binds weaker than `AND`, `/` is an old `OR`.
struct Licence<'a> {
    words: std::iter::Peekable<std::vec::IntoIter<String>>,
    allowed: &'a [&'a str],
}

impl<'a> Licence<'a> {
    fn satisfied(expression: &str, allowed: &'a [&'a str]) -> bool {
        let spaced = expression
            .replace('(', " ( ")
            .replace(')', " ) ")
            .replace('/', " OR ");
        let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
        let mut this = Self {
            words: words.into_iter().peekable(),
            allowed,
        };
        let result = this.any();
        assert_eq!(this.words.next(), None, "{expression}");
        result
    }

    fn accept(&mut self, word: &str) -> bool {
        self.words.next_if(|next| next == word).is_some()
    }

    fn any(&mut self) -> bool {
        let mut result = self.all();
        while self.accept("OR") {
            result |= self.all();
        }
        result
    }

    fn all(&mut self) -> bool {
        let mut result = self.one();
        while self.accept("AND") {
            result &= self.one();
        }
        result
    }

    fn one(&mut self) -> bool {
        if self.accept("(") {
            let result = self.any();
            assert!(self.accept(")"), "a closing parenthesis");
            return result;
        }
        let licence = self.words.next().expect("a licence");
        if self.accept("WITH") {
            // An exception only adds permissions.
            self.words.next().expect("an exception");
        }
        self.allowed.contains(&licence.as_str())
    }
}

#[test]
fn licence_expressions_are_understood() {
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND GPL-2.0", false),
        ("ISC AND (Apache-2.0 OR GPL-2.0)", true),
        ("Apache-2.0 WITH LLVM-exception", true),
    ] {
        assert_eq!(
            Licence::satisfied(expression, &LICENSES),
            expected,
            "{expression}"
        );
    }
}

#[test]
fn an_application_gets_few_crates() {
    let arguments = [
        "tree",
        "--locked",
        "-p",
        "mesh-core",
        "-e",
        "normal",
        "--prefix",
        "none",
        "--no-dedupe",
    ];
    let tree = cargo(&arguments).expect("cargo tree");
    let crates: BTreeSet<&str> = tree.lines().filter(|line| !line.is_empty()).collect();
    assert!(crates.len() > 50, "this is no tree: {tree}");
    assert!(
        crates.len() <= MAX_CRATES,
        "{} crates, at most {MAX_CRATES}",
        crates.len()
    );
}

#[test]
fn features_are_those_of_the_architecture() {
    let default = |name: &str| -> (BTreeSet<String>, BTreeSet<String>) {
        let member = members()
            .into_iter()
            .find(|m| text(m, "name") == name)
            .expect(name);
        let features = member["features"].as_object().expect("features");
        let default = features
            .get("default")
            .and_then(Value::as_array)
            .into_iter()
            .flatten();
        (
            default
                .map(|f| f.as_str().expect("a name").to_owned())
                .collect(),
            features.keys().cloned().collect(),
        )
    };
    let set =
        |names: &[&str]| -> BTreeSet<String> { names.iter().map(|n| (*n).to_owned()).collect() };

    let (core, all) = default("mesh-core");
    assert_eq!(
        core,
        set(&["aws-lc-rs", "file", "dev-ca", "http", "metrics", "admin"])
    );
    let off = set(&["ring", "istiod", "workload-api", "axum", "tonic"]);
    assert!(off.is_subset(&all), "mesh-core lacks one of {off:?}");
    assert_eq!(default("mesh-xds").0, set(&["file"]));
    assert_eq!(default("mesh-hbone").0, set(&["aws-lc-rs"]));
}
