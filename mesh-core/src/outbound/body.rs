use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;
use tokio::time::{Sleep, sleep_until};

use super::exchange::Returned;
use super::report::RequestReport;
use crate::mesh::MeshInner;
use crate::settings::deadline;
use crate::{Error, ErrorKind};

/// The body of a response. Its connection is used again once it was read to its end.
///
/// A body of which nothing comes for the builder's
/// [`response_idle_timeout`](crate::Builder::response_idle_timeout) fails with [`ErrorKind::RequestTimeout`]. It keeps the
/// mesh, and so can be read when all handles are dropped, on whatever executor.
pub struct MeshBody {
    inner: Incoming,
    returned: Option<Returned>,
    report: Option<RequestReport>,
    idle: Option<Idle>,
    /// Whether its errors are to be told in gRPC's words.
    #[cfg(feature = "tonic")]
    is_grpc: bool,
    /// Whose tasks move its bytes: dropped last.
    mesh: Arc<MeshInner>,
}

impl MeshBody {
    pub(super) fn new(
        mesh: Arc<MeshInner>,
        inner: Incoming,
        returned: Returned,
        report: RequestReport,
        idle: Option<Duration>,
    ) -> Self {
        let mut body = Self {
            inner,
            returned: Some(returned),
            #[cfg(feature = "tonic")]
            is_grpc: report.is_grpc(),
            report: Some(report),
            idle: idle.map(Idle::new),
            mesh,
        };
        if body.inner.is_end_stream() {
            body.finish(None);
        }
        body
    }

    fn finish(&mut self, error: Option<&Error>) {
        if let Some(report) = self.report.take() {
            match error {
                None => report.finished(),
                Some(error) => report.failed(error),
            }
        }
        // A connection whose answer broke off is not used again.
        if let (Some(returned), None) = (self.returned.take(), error) {
            returned.check_in();
        }
    }

    fn failed(&mut self, error: Error) -> Error {
        self.finish(Some(&error));
        #[cfg(feature = "tonic")]
        if self.is_grpc {
            return error.with_grpc_status();
        }
        error
    }
}

impl Body for MeshBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let Poll::Ready(frame) = Pin::new(&mut this.inner).poll_frame(cx) else {
            // Only while somebody waits for more: who reads slowly is not the server's fault.
            let stalled = this.idle.as_mut().map_or(Poll::Pending, |idle| {
                idle.poll(this.mesh.tasks.runtime(), cx)
            });
            return stalled.map(|error| {
                this.idle = None;
                Some(Err(this.failed(error)))
            });
        };
        if let Some(idle) = &mut this.idle {
            idle.stop();
        }
        match frame {
            Some(Ok(frame)) => {
                if let Some(report) = &mut this.report {
                    report.frame(&frame);
                }
                if this.inner.is_end_stream() {
                    this.finish(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                // The server has seen the request.
                let error = Error::from_hyper(error).with_retry_safe(false);
                Poll::Ready(Some(Err(this.failed(error))))
            }
            None => {
                this.finish(None);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for MeshBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshBody")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// How long is waited for one more frame.
struct Idle {
    limit: Duration,
    /// Made by the first wait: most bodies are here at once.
    sleep: Option<Pin<Box<Sleep>>>,
    waiting: bool,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self {
            limit,
            sleep: None,
            waiting: false,
        }
    }

    /// Goes by the clock of the mesh's runtime: there may be none where the body is read.
    fn poll(&mut self, runtime: &Handle, cx: &mut Context<'_>) -> Poll<Error> {
        let begins = !std::mem::replace(&mut self.waiting, true);
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if begins {
                    sleep.as_mut().reset(deadline(self.limit));
                }
                sleep
            }
            none => {
                let _entered = runtime.enter();
                none.insert(Box::pin(sleep_until(deadline(self.limit))))
            }
        };
        sleep.as_mut().poll(cx).map(|()| {
            let detail = format!("nothing of the response for {:?}", self.limit);
            Error::new(ErrorKind::RequestTimeout).with_detail(detail)
        })
    }

    fn stop(&mut self) {
        self.waiting = false;
    }
}
