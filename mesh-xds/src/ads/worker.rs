//! Moves messages between the session, the stream and the caller, and decides nothing.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use std::{fmt, mem};

use futures_util::Stream;
use futures_util::future::BoxFuture;
use futures_util::task::AtomicWaker;
use http::Uri;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::client::{Command, Event};
use super::kept::{Kept, Restoring};
use super::reading::Reading;
use super::state::{Mended, Outgoing, Protocol, Session, Standing};
use crate::error::{Error, ErrorKind};
use crate::model::{Batch, Verdict};
use crate::transport::Channel;
use crate::transport::driver::Driver;
use crate::transport::messages::{self, Messages, Piece};

/// The method of each protocol.
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const WORLD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

/// How many resources are read before other tasks have their turn: some 0.5 ms.
const PART: usize = 256;

/// The same where there is a pause after them.
const PACED: usize = 64;

/// Before more is let go of that was replaced.
const SHED_PAUSE: Duration = Duration::from_millis(1);

/// Requests that wait for the connection.
const REQUESTS: usize = 16;

/// The session itself: spawn [`run`](Self::run).
#[must_use = "nothing happens before it runs"]
pub struct Worker {
    channel: Channel,
    session: Session,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    link: Link,
    /// The response that is on its way.
    reading: Option<Reading>,
    /// How many resources may be read before other tasks have their turn.
    room: usize,
    restoring: Restoring,
    /// The verdicts on what the last response brought, but those that are good.
    verdicts: Option<oneshot::Receiver<Vec<Verdict>>>,
    answered: bool,
    /// When the session lets go of more, if it has any left.
    shed_at: Instant,
}

/// The way to the control plane, as far as it is made.
enum Link {
    Down,
    Connecting(BoxFuture<'static, Result<Connection, Error>>),
    /// Requests are on their way; a server may send no headers before its first response.
    Calling(Requests, BoxFuture<'static, Result<Messages, Error>>),
    Up(Requests, Box<Messages>),
}

/// A connection, with what the stream's request needs.
struct Connection {
    channel: (tonic::transport::Channel, Driver),
    origin: Uri,
    request: tonic::Request<()>,
    max: usize,
}

enum Requests {
    Delta(mpsc::Sender<crate::proto::envoy::service::discovery::v3::DeltaDiscoveryRequest>),
    World(mpsc::Sender<crate::proto::envoy::service::discovery::v3::DiscoveryRequest>),
}

/// What the worker has to do next.
enum Step {
    Command(Command),
    Judged(Result<Vec<Verdict>, oneshot::error::RecvError>),
    Progress(Progress),
    Again,
    End,
}

/// What the link did.
enum Progress {
    Connected(Box<Connection>),
    Called(Box<Messages>),
    Piece(Piece),
    Room,
    Ended(Option<Error>),
}

impl Worker {
    pub(super) fn new(
        channel: Channel,
        session: Session,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<Event>,
        restoring: Restoring,
    ) -> Self {
        Self {
            channel,
            session,
            restoring,
            commands,
            events,
            outbox: VecDeque::new(),
            link: Link::Down,
            reading: None,
            room: PART,
            verdicts: None,
            answered: false,
            shed_at: Instant::now(),
        }
    }

    /// Keeps the session until the last [`Client`](super::Client) or the [`Events`](super::Events) are dropped.
    ///
    /// Must run on a tokio runtime with time and I/O.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the session.
    pub async fn run(mut self) {
        loop {
            if self.outbox.is_empty() && self.verdicts.is_none() {
                self.restore();
            }
            // Attempts wait for the caller too, who would be told of each.
            if self.outbox.is_empty()
                && self.verdicts.is_none()
                && self.session.poll_connect(Instant::now()).is_some()
            {
                // The next stream brings it again.
                self.cancel();
                self.link = Link::Connecting(connect(self.channel.clone()));
            }
            let blocked = self.transmit();
            let timeout = self.session.poll_timeout();
            let idle = self.outbox.is_empty() && self.verdicts.is_none();
            let step = tokio::select! {
                command = self.commands.recv() => command.map_or(Step::End, Step::Command),
                permit = self.events.reserve(), if !self.outbox.is_empty() => match permit {
                    Ok(permit) => {
                        if let Some(event) = self.outbox.pop_front() {
                            permit.send(event);
                        }
                        Step::Again
                    }
                    Err(_) => Step::End,
                },
                () = self.events.closed() => Step::End,
                verdicts = verdicts(&mut self.verdicts), if self.outbox.is_empty() => {
                    Step::Judged(verdicts)
                }
                progress = self.link.progress(blocked, idle) => Step::Progress(progress),
                () = sleep_until(timeout.unwrap_or_else(Instant::now)), if timeout.is_some() && idle => {
                    Step::Again
                }
                () = sleep_until(self.shed_at), if self.session.has_left() => {
                    self.session.shed();
                    self.shed_at = Instant::now() + SHED_PAUSE;
                    Step::Again
                }
            };
            match step {
                Step::Command(command) => self.command(command),
                Step::Judged(verdicts) => {
                    self.verdicts = None;
                    self.judged(verdicts);
                }
                Step::Progress(progress) => self.progress(progress).await,
                Step::Again => {}
                Step::End => return,
            }
        }
    }

    /// Delivers what is kept of the next type, or says that there is no more.
    fn restore(&mut self) {
        while let Some(kept) = self.restoring.next() {
            if self.restore_type(kept) {
                return;
            }
        }
        if let Some(whole) = self.restoring.ends() {
            self.outbox.push_back(Event::Restored { whole });
        }
    }

    fn restore_type(&mut self, kept: Vec<Kept>) -> bool {
        let (delivery, whole) = self.session.restored(kept);
        self.restoring.judged(whole);
        let batch = Batch::new(delivery.updates, delivery.removed);
        if batch.is_empty() {
            self.session.judged([]);
            return false;
        }
        self.deliver(batch);
        true
    }

    fn command(&mut self, command: Command) {
        // Whoever does not wait for the answer any more does not want it.
        match command {
            Command::Want {
                type_url,
                name,
                answer,
            } => {
                let _ = answer.send(self.session.want(&type_url, &name));
            }
            Command::Forget {
                type_url,
                name,
                answer,
            } => {
                let now = Instant::now();
                let _ = answer.send(self.session.forget(&type_url, &name, now));
            }
            Command::Health(health) => self.session.report_health(health),
            Command::Reconnect => {
                // A server may send no headers before its first response, and have heard all of ours.
                if matches!(self.link, Link::Calling(..) | Link::Up(..)) {
                    self.ended(None);
                }
            }
        }
    }

    /// Sends what there is to send; says whether there is no room for more.
    fn transmit(&mut self) -> bool {
        let (Link::Calling(requests, _) | Link::Up(requests, _)) = &self.link else {
            return false;
        };
        while requests.has_room() {
            match self.session.poll_transmit() {
                Some(outgoing) => requests.send(outgoing),
                None => return false,
            }
        }
        true
    }

    async fn progress(&mut self, progress: Progress) {
        match progress {
            Progress::Connected(connection) => {
                self.answered = false;
                let removed = self.session.opened();
                let (requests, call) = call(*connection, self.session.protocol());
                self.link = Link::Calling(requests, call);
                if !removed.is_empty() {
                    self.deliver(Batch::new(Vec::new(), removed));
                }
                self.mended();
                self.standing();
            }
            Progress::Called(responses) => {
                if let Link::Calling(requests, _) = mem::replace(&mut self.link, Link::Down) {
                    self.link = Link::Up(requests, responses);
                }
            }
            Progress::Piece(piece) => {
                if let Err(error) = self.piece(piece).await {
                    self.ended(Some(error));
                }
            }
            Progress::Room => {}
            Progress::Ended(error) => self.ended(error),
        }
    }

    /// Reads what came of a response, in parts, between which other tasks have their turn: a whole mesh takes a while.
    async fn piece(&mut self, piece: Piece) -> Result<(), Error> {
        let protocol = self.session.protocol();
        let reading = self.reading.take();
        let reading = reading.unwrap_or_else(|| Reading::new(protocol, piece.length));
        let reading = self.reading.insert(reading);
        reading.push(piece.data);
        while !reading.read(&mut self.session, &mut self.room)? {
            // What the last push left goes sooner than this one leaves as much.
            self.session.shed();
            let pause = self.session.pause().filter(|_| reading.is_later());
            self.room = pause.map_or(PART, |_| PACED);
            // In one batch removals come before updates; what a part has is not removed by the rest.
            let updates = match self.session.hands_over_parts() {
                true => reading.take(),
                false => Vec::new(),
            };
            if !updates.is_empty() {
                self.outbox.push_back(Event::Part(updates));
            }
            match pause {
                Some(pause) => sleep(pause).await,
                None => turn().await,
            }
        }
        if !piece.ends {
            return Ok(());
        }
        let (url, mut delivery) = reading.end(&mut self.session)?;
        let is_parted = reading.is_taken();
        self.reading = None;
        if !mem::replace(&mut self.answered, true) {
            self.outbox.push_back(Event::Connected);
        }
        let absent = mem::take(&mut delivery.absent);
        let batch = Batch::new(delivery.updates, delivery.removed);
        // What was handed over takes effect with it, even if there is nothing else.
        if batch.is_empty() && !is_parted {
            self.judged(Ok(Vec::new()));
        } else {
            self.deliver(batch);
        }
        for name in absent {
            let type_url = Arc::clone(&url);
            self.outbox.push_back(Event::Absent { type_url, name });
        }
        Ok(())
    }

    /// The caller has to judge it.
    fn deliver(&mut self, batch: Batch) {
        let (judged, verdicts) = oneshot::channel();
        let batch = batch.with_reply(move |mut verdicts| {
            verdicts.retain(|verdict| verdict.result().is_err());
            // The session may have ended.
            let _ = judged.send(verdicts);
        });
        self.outbox.push_back(Event::Batch(batch));
        self.verdicts = Some(verdicts);
    }

    fn judged(&mut self, verdicts: Result<Vec<Verdict>, oneshot::error::RecvError>) {
        let Ok(verdicts) = verdicts else {
            self.session.abandoned();
            let error = Error::new(ErrorKind::Connection, "a batch was not applied");
            self.ended(Some(error));
            return;
        };
        let rejected = verdicts.iter().filter_map(|verdict| {
            let rejection = verdict.result().err()?;
            Some((verdict.resource().clone(), rejection.reason().to_owned()))
        });
        self.restoring.judged(verdicts.is_empty());
        let synced = self.session.judged(rejected);
        self.mended();
        if let Some(refused) = self.session.take_refused() {
            self.outbox.push_back(Event::Refused {
                type_url: refused.type_url,
                resources: refused.resources,
            });
        }
        self.standing();
        if let Some(type_url) = synced {
            self.outbox.push_back(Event::Synced(type_url));
        }
        if let Some(changed) = self.session.take_changed() {
            self.outbox.push_back(Event::Changed {
                put: changed.put,
                gone: changed.gone,
            });
        }
    }

    fn mended(&mut self) {
        for Mended { type_url, names } in self.session.take_mended() {
            self.outbox.push_back(Event::Mended { type_url, names });
        }
    }

    fn standing(&mut self) {
        for standing in self.session.take_standing() {
            let Standing {
                type_url,
                resources,
                and_more,
            } = standing;
            self.outbox.push_back(Event::Standing {
                type_url,
                resources,
                and_more,
            });
        }
    }

    /// Of the response on its way there will be no more.
    fn cancel(&mut self) {
        if let Some(reading) = self.reading.take() {
            if reading.is_taken() {
                self.outbox.push_back(Event::Cancelled);
            }
            reading.cancel(&mut self.session);
        }
    }

    fn ended(&mut self, error: Option<Error>) {
        self.cancel();
        self.link = Link::Down;
        let kind = error.as_ref().map(Error::kind);
        self.session.closed(kind, Instant::now());
        tracing::debug!(uri = %self.channel.uri(), ?error, "discovery stream ended");
        self.outbox.push_back(Event::Disconnected(error));
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("channel", &self.channel)
            .finish_non_exhaustive()
    }
}

async fn verdicts(
    verdicts: &mut Option<oneshot::Receiver<Vec<Verdict>>>,
) -> Result<Vec<Verdict>, oneshot::error::RecvError> {
    match verdicts {
        Some(verdicts) => verdicts.await,
        None => pending().await,
    }
}

fn connect(channel: Channel) -> BoxFuture<'static, Result<Connection, Error>> {
    Box::pin(async move {
        let connection = channel.connect().await?;
        Ok(Connection {
            channel: connection,
            origin: channel.uri().clone(),
            request: channel.request(()).await?,
            max: channel.max_message_size(),
        })
    })
}

fn call(
    connection: Connection,
    protocol: Protocol,
) -> (Requests, BoxFuture<'static, Result<Messages, Error>>) {
    match protocol {
        Protocol::Delta => {
            let (requests, taken) = mpsc::channel(REQUESTS);
            (Requests::Delta(requests), stream(connection, DELTA, taken))
        }
        Protocol::StateOfTheWorld => {
            let (requests, taken) = mpsc::channel(REQUESTS);
            (Requests::World(requests), stream(connection, WORLD, taken))
        }
    }
}

fn stream<M: prost::Message + 'static>(
    connection: Connection,
    path: &'static str,
    requests: mpsc::Receiver<M>,
) -> BoxFuture<'static, Result<Messages, Error>> {
    let Connection {
        channel,
        origin,
        request,
        max,
    } = connection;
    Box::pin(async move {
        messages::open(channel, &origin, path, request, received(requests), max).await
    })
}

fn received<T: Send + 'static>(
    mut requests: mpsc::Receiver<T>,
) -> impl Stream<Item = T> + Send + 'static {
    futures_util::stream::poll_fn(move |cx| requests.poll_recv(cx))
}

impl Requests {
    fn has_room(&self) -> bool {
        match self {
            Self::Delta(requests) => requests.capacity() > 0,
            Self::World(requests) => requests.capacity() > 0,
        }
    }

    /// There is room, or nobody takes it any more, which the responses tell.
    fn send(&self, outgoing: Outgoing) {
        match (self, outgoing) {
            (Self::Delta(requests), Outgoing::Delta(request)) => {
                let _ = requests.try_send(request);
            }
            (Self::World(requests), Outgoing::StateOfTheWorld(request)) => {
                let _ = requests.try_send(request);
            }
            _ => debug_assert!(false, "the session speaks what was opened"),
        }
    }

    async fn room(&self) {
        match self {
            Self::Delta(requests) => drop(requests.reserve().await.is_ok()),
            Self::World(requests) => drop(requests.reserve().await.is_ok()),
        }
    }
}

/// Whether others have had their turn.
#[derive(Default)]
struct Turn {
    is_over: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.is_over.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// Lets others have their turn, I/O among them. The runtime's own yielding is over with any wake, and the connection,
/// which this task moves, has one most of the time.
async fn turn() {
    let turn = Arc::new(Turn::default());
    let waker = Waker::from(Arc::clone(&turn));
    let mut pause = pin!(tokio::task::yield_now());
    let mut begun = false;
    poll_fn(|cx| {
        turn.task.register(cx.waker());
        if !mem::replace(&mut begun, true) {
            return pause.as_mut().poll(&mut Context::from_waker(&waker));
        }
        match turn.is_over.load(Ordering::Acquire) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}

/// What comes next, once it is wanted; until then the connection is moved alone.
async fn next(responses: &mut Messages, idle: bool) -> Progress {
    if !idle {
        responses.wait().await;
    }
    match responses.next().await {
        Ok(Some(piece)) => Progress::Piece(piece),
        Ok(None) => Progress::Ended(None),
        Err(error) => Progress::Ended(Some(error)),
    }
}

impl Link {
    /// The next thing that happens. Responses wait until the last one's are judged.
    async fn progress(&mut self, blocked: bool, idle: bool) -> Progress {
        match self {
            Self::Down => pending().await,
            Self::Connecting(connection) => match connection.await {
                Ok(connection) => Progress::Connected(Box::new(connection)),
                Err(error) => Progress::Ended(Some(error)),
            },
            Self::Calling(requests, call) => tokio::select! {
                responses = call => match responses {
                    Ok(responses) => Progress::Called(Box::new(responses)),
                    Err(error) => Progress::Ended(Some(error)),
                },
                () = requests.room(), if blocked => Progress::Room,
            },
            Self::Up(requests, responses) => tokio::select! {
                progress = next(responses, idle) => progress,
                () = requests.room(), if blocked => Progress::Room,
            },
        }
    }
}
