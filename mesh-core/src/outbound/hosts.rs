//! Look-ups of hosts whose addresses the configuration does not say.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use crate::net::Transport;
use crate::settings::Settings;
use crate::sync::lock;
use crate::tasks::Tasks;
use crate::{Error, ErrorKind};

/// The addresses of hosts, each looked up once however many ask, and remembered for a while: the
/// system's resolver says nothing of their time to live.
///
/// A look-up may hold a thread of the system's resolver for longer than anybody waits for it, so its
/// place is free when it has ended, not when it was given up.
#[derive(Debug)]
pub(crate) struct Hosts {
    table: Arc<Mutex<Table>>,
    places: Arc<Semaphore>,
    transport: Transport,
    limit: Duration,
}

#[derive(Debug)]
struct Table {
    hosts: HashMap<Box<str>, Host>,
    capacity: usize,
    ttl: Duration,
}

#[derive(Debug)]
enum Host {
    Asked(watch::Receiver<Option<Answer>>),
    Known {
        addresses: Arc<[IpAddr]>,
        since: Instant,
    },
}

type Answer = Result<Arc<[IpAddr]>, Arc<io::Error>>;

/// What the table says of a host.
enum Looked {
    Known(Arc<[IpAddr]>),
    Asked(watch::Receiver<Option<Answer>>),
    /// Nobody asks: ask, and tell them all.
    Ask(
        watch::Sender<Option<Answer>>,
        watch::Receiver<Option<Answer>>,
    ),
    Full,
}

impl Hosts {
    pub(crate) fn new(settings: &Settings, transport: Transport) -> Self {
        Self {
            table: Arc::new(Mutex::new(Table {
                hosts: HashMap::new(),
                // Every look-up under way needs a line of its own.
                capacity: settings.lookup_cache.max(settings.max_lookups),
                ttl: settings.lookup_ttl,
            })),
            places: Arc::new(Semaphore::new(settings.max_lookups)),
            transport,
            limit: settings.connect_timeout,
        }
    }

    /// The addresses of a host, never none, in the order in which to try them. The future holds no handle.
    ///
    /// Cancel safe: a look-up that has begun goes on, for others and for those to come.
    pub(crate) fn look_up(
        &self,
        host: &str,
        tasks: &Tasks,
    ) -> impl Future<Output = Result<Arc<[IpAddr]>, Error>> + Send + use<> {
        let looked = match lock(&self.table).look(host, Instant::now()) {
            Looked::Known(addresses) => Ok(addresses),
            Looked::Asked(answer) => Err(Some(answer)),
            Looked::Ask(tell, answer) => {
                tasks.spawn(self.ask(host, tell));
                Err(Some(answer))
            }
            Looked::Full => Err(None),
        };
        let (host, limit) = (host.to_owned(), self.limit);
        async move {
            let mut answer = match looked {
                Ok(addresses) => return Ok(addresses),
                Err(Some(answer)) => answer,
                Err(None) => {
                    return Err(Error::new(ErrorKind::Overloaded)
                        .with_detail(format!("{host}: too many hosts are being looked up")));
                }
            };
            let answer = match timeout(limit, answer.wait_for(Option::is_some)).await {
                Ok(Ok(answer)) => Ok(answer.clone()),
                Ok(Err(_)) => Ok(None),
                Err(elapsed) => Err(elapsed),
            };
            let failed = Error::new(ErrorKind::HostLookup).with_detail(host);
            match answer {
                Ok(Some(Ok(addresses))) => Ok(addresses),
                Ok(Some(Err(error))) => Err(failed.with_source(error)),
                Ok(None) => Err(failed.with_source(io::Error::other("the look-up was cut short"))),
                Err(elapsed) => Err(failed.with_source(elapsed)),
            }
        }
    }

    fn ask(
        &self,
        host: &str,
        tell: watch::Sender<Option<Answer>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (table, places) = (Arc::clone(&self.table), Arc::clone(&self.places));
        let (transport, host) = (self.transport.clone(), Box::<str>::from(host));
        async move {
            let Ok(_place) = places.acquire().await else {
                return;
            };
            if lock(&table).is_abandoned(&host, &tell) {
                return;
            }
            let found = transport.look_up(host.to_string()).await;
            let answer = found.and_then(|found| in_order(&found)).map_err(Arc::new);
            lock(&table).answered(&host, answer.as_ref().ok(), Instant::now());
            tell.send_replace(Some(answer));
        }
    }
}

impl Table {
    fn look(&mut self, host: &str, now: Instant) -> Looked {
        match self.hosts.get(host) {
            Some(Host::Known { addresses, since }) if age(now, *since) < self.ttl => {
                return Looked::Known(Arc::clone(addresses));
            }
            // One whose task is gone is asked anew.
            Some(Host::Asked(answer)) if answer.has_changed().is_ok() => {
                return Looked::Asked(answer.clone());
            }
            Some(_) => {}
            None => {
                if !self.make_room(now) {
                    return Looked::Full;
                }
            }
        }
        let (tell, answer) = watch::channel(None);
        self.hosts.insert(host.into(), Host::Asked(answer.clone()));
        Looked::Ask(tell, answer)
    }

    /// Makes room for one more: what is stale goes, else the oldest answer.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.hosts.len() < self.capacity {
            return true;
        }
        let ttl = self.ttl;
        self.hosts.retain(|_, host| match host {
            Host::Known { since, .. } => age(now, *since) < ttl,
            Host::Asked(answer) => answer.has_changed().is_ok(),
        });
        if self.hosts.len() < self.capacity {
            return true;
        }
        let known = self.hosts.iter().filter_map(|(name, host)| match host {
            Host::Known { since, .. } => Some((*since, name)),
            Host::Asked(_) => None,
        });
        let Some(oldest) = known.min().map(|(_, name)| name.clone()) else {
            return false;
        };
        self.hosts.remove(&oldest);
        true
    }

    /// Whether everybody who asked has given up before the look-up began; then it is forgotten.
    fn is_abandoned(&mut self, host: &str, tell: &watch::Sender<Option<Answer>>) -> bool {
        // One receiver is the table's own.
        let abandoned = tell.receiver_count() <= 1;
        if abandoned {
            self.hosts.remove(host);
        }
        abandoned
    }

    /// Keeps what was found. Failures are told to those who wait, and not remembered.
    fn answered(&mut self, host: &str, found: Option<&Arc<[IpAddr]>>, now: Instant) {
        match found {
            Some(addresses) if !self.ttl.is_zero() => {
                let known = Host::Known {
                    addresses: Arc::clone(addresses),
                    since: now,
                };
                self.hosts.insert(host.into(), known);
            }
            _ => {
                self.hosts.remove(host);
            }
        }
    }
}

fn age(now: Instant, since: Instant) -> Duration {
    now.saturating_duration_since(since)
}

/// The resolver's order (RFC 6724), families taking turns (RFC 8305 section 4): where one of them leads
/// nowhere, the second attempt is already of the other.
pub(crate) fn in_order(found: &[IpAddr]) -> io::Result<Arc<[IpAddr]>> {
    let mut distinct: Vec<IpAddr> = Vec::with_capacity(found.len());
    for ip in found.iter().map(IpAddr::to_canonical) {
        if !distinct.contains(&ip) {
            distinct.push(ip);
        }
    }
    let first = distinct
        .first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address"))?
        .is_ipv4();
    let (mut one, mut other) = (
        distinct.iter().filter(|ip| ip.is_ipv4() == first),
        distinct.iter().filter(|ip| ip.is_ipv4() != first),
    );
    let mut ordered = Vec::with_capacity(distinct.len());
    while ordered.len() < distinct.len() {
        ordered.extend(one.next());
        ordered.extend(other.next());
    }
    Ok(ordered.into())
}

#[cfg(test)]
mod tests;
