mod keeping;
mod rotations;
mod trusting;
mod watching;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures_util::StreamExt;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::time::Instant;

use super::keep::Content;
use super::watch::{Ask, Failed, Fetched, Fetching, Handle, Settings};
use super::*;
use crate::identity::{Error, ErrorKind};

const HOUR: Duration = Duration::from_secs(3600);

/// A time of day that goes with tokio's paused clock.
fn wall_clock() -> impl Fn() -> SystemTime + Clone + Send + Sync {
    let begin = Instant::now();
    move || SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begin.elapsed()
}

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "default", account).unwrap()
}

/// A root that issues to one key for all: what is tested is not the keys.
struct Issuer {
    root: CertifiedIssuer<'static, KeyPair>,
    key: KeyPair,
    serial: AtomicUsize,
}

impl Issuer {
    fn new(name: &str) -> Arc<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Arc::new(Self {
            root: CertifiedIssuer::self_signed(params, key).unwrap(),
            key: KeyPair::generate().unwrap(),
            serial: AtomicUsize::new(1),
        })
    }

    fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    fn certificate(
        &self,
        identity: &Identity,
        from: SystemTime,
        life: Duration,
    ) -> rcgen::Certificate {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let uri = identity.to_string().try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) as u64;
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = from.into();
        params.not_after = (from + life).into();
        params.signed_by(&self.key, &self.root).unwrap()
    }

    fn issue(&self, identity: &Identity, from: SystemTime, life: Duration) -> Bundle {
        self.bundle(&self.certificate(identity, from, life))
    }

    fn bundle(&self, certificate: &rcgen::Certificate) -> Bundle {
        let key = PrivatePkcs8KeyDer::from(self.key.serialize_der());
        let chain = vec![certificate.der().clone()];
        Bundle::new(chain, key.into(), vec![self.root()], &[]).unwrap()
    }

    fn content(&self, certificate: &rcgen::Certificate) -> Content {
        Content {
            certificate: (self.key.serialize_pem() + &certificate.pem()).into(),
            roots: self.root.pem(),
        }
    }

    fn crl(&self, serials: &[&str]) -> String {
        let revoked = |serial: &&str| RevokedCertParams {
            serial_number: SerialNumber::from(serial.parse::<u64>().unwrap()),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2020, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.root).unwrap().pem().unwrap()
    }
}

/// What the source under test asks, and what it is answered.
#[derive(Clone)]
struct Service {
    issuer: Arc<Issuer>,
    life: Duration,
    /// How long an answer takes.
    takes: Duration,
    /// What it is answered instead of a certificate.
    fails: Arc<Mutex<Option<ErrorKind>>>,
    /// Whose certificate it is answered instead of the one that it asked for.
    whose: Arc<Mutex<Option<Identity>>>,
    asks: Arc<Mutex<Vec<Ask>>>,
    /// How many certificates each identity has had.
    had: Arc<Mutex<HashMap<Identity, usize>>>,
    inside: Arc<AtomicUsize>,
    most_inside: Arc<AtomicUsize>,
}

impl Service {
    fn new() -> Self {
        Self {
            issuer: Issuer::new("istio"),
            life: 24 * HOUR,
            takes: Duration::ZERO,
            fails: Arc::default(),
            whose: Arc::default(),
            asks: Arc::default(),
            had: Arc::default(),
            inside: Arc::default(),
            most_inside: Arc::default(),
        }
    }

    fn fail(&self, kind: impl Into<Option<ErrorKind>>) {
        *self.fails.lock().unwrap() = kind.into();
    }

    fn asked(&self) -> usize {
        self.asks.lock().unwrap().len()
    }

    fn issued(&self) -> usize {
        self.issuer.serial.load(Ordering::Relaxed) - 1
    }

    fn had_by(&self, account: &str) -> usize {
        let had = self.had.lock().unwrap();
        had.get(&identity(account)).copied().unwrap_or(0)
    }

    fn asked_for(&self) -> Vec<Identity> {
        let asks = self.asks.lock().unwrap();
        asks.iter().map(|ask| ask.identity.clone()).collect()
    }

    /// A source that asks this service.
    fn source(&self, set: impl FnOnce(Istiod) -> Istiod) -> Istiod {
        let wall = wall_clock();
        let folder = std::path::Path::new("/nonexistent");
        let control_plane = ControlPlane::default()
            .clock(wall)
            .root_cert_file(folder.join("root-cert.pem"))
            .token_file(folder.join("istio-token"));
        // Looking at files each second of days takes long.
        let istiod = Istiod::new(control_plane).rng(7);
        let istiod = set(istiod.poll_interval(Duration::from_secs(600)));
        self.behind(istiod)
    }

    fn behind(&self, istiod: Istiod) -> Istiod {
        let settings = istiod.settings.clone();
        let this = self.clone();
        let handle = Handle::new(settings.clone(), move |ask| {
            this.clone().answer(ask, settings.clone())
        });
        istiod.handle.set(handle).unwrap();
        istiod
    }

    fn answer(self, ask: Ask, settings: Settings) -> Fetching {
        self.asks.lock().unwrap().push(ask.clone());
        let inside = Inside::new(&self);
        Box::pin(async move {
            let _inside = inside;
            if self.takes > Duration::ZERO {
                tokio::time::sleep(self.takes).await;
            }
            if let Some(kind) = *self.fails.lock().unwrap() {
                return Err(Failed::from(Error::new(kind, "the service")));
            }
            let now = settings.control_plane.now();
            let whose = self.whose.lock().unwrap().clone();
            let whose = whose.unwrap_or(ask.identity);
            let certificate = self.issuer.certificate(&whose, now, self.life);
            *self.had.lock().unwrap().entry(whose).or_default() += 1;
            Ok(Fetched {
                bundle: self.issuer.bundle(&certificate),
                content: settings
                    .state_dir
                    .map(|_| self.issuer.content(&certificate)),
            })
        })
    }
}

/// Counts the fetches in flight.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn new(service: &Service) -> Self {
        let inside = service.inside.fetch_add(1, Ordering::Relaxed) + 1;
        service.most_inside.fetch_max(inside, Ordering::Relaxed);
        Self(Arc::clone(&service.inside))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn next(certificates: &mut CertificateStream) -> Result<Bundle, Error> {
    certificates.next().await.expect("the source goes on")
}

/// Nothing comes within `time`.
async fn quiet(certificates: &mut CertificateStream, time: Duration) -> bool {
    tokio::time::timeout(time, certificates.next())
        .await
        .is_err()
}
