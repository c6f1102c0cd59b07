//! Istio's own conversions: what istiod renders for Envoy and what we lower have to decide alike.
//!
//! The data is not part of this repository: `MESH_TEST_DATA` names the folder that holds it.

mod attributes;
mod rbac;
mod resource;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mesh_authz::policy::istio::{AuthorizationPolicy, Rule};
use mesh_authz::policy::{Action, TrustDomains};
use mesh_authz::{Attributes, PolicySet};

use crate::require;

use self::attributes::{Literals, Sample};
use self::rbac::{Filter, Node};

/// Requests a file is tried with.
const SAMPLES: usize = 600;

fn data(test: &str) -> Option<PathBuf> {
    Some(require::data(test)?.join("istio/authz"))
}

/// The mesh that a file was converted for.
fn trust_domains(file: &str) -> TrustDomains {
    match file {
        "simple-policy-td-aliases" => TrustDomains::new("td1").with_aliases(["cluster.local"]),
        "simple-policy-multiple-td-aliases" => {
            TrustDomains::new("td1").with_aliases(["cluster.local", "some-td"])
        }
        "simple-policy-principal-with-wildcard" => {
            TrustDomains::new("td1").with_aliases(["foobar"])
        }
        _ => TrustDomains::default(),
    }
}

/// One `NAME-in.yaml` and its `NAME-out*.yaml`.
struct Golden {
    name: String,
    policies: Vec<AuthorizationPolicy>,
    filters: Vec<Filter>,
}

fn goldens(folder: &Path) -> Vec<Golden> {
    let mut files: BTreeMap<String, (Option<PathBuf>, Vec<PathBuf>)> = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if let Some(name) = stem.strip_suffix("-in") {
            files.entry(name.to_owned()).or_default().0 = Some(path);
        } else {
            let (name, _) = stem.rsplit_once("-out").unwrap();
            files.entry(name.to_owned()).or_default().1.push(path);
        }
    }
    files
        .into_iter()
        .map(|(name, (input, mut outputs))| {
            outputs.sort();
            Golden {
                policies: resource::parse(&read(&input.unwrap())),
                filters: outputs
                    .iter()
                    .map(|path| rbac::parse(&read(path)))
                    .collect(),
                name,
            }
        })
        .collect()
}

/// Identities cannot hold the brackets that the files number their names with: `rule[0]` is `rule-0`.
fn read(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    regex::Regex::new(r"\\?\[(\d+)\\?\]")
        .unwrap()
        .replace_all(&text, "-$1")
        .into_owned()
}

impl Golden {
    fn set(&self, policies: &[AuthorizationPolicy]) -> PolicySet {
        let trust_domains = trust_domains(&self.name);
        PolicySet::new(policies.iter().map(|policy| {
            let lowered = policy.lower(&trust_domains);
            Arc::new(lowered.unwrap_or_else(|error| panic!("{}: {error}", self.name)))
        }))
    }

    /// What the chain of filters decides.
    fn allows(&self, sample: &Sample) -> bool {
        self.filters.iter().all(|filter| filter.allows(sample))
    }

    fn samples(&self) -> Vec<Sample> {
        let mut literals = Literals::default();
        for filter in &self.filters {
            literals.collect(filter);
        }
        literals.samples(SAMPLES)
    }

    /// The rendered form of one rule; none where it was dropped.
    fn rendered(&self, policy: &AuthorizationPolicy, rule: usize) -> Option<(&Node, &Node)> {
        let id = format!(
            "ns[{}]-policy[{}]-rule-{rule}",
            policy.namespace, policy.name
        );
        self.filters.iter().find_map(|filter| filter.policy(&id))
    }
}

#[test]
fn requests_are_decided_alike() {
    let Some(data) = data("requests_are_decided_alike") else {
        return;
    };
    let mut decided = [0; 2];
    for golden in goldens(&data.join("http")) {
        let set = golden.set(&golden.policies);
        for sample in golden.samples() {
            let ours = sample.with(|attributes| set.evaluate(attributes).is_allowed());
            assert_eq!(ours, golden.allows(&sample), "{}: {sample:?}", golden.name);
            decided[usize::from(ours)] += 1;
        }
    }
    assert!(decided.iter().all(|count| *count > SAMPLES), "{decided:?}");
}

/// A TCP port gets what is left of the policies without requests; so does our L4 reduction.
#[test]
fn connections_are_decided_alike() {
    let Some(data) = data("connections_are_decided_alike") else {
        return;
    };
    let mut matched = 0;
    for golden in goldens(&data.join("tcp")) {
        let set = golden.set(&golden.policies);
        for sample in golden.samples() {
            let ours = |set: &PolicySet| {
                sample.with_connection(|attributes| set.evaluate_l4(attributes).is_allowed())
            };
            assert_eq!(
                ours(&set),
                golden.allows(&sample),
                "{}: {sample:?}",
                golden.name
            );
            // Rule by rule, as one that always matches hides the others.
            for policy in &golden.policies {
                for (at, rule) in policy.rules.iter().enumerate() {
                    let theirs = golden
                        .rendered(policy, at)
                        .is_some_and(|rendered| rbac::matches(rendered, &sample));
                    let allowed = ours(&golden.set(&[only(policy, rule.clone())]));
                    let matches = allowed == (policy.action == Action::Allow);
                    assert_eq!(matches, theirs, "{} rule {at}: {sample:?}", golden.name);
                    matched += usize::from(matches);
                }
            }
        }
    }
    assert!(matched > SAMPLES);
}

/// Part by part: each condition of ours has to say, over all samples, what some rendered one says, and
/// the other way round. (Whole rules of the large files can hardly match.)
#[test]
fn conditions_are_decided_alike() {
    let Some(data) = data("conditions_are_decided_alike") else {
        return;
    };
    let mut varied = 0;
    for golden in goldens(&data.join("http")) {
        let samples = golden.samples();
        for policy in &golden.policies {
            for (at, rule) in policy.rules.iter().enumerate() {
                let rendered = golden.rendered(policy, at).unwrap();
                let theirs = rbac::conjuncts(rendered)
                    .into_iter()
                    .map(|node| samples.iter().map(|sample| node.matches(sample)).collect())
                    .collect::<std::collections::BTreeSet<Vec<bool>>>();
                let ours = resource::single_fields(rule)
                    .into_iter()
                    .map(|rule| {
                        let set = golden.set(&[only(policy, rule)]);
                        let allows = |attributes: &Attributes<'_>| {
                            set.evaluate(attributes).is_allowed()
                                == (policy.action == Action::Allow)
                        };
                        samples.iter().map(|sample| sample.with(allows)).collect()
                    })
                    .collect::<std::collections::BTreeSet<Vec<bool>>>();
                varied += ours
                    .iter()
                    .filter(|column| column.contains(&true) && column.contains(&false))
                    .count();
                assert_eq!(ours.len(), theirs.len(), "{} rule {at}", golden.name);
                assert!(ours == theirs, "{} rule {at}", golden.name);
            }
        }
    }
    assert!(varied > 20, "{varied}");
}

fn only(policy: &AuthorizationPolicy, rule: Rule) -> AuthorizationPolicy {
    let mut one = policy.clone();
    one.rules = vec![rule];
    // AUDIT decides nothing: as if it were to permit.
    if one.action == Action::Audit {
        one.action = Action::Allow;
    }
    one
}
