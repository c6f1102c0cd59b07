//! The side that accepts tunnels.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, Sleep, sleep};

use crate::authority::Authority;
use crate::config::Config;
use crate::driver::{Driver, Http2, from_h2};
use crate::frames::{Frames, PREFACE};
use crate::headers::{Baggage, ConnectHeaders, write_baggage};
use crate::payloads::Placeholder;
use crate::shared_io::SharedIo;
use crate::tunnel::{Alive, Outboxes};
use crate::{DeferredFlush, Error, ErrorKind, Side, Tunnel};

/// Starts to serve HTTP/2 on a connection; [`Connection::accept`] does the rest.
///
/// # Examples
///
/// ```no_run
/// use mesh_hbone::config::Config;
/// use mesh_hbone::headers::Baggage;
/// use mesh_hbone::server;
/// use http::StatusCode;
///
/// # async fn example(tls: tokio::net::TcpStream) -> Result<(), mesh_hbone::Error> {
/// let mut connection = server::handshake(tls, &Config::default());
/// while let Some(incoming) = connection.accept().await {
///     let incoming = incoming?;
///     if incoming.authority().port() != 9080 {
///         incoming.refuse(StatusCode::SERVICE_UNAVAILABLE);
///         continue;
///     }
///     let tunnel = incoming.accept(Baggage::default())?;
///     tokio::spawn(async move { drop(tunnel) });
/// }
/// # Ok(())
/// # }
/// ```
pub fn handshake<IO>(io: IO, config: &Config) -> Connection<IO>
where
    IO: DeferredFlush + Send + Unpin + 'static,
{
    let streams = config.max_incoming_streams;
    let io = SharedIo::new(io, Frames::new(config, PREFACE), 0);
    let handshake = h2::server::Builder::new()
        .initial_window_size(config.stream_window)
        .initial_connection_window_size(config.window_of(streams))
        .max_frame_size(config.max_frame_size)
        .max_header_list_size(config.max_header_list_size)
        .max_concurrent_streams(streams)
        .max_send_buffer_size(config.whole_send_buffer())
        .max_local_error_reset_streams(Some(config.max_error_resets))
        .max_pending_accept_reset_streams(config.max_pending_resets)
        .data_frame_budget(config.budget())
        .handshake(io.clone());
    Connection {
        state: State::Handshake {
            handshake: Box::new(handshake),
            timer: Box::pin(sleep(config.handshake_timeout)),
            io,
        },
        config: config.clone(),
        draining: false,
        yields: false,
    }
}

/// A connection from a client. It moves only while [`accept`](Self::accept) is polled, its tunnels
/// included; dropping it cuts them.
pub struct Connection<IO> {
    state: State<IO>,
    config: Config,
    draining: bool,
    /// The peer closes first.
    yields: bool,
}

enum State<IO> {
    Handshake {
        handshake: Box<h2::server::Handshake<SharedIo<IO>, Placeholder>>,
        timer: Pin<Box<Sleep>>,
        io: SharedIo<IO>,
    },
    Open {
        h2: Box<h2::server::Connection<SharedIo<IO>, Placeholder>>,
        driver: Driver<IO>,
        /// Until when the first CONNECT has to be here.
        first: Option<Instant>,
    },
    /// All was said; the peer may still be reading it.
    Ended {
        driver: Driver<IO>,
    },
    Closed,
}

type Request2 = (Request<RecvStream>, SendResponse<Placeholder>);

impl<IO> Connection<IO>
where
    IO: DeferredFlush + Send + Unpin + 'static,
{
    /// Waits for the next tunnel that a client asks for. `None` when the connection has ended.
    ///
    /// What is no CONNECT to a valid authority is answered 400 here and never seen, and with more header fields than
    /// [`Config::max_header_fields`] 431. Nothing that a
    /// client sends after its CONNECT is read before [`Incoming::accept`].
    ///
    /// # Errors
    ///
    /// Why the connection failed; `None` follows. [`ErrorKind::Timeout`]: no HTTP/2, no first CONNECT
    /// or no answer to a PING in time.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is lost, but nothing moves either until the next call: not even our SETTINGS, for
    /// which the client waits before its next tunnel. What takes time belongs into a task of its own.
    pub async fn accept(&mut self) -> Option<Result<Incoming, Error>> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// Like [`accept`](Self::accept), as a poll.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, Error>>> {
        loop {
            let request = match ready!(self.poll_request(cx)) {
                Some(Ok(request)) => request,
                Some(Err(error)) => {
                    self.state = State::Closed;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    self.state = State::Closed;
                    return Poll::Ready(None);
                }
            };
            let State::Open { driver, .. } = &self.state else {
                return Poll::Ready(None);
            };
            if let Some(incoming) = Incoming::check(request, driver.outboxes(), &self.config) {
                return Poll::Ready(Some(Ok(incoming)));
            }
        }
    }

    fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Request2, Error>>> {
        let timed_out = |what| Error::new(ErrorKind::Timeout, Side::Downstream).with_detail(what);
        loop {
            match &mut self.state {
                State::Handshake {
                    handshake,
                    timer,
                    io,
                } => {
                    let polled = Pin::new(handshake).poll(cx);
                    // Our SETTINGS leave with the answer to the client's if those are here already.
                    if polled.is_pending()
                        && let Poll::Ready(Err(error)) = io.poll_flush_now(cx)
                    {
                        return Poll::Ready(Some(Err(Error::from_io(error, Side::Downstream))));
                    }
                    let mut h2 = match polled {
                        Poll::Ready(Ok(h2)) => Box::new(h2),
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Some(Err(io.error(error, Side::Downstream))));
                        }
                        Poll::Pending => {
                            ready!(timer.as_mut().poll(cx));
                            return Poll::Ready(Some(Err(timed_out("no HTTP/2 preface"))));
                        }
                    };
                    if self.draining {
                        h2.graceful_shutdown();
                    }
                    let ping = h2.ping_pong();
                    let driver = Driver::new(
                        io.clone(),
                        ping,
                        &self.config,
                        self.config.max_incoming_streams,
                        Side::Downstream,
                    );
                    driver.set_yields(self.yields);
                    let first = Some(Instant::now() + self.config.first_connect_timeout);
                    self.state = State::Open { h2, driver, first };
                }
                State::Open { h2, driver, first } => {
                    return match ready!(driver.poll(cx, *first, &mut **h2)) {
                        Ok(Some(Some(Ok(request)))) => {
                            *first = None;
                            Poll::Ready(Some(Ok(request)))
                        }
                        Ok(Some(Some(Err(error)))) => {
                            if self.yields {
                                driver.close(cx);
                            }
                            Poll::Ready(Some(Err(driver.error(error))))
                        }
                        Ok(Some(None)) => {
                            let State::Open { driver, .. } =
                                std::mem::replace(&mut self.state, State::Closed)
                            else {
                                return Poll::Ready(None);
                            };
                            self.state = State::Ended { driver };
                            continue;
                        }
                        Ok(None) => Poll::Ready(Some(Err(timed_out("no CONNECT")))),
                        Err(error) => {
                            if error.kind() == ErrorKind::Flooded {
                                // As far as the transport takes it now.
                                driver.set_yields(false);
                                h2.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                                let _ = h2.poll_accept(cx);
                                driver.flush(cx).ok();
                            }
                            Poll::Ready(Some(Err(error)))
                        }
                    };
                }
                State::Ended { driver } => {
                    ready!(driver.poll_ended(cx));
                    return Poll::Ready(None);
                }
                State::Closed => return Poll::Ready(None),
            }
        }
    }

    /// Ends the connection without losing a tunnel: GOAWAY that names no stream yet, one round trip
    /// for CONNECTs that are on their way, then GOAWAY with the last stream that was taken
    /// ([RFC 9113 section 6.8](https://www.rfc-editor.org/rfc/rfc9113#section-6.8)).
    ///
    /// After the last tunnel the client closes, who alone knows when it has given on what it heard: an
    /// Envoy throws that away, and lets its own client believe that it was all, when it is closed first.
    /// After [`Config::linger`] this side closes.
    ///
    /// Go on calling [`accept`](Self::accept): it ends when the last tunnel has, and the connection.
    pub fn graceful_shutdown(&mut self) {
        self.leave(true);
    }

    /// Like [`graceful_shutdown`](Self::graceful_shutdown), but closes as soon as the last tunnel has
    /// ended: for when there is no time left.
    pub fn hasty_shutdown(&mut self) {
        self.leave(false);
    }

    fn leave(&mut self, yields: bool) {
        self.draining = true;
        self.yields = yields;
        match &mut self.state {
            State::Open { h2, first, driver } => {
                driver.set_yields(yields);
                *first = None;
                h2.graceful_shutdown();
            }
            State::Ended { driver } if !yields => driver.close_now(),
            _ => {}
        }
    }
}

impl<IO> Http2 for h2::server::Connection<SharedIo<IO>, Placeholder>
where
    IO: DeferredFlush + Unpin,
{
    type Output = Option<Result<Request2, h2::Error>>;

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_accept(cx)
    }

    fn goes_on(output: &Self::Output) -> bool {
        matches!(output, Some(Ok(_)))
    }

    fn set_initial_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

impl<IO> fmt::Debug for Connection<IO> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

/// A tunnel that a client asks for. Dropping it answers 503.
pub struct Incoming {
    authority: Authority,
    headers: ConnectHeaders,
    stream: Option<(RecvStream, SendResponse<Placeholder>, Alive)>,
    settings: crate::tunnel::Settings,
}

impl Incoming {
    fn check(request: Request2, outboxes: &Arc<Outboxes>, config: &Config) -> Option<Self> {
        let (request, mut respond) = request;
        if request.headers().len() > config.max_header_fields {
            tracing::debug!(target: "mesh::hbone", fields = request.headers().len(), "refused a request with too many header fields");
            answer(&mut respond, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            return None;
        }
        match destination(&request) {
            Ok(authority) => Some(Self {
                authority,
                headers: ConnectHeaders::parse(request.headers()),
                stream: Some((request.into_body(), respond, Alive::new(outboxes))),
                settings: config.tunnel_settings(),
            }),
            Err(reason) => {
                tracing::debug!(target: "mesh::hbone", %reason, "refused a request that asks for no tunnel");
                answer(&mut respond, StatusCode::BAD_REQUEST);
                None
            }
        }
    }

    /// Where the client wants the tunnel to lead.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// What the client says of itself.
    pub fn headers(&self) -> &ConnectHeaders {
        &self.headers
    }

    /// Answers 200, describing the workload at this end unless that is `None`.
    ///
    /// # Errors
    ///
    /// The client has reset the stream, or the connection is gone.
    pub fn accept(mut self, baggage: impl Into<Option<Baggage>>) -> Result<Tunnel, Error> {
        let gone = || Error::new(ErrorKind::Closed, Side::Downstream);
        let (recv, mut respond, alive) = self.stream.take().ok_or_else(gone)?;
        let mut response = Response::new(());
        if let Some(baggage) = baggage.into() {
            write_baggage(&baggage, response.headers_mut());
        }
        let send = respond
            .send_response(response, false)
            .map_err(|error| from_h2(error, Side::Downstream))?;
        let settings = self.settings;
        Ok(Tunnel::new(
            send,
            recv,
            alive,
            None,
            settings,
            Side::Downstream,
        ))
    }

    /// Answers with a status, headers only: 401 for policy, 503 for what cannot be reached, as
    /// istio/ztunnel does.
    pub fn refuse(mut self, status: StatusCode) {
        if let Some((_, mut respond, _)) = self.stream.take() {
            answer(&mut respond, status);
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some((_, mut respond, _)) = self.stream.take() {
            answer(&mut respond, StatusCode::SERVICE_UNAVAILABLE);
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("authority", &self.authority)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

fn destination(request: &Request<RecvStream>) -> Result<Authority, String> {
    if request.method() != Method::CONNECT {
        return Err(format!("expected method CONNECT, got {}", request.method()));
    }
    if request.extensions().get::<h2::ext::Protocol>().is_some() {
        return Err("expected plain CONNECT, got one with :protocol".to_owned());
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    let authority = authority.ok_or("expected an :authority")?;
    authority.parse().map_err(|error: Error| error.to_string())
}

fn answer(respond: &mut SendResponse<Placeholder>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::trace!(target: "mesh::hbone", %error, "nobody waits for the answer");
    }
}
