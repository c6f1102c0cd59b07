use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use mesh_authz::PolicySet;

use crate::layers::TokenLocations;
use crate::policies::{Enforced, Policies};
use crate::snapshot::{PolicyView, Snapshot, WorkloadRecord};
use crate::sync::lock;

/// What a workload enforces: on most ports the same, on those with an inbound listener what that says.
///
/// Readers never wait. The writer is whoever applies configuration.
pub(crate) struct Enforcement {
    /// Of the ports that have none of their own.
    general: Policies,
    own: ArcSwap<HashMap<u16, Policies>>,
    /// Held while they are replaced.
    source: Mutex<Source>,
}

#[derive(Default)]
struct Source {
    /// The workload's record as it was last heard of.
    record: Option<Arc<WorkloadRecord>>,
    /// What each was made from. `None` is the general one's.
    views: HashMap<Option<u16>, PolicyView>,
}

impl Enforcement {
    pub(crate) fn new() -> Self {
        Self {
            general: Policies::fixed(PolicySet::new([])),
            own: ArcSwap::default(),
            source: Mutex::default(),
        }
    }

    /// What is enforced on a port now: for one decision.
    pub(crate) fn on(&self, port: u16) -> Policies {
        let own = self.own.load();
        own.get(&port).unwrap_or(&self.general).clone()
    }

    /// What is enforced on a port from now on: for a layer, which lives on.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "HTTP layers do so"))]
    pub(crate) fn follow(&self, port: u16) -> Policies {
        // No listener comes for the port meanwhile, and what has none enforces the general policies.
        let _source = self.source();
        self.own_or_new(port)
    }

    fn own_or_new(&self, port: u16) -> Policies {
        if let Some(own) = self.own.load().get(&port) {
            return own.clone();
        }
        let new = Policies::new(Enforced::clone(&self.general.load()));
        let mut own = HashMap::clone(&self.own.load());
        own.insert(port, new.clone());
        self.own.store(Arc::new(own));
        new
    }

    /// Takes over what a snapshot says of the workload; whether anything is enforced otherwise than before.
    ///
    /// Of a workload that has no record any more the last one counts: its live connections stay on what
    /// that lists, as it is now.
    pub(crate) fn update(&self, snapshot: &Snapshot, record: Option<&Arc<WorkloadRecord>>) -> bool {
        let mut source = self.source();
        if let Some(record) = record {
            source.record = Some(Arc::clone(record));
        }
        let Source { record, views } = &mut *source;
        let Some(record) = record else {
            return false;
        };
        let rules = snapshot.request_authentication_of(record);
        let tokens = TokenLocations::from_rules(rules.iter().flat_map(|all| all.iter()));
        let mut changed = false;
        let mut take = |port: Option<u16>, policies: &Policies, enforced: Option<New>| {
            let Some(New { view, enforced }) = enforced else {
                return;
            };
            let last = views.insert(port, view.clone());
            let same = last.is_some_and(|last| last.judges_like(&view))
                && policies.load().differs_only_in_policies(&enforced);
            if !same {
                // Here, and not in the task of the connection that asks first.
                enforced.policies().compile_l4();
                enforced.policies().compile_l7();
                policies.store(enforced);
                changed = true;
            }
        };
        let view = snapshot.policies_of(record, None);
        take(None, &self.general, New::of(view, &tokens));
        let mut ports: BTreeSet<_> = snapshot.inbound_ports(record).collect();
        ports.extend(self.own.load().keys());
        for port in ports {
            let view = snapshot.policies_of(record, Some(port));
            let listener = snapshot.inbound_listener(record, port);
            let new = New::of(view, &tokens).map(|mut new| {
                new.enforced.set_path_normalization(
                    listener.and_then(|listener| listener.path_normalization()),
                );
                new
            });
            take(Some(port), &self.own_or_new(port), new);
        }
        changed
    }

    fn source(&self) -> MutexGuard<'_, Source> {
        lock(&self.source)
    }
}

/// Policies that are listed and not here yet, port by port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missings {
    general: Vec<String>,
    /// Of ports with an inbound listener, which need fewer.
    own: HashMap<u16, Vec<String>>,
}

impl Missings {
    /// Whatever the port, nobody knows what binds it.
    pub(crate) fn no_record() -> Self {
        Self {
            general: vec!["its own record".to_owned()],
            own: HashMap::new(),
        }
    }

    pub(crate) fn of(snapshot: &Snapshot, record: &WorkloadRecord) -> Self {
        let missing = |view| match view {
            Some(PolicyView::Pending { missing, .. }) => {
                missing.iter().map(ToString::to_string).collect()
            }
            _ => Vec::new(),
        };
        let ports = snapshot.inbound_ports(record);
        let on = |port| (port, missing(snapshot.policies_on(record.uid(), port)));
        Self {
            general: missing(snapshot.policies(record.uid())),
            own: ports.map(on).collect(),
        }
    }

    /// Of a port that nobody can tell, all.
    pub(crate) fn on(&self, port: Option<u16>) -> &[String] {
        let own = port.and_then(|port| self.own.get(&port));
        own.unwrap_or(&self.general)
    }
}

/// What is to be enforced, and why.
struct New {
    view: PolicyView,
    enforced: Enforced,
}

impl New {
    /// Nothing while policies are missing and there never was a complete set.
    fn of(view: Option<PolicyView>, tokens: &TokenLocations) -> Option<Self> {
        let view = view?;
        let set = PolicySet::clone(view.in_force()?);
        let enforced = Enforced::new(set).with_tokens(tokens.clone());
        Some(Self { view, enforced })
    }
}

impl fmt::Debug for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enforcement")
            .field("general", &self.general)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}
