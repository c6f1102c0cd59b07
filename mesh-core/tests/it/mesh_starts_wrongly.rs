//! Mistakes at the start are told as soon as they are certain; what may still come is named and waited for.

use std::fs;
use std::path::Path;
use std::time::Duration;

use mesh_core::authz::Identity;
use mesh_core::config::{ConfigLink, ConfigSource, File};
use mesh_core::identity::{CertificateSource, DevCa, Files};
use mesh_core::{Error, ErrorKind, Mesh};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::time::Instant;

use crate::admin::get;
use crate::handler::Handler;
use crate::layers_logs::capture;
use crate::mesh_world::until;

const START: Duration = Duration::from_secs(30);

/// A mesh of `name` whose files are in `folder`.
fn mesh(folder: &Path, name: &str, identity: impl CertificateSource) -> Mesh {
    Mesh::builder()
        .workload("default", name, "reviews")
        .config(File::watch(folder.join("mesh.yaml")))
        .identity(identity)
        .build()
        .unwrap()
}

fn ca() -> DevCa {
    DevCa::ephemeral("cluster.local")
}

fn pod(status: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: reviews-v1}}\nspec: {{serviceAccountName: reviews}}\nstatus: {{{status}}}\n"
    )
}

fn write(folder: &Path, text: &str) {
    fs::write(folder.join("new"), text).unwrap();
    fs::rename(folder.join("new"), folder.join("mesh.yaml")).unwrap();
}

/// The error with its causes, and after how many seconds it came.
async fn fails(mesh: &Mesh) -> (ErrorKind, String, u64) {
    let began = Instant::now();
    let error = mesh.listen(9080).await.unwrap_err();
    (
        error.kind(),
        format!("{error:?}"),
        began.elapsed().as_secs(),
    )
}

#[tokio::test(start_paused = true)]
async fn files_that_are_not_there_are_named_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, _guard) = capture("mesh::config=info");
    let server = mesh(folder.path(), "reviews-v1", ca());
    tokio::time::sleep(Duration::from_millis(600)).await;
    lines.has(&["INFO", "waiting for it", "mesh.yaml", "No such file"]);
    assert_eq!(lines.text().matches("waiting for it").count(), 1);
    // Only when it does not come is something wrong.
    tokio::time::sleep(Duration::from_secs(6)).await;
    lines.has(&["WARN", "still waiting for it", "mesh.yaml"]);
    assert_eq!(lines.text().matches("waiting for it").count(), 2);
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!(kind, ErrorKind::NotReady);
    assert!(text.contains("mesh.yaml: No such file"), "{text}");
    assert_eq!(seconds, START.as_secs());

    let listens = tokio::spawn({
        let server = server.clone();
        async move { server.listen(9080).await }
    });
    tokio::time::sleep(Duration::from_secs(9)).await;
    write(folder.path(), &pod("podIP: 127.90.0.1"));
    listens.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_waited_for_again_is_late_by_its_second_wait() {
    let folder = tempfile::tempdir().unwrap();
    let (lines, _guard) = capture("mesh::config=info");
    let _server = mesh(folder.path(), "reviews-v1", ca());
    let waits = || lines.text().matches("waiting for it").count();
    let seconds = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
    seconds(1).await;
    assert_eq!(waits(), 1);
    // It is there, and of no use.
    write(folder.path(), "apiVersion: v1\nkind: [Pod\n");
    seconds(2).await;
    fs::remove_file(folder.path().join("mesh.yaml")).unwrap();
    // By now the first wait would be late, if it went on.
    seconds(3).await;
    assert_eq!(waits(), 2);
    assert!(!lines.text().contains("still waiting"), "{}", lines.text());
    seconds(4).await;
    lines.has(&["WARN", "still waiting for it", "mesh.yaml"]);
    assert_eq!(waits(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_does_not_parse_fails_the_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "apiVersion: v1\nkind: [Pod\n");
    let (lines, _guard) = capture("mesh::config=info");
    let server = mesh(folder.path(), "reviews-v1", ca());
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!(kind, ErrorKind::Config);
    assert!(text.contains("mesh.yaml:"), "{text}");
    assert!(seconds <= 1, "{seconds}");
    // Nothing is said of a last good version where there is none, and nothing twice.
    lines.has(&[
        "WARN",
        "refused; there is no configuration before it is right",
    ]);
    assert!(!lines.text().contains("last good"), "{}", lines.text());
    assert_eq!(lines.text().matches("WARN").count(), 1, "{}", lines.text());
    // Whoever tries again after an edit starts.
    write(folder.path(), &pod("podIP: 127.90.0.2"));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.listen(9080).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_the_files_have_not_got_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.3"));
    let server = mesh(folder.path(), "review-v1", ca());
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!(kind, ErrorKind::NoRecord);
    assert!(text.contains("near it: reviews-v1"), "{text}");
    assert!(seconds <= 1, "{seconds}");
    // What may come of every request says only whose record there is none of.
    let error = server.connect("details:9080").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRecord);
    assert_eq!(error.detail(), Some("default/review-v1"));
}

#[tokio::test(start_paused = true)]
async fn the_slip_that_hides_a_workload_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIp: 127.90.0.4"));
    let (lines, _guard) = capture("mesh::config=info");
    let server = mesh(folder.path(), "reviews-v1", ca());
    let (kind, text, seconds) = fails(&server).await;
    let slip = "mesh.yaml:5: status.podIp: unknown field; expected podIP?";
    assert_eq!(kind, ErrorKind::NoRecord);
    assert!(text.contains(slip), "{text}");
    assert!(seconds <= 1, "{seconds}");
    assert_eq!(server.node().warnings().len(), 1);
    lines.has(&["WARN", "most likely a slip", slip]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_refused_is_named_to_who_misses_it() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0"));
    let server = mesh(folder.path(), "reviews-v1", ca());
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!(kind, ErrorKind::NoRecord);
    assert!(
        text.contains("mesh.yaml:5: status.podIP: expected an IP address"),
        "{text}"
    );
    assert!(seconds <= 1, "{seconds}");
}

/// Of a folder with all that a cluster has, three kinds that are of no use would be all that is named.
#[tokio::test(start_paused = true)]
async fn what_has_no_workload_anyway_is_not_named_to_who_misses_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let others = [
        "ConfigMap",
        "DestinationRule",
        "Ingress",
        "PodDisruptionBudget",
    ];
    let others = others.map(|kind| {
        format!("---\napiVersion: example.com/v1\nkind: {kind}\nmetadata: {{name: reviews}}\n")
    });
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: reviews}\n\
                   spec: {selector: {app: reviews}, ports: [{port: 9080}]}\n";
    let deployment =
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: reviews-v1}\n".to_owned();
    let says = [
        (
            pod(""),
            "mesh.yaml:1: status: Pod default/reviews-v1 has no address",
        ),
        (
            deployment,
            "mesh.yaml:1: kind: Deployment says nothing to the mesh",
        ),
        (
            pod("podIP: 127.90.0.13").replace("Pod", "pod"),
            "kind: pod says nothing to the mesh",
        ),
    ];
    for (hidden, expected) in says {
        write(
            folder.path(),
            &format!("{hidden}{}{service}", others.concat()),
        );
        let server = mesh(folder.path(), "reviews-v1", ca());
        let (kind, text, _) = fails(&server).await;
        assert_eq!(kind, ErrorKind::NoRecord);
        assert!(text.contains(expected), "{text}");
        assert_eq!(text.matches("mesh.yaml:").count(), 1, "{text}");
    }
}

/// An ALLOW policy with a slip.
fn broken_policy(method: &str) -> String {
    format!(
        "{}---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: reviews}}\n\
         spec:\n  rules:\n  - to: [{{operation: {{{method}: [GET]}}}}]\n",
        pod("podIP: 127.90.0.12")
    )
}

/// At a start there is no last good version of it: nobody is let in, and whoever looks finds out why.
#[tokio::test]
async fn a_policy_that_cannot_be_read_at_the_start_is_not_told_as_a_deny() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &broken_policy("method"));
    let (lines, _guard) = capture("mesh::config=info,mesh::authz=debug");
    let server = Mesh::builder()
        .workload("default", "reviews-v1", "reviews")
        .config(File::watch(folder.path().join("mesh.yaml")).every(Duration::from_millis(10)))
        .identity(ca())
        .build()
        .unwrap();
    let http = server.listen_http(9080).await.unwrap();
    tokio::spawn(http.serve(Handler::default()));
    let slip = "mesh.yaml:12: spec.rules[0].to[0].operation.method: unknown field";
    lines.has(&[
        "WARN",
        slip,
        "; until it is right, all that it selects is denied",
        "refused, and it has no last good version",
    ]);
    assert!(!lines.text().contains("stays"), "{}", lines.text());
    let mut refused = tokio::net::TcpStream::connect("127.90.0.12:9080")
        .await
        .unwrap();
    let _ = tokio::io::AsyncReadExt::read(&mut refused, &mut [0; 1]).await;
    let denied = "default/reviews cannot be read, so it lets nobody in (";
    lines.has(&["DEBUG", "denied", denied, slip, "identity=plaintext"]);
    let explained = get(&server.admin(), "/explain?to=9080&from=plaintext&path=/").await;
    let text = explained.text;
    assert!(text.contains(denied) && text.contains(slip), "{text}");
    assert!(!text.contains("DENY "), "{text}");
    let dump = get(&server.admin(), "/config_dump").await.json();
    let why = dump["policies"][0]["unreadable"].as_str().unwrap();
    assert!(why.contains(slip), "{why}");
    // Another slip: the reason is the new one, and still nothing good stays.
    write(folder.path(), &broken_policy("methodes"));
    until("it is read again", || {
        lines.text().contains("operation.methodes")
    })
    .await;
    lines.has(&[
        "WARN",
        "operation.methodes",
        "refused, and it has no last good version",
    ]);
    write(folder.path(), &broken_policy("methods"));
    until("it is right", || server.node().problems().is_empty()).await;
    write(folder.path(), &broken_policy("method"));
    until("it is wrong", || !server.node().problems().is_empty()).await;
    lines.has(&["WARN", slip, "refused; its last good version stays"]);
}

struct Ends;

impl ConfigSource for Ends {
    async fn run(self, _link: ConfigLink) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_ends_without_a_configuration_is_told_at_once() {
    let server = Mesh::builder()
        .workload("default", "reviews-v1", "reviews")
        .config(Ends)
        .identity(ca())
        .build()
        .unwrap();
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!((kind, seconds), (ErrorKind::Config, 0));
    assert!(text.contains("has ended"), "{text}");
}

/// Writes a chain, a key and roots for `account`.
fn certificates(folder: &Path, account: &str) -> Files {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::default();
    let identity = Identity::new("cluster.local", "default", account).unwrap();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    fs::write(folder.join("ca.crt"), issuer.pem()).unwrap();
    files(folder)
}

fn files(folder: &Path) -> Files {
    let at = |name| folder.join(name);
    Files::new(at("tls.crt"), at("tls.key"), at("ca.crt"))
}

#[tokio::test(start_paused = true)]
async fn certificate_files_that_are_not_there_are_named_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.5"));
    let (lines, _guard) = capture("mesh::identity=info");
    let server = mesh(folder.path(), "reviews-v1", files(folder.path()));
    tokio::time::sleep(Duration::from_millis(600)).await;
    lines.has(&["INFO", "waiting for it", "tls.crt", "No such file"]);
    assert!(!lines.text().contains("WARN"), "{}", lines.text());
    tokio::time::sleep(Duration::from_secs(6)).await;
    lines.has(&["WARN", "still waiting for it", "tls.crt"]);
    let (kind, text, seconds) = fails(&server).await;
    assert_eq!((kind, seconds), (ErrorKind::NotReady, START.as_secs()));
    assert!(text.contains("tls.crt: No such file"), "{text}");
    certificates(folder.path(), "reviews");
    server.listen(9080).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn certificates_that_cannot_do_fail_the_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.6"));
    let cases: [(&str, &dyn Fn()); 3] = [
        ("sa/ratings", &|| {
            drop(certificates(folder.path(), "ratings"));
        }),
        ("tls.key", &|| {
            fs::write(folder.path().join("tls.key"), "no key").unwrap();
        }),
        ("ca.crt", &|| {
            certificates(folder.path(), "reviews");
            fs::write(folder.path().join("ca.crt"), "").unwrap();
        }),
    ];
    for (says, make) in cases {
        make();
        let server = mesh(folder.path(), "reviews-v1", files(folder.path()));
        let (kind, text, seconds) = fails(&server).await;
        assert_eq!(kind, ErrorKind::Identity, "{text}");
        assert!(text.contains(says), "{text}");
        assert!(seconds <= 1, "{seconds}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_development_ca_that_cannot_do_fails_the_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.7"));
    fs::write(folder.path().join("file"), "").unwrap();
    for (ca, says) in [
        (
            DevCa::in_dir(folder.path().join("file"), "cluster.local"),
            "file",
        ),
        (DevCa::ephemeral("elsewhere"), "elsewhere"),
    ] {
        let server = mesh(folder.path(), "reviews-v1", ca);
        let (kind, text, seconds) = fails(&server).await;
        assert_eq!(kind, ErrorKind::Identity, "{text}");
        assert!(text.contains(says), "{text}");
        assert!(seconds <= 1, "{seconds}");
    }
}

/// What `/config_dump` says of the configuration's age.
async fn stale(mesh: &Mesh) -> serde_json::Value {
    get(&mesh.admin(), "/config_dump").await.json()["stale"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_is_told_and_stays_in_force() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.8"));
    let (lines, _guard) = capture("mesh::config=info");
    let server = mesh(folder.path(), "reviews-v1", ca());
    server.ready().await.unwrap();
    fs::remove_file(folder.path().join("mesh.yaml")).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    lines.has(&["WARN", "mesh.yaml", "what they held last stays in force"]);
    assert_eq!(lines.text().matches("stays in force").count(), 1);
    assert!(stale(&server).await.to_string().contains("mesh.yaml"));
    server.listen(9080).await.unwrap();

    write(folder.path(), &pod("podIP: 127.90.0.8"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    lines.has(&["INFO", "can be read again"]);
    assert!(stale(&server).await.is_null());
}

#[tokio::test(start_paused = true)]
async fn a_file_of_a_folder_that_is_removed_takes_its_objects_with_it_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &pod("podIP: 127.90.0.9"));
    let more = folder.path().join("more.yaml");
    fs::write(
        &more,
        pod("podIP: 127.90.0.10").replace("reviews-v1", "reviews-v2"),
    )
    .unwrap();
    let (lines, _guard) = capture("mesh::config=info");
    let server = Mesh::builder()
        .workload("default", "reviews-v1", "reviews")
        .config(File::watch(folder.path()))
        .identity(ca())
        .build()
        .unwrap();
    server.ready().await.unwrap();
    fs::remove_file(&more).unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    lines.has(&["WARN", "more.yaml", "removed", "what it held"]);
    lines.has(&["INFO", "applied", "changed=1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_file_is_said_for_as_long_as_it_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "kind: [\n");
    let server = mesh(folder.path(), "reviews-v1", ca());
    let says = async |what: &str| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let readiness = server.readiness();
        let pending: Vec<_> = readiness.pending().map(|(_, why)| why.to_owned()).collect();
        assert!(pending.iter().any(|why| why.contains(what)), "{pending:?}");
    };
    says("mesh.yaml:1").await;
    says("mesh.yaml:1").await;
    // It goes, and comes back as it was.
    let (here, away) = (folder.path().join("mesh.yaml"), folder.path().join("away"));
    fs::rename(&here, &away).unwrap();
    says("No such file").await;
    fs::rename(&away, &here).unwrap();
    says("mesh.yaml:1").await;
    write(folder.path(), &pod("podIP: 127.90.0.11"));
    tokio::time::sleep(Duration::from_secs(5)).await;
    server.ready().await.unwrap();
}
