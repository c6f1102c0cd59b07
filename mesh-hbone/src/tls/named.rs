//! TLS to a server that is known by its name: the control plane.

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;
use webpki::{EndEntityCert, KeyUsage};

use super::bundle::{Bundle, anchors_of};
use super::credentials::{self, ALPN, Options};
use super::encrypted::Encrypted;
use super::failure;
use super::fingerprint::Fingerprint;
use super::handshake::Handshake;
use super::provider::Provider;
use super::read_buffer::ReadBuffers;
use super::session::Session;
use super::verify::{Trust, no_tls12};
use super::verify_error::VerifyError;
use crate::{Error, ErrorKind, Side};

/// A TLS client for servers that are known by a DNS name or an IP address rather than a SPIFFE id.
///
/// This is how a mesh's control plane is reached: istiod's certificate has the names
/// `istiod.istio-system.svc` and the like, and no SPIFFE id. TLS 1.3 with AES-GCM and ALPN `h2`, no
/// resumption; the name is sent as SNI, by which a gateway can pass the connection on. The server
/// is believed only if its chain leads to one of the roots given here, nobody else's.
///
/// # Examples
///
/// ```no_run
/// use mesh_hbone::tls::{NamedClient, Options, Provider};
/// use rustls_pki_types::{CertificateDer, pem::PemObject};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let roots: Vec<_> = CertificateDer::pem_file_iter("root-cert.pem")?.collect::<Result<_, _>>()?;
/// let provider = Provider::by_feature().ok_or("no crypto provider is compiled in")?;
/// let client = NamedClient::new(&provider, &roots, Options::default())?;
/// let io = tokio::net::TcpStream::connect("istiod.istio-system.svc:15012").await?;
/// let stream = client.connect(io, &["istiod.istio-system.svc"]).await?;
/// # let _ = stream;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct NamedClient {
    crypto: Arc<CryptoProvider>,
    trusted: Arc<Trusted>,
    certificate: Option<Arc<SingleCertAndKey>>,
    options: Options,
    read_buffers: Arc<ReadBuffers>,
}

#[derive(Debug)]
struct Trusted {
    anchors: Vec<TrustAnchor<'static>>,
    fingerprints: Vec<Fingerprint>,
}

impl NamedClient {
    /// Takes the roots to which a server's chain has to lead. Of `options` it uses the time-out, the
    /// buffers, the preferred cipher and the clock.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] if there is no root or one does not parse;
    /// [`ErrorKind::InvalidSettings`] as [`Credentials::new`](super::Credentials::new).
    pub fn new(
        provider: &Provider,
        roots: &[CertificateDer<'_>],
        options: Options,
    ) -> Result<Self, Error> {
        options.check()?;
        let trusted = Trusted {
            anchors: anchors_of(roots)?,
            fingerprints: roots.iter().map(|root| Fingerprint::of(root)).collect(),
        };
        let buffers = ReadBuffers::new(options.read_buffer, options.spare_read_buffers);
        Ok(Self {
            crypto: credentials::usable(provider, &options)?,
            trusted: Arc::new(trusted),
            certificate: None,
            options,
            read_buffers: Arc::new(buffers),
        })
    }

    /// Presents a certificate to servers that ask for one. Default: none.
    ///
    /// Whether it has expired is for the caller to see: most servers refuse the whole connection
    /// for a certificate that they do not believe, though they would do without any.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] if the key does not fit or the provider cannot use it.
    pub fn with_certificate(mut self, bundle: &Bundle) -> Result<Self, Error> {
        self.certificate = Some(credentials::certified(bundle, &self.crypto)?);
        Ok(self)
    }

    /// The fingerprints of the roots, in their order.
    pub fn root_fingerprints(&self) -> &[Fingerprint] {
        &self.trusted.fingerprints
    }

    /// Makes a TLS session over `io` to a server whose certificate is for one of `names`: DNS names or
    /// IP addresses. The first is sent as SNI if it is a DNS name.
    ///
    /// # Errors
    ///
    /// Of [`Side::Upstream`]; what was wrong with the server's certificate is in
    /// [`Error::verification`]. That the server refused *our* certificate shows on the first read.
    /// [`ErrorKind::InvalidSettings`] if there is no name, or one is neither DNS name nor address.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `io`.
    pub async fn connect<IO>(&self, io: IO, names: &[&str]) -> Result<NamedStream<IO>, Error>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let names: Vec<ServerName<'static>> = names
            .iter()
            .map(|name| {
                ServerName::try_from((*name).to_owned()).map_err(|error| {
                    let detail =
                        format!("server name {name:?}: expected a DNS name or an IP address");
                    settings(detail).with_source(error)
                })
            })
            .collect::<Result<_, _>>()?;
        let first = names
            .first()
            .cloned()
            .ok_or_else(|| settings("server names: expected at least one, found none".into()))?;
        let verifier = Arc::new(NamedVerifier {
            algorithms: self.crypto.signature_verification_algorithms,
            trusted: Arc::clone(&self.trusted),
            names,
            failure: OnceLock::new(),
        });
        let config = self
            .config(&verifier)
            .map_err(|error| settings("provider".into()).with_source(error))?;
        let tls = Handshake::client(config, first)
            .map_err(|error| settings("server names".into()).with_source(error))?;
        let mut session = Session::new(io, tls, &self.options, &self.read_buffers);
        let side = Side::Upstream;
        let limit = self.options.handshake_timeout;
        let negotiated = timeout(limit, poll_fn(|cx| session.poll_handshake(cx)))
            .await
            .map_err(|_| super::timed_out(side))?
            .map_err(|failure| failure::of_handshake(failure, verifier.failure.get(), side))?;
        if negotiated.alpn.as_deref() != Some(ALPN) {
            return Err(Error::new(ErrorKind::NoProtocol, side).retry_safe());
        }
        Ok(NamedStream {
            io: Encrypted { session, side },
        })
    }

    fn config(&self, verifier: &Arc<NamedVerifier>) -> Result<ClientConfig, rustls::Error> {
        let builder = ClientConfig::builder_with_details(
            Arc::clone(&self.crypto),
            Arc::clone(&self.options.clock),
        )
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(verifier) as _);
        let mut config = match &self.certificate {
            Some(certificate) => builder.with_client_cert_resolver(Arc::clone(certificate) as _),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not look at the certificate again (CVE-2022-21654).
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

fn settings(detail: String) -> Error {
    Error::new(ErrorKind::InvalidSettings, Side::Us).with_detail(detail)
}

impl fmt::Debug for NamedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedClient")
            .field("roots", &self.trusted.fingerprints)
            .field("certificate", &self.certificate.is_some())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Judges one server.
#[derive(Debug)]
struct NamedVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    trusted: Arc<Trusted>,
    names: Vec<ServerName<'static>>,
    /// rustls' own error has no room for it.
    failure: OnceLock<VerifyError>,
}

impl NamedVerifier {
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), VerifyError> {
        let leaf = EndEntityCert::try_from(end_entity)
            .map_err(|error| VerifyError::certificate(&error))?;
        let trust = Trust {
            algorithms: self.algorithms.all,
            anchors: &self.trusted.anchors,
            roots: &self.trusted.fingerprints,
            crls: &[],
        };
        let presented = (end_entity, intermediates);
        trust.chain(&leaf, presented, now, KeyUsage::server_auth())?;
        let mut names = self.names.iter();
        if names.any(|name| leaf.verify_is_valid_for_subject_name(name).is_ok()) {
            return Ok(());
        }
        let expected = self.names.iter().map(|name| name.to_str().into_owned());
        Err(VerifyError::UnexpectedName {
            got: leaf.valid_dns_names().map(str::to_owned).collect(),
            expected: expected.collect(),
        })
    }
}

impl ServerCertVerifier for NamedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(|error| {
                let alert = error.alert();
                // The first to be found is why the handshake ends.
                let _ = self.failure.set(error);
                alert.into()
            })
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// A TLS 1.3 stream to a server that proved its name to a [`NamedClient`].
///
/// Ends, errors and cancel safety are as [`TlsStream`](super::TlsStream)'s.
pub struct NamedStream<IO> {
    io: Encrypted<IO>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> NamedStream<IO> {
    /// The transport, for its addresses; bytes read or written there break the stream.
    pub fn get_ref(&self) -> &IO {
        self.io.session.io()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for NamedStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for NamedStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

impl<IO> fmt::Debug for NamedStream<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedStream").finish_non_exhaustive()
    }
}
