//! Which implementation of cryptography is used, as a value.

use std::fmt;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{CipherSuite, NamedGroup};

/// The cryptography of TLS, restricted to what the mesh speaks.
///
/// TLS 1.3 with AES-256-GCM or AES-128-GCM (no ChaCha20-Poly1305, as in istio/ztunnel), key exchange
/// X25519MLKEM768 where the implementation has it, then X25519, P-256, P-384. It is always passed
/// as a value: neither this crate nor its callers touch rustls' process-wide default.
#[derive(Clone)]
pub struct Provider(Arc<CryptoProvider>);

const SUITES: [CipherSuite; 2] = [
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_AES_128_GCM_SHA256,
];

const GROUPS: [NamedGroup; 4] = [
    NamedGroup::X25519MLKEM768,
    NamedGroup::X25519,
    NamedGroup::secp256r1,
    NamedGroup::secp384r1,
];

/// Which AES-GCM a client asks for first. A server follows the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CipherPreference {
    /// AES-256-GCM first, as istio/ztunnel does: the default.
    #[default]
    Aes256,
    /// AES-128-GCM first: about a tenth more throughput.
    Aes128,
}

impl Provider {
    /// The provider that was compiled in: aws-lc-rs before ring; `None` with neither feature.
    pub fn by_feature() -> Option<Self> {
        #[cfg(feature = "aws-lc-rs")]
        return Some(Self::aws_lc_rs());
        #[cfg(all(feature = "ring", not(feature = "aws-lc-rs")))]
        return Some(Self::ring());
        #[cfg(not(any(feature = "ring", feature = "aws-lc-rs")))]
        return None;
    }

    /// AWS-LC: the fastest AES-GCM, and X25519MLKEM768.
    #[cfg(feature = "aws-lc-rs")]
    pub fn aws_lc_rs() -> Self {
        Arc::new(rustls::crypto::aws_lc_rs::default_provider()).into()
    }

    /// ring: builds fast and everywhere, and has no post-quantum key exchange.
    #[cfg(feature = "ring")]
    pub fn ring() -> Self {
        Arc::new(rustls::crypto::ring::default_provider()).into()
    }

    /// Whether a post-quantum key exchange can be negotiated.
    pub fn is_post_quantum(&self) -> bool {
        self.0
            .kx_groups
            .iter()
            .any(|group| group.name() == NamedGroup::X25519MLKEM768)
    }

    /// The same provider with its suites in the order asked for.
    pub(super) fn prefer(&self, preference: CipherPreference) -> Arc<CryptoProvider> {
        match preference {
            CipherPreference::Aes256 => Arc::clone(&self.0),
            CipherPreference::Aes128 => {
                let mut crypto = CryptoProvider::clone(&self.0);
                crypto.cipher_suites.reverse();
                Arc::new(crypto)
            }
        }
    }
}

impl From<Arc<CryptoProvider>> for Provider {
    fn from(provider: Arc<CryptoProvider>) -> Self {
        let mut crypto = Arc::unwrap_or_clone(provider);
        crypto.cipher_suites = SUITES
            .iter()
            .filter_map(|wanted| {
                let mut suites = crypto.cipher_suites.iter();
                suites.find(|suite| suite.suite() == *wanted).copied()
            })
            .collect();
        crypto.kx_groups = GROUPS
            .iter()
            .filter_map(|wanted| {
                let mut groups = crypto.kx_groups.iter();
                groups.find(|group| group.name() == *wanted).copied()
            })
            .collect();
        Self(Arc::new(crypto))
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suites = self.0.cipher_suites.iter().map(|suite| suite.suite());
        let groups = self.0.kx_groups.iter().map(|group| group.name());
        f.debug_struct("Provider")
            .field("suites", &suites.collect::<Vec<_>>())
            .field("groups", &groups.collect::<Vec<_>>())
            .finish()
    }
}
