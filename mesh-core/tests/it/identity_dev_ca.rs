//! Processes share one development root through a folder.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use futures_util::future::join_all;
use mesh_core::authz::Identity;
use mesh_core::hbone::tls::{self, Bundle, Credentials, Options, Provider};
use mesh_core::identity::{CertificateSource, DevCa, ErrorKind};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::identity_renewal::reviews;

const TRUST_DOMAIN: &str = "cluster.local";

fn ratings() -> Identity {
    Identity::new(TRUST_DOMAIN, "default", "ratings").unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_folder_is_created_once_and_reused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/er");
    let first = DevCa::in_dir(&path, TRUST_DOMAIN);
    assert!(!path.exists(), "the constructor does no I/O");
    let first = first.watch(reviews()).next().await.unwrap().unwrap();
    assert_eq!(
        names(&path),
        [".gitignore", ".lock", "root-cert.pem", "root-key.pem"]
    );
    let files = || ["root-cert.pem", "root-key.pem"].map(|name| fs::read(path.join(name)).unwrap());
    let before = files();

    let again = DevCa::in_dir(&path, TRUST_DOMAIN);
    let second = again.issue(ratings()).await.unwrap();
    assert_eq!(first.root_fingerprints(), second.root_fingerprints());
    assert_eq!(
        second.root_fingerprints(),
        [again.fingerprint().await.unwrap()]
    );
    assert_eq!(again.roots().await.unwrap().as_bytes(), before[0]);
    assert_eq!(files(), before);
}

#[cfg(unix)]
#[tokio::test]
async fn what_it_writes_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh-dev");
    DevCa::in_dir(&path, TRUST_DOMAIN)
        .fingerprint()
        .await
        .unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for name in names(&path) {
        assert_eq!(mode(&path.join(&name)), 0o600, "{name}");
    }

    let key = path.join("root-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let error = DevCa::in_dir(&path, TRUST_DOMAIN)
        .issue(reviews())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Insecure);
    assert!(
        error.detail().contains("root-key.pem") && error.detail().contains("640"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_that_start_together_agree_on_one_root() {
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let authorities = (0..16).map(|_| {
            let ca = DevCa::in_dir(folder.path(), TRUST_DOMAIN);
            tokio::spawn(async move { ca.fingerprint().await.unwrap() })
        });
        let roots = join_all(authorities).await;
        let roots: HashSet<_> = roots.into_iter().map(|root| root.unwrap()).collect();
        assert_eq!(roots.len(), 1);
    }
}

#[tokio::test]
async fn processes_that_start_together_agree_on_one_root() {
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join(PARENT)).unwrap();
    let children: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "identity_dev_ca::child",
                    "--ignored",
                    "--nocapture",
                ])
                .current_dir(&folder)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let ours = DevCa::in_dir(folder.path().join(SHARED), TRUST_DOMAIN);
    let ours = format!("root {}", ours.fingerprint().await.unwrap());
    for child in children {
        let output = child.wait_with_output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        assert!(output.contains(&ours), "expected {ours} in:\n{output}");
    }
}

const PARENT: &str = "started-by-parent";
const SHARED: &str = "shared";

#[tokio::test]
#[ignore = "the other side of processes_that_start_together_agree_on_one_root"]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn child() {
    assert!(Path::new(PARENT).exists(), "started by its parent only");
    let ca = DevCa::in_dir(SHARED, TRUST_DOMAIN);
    println!("root {}", ca.fingerprint().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_released_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let lock = File::create(folder.path().join(".lock")).unwrap();
    lock.lock().unwrap();
    let ca = DevCa::in_dir(folder.path(), TRUST_DOMAIN).timeout(Duration::from_secs(3));
    let mut certificates = ca.watch(reviews());
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.detail().contains(".lock") && error.detail().contains("3s"),
        "{error}"
    );
    lock.unlock().unwrap();
    certificates.next().await.unwrap().unwrap();
}

/// Whatever is there is never replaced.
#[tokio::test]
async fn a_damaged_root_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let file = |name: &str| path.join(name);
    let ca = DevCa::in_dir(path, TRUST_DOMAIN);
    ca.fingerprint().await.unwrap();
    let certificate = fs::read_to_string(file("root-cert.pem")).unwrap();
    let key = fs::read_to_string(file("root-key.pem")).unwrap();
    let other = tempfile::tempdir().unwrap();
    DevCa::in_dir(other.path(), TRUST_DOMAIN)
        .fingerprint()
        .await
        .unwrap();
    let other_key = fs::read_to_string(other.path().join("root-key.pem")).unwrap();
    let half = |text: &str| text[..text.len() / 2].to_owned();

    let cases = [
        ("root-key.pem", Some(String::new())),
        ("root-key.pem", Some("not a key\n".to_owned())),
        ("root-key.pem", Some(half(&key))),
        ("root-key.pem", None),
        ("root-cert.pem", Some(String::new())),
        ("root-cert.pem", Some(half(&certificate))),
        ("root-cert.pem", Some(key.clone())),
        ("root-cert.pem", None),
        ("root-key.pem", Some(other_key)),
    ];
    for (name, content) in cases {
        match &content {
            Some(content) => fs::write(file(name), content).unwrap(),
            None => fs::remove_file(file(name)).unwrap(),
        }
        let error = ca.issue(reviews()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(
            error.detail().starts_with(path.to_str().unwrap()),
            "{error}"
        );
        assert!(error.detail().contains(name), "{name} in {error}");
        assert!(error.detail().contains("remove the folder"), "{error}");
        match content {
            Some(content) => assert_eq!(fs::read_to_string(file(name)).unwrap(), content),
            None => assert!(!file(name).exists()),
        }
        fs::write(file("root-cert.pem"), &certificate).unwrap();
        write_private(&file("root-key.pem"), &key);
        ca.issue(reviews()).await.unwrap();
    }
}

fn write_private(path: &Path, content: &str) {
    fs::write(path, content).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// What a process leaves that is killed between its first and last write.
#[tokio::test]
async fn what_a_killed_process_left_behind_is_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    File::create(folder.path().join(".lock")).unwrap();
    fs::write(folder.path().join("root-key.pem.new"), "-----BEGIN").unwrap();
    let ca = DevCa::in_dir(folder.path(), TRUST_DOMAIN);
    ca.issue(reviews()).await.unwrap();
    assert!(!folder.path().join("root-key.pem.new").exists());
}

#[tokio::test]
async fn another_trust_domain_is_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    DevCa::in_dir(folder.path(), "one.example")
        .fingerprint()
        .await
        .unwrap();
    let other = DevCa::in_dir(folder.path(), "two.example");
    let error = other.fingerprint().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongTrustDomain);
    for word in ["root-cert.pem", "one.example", "two.example"] {
        assert!(error.detail().contains(word), "{word} in {error}");
    }

    let error = other.issue(reviews()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongTrustDomain);
    for word in [
        "two.example",
        "spiffe://cluster.local/ns/default/sa/reviews",
    ] {
        assert!(error.detail().contains(word), "{word} in {error}");
    }
    let error = mesh_core::Error::from(error);
    assert_eq!(error.kind(), mesh_core::ErrorKind::Identity);
}

#[tokio::test]
async fn a_path_that_cannot_be_is_an_error() {
    for path in ["", "a\0b"] {
        let error = DevCa::in_dir(path, TRUST_DOMAIN)
            .fingerprint()
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Settings, "{error}");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = DevCa::in_dir(file.path(), TRUST_DOMAIN)
        .fingerprint()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(
        error.detail().contains(file.path().to_str().unwrap()),
        "{error}"
    );
}

/// A roll from one root to the next: both are trusted as soon as both are in the file.
#[tokio::test]
async fn a_second_root_in_the_file_is_trusted() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let issuer = DevCa::in_dir(old.path(), TRUST_DOMAIN);
    let roots = issuer.roots().await.unwrap();
    let other = DevCa::in_dir(new.path(), TRUST_DOMAIN)
        .roots()
        .await
        .unwrap();
    fs::write(old.path().join("root-cert.pem"), other + &roots).unwrap();
    let bundle = issuer.issue(reviews()).await.unwrap();
    assert_eq!(bundle.roots().len(), 2);
    assert_eq!(
        bundle.root_fingerprints()[1],
        issuer.fingerprint().await.unwrap()
    );
}

#[tokio::test]
async fn a_certificate_is_what_spiffe_and_istio_expect() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_900);
    let ca = DevCa::ephemeral(TRUST_DOMAIN)
        .validity(Duration::from_secs(3600))
        .clock(move || now);
    let bundle = ca.issue(reviews()).await.unwrap();
    let (_, leaf) = X509Certificate::from_der(&bundle.chain()[0]).unwrap();

    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "the subject is empty");
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI(
            "spiffe://cluster.local/ns/default/sa/reviews"
        )]
    );
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature());
    assert!(!usage.value.key_cert_sign());
    assert!(!leaf.is_ca());
    // id-ecPublicKey on P-256: an uncompressed point of 65 bytes.
    assert_eq!(leaf.public_key().subject_public_key.data.len(), 65);
    assert_eq!(bundle.not_before(), now - Duration::from_millis(900));
    assert_eq!(
        bundle.not_after(),
        now + Duration::from_secs(3600) + Duration::from_millis(100),
        "rounded up"
    );

    let (_, root) = X509Certificate::from_der(&bundle.roots()[0]).unwrap();
    assert!(root.is_ca());
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(leaf.verify_signature(Some(root.public_key())).is_ok());
}

#[tokio::test]
async fn no_key_shows_in_debug_output() {
    let folder = tempfile::tempdir().unwrap();
    let ca = DevCa::in_dir(folder.path(), TRUST_DOMAIN);
    let bundle = ca.issue(reviews()).await.unwrap();
    let shown = format!("{ca:?} {bundle:?}");
    let key = fs::read_to_string(folder.path().join("root-key.pem")).unwrap();
    for line in key.lines() {
        assert!(!shown.contains(line), "{shown}");
    }
    assert!(!shown.contains("PRIVATE"), "{shown}");
}

fn credentials(bundle: Bundle) -> Credentials {
    let provider = Provider::by_feature().unwrap();
    Credentials::new(provider, bundle, Options::default()).unwrap()
}

/// Both sides of a handshake, by what two sources issued.
async fn shake_hands(server: Bundle, client: Bundle) -> Result<(), mesh_core::hbone::Error> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (server, client) = (credentials(server), credentials(client));
    let expected = [server.current().identity().clone()];
    let (accepted, connected) = tokio::join!(
        tls::accept(far, &server),
        tls::connect(near, &client, &expected)
    );
    assert_eq!(connected?.peer().identity(), &expected[0]);
    assert_eq!(accepted?.peer().identity(), client.current().identity());
    Ok(())
}

#[tokio::test]
async fn two_processes_trust_each_other_and_strangers_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let here = DevCa::in_dir(folder.path(), TRUST_DOMAIN);
    let there = DevCa::in_dir(folder.path(), TRUST_DOMAIN);
    let stranger = DevCa::ephemeral(TRUST_DOMAIN);
    let server = here.issue(reviews()).await.unwrap();
    let client = there.issue(ratings()).await.unwrap();
    shake_hands(server.clone(), client).await.unwrap();

    let client = stranger.issue(ratings()).await.unwrap();
    let error = shake_hands(server, client).await.unwrap_err();
    assert_eq!(error.kind(), mesh_core::hbone::ErrorKind::UnknownIssuer);
}
