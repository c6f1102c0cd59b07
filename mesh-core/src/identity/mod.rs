//! Who vouches for a workload: where its certificate, key and trusted roots come from.
//!
//! A [`CertificateSource`] gives the certificates of one identity, and every renewal of them, as a
//! stream. Ready-made ones:
//!
//! | source | for |
//! |---|---|
//! | [`DevCa`] | laptops and tests: a certificate authority in a folder, or in this process alone |
//! | [`Files`] | certificates that somebody else writes and renews: cert-manager, a CSI driver, step, Vault agent |
//! | `Istiod` (feature `istiod`) | istiod's certificate service, in a Pod or on a host |
//! | `WorkloadApi` (feature `workload-api`) | SPIRE, or another agent of SPIFFE |
//! | [`Renewed`] | an authority of your own: give it the function that fetches one certificate |

mod clock;
#[cfg(feature = "dev-ca")]
mod dev;
mod error;
mod files;
#[cfg(feature = "istiod")]
#[cfg_attr(
    not(any(feature = "aws-lc-rs", feature = "ring")),
    allow(dead_code, reason = "without crypto there is nothing to fetch or keep")
)]
mod istiod;
#[cfg(any(
    feature = "istiod",
    all(feature = "dev-ca", any(feature = "aws-lc-rs", feature = "ring"))
))]
#[cfg_attr(
    not(any(feature = "aws-lc-rs", feature = "ring")),
    allow(dead_code, reason = "without crypto there is nothing to fetch or keep")
)]
pub(crate) mod private_files;
mod renew;
mod renewed;
#[cfg(feature = "workload-api")]
mod workload_api;

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;

#[cfg(feature = "dev-ca")]
pub use dev::DevCa;
pub use error::{Error, ErrorKind};
pub use files::Files;
#[cfg(feature = "istiod")]
pub use istiod::Istiod;
pub use renewed::Renewed;
#[cfg(feature = "workload-api")]
pub use workload_api::WorkloadApi;

/// Whose trust domain the certificates of an identity may be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum TrustDomain {
    /// The one that is asked for.
    #[default]
    Asked,
    /// Whichever the authority's is, as nobody was told: the asked one is a guess.
    #[cfg(feature = "istiod")]
    Issued,
}

impl TrustDomain {
    pub(crate) fn permits(self, asked: &Identity, found: &Identity) -> bool {
        match self {
            Self::Asked => asked == found,
            #[cfg(feature = "istiod")]
            Self::Issued => {
                asked.namespace() == found.namespace()
                    && asked.service_account() == found.service_account()
            }
        }
    }
}

/// The certificates of one identity, as a [`CertificateSource`] gives them.
pub type CertificateStream = Pin<Box<dyn Stream<Item = Result<Bundle, Error>> + Send>>;

/// A source of certificates: one of the two traits by which this crate is extended.
///
/// # Examples
///
/// A source that has its one certificate already, and never renews it. It says no to other identities,
/// as a mesh would: a certificate of another identity than was asked for is never used.
///
/// ```
/// use mesh_core::authz::Identity;
/// use mesh_core::hbone::tls::Bundle;
/// use mesh_core::identity::{CertificateSource, CertificateStream, Error, ErrorKind};
///
/// struct Fixed(Bundle);
///
/// impl CertificateSource for Fixed {
///     fn watch(&self, identity: Identity) -> CertificateStream {
///         let item = if *self.0.identity() == identity {
///             Ok(self.0.clone())
///         } else {
///             Err(Error::new(ErrorKind::WrongIdentity, identity.to_string()))
///         };
///         Box::pin(tokio_stream::once(item))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no source of certificates",
    note = "of a builder, `Missing` means that `.identity(…)` was not called"
)]
pub trait CertificateSource: Send + Sync + 'static {
    /// Watches the certificates of one identity: the first as soon as there is one, then each
    /// renewal, in time before the last one expires.
    ///
    /// A bundle is of exactly the identity that was asked for, and has not expired. An error is an
    /// item too: the source goes on trying, and the last bundle is good until it expires. Only the
    /// end of the stream means that nothing more will come.
    ///
    /// The call itself does no work and does not fail; the stream is polled on a tokio runtime.
    /// Whoever wants an identity in several places watches it once.
    fn watch(&self, identity: Identity) -> CertificateStream;
}

impl<S: CertificateSource + ?Sized> CertificateSource for Arc<S> {
    fn watch(&self, identity: Identity) -> CertificateStream {
        (**self).watch(identity)
    }
}

impl<S: CertificateSource + ?Sized> CertificateSource for Box<S> {
    fn watch(&self, identity: Identity) -> CertificateStream {
        (**self).watch(identity)
    }
}

impl fmt::Debug for dyn CertificateSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CertificateSource")
    }
}
