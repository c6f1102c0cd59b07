//! `/explain`: what would happen to a connection or a request, and why.

mod inbound;
mod outbound;
mod policies;
mod text;

use std::sync::Arc;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::query::{BadParameter, Query};
use super::{Admin, Subject};
use crate::WorkloadId;
use crate::mesh::MeshInner;
use crate::node::NodeInner;
use policies::Told;

const KNOWN: &str = "to, from, source_ip, method, path, host, header (inbound), connect (outbound), workload, format";

/// Answers the question in `query`; beside it whether the question asked for JSON, if it said.
pub(super) fn answer(
    admin: &Admin,
    node: Arc<NodeInner>,
    query: &str,
) -> Result<(Explained, Option<bool>), BadParameter> {
    let mut query = Query::parse(query)?;
    let json = match query.take("format")?.as_deref() {
        None => None,
        Some("json") => Some(true),
        Some("text") => Some(false),
        Some(_) => return Err(BadParameter::new("format", "json or text")),
    };
    let subject = Subject::find(admin, node, query.take("workload")?)?;
    let connect = query.take("connect")?;
    let to = query.take("to")?;
    let explained = match (connect, to) {
        (Some(connect), None) => {
            let question = outbound::Question::read(&connect)?;
            query.finish(KNOWN)?;
            question.answer(&subject)
        }
        (None, Some(to)) => {
            let question = inbound::Question::read(&to, &mut query)?;
            query.finish(KNOWN)?;
            question.answer(&subject)
        }
        (Some(_), Some(_)) => {
            return Err(BadParameter::new("connect", "not to be beside `to`"));
        }
        (None, None) => {
            return Err(BadParameter::new(
                "to",
                "a port or ip:port, for an inbound connection; or connect=<host>:<port>, for an outbound one",
            ));
        }
    };
    Ok((explained, json))
}

impl Subject {
    fn find(
        admin: &Admin,
        node: Arc<NodeInner>,
        named: Option<String>,
    ) -> Result<Self, BadParameter> {
        let mut meshes = node.meshes();
        let is = |mesh: &MeshInner, id: &WorkloadId| mesh.id == *id;
        let mesh = match (named, &admin.workload) {
            (Some(named), _) => meshes.iter().find(|mesh| mesh.id.to_string() == named),
            (None, Some(id)) => meshes.iter().find(|mesh| is(mesh, id)),
            (None, None) if meshes.len() == 1 => meshes.first(),
            (None, None) => None,
        };
        if let Some(mesh) = mesh.cloned() {
            return Ok(Self { node, mesh });
        }
        meshes.sort_by_cached_key(|mesh| mesh.id.to_string());
        let mut names: Vec<_> = meshes.iter().map(|mesh| mesh.id.to_string()).collect();
        names.dedup();
        let more = names.len().saturating_sub(NAMES);
        names.truncate(NAMES);
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(BadParameter::new(
            "workload",
            format_args!("one of {}{more}", names.join(", ")),
        ))
    }
}

/// How many workloads an error names.
const NAMES: usize = 20;

/// An answer: a verdict, what it rests on, and each step on the way there.
#[derive(Debug)]
pub(super) struct Explained {
    direction: &'static str,
    allowed: bool,
    verdict: String,
    facts: Vec<(&'static str, Fact)>,
    steps: Vec<Step>,
    told: Option<Told>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Fact {
    Text(String),
    Number(usize),
    List(Vec<String>),
}

/// One thing that was checked.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    passes: bool,
    reason: String,
}

impl Step {
    fn new(step: &'static str, passes: bool, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self {
            step,
            passes,
            reason,
        }
    }
}

impl Serialize for Explained {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("direction", self.direction)?;
        map.serialize_entry("allowed", &self.allowed)?;
        map.serialize_entry("verdict", &self.verdict)?;
        for (name, fact) in &self.facts {
            map.serialize_entry(name, fact)?;
        }
        map.serialize_entry("steps", &self.steps)?;
        if let Some(told) = &self.told {
            let (policies, truncated) = told.to_json();
            map.serialize_entry("decidedBy", &told.decided_by())?;
            map.serialize_entry("policies", &policies)?;
            map.serialize_entry("truncated", &truncated)?;
        }
        map.end()
    }
}

/// What every answer begins with.
fn about(subject: &Subject) -> Vec<(&'static str, Fact)> {
    let mesh = &subject.mesh;
    let identity = mesh.identity();
    let mut facts = vec![
        ("workload", Fact::Text(mesh.id.to_string())),
        ("identity", Fact::Text(identity.to_string())),
    ];
    let snapshot = subject.node.snapshot.load();
    let record = mesh.record(&snapshot).and_then(|record| record.identity());
    if let Some(expected) = record.filter(|expected| **expected != identity) {
        let expected = format!(
            "{expected}: peers expect it of the record, and refuse a certificate of another"
        );
        facts.push(("recordIdentity", Fact::Text(expected)));
    }
    facts
}

fn no_record(direction: &'static str, subject: &Subject, near: &[Arc<str>]) -> Explained {
    let id = &subject.mesh.id;
    let reason = match near {
        [] => format!("the configuration has no workload {id}"),
        near => format!(
            "the configuration has no workload {id}; near it: {}",
            near.join(", ")
        ),
    };
    Explained {
        direction,
        allowed: false,
        verdict: format!("REFUSED: {reason}"),
        facts: about(subject),
        steps: vec![Step::new("record", false, reason)],
        told: None,
    }
}
