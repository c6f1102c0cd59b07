//! The simulated network as a mesh's transport, with somebody who listens in.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use mesh_core::{BoxedIo, Incoming, Transport};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use crate::world::Witness;

/// What every payload of an application begins with: on the wire it is never to be seen.
pub(crate) const CANARY: &[u8] = b"canary-in-the-mine";

/// The transport of the host with this address.
pub(crate) fn transport(own: IpAddr, witness: &Witness) -> Transport {
    let (dials, accepts) = (witness.clone(), witness.clone());
    Transport::new(
        move |to| {
            let witness = dials.clone();
            async move {
                let io = TcpStream::connect(to).await?;
                Ok(BoxedIo::new(Tapped { io, witness }))
            }
        },
        move |on: SocketAddr| {
            let witness = accepts.clone();
            async move {
                // The only address that the simulated network knows.
                let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), on.port());
                let listener = TcpListener::bind(any).await?;
                let local = SocketAddr::new(own, listener.local_addr()?.port());
                let accepting = Accepting {
                    listener,
                    local,
                    witness,
                };
                Ok(Box::new(accepting) as Box<dyn Incoming>)
            }
        },
    )
}

struct Accepting {
    listener: TcpListener,
    local: SocketAddr,
    witness: Witness,
}

impl Incoming for Accepting {
    fn accept(&mut self) -> Pin<Box<dyn Future<Output = (BoxedIo, SocketAddr)> + Send + '_>> {
        Box::pin(async {
            loop {
                if let Ok((io, from)) = self.listener.accept().await {
                    let witness = self.witness.clone();
                    return (BoxedIo::new(Tapped { io, witness }), from);
                }
            }
        })
    }

    fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

/// A connection to which somebody listens.
struct Tapped {
    io: TcpStream,
    witness: Witness,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if says_canary(buf) {
            self.witness.plaintext(self.io.peer_addr().ok());
        }
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

fn says_canary(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| *byte == CANARY[0]) {
        if rest[at..].starts_with(CANARY) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}
