//! A certificate outlives its process.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::keep;
use super::*;

fn store(folder: &std::path::Path, service: &Service, identity: &Identity, from: SystemTime) {
    let certificate = service.issuer.certificate(identity, from, 24 * HOUR);
    let content = service.issuer.content(&certificate);
    keep::store(folder, identity, &content).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_kept_certificate_is_used_at_once_and_renewed_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state/mesh");
    let service = Service::new();
    let source = service.source(|istiod| istiod.state_dir(&folder));
    let now = source.settings.control_plane.now();
    store(&folder, &service, &identity("a"), now - 8 * HOUR);
    service.fail(ErrorKind::Unavailable);
    let begin = Instant::now();
    let mut watch = source.watch(identity("a"));
    let kept = next(&mut watch).await.unwrap();
    assert_eq!(kept.serial_number(), "1");
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(service.asked(), 0);
    service.fail(None);
    let renewed = next(&mut watch).await.unwrap();
    assert_eq!(renewed.serial_number(), "2");
    let hours = begin.elapsed().as_secs_f64() / HOUR.as_secs_f64();
    assert!((2.7..5.3).contains(&hours), "{hours}");
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_and_cannot_be_used_is_fetched_anew() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new();
    let source = service.source(|istiod| istiod.state_dir(dir.path()));
    let now = source.settings.control_plane.now();
    store(dir.path(), &service, &identity("expired"), now - 25 * HOUR);
    store(dir.path(), &service, &identity("read"), now);
    store(dir.path(), &service, &identity("torn"), now);
    store(dir.path(), &service, &identity("other"), now);
    let file = |account: &str| {
        let folder = dir.path().join("cluster.local/default").join(account);
        folder.join("certificate.pem")
    };
    fs::set_permissions(file("read"), fs::Permissions::from_mode(0o644)).unwrap();
    let whole = fs::read(file("torn")).unwrap();
    fs::write(file("torn"), &whole[..whole.len() / 2]).unwrap();
    fs::rename(file("other"), dir.path().join("moved")).unwrap();
    fs::create_dir_all(file("moved").parent().unwrap()).unwrap();
    fs::rename(dir.path().join("moved"), file("moved")).unwrap();
    fs::copy(
        file("torn").with_file_name("roots.pem"),
        file("moved").with_file_name("roots.pem"),
    )
    .unwrap();
    store(dir.path(), &service, &identity("open"), now);
    let open = file("open");
    let open = open.parent().unwrap();
    fs::set_permissions(open, fs::Permissions::from_mode(0o777)).unwrap();
    store(dir.path(), &service, &identity("roots"), now);
    let roots = file("roots").with_file_name("roots.pem");
    fs::set_permissions(roots, fs::Permissions::from_mode(0o622)).unwrap();
    for (number, account) in ["expired", "read", "torn", "moved", "open", "roots", "new"]
        .into_iter()
        .enumerate()
    {
        let bundle = next(&mut source.watch(identity(account))).await.unwrap();
        assert_eq!(*bundle.identity(), identity(account));
        assert_eq!(service.asked(), number + 1, "{account}");
    }
}

/// V032: key and chain are one file, which takes the place of the last one whole.
#[test]
fn who_reads_while_it_is_written_finds_a_key_with_its_own_chain() {
    let dir = tempfile::tempdir().unwrap();
    let identity = identity("a");
    let contents = ["one", "other"].map(|name| {
        let issuer = Issuer::new(name);
        let certificate = issuer.certificate(&identity, SystemTime::now(), 24 * HOUR);
        issuer.content(&certificate)
    });
    keep::store(dir.path(), &identity, &contents[0]).unwrap();
    let file = dir.path().join("cluster.local/default/a/certificate.pem");
    let is_written = std::sync::atomic::AtomicBool::new(false);
    let mut found = std::collections::BTreeSet::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..100 {
                let content = &contents[round % 2];
                keep::store(dir.path(), &identity, content).unwrap();
            }
            is_written.store(true, Ordering::Relaxed);
        });
        while !is_written.load(Ordering::Relaxed) {
            let text = fs::read_to_string(&file).unwrap();
            let key = KeyPair::from_pem(&text).unwrap();
            let chain = CertificateDer::from_pem_slice(text.as_bytes()).unwrap();
            let (_, leaf) = X509Certificate::from_der(&chain).unwrap();
            let public = leaf.public_key().subject_public_key.data.to_vec();
            assert!(public == key.public_key_raw());
            found.insert(public);
            keep::load(dir.path(), &identity).unwrap().unwrap();
        }
    });
    assert_eq!(found.len(), 2, "it is read while it is written");
}

/// V032.
#[test]
fn what_is_kept_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let service = Service::new();
    for _ in 0..2 {
        store(&folder, &service, &identity("a"), SystemTime::now());
    }
    let loaded = keep::load(&folder, &identity("a")).unwrap().unwrap();
    assert_eq!(loaded.serial_number(), "2");
    assert!(keep::load(&folder, &identity("b")).unwrap().is_none());
    let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let own = folder.join("cluster.local/default/a");
    assert_eq!(mode(folder), 0o700);
    assert_eq!(mode(own.clone()), 0o700);
    for file in fs::read_dir(&own).unwrap() {
        assert_eq!(mode(file.unwrap().path()), 0o600);
    }
}

#[test]
fn every_folder_on_the_way_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("state");
    let service = Service::new();
    store(&folder, &service, &identity("a"), SystemTime::now());
    for level in ["", "cluster.local", "cluster.local/default"] {
        let level = folder.join(level);
        fs::set_permissions(&level, fs::Permissions::from_mode(0o770)).unwrap();
        let error = keep::load(&folder, &identity("a")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Insecure, "{level:?}");
        fs::set_permissions(&level, fs::Permissions::from_mode(0o700)).unwrap();
    }
    keep::load(&folder, &identity("a")).unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_not_accepted_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new();
    let source = service.source(|istiod| istiod.state_dir(dir.path()));
    *service.whose.lock().unwrap() = Some(identity("eve"));
    let mut watch = source.watch(identity("a"));
    let error = next(&mut watch).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

    *service.whose.lock().unwrap() = None;
    let used = next(&mut watch).await.unwrap();
    // The clock stands still while it is being written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let kept = keep::load(dir.path(), &identity("a")).unwrap().unwrap();
    assert_eq!(kept.chain(), used.chain());
}

/// Opening a pipe waits for a writer: so does a file system that is away.
#[tokio::test]
async fn a_directory_that_hangs_withholds_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::new();
    store(dir.path(), &service, &identity("a"), SystemTime::now());
    let path = dir.path().join("cluster.local/default/a/certificate.pem");
    fs::remove_file(&path).unwrap();
    let pipe = dir.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    fs::hard_link(&pipe, &path).unwrap();
    tokio::time::pause();
    let source = service.source(|istiod| istiod.state_dir(dir.path()));
    let watching = tokio::spawn(async move { next(&mut source.watch(identity("a"))).await });
    // While a blocking thread is at work the clock does not go forward by itself.
    for _ in 0..10_000 {
        if watching.is_finished() {
            break;
        }
        tokio::time::advance(Duration::from_millis(100)).await;
        // Other files are read meanwhile, by threads.
        let pause = || std::thread::park_timeout(Duration::from_millis(1));
        tokio::task::spawn_blocking(pause).await.unwrap();
    }
    let used = watching.is_finished();
    // Lets the thread go.
    fs::write(&pipe, "").unwrap();
    assert!(used);
    assert_eq!(service.asked(), 1);
}
