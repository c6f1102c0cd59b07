use std::fmt;

use crate::attributes::{Attribute, Attributes, RequestAttributes};
use crate::engine::evaluate::{self, Lean, View};
use crate::policy::{Expr, Matcher, SECRETS};

/// Longest value of an attribute that is told, in characters.
const SHOWN: usize = 120;

/// Whether one condition held, and why.
#[derive(Debug, Clone)]
pub struct Condition {
    outcome: Option<bool>,
    text: String,
    parts: Vec<Condition>,
}

impl Condition {
    pub(super) fn new(expr: &Expr, attributes: &Attributes<'_>, view: View, lean: Lean) -> Self {
        let each = |parts: &[Expr]| -> Vec<Self> {
            parts
                .iter()
                .map(|part| Self::new(part, attributes, view, lean))
                .collect()
        };
        match expr {
            Expr::All(parts) => {
                let parts = each(parts);
                let text = if parts.is_empty() { "always" } else { "all of" };
                Self {
                    outcome: all(&parts, true),
                    text: text.to_owned(),
                    parts,
                }
            }
            Expr::Any(parts) => {
                let parts = each(parts);
                let text = if parts.is_empty() { "never" } else { "any of" };
                Self {
                    outcome: all(&parts, false).map(|none| !none),
                    text: text.to_owned(),
                    parts,
                }
            }
            Expr::Not(part) => {
                let part = Self::new(part, attributes, view, lean.turned());
                Self {
                    outcome: part.outcome.map(|outcome| !outcome),
                    text: "not".to_owned(),
                    parts: vec![part],
                }
            }
            Expr::Is(matcher) => Self {
                outcome: evaluate::is(matcher, attributes, view, lean),
                text: format!(
                    "{} ({})",
                    matcher.without_secrets(),
                    actual(matcher, attributes, view)
                ),
                parts: Vec::new(),
            },
        }
    }

    /// Whether it held; `None` where an attribute that it asks for is not known.
    pub fn outcome(&self) -> Option<bool> {
        self.outcome
    }

    /// What was asked for, and what there was.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The conditions that it combines.
    pub fn parts(&self) -> &[Condition] {
        &self.parts
    }

    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, indent: usize) -> fmt::Result {
        let outcome = match self.outcome {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        writeln!(f, "{:indent$}{outcome}: {}", "", self.text)?;
        for part in &self.parts {
            part.write(f, indent + 2)?;
        }
        Ok(())
    }
}

/// Whether all parts are `wanted`, three-valued.
fn all(parts: &[Condition], wanted: bool) -> Option<bool> {
    let mut result = Some(true);
    for part in parts {
        match part.outcome {
            Some(outcome) if outcome == wanted => {}
            Some(_) => return Some(false),
            None => result = None,
        }
    }
    result
}

/// What the matcher's attribute is.
fn actual(matcher: &Matcher, attributes: &Attributes<'_>, view: View) -> String {
    let it_is = |value: &str| {
        let shown: String = value.chars().take(SHOWN).collect();
        let more = if shown.len() < value.len() { "…" } else { "" };
        format!("it is {:?}{more}", shown)
    };
    let identity = |part: fn(&crate::Identity) -> &str| match attributes.identity {
        Attribute::Present(identity) => it_is(part(identity)),
        Attribute::Absent => "the peer has no identity".to_owned(),
        Attribute::Unknown => "not known yet".to_owned(),
    };
    let request = |tell: &dyn Fn(&RequestAttributes<'_>) -> String| match evaluate::request_of(
        attributes, view,
    ) {
        Attribute::Present(request) => tell(request),
        Attribute::Absent => "there is no request".to_owned(),
        Attribute::Unknown => "only a request can tell".to_owned(),
    };
    match matcher {
        Matcher::Principal(_) => identity(|id| id.principal()),
        Matcher::Namespace(_) => identity(|id| id.namespace()),
        Matcher::ServiceAccount { .. } => identity(|id| id.principal()),
        Matcher::TrustDomain(_) => identity(|id| id.trust_domain()),
        Matcher::SourceIp(_) => format!("it is {}", attributes.source.ip()),
        Matcher::DestinationIp(_) => format!("it is {}", attributes.destination.ip()),
        Matcher::DestinationPort(_) => format!("it is {}", attributes.destination.port()),
        Matcher::Sni(_) => match attributes.sni {
            Attribute::Present(sni) => it_is(sni),
            Attribute::Absent => "there is none".to_owned(),
            Attribute::Unknown => "not known yet".to_owned(),
        },
        Matcher::RemoteIp(_) => match evaluate::remote_ip(attributes, view) {
            Some(ip) => format!("it is {ip}"),
            None => "only a request can tell".to_owned(),
        },
        Matcher::Host(_) => request(&|request| match request.host {
            Some(host) => it_is(host),
            None => "there is none".to_owned(),
        }),
        Matcher::Method(_) => request(&|request| it_is(request.method.as_str())),
        Matcher::Path(_) => request(&|request| it_is(request.path())),
        Matcher::Header { name, .. } => request(&|request| {
            let values: Vec<String> = request
                .headers
                .get_all(name)
                .iter()
                .map(|value| {
                    if value.is_sensitive() || SECRETS.contains(name) {
                        "it is a secret".to_owned()
                    } else {
                        it_is(&String::from_utf8_lossy(value.as_bytes()))
                    }
                })
                .collect();
            match values.len() {
                0 => "there is none".to_owned(),
                _ => values.join(", "),
            }
        }),
        Matcher::RequestPrincipal { .. }
        | Matcher::Audience(_)
        | Matcher::Presenter(_)
        | Matcher::Claim { .. } => "there is no verified token".to_owned(),
        Matcher::EnvoyMetadata { .. } => "there is none outside Envoy".to_owned(),
    }
}
