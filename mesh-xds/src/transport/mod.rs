//! A way to a control plane: gRPC over connections that the caller makes.
//!
//! This crate knows no TLS. A [`Channel`] is made of a URI and of a connector, a tower `Service<Uri>` that
//! answers with a byte stream: TLS to a server that is known by its name, plain TCP, a pipe in a test.
//! The connector is called for every new connection, so one that reads its roots or its certificate when
//! it is called follows their rotation. The token is asked for with each request or stream.

mod connector;
pub(crate) mod driver;
pub(crate) mod messages;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::{HeaderName, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue as AsciiValue};
use tonic::transport::Endpoint;
use tower_service::Service;

use crate::error::{Error, ErrorKind};
use connector::{BoxError, Connector};
use driver::Driver;

type TokenSource = dyn Fn() -> BoxFuture<'static, Result<Option<String>, BoxError>> + Send + Sync;

/// What istio-agent has. A full push of 100 000 workloads has some 30 MB, and the default window of
/// 64 KiB would make it wait for as many round trips.
const WINDOW: u32 = 1024 * 1024;

/// The largest DATA frame that is taken. A server that sends larger ones than the 16 KiB of the default moves a whole
/// mesh with fewer system calls at both ends.
const FRAME: u32 = 128 * 1024;

/// Longer than any connection lives, and a time that can be added to now: hyper does not check.
const LONG: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A way to a control plane: cheap to clone, connects when it is used.
///
/// Every request and every stream has a connection of its own: it meets the newest roots and the newest
/// certificate, perhaps another replica, and no connection that is dead without anybody having noticed.
///
/// # Examples
///
/// ```
/// use http::Uri;
/// use mesh_xds::transport::Channel;
///
/// # #[derive(Clone)]
/// # struct Tls;
/// # impl tower_service::Service<Uri> for Tls {
/// #     type Response = tokio::io::DuplexStream;
/// #     type Error = std::io::Error;
/// #     type Future = std::future::Ready<Result<Self::Response, Self::Error>>;
/// #     fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
/// #         std::task::Poll::Ready(Ok(()))
/// #     }
/// #     fn call(&mut self, _: Uri) -> Self::Future {
/// #         std::future::ready(Ok(tokio::io::duplex(1024).0))
/// #     }
/// # }
/// # let tls = Tls;
/// let channel = Channel::builder("https://istiod.istio-system.svc:15012".parse()?)
///     .header("clusterid", "Kubernetes")
///     .token(|| async { Ok(Some("a token, read anew each time".to_owned())) })
///     .build(tls)?;
/// assert_eq!(channel.uri().port_u16(), Some(15012));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

struct Shared {
    uri: Uri,
    endpoint: Endpoint,
    connector: Connector,
    headers: Vec<(AsciiMetadataKey, AsciiValue)>,
    token: Option<Arc<TokenSource>>,
    max_message_size: usize,
}

impl Channel {
    /// Starts to make a channel to the control plane at `uri`, such as `https://istiod.istio-system.svc:15012`.
    ///
    /// The scheme is what requests say; whether there is TLS is the connector's affair.
    pub fn builder(uri: Uri) -> ChannelBuilder {
        ChannelBuilder {
            uri,
            headers: Vec::new(),
            token: None,
            connect_timeout: Duration::from_secs(5),
            keep_alive: (Duration::from_secs(30), Duration::from_secs(10)),
            max_message_size: 200 * 1024 * 1024,
        }
    }

    /// Where the control plane is.
    pub fn uri(&self) -> &Uri {
        &self.shared.uri
    }

    /// A connection of its own, made when it is used. Needs a runtime.
    pub(crate) fn fresh(&self) -> tonic::transport::Channel {
        let connector = self.shared.connector.clone();
        self.shared.endpoint.connect_with_connector_lazy(connector)
    }

    /// A connection of its own, made now, and what moves it.
    ///
    /// # Errors
    ///
    /// `Connection` if the connector failed or took too long.
    pub(crate) async fn connect(&self) -> Result<(tonic::transport::Channel, Driver), Error> {
        let connector = self.shared.connector.clone();
        let (tasks, driver) = Driver::new();
        let endpoint = self.shared.endpoint.clone().executor(tasks);
        let connection = endpoint.connect_with_connector(connector);
        let connection = connection.await.map_err(|error| {
            let detail = format!("no connection to {}", self.shared.uri);
            Error::new(ErrorKind::Connection, detail).with_source(error)
        })?;
        Ok((connection, driver))
    }

    /// The largest message that is accepted.
    pub(crate) fn max_message_size(&self) -> usize {
        self.shared.max_message_size
    }

    /// A request with the headers, and with the token as it is now.
    pub(crate) async fn request<T>(&self, message: T) -> Result<tonic::Request<T>, Error> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        for (name, value) in &self.shared.headers {
            metadata.append(name.clone(), value.clone());
        }
        if let Some(source) = &self.shared.token {
            let token = source().await.map_err(|error| {
                Error::new(ErrorKind::Token, "no token could be had").with_source(error)
            })?;
            if let Some(token) = token {
                let bearer = AsciiValue::try_from(format!("Bearer {}", token.trim()));
                let mut bearer = bearer.map_err(|error| {
                    Error::new(ErrorKind::Token, "the token is no header value").with_source(error)
                })?;
                bearer.set_sensitive(true);
                let name = AsciiMetadataKey::from_static("authorization");
                metadata.insert(name, bearer);
            }
        }
        Ok(request)
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel")
            .field("uri", &self.shared.uri)
            .finish_non_exhaustive()
    }
}

/// Makes a [`Channel`].
#[must_use]
pub struct ChannelBuilder {
    uri: Uri,
    headers: Vec<(String, String)>,
    token: Option<Arc<TokenSource>>,
    connect_timeout: Duration,
    keep_alive: (Duration, Duration),
    max_message_size: usize,
}

impl ChannelBuilder {
    /// Adds a header to every request, such as `clusterid`, which istiod reads to know whom to ask about a token.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Sets who is asked for the bearer token, with each request or stream: a token in a file changes.
    ///
    /// `None` sends none, as a host does whose token is gone and whose certificate speaks for it.
    /// White space around a token is cut off. Unset sends none.
    pub fn token<F, Fut>(mut self, source: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Option<String>, Box<dyn std::error::Error + Send + Sync>>>
            + Send
            + 'static,
    {
        self.token = Some(Arc::new(move || Box::pin(source())));
        self
    }

    /// How long the connector may take; 5 s, as ztunnel has it.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a connection may be silent before it is asked for a sign of life (HTTP/2 PING), and how long
    /// the answer may take before the connection is given up; 30 s and 10 s.
    ///
    /// istiod ends connections that ask more often than every 15 s. Only connections with a stream are asked.
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive = (interval, timeout);
        self
    }

    /// The largest message that is accepted, in bytes; 200 MiB, which is some 600 000 workloads.
    ///
    /// istiod sends everything of a type in one message. A larger one ends the stream. A resource is held until its end is
    /// here, so that one which is all of a message takes twice that in memory, and a message that begins with a resource of no
    /// type that was asked for five times; what was refused is let go of with the message. What a message is not for is not
    /// held: of fields that nobody reads nothing, of types, nonces and removed names at most 8 KiB each.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.max_message_size = bytes;
        self
    }

    /// Makes the channel. Nothing is dialled before it is used.
    ///
    /// The connector is cloned for each connection and gets the URI of the control plane.
    ///
    /// # Errors
    ///
    /// `InvalidSettings` if the URI has no scheme or host, if a header's name or value is not one, or is
    /// `authorization`, and if a time or size is 0.
    pub fn build<C>(self, connector: C) -> Result<Channel, Error>
    where
        C: Service<Uri> + Clone + Send + 'static,
        C::Response: AsyncRead + AsyncWrite + Send + 'static,
        C::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
        C::Future: Send,
    {
        let invalid = |detail: String| Error::new(ErrorKind::InvalidSettings, detail);
        let (Some(scheme), Some(authority)) = (self.uri.scheme_str(), self.uri.authority()) else {
            return Err(invalid(format!(
                "{}: expected scheme and host, as in https://istiod.istio-system.svc:15012",
                self.uri
            )));
        };
        if !matches!(scheme, "http" | "https") {
            return Err(invalid(format!("{}: expected http or https", self.uri)));
        }
        let times = [self.connect_timeout, self.keep_alive.0, self.keep_alive.1];
        if times.contains(&Duration::ZERO) || self.max_message_size == 0 {
            return Err(invalid("a time-out or size is 0".to_owned()));
        }
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            let parsed = HeaderName::try_from(name.as_str());
            let key = parsed.ok().and_then(|name| {
                // `-bin` is gRPC's mark of a binary value; `te`, `grpc-…` and the like are its own.
                let text = name.as_str();
                let own = text == "authorization" || text == "te" || text.starts_with("grpc-");
                let key = AsciiMetadataKey::from_bytes(text.as_bytes()).ok()?;
                (!own).then_some(key)
            });
            let key = key.ok_or_else(|| invalid(format!("{name:?} cannot be a header's name")))?;
            let value = AsciiValue::try_from(value.as_str())
                .map_err(|error| invalid(format!("header {name}")).with_source(error))?;
            headers.push((key, value));
        }
        // With an `https` URI tonic would want to do TLS itself where some other crate turned that on.
        let plain = format!("http://{authority}");
        let endpoint = Endpoint::from_shared(plain)
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("mesh-xds/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(|error| invalid(self.uri.to_string()).with_source(error))?
            .origin(self.uri.clone())
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keep_alive.0.min(LONG))
            .keep_alive_timeout(self.keep_alive.1.min(LONG))
            .keep_alive_while_idle(false)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(FRAME);
        let connector = Connector::new(connector, self.uri.clone());
        Ok(Channel {
            shared: Arc::new(Shared {
                uri: self.uri,
                endpoint,
                connector,
                headers,
                token: self.token,
                max_message_size: self.max_message_size,
            }),
        })
    }
}

impl fmt::Debug for ChannelBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelBuilder")
            .field("uri", &self.uri)
            .finish_non_exhaustive()
    }
}
