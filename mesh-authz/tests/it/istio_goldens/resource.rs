//! Reads AuthorizationPolicies, as much as the files hold of them.

use mesh_authz::policy::Action;
use mesh_authz::policy::istio::{AuthorizationPolicy, Condition, Operation, Rule, Source};
use serde::Deserialize;

#[derive(Deserialize)]
struct Document {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Spec {
    #[serde(default, rename = "selector")]
    _selector: serde::de::IgnoredAny,
    #[serde(default)]
    action: String,
    #[serde(default)]
    rules: Vec<RuleFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleFields {
    #[serde(default)]
    from: Vec<From>,
    #[serde(default)]
    to: Vec<To>,
    #[serde(default)]
    when: Vec<When>,
}

#[derive(Deserialize)]
struct From {
    source: SourceFields,
}

#[derive(Deserialize)]
struct To {
    operation: OperationFields,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct When {
    key: String,
    #[serde(default)]
    values: Vec<String>,
    #[serde(default)]
    not_values: Vec<String>,
}

macro_rules! fields {
    ($of:ident as $name:ident: $($field:ident),*) => {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        struct $name {
            $(#[serde(default)] $field: Vec<String>),*
        }

        impl $name {
            fn lowered(self) -> $of {
                let mut of = $of::default();
                $(of.$field = self.$field;)*
                of
            }
        }

        impl Fields for $of {
            fn single(&self) -> Vec<Self> {
                let mut singles = Vec::new();
                $(if !self.$field.is_empty() {
                    let mut of = Self::default();
                    of.$field = self.$field.clone();
                    singles.push(of);
                })*
                singles
            }
        }
    };
}

/// Takes apart what combines fields.
trait Fields: Sized {
    /// The same with one field each.
    fn single(&self) -> Vec<Self>;
}

fields!(Source as SourceFields: principals, not_principals, request_principals,
    not_request_principals, namespaces, not_namespaces, ip_blocks, not_ip_blocks, remote_ip_blocks,
    not_remote_ip_blocks, service_accounts, not_service_accounts, trust_domains, not_trust_domains);
fields!(Operation as OperationFields: hosts, not_hosts, ports, not_ports, methods, not_methods,
    paths, not_paths);

pub(super) fn parse(text: &str) -> Vec<AuthorizationPolicy> {
    serde_saphyr::from_multiple::<Document>(text)
        .unwrap()
        .into_iter()
        .map(|document| {
            let metadata = document.metadata;
            let mut policy = AuthorizationPolicy::new(metadata.namespace, metadata.name);
            policy.action = match document.spec.action.as_str() {
                "" | "ALLOW" => Action::Allow,
                "DENY" => Action::Deny,
                "AUDIT" => Action::Audit,
                other => panic!("{other}"),
            };
            policy.rules = document.spec.rules.into_iter().map(rule).collect();
            policy
        })
        .collect()
}

fn rule(fields: RuleFields) -> Rule {
    let mut rule = Rule::default();
    rule.from = fields
        .from
        .into_iter()
        .map(|from| from.source.lowered())
        .collect();
    rule.to = fields
        .to
        .into_iter()
        .map(|to| to.operation.lowered())
        .collect();
    rule.when = fields
        .when
        .into_iter()
        .map(|when| {
            let mut condition = Condition::default();
            condition.key = when.key;
            condition.values = when.values;
            condition.not_values = when.not_values;
            condition
        })
        .collect();
    rule
}

/// One rule for each field that constrains; one without any, if there is none.
pub(super) fn single_fields(rule: &Rule) -> Vec<Rule> {
    let mut singles = Vec::new();
    for source in rule.from.iter().flat_map(Fields::single) {
        let mut single = Rule::default();
        single.from = vec![source];
        singles.push(single);
    }
    for operation in rule.to.iter().flat_map(Fields::single) {
        let mut single = Rule::default();
        single.to = vec![operation];
        singles.push(single);
    }
    for condition in &rule.when {
        let mut halves = [condition.clone(), condition.clone()];
        halves[0].not_values.clear();
        halves[1].values.clear();
        for half in halves {
            if !(half.values.is_empty() && half.not_values.is_empty()) {
                let mut single = Rule::default();
                single.when = vec![half];
                singles.push(single);
            }
        }
    }
    singles
}
