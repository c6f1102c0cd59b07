//! What the server's configuration says first, and what changes of it refuse the client `refused` and nobody else.

use std::sync::Arc;

use mesh_authz::policy::istio::{AuthorizationPolicy, Rule, Source};
use mesh_authz::policy::{Action, PolicyName, TrustDomains};
use mesh_xds::model::{AttachedPolicy, ResourceName, Scope, TunnelProtocol, Update, Workload};

use crate::BoxError;
use crate::echo::{ADMITTED, REFUSED, SERVER};

const NAMESPACE: &str = "default";

/// Policies that bind the mesh are of the root namespace.
const ROOT: &str = "istio-system";

/// A batch of the configuration.
pub(crate) struct Change {
    pub(crate) updates: Vec<Update>,
    pub(crate) removed: Vec<ResourceName>,
}

/// The server, one ALLOW for each client, and two policies that bind it not.
pub(crate) fn first() -> Result<Change, BoxError> {
    Ok(Change {
        updates: vec![
            server(Vec::new()),
            allow("admits-refused", REFUSED)?,
            allow("admits-admitted", ADMITTED)?,
            deny(&attached(), Scope::Workload)?,
            deny(&moving(), Scope::Namespace("elsewhere".into()))?,
        ],
        removed: Vec::new(),
    })
}

impl Change {
    /// The change of this name.
    pub(crate) fn named(name: &str) -> Result<Self, BoxError> {
        let here = || Scope::Namespace(NAMESPACE.into());
        let added = PolicyName::new(NAMESPACE, "added");
        let root = PolicyName::new(ROOT, "added");
        let dry = PolicyName::new(NAMESPACE, "dry");
        let update = match name {
            "deny" => deny(&added, here())?,
            "allow" => return Ok(Self::removal(added)),
            "attach" => server(vec![attached()]),
            "detach" => server(Vec::new()),
            "forbid" => return Ok(Self::removal(PolicyName::new(NAMESPACE, "admits-refused"))),
            "permit" => allow("admits-refused", REFUSED)?,
            "replace" => allow("admits-refused", "somebody")?,
            "move" => deny(&moving(), here())?,
            "move away" => deny(&moving(), Scope::Namespace("elsewhere".into()))?,
            "deny in the mesh" => deny(&root, Scope::Mesh)?,
            "allow in the mesh" => return Ok(Self::removal(root)),
            "try" => {
                let policy = policy(&dry, Action::Deny, REFUSED)?.with_dry_run(true);
                AttachedPolicy::new(Arc::new(policy), here()).into()
            }
            "leave off" => return Ok(Self::removal(dry)),
            _ => return Err(format!("no change {name:?}").into()),
        };
        Ok(Self {
            updates: vec![update],
            removed: Vec::new(),
        })
    }

    fn removal(name: PolicyName) -> Self {
        Self {
            updates: Vec::new(),
            removed: vec![ResourceName::Policy(name)],
        }
    }
}

/// Binds who lists it.
fn attached() -> PolicyName {
    PolicyName::new(NAMESPACE, "attached")
}

/// Binds another namespace at first.
fn moving() -> PolicyName {
    PolicyName::new(NAMESPACE, "moving")
}

fn server(policies: Vec<PolicyName>) -> Update {
    let workload = Workload::new("uid/server", NAMESPACE, "server")
        .with_addresses(vec![SERVER.into()])
        .with_service_account("server")
        .with_protocol(TunnelProtocol::Hbone)
        .with_authorization_policies(policies);
    workload.into()
}

fn allow(name: &str, account: &str) -> Result<Update, BoxError> {
    let policy = policy(&PolicyName::new(NAMESPACE, name), Action::Allow, account)?;
    let scope = Scope::Namespace(NAMESPACE.into());
    Ok(AttachedPolicy::new(Arc::new(policy), scope).into())
}

/// A DENY for the client that is refused.
fn deny(name: &PolicyName, scope: Scope) -> Result<Update, BoxError> {
    let policy = policy(name, Action::Deny, REFUSED)?;
    Ok(AttachedPolicy::new(Arc::new(policy), scope).into())
}

fn policy(
    name: &PolicyName,
    action: Action,
    account: &str,
) -> Result<mesh_authz::policy::Policy, BoxError> {
    let mut source = Source::default();
    source.principals = vec![format!("cluster.local/ns/default/sa/{account}")];
    let mut policy = AuthorizationPolicy::new(name.namespace(), name.name());
    policy.action = action;
    let mut rule = Rule::default();
    rule.from = vec![source];
    policy.rules = vec![rule];
    Ok(policy.lower(&TrustDomains::default())?)
}
