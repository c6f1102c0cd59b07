//! The side that opens tunnels.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use tokio::io::{AsyncRead as _, ReadBuf};
use tokio::sync::watch;
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
    let (mut connection, sender) = start(io, config).await?;
    let mut settled = pin!(sender.settled());
    let mut ended = false;
    poll_fn(|cx| {
        // A connection that ends says why before it does.
        ended = ended || Pin::new(&mut connection).poll(cx).is_ready();
        settled.as_mut().poll(cx)
    })
    .await?;
    Ok((connection, sender))
}

/// Speaks HTTP/2 over a connection and does not wait: the first CONNECT leaves with our SETTINGS, a round
/// trip sooner than after [`handshake`] ([RFC 9113 section
/// 3.4](https://www.rfc-editor.org/rfc/rfc9113#section-3.4)).
///
/// Until the peer's SETTINGS are here, which [`Sender::settled`] waits for, there is one stream. When they
/// do not come within the handshake time-out, the connection fails, and its CONNECT with it.
///
/// # Errors
///
/// [`ErrorKind::Http2`]: h2 does not take the settings.
///
/// # Cancel safety
///
/// Dropping the future closes the connection.
pub async fn start<IO>(io: IO, config: &Config) -> Result<(Connection, Sender), Error>
where
    IO: DeferredFlush + Send + Unpin + 'static,
{
    let side = Side::Upstream;
    let owed = Owed::new(config.max_outgoing_streams);
    let io = SharedIo::new(io, Frames::of_client(config, owed.clone()), PREFACE);
    let (send, mut h2) = builder(config)
        .handshake::<_, Placeholder>(io.clone())
        .await
        .map_err(|error| io.error(error, side))?;
    let ping = h2.ping_pong();
    let streams = config.max_outgoing_streams;
    let driver = Driver::new(io.clone(), ping, config, streams, side);
    let control = Arc::new(Control::default());
    let sender = Sender {
        send: send.clone(),
        outboxes: Arc::clone(driver.outboxes()),
        live: Arc::new(AtomicUsize::new(0)),
        owed,
        limit: config.max_outgoing_streams as usize,
        settings: config.tunnel_settings(),
        max_header_fields: config.max_header_fields,
        connect_timeout: config.connect_timeout,
        control: Arc::clone(&control),
        peer: None,
    };
    let connection = Running {
        io,
        driver,
        h2,
        control: Outcome(control),
    };
    let run = connection.run(send, config.handshake_timeout);
    Ok((Connection { run: Box::pin(run) }, sender))
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
            let mut ignored = ReadBuf::new(&mut ignored);
            let read = poll_fn(|cx| {
                // Nobody drives the connection any more.
                io.end_turn();
                Pin::new(&mut io).poll_read(cx, &mut ignored)
            });
            match read.await {
                Ok(()) if ignored.filled().is_empty() => return None,
                Ok(()) => {}
                Err(said) => return Some(Error::from_io(said, Side::Upstream)),
            }
        }
    };
    match timeout(LAST_WORDS, read).await {
        Ok(Some(said)) if said.kind() == ErrorKind::Refused => said,
        _ => error,
    }
}

/// What a connection's task has.
struct Running<IO> {
    io: SharedIo<IO>,
    driver: Driver<IO>,
    h2: h2::client::Connection<SharedIo<IO>, Placeholder>,
    control: Outcome,
}

impl<IO: DeferredFlush + Unpin> Running<IO> {
    async fn run(
        mut self,
        send: SendRequest<Placeholder>,
        handshake_timeout: Duration,
    ) -> Result<(), Error> {
        let settled = self.settle(send, handshake_timeout).await;
        self.control.0.settle(settled.clone());
        settled?;
        // What answers the peer's SETTINGS leaves with what those say who were woken by them.
        tokio::task::yield_now().await;
        poll_fn(|cx| self.poll(cx)).await?;
        poll_fn(|cx| self.driver.poll_ended(cx)).await;
        Ok(())
    }

    /// Waits for the peer's SETTINGS.
    async fn settle(
        &mut self,
        send: SendRequest<Placeholder>,
        limit: Duration,
    ) -> Result<(), Error> {
        self.driver.hold(true);
        let settled = timeout(
            limit,
            poll_fn(|cx| match self.poll(cx) {
                Poll::Ready(Ok(())) => {
                    Poll::Ready(Err(Error::new(ErrorKind::Closed, Side::Upstream)))
                }
                Poll::Pending if is_settled(&send, self.driver.outboxes().live()) => {
                    Poll::Ready(Ok(()))
                }
                Poll::Pending => {
                    self.driver.flush(cx)?;
                    Poll::Pending
                }
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            }),
        );
        let settled = settled.await;
        self.driver.hold(false);
        match settled {
            Ok(Ok(())) => Ok(()),
            // Nobody listens to the peer of a connection that we end.
            Ok(Err(error)) if error.side() == Side::Us => Err(error.retry_safe()),
            Ok(Err(error)) => Err(last_words(self.io.clone(), error).await.retry_safe()),
            Err(_) => Err(unsettled()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.control.0.aborted.load(Ordering::Acquire) {
            let aborted = Error::new(ErrorKind::Closed, Side::Us).with_detail("aborted");
            return Poll::Ready(Err(aborted));
        }
        let polled = self.driver.poll(cx, None, &mut self.h2);
        polled.map(|polled| match polled? {
            Some(Err(error)) => Err(self.driver.error(error)),
            Some(Ok(())) | None => Ok(()),
        })
    }
}

/// Of streams, while the peer's SETTINGS are not here. A peer that permits just so many, where a `usize` has
/// 32 bits, is taken for one that says nothing.
const UNSETTLED: usize = usize::MAX - 1;

/// A peer that permits no stream may yet, unless it took one.
fn is_settled(send: &SendRequest<Placeholder>, streams: usize) -> bool {
    match send.current_max_send_streams() {
        UNSETTLED => false,
        0 => streams > 0,
        _ => true,
    }
}

fn unsettled() -> Error {
    Error::new(ErrorKind::Timeout, Side::Upstream)
        .with_detail("no HTTP/2 SETTINGS from the peer")
        .retry_safe()
}

impl<IO> Http2 for h2::client::Connection<SharedIo<IO>, Placeholder>
where
    IO: DeferredFlush + Unpin,
{
    type Output = Result<(), h2::Error>;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(self).poll(cx)
    }

    fn goes_on(_: &Self::Output) -> bool {
        false
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
        // This is how the arrival of the peer's SETTINGS shows. Until then the sender opens one stream.
        .initial_max_send_streams(UNSETTLED)
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
    max_header_fields: usize,
    connect_timeout: Duration,
    control: Arc<Control>,
    peer: Option<Peer>,
}

/// What senders tell their connection, and it tells them.
#[derive(Debug, Default)]
struct Control {
    retired: AtomicBool,
    aborted: AtomicBool,
    /// Whether the peer's SETTINGS came, once that is known.
    settled: watch::Sender<Option<Result<(), Error>>>,
}

impl Control {
    /// Whether the peer's SETTINGS came, whatever it permits now.
    fn has_settled(&self) -> bool {
        matches!(*self.settled.borrow(), Some(Ok(())))
    }

    fn settle(&self, outcome: Result<(), Error>) {
        self.settled.send_if_modified(|settled| {
            let first = settled.is_none();
            if first {
                *settled = Some(outcome);
            }
            first
        });
    }
}

/// Held by a connection: to one that is gone, no SETTINGS come.
struct Outcome(Arc<Control>);

impl Drop for Outcome {
    fn drop(&mut self) {
        let dropped = Error::new(ErrorKind::Closed, Side::Us).retry_safe();
        self.0.settle(Err(dropped));
    }
}

impl Sender {
    /// Opens a tunnel.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::ConnectRefused`]: the peer answered with another status than 200.
    /// - [`ErrorKind::InvalidHeader`]: its answer has more header fields than [`Config::max_header_fields`].
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
        place: Option<Box<dyn Slot>>,
    ) -> Result<(Tunnel, ConnectResponse), Error> {
        let slot = Live::enter(self, place).ok_or_else(|| {
            Error::new(ErrorKind::Overloaded, Side::Upstream)
                .with_detail("no stream is free on this connection")
                .retry_safe()
        })?;
        match timeout(self.connect_timeout, self.exchange(&request, slot)).await {
            Ok(result) => result,
            Err(_) if !self.control.has_settled() => Err(unsettled()),
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
        let mut send = self.send.clone();
        if let Err(error) = poll_fn(|cx| send.poll_ready(cx)).await {
            return Err(self.why(error).await.retry_safe());
        }
        self.owed.asked();
        let (mut response, body) = match send.send_request(request, false) {
            Ok(sent) => sent,
            Err(error) => return Err(self.why(error).await.retry_safe()),
        };
        let answer = poll_fn(|cx| {
            // 1xx mean nothing to a tunnel, and h2 keeps for ever those that nobody takes.
            while let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx) {}
            Pin::new(&mut response).poll(cx)
        });
        let response = match answer.await {
            Ok(response) => response,
            Err(error) => {
                let untouched = error.reason() == Some(h2::Reason::REFUSED_STREAM)
                    || (error.is_go_away() && error.is_remote());
                let error = self.why(error).await;
                return Err(if untouched { error.retry_safe() } else { error });
            }
        };
        if response.status() != StatusCode::OK {
            let refused = ErrorKind::ConnectRefused(response.status());
            return Err(Error::new(refused, Side::Upstream));
        }
        let (parts, recv) = response.into_parts();
        let fields = parts.headers.len();
        if fields > self.max_header_fields {
            let most = self.max_header_fields;
            return Err(
                Error::new(ErrorKind::InvalidHeader, Side::Upstream).with_detail(format!(
                    "the answer has {fields} header fields, more than {most}"
                )),
            );
        }
        let answer = ConnectResponse {
            baggage: read_baggage(&parts.headers),
        };
        let slot: Box<dyn Slot> = Box::new(slot);
        let (alive, settings) = (Alive::new(&self.outboxes), self.settings);
        let tunnel = Tunnel::new(body, recv, alive, Some(slot), settings, Side::Upstream);
        Ok((tunnel, answer))
    }

    /// Why a stream failed: h2 tells a stream only the text of what ended its connection.
    async fn why(&self, error: h2::Error) -> Error {
        let of_stream = error.is_reset();
        let error = from_h2(error, Side::Upstream);
        if of_stream || self.control.has_settled() {
            return error;
        }
        // Its task is about to end, and knows what the transport said.
        self.settled().await.err().unwrap_or(error)
    }

    /// Waits for the peer's SETTINGS, if the connection was made by [`start`]. That a TLS client's
    /// certificate was refused shows here or by the first CONNECT: in TLS 1.3 the client's handshake is
    /// over before the server has looked at it.
    ///
    /// The future keeps neither the connection nor this sender.
    ///
    /// # Errors
    ///
    /// Why the connection failed before: [`ErrorKind::Timeout`] after the handshake time-out. All are
    /// safe to retry.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn settled(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
        let mut settled = self.control.settled.subscribe();
        async move {
            let outcome = settled.wait_for(Option::is_some).await;
            let gone = || Err(Error::new(ErrorKind::Closed, Side::Us).retry_safe());
            outcome.map_or_else(|_| gone(), |outcome| outcome.clone().unwrap_or_else(gone))
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.control.has_settled()
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

    /// Tunnels that may be open at once: our limit, or the peer's if that is less; one before its
    /// SETTINGS are here.
    pub fn max_streams(&self) -> usize {
        match self.send.current_max_send_streams() {
            UNSETTLED => self.limit.min(1),
            peers => self.limit.min(peers),
        }
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
    place: Option<Box<dyn Slot>>,
}

impl Live {
    fn enter(sender: &Sender, place: Option<Box<dyn Slot>>) -> Option<Self> {
        let max = sender.max_streams();
        let enter = |live: usize| (live < max).then_some(live + 1);
        sender
            .live
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter)
            .ok()?;
        Some(Self {
            live: Arc::clone(&sender.live),
            place,
        })
    }
}

impl Slot for Live {
    fn lingers(&mut self) {
        if let Some(place) = &mut self.place {
            place.lingers();
        }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }
}
