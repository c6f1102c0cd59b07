//! One request on one connection: what came of it, and where the connection goes then.

use std::sync::{Arc, Weak};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};

use super::dial::Carrier;
use super::http_pool::Using;
use super::running::Running;
use crate::layers::ReplayBody;
use crate::mesh::MeshInner;
use crate::snapshot::Hop;
use crate::{Error, ErrorKind};

/// Where a connection goes back to.
#[derive(Clone)]
pub(super) struct Home {
    pub(super) mesh: Weak<MeshInner>,
    pub(super) hop: Hop,
}

/// A connection that can take a request now.
pub(super) enum Checkout {
    Http1(Exclusive, Home, Age),
    Http2(http2::SendRequest<ReplayBody>, Using, Age),
}

/// An HTTP/1.1 connection.
pub(super) struct Exclusive {
    pub(super) sender: http1::SendRequest<ReplayBody>,
    pub(super) running: Running,
    /// The TLS connection that it shares with others, if it is a tunnel.
    pub(super) carrier: Option<Arc<Carrier>>,
}

impl Exclusive {
    /// Whether it may take another request.
    pub(super) fn is_lasting(&self) -> bool {
        self.sender.is_ready()
            && self
                .carrier
                .as_ref()
                .is_none_or(|carrier| carrier.is_lasting())
    }

    /// As [`is_lasting`](Self::is_lasting), of a request of the workload as who it is now.
    pub(super) fn is_for(&self, mesh: &MeshInner) -> bool {
        self.is_lasting()
            && self
                .carrier
                .as_ref()
                .is_none_or(|carrier| carrier.is_of(mesh))
    }
}

/// Whether a connection served requests before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    New,
    /// Its server may be closing it just now, which says nothing of the endpoint.
    Used,
}

/// A request that was not answered.
pub(super) struct Unanswered {
    pub(super) error: Error,
    /// Whether not a byte of it was sent.
    pub(super) unsent: bool,
}

impl Checkout {
    /// Sends the request.
    pub(super) async fn send(
        self,
        request: Request<ReplayBody>,
    ) -> Result<(Response<Incoming>, Returned), Unanswered> {
        match self {
            Self::Http1(mut exclusive, home, _) => {
                match exclusive.sender.try_send_request(request).await {
                    Ok(response) => Ok((response, Returned::Http1(exclusive, home))),
                    Err(mut error) => Err(Unanswered {
                        unsent: error.take_message().is_some(),
                        error: Error::from_hyper(error.into_error()),
                    }),
                }
            }
            Self::Http2(mut sender, using, _) => match sender.try_send_request(request).await {
                Ok(response) => Ok((response, Returned::Http2(using))),
                Err(mut error) => {
                    let unsent = error.take_message().is_some();
                    let error = Error::from_hyper(error.into_error());
                    // Its server refuses streams, or leaves: the next request has one of its own.
                    if unsent || error.is_retry_safe() {
                        using.retire();
                    }
                    Err(Unanswered { error, unsent })
                }
            },
        }
    }

    pub(super) fn age(&self) -> Age {
        match self {
            Self::Http1(_, _, age) | Self::Http2(_, _, age) => *age,
        }
    }
}

/// A connection whose answer is still being read.
pub(super) enum Returned {
    Http1(Exclusive, Home),
    Http2(#[expect(dead_code, reason = "dropped at the end of the answer")] Using),
}

impl Returned {
    /// Called when the answer was read to its end.
    pub(super) fn check_in(self) {
        let Self::Http1(mut exclusive, home) = self else {
            return;
        };
        let Some(mesh) = home.mesh.upgrade() else {
            return;
        };
        if exclusive.sender.is_ready() {
            mesh.http.check_in(&mesh, home.hop, exclusive);
            return;
        }
        // The connection's task has to notice the end first; it errs when it closes instead.
        let Home { mesh: weak, hop } = home;
        mesh.tasks.spawn(async move {
            if exclusive.sender.ready().await.is_ok()
                && let Some(mesh) = weak.upgrade()
            {
                mesh.http.check_in(&mesh, hop, exclusive);
            }
        });
    }
}

impl Error {
    pub(crate) fn from_hyper(error: hyper::Error) -> Self {
        if error.is_timeout() {
            return Self::new(ErrorKind::RequestTimeout).with_source(error);
        }
        if error.is_user() {
            // The application's own body failed, or its request cannot be sent like this.
            return Self::new(ErrorKind::BadRequest).with_source(error);
        }
        if error.is_closed() {
            return Self::new(ErrorKind::Closed).with_source(error);
        }
        Self::from(crate::BoxError::from(error))
    }

    /// A connection that ended before it could take a request.
    pub(super) fn handshake(error: hyper::Error) -> Self {
        Self::new(ErrorKind::ConnectFailed).with_source(error)
    }
}
