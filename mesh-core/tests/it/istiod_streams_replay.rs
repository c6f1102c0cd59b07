//! A client that follows a recorded stream of a real istiod, and what the same manifests make.
//!
//! The recorded responses go through a session of this project's client to a snapshot. What the client says is
//! what the recorded one said: names, and acknowledgements with their nonces. After each step the snapshot has,
//! of all that was asked for and of nothing else, what the file source makes of the manifests.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::snapshot::Snapshot;
use mesh_core::xds::ads::{Client, Event, Events, Interest, Node, Presence, Settings};
use mesh_core::xds::decode::Decoder;
use mesh_core::xds::model::{Batch, InboundListener, ResourceName, ServiceName, Update, Workload};
use mesh_core::xds::transport::Channel;
use prost::Message as _;
use tokio::time::timeout;

use crate::asked::{Demand, brought};
use crate::corners::assert_same_decisions;
use crate::istiod_differences::{
    BOOKINFO, BOOKINFO_ON_DEMAND, Differences, Exception, NETWORKS, NETWORKS_MULTICLUSTER,
    NETWORKS_MULTICLUSTER_ON_DEMAND, NETWORKS_ON_DEMAND,
};
use crate::istiod_discovery::{ADDRESS, AUTHORIZATION, Answer, Ask, LISTENER};
use crate::istiod_records::{Fields, of_service, of_workload};
use crate::istiod_replayed::{Line, Server, Stream, lines};
use crate::istiod_stream::{Manifests, messages};
use crate::require;

const EVERYTHING: &[(&str, Interest)] = &[(ADDRESS, Interest::All), (AUTHORIZATION, Interest::All)];
const BY_NAME: &[(&str, Interest)] = &[(ADDRESS, Interest::Named), (AUTHORIZATION, Interest::All)];
const WITH_LISTENERS: &[(&str, Interest)] = &[
    (ADDRESS, Interest::All),
    (AUTHORIZATION, Interest::All),
    (LISTENER, Interest::Named),
];

#[tokio::test(start_paused = true)]
async fn of_bookinfo() {
    replay("bookinfo", "ztunnel", EVERYTHING, BOOKINFO).await;
}

#[tokio::test(start_paused = true)]
async fn of_bookinfo_with_its_listener() {
    replay("bookinfo", "sdk", WITH_LISTENERS, BOOKINFO).await;
}

#[tokio::test(start_paused = true)]
async fn of_bookinfo_by_name() {
    replay("bookinfo", "ondemand", BY_NAME, BOOKINFO_ON_DEMAND).await;
}

#[tokio::test(start_paused = true)]
async fn of_every_field_of_the_workload_api() {
    replay("networks", "ztunnel", EVERYTHING, NETWORKS).await;
}

#[tokio::test(start_paused = true)]
async fn of_every_field_by_name() {
    replay("networks", "ondemand", BY_NAME, NETWORKS_ON_DEMAND).await;
}

#[tokio::test(start_paused = true)]
async fn of_several_networks() {
    let recording = "networks-multicluster";
    replay(recording, "ztunnel", EVERYTHING, NETWORKS_MULTICLUSTER).await;
}

#[tokio::test(start_paused = true)]
async fn of_several_networks_by_name() {
    let recording = "networks-multicluster";
    let exceptions = NETWORKS_MULTICLUSTER_ON_DEMAND;
    replay(recording, "ondemand", BY_NAME, exceptions).await;
}

async fn replay(
    recording: &str,
    client: &str,
    types: &[(&str, Interest)],
    exceptions: &[Exception],
) {
    let Some(data) = require::data(recording) else {
        return;
    };
    let root = data.join("istiod").join(recording);
    let mut follower = Follower::new(&root.join(client), types).await;
    let mut differences = Differences::new(exceptions);
    let mut made = Made::default();
    let mut demand = None;
    for step in Manifests::new(&root.join("manifests")) {
        made.advance(&step.updates, &step.removed);
        if client == "ondemand" {
            demand.get_or_insert_with(|| Demand::new(&root, client, &made.mesh));
        }
        follower.follow(&step.step).await;
        differences.step = step.step;
        if let Some(demand) = &mut demand {
            demand.names = follower.named(ADDRESS);
        }
        compare(&follower.snapshot, &made, demand.as_ref(), &mut differences);
    }
    assert!(follower.lines.is_empty(), "a step without manifests");
    differences.finish();
    follower.knows_what_is_absent(&made, demand.as_ref()).await;
    follower.says_what_is_here_on_another_stream().await;
}

/// What the manifests make.
#[derive(Default)]
struct Made {
    mesh: BTreeMap<ResourceName, Update>,
    snapshot: Snapshot,
}

impl Made {
    fn advance(&mut self, updates: &[Update], removed: &[ResourceName]) {
        for name in removed {
            self.mesh.remove(name);
        }
        for update in updates {
            self.mesh.insert(update.name(), update.clone());
        }
        self.snapshot = apply(&self.snapshot, updates.to_vec(), removed.to_vec());
    }
}

/// This project's client, and what the recording says to it.
struct Follower {
    client: Client,
    events: Events,
    server: Server,
    stream: Stream,
    /// What is left of the recording.
    lines: VecDeque<Line>,
    node: String,
    /// Types of which the first request came, and of the others what is to be said then.
    begun: BTreeSet<String>,
    held: Vec<Line>,
    snapshot: Snapshot,
    named: BTreeMap<String, BTreeSet<String>>,
    absent: BTreeSet<String>,
    /// By type and name.
    versions: BTreeMap<String, BTreeMap<String, String>>,
    synced: BTreeSet<String>,
    /// Types and nonces, of this client and of the recorded one.
    acknowledged: BTreeSet<(String, String)>,
    to_acknowledge: BTreeSet<(String, String)>,
}

impl Follower {
    async fn new(recorded: &Path, types: &[(&str, Interest)]) -> Self {
        let lines = lines(recorded);
        let node = Ask::decode(&*lines[0].bytes).unwrap().node.unwrap().id;
        let (mut server, dial) = Server::start();
        let uri = "http://istiod.istio-system.svc:15012".parse().unwrap();
        let channel = Channel::builder(uri).build(dial).unwrap();
        let settings = types.iter().fold(
            Settings::new(Node::new(node.as_str())),
            |settings, (url, interest)| settings.with_type(*url, *interest),
        );
        let (client, events, worker) = Client::new(channel, settings, Decoder::new()).unwrap();
        tokio::spawn(worker.run());
        let stream = server.stream().await;
        Self {
            client,
            events,
            server,
            stream,
            lines: lines.into(),
            node,
            begun: BTreeSet::new(),
            held: Vec::new(),
            snapshot: Snapshot::new(),
            named: BTreeMap::new(),
            absent: BTreeSet::new(),
            versions: BTreeMap::new(),
            synced: BTreeSet::new(),
            acknowledged: BTreeSet::new(),
            to_acknowledge: BTreeSet::new(),
        }
    }

    fn named(&self, url: &str) -> BTreeSet<String> {
        self.named.get(url).cloned().unwrap_or_default()
    }

    /// Says and hears what was said and heard in a step.
    async fn follow(&mut self, step: &str) {
        while self.lines.front().is_some_and(|line| line.step == step) {
            let line = self.lines.pop_front().unwrap();
            match line.by_client {
                true => self.ask(&line).await,
                false if self.begun.contains(&line.type_url) => self.hear(&line).await,
                false => self.held.push(line),
            }
        }
        assert!(self.held.is_empty(), "{step}: nobody asked for it");
        assert_eq!(self.acknowledged, self.to_acknowledge, "{step}");
        let more = timeout(Duration::from_millis(1), self.stream.ask()).await;
        assert!(more.is_err(), "{step}: {more:?}");
    }

    async fn ask(&mut self, line: &Line) {
        let recorded = Ask::decode(&*line.bytes).unwrap();
        if !recorded.nonce.is_empty() {
            assert_eq!(recorded.error, None);
            let acknowledged = (recorded.type_url, recorded.nonce);
            assert!(self.to_acknowledge.insert(acknowledged), "twice");
            return;
        }
        // The recorded one began with a subscription to nothing: to all, and not to all. Ours begins with a name.
        if recorded.unsubscribe == ["*"] {
            return;
        }
        for name in &recorded.subscribe {
            let presence = self.client.want(&line.type_url, name).await.unwrap();
            assert_eq!(presence, Presence::Asked);
            let named = self.named.entry(line.type_url.clone()).or_default();
            named.insert(name.clone());
        }
        let mut ask = self.stream.ask().await;
        let node = ask.node.take().map(|node| node.id);
        let first = self.begun.insert(line.type_url.clone());
        assert_eq!(node, first.then(|| self.node.clone()));
        assert_eq!(
            ask,
            Ask {
                node: None,
                ..recorded
            }
        );
        let (ready, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| held.type_url == line.type_url);
        self.held = held;
        for line in ready {
            self.hear(&line).await;
        }
    }

    /// Until it is acknowledged, by its nonce and with nothing else.
    async fn hear(&mut self, line: &Line) {
        let answer = Answer::decode(&*line.bytes).unwrap();
        let versions = self.versions.entry(line.type_url.clone()).or_default();
        for name in &answer.removed {
            versions.remove(name);
        }
        for one in &answer.resources {
            versions.insert(one.name.clone(), one.version.clone());
        }
        self.stream.say(&line.bytes);
        let ask = loop {
            tokio::select! {
                event = self.events.next() => self.happened(event.unwrap()),
                ask = self.stream.ask() => break ask,
            }
        };
        let expected = Ask {
            type_url: line.type_url.clone(),
            nonce: answer.nonce.clone(),
            ..Ask::default()
        };
        assert_eq!(ask, expected);
        assert!(self.acknowledged.insert((ask.type_url, ask.nonce)));
        while let Ok(event) = timeout(Duration::from_millis(1), self.events.next()).await {
            self.happened(event.unwrap());
        }
        assert!(self.synced.contains(&line.type_url), "all was accepted");
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Connected => {}
            Event::Batch(batch) => {
                let (updates, removed, reply) = batch.into_parts();
                self.snapshot = apply(&self.snapshot, updates, removed);
                reply.send(Vec::new());
            }
            Event::Absent { name, .. } => assert!(self.absent.insert(name), "told twice"),
            Event::Synced(url) => assert!(self.synced.insert(url.to_string()), "told twice"),
            other => panic!("{other:?}"),
        }
    }

    /// Of a name that brings nothing the client knows it, and of no other.
    async fn knows_what_is_absent(&mut self, made: &Made, demand: Option<&Demand>) {
        let Some(demand) = demand else {
            assert_eq!(self.absent, BTreeSet::new());
            return;
        };
        let here: BTreeSet<_> = self
            .snapshot
            .workloads()
            .map(|one| ResourceName::Workload(Arc::clone(one.uid())))
            .chain(
                self.snapshot
                    .services()
                    .map(|one| ResourceName::Service(one.name().clone())),
            )
            .collect();
        for name in &demand.names {
            // What is withheld is absent too.
            let brings = brought(&made.mesh, name)
                .iter()
                .any(|one| here.contains(one));
            let presence = self.client.want(ADDRESS, name).await.unwrap();
            let expected = match brings {
                true => Presence::Asked,
                false => Presence::Absent,
            };
            assert_eq!(presence, expected, "{name}");
            assert_eq!(self.absent.contains(name), !brings, "{name}");
        }
        assert!(self.absent.is_subset(&demand.names));
    }

    /// The names again, and each resource in the version in which it came last.
    async fn says_what_is_here_on_another_stream(mut self) {
        self.client.reconnect().await.unwrap();
        let event = self.events.next().await.unwrap();
        assert!(matches!(event, Event::Disconnected(None)), "{event:?}");
        self.stream = self.server.stream().await;
        let mut again = BTreeSet::new();
        for _ in 0..self.begun.len() {
            let ask = self.stream.ask().await;
            assert!(ask.node.is_some() && ask.nonce.is_empty() && ask.error.is_none());
            assert!(ask.unsubscribe.is_empty());
            let names = self.named(&ask.type_url);
            assert_eq!(ask.subscribe, Vec::from_iter(names), "{}", ask.type_url);
            assert_eq!(
                ask.versions, self.versions[&ask.type_url],
                "{}",
                ask.type_url
            );
            again.insert(ask.type_url);
        }
        assert_eq!(again, self.begun);
    }
}

/// All of it must be accepted. What the two sources say in another order, or only one of them can
/// say, is left out: the order of a list of policies and request authentications.
fn apply(snapshot: &Snapshot, updates: Vec<Update>, removed: Vec<ResourceName>) -> Snapshot {
    let updates = updates.into_iter().map(|update| match update {
        Update::Workload(workload) => {
            let mut policies = workload.authorization_policies().to_vec();
            policies.sort();
            Workload::clone(&workload)
                .with_authorization_policies(policies)
                .with_request_authentications(Vec::new())
                .into()
        }
        update => update,
    });
    let applied = snapshot.apply(&Batch::new(updates.collect(), removed));
    for verdict in applied.verdicts {
        verdict
            .result()
            .unwrap_or_else(|error| panic!("{}: {error}", verdict.resource()));
    }
    applied.snapshot
}

/// Both ways: what is here, field by field, and what was asked for.
fn compare(
    streamed: &Snapshot,
    made: &Made,
    demand: Option<&Demand>,
    differences: &mut Differences<'_>,
) {
    let loaded = &made.snapshot;
    let answered = demand.map(|demand| demand.answered(&made.mesh));
    let is_wanted = |name: &ResourceName| answered.as_ref().is_none_or(|all| all.contains(name));

    let wanted = |name: &Arc<str>| is_wanted(&ResourceName::Workload(Arc::clone(name)));
    let theirs = streamed
        .workloads()
        .map(|one| (one.uid().to_string(), of_workload(one)));
    let ours = loaded.workloads().filter(|one| wanted(one.uid()));
    let ours = ours.map(|one| (one.uid().to_string(), of_workload(one)));
    differences.compare(theirs.collect(), ours.collect());

    let wanted = |name: &ServiceName| is_wanted(&ResourceName::Service(name.clone()));
    let theirs = streamed
        .services()
        .map(|one| (one.name().to_string(), of_service(one)));
    let ours = loaded.services().filter(|one| wanted(one.name()));
    let ours = ours.map(|one| (one.name().to_string(), of_service(one)));
    differences.compare(theirs.collect(), ours.collect());

    // Members that are not here are told of above; no other may lack.
    for service in streamed.services() {
        let uids = |snapshot: &Snapshot| -> BTreeSet<Arc<str>> {
            let endpoints = snapshot.endpoints(service.name());
            let uids = endpoints.map(|one| Arc::clone(one.uid()));
            uids.filter(|uid| streamed.workload(uid).is_some())
                .collect()
        };
        let name = service.name();
        assert_eq!(
            uids(streamed),
            uids(loaded),
            "{}: endpoints of {name}",
            differences.step
        );
    }

    // Everybody has all policies.
    let (theirs, ours) = (policies(streamed), policies(loaded));
    differences.compare(theirs, ours);
    for (policy, scope) in streamed.all_policies() {
        let (own, own_scope) = loaded.policy(policy.name()).unwrap();
        assert_eq!(own_scope, scope);
        assert_same_decisions(own, policy, &differences.step);
    }
    // What is in force for a workload is what it lists, of which all is here, and what binds it by its scope.
    for workload in streamed.workloads() {
        let uid = workload.uid();
        let beside = |snapshot: &Snapshot| {
            let view = snapshot.policies(uid)?;
            let set = view.ready().unwrap_or_else(|| panic!("{uid}: {view:?}"));
            let mut names: BTreeSet<_> = set
                .policies()
                .iter()
                .map(|policy| policy.name().to_string())
                .collect();
            for listed in snapshot.workload(uid)?.authorization_policies() {
                assert!(names.remove(&listed.to_string()), "{uid}: {listed}");
            }
            Some(names)
        };
        if let Some(ours) = beside(loaded) {
            differences.beside(uid, &beside(streamed).unwrap(), &ours);
        }
    }
}

fn policies(snapshot: &Snapshot) -> BTreeMap<String, Fields> {
    let policies = snapshot.all_policies().map(|(policy, scope)| {
        let fields = BTreeMap::from([
            ("action", format!("{:?}", policy.action())),
            ("dry_run", format!("{:?}", policy.dry_run())),
            ("scope", format!("{scope:?}")),
        ]);
        (policy.name().to_string(), fields)
    });
    policies.collect()
}

/// Of a policy on requests the ambient stream has what is left without them, the listener all.
#[test]
fn the_listener_of_details_has_the_policies_of_its_port() {
    let Some(data) = require::data("the_listener_of_details_has_the_policies_of_its_port") else {
        return;
    };
    let mut snapshot = Snapshot::new();
    for message in messages(&data.join("istiod/bookinfo/sdk")) {
        snapshot = apply(&snapshot, message.updates, message.removed);
    }
    let details = snapshot.workload_named("default", "details-v1-1").unwrap();
    assert_eq!(snapshot.inbound_ports(details).collect::<Vec<_>>(), [9080]);
    let names = |port| {
        let view = snapshot.policies_on(details.uid(), port).unwrap();
        let set = Arc::clone(view.ready().unwrap());
        let names = set
            .policies()
            .iter()
            .map(|policy| policy.name().to_string());
        names.collect::<BTreeSet<_>>()
    };
    let whole = [
        "default-details-deny-l7",
        "default-details-l7-selector",
        "istio-system-mesh-wide",
    ];
    assert_eq!(names(9080), whole.map(|name| format!("/{name}")).into());
    let reduced = [
        "default/details-deny-l7",
        "default/details-l7-selector",
        "istio-system/mesh-wide",
    ];
    assert_eq!(names(9081), reduced.map(str::to_owned).into());
    let db = snapshot.workload_named("default", "db-0").unwrap();
    let strict = db.authorization_policies().iter();
    assert_eq!(
        strict.filter(|name| InboundListener::keeps(name)).count(),
        1
    );
}
