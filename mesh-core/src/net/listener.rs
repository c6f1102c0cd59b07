//! Accepting connections, whatever the system says.

#[cfg(test)]
mod tests;

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep};

use super::socket::TcpSettings;

/// Where connections come from: the kernel, or a test.
pub(crate) trait Accept {
    /// A connection.
    type Io;

    /// Polls for the next connection and its peer's address.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(Self::Io, SocketAddr)>>;
}

/// Accepts connections for ever: no error of `accept` ends it, makes it spin or fills the log.
///
/// A connection that died in the queue is passed over at once. For anything else, most of all for
/// the lack of file descriptors or memory, it pauses: 5 ms first, twice as long each time, 500 ms
/// at most, so that it takes part again within a second of the system's recovery. While descriptors
/// lack, one that was kept back takes waiting connections off the queue and closes them: their
/// peers learn at once what they would otherwise wait for.
#[derive(Debug)]
pub(crate) struct Listener<A> {
    source: A,
    /// Errors since the last connection.
    errors: u32,
    pause: Duration,
    pausing: Option<Pin<Box<Sleep>>>,
    reserve: Option<File>,
    log: Log,
}

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// So many dead connections in a row are passed over without a pause.
const PASSED_OVER: u32 = 64;

/// So many connections are closed per pause while descriptors lack.
const SHED: usize = 64;

/// Opens to a descriptor that costs nothing and needs no right.
#[cfg(unix)]
const NOTHING: &str = "/dev/null";
#[cfg(not(unix))]
const NOTHING: &str = "NUL";

impl<A: Accept> Listener<A> {
    pub(crate) fn new(source: A) -> Self {
        Self {
            source,
            errors: 0,
            pause: FIRST_PAUSE,
            pausing: None,
            reserve: File::open(NOTHING).ok(),
            log: Log::default(),
        }
    }

    /// The next connection and its peer's address.
    ///
    /// # Cancel safety
    ///
    /// No connection is lost: one is taken only when the future completes.
    pub(crate) async fn accept(&mut self) -> (A::Io, SocketAddr) {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept).
    pub(crate) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<(A::Io, SocketAddr)> {
        loop {
            if let Some(pausing) = &mut self.pausing {
                ready!(pausing.as_mut().poll(cx));
                self.pausing = None;
            }
            let error = match ready!(self.source.poll_accept(cx)) {
                Ok(connection) => {
                    self.errors = 0;
                    self.pause = FIRST_PAUSE;
                    if self.reserve.is_none() {
                        self.reserve = File::open(NOTHING).ok();
                    }
                    return Poll::Ready(connection);
                }
                Err(error) => error,
            };
            self.errors = self.errors.saturating_add(1);
            if died_in_the_queue(&error) && self.errors <= PASSED_OVER {
                continue;
            }
            let shed = match lacks_descriptors(&error) {
                true => self.shed(cx),
                false => 0,
            };
            self.log.say(&error, self.pause, shed);
            self.pausing = Some(Box::pin(tokio::time::sleep(self.pause)));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Closes waiting connections by means of the descriptor kept back, and says how many.
    fn shed(&mut self, cx: &mut Context<'_>) -> usize {
        if self.reserve.take().is_none() {
            return 0;
        }
        let mut shed = 0;
        while shed < SHED
            && let Poll::Ready(Ok(connection)) = self.source.poll_accept(cx)
        {
            drop(connection);
            shed += 1;
        }
        // Another thread may have been faster; then the next connection tries again.
        self.reserve = File::open(NOTHING).ok();
        shed
    }
}

/// accept(2) of Linux passes on what the network did to a connection that was still in the queue.
fn died_in_the_queue(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::TimedOut
    )
}

/// Of this process (EMFILE) or of the machine (ENFILE); every Unix has the same numbers.
fn lacks_descriptors(error: &io::Error) -> bool {
    cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24))
}

/// Writes at most one line a second.
#[derive(Debug, Default)]
struct Log {
    silent_until: Option<Instant>,
    errors: u64,
    shed: usize,
}

impl Log {
    fn say(&mut self, error: &io::Error, pause: Duration, shed: usize) {
        self.errors += 1;
        self.shed += shed;
        let now = Instant::now();
        if self.silent_until.is_some_and(|until| now < until) {
            return;
        }
        tracing::warn!(
            target: "mesh::net",
            %error,
            errors = self.errors,
            shed = self.shed,
            ?pause,
            "no connections are accepted for a moment"
        );
        *self = Self {
            silent_until: Some(now + Duration::from_secs(1)),
            ..Self::default()
        };
    }
}

/// Accepts from a TCP socket and sets the options of each connection.
#[derive(Debug)]
pub(crate) struct Tcp {
    socket: TcpListener,
    settings: TcpSettings,
}

impl Accept for Tcp {
    type Io = TcpStream;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(TcpStream, SocketAddr)>> {
        let accepted = ready!(self.socket.poll_accept(cx));
        Poll::Ready(accepted.inspect(|(stream, _)| self.settings.configure(stream)))
    }
}

impl Listener<Tcp> {
    /// Listens on a TCP address. Port 0 takes a free one.
    ///
    /// # Errors
    ///
    /// When the address is not of this machine, is taken, or is not allowed.
    pub(crate) fn bind(on: SocketAddr, settings: TcpSettings) -> io::Result<Self> {
        let socket = settings.bind(on)?;
        Ok(Self::new(Tcp { socket, settings }))
    }

    /// The address that is listened on.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.source.socket.local_addr()
    }
}
