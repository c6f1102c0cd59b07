//! Mutual TLS by tokio-rustls, and nothing of the mesh: what TLS alone costs.
//!
//! The chain, the cipher suite and the key exchange are those of the mesh; no tickets, no resumption.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::SanType;
use rcgen::string::Ia5String;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, NamedGroup, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::{Root, identity};
use crate::{BoxError, Done};

pub(crate) const SUITE: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
pub(crate) const GROUP: NamedGroup = NamedGroup::X25519MLKEM768;

/// The service account of both ends.
pub(crate) const ACCOUNT: &str = "bare";

/// The server's name: rustls' own verifier looks for no SPIFFE id.
const NAME: &str = "lab.example";

/// What both ends show, and whom they believe.
pub(crate) struct Keys {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) trusted: CertificateDer<'static>,
}

impl Keys {
    pub(crate) fn issue(root: &Root) -> Result<Self, BoxError> {
        let leaf = root.issue(names()?)?;
        Ok(Self {
            chain: vec![CertificateDer::clone(leaf.certificate.der())],
            key: PrivatePkcs8KeyDer::from(leaf.key.serialize_der()).into(),
            trusted: root.der().clone(),
        })
    }

    /// Writes what [`read`](Self::read) reads, but for the root's own files.
    pub(crate) fn write(root: &Root, folder: &Path) -> Done {
        root.write_leaf(folder, ACCOUNT, names()?)?;
        Ok(())
    }

    pub(crate) fn read(folder: &Path) -> Result<Self, BoxError> {
        let read = |name: String| fs::read(folder.join(name));
        let certificate = read(format!("{ACCOUNT}.crt"))?;
        Ok(Self {
            chain: vec![CertificateDer::from_pem_slice(&certificate)?],
            key: PrivateKeyDer::from_pem_slice(&read(format!("{ACCOUNT}.key"))?)?,
            trusted: CertificateDer::from_pem_slice(&read("root.pem".into())?)?,
        })
    }

    pub(crate) fn client(&self) -> Result<ClientConfig, BoxError> {
        let mut client = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        client.resumption = Resumption::disabled();
        Ok(client)
    }

    pub(crate) fn server(&self) -> Result<ServerConfig, BoxError> {
        let roots = Arc::new(self.roots()?);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto()).build()?;
        let mut server = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        server.send_tls13_tickets = 0;
        Ok(server)
    }

    fn roots(&self) -> Result<RootCertStore, BoxError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.trusted.clone())?;
        Ok(roots)
    }
}

fn names() -> Result<Vec<SanType>, BoxError> {
    Ok(vec![
        SanType::URI(Ia5String::try_from(identity(ACCOUNT))?),
        SanType::DnsName(Ia5String::try_from(NAME)?),
    ])
}

/// What tunnels negotiate, and nothing else.
fn crypto() -> Arc<CryptoProvider> {
    let mut crypto = aws_lc_rs::default_provider();
    crypto.cipher_suites.retain(|suite| suite.suite() == SUITE);
    crypto.kx_groups.retain(|group| group.name() == GROUP);
    Arc::new(crypto)
}

/// The client's handshake.
pub(crate) async fn connect(
    connector: &TlsConnector,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME).map_err(io::Error::other)?;
    connector.connect(name, stream).await
}
