//! Mutual TLS with SPIFFE identities, as HBONE speaks it.
//!
//! TLS 1.3 only, AES-GCM, ALPN `h2`, no server name, no resumption, certificates on both sides. The
//! only module of this crate in whose signatures rustls appears.
//!
//! A [`Bundle`] is what a certificate source gives; [`Credentials`] hold the current one; [`connect`],
//! [`accept`] and [`accept_with`] make a [`TlsStream`], whose [`Peer`] is known by its certificate.
//! A [`NamedClient`] is for servers outside the mesh's identities, such as its control plane.
//!
//! # Examples
//!
//! ```no_run
//! use mesh_hbone::tls::{self, Bundle, Credentials, Options, Provider};
//! use tokio::net::TcpStream;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let read = |name: &str| std::fs::read(name);
//! let bundle = Bundle::from_pem(&read("chain.pem")?, &read("key.pem")?, &read("roots.pem")?, b"")?;
//! let provider = Provider::by_feature().ok_or("no crypto provider is compiled in")?;
//! let credentials = Credentials::new(provider, bundle, Options::default())?;
//!
//! let server = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse()?;
//! let io = TcpStream::connect("10.0.0.7:15008").await?;
//! let stream = tls::connect(io, &credentials, &[server]).await?;
//! println!("connected to {}", stream.peer().identity());
//! # Ok(())
//! # }
//! ```

mod admission;
mod bundle;
mod client_hello;
mod credentials;
mod crl;
mod encrypted;
mod failure;
mod fingerprint;
mod handshake;
mod named;
mod outgoing;
mod provider;
mod read_buffer;
mod recent;
mod records;
mod session;
mod signatures;
mod slots;
mod stream;
mod verify;
mod verify_error;

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use mesh_authz::Identity;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

pub use admission::{Admission, AdmissionLimits, accept_with};
pub use bundle::Bundle;
pub use credentials::{Credentials, Options};
pub use fingerprint::Fingerprint;
pub use named::{NamedClient, NamedStream};
pub use provider::{CipherPreference, Provider};
pub use stream::{Peer, TlsStream};
pub use verify_error::VerifyError;

use handshake::Handshake;
use session::{Negotiated, Session};
use verify::{Expected, Verifier};

use crate::{Error, ErrorKind, Side};

/// Makes a TLS session over `io` to a server that must be one of `expected`.
///
/// An empty list is an error: it would mean either nobody or anybody.
///
/// # Errors
///
/// Of [`Side::Upstream`]; what was wrong with the server's certificate is in
/// [`Error::verification`]. That the server refused *our* certificate shows on the first read, as
/// TLS 1.3 has it. All are [safe to retry](Error::is_retry_safe).
///
/// # Cancel safety
///
/// Dropping the future drops `io`.
pub async fn connect<IO>(
    io: IO,
    credentials: &Credentials,
    expected: &[Identity],
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connect_as(io, credentials, expected, false).await
}

/// As [`connect`], but the last flight of the handshake leaves with what is said first: when the stream
/// is flushed, or waits for the peer. Until then the server waits, too.
///
/// For what speaks at once, as [`client::handshake`](crate::client::handshake) does: a system call less,
/// and the server is woken once.
///
/// # Errors
///
/// As [`connect`].
///
/// # Cancel safety
///
/// As [`connect`].
pub async fn connect_unflushed<IO>(
    io: IO,
    credentials: &Credentials,
    expected: &[Identity],
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    connect_as(io, credentials, expected, true).await
}

async fn connect_as<IO>(
    io: IO,
    credentials: &Credentials,
    expected: &[Identity],
    holds: bool,
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    if expected.is_empty() {
        return Err(Error::new(ErrorKind::InvalidSettings, Side::Us)
            .with_detail("expected identities: expected at least one, found none"));
    }
    let (config, verifier) = credentials.client(Expected::Identities(expected.to_vec()));
    // SNI is off, so this name is never sent: the one that istio/ztunnel uses.
    let nobody = ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into());
    let tls = Handshake::client(config, nobody).map_err(internal)?;
    let mut session = session(io, tls, credentials);
    if holds {
        session.hold_last_flight();
    }
    let limit = credentials.options().handshake_timeout;
    timeout(limit, finish(session, &verifier, Side::Upstream))
        .await
        .unwrap_or_else(|_| Err(timed_out(Side::Upstream)))
}

/// Makes a TLS session over `io` with a client of our trust domain or an alias of it.
///
/// # Errors
///
/// Of [`Side::Downstream`], as [`connect`].
///
/// # Cancel safety
///
/// Dropping the future drops `io`.
pub async fn accept<IO>(io: IO, credentials: &Credentials) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let limit = credentials.options().handshake_timeout;
    timeout(limit, serve(io, credentials, Vec::new()))
        .await
        .unwrap_or_else(|_| Err(timed_out(Side::Downstream)))
}

/// The server's handshake, after `first` was read from `io`.
async fn serve<IO>(
    io: IO,
    credentials: &Credentials,
    first: Vec<u8>,
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (config, verifier) = credentials.server().map_err(internal)?;
    let tls = Handshake::server(config).map_err(internal)?;
    let mut session = session(io, tls, credentials);
    session.start_with(&first);
    // Or it would be held until the handshake ends.
    drop(first);
    finish(session, &verifier, Side::Downstream).await
}

fn session<IO>(io: IO, tls: Handshake, credentials: &Credentials) -> Session<IO>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    Session::new(io, tls, credentials.options(), credentials.read_buffers())
}

async fn finish<IO>(
    mut session: Session<IO>,
    verifier: &Verifier,
    side: Side,
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let negotiated = poll_fn(|cx| session.poll_handshake(cx))
        .await
        .map_err(|failure| {
            let found = verifier
                .outcome()
                .and_then(|outcome| outcome.as_ref().err());
            failure::of_handshake(failure, found, side)
        })?;
    if negotiated.alpn.as_deref() != Some(credentials::ALPN) {
        return Err(Error::new(ErrorKind::NoProtocol, side).retry_safe());
    }
    let Some(Ok(leaf)) = verifier.outcome() else {
        return Err(Error::new(ErrorKind::NoCertificate, side).retry_safe());
    };
    let Negotiated {
        chain,
        key_exchange,
        cipher_suite,
        ..
    } = negotiated;
    let peer = Peer::new(Arc::clone(leaf), chain, side);
    let algorithms = (key_exchange, cipher_suite);
    Ok(TlsStream::new(session, peer, algorithms, side))
}

/// rustls refuses our own settings.
fn internal(error: rustls::Error) -> Error {
    Error::new(ErrorKind::InvalidSettings, Side::Us).with_source(error)
}

fn timed_out(side: Side) -> Error {
    Error::new(ErrorKind::Timeout, side)
        .with_detail("TLS handshake")
        .retry_safe()
}
