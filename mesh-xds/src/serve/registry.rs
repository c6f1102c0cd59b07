//! Hosts that register: each stream of a host of a group makes or keeps an entry. No I/O; whoever drives it
//! says what time it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use tokio::time::Instant;

use super::reports::Report;
use crate::model::{Locality, ObjectName, WorkloadGroup};

/// Bytes of an object's name.
const MAX_NAME: usize = 253;

/// What is wrong with a host that has not said yet how it is.
const NO_REPORT: &str = "no report yet";

type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// A host, as the node of its stream says it is.
#[derive(Debug, Clone)]
pub(super) struct Host {
    /// In the namespace of the identity.
    pub(super) group: ObjectName,
    pub(super) identity: Identity,
    pub(super) address: IpAddr,
    /// Empty where it does not say.
    pub(super) network: Arc<str>,
    pub(super) labels: Labels,
    pub(super) locality: Option<Locality>,
    /// Whether it takes HBONE.
    pub(super) tunnel: bool,
    /// Whether it has a readiness probe of its own.
    pub(super) probed: bool,
}

impl Host {
    /// The name of its entry: `<group>-<address>[-<network>]`, as istiod has it. What is too long loses its
    /// beginning.
    pub(super) fn entry_name(&self) -> ObjectName {
        let mut name = format!("{}-{}", self.group.name(), self.address);
        if !self.network.is_empty() {
            name = format!("{name}-{}", self.network);
        }
        // An object's name has no colons.
        let name = name.replace(':', "-");
        let excess = name.len().saturating_sub(MAX_NAME);
        let start = (excess..name.len()).find(|at| name.is_char_boundary(*at));
        let name = name.get(start.unwrap_or_default()..).unwrap_or(&name);
        ObjectName::new(self.group.namespace(), name)
    }
}

/// Why a host is not registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refused {
    NoGroup(ObjectName),
    /// The group is of another service account.
    Account {
        group: ObjectName,
        expected: Arc<str>,
    },
    /// Another host is known by that address or name.
    Taken {
        address: IpAddr,
        by: String,
    },
    TooMany(usize),
    /// Of one identity.
    TooManyOf(usize, Identity),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGroup(group) => {
                write!(
                    f,
                    "node.metadata.AUTO_REGISTER_GROUP: there is no WorkloadGroup {group}"
                )
            }
            Self::Account { group, expected } => {
                write!(
                    f,
                    "WorkloadGroup {group} is of the service account {expected:?}, not of the caller's"
                )
            }
            Self::Taken { address, by } => {
                write!(
                    f,
                    "node.metadata.INSTANCE_IPS: the address {address} is that of {by}"
                )
            }
            Self::TooMany(most) => write!(f, "more than {most} hosts"),
            Self::TooManyOf(most, identity) => write!(f, "more than {most} hosts of {identity}"),
        }
    }
}

/// The entry of a host that registered.
#[derive(Debug, Clone, PartialEq)]
pub struct HostEntry {
    name: ObjectName,
    group: ObjectName,
    uid: u64,
    address: IpAddr,
    network: Arc<str>,
    labels: Labels,
    annotations: Labels,
    service_account: Arc<str>,
    locality: Locality,
    weight: Option<u32>,
    ports: Vec<(Arc<str>, u16)>,
    probed: bool,
    report: Option<Report>,
}

impl HostEntry {
    fn new(host: &Host, report: Option<&Report>, group: &WorkloadGroup, uid: u64) -> Self {
        let mut labels = group.labels().clone();
        let own = host.labels.iter();
        let own = own.filter(|(key, _)| &***key != "istio-locality");
        labels.extend(own.map(|(key, value)| (Arc::clone(key), Arc::clone(value))));
        if host.tunnel {
            labels.insert("networking.istio.io/tunnel".into(), "http".into());
        }
        let mut annotations = Labels::new();
        annotations.insert(
            "istio.io/autoRegistrationGroup".into(),
            group.name().name().into(),
        );
        let given = group.annotations().iter();
        annotations.extend(given.map(|(key, value)| (Arc::clone(key), Arc::clone(value))));
        Self {
            name: host.entry_name(),
            group: group.name().clone(),
            uid,
            address: host.address,
            network: match host.network.is_empty() {
                true => group.network().into(),
                false => Arc::clone(&host.network),
            },
            labels,
            annotations,
            service_account: host.identity.service_account().into(),
            locality: host
                .locality
                .clone()
                .unwrap_or_else(|| group.locality().clone()),
            weight: group.weight(),
            ports: group.ports().to_vec(),
            probed: group.is_probed() || host.probed,
            report: report.cloned(),
        }
    }

    /// Namespace and name: `<group>-<address>[-<network>]`.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// The group whose template it is made of.
    pub fn group(&self) -> &ObjectName {
        &self.group
    }

    /// A number that no other entry of this server has or had. A host that comes back within the grace
    /// keeps it.
    pub fn uid(&self) -> u64 {
        self.uid
    }

    /// The address of the host.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The network of the host; empty for the mesh's own.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The labels: those of the group under those of the host.
    pub fn labels(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.labels
    }

    /// The annotations: those of the group, and `istio.io/autoRegistrationGroup`.
    pub fn annotations(&self) -> &BTreeMap<Arc<str>, Arc<str>> {
        &self.annotations
    }

    /// The service account that the host has proved to be.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Where the host is.
    pub fn locality(&self) -> &Locality {
        &self.locality
    }

    /// The share of the host in what is balanced; unset, the default.
    pub fn weight(&self) -> Option<u32> {
        self.weight
    }

    /// The ports of the host, by the name that a service calls them.
    pub fn ports(&self) -> &[(Arc<str>, u16)] {
        &self.ports
    }

    /// How its application is, as it reported last, with what is wrong. `None` for a host without a probe
    /// that has reported nothing: it counts as healthy.
    pub fn health(&self) -> Option<Result<(), &str>> {
        match &self.report {
            Some(report) => Some(report.as_ref().copied().map_err(String::as_str)),
            None => self.probed.then_some(Err(NO_REPORT)),
        }
    }

    /// Whether it has a probe and has not said yet how it is.
    fn is_unheard(&self) -> bool {
        self.probed && self.report.is_none()
    }
}

#[derive(Debug)]
struct Held {
    entry: HostEntry,
    identity: Identity,
    streams: BTreeSet<u64>,
    /// When its last stream ended.
    left: Option<Instant>,
}

/// A host that is here, registered or not.
#[derive(Debug)]
struct Here {
    host: Host,
    /// The last one: hosts report changes alone, so that it has to outlive their entry.
    report: Option<Report>,
}

/// All entries.
#[derive(Debug)]
pub(super) struct Registry {
    grace: Duration,
    max_entries: usize,
    max_of_identity: usize,
    groups: BTreeMap<ObjectName, WorkloadGroup>,
    entries: BTreeMap<ObjectName, Held>,
    /// By stream.
    hosts: BTreeMap<u64, Here>,
    next_uid: u64,
    revision: u64,
    host_return: Duration,
    /// Until when hosts are waited for that have registered with a server before this one.
    returning: Returning,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Returning {
    /// There have been no groups yet.
    Nobody,
    Until(Instant),
    /// The end is beyond what a clock can say.
    Always,
    Over,
}

impl Registry {
    pub(super) fn new(
        grace: Duration,
        host_return: Duration,
        max_entries: usize,
        max_of_identity: usize,
    ) -> Self {
        Self {
            grace,
            host_return,
            returning: Returning::Nobody,
            max_entries,
            max_of_identity,
            groups: BTreeMap::new(),
            entries: BTreeMap::new(),
            hosts: BTreeMap::new(),
            next_uid: 0,
            revision: 0,
        }
    }

    /// Grows with every change of the entries.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }

    /// The entries to publish. While hosts may come back, one with a probe that has not reported yet is left
    /// out: the clients have it as it was, and how it was is more likely than that it is unhealthy.
    pub(super) fn entries(&self) -> impl Iterator<Item = &HostEntry> {
        let entries = self.entries.values().map(|held| &held.entry);
        entries.filter(|entry| !self.is_waiting() || !entry.is_unheard())
    }

    /// Takes all groups as they are now. Entries go with their group and come back with it; a group that is
    /// another one now counts for new entries only, as in istiod. `occupant` says who else has the address of
    /// a host that comes back.
    pub(super) fn set_groups(
        &mut self,
        groups: Vec<WorkloadGroup>,
        now: Instant,
        occupant: impl Fn(&Host) -> Option<String>,
    ) {
        if self.returning == Returning::Nobody && !groups.is_empty() {
            let end = now.checked_add(self.host_return);
            self.returning = end.map_or(Returning::Always, Returning::Until);
        }
        let groups = groups
            .into_iter()
            .map(|group| (group.name().clone(), group));
        self.groups = groups.collect();
        let before = self.entries.len();
        self.entries
            .retain(|_, held| self.groups.contains_key(&held.entry.group));
        if self.entries.len() != before {
            self.revision += 1;
        }
        let absent = self.hosts.iter().filter(|(_, here)| {
            let group = self.groups.contains_key(&here.host.group);
            group && !self.entries.contains_key(&here.host.entry_name())
        });
        for (stream, host, report) in absent
            .map(|(at, here)| (*at, here.host.clone(), here.report.clone()))
            .collect::<Vec<_>>()
        {
            let entered = match occupant(&host) {
                Some(by) => Err(Refused::Taken {
                    address: host.address,
                    by,
                }),
                None => self.enter(stream, &host, report.as_ref()),
            };
            if let Err(refused) = entered {
                tracing::warn!(%refused, "a host is not registered again");
            }
        }
    }

    /// Registers the host of a stream, or keeps what it has registered before.
    pub(super) fn connect(&mut self, stream: u64, host: Host) -> Result<(), Refused> {
        self.enter(stream, &host, None)?;
        let held = self.entries.get(&host.entry_name());
        let report = held.and_then(|held| held.entry.report.clone());
        self.hosts.insert(stream, Here { host, report });
        Ok(())
    }

    fn enter(&mut self, stream: u64, host: &Host, report: Option<&Report>) -> Result<(), Refused> {
        let Some(group) = self.groups.get(&host.group) else {
            return Err(Refused::NoGroup(host.group.clone()));
        };
        let expected = group.service_account();
        if !expected.is_empty() && expected != host.identity.service_account() {
            return Err(Refused::Account {
                group: host.group.clone(),
                expected: expected.into(),
            });
        }
        let name = host.entry_name();
        let taken = |held: &Held| Refused::Taken {
            address: host.address,
            by: format!("WorkloadEntry {}", held.entry.name),
        };
        if let Some(held) = self.entries.get_mut(&name) {
            // An address that was somebody else's a moment ago may still be asked for as theirs.
            if held.identity != host.identity || held.entry.address != host.address {
                return Err(taken(held));
            }
            held.streams.insert(stream);
            held.left = None;
            // The stream that came last knows best.
            if let Some(report) = report {
                held.entry.report = Some(report.clone());
            }
            return Ok(());
        }
        let entry = HostEntry::new(host, report, group, self.next_uid + 1);
        let mut others = self.entries.values();
        let same = |held: &&Held| {
            held.entry.address == entry.address && held.entry.network == entry.network
        };
        if let Some(held) = others.find(same) {
            return Err(taken(held));
        }
        if self.entries.len() >= self.max_entries {
            return Err(Refused::TooMany(self.max_entries));
        }
        let own = self.entries.values();
        let own = own.filter(|held| held.identity == host.identity).count();
        if own >= self.max_of_identity {
            let identity = host.identity.clone();
            return Err(Refused::TooManyOf(self.max_of_identity, identity));
        }
        self.next_uid += 1;
        self.revision += 1;
        let held = Held {
            entry,
            identity: host.identity.clone(),
            streams: [stream].into(),
            left: None,
        };
        self.entries.insert(name, held);
        Ok(())
    }

    /// Takes a report of how the application of a host is.
    pub(super) fn health(&mut self, stream: u64, report: Report) {
        let Some(here) = self.hosts.get_mut(&stream) else {
            return;
        };
        here.report = Some(report.clone());
        let name = here.host.entry_name();
        let waiting = self.is_waiting();
        let held = self.entries.get_mut(&name);
        let Some(held) = held.filter(|held| held.streams.contains(&stream)) else {
            return;
        };
        // What is wrong may be told in other words each time, and nobody is sent them.
        let shown = |entry: &HostEntry| {
            let hidden = waiting && entry.is_unheard();
            (!hidden).then(|| entry.health().is_none_or(|health| health.is_ok()))
        };
        let before = shown(&held.entry);
        held.entry.report = Some(report);
        if shown(&held.entry) != before {
            self.revision += 1;
        }
    }

    /// The stream has ended. With its last one a host's entry has the grace left.
    pub(super) fn disconnect(&mut self, stream: u64, now: Instant) {
        let name = self
            .hosts
            .remove(&stream)
            .map(|here| here.host.entry_name());
        let held = name.and_then(|name| self.entries.get_mut(&name));
        if let Some(held) = held.filter(|held| held.streams.contains(&stream)) {
            held.streams.remove(&stream);
            held.left = held.streams.is_empty().then_some(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let ends = self.entries.values().filter_map(|held| held.left);
        let ends = ends.filter_map(|left| left.checked_add(self.grace));
        let over = match self.returning {
            Returning::Until(at) => Some(at),
            Returning::Nobody | Returning::Always | Returning::Over => None,
        };
        ends.chain(over).min()
    }

    /// Whether hosts of a server before this one may still come back.
    pub(super) fn is_waiting(&self) -> bool {
        self.returning != Returning::Over
    }

    /// Removes the entries of hosts that have not come back.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let before = self.entries.len();
        let grace = self.grace;
        if matches!(self.returning, Returning::Until(at) if now >= at) {
            self.returning = Returning::Over;
            if self.entries.values().any(|held| held.entry.is_unheard()) {
                self.revision += 1;
            }
        }
        self.entries.retain(|_, held| {
            let end = held.left.and_then(|left| left.checked_add(grace));
            end.is_none_or(|end| now < end)
        });
        if self.entries.len() != before {
            self.revision += 1;
        }
    }
}
