//! Whether two policies of the recordings decide alike. The tests of mesh-core have this file too.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_authz::policy::Policy;
use mesh_authz::{Attribute, Attributes, Identity, PolicySet};

/// Decides about connections at every corner that the recorded policies have.
pub(crate) fn assert_same_decisions(ours: &Arc<Policy>, theirs: &Arc<Policy>, step: &str) {
    let identities = [
        ("cluster.local", "shop", "store"),
        ("cluster.local", "shop", "cart"),
        ("cluster.local", "shop", "evil"),
        ("cluster.local", "bank", "report"),
        ("cluster.local", "bank", "store"),
        ("cluster.local", "bank-2", "store"),
        ("cluster.local", "a-test", "other"),
        ("far.example", "x", "y"),
        ("far.example", "a", "b"),
        ("far.example", "x", "store"),
        ("cluster.local", "outside", "plain"),
        ("cluster.local", "quarantine", "x"),
        ("cluster.local", "legacy", "legacy"),
        ("cluster.local", "default", "netshoot"),
        ("cluster.local", "default", "bookinfo-productpage"),
    ];
    let mut callers: Vec<_> = identities
        .iter()
        .map(|(td, ns, sa)| Some(Identity::new(td, ns, sa).unwrap()))
        .collect();
    callers.push(None);
    let sources = [
        "10.20.1.5",
        "10.20.1.77",
        "10.20.7.1",
        "10.9.9.9",
        "10.10.1.1",
        "192.0.2.9",
        "fd20::5",
        "8.8.8.8",
    ];
    let destinations = ["10.20.1.2", "10.10.3.60"];
    let ports = [1, 3306, 5432, 5433, 6000, 8080, 9000, 9080];
    let ours = PolicySet::new([Arc::clone(ours)]);
    let theirs = PolicySet::new([Arc::clone(theirs)]);
    let mut both = BTreeSet::new();
    for caller in &callers {
        for source in sources {
            for destination in destinations {
                for port in ports {
                    let source = SocketAddr::new(source.parse().unwrap(), 40000);
                    let destination = SocketAddr::new(destination.parse().unwrap(), port);
                    let attributes = Attributes::new(source, destination)
                        .with_identity(Attribute::from(caller.as_ref()));
                    let decided = ours.evaluate_l4(&attributes).is_allowed();
                    assert_eq!(
                        decided,
                        theirs.evaluate_l4(&attributes).is_allowed(),
                        "{step}: {:?} decides otherwise about {caller:?} from {source} to {destination}",
                        ours.policies()[0]
                    );
                    both.insert(decided);
                }
            }
        }
    }
    let rules = ours.policies()[0].rules();
    let constant = rules.is_empty() || rules.iter().all(|rule| rule.needs_request());
    assert!(
        both.len() == 2 || constant,
        "the corners miss {:?}",
        ours.policies()[0]
    );
}
