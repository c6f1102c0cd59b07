//! What every Kubernetes object has, and how labels choose.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_authz::Identity;

use crate::file::cursor::{Cursor, Fields, Result};

/// Labels or annotations.
pub(crate) type Labels = BTreeMap<Arc<str>, Arc<str>>;

/// The part of `metadata` that has a meaning here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meta {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    /// `creationTimestamp`; sorts as time does. Objects without one count as the oldest.
    pub(crate) created: Arc<str>,
    pub(crate) deleting: bool,
    pub(crate) generated_name: bool,
    pub(crate) controller: Option<Owner>,
    /// The annotation [`HBONE_PORT_ANNOTATION`].
    pub(crate) hbone_port: Option<u16>,
}

/// On a Pod or a WorkloadEntry: the port of its HBONE listener where that is not 15008, as for
/// several workloads on one machine. Implies that it takes HBONE itself.
///
/// The key has no prefix because it is nobody's but the user's own: Istio does not know it.
pub(crate) const HBONE_PORT_ANNOTATION: &str = "hbone-port";

/// The controller that made an object.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) kind: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Meta {
    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(|value| &**value)
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(|value| &**value)
    }

    /// Reads `metadata` of an object that lives in a namespace, or of one that does not.
    pub(crate) fn read(at: &Cursor<'_>, namespaced: bool) -> Result<Self> {
        let mut fields = at.fields()?;
        let (namespace, name) = names(&mut fields, namespaced)?;
        let mut controller = None;
        for owner in fields.list("ownerReferences", |owner| Ok(owner.clone()))? {
            let mut owner = owner.fields()?;
            if owner.map("controller", Cursor::bool)? == Some(true) {
                controller = Some(Owner {
                    kind: owner.text("kind")?,
                    name: owner.text("name")?,
                });
            }
        }
        let mut hbone_port = None;
        if let Some(annotations) = fields.get("annotations") {
            for (key, value) in annotations.entries()? {
                if **key == *HBONE_PORT_ANNOTATION {
                    let port = value.parse("a port from 1 to 65535 in quotes")?;
                    if port == 0 {
                        return Err(value.invalid("expected a port from 1 to 65535, found 0"));
                    }
                    hbone_port = Some(port);
                }
            }
        }
        Ok(Self {
            hbone_port,
            namespace,
            name,
            labels: fields.map("labels", labels)?.unwrap_or_default(),
            annotations: fields.map("annotations", labels)?.unwrap_or_default(),
            created: fields.text("creationTimestamp")?,
            deleting: fields.get("deletionTimestamp").is_some(),
            generated_name: !fields.text("generateName")?.is_empty(),
            controller,
        })
    }
}

impl Meta {
    /// Labels and annotations as far as they can be read, of `metadata` that was refused.
    pub(crate) fn read_partly(at: &Cursor<'_>) -> Result<Self> {
        let mut fields = at.fields()?;
        Ok(Self {
            labels: fields
                .get("labels")
                .as_ref()
                .map_or_else(Labels::new, readable),
            annotations: fields
                .get("annotations")
                .as_ref()
                .map_or_else(Labels::new, readable),
            ..Self::default()
        })
    }
}

/// The texts of a mapping. What is no text is there and empty, so that nothing that asks for a certain
/// value has it, and what is asked to be absent is not.
fn readable(at: &Cursor<'_>) -> Labels {
    let entries = at.entries().unwrap_or_default().into_iter();
    entries
        .map(|(key, value)| (Arc::clone(key), value.text().unwrap_or_default()))
        .collect()
}

/// Namespace and name. An object that needs a namespace and names none is in `default`, as with kubectl.
pub(crate) fn names(fields: &mut Fields<'_>, namespaced: bool) -> Result<(Arc<str>, Arc<str>)> {
    let name = object_name(&fields.need("name")?)?;
    let namespace = match fields.get("namespace") {
        Some(namespace) if namespaced => object_name(&namespace)?,
        None if namespaced => "default".into(),
        _ => Arc::default(),
    };
    Ok((namespace, name))
}

/// Refuses a service account of which no identity could be made.
pub(crate) fn check_account(at: &Cursor<'_>, namespace: &str, account: &str) -> Result<()> {
    // The trust domain is a setting, and right or wrong for all objects alike.
    Identity::new("cluster.local", namespace, account)
        .map(drop)
        .map_err(|error| at.invalid(format_args!("no identity can be made of it: {error}")))
}

/// A mapping of texts.
pub(crate) fn labels(at: &Cursor<'_>) -> Result<Labels> {
    at.entries()?
        .into_iter()
        .map(|(key, value)| {
            let value = if value.is_null() {
                Arc::default()
            } else {
                value.text()?
            };
            Ok((Arc::clone(key), value))
        })
        .collect()
}

/// A name that can stand between the slashes of a resource's name.
fn object_name(at: &Cursor<'_>) -> Result<Arc<str>> {
    let name = at.nonempty()?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':');
    if name.len() > 253 || !name.bytes().all(fits) {
        return Err(at.invalid(format_args!(
            "expected a name of at most 253 letters, digits, '-' and '.', found {name:?}"
        )));
    }
    Ok(name)
}

/// Whether all labels of a selector are there. An empty selector chooses nothing here.
pub(crate) fn selects(selector: &Labels, labels: &Labels) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// `{matchLabels, matchExpressions}` of Kubernetes.
#[derive(Debug, Clone, Default)]
pub(crate) struct LabelSelector {
    labels: Labels,
    expressions: Vec<Expression>,
}

#[derive(Debug, Clone)]
struct Expression {
    key: Arc<str>,
    operator: Operator,
    values: Vec<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl LabelSelector {
    pub(crate) fn read(at: &Cursor<'_>) -> Result<Self> {
        let mut fields = at.fields()?;
        let selector = Self {
            labels: fields.map("matchLabels", labels)?.unwrap_or_default(),
            expressions: fields.list("matchExpressions", |at| {
                let mut fields = at.fields()?;
                let expression = Expression {
                    key: fields.need("key")?.nonempty()?,
                    operator: fields.need("operator")?.one_of(&[
                        ("In", Operator::In),
                        ("NotIn", Operator::NotIn),
                        ("Exists", Operator::Exists),
                        ("DoesNotExist", Operator::DoesNotExist),
                    ])?,
                    values: fields.texts("values")?,
                };
                fields.finish()?;
                Ok(expression)
            })?,
        };
        fields.finish()?;
        Ok(selector)
    }

    /// Chooses nothing.
    pub(crate) fn nothing() -> Self {
        Self {
            labels: Labels::new(),
            expressions: vec![Expression {
                key: Arc::default(),
                operator: Operator::In,
                values: Vec::new(),
            }],
        }
    }

    /// Whether the labels are chosen; an empty selector chooses all, as Kubernetes has it.
    pub(crate) fn matches(&self, labels: &Labels) -> bool {
        self.labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| {
                let value = labels.get(&expression.key);
                let listed = value.is_some_and(|value| expression.values.contains(value));
                match expression.operator {
                    Operator::In => listed,
                    Operator::NotIn => !listed,
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }
}
