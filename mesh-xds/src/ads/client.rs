//! What the caller holds: commands go in, events come out.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::kept::{Kept, Restoring, by_type};
use super::settings::Settings;
use super::state::{Decode, Health, Session};
use super::subscription::Wanted;
use super::worker::Worker;
use crate::decode::{Decoder, ResourceType};
use crate::error::{Error, ErrorKind};
use crate::model::{Batch, Update};
use crate::transport::Channel;

/// Commands that wait for the worker; whoever sends more waits.
const COMMANDS: usize = 64;

/// Events that wait for the caller; the stream is not read while they do.
const EVENTS: usize = 16;

/// Says what is wanted and how the application is. Cheap to clone.
///
/// The session ends when the last client or its [`Events`] are dropped.
#[derive(Debug, Clone)]
pub struct Client {
    commands: mpsc::Sender<Command>,
}

/// What a session tells, in order.
#[derive(Debug)]
#[must_use]
pub struct Events {
    events: mpsc::Receiver<Event>,
}

/// Something that happened in a session.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A stream was answered for the first time.
    Connected,
    /// Changes to apply together. They are acknowledged when the batch's reply gets its verdicts; a batch
    /// that is dropped without is asked for again on a new stream.
    Batch(Batch),
    /// Changes that belong to the next batch, of a response that is still on its way: with
    /// [`Settings::with_parts`]. None of them is to take effect before the rest of it, and that batch's reply is
    /// for verdicts on them too, where they are refused.
    Part(Vec<Update>),
    /// The parts since the last batch come to nothing: their response has no end.
    Cancelled,
    /// A name that is wanted is of no resource.
    #[non_exhaustive]
    Absent {
        /// The type of resources.
        type_url: Arc<str>,
        /// The name as it was wanted.
        name: String,
    },
    /// A response of this type was accepted whole, for the first time: what there is of it is here.
    Synced(Arc<str>),
    /// Of a response these resources were refused, and the rest is in effect. The last good version of what
    /// was refused stays.
    #[non_exhaustive]
    Refused {
        /// The type of resources.
        type_url: Arc<str>,
        /// Their names, each with the first KiB of the reason; at most 64 of a response, and none beyond the 1 000 of a
        /// type that are remembered. A name longer than 4 KiB is given as an empty one.
        resources: Vec<(String, String)>,
    },
    /// These stood refused, and do not any more: what the control plane says of them was accepted, or there is no such
    /// resource any more. It comes after the batch that they are of, and before [`Refused`](Self::Refused).
    #[non_exhaustive]
    Mended {
        /// The type of resources.
        type_url: Arc<str>,
        /// Their names, as they were refused by.
        names: Vec<Box<str>>,
    },
    /// So much of a type stands refused, told of or not: after each batch that something was refused of, or that came while
    /// something stood refused. It comes after [`Mended`](Self::Mended) and [`Refused`](Self::Refused), and before
    /// [`Synced`](Self::Synced).
    #[non_exhaustive]
    Standing {
        /// The type of resources.
        type_url: Arc<str>,
        /// How many of them are remembered to stand refused, at most 1 000.
        resources: usize,
        /// Whether there were others, too, that are not remembered: until a new stream's first answer.
        and_more: bool,
    },
    /// These are in effect now, and these are gone: with [`Settings::with_changes`]. It comes after the
    /// verdicts, and after [`Synced`](Self::Synced) where that comes too.
    #[non_exhaustive]
    Changed {
        /// As they came.
        put: Vec<Kept>,
        /// Types and names.
        gone: Vec<(Arc<str>, Box<str>)>,
    },
    /// What was to be [restored](Settings::with_restored) was delivered.
    #[non_exhaustive]
    Restored {
        /// Whether all of it was accepted. Where it was not, what is missing may be what closes something.
        whole: bool,
    },
    /// The stream ended, or could not be opened; `None` if the control plane ended it in order.
    Disconnected(Option<Error>),
}

/// What is known of a name when it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// It is asked for, now or before. What there is of it comes, or [`Event::Absent`].
    Asked,
    /// It was asked for before, and there is no such resource so far.
    Absent,
}

pub(super) enum Command {
    Want {
        type_url: String,
        name: String,
        answer: oneshot::Sender<Result<Wanted, Error>>,
    },
    Forget {
        type_url: String,
        name: String,
        answer: oneshot::Sender<Result<(), Error>>,
    },
    Health(Health),
    Reconnect,
}

impl Client {
    /// Makes a session with the control plane that `channel` leads to. Nothing happens before the worker runs.
    ///
    /// # Errors
    ///
    /// `InvalidSettings` if the node has no id, no type is asked for or one twice, a type is none that
    /// `decoder` reads, or a back-off is not one.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use mesh_xds::ads::{Client, Event, Interest, Node, Settings};
    /// use mesh_xds::decode::{Decoder, ResourceType};
    /// use mesh_xds::model::Verdict;
    /// # async fn session(channel: mesh_xds::transport::Channel) -> Result<(), mesh_xds::Error> {
    ///
    /// let settings = Settings::new(Node::new("ztunnel~10.0.0.1~a.ns~ns.svc.cluster.local"))
    ///     .with_type(ResourceType::Address.url(), Interest::Named)
    ///     .with_type(ResourceType::Authorization.url(), Interest::All);
    /// let (client, mut events, worker) = Client::new(channel, settings, Decoder::new())?;
    /// tokio::spawn(worker.run());
    /// client
    ///     .want(ResourceType::Address.url(), "default/reviews.default.svc.cluster.local")
    ///     .await?;
    /// while let Some(event) = events.next().await {
    ///     if let Event::Batch(batch) = event {
    ///         let (updates, _removed, reply) = batch.into_parts();
    ///         let verdicts = updates.iter().map(|update| Verdict::accepted(update.name()));
    ///         reply.send(verdicts.collect());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(
        channel: Channel,
        settings: Settings,
        decoder: Decoder,
    ) -> Result<(Self, Events, Worker), Error> {
        let mut types = settings.types.iter();
        if let Some((url, _)) = types.find(|(url, _)| ResourceType::from_url(url).is_none()) {
            let detail = format!("{url} has no place in the model");
            return Err(Error::new(ErrorKind::InvalidSettings, detail));
        }
        Self::with_decoder(channel, settings, Arc::new(decoder))
    }

    pub(super) fn with_decoder(
        channel: Channel,
        settings: Settings,
        decoder: Arc<dyn Decode>,
    ) -> Result<(Self, Events, Worker), Error> {
        let mut settings = settings;
        let types: Vec<_> = settings
            .types
            .iter()
            .map(|(url, _)| url.as_str().into())
            .collect();
        let restoring = match settings.restored.take() {
            Some(kept) => by_type(kept, types.into_iter()),
            None => Restoring::nothing(),
        };
        let session = Session::new(settings, decoder, Instant::now())?;
        let (commands, taken) = mpsc::channel(COMMANDS);
        let (told, events) = mpsc::channel(EVENTS);
        let worker = Worker::new(channel, session, taken, told, restoring);
        Ok((Self { commands }, Events { events }, worker))
    }

    /// Asks for the resource with this name: `<network>/<address>`, a workload's uid or
    /// `<namespace>/<hostname>` of addresses, `xds.istio.io/grpc/lds/inbound/<address>:<port>` of listeners.
    ///
    /// Names are wanted once, however often they are asked for. For a type of which everything is asked
    /// for this does nothing.
    ///
    /// # Errors
    ///
    /// `InvalidSettings` if the type is not among those of the settings, the name is empty, `*` or longer
    /// than 4 KiB, or too many names are wanted; `Connection` if the session has ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the name is wanted or not.
    pub async fn want(
        &self,
        type_url: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<Presence, Error> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Want {
            type_url: type_url.into(),
            name: name.into(),
            answer,
        };
        self.send(command).await?;
        match answered.await.map_err(|_| ended())?? {
            Wanted::Asked | Wanted::Already => Ok(Presence::Asked),
            Wanted::Absent => Ok(Presence::Absent),
        }
    }

    /// Stops asking for a name.
    ///
    /// What came along with it goes a little later: see [`Settings::with_drop_forgotten_after`].
    ///
    /// # Errors
    ///
    /// As [`want`](Self::want); a name that is not wanted is no error.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the name is forgotten or not.
    pub async fn forget(
        &self,
        type_url: impl Into<String>,
        name: impl Into<String>,
    ) -> Result<(), Error> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Forget {
            type_url: type_url.into(),
            name: name.into(),
            answer,
        };
        self.send(command).await?;
        answered.await.map_err(|_| ended())?
    }

    /// Reports how the application is. The last report is repeated on every new stream: another istiod
    /// does not know it.
    ///
    /// # Errors
    ///
    /// `Connection` if the session has ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the report is taken or not.
    pub async fn report_health(&self, health: Health) -> Result<(), Error> {
        self.send(Command::Health(health)).await
    }

    /// Ends the stream and opens another, after a wait as after any that was lost: where something is made
    /// anew only when a client comes. What is here stays.
    ///
    /// # Errors
    ///
    /// `Connection` if the session has ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the stream is ended or not.
    pub async fn reconnect(&self) -> Result<(), Error> {
        self.send(Command::Reconnect).await
    }

    async fn send(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| ended())
    }
}

impl Events {
    /// The next event; `None` when the session has ended.
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped no event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::Connection, "the session has ended")
}
