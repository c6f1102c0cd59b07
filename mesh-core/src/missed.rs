//! Which ALLOW policies did not allow what is denied.

use mesh_authz::policy::Action;
use mesh_authz::{Decision, PolicySet, Reason};

/// How many ALLOW policies that did not allow something are named.
const NAMED: usize = 8;

/// Where ALLOW policies apply and none has allowed it: which those are, for logs.
pub(crate) fn missed(decision: &Decision<'_>, policies: &PolicySet) -> Option<String> {
    if decision.reason() != Reason::NoneAllowed {
        return None;
    }
    let all = policies.policies().iter();
    let mut allow = all.filter(|policy| *policy.action() == Action::Allow && !policy.dry_run());
    let names: Vec<_> = (allow.by_ref().take(NAMED))
        .map(|policy| policy.name().to_string())
        .collect();
    let names = names.join(", ");
    Some(match allow.count() {
        0 => names,
        more => format!("{names} and {more} more"),
    })
}
