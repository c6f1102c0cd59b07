//! One connection to the control plane.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use mesh_hbone::ErrorKind as TlsErrorKind;
use mesh_hbone::tls::{Bundle, NamedClient, NamedStream, Options, Provider, VerifyError};
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::files::{read, read_certificates};
use super::{ControlPlane, Dialling};
use crate::identity::{Error, ErrorKind};
use crate::net::{BoxedIo, Transport};
use crate::outbound::in_order;

/// No token is longer; whatever is, is something else.
const MAX_TOKEN: usize = 64 << 10;

impl ControlPlane {
    /// Connects, and makes a TLS session over the connection.
    ///
    /// The server is believed by the roots in the file and, unless the file is of the server alone, by
    /// `known`, which are those that came with earlier certificates. `certificate` is presented if it has
    /// not expired.
    pub(crate) async fn connect(
        &self,
        known: &[CertificateDer<'static>],
        certificate: Option<&Bundle>,
    ) -> Result<NamedStream<BoxedIo>, Error> {
        let roots = self.server_roots(known).await?;
        let mut client = self.client(&roots)?;
        if let Some(bundle) = certificate.filter(|bundle| bundle.not_after() > self.now()) {
            client = client.with_certificate(bundle).map_err(|error| {
                Error::new(ErrorKind::Invalid, "our own certificate").with_source(error)
            })?;
        }
        let host = host(&self.address)?;
        let io = timeout(self.connect_timeout, self.dial())
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(|error| self.unavailable("connecting").with_source(error))?;
        let names: Vec<&str> = match &*self.server_names {
            [] => vec![host],
            names => names.iter().map(String::as_str).collect(),
        };
        client
            .connect(io, &names)
            .await
            .map_err(|error| self.refused_by_us(error))
    }

    /// The token to send; `None` if none is to be sent.
    ///
    /// # Errors
    ///
    /// It is missing, empty, or no token; the error names the file.
    pub(crate) async fn token(&self) -> Result<Option<Zeroizing<String>>, Error> {
        let Some(path) = &self.token else {
            return Ok(None);
        };
        let wrong = |what: &str| {
            let detail = format!("token file {} {what}", path.display());
            Error::new(ErrorKind::Token, detail)
        };
        let content = read(path)
            .await
            .map_err(|error| wrong("cannot be read").with_source(error))?
            .ok_or_else(|| wrong("is missing"))?;
        let token = content.trim_ascii();
        if token.is_empty() {
            return Err(wrong("is empty"));
        }
        if token.len() > MAX_TOKEN || !token.iter().all(u8::is_ascii_graphic) {
            return Err(wrong("holds no token: expected a JWT on one line"));
        }
        let token =
            str::from_utf8(token).map_err(|error| wrong("holds no token").with_source(error))?;
        Ok(Some(Zeroizing::new(token.to_owned())))
    }

    async fn server_roots(
        &self,
        known: &[CertificateDer<'static>],
    ) -> Result<Vec<CertificateDer<'static>>, Error> {
        // Roots of workloads say nothing of a server whose own are another's: any workload could be it.
        let known = if self.roots_for_peers { known } else { &[] };
        let path = self.roots.display();
        let found = match read(&self.roots).await {
            Ok(Some(pem)) => read_certificates(&pem, &format!("root certificate file {path}")),
            Ok(None) => {
                let detail = format!("root certificate file {path} is missing");
                Err(Error::new(ErrorKind::Io, detail))
            }
            Err(error) => {
                let detail = format!("root certificate file {path} cannot be read");
                Err(Error::new(ErrorKind::Io, detail).with_source(error))
            }
        };
        match found {
            Ok(mut roots) => {
                for root in known {
                    if !roots.contains(root) {
                        roots.push(root.clone());
                    }
                }
                Ok(roots)
            }
            Err(error) if known.is_empty() => Err(error),
            Err(error) => {
                tracing::warn!(target: "mesh::identity", %error, "the roots of an earlier certificate are used");
                Ok(known.to_vec())
            }
        }
    }

    fn client(&self, roots: &[CertificateDer<'static>]) -> Result<NamedClient, Error> {
        let by_feature = Provider::by_feature;
        let provider = self.provider.clone().or_else(by_feature).ok_or_else(|| {
            let detail = "turn on the feature `aws-lc-rs` or `ring`, or set a provider";
            Error::new(ErrorKind::NoCrypto, detail)
        })?;
        let clock = self.clock.clone();
        let options = Options::default().clock(move || clock.now());
        NamedClient::new(&provider, roots, options).map_err(|error| {
            let detail = format!("root certificate file {}", self.roots.display());
            Error::new(ErrorKind::Invalid, detail).with_source(error)
        })
    }

    fn dial(&self) -> Dialling {
        match &self.dial {
            Some(dial) => dial(self.address.to_string()),
            None => {
                let this = self.clone();
                Box::pin(async move {
                    let began = Instant::now();
                    let found = this.look_up().await?;
                    let left = this.connect_timeout.saturating_sub(began.elapsed());
                    dial_each(&Transport::tcp(), &found, left).await
                })
            }
        }
    }

    /// The addresses that the address stands for, within the time that connecting may take: a resolver without a
    /// network can be silent for longer.
    pub(crate) async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let address: &str = &self.address;
        let port = || address.rsplit_once(':')?.1.parse().ok();
        if let Some((at, port)) = self.at.zip(port()) {
            return Ok(vec![SocketAddr::new(at, port)]);
        }
        let found = timeout(self.connect_timeout, tokio::net::lookup_host(address)).await;
        Ok(found.map_err(|_| io::ErrorKind::TimedOut)??.collect())
    }

    /// Why we do not believe the server, or it does not believe us.
    fn refused_by_us(&self, error: mesh_hbone::Error) -> Error {
        let path = self.roots.display();
        match error.verification() {
            Some(VerifyError::UnknownIssuer { .. }) => {
                let detail = format!(
                    "{}: root does not match {path}; it has to hold the root of the control plane",
                    self.address
                );
                Error::new(ErrorKind::Untrusted, detail).with_source(error)
            }
            Some(_) => {
                let detail = format!("{}: its certificate is not accepted", self.address);
                Error::new(ErrorKind::Untrusted, detail).with_source(error)
            }
            None if error.kind() == TlsErrorKind::InvalidSettings => {
                Error::new(ErrorKind::Settings, "server names").with_source(error)
            }
            None => self.unavailable("TLS").with_source(error),
        }
    }

    pub(crate) fn unavailable(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{}: {what}", self.address))
    }
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host(address: &str) -> Result<&str, Error> {
    let parts = address.rsplit_once(':');
    let parts = parts.filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    let (host, _) = parts.ok_or_else(|| {
        let detail = format!("control plane address {address:?}: expected host:port");
        Error::new(ErrorKind::Settings, detail)
    })?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    Ok(bare.unwrap_or(host))
}

/// The address that packets to another would come from. None is sent: a UDP socket that is connected
/// knows its route.
pub(crate) fn local_towards(remote: SocketAddr) -> io::Result<IpAddr> {
    let any: SocketAddr = match remote {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}

/// Tries every address of a name, families taking turns. Each has an equal part of the time that is left,
/// so that those which do not answer leave some for the others.
async fn dial_each(
    transport: &Transport,
    found: &[SocketAddr],
    limit: Duration,
) -> io::Result<BoxedIo> {
    let ips: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
    let ordered = in_order(&ips)?;
    let began = Instant::now();
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for (left, ip) in (1..=ordered.len()).rev().zip(&*ordered) {
        // With its port, and the scope of a link-local one.
        let is_it = |address: &&SocketAddr| address.ip().to_canonical() == *ip;
        let Some(&address) = found.iter().find(is_it) else {
            continue;
        };
        let parts = u32::try_from(left).unwrap_or(u32::MAX);
        let part = limit.saturating_sub(began.elapsed()) / parts;
        match timeout(part, transport.dial(address)).await {
            Ok(Ok(io)) => return Ok(io),
            Ok(Err(error)) => last = error,
            Err(_) => {
                let late = format!("no connection to {address} within {part:?}");
                last = io::Error::new(io::ErrorKind::TimedOut, late);
            }
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn addresses_that_do_not_answer_leave_time_for_the_others() {
        let dialled = Arc::new(Mutex::new(Vec::new()));
        let dials = Arc::clone(&dialled);
        let transport = Transport::new(
            move |to: SocketAddr| {
                dials.lock().unwrap().push(to.to_string());
                async move {
                    if to.ip() == IpAddr::from([192, 0, 2, 2]) {
                        return Ok(BoxedIo::new(tokio::io::empty()));
                    }
                    std::future::pending().await
                }
            },
            |_| std::future::ready(Err(io::ErrorKind::Unsupported.into())),
        );
        let found = [
            "[2001:db8::1]:15012",
            "[2001:db8::2]:15012",
            "192.0.2.1:15012",
            "192.0.2.2:15012",
        ];
        let found = found.map(|address| address.parse().unwrap());
        let limit = Duration::from_secs(4);
        let began = Instant::now();
        dial_each(&transport, &found, limit).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(3));
        let expected = [
            "[2001:db8::1]:15012",
            "192.0.2.1:15012",
            "[2001:db8::2]:15012",
            "192.0.2.2:15012",
        ];
        assert_eq!(*dialled.lock().unwrap(), expected);

        let error = dial_each(&transport, &found[..1], limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let error = dial_each(&transport, &[], limit).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
