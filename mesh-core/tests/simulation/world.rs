//! Four hosts, a workload on each that serves and calls the others, and what was seen of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use mesh_core::authz::policy::istio::{AuthorizationPolicy, Operation, Rule, Source};
use mesh_core::authz::policy::{Action, PolicyName, TrustDomains};
use mesh_core::config::{ConfigLink, ConfigSource};
use mesh_core::hbone::config::Config;
use mesh_core::identity::DevCa;
use mesh_core::xds::model::{
    AttachedPolicy, Batch, Membership, NetworkAddress, Port, ResourceName, Scope, Service,
    ServiceName, TunnelProtocol, Update, Workload,
};
use mesh_core::{Error, Mesh, Node, OutboundPolicy};
use tokio::sync::{mpsc, watch};

use crate::calls::{self, Kind, Outcome};
use crate::network::transport;
use crate::plan::Random;

pub(crate) const HOSTS: [&str; 4] = ["a", "b", "c", "d"];

/// The service of all of them.
pub(crate) const ALL: &str = "all";

/// A port of HTTP, and one of TCP.
pub(crate) const HTTP: u16 = 9080;
pub(crate) const TCP: u16 = 9090;

/// The path that nobody may ask for.
pub(crate) const SECRET: &str = "/secret";

/// Which hosts may call a host: a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mask(u8);

impl Mask {
    const EVERYBODY: Self = Self(0b1111);

    pub(crate) fn random(random: &mut Random) -> Self {
        Self(random.below(16) as u8)
    }

    pub(crate) fn has(self, host: usize) -> bool {
        self.0 & (1 << host) != 0
    }
}

/// What all hosts tell, and what breaks a promise.
#[derive(Debug, Clone, Default)]
pub(crate) struct Witness(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) hosts: [Host; 4],
    /// Begun and not ended, with the time by which they have to.
    pub(crate) calls: BTreeMap<u64, (Duration, String)>,
    pub(crate) asked: BTreeSet<(Duration, String)>,
    pub(crate) story: Vec<String>,
    pub(crate) broken: Vec<String>,
    pub(crate) stage: Stage,
    /// The last outcome of each call of the last stage.
    pub(crate) proofs: HashMap<(&'static str, &'static str, Kind), Outcome>,
    pub(crate) outcomes: usize,
    pub(crate) whole: usize,
    next_call: u64,
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    #[default]
    Faults,
    Recovery,
    /// Everybody calls everybody, and that is looked at.
    Proof,
}

impl Seen {
    /// Finds calls that should have ended.
    pub(crate) fn overdue(&mut self, now: Duration) {
        let late = |by: &Duration| *by < now;
        for (by, what) in self.calls.values().filter(|(by, _)| late(by)) {
            self.broken
                .push(format!("{now:?}: {what}: no end by {by:?}"));
        }
        self.calls.retain(|_, (by, _)| !late(by));
    }
}

/// One host as it is now.
#[derive(Debug, Default)]
pub(crate) struct Host {
    control: Option<mpsc::UnboundedSender<Batch>>,
    /// What came before the host said where it takes it.
    early: Vec<Batch>,
    pub(crate) drain: Option<watch::Sender<bool>>,
    /// What its policy permits, and since when.
    permits: Vec<(Duration, Mask)>,
    pub(crate) crashed: bool,
}

impl Host {
    /// Whom its policy permits now.
    pub(crate) fn mask(&self) -> Option<Mask> {
        self.permits.last().map(|(_, mask)| *mask)
    }
}

/// Between a decision and what it decides, nothing waits: they are in one step of the simulation.
pub(crate) const STEP: Duration = Duration::from_millis(5);

impl Witness {
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }

    pub(crate) fn plaintext(&self, to: Option<SocketAddr>) {
        self.broken(&format!("plaintext to {to:?}"));
    }

    pub(crate) fn broken(&self, what: &str) {
        self.seen().broken.push(format!("{:?}: {what}", now()));
    }

    pub(crate) fn tell(&self, what: &str) {
        self.seen().story.push(format!("{:?}: {what}", now()));
    }

    /// Somebody's request, or a part of it, was taken by `host`.
    pub(crate) fn served(&self, host: usize, caller: Option<usize>, what: &str) {
        let now = now();
        let mut seen = self.seen();
        let permits = &seen.hosts[host].permits;
        let until = permits.iter().skip(1).map(|(since, _)| *since);
        let in_force = permits
            .iter()
            .zip(until.chain([Duration::MAX]))
            .filter(|(_, until)| until.saturating_add(STEP) >= now)
            .any(|((_, mask), _)| caller.is_some_and(|caller| mask.has(caller)));
        if !in_force {
            let caller = caller.map(|caller| HOSTS[caller]);
            let broken = format!(
                "{now:?}: {} served {caller:?} ({what}) under {permits:?}",
                HOSTS[host]
            );
            seen.broken.push(broken);
        }
    }

    /// A call begins, which has to end in time.
    pub(crate) fn call(&self, what: &str, within: Duration) -> u64 {
        let mut seen = self.seen();
        seen.next_call += 1;
        let id = seen.next_call;
        seen.calls.insert(id, (now() + within, what.to_owned()));
        seen.asked.insert((now(), what.to_owned()));
        id
    }

    pub(crate) fn ended(&self, id: u64, whole: bool) {
        let mut seen = self.seen();
        seen.calls.remove(&id);
        seen.outcomes += 1;
        seen.whole += usize::from(whole);
    }

    /// Gives a host configuration, if it runs.
    pub(crate) fn configure(&self, host: usize, updates: Vec<Update>, removed: Vec<ResourceName>) {
        let batch = Batch::new(updates, removed);
        self.send(host, batch);
    }

    /// Gives a host its policy.
    pub(crate) fn permit(&self, host: usize, mask: Mask) {
        let witness = self.clone();
        let batch = Batch::new(policies(host, mask), Vec::new()).with_reply(move |verdicts| {
            for verdict in verdicts {
                verdict.result().unwrap();
            }
            witness.seen().hosts[host].permits.push((now(), mask));
        });
        self.send(host, batch);
    }

    fn send(&self, host: usize, batch: Batch) {
        let own = &mut self.seen().hosts[host];
        match &own.control {
            // It may have ended.
            Some(control) => drop(control.send(batch)),
            None => own.early.push(batch),
        }
    }

    /// Whom the policy of a host permits; before it has one, whom the next will.
    pub(crate) fn mask(&self, host: usize) -> Mask {
        self.seen().hosts[host].mask().unwrap_or(Mask::EVERYBODY)
    }

    pub(crate) fn gone(&self, host: usize) {
        let mut seen = self.seen();
        seen.hosts[host] = Host::default();
        // Its calls are gone with it.
        let own = format!("{} ", HOSTS[host]);
        seen.calls.retain(|_, (_, what)| !what.starts_with(&own));
    }
}

/// The time that has passed on all hosts.
pub(crate) fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The time of day on all hosts.
fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000) + now()
}

struct Batches(mpsc::UnboundedReceiver<Batch>);

impl ConfigSource for Batches {
    async fn run(mut self, link: ConfigLink) -> Result<(), Error> {
        while let Some(batch) = self.0.recv().await {
            link.apply(batch)?;
        }
        Ok(())
    }
}

fn service_name(name: &str) -> ServiceName {
    ServiceName::new("default", format!("{name}.default.svc.cluster.local"))
}

/// The host with this identity.
pub(crate) fn whose(account: &str) -> Option<usize> {
    HOSTS.iter().position(|host| *host == account)
}

/// All workloads and services, as every host knows them.
pub(crate) fn workloads(
    protocol: TunnelProtocol,
    address: impl Fn(usize) -> IpAddr,
) -> Vec<Update> {
    let mut updates: Vec<Update> = Vec::new();
    for (host, name) in HOSTS.into_iter().enumerate() {
        let workload = Workload::new(uid(host), "default", name)
            .with_addresses(vec![address(host)])
            .with_service_account(name)
            .with_workload_name(name)
            .with_protocol(protocol)
            .with_authorization_policies(names(host))
            .with_services(vec![
                Membership::new(service_name(name)),
                Membership::new(service_name(ALL)),
            ]);
        updates.push(workload.into());
    }
    for (at, name) in HOSTS.into_iter().chain([ALL]).enumerate() {
        let ports = [HTTP, TCP].map(|port| Port::new(port).with_target_port(port));
        let vip = IpAddr::from([240, 0, 0, at as u8 + 1]);
        let service = Service::new(service_name(name))
            .with_object_name(name)
            .with_addresses(vec![NetworkAddress::new("", vip)])
            .with_ports(ports.to_vec());
        updates.push(service.into());
    }
    updates
}

pub(crate) fn uid(host: usize) -> String {
    format!("uid/{}", HOSTS[host])
}

fn names(host: usize) -> Vec<PolicyName> {
    let name = HOSTS[host];
    vec![
        PolicyName::new("default", format!("allow-{name}")),
        PolicyName::new("default", format!("deny-{name}")),
    ]
}

/// Who may call a host, and that nobody may ask for its secret.
fn policies(host: usize, mask: Mask) -> Vec<Update> {
    let name = HOSTS[host];
    let permitted = (0..HOSTS.len()).filter(|caller| mask.has(*caller));
    let principals =
        permitted.map(|caller| format!("cluster.local/ns/default/sa/{}", HOSTS[caller]));
    let mut source = Source::default();
    source.principals = principals.collect();
    let mut rule = Rule::default();
    rule.from = vec![source];
    let mut allow = AuthorizationPolicy::new("default", format!("allow-{name}"));
    allow.action = Action::Allow;
    // Without a rule it allows nobody.
    allow.rules = if mask == Mask(0) {
        Vec::new()
    } else {
        vec![rule]
    };
    let mut operation = Operation::default();
    operation.ports = vec![HTTP.to_string()];
    operation.paths = vec![SECRET.to_owned()];
    let mut rule = Rule::default();
    rule.to = vec![operation];
    let mut deny = AuthorizationPolicy::new("default", format!("deny-{name}"));
    deny.action = Action::Deny;
    deny.rules = vec![rule];
    let attached = |policy: AuthorizationPolicy| {
        let policy = policy.lower(&TrustDomains::default()).unwrap();
        AttachedPolicy::new(Arc::new(policy), Scope::Workload).into()
    };
    vec![attached(allow), attached(deny)]
}

/// How long the drain of a workload may take.
pub(crate) const DRAIN: Duration = Duration::from_secs(1);

/// What runs on a host until it drains.
pub(crate) async fn run(host: usize, seed: u64, ca: DevCa, witness: Witness) -> turmoil::Result {
    let (control, batches) = mpsc::unbounded_channel();
    let (drain, mut drains) = watch::channel(false);
    {
        let own = &mut witness.seen().hosts[host];
        for early in own.early.drain(..) {
            control.send(early)?;
        }
        own.control = Some(control);
        own.drain = Some(drain);
    }
    let name = HOSTS[host];
    let tunnels = Config::default()
        .ping_interval(Duration::from_millis(500))
        .ping_timeout(Duration::from_millis(500))
        .dial_timeout(Duration::from_secs(1))
        .connect_timeout(Duration::from_secs(1))
        .linger(Duration::from_secs(1));
    let node = Node::builder()
        .transport(transport(turmoil::lookup(name), &witness))
        .clock(wall)
        .rng(seed)
        .hbone(tunnels)
        .connect_timeout(Duration::from_millis(500))
        .connect_attempts(2)
        .request_timeout(Some(calls::HEAD))
        .policy_wait(Duration::from_secs(1))
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .config(Batches(batches))
        .identity(ca.clock(wall).rng(seed))
        .build_node()?;
    let mesh = node.workload("default", name, name)?;
    calls::serve(&mesh, host, &witness).await?;
    let traffic = calls::traffic(&mesh, host, Random::new(seed ^ (host as u64 + 1)), &witness);
    tokio::select! {
        never = traffic => match never {},
        Ok(_) = async { drains.wait_for(|drains| *drains).await.map(drop) } => {}
    }
    drained(&mesh, host, &witness).await;
    Ok(())
}

async fn drained(mesh: &Mesh, host: usize, witness: &Witness) {
    let began = now();
    let drained = mesh.shutdown(DRAIN).await;
    let took = now() - began;
    witness.tell(&format!("{} drained: {drained:?}", HOSTS[host]));
    // What is cut has two seconds more to reach its peer.
    if took > DRAIN + Duration::from_millis(2100) {
        witness.broken(&format!("{}'s drain took {took:?}", HOSTS[host]));
    }
}
