//! Certificates that nobody may accept, between Envoy and us: refused by whoever sees them, on both
//! sides.

use std::net::Ipv4Addr;

use mesh_hbone::client;
use mesh_hbone::config::Config;
use mesh_hbone::tls::{self, Bundle, Credentials, Options};
use mesh_hbone::{Error, ErrorKind, Side};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, SerialNumber, date_time_ymd};
use tokio::net::{TcpListener, TcpStream};

use crate::authority::{CLIENT, SERVER, id, provider};
use crate::envoy::{Envoy, Files, Pki, Role, soon};
use crate::require;

/// What is wrong with a certificate.
#[derive(Debug, Clone, Copy)]
enum Flaw {
    Expired,
    NotYetValid,
    WrongUsage,
    Revoked,
    /// The same path in another trust domain.
    TrustDomain,
    /// A DNS name instead of a SPIFFE id.
    NoIdentity,
    /// Another workload of the trust domain.
    Identity,
}

const FLAWS: [Flaw; 7] = [
    Flaw::Expired,
    Flaw::NotYetValid,
    Flaw::WrongUsage,
    Flaw::Revoked,
    Flaw::TrustDomain,
    Flaw::NoIdentity,
    Flaw::Identity,
];
const REVOKED: u64 = 4711;
const STRANGER: &str = "spiffe://cluster.local/ns/default/sa/stranger";

impl Flaw {
    /// A certificate of this identity with this flaw.
    fn issue(self, pki: &Pki, identity: &str) -> Files {
        pki.issue_with(identity, |params: &mut CertificateParams| match self {
            Self::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Self::NotYetValid => params.not_before = date_time_ymd(2999, 1, 1),
            Self::WrongUsage => {
                params.extended_key_usages = vec![match identity {
                    CLIENT => ExtendedKeyUsagePurpose::ServerAuth,
                    _ => ExtendedKeyUsagePurpose::ClientAuth,
                }];
            }
            Self::Revoked => params.serial_number = Some(SerialNumber::from(REVOKED)),
            Self::TrustDomain => {
                params.subject_alt_names =
                    vec![uri(&identity.replace("cluster.local", "elsewhere.example"))];
            }
            Self::NoIdentity => {
                let name = "app.default.svc.cluster.local".try_into().unwrap();
                params.subject_alt_names = vec![SanType::DnsName(name)];
            }
            Self::Identity => params.subject_alt_names = vec![uri(STRANGER)],
        })
    }

    /// Whether it is the name that is wrong, in a certificate that is valid.
    fn is_of_the_name(self) -> bool {
        matches!(self, Self::TrustDomain | Self::NoIdentity | Self::Identity)
    }

    /// What we call it, where the peer is on this side.
    fn kind(self, side: Side) -> ErrorKind {
        match self {
            Self::Expired => ErrorKind::Expired,
            Self::NotYetValid => ErrorKind::NotYetValid,
            Self::WrongUsage => ErrorKind::BadKeyUsage,
            Self::Revoked => ErrorKind::Revoked,
            // Who connects knows more than the trust domain of whom it expects.
            Self::TrustDomain if side == Side::Downstream => ErrorKind::UnexpectedTrustDomain,
            Self::TrustDomain | Self::Identity => ErrorKind::UnexpectedIdentity,
            Self::NoIdentity => ErrorKind::BadCertificate,
        }
    }
}

/// Those that a certificate of ours can have: a [`Bundle`] needs a SPIFFE id.
fn flaws_of_ours() -> impl Iterator<Item = Flaw> {
    let all = FLAWS.into_iter();
    all.filter(|flaw| !matches!(flaw, Flaw::NoIdentity))
}

/// Envoy refused each of those for its own reason.
async fn refused_for_its_own_reason(envoy: &Envoy, counters: &str) {
    let (names, others): (Vec<_>, Vec<_>) = flaws_of_ours().partition(|flaw| flaw.is_of_the_name());
    for (counter, flaws) in [("fail_verify_san", names), ("fail_verify_error", others)] {
        let counter = format!("{counters}.{counter}");
        envoy.counted_to(&counter, flaws.len()).await;
    }
}

fn uri(identity: &str) -> SanType {
    SanType::URI(identity.try_into().unwrap())
}

fn bundle(files: &Files) -> Bundle {
    let read = |path| std::fs::read(path).unwrap();
    let crl = files.crl.as_ref().map(read).unwrap_or_default();
    Bundle::from_pem(
        &read(&files.chain),
        &read(&files.key),
        &read(&files.roots),
        &crl,
    )
    .unwrap()
}

fn credentials(files: &Files) -> Credentials {
    Credentials::new(provider(), bundle(files), Options::default()).unwrap()
}

/// An Envoy with this certificate that accepts tunnels.
async fn server(test: &str, files: &Files) -> Option<Envoy> {
    let program = require::peer(test, "PEER_ENVOY")?;
    let nowhere = ([127, 0, 0, 1], 9).into();
    let role = Role::server(files, Ipv4Addr::LOCALHOST.into(), CLIENT, nowhere);
    Some(Envoy::start(&program, &role).await)
}

async fn connect(envoy: &Envoy, ours: &Credentials) -> Result<(), Error> {
    let io = TcpStream::connect(envoy.addr()).await.unwrap();
    let tls = tls::connect(io, ours, &[id(SERVER)]).await?;
    client::handshake(tls, &Config::default()).await.map(drop)
}

#[tokio::test]
async fn envoy_refuses_our_client() {
    let pki = Pki::new();
    let theirs = pki.issue(SERVER).with_crl(pki.revoke(&[REVOKED]));
    let Some(envoy) = server("envoy_refuses_our_client", &theirs).await else {
        return;
    };
    connect(&envoy, &credentials(&pki.issue(CLIENT)))
        .await
        .unwrap();
    for flaw in flaws_of_ours() {
        let ours = credentials(&flaw.issue(&pki, CLIENT));
        let error = soon("a refusal", connect(&envoy, &ours)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.side()),
            (ErrorKind::Refused, Side::Upstream),
            "{flaw:?}"
        );
    }
    refused_for_its_own_reason(&envoy, "listener.tunnels.ssl").await;
}

#[tokio::test]
async fn our_client_refuses_envoy() {
    let pki = Pki::new();
    let ours = credentials(&pki.issue(CLIENT).with_crl(pki.revoke(&[REVOKED])));
    for flaw in FLAWS {
        let theirs = flaw.issue(&pki, SERVER);
        let Some(envoy) = server("our_client_refuses_envoy", &theirs).await else {
            return;
        };
        let error = soon("an answer", connect(&envoy, &ours)).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.side()),
            (flaw.kind(Side::Upstream), Side::Upstream),
            "{flaw:?}"
        );
    }
}

/// What our server says of Envoy, which opens a tunnel for a client.
async fn accept(listener: &TcpListener, envoy: &Envoy, ours: &Credentials) -> Result<(), Error> {
    let _client = TcpStream::connect(envoy.addr()).await.unwrap();
    let (io, _) = soon("a connection from Envoy", listener.accept())
        .await
        .unwrap();
    soon("a handshake", tls::accept(io, ours)).await.map(drop)
}

async fn client(test: &str, files: &Files, to: &TcpListener) -> Option<Envoy> {
    let program = require::peer(test, "PEER_ENVOY")?;
    let role = Role::client(files, SERVER, to.local_addr().unwrap(), "10.0.0.7:9080");
    Some(Envoy::start(&program, &role).await)
}

#[tokio::test]
async fn envoy_refuses_our_server() {
    let pki = Pki::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let theirs = pki.issue(CLIENT).with_crl(pki.revoke(&[REVOKED]));
    let Some(envoy) = client("envoy_refuses_our_server", &theirs, &listener).await else {
        return;
    };
    for flaw in flaws_of_ours() {
        let ours = credentials(&flaw.issue(&pki, SERVER));
        let error = accept(&listener, &envoy, &ours).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.side()),
            (ErrorKind::Refused, Side::Downstream),
            "{flaw:?}"
        );
    }
    envoy
        .logged(&["failure", "CERTIFICATE_VERIFY_FAILED"])
        .await;
    refused_for_its_own_reason(&envoy, "cluster.tunnels.ssl").await;
    let ours = credentials(&pki.issue(SERVER));
    accept(&listener, &envoy, &ours).await.unwrap();
}

#[tokio::test]
async fn our_server_refuses_envoy() {
    let pki = Pki::new();
    let ours = credentials(&pki.issue(SERVER).with_crl(pki.revoke(&[REVOKED])));
    // Which workload of the trust domain it is, authorization judges.
    for flaw in FLAWS
        .into_iter()
        .filter(|flaw| !matches!(flaw, Flaw::Identity))
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let theirs = flaw.issue(&pki, CLIENT);
        let Some(envoy) = client("our_server_refuses_envoy", &theirs, &listener).await else {
            return;
        };
        let error = accept(&listener, &envoy, &ours).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.side()),
            (flaw.kind(Side::Downstream), Side::Downstream),
            "{flaw:?}"
        );
    }
}
