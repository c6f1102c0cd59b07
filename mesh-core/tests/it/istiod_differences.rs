//! Where the snapshot that follows istiod differs on purpose from the one that the manifests make.

use std::collections::{BTreeMap, BTreeSet};

use crate::istiod_records::Fields;

/// Resources that differ in one field, by their whole names, and why. `""` is the field of what one of the two
/// does not have. Each has to be met.
pub(crate) struct Exception {
    why: &'static str,
    field: &'static str,
    names: &'static [&'static str],
}

const NO_LABELS: &str = "istiod lets every selector choose an endpoint that has no labels";
const NAMED_PORT: &str =
    "a container's port without protocol is TCP; nobody had filled it in for istiod";
const WITHHELD: &str = "istiod withholds AUDIT, CUSTOM and dry-run policies";
const WAYPOINTS: &str = "a policy with targetRefs is only for the waypoints, in their listeners";
const MISSING_WAYPOINT: &str = "a waypoint that a label names and no Gateway makes stays in the way; istiod lets callers around it";

const WAYPOINT_POLICIES: Exception = Exception {
    why: WAYPOINTS,
    field: "",
    names: &[
        "default/reviews-deny-admin",
        "default/reviews-l7",
        "default/waypoint-gateway",
    ],
};
const AUDIT: Exception = Exception {
    why: WITHHELD,
    field: "",
    names: &["default/ratings-audit"],
};

pub(crate) const BOOKINFO: &[Exception] = &[
    Exception {
        why: "a Pod without istio-cni's annotation is enrolled by its namespace's label",
        field: "protocol",
        names: &["Kubernetes//Pod/default/netshoot"],
    },
    Exception {
        why: NO_LABELS,
        field: "authorization_policies",
        names: &[
            "Kubernetes/networking.istio.io/ServiceEntry/default/external-api/api.example.com",
        ],
    },
    AUDIT,
    WAYPOINT_POLICIES,
];

pub(crate) const BOOKINFO_ON_DEMAND: &[Exception] = &[AUDIT, WAYPOINT_POLICIES];

const WITHHELD_POLICIES: Exception = Exception {
    why: WITHHELD,
    field: "",
    names: &["bank/ask-outside", "bank/audit-l4", "bank/try-deny"],
};
const STORE_PORTS: Exception = Exception {
    why: NAMED_PORT,
    field: "memberships",
    names: &[
        "Kubernetes//Pod/shop/store-5f00-c",
        "Kubernetes//Pod/shop/store-7c9d-a",
        "Kubernetes//Pod/shop/store-7c9d-b",
    ],
};
const STORE_WAYPOINT: Exception = Exception {
    why: MISSING_WAYPOINT,
    field: "waypoint",
    names: &[
        "Kubernetes//Pod/shop/store-5f00-c",
        "Kubernetes//Pod/shop/store-7c9d-a",
        "Kubernetes//Pod/shop/store-7c9d-b",
        "bank/*.example.org",
        "shop/store.shop.svc.cluster.local",
    ],
};
const OTHER_WAYPOINTS: Exception = Exception {
    why: MISSING_WAYPOINT,
    field: "waypoint",
    names: &[
        "bank/embedded.bank.svc.cluster.local",
        "shop/store-local.shop.svc.cluster.local",
        "shop/store-node.shop.svc.cluster.local",
        "shop/store-zone.shop.svc.cluster.local",
    ],
};
const LEDGERS: Exception = Exception {
    why: WITHHELD,
    field: "authorization_policies",
    names: &[
        "Kubernetes//Pod/bank/ledger-0",
        "Kubernetes//Pod/bank/ledger-1",
    ],
};
/// Nobody asked for the other one.
const LEDGER: Exception = Exception {
    names: &["Kubernetes//Pod/bank/ledger-1"],
    ..LEDGERS
};
const PINNED_POLICIES: Exception = Exception {
    why: NO_LABELS,
    field: "authorization_policies",
    names: &[
        "Kubernetes/networking.istio.io/ServiceEntry/bank/pinned/198.51.100.7",
        "Kubernetes/networking.istio.io/ServiceEntry/bank/pinned/198.51.100.8",
    ],
};
const PINNED: Exception = Exception {
    why: "exportTo [.] of a ServiceEntry is visibility Namespace",
    field: "visibility",
    names: &["bank/pinned.example.org"],
};
const OTHER_NETWORK: Exception = Exception {
    why: "with several networks istiod withholds the workloads of others, but for their gateways",
    field: "",
    names: &["Kubernetes/networking.istio.io/WorkloadEntry/bank/vault-far"],
};

pub(crate) const NETWORKS: &[Exception] = &[
    WITHHELD_POLICIES,
    STORE_PORTS,
    STORE_WAYPOINT,
    OTHER_WAYPOINTS,
    LEDGERS,
    PINNED_POLICIES,
    PINNED,
];

pub(crate) const NETWORKS_ON_DEMAND: &[Exception] =
    &[WITHHELD_POLICIES, STORE_PORTS, STORE_WAYPOINT, LEDGER];

pub(crate) const NETWORKS_MULTICLUSTER: &[Exception] = &[
    WITHHELD_POLICIES,
    STORE_PORTS,
    STORE_WAYPOINT,
    OTHER_WAYPOINTS,
    LEDGERS,
    PINNED_POLICIES,
    PINNED,
    OTHER_NETWORK,
];

pub(crate) const NETWORKS_MULTICLUSTER_ON_DEMAND: &[Exception] = &[
    WITHHELD_POLICIES,
    STORE_PORTS,
    STORE_WAYPOINT,
    LEDGER,
    OTHER_NETWORK,
];

/// What differs, against what is allowed to.
pub(crate) struct Differences<'a> {
    exceptions: &'a [Exception],
    met: BTreeSet<(String, &'static str)>,
    pub(crate) step: String,
    unexpected: Vec<String>,
}

impl<'a> Differences<'a> {
    pub(crate) fn new(exceptions: &'a [Exception]) -> Self {
        Self {
            exceptions,
            met: BTreeSet::new(),
            step: String::new(),
            unexpected: Vec::new(),
        }
    }

    /// Resources that are here, and those that should be, both ways.
    pub(crate) fn compare(
        &mut self,
        mut theirs: BTreeMap<String, Fields>,
        ours: BTreeMap<String, Fields>,
    ) {
        for (name, ours) in ours {
            let Some(theirs) = theirs.remove(&name) else {
                self.differs(&name, "", "only the manifests have it");
                continue;
            };
            assert_eq!(ours.len(), theirs.len());
            for (field, ours) in ours {
                if theirs[field] != ours {
                    let detail = format!("{}\n  manifests: {ours}", theirs[field]);
                    self.differs(&name, field, &detail);
                }
            }
        }
        for name in theirs.keys() {
            self.differs(name, "", "only istiod has it");
        }
    }

    /// Policies in force for a workload beside those that it lists itself: the same, but for those that nobody is sent.
    pub(crate) fn beside(&mut self, uid: &str, theirs: &BTreeSet<String>, ours: &BTreeSet<String>) {
        let ours = ours.iter().filter(|name| !self.is_allowed(name, ""));
        let ours: BTreeSet<_> = ours.cloned().collect();
        if *theirs != ours {
            let detail = format!("{theirs:?}\n  manifests: {ours:?}");
            self.differs(uid, "policies in force", &detail);
        }
    }

    fn is_allowed(&self, name: &str, field: &str) -> bool {
        let mut exceptions = self.exceptions.iter();
        exceptions.any(|one| one.field == field && one.names.contains(&name))
    }

    fn differs(&mut self, name: &str, field: &'static str, detail: &str) {
        if self.is_allowed(name, field) {
            self.met.insert((name.to_owned(), field));
        } else {
            let step = &self.step;
            self.unexpected
                .push(format!("{step}: {name} {field}: {detail}"));
        }
    }

    pub(crate) fn finish(self) {
        assert!(self.unexpected.is_empty(), "{}", self.unexpected.join("\n"));
        for one in self.exceptions {
            for name in one.names {
                let met = self.met.contains(&((*name).to_owned(), one.field));
                assert!(
                    met,
                    "nothing needs the exception of {name} {}: {}",
                    one.field, one.why
                );
            }
        }
    }
}
