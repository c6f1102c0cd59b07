use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper_util::rt::TokioIo;
use tower_service::Service;

use super::account;
use crate::net::MeshStream;
use crate::{Error, Mesh};

/// Opens connections for hyper-util's and tonic's clients: `Service<Uri>` through the mesh.
///
/// ```no_run
/// # async fn example(mesh: mesh_core::Mesh) -> Result<(), Box<dyn std::error::Error>> {
/// use tonic::transport::Endpoint;
///
/// let channel = Endpoint::from_static("http://ratings:9080")
///     .connect_with_connector(mesh.connector())
///     .await?;
/// # let _ = channel;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct MeshConnector {
    mesh: Mesh,
}

impl Mesh {
    /// A connector for clients that keep connections of their own.
    ///
    /// Such a client balances by connection. [`Mesh::http_client`] balances by request.
    pub fn connector(&self) -> MeshConnector {
        MeshConnector { mesh: self.clone() }
    }
}

impl Service<Uri> for MeshConnector {
    type Response = TokioIo<MeshStream>;
    type Error = Error;
    type Future = Connecting;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Connecting {
        let mesh = self.mesh.clone();
        Connecting {
            inner: Box::pin(async move {
                let destination = super::target::Destination::of_uri(&uri)?;
                let (route, stream) = mesh.inner.connect(&destination).await?;
                let stream = account::accounted(&mesh.inner, &route, stream);
                Ok(TokioIo::new(stream.with_mesh(Arc::clone(&mesh.inner))))
            }),
        }
    }
}

type Opening = Pin<Box<dyn Future<Output = Result<TokioIo<MeshStream>, Error>> + Send>>;

/// A connection that is being opened.
pub struct Connecting {
    inner: Opening,
}

impl Future for Connecting {
    type Output = Result<TokioIo<MeshStream>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.inner.as_mut().poll(cx)
    }
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connecting")
    }
}
