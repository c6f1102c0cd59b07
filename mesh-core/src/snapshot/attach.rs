//! Policies and request authentications, and what each is attached to.

use std::sync::Arc;

use mesh_authz::policy::Policy;
use mesh_xds::model::{
    AttachedPolicy, InboundListener, JwtRule, ObjectName, Rejection, RequestAuthentication,
    ResourceName, Scope, ServiceName, Target,
};
use rpds::RedBlackTreeMapSync;

use super::apply::listed_names;
use super::hashing::HashTable;
use super::record::{ServiceRecord, WorkloadRecord};
use super::{Changes, Tables};

#[derive(Clone, Default)]
pub(super) struct Attachments {
    by_name: HashTable<ResourceName, Entry>,
    bound: HashTable<Binding, RedBlackTreeMapSync<ResourceName, Attachment>>,
    /// How many policies bind services.
    targeting: usize,
    /// How many profiles of workloads list a name.
    references: HashTable<ResourceName, usize>,
    /// Names that are listed and were removed, with the version that removed them.
    gone: HashTable<ResourceName, u64>,
    /// Another one after each change that may give some workload other policies.
    stamp: Stamp,
}

/// Equal only to its own copies.
#[derive(Clone, Default)]
pub(super) struct Stamp(Arc<u8>);

impl Stamp {
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Clone)]
struct Entry {
    attachment: Attachment,
    scope: Scope,
}

/// What is attached.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Attachment {
    Policy(Arc<Policy>),
    Tokens(Arc<[JwtRule]>),
}

/// What a thing is attached to, other than by being listed.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Binding {
    Mesh,
    Namespace(Arc<str>),
    Target(Target),
}

/// All that is attached to one workload, by name.
pub(super) struct Collected<'a> {
    pub(super) attached: Vec<(&'a ResourceName, &'a Attachment)>,
    /// Listed, and neither here nor removed.
    pub(super) missing: Vec<ResourceName>,
}

impl Collected<'_> {
    /// Drops the policies, here or missing, in whose place a listener has its own.
    pub(super) fn keep_beside_listener(&mut self) {
        let keeps = |name: &ResourceName| match name {
            ResourceName::Policy(name) => InboundListener::keeps(name),
            _ => true,
        };
        self.attached.retain(|(name, _)| keeps(name));
        self.missing.retain(keeps);
    }
}

impl Attachments {
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    pub(super) fn touch(&mut self) {
        self.stamp = Stamp::default();
    }

    pub(super) fn has_targets(&self) -> bool {
        self.targeting > 0
    }

    pub(super) fn get(&self, name: &ResourceName) -> Option<(&Attachment, &Scope)> {
        let entry = self.by_name.get(name)?;
        Some((&entry.attachment, &entry.scope))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ResourceName, &Attachment, &Scope)> {
        let entries = self.by_name.iter();
        entries.map(|(name, entry)| (name, &entry.attachment, &entry.scope))
    }

    #[cfg(test)]
    pub(super) fn listed(&self) -> usize {
        self.references.size()
    }

    /// Counts that a profile lists these names.
    pub(super) fn refer(&mut self, names: impl Iterator<Item = ResourceName>) {
        for name in names {
            match self.references.get_mut(&name) {
                Some(count) => *count += 1,
                None => self.references.insert_mut(name, 1),
            }
        }
    }

    /// Counts that a profile no longer lists these names.
    pub(super) fn unrefer(&mut self, names: impl Iterator<Item = ResourceName>) {
        for name in names {
            let Some(count) = self.references.get_mut(&name) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.references.remove_mut(&name);
                self.gone.remove_mut(&name);
            }
        }
    }

    /// Puts a thing in place; whether anything is different.
    fn put(&mut self, name: ResourceName, attachment: Attachment, scope: &Scope) -> bool {
        if let Some(old) = self.by_name.get(&name) {
            if old.attachment == attachment && old.scope == *scope {
                return false;
            }
            let scope = old.scope.clone();
            self.unbind(&name, &scope);
        }
        for binding in bindings(scope) {
            if let Some(bound) = self.bound.get_mut(&binding) {
                bound.insert_mut(name.clone(), attachment.clone());
            } else {
                let bound = RedBlackTreeMapSync::new_sync();
                let bound = bound.insert(name.clone(), attachment.clone());
                self.bound.insert_mut(binding, bound);
            }
        }
        self.targeting += usize::from(matches!(scope, Scope::Targets(_)));
        self.gone.remove_mut(&name);
        let scope = scope.clone();
        self.by_name.insert_mut(name, Entry { attachment, scope });
        self.touch();
        true
    }

    /// Removes a thing; whether anything is different.
    fn remove(&mut self, name: &ResourceName, version: u64) -> bool {
        let listed = self.references.contains_key(name);
        if listed {
            self.gone.insert_mut(name.clone(), version);
        }
        if let Some(old) = self.by_name.get(name) {
            let scope = old.scope.clone();
            self.unbind(name, &scope);
            self.by_name.remove_mut(name);
        } else if !listed {
            return false;
        }
        self.touch();
        true
    }

    /// Whether the name was removed after version `listed`, since which a workload has listed it: only
    /// then is its absence meant.
    fn is_gone(&self, name: &ResourceName, listed: u64) -> bool {
        self.gone.get(name).is_some_and(|removed| listed < *removed)
    }

    fn unbind(&mut self, name: &ResourceName, scope: &Scope) {
        for binding in bindings(scope) {
            let Some(bound) = self.bound.get_mut(&binding) else {
                continue;
            };
            bound.remove_mut(name);
            if bound.is_empty() {
                self.bound.remove_mut(&binding);
            }
        }
        self.targeting -= usize::from(matches!(scope, Scope::Targets(_)));
    }

    fn bound(&self, binding: &Binding) -> impl Iterator<Item = (&ResourceName, &Attachment)> {
        self.bound
            .get(binding)
            .into_iter()
            .flat_map(|bound| bound.iter())
    }
}

fn bindings(scope: &Scope) -> Vec<Binding> {
    match scope {
        Scope::Mesh => vec![Binding::Mesh],
        Scope::Namespace(namespace) => vec![Binding::Namespace(Arc::clone(namespace))],
        Scope::Targets(targets) => targets.iter().cloned().map(Binding::Target).collect(),
        // Workloads list these by name.
        _ => Vec::new(),
    }
}

impl Tables {
    pub(super) fn attachments_mut(&mut self) -> &mut Attachments {
        Arc::make_mut(&mut self.attachments)
    }

    pub(super) fn put_policy(
        &mut self,
        policy: &AttachedPolicy,
        changes: &mut Changes,
    ) -> Result<(), Rejection> {
        let name = policy.policy().name();
        if name.name().is_empty() {
            return Err(Rejection::new("name: expected not to be empty"));
        }
        let attachment = Attachment::Policy(Arc::clone(policy.policy()));
        let name = ResourceName::Policy(name.clone());
        self.attach(name, attachment, policy.scope(), changes);
        Ok(())
    }

    pub(super) fn put_authentication(
        &mut self,
        rule: &RequestAuthentication,
        changes: &mut Changes,
    ) -> Result<(), Rejection> {
        if rule.name().name().is_empty() {
            return Err(Rejection::new("name: expected not to be empty"));
        }
        let attachment = Attachment::Tokens(rule.rules().iter().cloned().collect());
        let name = ResourceName::RequestAuthentication(rule.name().clone());
        self.attach(name, attachment, rule.scope(), changes);
        Ok(())
    }

    fn attach(
        &mut self,
        name: ResourceName,
        attachment: Attachment,
        scope: &Scope,
        changes: &mut Changes,
    ) {
        if self.attachments_mut().put(name.clone(), attachment, scope) {
            changes.policy(name);
        }
    }

    pub(super) fn remove_attachment(&mut self, name: &ResourceName, changes: &mut Changes) {
        let version = self.version;
        if self.attachments_mut().remove(name, version) {
            changes.policy(name.clone());
        }
    }

    /// All that binds a workload: the mesh's, its namespace's, what it lists, and what targets a
    /// service of its that has no waypoint.
    pub(super) fn attached_to(&self, workload: &WorkloadRecord) -> Collected<'_> {
        let attachments = &*self.attachments;
        let namespace = Binding::Namespace(Arc::clone(workload.namespace()));
        let mut attached: Vec<_> = attachments.bound(&Binding::Mesh).collect();
        attached.extend(attachments.bound(&namespace));
        if attachments.has_targets() {
            for membership in workload.memberships() {
                let service = membership.service();
                if let Some(target) = target_of(service, self.service(service).map(Arc::as_ref)) {
                    attached.extend(attachments.bound(&Binding::Target(target)));
                }
            }
        }
        let mut missing = Vec::new();
        let listed = listed_names(&workload.profile).zip(workload.listed());
        for (name, since) in listed {
            if let Some((name, entry)) = attachments.by_name.get_key_value(&name) {
                attached.push((name, &entry.attachment));
            } else if !attachments.is_gone(&name, *since) {
                missing.push(name);
            }
        }
        attached.sort_by_key(|(name, _)| *name);
        attached.dedup_by_key(|(name, _)| *name);
        Collected { attached, missing }
    }
}

/// As what `targetRefs` name a service whose policies its own workloads enforce: none that has a waypoint.
///
/// Of a service that is not known yet the hostname tells as much as it can: its policies bind
/// rather than not.
fn target_of(name: &ServiceName, service: Option<&ServiceRecord>) -> Option<Target> {
    if service.is_some_and(ServiceRecord::has_waypoint) {
        return None;
    }
    let first_label = || name.hostname().split('.').next().unwrap_or_default();
    let object = service.map_or_else(first_label, |service| service.object_name());
    let kubernetes = name
        .hostname()
        .strip_prefix(object)
        .and_then(|rest| rest.strip_prefix('.')?.strip_prefix(name.namespace()))
        .is_some_and(|rest| rest.starts_with(".svc."));
    let object = ObjectName::new(name.namespace(), object);
    Some(if kubernetes {
        Target::Service(object)
    } else {
        Target::ServiceEntry(object)
    })
}
