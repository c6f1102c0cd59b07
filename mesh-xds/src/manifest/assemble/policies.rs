//! Policies: AuthorizationPolicy as it is, PeerAuthentication as the denials that it amounts to.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};

use super::selectors::Selectors;
use super::{Assembled, Numbered, World};
use crate::manifest::meta::Labels;
use crate::manifest::security::{MtlsMode, PeerAuthentication};
use crate::model::{AttachedPolicy, ObjectName, RequestAuthentication, Scope};

/// The name, in the root namespace, of the policy that refuses plaintext on every port. istiod's.
const STATIC_STRICT: &str = "istio_converted_static_strict";

/// What the names of policies that were converted from one PeerAuthentication begin with. istiod's.
const CONVERTED: &str = "converted_peer_authentication_";

/// Which workloads must refuse plaintext.
#[derive(Default)]
pub(super) struct PeerModes<'a> {
    mesh_strict: bool,
    /// What the oldest object of a namespace says.
    namespaces: HashMap<&'a str, MtlsMode>,
    pub(super) selectors: Selectors<'a, (usize, &'a PeerAuthentication)>,
}

impl<'a> PeerModes<'a> {
    /// Takes the objects oldest first: of several at one level, the oldest counts.
    pub(super) fn new(objects: &[Numbered<'a, PeerAuthentication>], root: &str) -> Self {
        let mut modes = Self::default();
        let mut mesh = None;
        for (age, (_, object)) in objects.iter().copied().enumerate() {
            let in_root = *object.meta.namespace == *root;
            if !object.selector.is_empty() {
                let within = (!in_root).then_some(&*object.meta.namespace);
                modes
                    .selectors
                    .insert(within, &object.selector, (age, object));
            } else if in_root {
                mesh.get_or_insert(object.mode);
            } else {
                modes
                    .namespaces
                    .entry(&object.meta.namespace)
                    .or_insert(object.mode);
            }
        }
        modes.mesh_strict = mesh == Some(MtlsMode::Strict);
        modes
    }

    fn namespace_strict(&self, namespace: &str) -> bool {
        match self.namespaces.get(namespace) {
            Some(MtlsMode::Strict) => true,
            Some(MtlsMode::Open) => false,
            Some(MtlsMode::Unset) | None => self.mesh_strict,
        }
    }

    /// The policy that stands for the PeerAuthentication that binds a workload, if it denies anything.
    pub(super) fn policy_of(
        &self,
        namespace: &str,
        labels: &Labels,
        root: &str,
    ) -> Option<PolicyName> {
        // The workload's own namespace goes before the root namespace, then the oldest.
        let chosen = self
            .selectors
            .choosing(namespace, labels)
            .into_iter()
            .min_by_key(|(age, object)| (*object.meta.namespace != *namespace, *age));
        let base = self.namespace_strict(namespace);
        match chosen {
            None => base.then(|| static_strict(root)),
            Some((_, object)) => match Effect::of(object, base) {
                Effect::Nothing => None,
                Effect::Everything => Some(static_strict(root)),
                Effect::Ports(ports) => Some(converted(object, ports.strict)),
            },
        }
    }
}

/// What a PeerAuthentication with a selector amounts to.
enum Effect {
    Nothing,
    /// Plaintext is refused on every port.
    Everything,
    Ports(Ports),
}

struct Ports {
    /// Whether plaintext is refused on all ports but these, or on these alone.
    strict: bool,
    ports: Vec<u16>,
}

impl Effect {
    /// `base` is what the object inherits where it says nothing.
    fn of(object: &PeerAuthentication, base: bool) -> Self {
        let strict = match object.mode {
            MtlsMode::Strict => true,
            MtlsMode::Open => false,
            MtlsMode::Unset => base,
        };
        let exceptions = object.ports.iter().filter(|(_, mode)| match mode {
            MtlsMode::Unset => false,
            MtlsMode::Open => strict,
            MtlsMode::Strict => !strict,
        });
        let ports: Vec<_> = exceptions.map(|(port, _)| *port).collect();
        match (strict, ports.is_empty()) {
            (false, true) => Self::Nothing,
            (true, true) => Self::Everything,
            (strict, false) => Self::Ports(Ports { strict, ports }),
        }
    }
}

fn static_strict(root: &str) -> PolicyName {
    PolicyName::new(root, STATIC_STRICT)
}

/// The name of the policy that one object becomes. An object that inherits its mode can become two,
/// when it is in the root namespace and binds workloads of several; the one for strict namespaces
/// then has a name of its own.
fn converted(object: &PeerAuthentication, strict: bool) -> PolicyName {
    let suffix = match object.mode {
        MtlsMode::Unset if strict => "_inherited_strict",
        _ => "",
    };
    let name = format!("{CONVERTED}{}{suffix}", object.meta.name);
    PolicyName::new(Arc::clone(&object.meta.namespace), name)
}

/// Denies whoever has not proved an identity, on some ports.
fn deny_plaintext(name: PolicyName, ports: Option<&Ports>) -> AttachedPolicy {
    let unproven = Expr::Not(Box::new(Expr::Is(Matcher::Principal(StringMatch::Present))));
    let when = match ports {
        None => unproven,
        Some(Ports { strict, ports }) => {
            let listed = ports
                .iter()
                .map(|port| Expr::Is(Matcher::DestinationPort(*port)));
            let listed = Expr::Any(listed.collect());
            Expr::All(vec![
                unproven,
                if *strict {
                    Expr::Not(Box::new(listed))
                } else {
                    listed
                },
            ])
        }
    };
    let policy = Policy::new(name, Action::Deny, vec![Rule::new(when)]);
    AttachedPolicy::new(Arc::new(policy), Scope::Workload)
}

impl World<'_> {
    pub(super) fn make_policies(&self, made: &mut Assembled) {
        for (at, object) in &self.authorization {
            let scope = object.attachment.scope(&object.meta, self.settings);
            let policy = AttachedPolicy::new(Arc::clone(&object.policy), scope);
            made.resources.push((*at, policy.into()));
        }
        for (at, object) in &self.request_authentication {
            let name = ObjectName::new(
                Arc::clone(&object.meta.namespace),
                Arc::clone(&object.meta.name),
            );
            let scope = object.attachment.scope(&object.meta, self.settings);
            let built = RequestAuthentication::new(name, scope, object.rules.clone());
            made.resources.push((*at, built.into()));
        }
        self.make_converted(made);
    }

    fn make_converted(&self, made: &mut Assembled) {
        let Some((first, _)) = self.peer_authentication.first() else {
            return;
        };
        let mut converted_policies = BTreeMap::new();
        for (at, object) in &self.peer_authentication {
            if object.selector.is_empty() {
                continue;
            }
            let bases: &[bool] = match object.mode {
                MtlsMode::Unset if *object.meta.namespace == *self.settings.root_namespace() => {
                    &[false, true]
                }
                MtlsMode::Unset => &[self.peer_modes.namespace_strict(&object.meta.namespace)],
                _ => &[false],
            };
            for base in bases {
                if let Effect::Ports(ports) = Effect::of(object, *base) {
                    let name = converted(object, ports.strict);
                    converted_policies
                        .insert(name.clone(), (*at, deny_plaintext(name, Some(&ports))));
                }
            }
        }
        let name = static_strict(self.settings.root_namespace());
        made.resources
            .push((*first, deny_plaintext(name, None).into()));
        for (at, policy) in converted_policies.into_values() {
            made.resources.push((at, policy.into()));
        }
    }
}
