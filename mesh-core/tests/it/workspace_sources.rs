//! How the workspace's files look.

use std::fs;
use std::path::{Path, PathBuf};

use crate::workspace::root;

/// A file this long has more than one thing to say.
const MAX_LINES: usize = 800;

/// Names that say nothing of what they hold.
const EMPTY_NAMES: [&str; 9] = [
    "util", "utils", "common", "helper", "helpers", "manager", "managers", "misc", "stuff",
];

/// The one reviewed module for what only the operating system's own interface offers.
const UNSAFE_ALLOWED: &str = "mesh-core/src/net/socket.rs";

const LIBRARIES: [&str; 4] = ["mesh-authz", "mesh-hbone", "mesh-xds", "mesh-core"];

/// All files below `folder` with this extension, generated and built ones left out.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let path = entry.path();
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if entry.file_type().expect("a type").is_dir() {
                if name != "target" && name != "generated" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let root = root();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("UTF-8");
        let name = path.strip_prefix(&root).expect("below the root");
        (name.to_string_lossy().replace('\\', "/"), text)
    };
    let sources: Vec<_> = files(&root, "rs").into_iter().map(read).collect();
    assert!(sources.len() > 20, "not the workspace: {}", root.display());
    sources
}

/// What the compiler sees of a line, so far as a search needs it.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

fn is_library_source(name: &str) -> bool {
    LIBRARIES
        .iter()
        .any(|library| name.starts_with(&format!("{library}/src/")))
}

/// A module's tests sit in a sibling `tests.rs` or a folder `tests`.
fn is_of_tests(name: &str) -> bool {
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

#[test]
fn no_file_is_too_long() {
    for (name, text) in sources() {
        let lines = text.lines().count();
        assert!(
            lines <= MAX_LINES,
            "{name}: {lines} lines, at most {MAX_LINES}"
        );
    }
}

#[test]
fn names_say_what_they_hold() {
    for (name, text) in sources() {
        for part in Path::new(&name).with_extension("").iter() {
            let part = part.to_string_lossy().to_lowercase();
            let empty = part
                .split(['_', '-'])
                .any(|word| EMPTY_NAMES.contains(&word));
            assert!(!empty, "{name}: {part}");
        }
        for (number, line) in text.lines().enumerate() {
            let mut words = words(code(line))
                .skip_while(|w| !["struct", "enum", "trait", "type", "mod"].contains(w));
            let Some(defined) = words.nth(1) else {
                continue;
            };
            let defined = defined.to_lowercase();
            let empty = EMPTY_NAMES.iter().any(|end| defined.ends_with(end));
            assert!(!empty, "{name}:{}: {defined}", number + 1);
        }
    }
}

#[test]
fn only_the_module_for_sockets_is_unsafe() {
    for (name, text) in sources() {
        if !is_library_source(&name) || name == UNSAFE_ALLOWED {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let found = words(code(line)).any(|word| word == "unsafe");
            assert!(!found, "{name}:{}: unsafe", number + 1);
        }
    }
    for library in &LIBRARIES[..3] {
        let lib = fs::read_to_string(root().join(library).join("src/lib.rs")).expect(library);
        assert!(
            lib.contains("#![forbid(unsafe_code)]"),
            "{library} does not forbid unsafe code"
        );
    }
}

#[test]
fn libraries_read_no_environment() {
    for (name, text) in sources() {
        if !is_library_source(&name) || is_of_tests(&name) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let line = code(line);
            let reads = line.contains("std::env")
                || line.contains("option_env!")
                || (line.contains("env::") && line.contains("var"));
            assert!(!reads, "{name}:{}: {line}", number + 1);
        }
    }
}

/// A number alone stands in the place of `PROPTEST_CASES`, by which long runs ask for more.
#[test]
fn more_cases_of_every_property_can_be_asked_for() {
    let mut set = 0;
    for (name, text) in sources() {
        if !text.contains("proptest!") || name.ends_with("workspace_sources.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let line = code(line);
            let sets = line.contains("with_cases(") || line.contains("ProptestConfig {");
            if sets && words(line).any(|word| word == "cases" || word == "with_cases") {
                let asked = line.contains("ProptestConfig::default().cases");
                assert!(asked, "{name}:{}: {line}", number + 1);
                set += 1;
            }
        }
    }
    assert!(set > 0, "no property says how often it is tried");
}

#[test]
fn every_feature_says_what_it_is() {
    for library in LIBRARIES {
        let manifest = fs::read_to_string(root().join(library).join("Cargo.toml")).expect(library);
        let mut inside = false;
        let mut previous = "";
        for line in manifest.lines() {
            if line.starts_with('[') {
                inside = line == "[features]";
            } else if inside && line.contains('=') && !line.starts_with(['#', ' ', '"']) {
                let named = line.starts_with("default ") || previous.starts_with("# ");
                assert!(named, "{library}: no comment above `{line}`");
            }
            previous = line;
        }
    }
}

#[test]
fn all_crates_skip_tests_alike() {
    let own = include_str!("require.rs");
    let copies = files(&root(), "rs");
    let copies = copies
        .iter()
        .filter(|path| path.ends_with("tests/it/require.rs"));
    let mut packages = Vec::new();
    for path in copies {
        let text = fs::read_to_string(path).expect("UTF-8");
        assert_eq!(text, own, "{} is not mesh-core's", path.display());
        packages.push(path.strip_prefix(root()).expect("in the root").to_owned());
    }
    for package in LIBRARIES.iter().chain(&["examples/bookinfo", "benches"]) {
        let path = Path::new(package).join("tests/it/require.rs");
        assert!(packages.contains(&path), "{} is missing", path.display());
    }
}

#[test]
fn nothing_shows_the_crates_io_crate_of_the_same_name() {
    let mut checked = 0;
    for file in files(&root(), "md").into_iter().chain(files(&root(), "rs")) {
        let text = fs::read_to_string(&file).expect("UTF-8");
        for (number, line) in text.lines().enumerate() {
            let Some((_, arguments)) = line.split_once(concat!("cargo add ", "mesh-core")) else {
                continue;
            };
            checked += 1;
            let fine = arguments.contains(" --path") || arguments.contains(" --git");
            assert!(fine, "{}:{}: {line}", file.display(), number + 1);
        }
    }
    assert!(checked > 0, "no page says how to add the crate");
}

#[test]
fn the_index_of_examples_names_them_all() {
    let folder = root().join("examples");
    let index = fs::read_to_string(folder.join("README.md")).expect("UTF-8");
    let mut examples = 0;
    for entry in fs::read_dir(&folder).expect("a folder") {
        let name = entry.expect("an entry").file_name();
        let name = name.to_string_lossy();
        if !folder.join(&*name).join("Cargo.toml").exists() {
            continue;
        }
        examples += 1;
        let link = format!("[{name}]({name}/README.md)");
        assert!(index.contains(&link), "{name} is not in it");
        assert!(folder.join(&*name).join("README.md").exists(), "{name}");
    }
    let rows = index.lines().filter(|line| line.starts_with("| [")).count();
    assert_eq!(rows, examples);
}

#[test]
fn every_target_of_logs_is_documented() {
    let sources = sources();
    let (_, page) = sources
        .iter()
        .find(|(name, _)| name == "mesh-core/src/lib.rs")
        .expect("the crate's page");
    let mut used = std::collections::BTreeSet::new();
    for (name, text) in sources.iter().filter(|(name, _)| is_library_source(name)) {
        // `target: "mesh::x"`, and the constant of access records.
        for quoted in text.split("\"mesh::").skip(1) {
            let target = quoted.split('"').next().unwrap_or_default();
            assert!(
                page.contains(&format!("| `mesh::{target}` |")),
                "{name}: mesh::{target}"
            );
            used.insert(target.to_owned());
        }
    }
    assert_eq!(
        page.matches("//! | `mesh::").count(),
        used.len(),
        "{used:?}"
    );
}

/// Which tests show what is expected of a host outside Kubernetes and of a control plane for it, by the rows of that
/// checklist. Not among them is what stock istiod alone can show, and what a node proxy will.
const HOSTS: [(&str, &[&str]); 15] = [
    // cluster.env is read as a shell reads it.
    (
        "V001",
        &[
            "values_are_quoted_as_for_a_shell",
            "the_forms_that_istioctl_writes_are_read",
        ],
    ),
    // Five files are enough, and so are three.
    (
        "V002",
        &["five_files_in_either_place_are_all_that_it_needs"],
    ),
    ("V003", &["mesh_yaml_token_and_root_are_enough"]),
    // What is empty is not said; the trust domain is then the certificate's.
    (
        "V004",
        &[
            "five_files_in_either_place_are_all_that_it_needs",
            "a_trust_domain_that_nobody_says_is_that_of_the_certificate",
            "a_trust_domain_that_somebody_says_is_the_only_one",
        ],
    ),
    // `hosts` pins the address, not the name.
    (
        "V005",
        &["five_files_in_either_place_are_all_that_it_needs"],
    ),
    // Another name or root is refused, for discovery and certificates.
    (
        "V006",
        &[
            "an_istiod_that_is_not_to_be_believed_is_named_with_the_reason",
            "another_root_is_told_with_the_file",
            "an_istiod_of_another_name_is_told_nothing_before_its_name_is_set",
            "the_name_of_the_control_plane_can_be_another_than_its_address",
        ],
    ),
    // A certificate that nobody would believe is not presented.
    (
        "V009",
        &[
            "a_kept_certificate_that_has_expired_is_not_presented",
            "a_kept_certificate_of_another_mesh_is_replaced_by_the_token_at_once",
        ],
    ),
    // Token and certificate have expired.
    (
        "V010",
        &["with_token_and_certificate_expired_a_new_token_heals_without_a_restart"],
    ),
    // The own entry is deleted.
    ("V021", &["a_host_whose_entry_is_deleted_registers_again"]),
    // Readiness probes.
    (
        "V025",
        &[
            "without_a_word_it_is_as_in_istio_agent",
            "counts_are_consecutive_and_only_transitions_are_told",
            "all_four_methods_are_read_and_said_again",
            "a_status_of_200_to_399_is_healthy",
            "a_connection_and_a_program_are_tried",
            "grpc_says_whether_it_is_serving",
        ],
    ),
    // Who is not well is so for callers; stock istiod does not tell them.
    (
        "V026",
        &[
            "a_host_has_traffic_while_it_is_well_and_none_after_it_is_gone",
            "a_host_has_the_entry_of_a_live_istiod_that_somebody_has_written",
        ],
    ),
    // Names, identities, grace, sweeping, hand-over, whose an address is.
    (
        "V027",
        &[
            "an_entry_has_istiods_name",
            "who_comes_back_in_time_keeps_the_entry_and_who_does_not_gets_another",
            "who_may_not_register_is_told_why",
            "hosts_of_a_server_before_have_a_while_to_come_back",
            "what_hosts_have_registered_stays_while_they_may_come_back",
        ],
    ),
    // Stock programs join our control plane.
    (
        "V028",
        &[
            "a_ztunnel_joins_and_talks_with_an_application_both_ways",
            "an_agent_has_its_certificate_from_us_and_registers_its_host",
        ],
    ),
    // Pings, GOAWAY, and being refused for a while.
    (
        "V031",
        &[
            "pings_are_seldom_enough_for_istiod",
            "a_stream_that_is_too_old_is_replaced_and_nothing_is_lost",
            "refusals_of_the_stream_are_told_and_overcome",
            "many_clients_do_not_come_back_together",
        ],
    ),
    // What is kept, and roots that change.
    (
        "V032",
        &[
            "who_reads_while_it_is_written_finds_a_key_with_its_own_chain",
            "what_is_kept_is_private",
            "old_and_new_root_are_trusted_while_both_are_in_the_file",
        ],
    ),
];

#[test]
fn what_is_expected_of_hosts_is_tested_by_these() {
    let sources = sources();
    for (row, tests) in HOSTS {
        for test in tests {
            let begin = format!("fn {test}(");
            let found = sources.iter().find_map(|(_, text)| {
                let before = &text[..text.find(&begin)?];
                let above = before.lines().rev().skip_while(|line| *line == "async ");
                let above: Vec<_> = above.take_while(|line| !line.is_empty()).collect();
                Some(above)
            });
            let above = found.unwrap_or_else(|| panic!("{row}: there is no test {test}"));
            let is_said = |line: &&str| line.starts_with("///") && line.contains(row);
            assert!(above.iter().any(is_said), "{test}: it does not say {row}");
            let is_test = |line: &&str| line.contains("test");
            assert!(above.iter().any(is_test), "{test}: it is no test");
        }
    }
}
