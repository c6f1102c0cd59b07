//! The address that the control plane knows a host by, where its files do not say it. No name is looked up for
//! that: who waits for a builder may have no network yet.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use crate::config::Xds;
use crate::control_plane::local_towards;
use crate::{Error, WorkloadId};

/// The longest name of an object in Kubernetes (RFC 1123); of a longer one istiod cuts the front.
const MAX_NAME: usize = 253;

/// Somewhere beyond the default routes (RFC 5737, RFC 3849); nothing is sent there.
const BEYOND: [&str; 2] = ["192.0.2.1:9", "[2001:db8::1]:9"];

/// The name of the entry that istiod makes of a group for a host.
pub(super) fn entry_name(group: &str, own: IpAddr, network: &str) -> String {
    let mut name = format!("{group}-{own}");
    if !network.is_empty() {
        name = format!("{name}-{network}");
    }
    // An object's name has no colons.
    let name = name.replace(':', "-");
    let excess = name.len().saturating_sub(MAX_NAME);
    name.get(excess..).unwrap_or(&name).to_owned()
}

/// A host that registers with a group. Its entry has its address in its name, and so nobody knows who it is
/// before that is said or found.
#[derive(Debug, Clone)]
pub(crate) struct Registering {
    pub(super) namespace: String,
    pub(super) group: String,
    pub(super) network: String,
    pub(super) service_account: String,
    /// The file to name when there is no address.
    pub(super) file: PathBuf,
    pub(super) found: Found,
}

/// What is known of the address.
#[derive(Debug, Clone)]
pub(super) enum Found {
    /// The files say it.
    Said(IpAddr),
    /// Packets to the control plane come from it.
    Towards(IpAddr),
    /// Packets to most come from it.
    Default(IpAddr),
    /// It is the one that the last process had.
    Kept(IpAddr),
    /// There is no route, and this is why.
    None(String),
}

impl Found {
    /// By the routes of this host, to the control plane if its address is known.
    pub(super) fn by_route(control_plane: Option<SocketAddr>) -> Self {
        let found = match control_plane {
            Some(remote) => local_towards(remote).map(Self::Towards),
            None => default_address().map(Self::Default),
        };
        found.unwrap_or_else(|error| Self::None(error.to_string()))
    }
}

fn default_address() -> io::Result<IpAddr> {
    let [first, second] = BEYOND.map(|remote| {
        let remote: SocketAddr = remote.parse().map_err(io::Error::other)?;
        local_towards(remote)
    });
    first.or(second)
}

/// Whether this host has it at the moment.
fn is_here(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Whether this host has it not. Where that cannot be told, as without descriptors, it may have it.
fn is_absent(address: IpAddr) -> bool {
    let bound = UdpSocket::bind((address, 0));
    bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrNotAvailable)
}

impl Registering {
    pub(super) fn address(&self) -> Option<IpAddr> {
        match self.found {
            Found::Said(own) | Found::Towards(own) | Found::Default(own) | Found::Kept(own) => {
                Some(own)
            }
            Found::None(_) => None,
        }
    }

    /// Who the host is; before its address is known, somebody of its group.
    pub(super) fn workload(&self) -> WorkloadId {
        let name = match self.address() {
            Some(own) => entry_name(&self.group, own, &self.network),
            None => self.group.clone(),
        };
        WorkloadId::new(&*self.namespace, name, &*self.service_account)
    }

    /// Takes the address that the last process with this state directory had, unless the route to the control
    /// plane says another: whether the host still has it, or has none. Blocking.
    pub(crate) fn restore(&mut self, state: &Path) -> Option<(WorkloadId, IpAddr)> {
        if matches!(self.found, Found::Said(_) | Found::Towards(_)) {
            return None;
        }
        let names = Xds::kept_names(state, &self.namespace);
        let kept: Vec<IpAddr> = names
            .iter()
            .filter_map(|name| self.address_in(name))
            .collect();
        let here = kept.iter().find(|own| is_here(**own));
        let last = match self.found {
            // It had another then.
            Found::Default(_) => None,
            _ => kept.first(),
        };
        let own = *here.or(last)?;
        self.found = Found::Kept(own);
        Some((self.workload(), own))
    }

    /// Whether this is the name that the host had by an address that it does not have any more. Not where its own is
    /// on none of its interfaces either, as behind NAT: others' would be on none, too.
    pub(crate) fn had(&self, name: &str) -> bool {
        let (Some(own), Some(former)) = (self.address(), self.address_in(name)) else {
            return false;
        };
        former != own && is_absent(former) && is_here(own)
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The address in an entry's name.
    fn address_in(&self, name: &str) -> Option<IpAddr> {
        let rest = name.strip_prefix(&*self.group)?.strip_prefix('-')?;
        let address = match &*self.network {
            "" => rest,
            network => rest.strip_suffix(network)?.strip_suffix('-')?,
        };
        let own: IpAddr = match address.parse() {
            Ok(own) => own,
            Err(_) => address.replace('-', ":").parse().ok()?,
        };
        (entry_name(&self.group, own, &self.network) == name).then_some(own)
    }

    /// # Errors
    ///
    /// There is no address.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let Found::None(why) = &self.found else {
            return Ok(());
        };
        let message = format_args!(
            "expected this host's address: it is not set, there is no route to find it by ({why}), and no state directory has the last one"
        );
        Err(super::wrong(&self.file, "ISTIO_SVC_IP", message))
    }
}
