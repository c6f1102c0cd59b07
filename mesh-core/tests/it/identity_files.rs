//! Certificates in files are used when they change, and only when they are good.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use mesh_core::authz::Identity;
use mesh_core::identity::{CertificateSource, CertificateStream, ErrorKind, Files};
use rcgen::{CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::identity_renewal::{reviews, wall_clock};

/// An authority that writes certificates into a folder as a mounted secret has them.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self {
            issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn files(&self) -> Files {
        Files::new(
            self.path("tls.crt"),
            self.path("tls.key"),
            self.path("ca.crt"),
        )
    }

    /// A certificate that begins now by tokio's clock, which is paused.
    fn write(&self, to: &Path, identity: &Identity, begin: SystemTime, lifetime: Duration) {
        let mut params = CertificateParams::default();
        let uri = identity.to_string().try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        let begin = begin.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + begin;
        params.not_after = params.not_before + lifetime;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::create_dir_all(to).unwrap();
        fs::write(to.join("tls.crt"), certificate.pem()).unwrap();
        fs::write(to.join("tls.key"), key.serialize_pem()).unwrap();
        fs::write(to.join("ca.crt"), self.issuer.pem()).unwrap();
    }
}

const HOUR: Duration = Duration::from_secs(3600);

async fn nothing_for(time: Duration, certificates: &mut CertificateStream) {
    let item = timeout(time, certificates.next()).await;
    assert!(item.is_err(), "{item:?}");
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_used_and_an_old_one_is_not_given_twice() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let here = authority.folder.path();
    authority.write(here, &reviews(), wall(), HOUR);
    let mut certificates = authority.files().clock(wall.clone()).watch(reviews());
    let first = certificates.next().await.unwrap().unwrap();
    nothing_for(Duration::from_secs(30), &mut certificates).await;

    authority.write(here, &reviews(), wall(), HOUR);
    let second = timeout(Duration::from_secs(2), certificates.next()).await;
    let second = second.unwrap().unwrap().unwrap();
    assert_ne!(first.serial_number(), second.serial_number());
    assert_eq!(*second.identity(), reviews());
    nothing_for(Duration::from_secs(30), &mut certificates).await;
}

/// Kubernetes swaps the link `..data` to a new folder; the files are links through it.
#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn a_folder_that_is_swapped_by_its_link_is_seen() {
    use std::os::unix::fs::symlink;
    let (authority, wall) = (Authority::new(), wall_clock());
    let (data, next) = (authority.path("..data"), authority.path("..data_tmp"));
    authority.write(&authority.path("..1"), &reviews(), wall(), HOUR);
    symlink("..1", &data).unwrap();
    for name in ["tls.crt", "tls.key", "ca.crt"] {
        symlink(Path::new("..data").join(name), authority.path(name)).unwrap();
    }
    let mut certificates = authority.files().clock(wall.clone()).watch(reviews());
    let first = certificates.next().await.unwrap().unwrap();

    authority.write(&authority.path("..2"), &reviews(), wall(), HOUR);
    nothing_for(Duration::from_secs(5), &mut certificates).await;
    symlink("..2", &next).unwrap();
    fs::rename(&next, &data).unwrap();
    fs::remove_dir_all(authority.path("..1")).unwrap();
    let second = certificates.next().await.unwrap().unwrap();
    assert_ne!(first.serial_number(), second.serial_number());
}

#[tokio::test(start_paused = true)]
async fn bad_files_are_said_once_and_the_next_good_ones_are_used() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let here = authority.folder.path();
    authority.write(here, &reviews(), wall(), HOUR);
    let mut certificates = authority.files().clock(wall.clone()).watch(reviews());
    certificates.next().await.unwrap().unwrap();

    let broken = [
        (
            "tls.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA",
            ErrorKind::Invalid,
        ),
        ("tls.key", "", ErrorKind::Invalid),
        ("ca.crt", "none", ErrorKind::Invalid),
    ];
    for (name, content, kind) in broken {
        fs::write(authority.path(name), content).unwrap();
        let error = certificates.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.detail().contains(name), "{error}");
        nothing_for(Duration::from_secs(30), &mut certificates).await;
        authority.write(here, &reviews(), wall(), HOUR);
        certificates.next().await.unwrap().unwrap();
    }

    fs::remove_file(authority.path("tls.crt")).unwrap();
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.detail().contains("tls.crt"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn files_may_come_later() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let mut certificates = authority.files().clock(wall.clone()).watch(reviews());
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    nothing_for(Duration::from_secs(60), &mut certificates).await;
    authority.write(authority.folder.path(), &reviews(), wall(), HOUR);
    certificates.next().await.unwrap().unwrap();
}

/// A file that grows is looked at when it has come to rest.
#[tokio::test(start_paused = true)]
async fn a_half_written_file_is_not_used() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let here = authority.folder.path();
    authority.write(here, &reviews(), wall(), HOUR);
    let files = authority.files().clock(wall.clone());
    let mut certificates = files.poll_interval(Duration::from_secs(1)).watch(reviews());
    certificates.next().await.unwrap().unwrap();
    authority.write(here, &reviews(), wall(), HOUR);
    let whole = fs::read(authority.path("tls.crt")).unwrap();
    for end in (0..whole.len()).step_by(50) {
        fs::write(authority.path("tls.crt"), &whole[..end]).unwrap();
        // Long enough for one read, too short for two.
        nothing_for(Duration::from_millis(900), &mut certificates).await;
    }
    fs::write(authority.path("tls.crt"), &whole).unwrap();
    certificates.next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_certificate_of_somebody_else_is_an_error_that_names_both() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let eve = "spiffe://cluster.local/ns/default/sa/eve".parse().unwrap();
    authority.write(authority.folder.path(), &eve, wall(), HOUR);
    let mut certificates = authority.files().clock(wall).watch(reviews());
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WrongIdentity);
    for word in ["tls.crt", "sa/eve", "sa/reviews"] {
        assert!(error.detail().contains(word), "{word} in {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn files_that_are_replaced_one_by_one_are_no_lasting_error() {
    let (authority, wall) = (Authority::new(), wall_clock());
    let here = authority.folder.path();
    authority.write(here, &reviews(), wall(), HOUR);
    let roots = fs::read(authority.path("ca.crt")).unwrap();
    fs::write(authority.path("ca.crt"), "").unwrap();
    let files = authority.files().clock(wall);
    let mut certificates = files.poll_interval(Duration::from_secs(1)).watch(reviews());
    // Two reads find no roots yet.
    nothing_for(Duration::from_millis(1900), &mut certificates).await;
    fs::write(authority.path("ca.crt"), &roots).unwrap();
    certificates.next().await.unwrap().unwrap();

    // So it stays: only a change of the files helps.
    fs::write(authority.path("ca.crt"), "").unwrap();
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.is_permanent());
}

#[tokio::test(start_paused = true)]
async fn an_expiry_without_a_new_certificate_is_said_once() {
    let (authority, wall) = (Authority::new(), wall_clock());
    authority.write(authority.folder.path(), &reviews(), wall(), HOUR);
    let mut certificates = authority.files().clock(wall.clone()).watch(reviews());
    let bundle = certificates.next().await.unwrap().unwrap();
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
    assert!(wall() >= bundle.not_after());
    assert!(wall() <= bundle.not_after() + Duration::from_secs(1));
    nothing_for(HOUR, &mut certificates).await;

    // One that starts now finds it expired, and does not use it.
    let mut late = authority.files().clock(wall).watch(reviews());
    let error = late.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Expired);
}

#[tokio::test(start_paused = true)]
async fn revocation_lists_are_read_and_never_taken_for_empty() {
    let (authority, wall) = (Authority::new(), wall_clock());
    authority.write(authority.folder.path(), &reviews(), wall(), HOUR);
    let files = authority.files().clock(wall).crls(authority.path("ca.crl"));
    let mut certificates = files.watch(reviews());
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.detail().contains("ca.crl"), "{error}");
    fs::write(authority.path("ca.crl"), "").unwrap();
    certificates.next().await.unwrap().unwrap();
    fs::write(authority.path("ca.crl"), "damaged").unwrap();
    let error = certificates.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_too_large_is_refused() {
    let (authority, wall) = (Authority::new(), wall_clock());
    authority.write(authority.folder.path(), &reviews(), wall(), HOUR);
    let files = authority.files().clock(wall).max_file_size(100);
    let error = files.watch(reviews()).next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.detail().contains("at most 100 bytes"), "{error}");
}
