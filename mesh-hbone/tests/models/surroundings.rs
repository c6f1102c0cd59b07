//! What the pool asks of its surroundings, played: tokio's channel and tasks, and connections of peers.

use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Poll, Waker};

use loom::sync::atomic::{AtomicBool, Ordering};

/// loom's primitives, and what the pool uses of tokio on top of them.
pub(crate) mod sync {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;

    pub(crate) use loom::sync::Mutex;

    pub(crate) mod oneshot {
        use super::{Arc, Context, Mutex, Pin, Poll, Waker};

        struct State<T> {
            value: Option<T>,
            /// One of both ends is gone.
            ended: bool,
            waker: Option<Waker>,
        }

        pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);
        pub(crate) struct Receiver<T>(Arc<Mutex<State<T>>>);

        pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
            let state = Arc::new(Mutex::new(State {
                value: None,
                ended: false,
                waker: None,
            }));
            (Sender(Arc::clone(&state)), Receiver(state))
        }

        impl<T> Sender<T> {
            pub(crate) fn send(self, value: T) -> Result<(), T> {
                let mut state = self.0.lock().unwrap();
                if state.ended {
                    return Err(value);
                }
                state.value = Some(value);
                Ok(())
            }
        }

        impl<T> Drop for Sender<T> {
            fn drop(&mut self) {
                let waker = {
                    let mut state = self.0.lock().unwrap();
                    state.ended = true;
                    state.waker.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }

        impl<T> Future for Receiver<T> {
            type Output = Result<T, ()>;

            fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
                let mut state = self.0.lock().unwrap();
                if let Some(value) = state.value.take() {
                    return Poll::Ready(Ok(value));
                }
                if state.ended {
                    return Poll::Ready(Err(()));
                }
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }

        impl<T> Drop for Receiver<T> {
            fn drop(&mut self) {
                let _value = {
                    let mut state = self.0.lock().unwrap();
                    state.ended = true;
                    state.value.take()
                };
            }
        }
    }

    /// Each task is a thread.
    pub(crate) struct JoinSet<T> {
        tasks: Vec<Arc<std::sync::Mutex<Task>>>,
        _output: std::marker::PhantomData<T>,
    }

    #[derive(Default)]
    struct Task {
        aborted: bool,
        waker: Option<Waker>,
    }

    struct Running {
        task: Arc<std::sync::Mutex<Task>>,
        future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    }

    impl JoinSet<()> {
        pub(crate) fn new() -> Self {
            Self {
                tasks: Vec::new(),
                _output: std::marker::PhantomData,
            }
        }

        pub(crate) fn spawn(&mut self, future: impl Future<Output = ()> + Send + 'static) {
            let task = Arc::new(std::sync::Mutex::new(Task::default()));
            self.tasks.push(Arc::clone(&task));
            let future = Some(Box::pin(future) as Pin<Box<_>>);
            let running = Running { task, future };
            loom::thread::spawn(move || loom::future::block_on(running));
        }

        pub(crate) fn spawn_on(
            &mut self,
            future: impl Future<Output = ()> + Send + 'static,
            _: &tokio::runtime::Handle,
        ) {
            self.spawn(future);
        }

        pub(crate) fn try_join_next(&mut self) -> Option<()> {
            None
        }
    }

    impl<T> Drop for JoinSet<T> {
        fn drop(&mut self) {
            for task in self.tasks.drain(..) {
                let waker = {
                    let mut task = task.lock().unwrap();
                    task.aborted = true;
                    task.waker.take()
                };
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    // A waker is loom's: others may run while it is cloned, used or dropped, and no lock of `std` is held then.
    impl Future for Running {
        type Output = ();

        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let waker = Some(cx.waker().clone());
            let (aborted, _before) = {
                let mut task = self.task.lock().unwrap();
                (task.aborted, std::mem::replace(&mut task.waker, waker))
            };
            let Some(future) = self.future.as_mut().filter(|_| !aborted) else {
                self.future = None;
                return Poll::Ready(());
            };
            future.as_mut().poll(cx)
        }
    }

    /// Nothing takes long here.
    pub(crate) async fn timeout<F: Future>(_: Duration, future: F) -> Result<F::Output, ()> {
        Ok(future.await)
    }
}

pub(crate) mod driver {
    pub(crate) fn lock<T>(mutex: &loom::sync::Mutex<T>) -> loom::sync::MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }
}

pub(crate) mod config {
    use std::time::Duration;

    pub(crate) struct Config {
        pub(crate) max_connections: usize,
        pub(crate) max_waiters: usize,
        pub(crate) idle_timeout: Duration,
        pub(crate) dial_timeout: Duration,
    }
}

/// A connection, as its two ends see it. What threads meet at here is not what is modelled, but for that the peer
/// may leave at any moment.
#[derive(Debug)]
pub(crate) struct Wire {
    state: Mutex<State>,
    /// The peer takes no more streams.
    left: AtomicBool,
    max_streams: usize,
}

#[derive(Debug, Default)]
struct State {
    senders: usize,
    streams: usize,
    /// The peer has said how many streams it takes, and it was read.
    settled: bool,
    /// The connection's task is done with it.
    ended: bool,
    waker: Option<Waker>,
}

impl Wire {
    /// A connection that is there, or one whose peer has not said yet how many streams it takes.
    pub(crate) fn new(max_streams: usize, settled: bool) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                settled,
                ..State::default()
            }),
            left: AtomicBool::new(false),
            max_streams,
        })
    }

    pub(crate) fn ends(self: &Arc<Self>) -> (client::Connection, client::Sender) {
        let sender = client::Sender::new(Arc::clone(self));
        (client::Connection(Arc::clone(self)), sender)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn wake(mut state: MutexGuard<'_, State>) {
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The peer goes away: what is open goes on, and then it ends.
    pub(crate) fn leave(&self) {
        self.left.store(true, Ordering::Release);
        Self::wake(self.state());
    }

    fn has_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Whether its task has seen it to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub(crate) fn streams(&self) -> usize {
        self.state().streams
    }
}

pub(crate) mod client {
    use std::pin::Pin;
    use std::task::Context;

    use super::tunnel::Slot;
    use super::{Arc, Error, ErrorKind, Poll, Side, Tunnel, Wire};

    pub(crate) struct ConnectRequest;
    pub(crate) struct ConnectResponse;

    #[derive(Debug)]
    pub(crate) struct Sender(Arc<Wire>);
    pub(crate) struct Connection(pub(super) Arc<Wire>);

    impl Sender {
        pub(super) fn new(wire: Arc<Wire>) -> Self {
            wire.state().senders += 1;
            Self(wire)
        }

        pub(crate) fn max_streams(&self) -> usize {
            match self.is_settled() {
                true => self.0.max_streams,
                false => 1,
            }
        }

        pub(crate) fn is_closed(&self) -> bool {
            self.0.has_left() || self.0.has_ended()
        }

        pub(crate) fn is_settled(&self) -> bool {
            self.0.state().settled
        }

        /// Ready when the connection has polled the peer's SETTINGS, which it does first.
        pub(crate) fn settled(&self) -> impl Future<Output = Result<(), Error>> + Send + use<> {
            let wire = Arc::clone(&self.0);
            std::future::poll_fn(move |_| match wire.state().settled {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            })
        }

        pub(crate) async fn connect_holding(
            &self,
            _: ConnectRequest,
            place: Option<Box<dyn Slot>>,
        ) -> Result<(Tunnel, ConnectResponse), Error> {
            if self.is_closed() {
                return Err(Error::new(ErrorKind::GoingAway, Side::Upstream).retry_safe());
            }
            let streams = {
                let mut state = self.0.state();
                state.streams += 1;
                state.streams
            };
            assert!(streams <= self.max_streams(), "more than permitted");
            Ok((Tunnel::new(self.clone(), place), ConnectResponse))
        }

        /// Which connection it is of.
        pub(crate) fn is_of(&self, wire: &Arc<Wire>) -> bool {
            Arc::ptr_eq(&self.0, wire)
        }

        pub(super) fn closes(&self) {
            let mut state = self.0.state();
            state.streams -= 1;
            Wire::wake(state);
        }
    }

    impl Clone for Sender {
        fn clone(&self) -> Self {
            Self::new(Arc::clone(&self.0))
        }
    }

    impl Drop for Sender {
        fn drop(&mut self) {
            let mut state = self.0.state();
            state.senders -= 1;
            Wire::wake(state);
        }
    }

    /// The first poll reads the peer's SETTINGS; it ends when the peer has left and no stream is open, or nobody
    /// could open one.
    impl Future for Connection {
        type Output = Result<(), Error>;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
            let left = self.0.has_left();
            let waker = Some(cx.waker().clone());
            let (settles, ended, _before) = {
                let mut state = self.0.state();
                let settles = !state.settled && !left;
                state.settled |= settles;
                state.ended = (left && state.streams == 0) || state.senders == 0;
                let before = std::mem::replace(&mut state.waker, waker);
                (settles, state.ended, before)
            };
            if ended {
                return Poll::Ready(Ok(()));
            }
            if settles {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    }

    impl Drop for Connection {
        fn drop(&mut self) {
            self.0.state().ended = true;
        }
    }
}

pub(crate) mod tunnel {
    pub(crate) trait Slot: Send + Sync {
        fn lingers(&mut self);
    }
}

/// An open stream, its place given back after it.
pub(crate) struct Tunnel {
    sender: client::Sender,
    place: Option<Box<dyn tunnel::Slot>>,
}

impl Tunnel {
    fn new(sender: client::Sender, place: Option<Box<dyn tunnel::Slot>>) -> Self {
        Self { sender, place }
    }

    /// Nobody has it any more; it ends when it is dropped.
    pub(crate) fn linger(&mut self) {
        if let Some(place) = &mut self.place {
            place.lingers();
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.sender.closes();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    GoingAway,
    Overloaded,
    PoolFull,
    Timeout,
    Closed,
    Refused,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Side {
    Us,
    Upstream,
}

#[derive(Debug, Clone)]
pub(crate) struct Error {
    kind: ErrorKind,
    is_retry_safe: bool,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, _: Side) -> Self {
        Self {
            kind,
            is_retry_safe: false,
        }
    }

    pub(crate) fn with_detail(self, _: &'static str) -> Self {
        self
    }

    pub(crate) fn retry_safe(mut self) -> Self {
        self.is_retry_safe = true;
        self
    }

    pub(crate) fn is_retry_safe(&self) -> bool {
        self.is_retry_safe
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}
