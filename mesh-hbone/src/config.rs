//! The bounds and time-outs of HBONE connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::tunnel::FULL;
use crate::windows::{Budget, Windows};

/// Settings of HBONE connections, clients and servers alike.
///
/// The defaults are those of an application that embeds the mesh. A proxy for many workloads sets
/// more streams and longer windows. Times beyond a year are a year.
///
/// # Examples
///
/// ```
/// use mesh_hbone::config::Config;
///
/// // istio/ztunnel's limits, of a node proxy
/// let config = Config::default().max_incoming_streams(200).stream_window(4 << 20);
/// # let _ = config;
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) stream_window: u32,
    pub(crate) bulk_window: u32,
    window_budget: Arc<Budget>,
    pub(crate) connection_window: Option<u32>,
    pub(crate) max_incoming_streams: u32,
    pub(crate) max_outgoing_streams: u32,
    pub(crate) send_buffer: usize,
    pub(crate) max_frame_size: u32,
    pub(crate) max_header_list_size: u32,
    pub(crate) max_header_fields: usize,
    pub(crate) data_frame_budget: Option<usize>,
    pub(crate) max_pending_resets: usize,
    pub(crate) max_error_resets: usize,
    pub(crate) max_resets: u32,
    pub(crate) max_control_frames: u32,
    pub(crate) header_timeout: Duration,
    pub(crate) ping_interval: Duration,
    pub(crate) ping_timeout: Duration,
    pub(crate) handshake_timeout: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) first_connect_timeout: Duration,
    pub(crate) max_connections: usize,
    pub(crate) max_waiters: usize,
    pub(crate) idle_timeout: Duration,
    pub(crate) dial_timeout: Duration,
    pub(crate) linger: Duration,
}

/// What unread small DATA frames may cost unless it is set.
const FRAME_BUDGET: usize = 6 << 20;

/// Enough for anybody, and no instant overflows by it.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The largest flow-control window (RFC 9113 section 6.9.1).
const MAX_WINDOW: u32 = (1 << 31) - 1;

impl Default for Config {
    fn default() -> Self {
        Self {
            stream_window: 256 << 10,
            bulk_window: 1 << 20,
            window_budget: Arc::new(Budget::new(256 << 20)),
            connection_window: None,
            max_incoming_streams: 100,
            max_outgoing_streams: 100,
            send_buffer: 384 << 10,
            max_frame_size: 16 << 10,
            max_header_list_size: 64 << 10,
            max_header_fields: 128,
            data_frame_budget: None,
            max_pending_resets: 20,
            max_error_resets: 1024,
            max_resets: 50,
            max_control_frames: 200,
            header_timeout: Duration::from_secs(10),
            ping_interval: Duration::from_secs(10),
            ping_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            first_connect_timeout: Duration::from_secs(10),
            max_connections: 500,
            max_waiters: 1024,
            idle_timeout: Duration::from_secs(300),
            dial_timeout: Duration::from_secs(30),
            linger: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Bytes that the peer may send on one tunnel ahead of its reader. Default: 256 KiB, clamped to
    /// 1 byte and 2^31-1.
    ///
    /// It is also what an unread tunnel may cost in memory, which is why the default is small. Where
    /// readers keep up, [`bulk_window`](Self::bulk_window) takes its place.
    #[must_use]
    pub fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes.clamp(1, MAX_WINDOW);
        self
    }

    /// Bytes that the peer may send on one tunnel ahead of its reader while a connection has at most 4
    /// tunnels and much arrives on them (8 stream windows within a PING interval, more than unread
    /// tunnels could hold). Default: 1 MiB, clamped to 1 byte and 2^31-1; a value below the stream
    /// window means that there is no other.
    ///
    /// Bulk transfers want the path's bandwidth times delay. Within a machine, 1 MiB moves up to twice
    /// as much as 256 KiB, and more brings nothing, because it leaves the cache.
    #[must_use]
    pub fn bulk_window(mut self, bytes: u32) -> Self {
        self.bulk_window = bytes.clamp(1, MAX_WINDOW);
        self
    }

    /// Bytes that all connections made with this value and its clones may promise their peers to bear
    /// unread: the windows of their live tunnels. Default: 256 MiB; a quarter of the memory that the
    /// process may use is a good value.
    ///
    /// Beyond it no connection gets bulk windows, and each falls back to windows of 65 535 bytes,
    /// HTTP/2's own, when next its tunnels change or a PING interval ends, until three quarters suffice.
    #[must_use]
    pub fn window_budget(mut self, bytes: u64) -> Self {
        self.window_budget = Arc::new(Budget::new(bytes));
        self
    }

    /// Bytes that the peer may send on all tunnels of a connection ahead of their readers. Default:
    /// streams × stream window, so that tunnels that nobody reads never stall their neighbours.
    ///
    /// A smaller value saves memory and gives that up. Never less than HTTP/2's initial 65 535.
    #[must_use]
    pub fn connection_window(mut self, bytes: u32) -> Self {
        self.connection_window = Some(bytes.clamp(65_535, MAX_WINDOW));
        self
    }

    /// Tunnels that a peer may have open on one connection to us. Default: 100; at least 1.
    /// A CONNECT beyond them is answered RST_STREAM(REFUSED_STREAM), which is safe to retry.
    #[must_use]
    pub fn max_incoming_streams(mut self, streams: u32) -> Self {
        self.max_incoming_streams = streams.max(1);
        self
    }

    /// Tunnels that we open on one connection; a peer's SETTINGS_MAX_CONCURRENT_STREAMS may lower it.
    /// Default: 100; at least 1.
    #[must_use]
    pub fn max_outgoing_streams(mut self, streams: u32) -> Self {
        self.max_outgoing_streams = streams.max(1);
        self
    }

    /// Bytes that one tunnel accepts from its writer ahead of the wire. Default: 384 KiB, of which one
    /// write to the transport is made; at least 16 KiB. More only leaves the L2 cache while it is in flight.
    #[must_use]
    pub fn send_buffer(mut self, bytes: usize) -> Self {
        self.send_buffer = bytes.clamp(16 << 10, MAX_WINDOW as usize);
        self
    }

    /// The largest frame that peers may send (SETTINGS_MAX_FRAME_SIZE). Default: 16 KiB, HTTP/2's
    /// own: a larger frame is delivered only when it is here entirely. Clamped to 16 KiB and
    /// 16 MiB - 1. We ourselves send DATA of at most 16 375 bytes: a full TLS record with its header.
    #[must_use]
    pub fn max_frame_size(mut self, bytes: u32) -> Self {
        self.max_frame_size = bytes.clamp(16 << 10, (16 << 20) - 1);
        self
    }

    /// Decoded size of the headers of a CONNECT or its answer. Default: 64 KiB, as istio/ztunnel.
    /// h2 derives from it and the frame size how many CONTINUATION frames it bears (5 by default).
    #[must_use]
    pub fn max_header_list_size(mut self, bytes: u32) -> Self {
        self.max_header_list_size = bytes;
        self
    }

    /// How many header fields a CONNECT or its answer may have, those of one name each counted. Default: 128; Envoy takes
    /// 100 (`max_headers_count`), and a client of the mesh sends fewer than ten. A CONNECT with more is answered 431, and a
    /// client that is answered with more has no tunnel. Whatever is set, [`max_header_list_size`](Self::max_header_list_size)
    /// bounds them to one for each 32 bytes ([RFC 9113 section 6.5.2](https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2)).
    #[must_use]
    pub fn max_header_fields(mut self, fields: usize) -> Self {
        self.max_header_fields = fields;
        self
    }

    /// What small unread DATA frames of a connection may cost before the connection is closed: a
    /// frame of n < 256 bytes costs 256 - n until it is read.
    ///
    /// Default: stream window × 255, at most 6 MiB. One tunnel that nobody reads cannot exhaust it
    /// with frames of 11 bytes or more, and 24 000 frames of one byte fit. It does not grow with the
    /// windows, because h2 holds some 250 bytes for each unread frame: with this bound no peer makes
    /// more than ten times of what it sends. h2's own default (half of the connection window) would be
    /// twice this with the default windows, and next to nothing with small ones.
    #[must_use]
    pub fn data_frame_budget(mut self, bytes: usize) -> Self {
        self.data_frame_budget = Some(bytes);
        self
    }

    /// CONNECTs that the peer may have reset before we looked at them (CVE-2023-44487,
    /// RUSTSEC-2023-0034). One more closes the connection with ENHANCE_YOUR_CALM. Default: 20.
    #[must_use]
    pub fn max_pending_resets(mut self, streams: usize) -> Self {
        self.max_pending_resets = streams;
        self
    }

    /// Streams that the peer may make us reset by violations of the protocol, over the life of a
    /// connection (RUSTSEC-2024-0003, CVE-2025-8671). One more closes it. Default: 1 024.
    #[must_use]
    pub fn max_error_resets(mut self, streams: usize) -> Self {
        self.max_error_resets = streams;
        self
    }

    /// Tunnels that the peer may reset per second before any of its data came on them, over 10 s: ten
    /// times as many at once. More close the connection, a server's with ENHANCE_YOUR_CALM
    /// (CVE-2023-44487). Default: 50; at least 1.
    #[must_use]
    pub fn max_resets_per_second(mut self, resets: u32) -> Self {
        self.max_resets = resets.max(1);
        self
    }

    /// Frames that carry nothing and that the peer may send per 10 s: SETTINGS, PING and its
    /// answers, PRIORITY, empty DATA, GOAWAY and unknown ones; from a server also header blocks beyond two for
    /// each tunnel that was asked for, which is to say 1xx answers. More close the connection, a
    /// server's with ENHANCE_YOUR_CALM (CVE-2019-9512, CVE-2019-9515, CVE-2019-9518). Default: 200; at least 1.
    ///
    /// h2 answers one PING and one SETTINGS at a time and so bounds their memory; this bounds their
    /// work.
    #[must_use]
    pub fn max_control_frames(mut self, frames: u32) -> Self {
        self.max_control_frames = frames.max(1);
        self
    }

    /// Time that the peer has to finish a header block, its CONTINUATION frames included, once it has
    /// begun. Default: 10 s. Nothing else can come on the connection meanwhile.
    #[must_use]
    pub fn header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout.min(FOREVER);
        self
    }

    /// Time from the start, and from the answer to the last PING, to the next PING. Default: 10 s.
    #[must_use]
    pub fn ping_interval(mut self, interval: Duration) -> Self {
        self.ping_interval = interval.min(FOREVER);
        self
    }

    /// Time that the peer has to answer a PING before the connection is given up. Default: 10 s, so
    /// that a vanished peer is noticed within 20 s.
    #[must_use]
    pub fn ping_timeout(mut self, timeout: Duration) -> Self {
        self.ping_timeout = timeout.min(FOREVER);
        self
    }

    /// Time that the peer has for its first SETTINGS and, as a client, its preface. Default: 10 s.
    #[must_use]
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout.min(FOREVER);
        self
    }

    /// Time that the peer has to answer a CONNECT. Default: 10 s. A server that dials before it
    /// answers should give up sooner than its clients do.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout.min(FOREVER);
        self
    }

    /// Time that a client has for its first CONNECT on a connection. Default: 10 s. Later pauses are
    /// bounded by PING only.
    #[must_use]
    pub fn first_connect_timeout(mut self, timeout: Duration) -> Self {
        self.first_connect_timeout = timeout.min(FOREVER);
        self
    }

    /// Connections that a [`Pool`](crate::pool::Pool) holds, those being dialled included. Default:
    /// 500, as istio/ztunnel. At the limit, the connection that has been idle the longest makes room:
    /// one of whose tunnels none is held, though some may wait for the peer's end ([`linger`](Self::linger)), which go on. Of those
    /// there are as many again at most.
    #[must_use]
    pub fn max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections.max(1);
        self
    }

    /// Callers that may wait in a [`Pool`](crate::pool::Pool) for connections of one key. Default:
    /// 1 024; more are refused at once.
    #[must_use]
    pub fn max_waiters(mut self, waiters: usize) -> Self {
        self.max_waiters = waiters.max(1);
        self
    }

    /// Time after the last of its tunnels was dropped for which a [`Pool`](crate::pool::Pool) keeps a connection.
    /// Default: 5 min, as istio/ztunnel.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout.min(FOREVER);
        self
    }

    /// Time that a dial of a [`Pool`](crate::pool::Pool) has in all: TCP, TLS and HTTP/2, each of which
    /// should have a shorter one of its own. Default: 30 s.
    #[must_use]
    pub fn dial_timeout(mut self, timeout: Duration) -> Self {
        self.dial_timeout = timeout.min(FOREVER);
        self
    }

    /// Time that the peer has to end its side of a tunnel that was dropped after its shutdown, before
    /// the stream is reset. Default: 10 s. Until then the stream counts as open, but keeps its connection from nothing.
    ///
    /// It is also the time that the peer has to close a connection of which we have closed our side, and
    /// before that the time that a client has to close one that
    /// [`graceful_shutdown`](crate::server::Connection::graceful_shutdown) has emptied.
    #[must_use]
    pub fn linger(mut self, time: Duration) -> Self {
        self.linger = time.min(FOREVER);
        self
    }

    pub(crate) fn tunnel_settings(&self) -> crate::tunnel::Settings {
        crate::tunnel::Settings {
            send_buffer: self.whole_send_buffer(),
            linger: self.linger,
        }
    }

    /// Whole frames: a remainder would leave as a frame, a TLS record and a write of its own.
    pub(crate) fn whole_send_buffer(&self) -> usize {
        self.send_buffer / FULL * FULL
    }

    pub(crate) fn window_of(&self, streams: u32) -> u32 {
        self.connection_window.unwrap_or_else(|| {
            let all = u64::from(self.stream_window) * u64::from(streams);
            u32::try_from(all)
                .unwrap_or(MAX_WINDOW)
                .clamp(65_535, MAX_WINDOW)
        })
    }

    pub(crate) fn windows_of(&self, streams: u32, now: Instant) -> Windows {
        Windows::new(
            self.stream_window,
            self.bulk_window,
            self.window_of(streams),
            self.ping_interval,
            Arc::clone(&self.window_budget),
            now,
        )
    }

    pub(crate) fn budget(&self) -> usize {
        self.data_frame_budget.unwrap_or_else(|| {
            let stream = self.stream_window as usize;
            stream.saturating_mul(255).min(FRAME_BUDGET)
        })
    }
}
