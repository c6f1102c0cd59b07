//! The side that opens tunnels.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use crate::authority::Authority;
use crate::config::Config;
use crate::driver::{Driver, Http2, from_h2};
use crate::frames::{Frames, Owed, PREFACE};
use crate::headers::{Baggage, ConnectHeaders, read_baggage};
use crate::payloads::Placeholder;
use crate::shared_io::SharedIo;
use crate::tls::Peer;
use crate::tunnel::{Alive, Outboxes, Slot};
use crate::{DeferredFlush, Error, ErrorKind, Side, Tunnel};

/// Speaks HTTP/2 over a connection and waits for the peer's SETTINGS.
///
/// That a TLS client's certificate was refused shows only here: in TLS 1.3 the client's handshake is
/// over before the server has looked at it. The error is then the one of TLS.
///
/// # Errors
///
/// [`ErrorKind::Timeout`] after the handshake time-out, else why the connection failed. All are safe
/// to retry.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
///
/// # Examples
///
/// ```no_run
/// use mesh_hbone::client::{self, ConnectRequest};
/// use mesh_hbone::config::Config;
/// use mesh_hbone::headers::ConnectHeaders;
/// use tokio::io::AsyncWriteExt;
///
/// # async fn example(tls: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
/// let (connection, sender) = client::handshake(tls, &Config::default()).await?;
/// tokio::spawn(connection);
/// let request = ConnectRequest::new("10.0.0.7:9080".parse()?, ConnectHeaders::default());
/// let (mut tunnel, _) = sender.connect(request).await?;
/// tunnel.write_all(b"hello").await?;
/// tunnel.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub async fn handshake<IO>(io: IO, config: &Config) -> Result<(Connection, Sender), Error>
where
    IO: DeferredFlush + Send + Unpin + 'static,
{
    let owed = Owed::new(config.max_outgoing_streams);
    let io = SharedIo::new(io, Frames::of_client(config, owed.clone()), PREFACE);
    match timeout(config.handshake_timeout, start(io.clone(), config, owed)).await {
        Ok(Ok(started)) => Ok(started),
        Ok(Err(error)) => Err(last_words(io, error).await.retry_safe()),
        Err(_) => Err(Error::new(ErrorKind::Timeout, Side::Upstream)
            .with_detail("no HTTP/2 SETTINGS from the peer")
            .retry_safe()),
    }
}

/// How long what a peer said before it closed may take to be read: it is here already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a handshake failed. A server that refuses our certificate sends an alert and closes; if our
/// next write is faster than our next read, the write fails and the alert is still to be read.
async fn last_words<IO>(mut io: SharedIo<IO>, error: Error) -> Error
where
    IO: DeferredFlush + Unpin,
{
    if !matches!(error.kind(), ErrorKind::Io | ErrorKind::Closed) {
        return error;
    }
    let mut ignored = [0; 1024];
    let read = async {
        loop {
            match io.read(&mut ignored).await {
                Ok(1..) => {}
                Ok(0) => return None,
                Err(said) => return Some(Error::from_io(said, Side::Upstream)),
            }
        }
    };
    match timeout(LAST_WORDS, read).await {
        Ok(Some(said)) if said.kind() == ErrorKind::Refused => said,
        _ => error,
    }
}

async fn start<IO>(
    io: SharedIo<IO>,
    config: &Config,
    owed: Owed,
) -> Result<(Connection, Sender), Error>
where
    IO: DeferredFlush + Send + Unpin + 'static,
{
    let side = Side::Upstream;
    let (send, mut h2) = builder(config)
        .handshake::<_, Placeholder>(io.clone())
        .await
        .map_err(|error| io.error(error, side))?;
    let mut driver = Driver::new(
        io,
        h2.ping_pong(),
        config,
        config.max_outgoing_streams,
        side,
    );
    let outboxes = Arc::clone(driver.outboxes());
    // What answers the peer's SETTINGS can leave with the first CONNECT.
    driver.hold(true);
    poll_fn(|cx| {
        let polled = driver.poll(cx, None, &mut h2);
        match polled {
            Poll::Ready(Ok(Some(Err(error)))) => Poll::Ready(Err(driver.error(error))),
            Poll::Ready(Ok(_)) => Poll::Ready(Err(Error::new(ErrorKind::Closed, side))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending if send.current_max_send_streams() == 0 => {
                driver.flush(cx)?;
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(Ok(())),
        }
    })
    .await?;
    driver.hold(false);
    let control = Arc::new(Control::default());
    let told = Arc::clone(&control);
    let run = async move {
        poll_fn(|cx| {
            if told.aborted.load(Ordering::Acquire) {
                let aborted = Error::new(ErrorKind::Closed, Side::Us).with_detail("aborted");
                return Poll::Ready(Err(aborted));
            }
            let polled = driver.poll(cx, None, &mut h2);
            polled.map(|polled| match polled? {
                Some(Err(error)) => Err(driver.error(error)),
                Some(Ok(())) | None => Ok(()),
            })
        })
        .await?;
        poll_fn(|cx| driver.poll_ended(cx)).await;
        Ok(())
    };
    let sender = Sender {
        send,
        outboxes,
        live: Arc::new(AtomicUsize::new(0)),
        owed,
        limit: config.max_outgoing_streams as usize,
        settings: config.tunnel_settings(),
        connect_timeout: config.connect_timeout,
        control,
        peer: None,
    };
    Ok((Connection { run: Box::pin(run) }, sender))
}

impl<IO> Http2 for h2::client::Connection<SharedIo<IO>, Placeholder>
where
    IO: DeferredFlush + Unpin,
{
    type Output = Result<(), h2::Error>;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(self).poll(cx)
    }

    fn set_initial_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

fn builder(config: &Config) -> h2::client::Builder {
    let streams = config.max_outgoing_streams;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.window_of(streams))
        .max_frame_size(config.max_frame_size)
        .max_header_list_size(config.max_header_list_size)
        .max_send_buffer_size(config.whole_send_buffer())
        .max_local_error_reset_streams(Some(config.max_error_resets))
        .max_pending_accept_reset_streams(config.max_pending_resets)
        .data_frame_budget(config.budget())
        // Zero until the peer's SETTINGS are here: this is how their arrival shows.
        .initial_max_send_streams(0)
        .enable_push(false);
    builder
}

/// The task of a client's connection: spawn it. It ends when the peer closes the connection, or when
/// the last [`Sender`] and [`Tunnel`] are gone.
///
/// # Errors
///
/// Why the connection failed. Its tunnels fail with it.
#[must_use = "no tunnel moves unless the connection is polled"]
pub struct Connection {
    run: Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>,
}

impl Future for Connection {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.run.as_mut().poll(cx)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

/// What to ask of the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectRequest {
    authority: Authority,
    headers: ConnectHeaders,
}

impl ConnectRequest {
    /// A tunnel to `authority`: the address of a workload, or what the application dialled if the next
    /// hop is a waypoint.
    pub fn new(authority: Authority, headers: ConnectHeaders) -> Self {
        Self { authority, headers }
    }

    /// Where the tunnel leads.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the next hop is told.
    pub fn headers(&self) -> &ConnectHeaders {
        &self.headers
    }

    /// RFC 9113 section 8.5: `:method` and `:authority`, neither `:scheme` nor `:path`.
    fn to_http(&self) -> Result<Request<()>, Error> {
        let invalid = |error: http::Error| {
            Error::new(ErrorKind::InvalidAuthority, Side::Us).with_source(error)
        };
        let uri = Uri::builder()
            .authority(self.authority.to_string())
            .build()
            .map_err(invalid)?;
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .body(())
            .map_err(invalid)?;
        self.headers.write(request.headers_mut());
        Ok(request)
    }
}

/// What the peer said when it opened a tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectResponse {
    baggage: Option<Baggage>,
}

impl ConnectResponse {
    /// The workload at the other end, as it describes itself.
    pub fn baggage(&self) -> Option<&Baggage> {
        self.baggage.as_ref()
    }
}

/// Opens tunnels on one connection. Clones share it.
#[derive(Clone)]
pub struct Sender {
    send: SendRequest<Placeholder>,
    outboxes: Arc<Outboxes>,
    live: Arc<AtomicUsize>,
    owed: Owed,
    limit: usize,
    settings: crate::tunnel::Settings,
    connect_timeout: Duration,
    control: Arc<Control>,
    peer: Option<Peer>,
}

/// What senders tell their connection.
#[derive(Debug, Default)]
struct Control {
    retired: AtomicBool,
    aborted: AtomicBool,
}

impl Sender {
    /// Opens a tunnel.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::ConnectRefused`]: the peer answered with another status than 200.
    /// - [`ErrorKind::Overloaded`]: no stream is free.
    /// - [`ErrorKind::Timeout`]: no answer within the time-out.
    /// - [`ErrorKind::GoingAway`], [`ErrorKind::Reset`], [`ErrorKind::Closed`], [`ErrorKind::Http2`].
    ///
    /// [`Error::is_retry_safe`] holds when the peer certainly did nothing: it refused the stream
    /// (REFUSED_STREAM), it went away before it (GOAWAY), or the request was never sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future resets the stream (CANCEL).
    pub async fn connect(
        &self,
        request: ConnectRequest,
    ) -> Result<(Tunnel, ConnectResponse), Error> {
        self.connect_holding(request, None).await
    }

    pub(crate) async fn connect_holding(
        &self,
        request: ConnectRequest,
        place: Option<Slot>,
    ) -> Result<(Tunnel, ConnectResponse), Error> {
        let slot = Live::enter(self, place).ok_or_else(|| {
            Error::new(ErrorKind::Overloaded, Side::Upstream)
                .with_detail("no stream is free on this connection")
                .retry_safe()
        })?;
        match timeout(self.connect_timeout, self.exchange(&request, slot)).await {
            Ok(result) => result,
            Err(_) => {
                Err(Error::new(ErrorKind::Timeout, Side::Upstream)
                    .with_detail("no answer to CONNECT"))
            }
        }
    }

    async fn exchange(
        &self,
        request: &ConnectRequest,
        slot: Live,
    ) -> Result<(Tunnel, ConnectResponse), Error> {
        let request = request.to_http()?;
        let unsent = |error| from_h2(error, Side::Upstream).retry_safe();
        let mut send = self.send.clone();
        poll_fn(|cx| send.poll_ready(cx)).await.map_err(unsent)?;
        self.owed.asked();
        let (mut response, body) = send.send_request(request, false).map_err(unsent)?;
        let answer = poll_fn(|cx| {
            // 1xx mean nothing to a tunnel, and h2 keeps for ever those that nobody takes.
            while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {}
            Pin::new(&mut response).poll(cx)
        });
        let response = answer.await.map_err(|error| {
            let untouched = error.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (error.is_go_away() && error.is_remote());
            let error = from_h2(error, Side::Upstream);
            if untouched { error.retry_safe() } else { error }
        })?;
        if response.status() != StatusCode::OK {
            let refused = ErrorKind::ConnectRefused(response.status());
            return Err(Error::new(refused, Side::Upstream));
        }
        let (parts, recv) = response.into_parts();
        let answer = ConnectResponse {
            baggage: read_baggage(&parts.headers),
        };
        let slot: Slot = Box::new(slot);
        let (alive, settings) = (Alive::new(&self.outboxes), self.settings);
        let tunnel = Tunnel::new(body, recv, alive, Some(slot), settings, Side::Upstream);
        Ok((tunnel, answer))
    }

    /// Says who is at the other end, for [`peer`](Self::peer).
    #[must_use]
    pub fn with_peer(mut self, peer: Peer) -> Self {
        self.peer = Some(peer);
        self
    }

    /// Who is at the other end, if [`with_peer`](Self::with_peer) said so.
    pub fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    /// Takes no more tunnels, as after the peer's GOAWAY; those that are open go on.
    pub fn retire(&self) {
        self.control.retired.store(true, Ordering::Release);
    }

    /// Ends the connection and all its tunnels now.
    pub fn abort(&self) {
        self.retire();
        self.control.aborted.store(true, Ordering::Release);
        self.outboxes.wake();
    }

    /// Whether the connection takes no more tunnels: it is closed or retired, or the peer said GOAWAY.
    pub fn is_closed(&self) -> bool {
        if self.control.retired.load(Ordering::Acquire) {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.send.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// Tunnels that are open or being opened.
    pub fn live_streams(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Tunnels that may be open at once: our limit, or the peer's if that is less.
    pub fn max_streams(&self) -> usize {
        self.limit.min(self.send.current_max_send_streams())
    }

    /// Tunnels that may be opened now.
    pub fn available_streams(&self) -> usize {
        self.max_streams().saturating_sub(self.live_streams())
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("live_streams", &self.live_streams())
            .field("max_streams", &self.max_streams())
            .finish_non_exhaustive()
    }
}

/// One of the connection's streams.
struct Live {
    live: Arc<AtomicUsize>,
    _place: Option<Slot>,
}

impl Live {
    fn enter(sender: &Sender, place: Option<Slot>) -> Option<Self> {
        let max = sender.max_streams();
        let enter = |live: usize| (live < max).then_some(live + 1);
        sender
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter)
            .ok()?;
        Some(Self {
            live: Arc::clone(&sender.live),
            _place: place,
        })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}
