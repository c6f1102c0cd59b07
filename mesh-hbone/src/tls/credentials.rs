//! The certificate in use, exchanged while connections go on.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use mesh_authz::Identity;
use rustls::client::Resumption;
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::version::TLS13;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use webpki::KeyUsage;

use super::bundle::{Bundle, invalid};
use super::provider::{CipherPreference, Provider};
use super::read_buffer::ReadBuffers;
use super::verify::{Expected, Remembered, Rules, Verifier};
use crate::{Error, ErrorKind, Side};

/// ALPN of HBONE, and the only one offered or accepted.
pub(super) const ALPN: &[u8] = b"h2";

/// How handshakes are made. All durations and sizes have defaults.
#[derive(Clone)]
pub struct Options {
    pub(super) aliases: Vec<String>,
    pub(super) handshake_timeout: Duration,
    pub(super) send_buffer: usize,
    pub(super) flush_at: usize,
    pub(super) read_buffer: usize,
    pub(super) spare_read_buffers: usize,
    pub(super) remembered_certificates: usize,
    pub(super) cipher: CipherPreference,
    pub(super) clock: Arc<dyn TimeProvider>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            aliases: Vec::new(),
            handshake_timeout: Duration::from_secs(10),
            send_buffer: 512 * 1024,
            flush_at: 384 * 1024,
            read_buffer: 24 * (RECORD + RECORD_OVERHEAD),
            spare_read_buffers: 16,
            remembered_certificates: 256,
            cipher: CipherPreference::default(),
            clock: Arc::new(DefaultTimeProvider),
        }
    }
}

impl Options {
    /// Accepts clients of these trust domains beside our own. Default: none.
    pub fn trust_domain_aliases(
        mut self,
        aliases: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.aliases = aliases.into_iter().map(Into::into).collect();
        self
    }

    /// Longest time from the transport to a finished handshake. Default: 10 s, Linkerd's value.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Which AES-GCM a client asks for first. Default: AES-256, as istio/ztunnel.
    pub fn cipher_preference(mut self, cipher: CipherPreference) -> Self {
        self.cipher = cipher;
        self
    }

    /// Bytes a connection holds encrypted at most, no less than [`flush_at`](Self::flush_at): for less, lower that, too.
    /// Default: 512 KiB.
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = bytes;
        self
    }

    /// Encrypted bytes from which they are written without a flush and writers wait for the
    /// transport; a deferred flush leaves less than this in memory. Default: 384 KiB, so that one
    /// system call carries 24 records and what is in flight stays in the second-level cache.
    pub fn flush_at(mut self, bytes: usize) -> Self {
        self.flush_at = bytes;
        self
    }

    /// Bytes one read of the transport asks for. Default: 24 full records, 393 744 bytes, as
    /// many as one write of a peer of the same kind carries; at least one of the largest, 16 645 bytes. A
    /// connection holds the buffer only while there is something in it.
    pub fn read_buffer(mut self, bytes: usize) -> Self {
        self.read_buffer = bytes;
        self
    }

    /// Read buffers kept for the next connection that has something to read. Default: 16 (6 MiB).
    pub fn spare_read_buffers(mut self, count: usize) -> Self {
        self.spare_read_buffers = count;
        self
    }

    /// Certificates that are remembered, so that a peer that comes back costs one verification of a
    /// signature less: those read and accepted as a leaf, and signatures on certificates and CRLs found
    /// good, so many of each. Default: 256, of less than 1 KiB each; 0 looks at all again.
    ///
    /// What is remembered are bytes: the certificate, or the key, what was signed, and the signature.
    /// Whether a certificate is valid now, revoked, of the right use and of the right identity is judged at
    /// each handshake, and so is the signature by which the peer proves that it has the key.
    pub fn remembered_certificates(mut self, count: usize) -> Self {
        self.remembered_certificates = count;
        self
    }

    /// Judges validity by this clock. Default: the system's.
    pub fn clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(Clock(now));
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let wrong = |detail: &'static str| {
            Err(Error::new(ErrorKind::InvalidSettings, Side::Us).with_detail(detail))
        };
        if self.send_buffer < RECORD {
            return wrong("send_buffer: expected at least 16384 bytes, one TLS record");
        }
        if self.flush_at == 0 || self.flush_at > self.send_buffer {
            return wrong("flush_at: expected more than zero and at most send_buffer");
        }
        if self.read_buffer == 0 {
            return wrong("read_buffer: expected at least one byte");
        }
        if self.handshake_timeout.is_zero() {
            return wrong("handshake_timeout: expected more than zero");
        }
        Ok(())
    }
}

/// Plaintext of one TLS record at most (RFC 8446, 5.1).
pub(super) const RECORD: usize = 16 * 1024;

/// What TLS 1.3 adds to a record: header, content type, AES-GCM tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("trust_domain_aliases", &self.aliases)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("send_buffer", &self.send_buffer)
            .field("flush_at", &self.flush_at)
            .field("read_buffer", &self.read_buffer)
            .field("spare_read_buffers", &self.spare_read_buffers)
            .field("remembered_certificates", &self.remembered_certificates)
            .field("cipher_preference", &self.cipher)
            .finish_non_exhaustive()
    }
}

struct Clock<F>(F);

impl<F> fmt::Debug for Clock<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl<F: Fn() -> SystemTime + Send + Sync> TimeProvider for Clock<F> {
    fn current_time(&self) -> Option<UnixTime> {
        let since = (self.0)().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        Some(UnixTime::since_unix_epoch(since))
    }
}

/// A handle to a workload's certificate and the settings of its handshakes.
///
/// Clones share one state: [`replace`](Self::replace) on any of them is seen by every handshake
/// that starts afterwards, while connections that live keep what they were made with.
#[derive(Clone)]
pub struct Credentials {
    shared: Arc<Shared>,
}

struct Shared {
    provider: Provider,
    options: Options,
    active: ArcSwap<Active>,
    generation: watch::Sender<u64>,
    read_buffers: Arc<ReadBuffers>,
    remembered: Arc<Remembered>,
}

/// One bundle with all that can be computed from it before a handshake.
struct Active {
    bundle: Arc<Bundle>,
    rules: Arc<Rules>,
    certificate: Arc<SingleCertAndKey>,
    /// Of clients, but for whom each expects.
    client: ClientConfig,
    crypto: Arc<rustls::crypto::CryptoProvider>,
    clock: Arc<dyn TimeProvider>,
}

impl Credentials {
    /// Checks that the bundle's key belongs to its leaf and makes it the current one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::InvalidBundle`] if the key does not fit or the provider cannot use it;
    /// [`ErrorKind::InvalidSettings`] if the provider has no TLS 1.3 AES-GCM suite or no key
    /// exchange, or if an option is out of range.
    pub fn new(provider: Provider, bundle: Bundle, options: Options) -> Result<Self, Error> {
        options.check()?;
        let remembered = Arc::new(Remembered::new(options.remembered_certificates));
        let active = Active::new(&provider, bundle, &options, &remembered)?;
        let read_buffers = ReadBuffers::new(options.read_buffer, options.spare_read_buffers);
        Ok(Self {
            shared: Arc::new(Shared {
                provider,
                options,
                active: ArcSwap::from_pointee(active),
                generation: watch::Sender::new(1),
                read_buffers: Arc::new(read_buffers),
                remembered,
            }),
        })
    }

    /// Makes another bundle the current one: the next handshake uses its chain, roots and CRLs.
    ///
    /// # Errors
    ///
    /// As [`Credentials::new`]; the old bundle then stays.
    pub fn replace(&self, bundle: Bundle) -> Result<(), Error> {
        let Shared {
            provider,
            options,
            remembered,
            ..
        } = &*self.shared;
        let active = Arc::new(Active::new(provider, bundle, options, remembered)?);
        self.shared.generation.send_modify(|generation| {
            *generation += 1;
            self.shared.active.store(active);
        });
        Ok(())
    }

    /// The bundle that the next handshake will use.
    pub fn current(&self) -> Arc<Bundle> {
        Arc::clone(&self.shared.active.load().bundle)
    }

    /// Who the next handshake will prove that we are: of [`current`](Self::current), at the cost of one reference count.
    pub fn identity(&self) -> Identity {
        self.shared.active.load().bundle.identity().clone()
    }

    /// Whether the next handshake will prove that we are this one: as [`identity`](Self::identity), without a reference count.
    pub fn proves(&self, identity: &Identity) -> bool {
        self.shared.active.load().bundle.identity() == identity
    }

    /// Counts bundles: 1 for the first, one more for each [`replace`](Self::replace).
    pub fn generation(&self) -> u64 {
        *self.shared.generation.borrow()
    }

    /// Tells of every later [`replace`](Self::replace), for example to judge live connections
    /// again by new CRLs. The value is the [`generation`](Self::generation).
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// The settings.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    pub(super) fn read_buffers(&self) -> &Arc<ReadBuffers> {
        &self.shared.read_buffers
    }

    /// What a handshake with the owner of `chain` would come to now.
    pub(super) fn judge(&self, chain: &[CertificateDer<'_>], side: Side) -> Result<(), Error> {
        let active = self.shared.active.load();
        let usage = match side {
            Side::Downstream => KeyUsage::client_auth(),
            Side::Upstream | Side::Us => KeyUsage::server_auth(),
        };
        let now = active
            .clock
            .current_time()
            .unwrap_or(UnixTime::since_unix_epoch(Duration::ZERO));
        active
            .rules
            .judge_chain(chain, now, usage)
            .map_err(|error| Error::new(error.kind(), side).with_source(error))
    }

    /// What one outgoing handshake needs.
    pub(super) fn client(&self, expected: Expected) -> (ClientConfig, Arc<Verifier>) {
        let active = self.shared.active.load();
        let verifier = Arc::new(Verifier::new(Arc::clone(&active.rules), expected));
        let mut config = active.client.clone();
        config
            .dangerous()
            .set_certificate_verifier(Arc::clone(&verifier) as _);
        (config, verifier)
    }

    /// What one incoming handshake needs.
    pub(super) fn server(&self) -> Result<(ServerConfig, Arc<Verifier>), rustls::Error> {
        let active = self.shared.active.load();
        let verifier = Arc::new(Verifier::new(
            Arc::clone(&active.rules),
            Expected::TrustDomain,
        ));
        let mut config = ServerConfig::builder_with_details(
            Arc::clone(&active.crypto),
            Arc::clone(&active.clock),
        )
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(&verifier) as _)
        .with_cert_resolver(Arc::clone(&active.certificate) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((config, verifier))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("current", &self.current())
            .field("generation", &self.generation())
            .field("provider", &self.shared.provider)
            .field("options", &self.shared.options)
            .finish()
    }
}

impl Active {
    fn new(
        provider: &Provider,
        bundle: Bundle,
        options: &Options,
        remembered: &Arc<Remembered>,
    ) -> Result<Self, Error> {
        let crypto = usable(provider, options)?;
        let certificate = certified(&bundle, &crypto)?;
        let rules = Rules::new(
            crypto.signature_verification_algorithms,
            remembered,
            bundle.clone(),
            &options.aliases,
        );
        let rules = Arc::new(rules);
        let nobody = Verifier::new(Arc::clone(&rules), Expected::Identities(Vec::new()));
        let mut client =
            ClientConfig::builder_with_details(Arc::clone(&crypto), Arc::clone(&options.clock))
                .with_protocol_versions(&[&TLS13])
                .map_err(|error| {
                    Error::new(ErrorKind::InvalidSettings, Side::Us).with_source(error)
                })?
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(nobody))
                .with_client_cert_resolver(Arc::clone(&certificate) as _);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.enable_sni = false;
        // A resumed session would not look at the certificate again (CVE-2022-21654).
        client.resumption = Resumption::disabled();
        Ok(Self {
            bundle: Arc::new(bundle),
            rules,
            certificate,
            client,
            crypto,
            clock: Arc::clone(&options.clock),
        })
    }
}

/// The provider's cryptography as `options` have it.
pub(super) fn usable(
    provider: &Provider,
    options: &Options,
) -> Result<Arc<rustls::crypto::CryptoProvider>, Error> {
    let crypto = provider.prefer(options.cipher);
    if crypto.cipher_suites.is_empty() || crypto.kx_groups.is_empty() {
        return Err(Error::new(ErrorKind::InvalidSettings, Side::Us).with_detail(
            "provider: expected TLS 1.3 with AES-GCM and X25519MLKEM768, X25519, P-256 or P-384",
        ));
    }
    Ok(crypto)
}

/// What is presented to a peer.
pub(super) fn certified(
    bundle: &Bundle,
    crypto: &rustls::crypto::CryptoProvider,
) -> Result<Arc<SingleCertAndKey>, Error> {
    let key = crypto
        .key_provider
        .load_private_key(bundle.key().clone_key())
        .map_err(|error| invalid("private key").with_source(error))?;
    let certified = CertifiedKey::new(bundle.chain().to_vec(), key);
    certified
        .keys_match()
        .map_err(|error| invalid("private key: expected the leaf's key").with_source(error))?;
    Ok(Arc::new(SingleCertAndKey::from(certified)))
}
