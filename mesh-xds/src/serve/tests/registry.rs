//! Hosts that come, report and go, by a clock that the test sets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use tokio::time::Instant;

use crate::model::{Locality, ObjectName, WorkloadGroup};
use crate::serve::registry::{Host, HostEntry, Refused, Registry};

const GRACE: Duration = Duration::from_secs(10);
pub(super) const RETURN: Duration = Duration::from_secs(30);

pub(super) fn group(name: &str) -> WorkloadGroup {
    WorkloadGroup::new(ObjectName::new("bank", name)).with_service_account("forum")
}

pub(super) fn host(address: &str) -> Host {
    Host {
        group: ObjectName::new("bank", "forum"),
        identity: Identity::new("td", "bank", "forum").unwrap(),
        address: address.parse().unwrap(),
        network: Arc::default(),
        labels: BTreeMap::new(),
        locality: None,
        tunnel: true,
        probed: false,
    }
}

fn registry(groups: Vec<WorkloadGroup>) -> Registry {
    let mut registry = Registry::new(GRACE, RETURN, 3, 3);
    let now = Instant::now();
    registry.set_groups(groups, now, |_| None);
    registry.handle_timeout(now + RETURN);
    registry
}

fn only(registry: &Registry) -> &HostEntry {
    let mut entries = registry.entries();
    let only = entries.next().expect("an entry");
    assert!(entries.next().is_none());
    only
}

fn labels(of: &[(&str, &str)]) -> BTreeMap<Arc<str>, Arc<str>> {
    let pairs = of
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()));
    pairs.collect()
}

/// V027.
#[test]
fn an_entry_has_istiods_name() {
    let name = |group: &str, address: &str, network: &str| {
        let host = Host {
            group: ObjectName::new("bank", group),
            network: network.into(),
            ..host(address)
        };
        host.entry_name().name().to_owned()
    };
    assert_eq!(name("forum", "192.168.10.200", ""), "forum-192.168.10.200");
    let with_network = name("forum", "192.168.10.200", "vm-network");
    assert_eq!(with_network, "forum-192.168.10.200-vm-network");
    assert_eq!(name("forum", "fd00::1", ""), "forum-fd00--1");
    let long = name(&"x".repeat(253), "192.168.10.200", "vm");
    assert_eq!(long.len(), 253);
    assert!(long.starts_with('x') && long.ends_with("-192.168.10.200-vm"));
}

#[test]
fn an_entry_is_made_of_the_template_and_of_what_the_host_says() {
    let template = group("forum")
        .with_labels(labels(&[("app", "forum"), ("version", "v1")]))
        .with_annotations(labels(&[("hbone-port", "15108")]))
        .with_network("net")
        .with_locality(Locality::new("r", "z", ""))
        .with_weight(7)
        .with_ports(vec![("http".into(), 8080)]);
    let mut registry = registry(vec![template]);
    let plain = host("10.0.0.1");
    registry.connect(1, plain).unwrap();
    let entry = only(&registry);
    let name = ObjectName::new("bank", "forum-10.0.0.1");
    assert_eq!(entry.name(), &name);
    assert_eq!(entry.group(), &ObjectName::new("bank", "forum"));
    assert_eq!(entry.address(), IpAddr::from([10, 0, 0, 1]));
    assert_eq!((entry.network(), entry.weight()), ("net", Some(7)));
    assert_eq!(entry.locality(), &Locality::new("r", "z", ""));
    assert_eq!(entry.ports(), [("http".into(), 8080)]);
    assert_eq!((entry.service_account(), entry.health()), ("forum", None));
    let tunnel = ("networking.istio.io/tunnel", "http");
    assert_eq!(
        entry.labels(),
        &labels(&[("app", "forum"), ("version", "v1"), tunnel])
    );
    let made_of = ("istio.io/autoRegistrationGroup", "forum");
    assert_eq!(
        entry.annotations(),
        &labels(&[("hbone-port", "15108"), made_of])
    );

    let saying = Host {
        network: "other".into(),
        labels: labels(&[("version", "v2"), ("istio-locality", "a.b")]),
        locality: Some(Locality::new("here", "", "")),
        tunnel: false,
        ..host("10.0.0.2")
    };
    registry.connect(2, saying).unwrap();
    let entry = registry.entries().last().unwrap();
    assert_eq!(entry.name().name(), "forum-10.0.0.2-other");
    assert_eq!(entry.network(), "other");
    assert_eq!(
        entry.labels(),
        &labels(&[("app", "forum"), ("version", "v2")])
    );
    assert_eq!(entry.locality(), &Locality::new("here", "", ""));
}

/// V027: grace, and the hand-over from one stream to another.
#[test]
fn who_comes_back_in_time_keeps_the_entry_and_who_does_not_gets_another() {
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let mut registry = registry(vec![group("forum")]);
    registry.connect(1, host("10.0.0.1")).unwrap();
    let uid = only(&registry).uid();
    assert_eq!(registry.poll_timeout(), None);

    registry.disconnect(1, at(100));
    assert_eq!(registry.poll_timeout(), Some(at(110)));
    registry.handle_timeout(at(109));
    registry.connect(2, host("10.0.0.1")).unwrap();
    assert_eq!(registry.poll_timeout(), None);
    registry.handle_timeout(at(200));
    assert_eq!(only(&registry).uid(), uid);

    // Of two streams, as while one takes the place of the other, the last one counts.
    registry.connect(3, host("10.0.0.1")).unwrap();
    registry.disconnect(2, at(200));
    assert_eq!(registry.poll_timeout(), None);
    registry.disconnect(3, at(300));
    let revision = registry.revision();
    registry.handle_timeout(at(310));
    assert_eq!(registry.entries().count(), 0);
    assert!(registry.revision() > revision);
    assert_eq!(registry.poll_timeout(), None);
    registry.connect(4, host("10.0.0.1")).unwrap();
    assert_ne!(only(&registry).uid(), uid);
}

#[test]
fn with_a_probe_a_host_is_unhealthy_until_it_says_otherwise() {
    for (by_group, by_host) in [(true, false), (false, true)] {
        let mut registry = registry(vec![group("forum").with_probe(by_group)]);
        let host = Host {
            probed: by_host,
            ..host("10.0.0.1")
        };
        registry.connect(1, host.clone()).unwrap();
        assert_eq!(only(&registry).health(), Some(Err("no report yet")));
        let mut told = |report: Result<(), &str>, stream| {
            let before = registry.revision();
            registry.health(stream, report.map_err(str::to_owned));
            let health = only(&registry)
                .health()
                .map(|one| one.map_err(str::to_owned));
            (health, registry.revision() - before)
        };
        let down = "connection refused";
        assert_eq!(
            told(Err(down), 1),
            (Some(Err(down.to_owned())), 0),
            "still unhealthy"
        );
        assert_eq!(told(Ok(()), 1), (Some(Ok(())), 1));
        assert_eq!(told(Ok(()), 1), (Some(Ok(())), 0), "the same");
        assert_eq!(told(Err(down), 7), (Some(Ok(())), 0), "of nobody");
        // It lasts through a return.
        registry.disconnect(1, Instant::now());
        registry.connect(2, host).unwrap();
        assert_eq!(only(&registry).health(), Some(Ok(())));
    }
    // Without one it is healthy, until it says that it is not.
    let mut registry = registry(vec![group("forum")]);
    registry.connect(1, host("10.0.0.1")).unwrap();
    assert_eq!(only(&registry).health(), None);
    let before = registry.revision();
    for (report, revision) in [("draining", 1), ("draining, 3 left", 1)] {
        registry.health(1, Err(report.to_owned()));
        assert_eq!(only(&registry).health(), Some(Err(report)));
        assert_eq!(registry.revision() - before, revision, "{report}");
    }
}

/// V027: identity, and whose an address is.
#[test]
fn who_may_not_register_is_told_why() {
    let mut registry = registry(vec![
        group("forum"),
        WorkloadGroup::new(ObjectName::new("bank", "open")),
    ]);
    let of = |group: &str, account: &str, address: &str, network: &str| Host {
        group: ObjectName::new("bank", group),
        identity: Identity::new("td", "bank", account).unwrap(),
        network: network.into(),
        ..host(address)
    };
    let mut refused = |stream, host: Host| match registry.connect(stream, host) {
        Ok(()) => String::new(),
        Err(refused) => refused.to_string(),
    };
    assert_eq!(
        refused(1, of("nothing", "forum", "10.0.0.1", "")),
        "node.metadata.AUTO_REGISTER_GROUP: there is no WorkloadGroup bank/nothing"
    );
    assert_eq!(
        refused(1, of("forum", "other", "10.0.0.1", "")),
        r#"WorkloadGroup bank/forum is of the service account "forum", not of the caller's"#
    );
    assert_eq!(refused(1, of("open", "anybody", "10.0.0.1", "")), "");
    // Its address is its own, also against its group, in its network.
    let taken = "node.metadata.INSTANCE_IPS: the address 10.0.0.1 is that of WorkloadEntry bank/open-10.0.0.1";
    assert_eq!(refused(2, of("open", "somebody", "10.0.0.1", "")), taken);
    assert_eq!(refused(2, of("forum", "forum", "10.0.0.1", "")), taken);
    assert_eq!(refused(2, of("forum", "forum", "10.0.0.1", "other")), "");
    assert_eq!(refused(3, of("open", "somebody", "10.0.0.3", "")), "");
    assert_eq!(
        refused(4, of("open", "somebody", "10.0.0.4", "")),
        "more than 3 hosts"
    );
    // After it has gone, in the grace, it still is.
    registry.disconnect(1, Instant::now());
    let after = registry.connect(5, of("open", "somebody", "10.0.0.1", ""));
    assert!(matches!(after, Err(Refused::Taken { .. })), "{after:?}");
    let again = registry.connect(5, of("open", "anybody", "10.0.0.1", ""));
    assert_eq!(again, Ok(()));
}

#[test]
fn entries_go_with_their_group_and_come_back_with_it() {
    let mut registry = registry(vec![group("forum")]);
    registry.connect(1, host("10.0.0.1")).unwrap();
    registry.connect(2, host("10.0.0.2")).unwrap();
    registry.disconnect(2, Instant::now());
    let revision = registry.revision();
    registry.set_groups(vec![group("other")], Instant::now(), |_| None);
    assert_eq!(registry.entries().count(), 0);
    assert!(registry.revision() > revision);
    registry.set_groups(vec![group("forum")], Instant::now(), |_| None);
    assert_eq!(
        only(&registry).name().name(),
        "forum-10.0.0.1",
        "who is still here"
    );
    // A group that is another one now counts for those who come.
    let labelled = group("forum").with_labels(labels(&[("version", "v2")]));
    registry.set_groups(vec![labelled], Instant::now(), |_| None);
    assert!(!only(&registry).labels().contains_key("version"));
}

/// V027: who was registered with a server before is swept when it does not come back.
#[test]
fn hosts_of_a_server_before_have_a_while_to_come_back() {
    let start = Instant::now();
    let mut registry = Registry::new(GRACE, RETURN, 3, 3);
    assert!(registry.is_waiting());
    assert_eq!(registry.poll_timeout(), None, "no groups yet");
    registry.set_groups(vec![group("forum")], start, |_| None);
    registry.set_groups(vec![group("forum")], start + GRACE, |_| None);
    assert_eq!(registry.poll_timeout(), Some(start + RETURN));
    registry.handle_timeout(start + RETURN - Duration::from_millis(1));
    assert!(registry.is_waiting());
    registry.handle_timeout(start + RETURN);
    assert!(!registry.is_waiting());
    assert_eq!(registry.poll_timeout(), None);
}

#[test]
fn a_report_outlives_the_group_that_it_was_of() {
    let groups = || vec![group("forum").with_probe(true)];
    let mut registry = registry(groups());
    registry.connect(1, host("10.0.0.1")).unwrap();
    registry.health(1, Ok(()));
    registry.set_groups(Vec::new(), Instant::now(), |_| None);
    registry.set_groups(groups(), Instant::now(), |_| None);
    assert_eq!(only(&registry).health(), Some(Ok(())));
    // Also one that came while there was no group, or that another stream of the host has made.
    registry.set_groups(Vec::new(), Instant::now(), |_| None);
    registry.health(1, Err("down".to_owned()));
    registry.set_groups(groups(), Instant::now(), |_| None);
    assert_eq!(only(&registry).health(), Some(Err("down")));
    registry.connect(2, host("10.0.0.1")).unwrap();
    registry.disconnect(1, Instant::now());
    registry.set_groups(Vec::new(), Instant::now(), |_| None);
    registry.set_groups(groups(), Instant::now(), |_| None);
    assert_eq!(only(&registry).health(), Some(Err("down")));
}

#[test]
fn a_host_that_comes_back_to_a_new_server_is_not_taken_for_unhealthy() {
    let start = Instant::now();
    let mut registry = Registry::new(GRACE, RETURN, 3, 3);
    registry.set_groups(vec![group("forum").with_probe(true)], start, |_| None);
    registry.connect(1, host("10.0.0.1")).unwrap();
    registry.connect(2, host("10.0.0.2")).unwrap();
    assert_eq!(registry.entries().count(), 0, "nobody has reported");
    let revision = registry.revision();
    registry.health(1, Err("down".to_owned()));
    assert_eq!(only(&registry).health(), Some(Err("down")));
    assert!(registry.revision() > revision);
    // Who says nothing is unhealthy in the end.
    let revision = registry.revision();
    registry.handle_timeout(start + RETURN);
    let last = registry.entries().last().unwrap();
    assert_eq!(last.address(), IpAddr::from([10, 0, 0, 2]));
    assert_eq!(last.health(), Some(Err("no report yet")));
    assert!(registry.revision() > revision);
}

#[test]
fn times_beyond_what_a_clock_can_say_never_end() {
    let now = Instant::now();
    let mut registry = Registry::new(Duration::MAX, Duration::MAX, 3, 3);
    registry.set_groups(vec![group("forum")], now, |_| None);
    registry.connect(1, host("10.0.0.1")).unwrap();
    registry.disconnect(1, now);
    assert_eq!(registry.poll_timeout(), None);
    registry.handle_timeout(now + RETURN);
    assert!(registry.is_waiting());
    assert_eq!(only(&registry).address(), IpAddr::from([10, 0, 0, 1]));
}

#[test]
fn one_identity_leaves_places_for_others() {
    let mut registry = Registry::new(GRACE, RETURN, 3, 1);
    let open = WorkloadGroup::new(ObjectName::new("bank", "forum"));
    registry.set_groups(vec![open], Instant::now(), |_| None);
    registry.connect(1, host("10.0.0.1")).unwrap();
    let refused = registry.connect(2, host("10.0.0.2")).unwrap_err();
    let told = "more than 1 hosts of spiffe://td/ns/bank/sa/forum";
    assert_eq!(refused.to_string(), told);
    let other = Host {
        identity: Identity::new("td", "bank", "other").unwrap(),
        ..host("10.0.0.2")
    };
    registry.connect(2, other).unwrap();
    // Its own entry is none more.
    registry.connect(3, host("10.0.0.1")).unwrap();
}
