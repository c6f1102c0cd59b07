//! The policies of a workload as one set, compiled once for all workloads that have the same.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arc_swap::ArcSwap;
use mesh_authz::PolicySet;
use mesh_authz::policy::{Action, Policy, PolicyName};
use mesh_xds::model::{InboundListener, JwtRule, ResourceName, Scope};

use super::attach::{Attachment, Collected, Stamp};
use super::hashing::HashTable;
use super::record::WorkloadRecord;
use super::{Snapshot, Tables};

/// For how many workloads of this process answers are kept, unless
/// [`Snapshot::with_max_policy_views`] says otherwise: ten times the pods that a Kubernetes node has.
const MAX_VIEWS: usize = 1_024;

/// The policies that bind a workload, as far as they are known.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PolicyView {
    /// All are here.
    Ready(Arc<PolicySet>),
    /// The workload lists some that are not here yet. New connections wait for them; connections
    /// that live stay with the previous set and the refusals that are here.
    Pending {
        /// What is listed and neither here nor removed.
        missing: Vec<ResourceName>,
        /// The last complete set, and with it all policies here that refuse: what is missing may be
        /// missing for ever, and must not hold up a denial. `None` if no set was ever complete.
        previous: Option<Arc<PolicySet>>,
    },
}

impl PolicyView {
    /// The set that live connections are judged by.
    pub fn in_force(&self) -> Option<&Arc<PolicySet>> {
        match self {
            Self::Ready(set) => Some(set),
            Self::Pending { previous, .. } => previous.as_ref(),
        }
    }

    /// The set that new connections are judged by, when it is complete.
    pub fn ready(&self) -> Option<&Arc<PolicySet>> {
        match self {
            Self::Ready(set) => Some(set),
            Self::Pending { .. } => None,
        }
    }

    /// Whether live connections are judged by the very same set in both: one comparison of pointers.
    /// What this says of two views holds even if it says no of equal sets now and then.
    pub fn judges_like(&self, other: &Self) -> bool {
        match (self.in_force(), other.in_force()) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl Snapshot {
    /// Sets for how many workloads the answers of [`policies`](Self::policies) are kept, 1 024 by
    /// default: more than this process serves. Beyond it, answers are computed again.
    #[must_use]
    pub fn with_max_policy_views(self, max: usize) -> Self {
        let mut tables = Tables::clone(&self.tables);
        tables.policy_cache = Arc::new(PolicyCache::new(max));
        Self {
            tables: Arc::new(tables),
        }
    }

    /// The policies that bind a workload: the mesh's, its namespace's, those that it lists, and those
    /// that target a service of its which has no waypoint. `None` when there is no such workload.
    ///
    /// Workloads with equal lists share one set, and so do snapshots until a member changes: asking
    /// again costs a look-up.
    pub fn policies(&self, uid: &str) -> Option<PolicyView> {
        Some(self.memo(uid)?.view)
    }

    /// The policies that bind one port of a workload: where the port has a listener, its policies and
    /// those of the workload that stay beside it ([`InboundListener::keeps`]); else as
    /// [`policies`](Self::policies) says. `None` when there is no such workload.
    pub fn policies_on(&self, uid: &str, port: u16) -> Option<PolicyView> {
        self.policies_of(self.workload(uid)?, Some(port))
    }

    /// As [`policies`](Self::policies), or on a port as [`policies_on`](Self::policies_on), of a workload that
    /// had this record when it was last heard of.
    pub(crate) fn policies_of(
        &self,
        workload: &Arc<WorkloadRecord>,
        port: Option<u16>,
    ) -> Option<PolicyView> {
        let listener = port.and_then(|port| self.inbound_listener(workload, port));
        let memo = self.tables.policy_cache.memo(self, workload, listener)?;
        Some(memo.view)
    }

    /// As [`request_authentication`](Self::request_authentication), of such a workload.
    pub(crate) fn request_authentication_of(
        &self,
        workload: &Arc<WorkloadRecord>,
    ) -> Option<Arc<[JwtRule]>> {
        Some(self.tables.policy_cache.memo(self, workload, None)?.tokens)
    }

    /// The rules on tokens that requests to a workload may carry; none when nothing asks for tokens.
    pub fn request_authentication(&self, uid: &str) -> Option<Arc<[JwtRule]>> {
        Some(self.memo(uid)?.tokens)
    }

    /// The policy with this name and what it binds.
    pub fn policy(&self, name: &PolicyName) -> Option<(&Arc<Policy>, &Scope)> {
        let name = ResourceName::Policy(name.clone());
        match self.tables.attachments.get(&name)? {
            (Attachment::Policy(policy), scope) => Some((policy, scope)),
            _ => None,
        }
    }

    /// All policies with what they bind, in no order.
    pub fn all_policies(&self) -> impl Iterator<Item = (&Arc<Policy>, &Scope)> {
        let attachments = self.tables.attachments.iter();
        attachments.filter_map(|(_, attachment, scope)| match attachment {
            Attachment::Policy(policy) => Some((policy, scope)),
            Attachment::Tokens(_) => None,
        })
    }

    fn memo(&self, uid: &str) -> Option<Memo> {
        let workload = self.workload(uid)?;
        self.tables.policy_cache.memo(self, workload, None)
    }
}

/// Answers for the workloads that somebody asked about, shared by all snapshots of one line.
///
/// Readers load it and never wait. Whoever asks first computes; applying a batch does not touch it.
pub(super) struct PolicyCache {
    kept: ArcSwap<Kept>,
    max_views: usize,
}

#[derive(Clone, Default)]
struct Kept {
    memos: HashTable<Asked, Memo>,
    sets: HashTable<Members, Arc<PolicySet>>,
}

/// A workload, and the port of its that has policies of its own.
type Asked = (Arc<str>, Option<u16>);

#[derive(Clone)]
struct Memo {
    version: u64,
    stamp: Stamp,
    workload: Arc<WorkloadRecord>,
    view: PolicyView,
    /// The members of the set that the view has in force.
    members: Option<Members>,
    /// The members of the last set that was complete.
    complete: Option<Members>,
    tokens: Arc<[JwtRule]>,
}

impl Memo {
    fn answers(&self, snapshot: &Snapshot, workload: &Arc<WorkloadRecord>) -> bool {
        Arc::ptr_eq(&self.workload, workload) && self.stamp.is(snapshot.tables.attachments.stamp())
    }
}

/// The policies of a set, equal to another list of the very same policies.
///
/// Compared by pointer, and kept alive by the list, so that no policy is mistaken for another.
#[derive(Clone)]
struct Members(Arc<[Arc<Policy>]>);

impl Members {
    /// These, and what refuses among `others`.
    fn with_refusals_of(&self, others: &Self) -> Self {
        let refuses = |policy: &&Arc<Policy>| {
            matches!(policy.action(), Action::Deny | Action::Custom { .. })
                && !self.0.iter().any(|own| Arc::ptr_eq(own, policy))
        };
        let mut refusals = others.0.iter().filter(refuses).peekable();
        if refusals.peek().is_none() {
            return self.clone();
        }
        Self(self.0.iter().chain(refusals).cloned().collect())
    }
}

impl PartialEq for Members {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&*other.0).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

impl Eq for Members {}

impl Hash for Members {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for policy in &*self.0 {
            Arc::as_ptr(policy).hash(state);
        }
    }
}

impl PolicyCache {
    fn new(max_views: usize) -> Self {
        Self {
            kept: ArcSwap::default(),
            max_views: max_views.max(1),
        }
    }

    fn memo(
        &self,
        snapshot: &Snapshot,
        workload: &Arc<WorkloadRecord>,
        listener: Option<&Arc<InboundListener>>,
    ) -> Option<Memo> {
        let port = listener.map(|listener| listener.address().port());
        let asked = (Arc::clone(workload.uid()), port);
        if let Some(memo) = self.kept.load().memos.get(&asked)
            && memo.answers(snapshot, workload)
        {
            return Some(memo.clone());
        }
        let mut collected = snapshot.tables.attached_to(workload);
        if listener.is_some() {
            collected.keep_beside_listener();
        }
        let Collected { attached, missing } = collected;
        let mut tokens = Vec::new();
        let mut policies = Vec::new();
        for (_, attachment) in attached {
            match attachment {
                Attachment::Policy(policy) => policies.push(Arc::clone(policy)),
                Attachment::Tokens(rules) => tokens.extend_from_slice(rules),
            }
        }
        policies.extend(listener.iter().flat_map(|own| own.policies()).cloned());
        let members = Members(policies.into());
        let tokens: Arc<[JwtRule]> = distinct(tokens).into();
        let mut answer = None;
        self.kept.rcu(|kept| {
            let mut kept = Kept::clone(kept);
            answer = Some(kept.settle(snapshot, &asked, workload, &members, &missing, &tokens));
            kept.prune(snapshot, &asked, self.max_views);
            kept
        });
        answer
    }
}

impl Kept {
    fn settle(
        &mut self,
        snapshot: &Snapshot,
        asked: &Asked,
        workload: &Arc<WorkloadRecord>,
        members: &Members,
        missing: &[ResourceName],
        tokens: &Arc<[JwtRule]>,
    ) -> Memo {
        let version = snapshot.tables.version;
        let last = self.memos.get(asked).cloned();
        let last = last.as_ref();
        let (view, members, complete) = if missing.is_empty() {
            let view = PolicyView::Ready(self.set(members));
            (view, Some(members.clone()), Some(members.clone()))
        } else {
            let complete = last.and_then(|last| last.complete.clone());
            let in_force = complete.as_ref().map(|last| last.with_refusals_of(members));
            let view = PolicyView::Pending {
                missing: missing.to_vec(),
                previous: in_force.as_ref().map(|members| self.set(members)),
            };
            (view, in_force, complete)
        };
        // An answer for an older snapshot does not replace one for a newer.
        let outdated = last.is_some_and(|last| last.version > version);
        let tokens = match last {
            Some(last) if last.tokens == *tokens => Arc::clone(&last.tokens),
            _ => Arc::clone(tokens),
        };
        let memo = Memo {
            version,
            stamp: snapshot.tables.attachments.stamp().clone(),
            workload: Arc::clone(workload),
            view,
            members,
            complete,
            tokens,
        };
        if !outdated {
            self.memos.insert_mut(asked.clone(), memo.clone());
        }
        memo
    }

    fn set(&mut self, members: &Members) -> Arc<PolicySet> {
        if let Some(set) = self.sets.get(members) {
            return Arc::clone(set);
        }
        let set = Arc::new(PolicySet::new(members.0.iter().cloned()));
        self.sets.insert_mut(members.clone(), Arc::clone(&set));
        set
    }

    /// Forgets workloads that are no more, then others, then sets that nobody has.
    fn prune(&mut self, snapshot: &Snapshot, asked: &Asked, max_views: usize) {
        if self.memos.size() > max_views {
            let memos = self.memos.iter();
            let kept: Vec<_> = memos
                .filter(|(key, _)| snapshot.workload(&key.0).is_some() && *key != asked)
                .take(max_views / 2)
                .map(|(key, memo)| (key.clone(), memo.clone()))
                .collect();
            let asked = self.memos.get_key_value(asked);
            let asked = asked.map(|(key, memo)| (key.clone(), memo.clone()));
            self.memos = kept.into_iter().chain(asked).collect();
        }
        // Twice as many as can be in use, so that this pays for itself.
        if self.sets.size() > 2 * self.memos.size() + 2 {
            let memos = self.memos.values();
            let used = memos.filter_map(|memo| {
                let set = memo.view.in_force()?;
                Some((memo.members.clone()?, Arc::clone(set)))
            });
            self.sets = used.collect();
        }
    }
}

fn distinct(rules: Vec<JwtRule>) -> Vec<JwtRule> {
    let mut distinct: Vec<JwtRule> = Vec::with_capacity(rules.len());
    for rule in rules {
        if !distinct.contains(&rule) {
            distinct.push(rule);
        }
    }
    distinct
}

impl Default for PolicyCache {
    fn default() -> Self {
        Self::new(MAX_VIEWS)
    }
}

impl fmt::Debug for PolicyCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = self.kept.load();
        f.debug_struct("PolicyCache")
            .field("views", &kept.memos.size())
            .field("sets", &kept.sets.size())
            .finish()
    }
}
