//! Certificates for tests.

use mesh_authz::Identity;
use mesh_hbone::Error;
use mesh_hbone::tls::{Bundle, Credentials, Options, Provider, TlsStream, accept, connect};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use tokio::io::{AsyncReadExt as _, DuplexStream, duplex};

pub(crate) const CLIENT: &str = "spiffe://cluster.local/ns/default/sa/client";
pub(crate) const SERVER: &str = "spiffe://cluster.local/ns/default/sa/server";

pub(crate) fn id(uri: &str) -> Identity {
    uri.parse().unwrap()
}

/// A root, or an intermediate below one.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// What a leaf presents after itself.
    above: Vec<CertificateDer<'static>>,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
}

impl Leaf {
    pub(crate) fn bundle(&self, roots: &[&Authority]) -> Result<Bundle, Error> {
        self.bundle_with(roots, &[])
    }

    pub(crate) fn bundle_with(
        &self,
        roots: &[&Authority],
        crls: &[CertificateRevocationListDer<'_>],
    ) -> Result<Bundle, Error> {
        let roots = roots.iter().map(|root| root.der()).collect();
        Bundle::new(self.chain.clone(), self.key.clone_key(), roots, crls)
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn distribution_point(uri: &str) -> CrlDistributionPoint {
    CrlDistributionPoint {
        uris: vec![uri.to_owned()],
    }
}

/// What Istio's CA issues.
pub(crate) fn leaf_params(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = uris
        .iter()
        .map(|uri| SanType::URI(Ia5String::try_from(*uri).unwrap()))
        .collect();
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    params
}

impl Authority {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_of(name, KeyPair::generate().unwrap())
    }

    pub(crate) fn root_of(name: &str, key: KeyPair) -> Self {
        Self {
            issuer: CertifiedIssuer::self_signed(authority_params(name), key).unwrap(),
            above: Vec::new(),
        }
    }

    pub(crate) fn intermediate(&self, name: &str, serial: u64) -> Self {
        self.intermediate_with(name, |params| {
            params.serial_number = Some(SerialNumber::from(serial));
        })
    }

    pub(crate) fn intermediate_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = authority_params(name);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let mut above = vec![issuer.der().clone()];
        above.extend_from_slice(&self.above);
        Self { issuer, above }
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub(crate) fn leaf(&self, uri: &str) -> Leaf {
        self.issue(&leaf_params(&[uri]))
    }

    pub(crate) fn issue(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(&self.above);
        Leaf {
            chain,
            key: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        }
    }

    /// A CRL that expired long ago and lists `serials`.
    pub(crate) fn crl(&self, serials: &[u64]) -> CertificateRevocationListDer<'static> {
        self.crl_at(serials, None)
    }

    /// The same, for the certificates of one distribution point.
    pub(crate) fn crl_at(
        &self,
        serials: &[u64],
        point: Option<&str>,
    ) -> CertificateRevocationListDer<'static> {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2020, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: point.map(|point| CrlIssuingDistributionPoint {
                distribution_point: distribution_point(point),
                scope: None,
            }),
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// The credentials of a workload that trusts this root.
    pub(crate) fn credentials(&self, uri: &str) -> Credentials {
        self.credentials_with(uri, Options::default())
    }

    pub(crate) fn credentials_with(&self, uri: &str, options: Options) -> Credentials {
        let bundle = self.leaf(uri).bundle(&[self]).unwrap();
        Credentials::new(provider(), bundle, options).unwrap()
    }
}

pub(crate) fn provider() -> Provider {
    Provider::by_feature().expect("a crypto provider")
}

pub(crate) type Shaken = Result<TlsStream<DuplexStream>, Error>;

/// Both ends of a handshake in memory: the client's, then the server's.
pub(crate) async fn shake(
    client: &Credentials,
    server: &Credentials,
    expected: &[&str],
) -> (Shaken, Shaken) {
    let (near, far) = duplex(64 * 1024);
    let expected: Vec<_> = expected.iter().map(|uri| id(uri)).collect();
    tokio::join!(connect(near, client, &expected), accept(far, server))
}

/// Both ends of a handshake that succeeds.
pub(crate) async fn pair() -> (TlsStream<DuplexStream>, TlsStream<DuplexStream>) {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, far) = shake(&client, &server, &[SERVER]).await;
    (near.unwrap(), far.unwrap())
}

/// What a client of ours says first.
pub(crate) async fn client_hello(root: &Authority) -> Vec<u8> {
    let client = root.credentials(CLIENT);
    let (near, mut far) = duplex(64 * 1024);
    let connecting = tokio::spawn(async move { connect(near, &client, &[id(SERVER)]).await });
    let mut hello = vec![0; 4096];
    let count = far.read(&mut hello).await.unwrap();
    hello.truncate(count);
    connecting.abort();
    hello
}
