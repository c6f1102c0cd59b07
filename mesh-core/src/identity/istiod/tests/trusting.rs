//! Roots, revocation lists and tokens that change while certificates stay.

use std::fs;

use super::*;

fn pem(issuer: &Issuer) -> String {
    issuer.root.pem()
}

struct Folder {
    dir: tempfile::TempDir,
    service: Service,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service::new();
        fs::write(dir.path().join("root-cert.pem"), pem(&service.issuer)).unwrap();
        fs::write(dir.path().join("istio-token"), "token").unwrap();
        Self { dir, service }
    }

    fn source(&self, set: impl FnOnce(Istiod) -> Istiod) -> Istiod {
        let control_plane = ControlPlane::default()
            .clock(wall_clock())
            .root_cert_file(self.path("root-cert.pem"))
            .token_file(self.path("istio-token"));
        self.service.behind(set(Istiod::new(control_plane)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }
}

/// V032: a change of roots is picked up.
#[tokio::test(start_paused = true)]
async fn old_and_new_root_are_trusted_while_both_are_in_the_file() {
    let folder = Folder::new();
    let (old, new) = (Arc::clone(&folder.service.issuer), Issuer::new("new"));
    let source = folder.source(|istiod| istiod);
    let mut watch = source.watch(identity("a"));
    let first = next(&mut watch).await.unwrap();
    assert_eq!(
        first.roots(),
        [old.root()],
        "once, though file and answer have it"
    );

    folder.write("root-cert.pem", &(pem(&old) + &pem(&new)));
    let begin = Instant::now();
    let both = next(&mut watch).await.unwrap();
    assert!(begin.elapsed() <= Duration::from_secs(2));
    assert_eq!(both.roots(), [old.root(), new.root()]);
    assert_eq!(both.chain(), first.chain(), "nothing was fetched for that");
    assert_eq!(folder.service.asked(), 1);

    // Neither a file that is gone nor one that is damaged takes trust away.
    fs::remove_file(folder.path("root-cert.pem")).unwrap();
    assert_eq!(next(&mut watch).await.unwrap().roots(), both.roots());
    folder.write(
        "root-cert.pem",
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    );
    assert_eq!(next(&mut watch).await.unwrap().roots(), both.roots());
    // One damaged root among good ones does not either.
    folder.write(
        "root-cert.pem",
        &format!(
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{}",
            pem(&new)
        ),
    );
    assert_eq!(
        next(&mut watch).await.unwrap().roots(),
        [old.root(), new.root()]
    );
}

#[tokio::test(start_paused = true)]
async fn roots_of_the_control_plane_alone_are_no_roots_of_peers() {
    let folder = Folder::new();
    folder.write("server.pem", &pem(&Issuer::new("public")));
    let path = folder.path("server.pem");
    let source = folder.source(|istiod| {
        istiod.set(|settings| {
            let control_plane = settings.control_plane.clone();
            settings.control_plane = control_plane.server_root_cert_file(path);
        })
    });
    let first = next(&mut source.watch(identity("a"))).await.unwrap();
    assert_eq!(first.roots(), [folder.service.issuer.root()]);
}

#[tokio::test(start_paused = true)]
async fn lists_that_cannot_be_read_are_never_taken_for_nothing_revoked() {
    let folder = Folder::new();
    let crls = folder.path("crl.pem");
    let source = folder.source(|istiod| istiod.crls(&crls));
    let mut watch = source.watch(identity("a"));
    let error = next(&mut watch).await.unwrap_err();
    assert_eq!(
        error.detail(),
        format!("CRL file {} is missing", crls.display())
    );
    folder.write("crl.pem", "garbage");
    let error = next(&mut watch).await.unwrap_err();
    assert!(
        error.detail().contains("expected X509 CRL sections"),
        "{error}"
    );

    // An empty file revokes nothing.
    folder.write("crl.pem", "");
    let first = next(&mut watch).await.unwrap();
    let revoked = |bundle: &Bundle| bundle.crl_count();
    assert_eq!(revoked(&first), 0);
    folder.write("crl.pem", &folder.service.issuer.crl(&["7"]));
    let second = next(&mut watch).await.unwrap();
    assert_eq!(revoked(&second), 1);
    assert_eq!(second.chain(), first.chain());

    // Now the lists are damaged, in two ways, and the last good ones stay: at renewals too.
    let damaged = pem(&folder.service.issuer).replace("CERTIFICATE", "X509 CRL");
    for content in ["garbage", &damaged] {
        folder.write("crl.pem", content);
        next(&mut watch).await.unwrap_err();
    }
    let renewed = next(&mut watch).await.unwrap();
    assert_ne!(renewed.chain(), first.chain());
    assert_eq!(revoked(&renewed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_token_or_root_ends_the_pause_after_failures() {
    let folder = Folder::new();
    let source = folder.source(|istiod| istiod.backoff(Duration::from_secs(1), HOUR));
    folder.service.fail(ErrorKind::Token);
    let mut watch = source.watch(identity("a"));
    while folder.service.asked() < 14 {
        next(&mut watch).await.unwrap_err();
    }
    for file in ["istio-token", "root-cert.pem"] {
        let asked = folder.service.asked();
        let content = fs::read_to_string(folder.path(file)).unwrap();
        folder.write(file, &(content + "\n"));
        tokio::time::timeout(Duration::from_secs(4), next(&mut watch))
            .await
            .unwrap_or_else(|_| panic!("{file} has changed"))
            .unwrap_err();
        assert_eq!(folder.service.asked(), asked + 1);
    }
}
