//! The stream at work: what comes is applied, what the mesh demands is asked for.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use mesh_authz::Identity;
use mesh_xds::ads::{Client, Event, Events, Health, Interest, Presence, Settings};
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::model::{Batch, InboundListener, Update, Verdict};
use mesh_xds::{Error as XdsError, ErrorKind as XdsErrorKind};
use tokio::time::sleep;

use super::keep::{self, Found, Keeper};
use super::problems::{Problems, short};
use super::prove::{Prover, text};
use super::{Mode, Xds};
use crate::config::{AppHealth, ConfigLink, Demand, Demands};
use crate::control_plane::local_towards;
use crate::{ControlPlane, Error, ErrorKind, WorkloadId};

#[cfg(test)]
mod tests;

/// What readiness calls it.
const NAME: &str = "control plane";

/// How often the own address is looked for while the control plane's is not known.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// From how many resources on a response is applied on a thread that may block. A whole push of a large mesh takes
/// a second or more, in which a worker of the runtime would leave other tasks waiting.
const LARGE: usize = 1000;

pub(super) async fn run(xds: Xds, link: ConfigLink) -> Result<(), Error> {
    if xds.mode == Mode::Sidecar {
        link.speak_for_one()?;
    }
    let mut demands = match xds.by_name {
        true => link.demands_by_name()?,
        false => link.demands()?,
    };
    // Nothing to log: so it begins.
    link.pend(NAME, "no answer yet")?;
    let workload = match xds.mode {
        Mode::Sidecar => Some(first_workload(&mut demands).await),
        Mode::NodeProxy { .. } => None,
    };
    let id = workload.as_ref().map(|(id, _)| id);
    let (mut keeper, found) = match &xds.state_dir {
        Some(folder) => {
            let (keeper, found) = xds.open(folder, id).await;
            (Some(keeper), found)
        }
        None => (None, None),
    };
    let last = found.as_ref().map(|found| &*found.addresses);
    let addresses = xds.own_addresses(&link, last.unwrap_or_default()).await?;
    if let Some(keeper) = &mut keeper {
        keeper.addresses(&addresses);
    }
    let network = link.network()?;
    let node = xds.node(id, &addresses, &network, link.probe()?.as_ref());
    tracing::info!(target: "mesh::config", node = node.id(), control_plane = xds.control_plane.address(), "discovery begins");
    let mut settings = xds.settings(node);
    if keeper.is_some() {
        settings = settings.with_changes();
    }
    if let Some(found) = &found {
        settings = settings.with_restored(found.kept.clone());
    }
    let identity = workload.as_ref().map(|(_, identity)| identity.clone());
    let prover = Prover::new(xds.control_plane.clone(), identity, link.clone());
    let decoder = Decoder::new().with_empty_match(xds.empty_match);
    let started = Client::new(prover.channel()?, settings, decoder);
    let (client, events, worker) = started.map_err(settings_error)?;
    if xds.by_name {
        // Who we are is not dialled.
        let own = addresses.iter().map(|own| format!("{network}/{own}"));
        for name in own.collect::<Vec<_>>() {
            link.node()?.board.want(&name);
        }
    }
    let registers = xds.metadata.contains_key("AUTO_REGISTER_GROUP");
    let registration = id.filter(|_| registers).map(|id| Registration {
        client: client.clone(),
        id: id.clone(),
        is_there: false,
    });
    let follow = Follow {
        address: xds.control_plane.address().to_owned(),
        prover,
        link: link.clone(),
        missing: needed().collect(),
        problems: Problems::default(),
        rejected: Vec::new(),
        pause: xds.pause,
        connected: false,
        keeper,
        found,
        restored: None,
        registration,
    };
    let ask = Ask {
        client,
        link,
        listens: xds.mode == Mode::Sidecar,
    };
    tokio::select! {
        () = worker.run() => {}
        outcome = follow.run(events) => outcome?,
        outcome = ask.run(demands) => outcome?,
    }
    Err(Error::new(ErrorKind::Internal).with_detail("the discovery session has ended"))
}

/// The types without which there is no configuration.
fn needed() -> impl Iterator<Item = &'static str> {
    [ResourceType::Address, ResourceType::Authorization]
        .into_iter()
        .map(ResourceType::url)
}

async fn first_workload(demands: &mut Demands) -> (WorkloadId, Identity) {
    loop {
        // Nothing else is demanded before there is a workload.
        if let Demand::Workload { id, identity } = demands.next().await {
            return (id, identity);
        }
    }
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "it is the argument of map_err"
)]
pub(super) fn settings_error(error: impl StdError + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Config)
        .with_detail("config::Xds")
        .with_source(error)
}

impl Xds {
    fn settings(&self, node: mesh_xds::ads::Node) -> Settings {
        let addresses = match self.by_name {
            true => Interest::Named,
            false => Interest::All,
        };
        let mut settings = Settings::new(node)
            .with_type(ResourceType::Address.url(), addresses)
            .with_type(ResourceType::Authorization.url(), Interest::All)
            .with_parts()
            .with_pause(self.pause);
        if self.mode == Mode::Sidecar {
            settings = settings.with_type(ResourceType::Listener.url(), Interest::Named);
        }
        if let Some((first, max)) = self.backoff {
            settings = settings.with_backoff(first, max);
        }
        if let Some(seed) = self.seed {
            settings = settings.with_seed(seed);
        }
        if let Some(resources) = self.max_resources {
            settings = settings.with_max_resources(resources);
        }
        if let Some(names) = self.max_names {
            settings = settings.with_max_names(names);
        }
        if let Some(bytes) = self.max_initial_versions {
            settings = settings.with_max_initial_versions(bytes);
        }
        settings
    }

    /// What is kept of whom the stream speaks for.
    async fn open(&self, folder: &Path, workload: Option<&WorkloadId>) -> (Keeper, Option<Found>) {
        let name = match (&self.mode, workload) {
            (Mode::NodeProxy { namespace, name }, _) => format!("{namespace}/{name}"),
            (Mode::Sidecar, id) => id.map(WorkloadId::to_string).unwrap_or_default(),
        };
        let mode = match self.by_name {
            true => "on demand",
            false => "whole",
        };
        let whose = format!("{name}, {mode}, at {}", self.control_plane.address());
        keep::open(folder, &name, whose, self.registering.clone(), self.pause).await
    }

    /// The addresses that were given, or the one from which the control plane is reached; where none
    /// reaches it, those by which the last process was known.
    async fn own_addresses(
        &self,
        link: &ConfigLink,
        last: &[IpAddr],
    ) -> Result<Vec<IpAddr>, Error> {
        if !self.addresses.is_empty() {
            return Ok(self.addresses.clone());
        }
        loop {
            match local_address(&self.control_plane).await {
                Ok(address) => return Ok(vec![address]),
                Err(_) if !last.is_empty() => return Ok(last.to_vec()),
                Err(error) => {
                    let address = self.control_plane.address();
                    let reason =
                        format!("{address}: which address of this host reaches it: {error}");
                    link.source_problem(NAME, Some((reason, true)))?;
                }
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// The address that packets to the control plane would come from.
async fn local_address(control_plane: &ControlPlane) -> std::io::Result<IpAddr> {
    let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
    for remote in control_plane.look_up().await? {
        match local_towards(remote) {
            Ok(local) => return Ok(local),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Applies what comes.
struct Follow {
    address: String,
    prover: Arc<Prover>,
    link: ConfigLink,
    /// The types of which the first answer is still to come.
    missing: BTreeSet<&'static str>,
    problems: Problems,
    /// Of the parts of a response that is still on its way these were refused.
    rejected: Vec<Verdict>,
    /// After some of what a push takes.
    pause: Duration,
    connected: bool,
    keeper: Option<Keeper>,
    /// What was kept, until it is in effect.
    found: Option<Found>,
    /// Since it is: the mesh is ready without an answer, and this is why it may be old.
    restored: Option<String>,
    registration: Option<Registration>,
}

/// A host that the control plane registers, and its record.
struct Registration {
    client: Client,
    id: WorkloadId,
    is_there: bool,
}

impl Registration {
    /// Deleted by hand, an entry comes back only with another stream (vm.md 2).
    async fn look(&mut self, link: &ConfigLink) -> Result<(), Error> {
        let is_there = {
            let snapshot = link.node()?.snapshot.load();
            snapshot
                .workload_named(self.id.namespace(), self.id.name())
                .is_some()
        };
        if std::mem::replace(&mut self.is_there, is_there) && !is_there {
            tracing::warn!(target: "mesh::config", workload = %self.id, "its entry is gone: the stream begins anew, so that the host is registered again");
            self.client.reconnect().await.map_err(ended)?;
        }
        Ok(())
    }
}

/// Writes what is to be kept, if anything is.
async fn tend(keeper: Option<&mut Keeper>, control_plane: &ControlPlane) {
    match keeper {
        Some(keeper) => keeper.tend(|| control_plane.now()).await,
        None => pending().await,
    }
}

impl Follow {
    async fn run(mut self, mut events: Events) -> Result<(), Error> {
        loop {
            if let Some(keeper) = &mut self.keeper {
                keeper.make_room().await;
            }
            let event = tokio::select! {
                event = events.next() => event,
                () = tend(self.keeper.as_mut(), self.prover.control_plane()) => continue,
            };
            let Some(event) = event else {
                return Ok(());
            };
            match event {
                Event::Connected => {
                    self.connected = true;
                    if self.missing.is_empty() {
                        self.link.stale(None)?;
                    }
                    tracing::info!(target: "mesh::config", control_plane = self.address, "discovery stream answered");
                    self.say_what_is_missing()?;
                }
                Event::Batch(batch) => {
                    self.apply(batch).await?;
                    if let Some(registration) = &mut self.registration {
                        registration.look(&self.link).await?;
                    }
                }
                Event::Part(updates) => self.add(updates)?,
                Event::Cancelled => {
                    self.rejected.clear();
                    self.link.discard()?;
                }
                Event::Synced(url) => self.here(&url)?,
                Event::Refused {
                    type_url,
                    resources,
                    ..
                } => self.problems.refused(&self.address, &type_url, resources),
                Event::Mended {
                    type_url, names, ..
                } => self.problems.mended(&type_url, names),
                Event::Standing {
                    type_url,
                    resources,
                    and_more,
                    ..
                } => self.stands(type_url, resources, and_more)?,
                Event::Absent { type_url, name, .. } => self.absent(&type_url, &name)?,
                Event::Disconnected(error) => self.disconnected(error.as_ref())?,
                Event::Changed { put, gone, .. } => {
                    if let Some(keeper) = &mut self.keeper {
                        keeper.take(put, gone);
                    }
                }
                Event::Restored { whole, .. } => self.restored(whole)?,
                _ => {}
            }
        }
    }

    /// What was kept is applied. Part of it could allow what the whole does not.
    fn restored(&mut self, whole: bool) -> Result<(), Error> {
        let Some(found) = self.found.take() else {
            return Ok(());
        };
        if !whole {
            tracing::warn!(target: "mesh::config", "the kept configuration was not accepted whole: it is removed, and the control plane waited for");
            if let Some(keeper) = self.keeper.take() {
                keeper.discard();
            }
            return Ok(());
        }
        let saved = found
            .saved
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        tracing::info!(target: "mesh::config", resources = found.kept.len(), %saved, "the kept configuration is in effect");
        if let Some(keeper) = &mut self.keeper {
            keeper.restored(found.kept);
        }
        self.link.apply(Batch::default())?;
        self.link.source_problem(NAME, None)?;
        let since = format!("kept by the last process at {saved} s of the epoch");
        let reason = format!("{since}; {} has not answered yet", self.address);
        self.restored = Some(since);
        self.link.stale(Some(reason))
    }

    /// A part of a response, which takes effect with the rest of it.
    fn add(&mut self, updates: Vec<Update>) -> Result<(), Error> {
        let batch = Batch::new(updates, Vec::new());
        self.rejected.extend(self.link.add(&batch)?);
        Ok(())
    }

    async fn apply(&mut self, batch: Batch) -> Result<(), Error> {
        let rejected = std::mem::take(&mut self.rejected);
        let (updates, removed, reply) = batch.into_parts();
        let batch = Batch::new(updates, removed).with_reply(|mut verdicts| {
            verdicts.extend(rejected);
            reply.send(verdicts);
        });
        // With it all takes effect that came in parts before.
        let size = self.link.added()? + batch.updates().len() + batch.removed().len();
        let large = size >= LARGE;
        if large && !self.pause.is_zero() {
            while self.link.settle()? {
                sleep(self.pause).await;
            }
        }
        let (link, whole) = (self.link.clone(), self.missing.is_empty());
        let apply = move || match whole {
            true => link.apply(batch),
            // Without its policies a workload must not be served.
            false => link.prepare(batch),
        };
        // What nobody looks at goes where it was made: of a whole mesh that takes a while too.
        let apply = move || apply().map(drop);
        if large {
            let applied = tokio::task::spawn_blocking(apply).await;
            return applied.map_err(|error| {
                Error::new(ErrorKind::Internal)
                    .with_detail("a batch was not applied")
                    .with_source(error)
            })?;
        }
        apply()
    }

    /// So much of a type stands refused after that.
    fn stands(&mut self, type_url: Arc<str>, count: usize, and_more: bool) -> Result<(), Error> {
        let is_address = *type_url == *ResourceType::Address.url();
        let stands = count > 0 || and_more;
        self.problems
            .stands(&self.address, type_url, count, and_more);
        if let Some(changed) = self.problems.take_changed() {
            self.link.report_changed(&changed.new, changed.all)?;
        }
        // A workload that nobody can read is one that nobody can reach. Without some policy, though, more
        // might be allowed than the mesh wants.
        if is_address && stands {
            return self.here(ResourceType::Address.url());
        }
        // What was on its way may be refused now.
        match self.missing.is_empty() {
            true => Ok(()),
            false => self.say_what_is_missing(),
        }
    }

    /// The first answer of a type is here.
    fn here(&mut self, type_url: &str) -> Result<(), Error> {
        if self.missing.remove(type_url) && self.missing.is_empty() {
            self.link.apply(Batch::default())?;
            self.link.stale(None)?;
            if let Some(keeper) = &mut self.keeper {
                keeper.is_whole();
            }
        }
        self.say_what_is_missing()
    }

    fn absent(&self, type_url: &str, name: &str) -> Result<(), Error> {
        if type_url == ResourceType::Address.url() {
            return self.link.absent(name);
        }
        let address = name.strip_prefix(InboundListener::NAME);
        match address.and_then(|address| address.parse().ok()) {
            Some(address) => self.link.no_listener(address),
            None => Ok(()),
        }
    }

    fn say_what_is_missing(&self) -> Result<(), Error> {
        let problem = (!self.missing.is_empty()).then(|| {
            let types: Vec<_> = self.missing.iter().map(|url| short(url)).collect();
            format!(
                "{}: not accepted whole yet: {}",
                self.address,
                types.join(", ")
            )
        });
        // What was refused stands refused until the control plane says something else; the rest is on its way.
        let rights_itself = !self.problems.stand();
        self.link
            .source_problem(NAME, problem.map(|problem| (problem, rights_itself)))
    }

    fn disconnected(&mut self, error: Option<&XdsError>) -> Result<(), Error> {
        let answered = std::mem::replace(&mut self.connected, false);
        let reason = match error {
            Some(error) => text(error),
            None => "it ended the stream".to_owned(),
        };
        if !answered {
            self.prover.failed(error);
        }
        let reason = match reason.contains(&self.address) {
            true => reason,
            false => format!("{}: {reason}", self.address),
        };
        // The token may be another account's.
        let refused = error.is_some_and(XdsError::is_refused);
        let reason = match refused.then(|| self.prover.said()).flatten() {
            Some(identity) => format!("{reason} (said to be {identity})"),
            None => reason,
        };
        if self.missing.is_empty() || self.restored.is_some() {
            // Streams end: istiod ends each after half an hour.
            if answered {
                tracing::debug!(target: "mesh::config", %reason, "the discovery stream ended; what it said stays");
            } else {
                tracing::warn!(target: "mesh::config", %reason, "no discovery stream; what the last one said stays");
            }
            let kept = self.restored.as_ref().filter(|_| !self.missing.is_empty());
            return self.link.stale(Some(match kept {
                Some(since) => format!("{since}; {reason}"),
                None => reason,
            }));
        }
        let comes = error.is_none_or(|error| {
            let kind = error.kind();
            matches!(
                kind,
                XdsErrorKind::Connection | XdsErrorKind::Token | XdsErrorKind::Unavailable
            )
        });
        self.link.source_problem(NAME, Some((reason, comes)))
    }
}

/// Asks for what the mesh demands.
struct Ask {
    client: Client,
    link: ConfigLink,
    /// Whether there are inbound listeners to be had.
    listens: bool,
}

impl Ask {
    async fn run(self, mut demands: Demands) -> Result<(), Error> {
        loop {
            match demands.next().await {
                // One more is refused where it is made.
                Demand::Workload { .. } => {}
                Demand::Want(name) => self.want(&name).await?,
                Demand::Forget(name) => {
                    let url = ResourceType::Address.url();
                    self.client.forget(url, &*name).await.map_err(ended)?;
                }
                Demand::Listener(address) => self.listen(address).await?,
                Demand::Unlisten(address) if self.listens => {
                    let name = format!("{}{address}", InboundListener::NAME);
                    let url = ResourceType::Listener.url();
                    self.client.forget(url, name).await.map_err(ended)?;
                }
                Demand::Unlisten(_) => {}
                Demand::Health(health) => {
                    let health = match health {
                        AppHealth::Healthy => Health::Healthy,
                        AppHealth::Unhealthy(why) => Health::Unhealthy(why.to_string()),
                    };
                    self.client.report_health(health).await.map_err(ended)?;
                }
            }
        }
    }

    async fn want(&self, name: &str) -> Result<(), Error> {
        let url = ResourceType::Address.url();
        match self.client.want(url, name).await {
            Ok(Presence::Asked) => Ok(()),
            Ok(_) => self.link.absent(name),
            Err(error) if error.kind() == XdsErrorKind::InvalidSettings => {
                tracing::warn!(target: "mesh::config", name, %error, "is not asked for");
                // Absent, it would go out as it is: it may well be in the mesh.
                self.link.refuse(name)
            }
            Err(error) => Err(ended(error)),
        }
    }

    async fn listen(&self, address: SocketAddr) -> Result<(), Error> {
        if !self.listens {
            let why = "for the proxy of a host gets none";
            return self.link.refuse_listener(address, why);
        }
        let name = format!("{}{address}", InboundListener::NAME);
        match self.client.want(ResourceType::Listener.url(), name).await {
            Ok(Presence::Asked) => Ok(()),
            Ok(_) => self.link.no_listener(address),
            Err(error) if error.kind() == XdsErrorKind::InvalidSettings => {
                tracing::warn!(target: "mesh::config", %address, %error, "its inbound listener is not asked for: policies on requests count in their L4 reduction");
                let why = "for as many are as config::Xds::max_names permits";
                self.link.refuse_listener(address, why)
            }
            Err(error) => Err(ended(error)),
        }
    }
}

fn ended(error: XdsError) -> Error {
    Error::new(ErrorKind::Internal)
        .with_detail("asking the control plane")
        .with_source(error)
}
