//! What its operator is told: of clients, of those that are turned away, and of what is wrong with a command.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use mesh_core::config::Xds;
use mesh_core::{ControlPlane, Mesh, identity};
use serde_json::{Value, json};

use crate::plane::{Plane, join, until};

const MANIFESTS: &str = include_str!("../../mesh.yaml");

const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";

/// A member that refuses what comes after the first resource of a type.
fn join_with_room_for_one(plane: &Plane, name: &str, last: u8) -> Mesh {
    let files = plane.configure(name, plane.ip(last));
    let at = plane.address();
    let control_plane = ControlPlane::new(format!("istiod.istio-system.svc:{}", at.port()))
        .at(at.ip())
        .root_cert_file(files.join("root-cert.pem"))
        .token_file(files.join("istio-token"));
    let xds = Xds::istiod(control_plane.clone()).addresses([plane.ip(last)]);
    Mesh::builder()
        .workload("default", name, name)
        .config(xds.max_resources(1))
        .identity(identity::Istiod::new(control_plane))
        .build()
        .unwrap()
}

/// Of a client on the page, what it has of a type.
fn of_type<'a>(client: &'a Value, url: &str) -> &'a Value {
    let mut types = client["types"].as_array().into_iter().flatten();
    types.find(|one| one["type"] == url).unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_says_what_each_client_is_and_what_it_accepted_and_refused() {
    let manifests = MANIFESTS.replace("127.0.13.", "127.0.1.");
    let plane = Plane::start(26, &manifests, &[]).await;
    let caller = join(&plane.configure("caller", plane.ip(2)));
    caller.ready().await.unwrap();
    let _echo = join_with_room_for_one(&plane, "echo", 1);
    until("both have answered", async || {
        let page = plane.syncz().await;
        let (first, second) = (&page["clients"][0], &page["clients"][1]);
        let of_policies = of_type(second, AUTHORIZATION);
        of_type(first, ADDRESS)["acknowledged"].is_string()
            && of_type(first, AUTHORIZATION)["acknowledged"].is_string()
            && of_type(second, ADDRESS)["refused"].is_object()
            && of_policies["acknowledged"].is_string()
    })
    .await;
    let mut page = plane.syncz().await;

    let version = |of: &Value| -> String {
        let text = of.as_str().unwrap();
        assert!(!text.is_empty());
        text.to_owned()
    };
    let accepted = of_type(&page["clients"][0], ADDRESS)["acknowledged"].clone();
    let policies = of_type(&page["clients"][0], AUTHORIZATION)["acknowledged"].clone();
    let (accepted, policies) = (version(&accepted), version(&policies));
    let refusal = of_type(&page["clients"][1], ADDRESS)["refused"].clone();
    let error = refusal["error"].as_str().unwrap();
    assert!(error.contains("default/"), "it says of what: {error}");

    for client in page["clients"].as_array_mut().unwrap() {
        let types = client["types"].as_array_mut().unwrap();
        types.sort_by_key(|one| one["type"].to_string());
    }
    let one = |url: &str, acknowledged: Option<&str>, refused: Value| {
        json!({
            "type": url,
            "everything": true,
            "names": 0,
            "responses": 1,
            "pending": null,
            "acknowledged": acknowledged,
            "refused": refused,
        })
    };
    let client = |stream: u64, name: &str, last: u8, of_addresses: Value| {
        json!({
            "stream": stream,
            "node": format!("sidecar~{}~{name}.default~default.svc.cluster.local", plane.ip(last)),
            "identity": format!("spiffe://cluster.local/ns/default/sa/{name}"),
            "version": concat!("mesh-core-", env!("CARGO_PKG_VERSION")),
            "features": {
                "node_type": "sidecar",
                "generator": "grpc",
                "hbone": true,
                "client_features": [],
            },
            "delta": true,
            "healthy": null,
            "unhealthy_because": null,
            "types": [one(AUTHORIZATION, Some(&policies), Value::Null), of_addresses],
        })
    };
    let refused = json!({"version": accepted, "error": error});
    let expected = json!({
        "clients": [
            client(1, "caller", 2, one(ADDRESS, Some(&accepted), Value::Null)),
            client(2, "echo", 1, one(ADDRESS, None, refused)),
        ],
        "hosts": [],
        "problems": [],
        "turned_away": [],
        "withheld": [],
    });
    assert_eq!(page, expected);
}

/// By default, without `RUST_LOG`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_turned_away_is_on_the_page_and_in_the_log_with_the_reason() {
    let plane = Plane::start(27, &MANIFESTS.replace("127.0.13.", "127.0.1."), &[]).await;
    let arguments = ["--autoregister"];
    let forged = plane.configure("caller", plane.ip(2));
    fs::write(forged.join("istio-token"), "a.forged.token").unwrap();
    let of_no_group = plane.configure_as("nobody", "nobody", plane.ip(3), &arguments);
    let of_another_mesh = plane.configure("echo", plane.ip(1));
    let another = rcgen::generate_simple_self_signed(["another mesh".to_owned()]).unwrap();
    fs::write(of_another_mesh.join("root-cert.pem"), another.cert.pem()).unwrap();
    let _meshes = [&forged, &of_no_group, &of_another_mesh].map(|files| join(files));

    let nobody = "spiffe://cluster.local/ns/default/sa/nobody";
    for (reason, identity) in [
        ("the token is", Value::Null),
        ("WorkloadGroup default/nobody", json!(nobody)),
        ("UnknownCA", Value::Null),
    ] {
        let is_it = |one: &&Value| {
            one["reason"]
                .as_str()
                .is_some_and(|why| why.contains(reason))
        };
        until(reason, async || {
            let page = plane.syncz().await;
            page["turned_away"]
                .as_array()
                .unwrap()
                .iter()
                .any(|one| is_it(&one))
        })
        .await;
        let page = plane.syncz().await;
        let one = page["turned_away"]
            .as_array()
            .unwrap()
            .iter()
            .find(is_it)
            .unwrap();
        assert_eq!(one["identity"], identity, "{one}");
        let from = one["from"].as_str().unwrap();
        assert!(from.starts_with("127."), "{one}");
        assert!(one["times"].as_u64().unwrap() >= 1, "{one}");
        assert!(one["seconds_ago"].is_u64(), "{one}");
        let log = plane.log();
        let told =
            |line: &str| line.contains("WARN") && line.contains(reason) && line.contains(from);
        assert!(log.lines().any(told), "{reason}: {log}");
    }
}

fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_control-plane"));
    let output = command.args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it is for, what there is to say, and what is so unless it is said.
#[test]
fn who_asks_for_help_is_told_of_every_setting() {
    let own = help(&[]);
    assert!(own.starts_with("A control plane on one machine"), "{own}");
    for said in [
        "workload",
        "--config <CONFIG>",
        "--state <STATE>",
        "[default: .mesh-control-plane]",
        "--trust-domain",
        "--allow-empty",
        "--listen <LISTEN>",
        "[default: 127.0.0.1:15012]",
        "--server-name",
        "--http",
        "--max-connection-age",
        "[default: 1800]",
        "--registration-grace",
        "[default: 10]",
        "--host-return",
        "[default: 30]",
        "--once",
        "--version",
    ] {
        assert!(own.contains(said), "{said}: {own}");
    }
    let configure = help(&["workload", "configure"]);
    for said in [
        "istio-token",
        "--namespace <NAMESPACE>",
        "--name <NAME>",
        "--output <OUTPUT>",
        "--autoregister",
        "--token-duration",
        "[default: 3600]",
    ] {
        assert!(configure.contains(said), "{said}: {configure}");
    }
    // Each has a line that says what it does.
    for text in [own, configure] {
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2) {
            let [line, next] = pair else { unreachable!() };
            let (line, next) = (line.trim(), next.trim());
            if line.starts_with('-') {
                let told = line.contains("  ") || !(next.is_empty() || next.starts_with('-'));
                assert!(told, "{line}: {text}");
            }
        }
    }
}

fn configure_in(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_control-plane"))
        .args([
            "workload",
            "configure",
            "--namespace",
            "default",
            "--output",
            "host",
        ])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

/// From another folder a new root would be made, which no control plane has.
#[test]
fn a_host_is_not_configured_for_a_control_plane_that_there_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let said = configure_in(folder.path(), &["--name", "forum"]);
    let expected = folder
        .path()
        .canonicalize()
        .unwrap()
        .join(".mesh-control-plane");
    assert!(
        said.contains(&format!("--state {}: ", expected.display())),
        "{said}"
    );
    let left = fs::read_dir(folder.path()).unwrap();
    assert_eq!(left.count(), 0, "nothing is made");
}

#[test]
fn a_group_that_there_is_not_is_answered_with_those_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let group = |name: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {{name: {name}, namespace: default}}\n---\n"
        )
    };
    fs::write(
        folder.path().join("groups.yaml"),
        group("forum") + &group("vault"),
    )
    .unwrap();
    let said = configure_in(
        folder.path(),
        &["--name", "form", "--config", "groups.yaml"],
    );
    let expected = "expected a WorkloadGroup default/form, there is default/forum, default/vault";
    assert!(said.contains(expected), "{said}");
}
