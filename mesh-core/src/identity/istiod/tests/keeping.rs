//! A certificate outlives its process.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::keep;
use super::*;

fn store(folder: &std::path::Path, service: &Service, identity: &Identity, from: SystemTime) {
    let certificate = service.issuer.certificate(identity, from, 24 * HOUR);
    let pem = service.issuer.key.serialize_pem() + &certificate.pem();
    keep::store(folder, identity, &pem, &service.issuer.root.pem()).unwrap();
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
    for (number, account) in ["expired", "read", "torn", "moved", "open", "new"]
        .into_iter()
        .enumerate()
    {
        let bundle = next(&mut source.watch(identity(account))).await.unwrap();
        assert_eq!(*bundle.identity(), identity(account));
        assert_eq!(service.asked(), number + 1, "{account}");
    }
}

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
