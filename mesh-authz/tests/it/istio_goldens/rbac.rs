//! Reads Envoy's RBAC filter as istiod writes it, and evaluates it: enough of it for the files.
//! (`envoy.config.rbac.v3`.)

use std::collections::BTreeMap;
use std::net::IpAddr;

use mesh_authz::Attribute;
use serde_json::Value;

use super::attributes::Sample;
use crate::interpreter::template_matches;

pub(super) struct Filter {
    action: String,
    policies: BTreeMap<String, (Node, Node)>,
}

/// A permission or a principal.
#[derive(Debug)]
pub(super) enum Node {
    Any(bool),
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    Principal(Text),
    Header(String, Option<Text>),
    Path(Text),
    Template(String),
    Port(u16),
    DestinationIp(Block),
    SourceIp(Block),
    RemoteIp(Block),
    Sni(Text),
    /// No filter writes any here.
    Metadata,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) address: IpAddr,
    length: u8,
}

#[derive(Debug)]
pub(super) struct Text {
    pub(super) form: Form,
    ignore_case: bool,
}

#[derive(Debug)]
pub(super) enum Form {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Regex(String),
}

pub(super) fn parse(text: &str) -> Filter {
    let value: Value = serde_saphyr::from_str(text).unwrap();
    let rules = &value["typedConfig"]["rules"];
    let mut policies = BTreeMap::new();
    for (name, policy) in rules["policies"].as_object().into_iter().flatten() {
        let or =
            |list: &Value| Node::Or(list.as_array().unwrap().iter().map(Node::parse).collect());
        policies.insert(
            name.clone(),
            (or(&policy["permissions"]), or(&policy["principals"])),
        );
    }
    Filter {
        action: rules["action"].as_str().unwrap_or("ALLOW").to_owned(),
        policies,
    }
}

impl Filter {
    pub(super) fn allows(&self, sample: &Sample) -> bool {
        let any = || {
            self.policies
                .values()
                .any(|(permission, principal)| matches((permission, principal), sample))
        };
        match self.action.as_str() {
            "ALLOW" => any(),
            "DENY" => !any(),
            "LOG" => true,
            other => panic!("{other}"),
        }
    }

    pub(super) fn policy(&self, id: &str) -> Option<(&Node, &Node)> {
        self.policies
            .get(id)
            .map(|(permission, principal)| (permission, principal))
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.policies
            .values()
            .flat_map(|(permission, principal)| [permission, principal])
    }
}

pub(super) fn matches((permission, principal): (&Node, &Node), sample: &Sample) -> bool {
    permission.matches(sample) && principal.matches(sample)
}

/// The parts that istiod joins with and: one for each field, but for those that ask for nothing.
pub(super) fn conjuncts<'a>((permission, principal): (&'a Node, &'a Node)) -> Vec<&'a Node> {
    let mut found = Vec::new();
    for side in [permission, principal] {
        let Node::Or(alternatives) = side else {
            panic!("{side:?}")
        };
        for alternative in alternatives {
            let Node::And(parts) = alternative else {
                panic!("{alternative:?}")
            };
            found.extend(parts.iter().filter(|part| !matches!(part, Node::Any(true))));
        }
    }
    found
}

impl Node {
    fn parse(value: &Value) -> Self {
        let (kind, value) = value.as_object().unwrap().iter().next().unwrap();
        let list = |name: &str| {
            value[name]
                .as_array()
                .unwrap()
                .iter()
                .map(Self::parse)
                .collect()
        };
        match kind.as_str() {
            "any" => Self::Any(value.as_bool().unwrap()),
            "andRules" => Self::And(list("rules")),
            "andIds" => Self::And(list("ids")),
            "orRules" => Self::Or(list("rules")),
            "orIds" => Self::Or(list("ids")),
            "notRule" | "notId" => Self::Not(Box::new(Self::parse(value))),
            "authenticated" => Self::Principal(Text::parse(&value["principalName"])),
            "header" => {
                let text = value.get("stringMatch").map(Text::parse);
                assert!(text.is_some() || value["presentMatch"] == true);
                Self::Header(value["name"].as_str().unwrap().to_lowercase(), text)
            }
            "urlPath" => Self::Path(Text::parse(&value["path"])),
            "uriTemplate" => {
                let template = value["typedConfig"]["pathTemplate"].as_str().unwrap();
                let one = regex::Regex::new(r"\*+").unwrap();
                Self::Template(one.replace_all(template, "{$0}").into_owned())
            }
            "destinationPort" => Self::Port(value.as_u64().unwrap().try_into().unwrap()),
            "destinationIp" => Self::DestinationIp(Block::parse(value)),
            "directRemoteIp" => Self::SourceIp(Block::parse(value)),
            "remoteIp" => Self::RemoteIp(Block::parse(value)),
            "requestedServerName" => Self::Sni(Text::parse(value)),
            "metadata" => Self::Metadata,
            other => panic!("{other}"),
        }
    }

    pub(super) fn matches(&self, sample: &Sample) -> bool {
        match self {
            Self::Any(any) => *any,
            Self::And(parts) => parts.iter().all(|part| part.matches(sample)),
            Self::Or(parts) => parts.iter().any(|part| part.matches(sample)),
            Self::Not(part) => !part.matches(sample),
            Self::Principal(text) => match &sample.connection.identity {
                Attribute::Present(identity) => text.matches(&identity.to_string()),
                _ => false,
            },
            Self::Header(name, text) => {
                let request = &sample.request;
                let value = match name.as_str() {
                    ":authority" => request.host.as_deref(),
                    ":method" => Some(request.method.as_str()),
                    name => request
                        .headers
                        .get(name)
                        .map(|value| value.to_str().unwrap()),
                };
                value.is_some_and(|value| text.as_ref().is_none_or(|text| text.matches(value)))
            }
            Self::Path(text) => text.matches(sample.path()),
            Self::Template(template) => template_matches(template, sample.path()),
            Self::Port(port) => sample.connection.destination.port() == *port,
            Self::DestinationIp(block) => block.holds(sample.connection.destination.ip()),
            Self::SourceIp(block) => block.holds(sample.connection.source.ip()),
            Self::RemoteIp(block) => block.holds(sample.remote_ip()),
            Self::Sni(text) => match &sample.connection.sni {
                Attribute::Present(sni) => text.matches(sni),
                // Envoy compares the empty name.
                _ => text.matches(""),
            },
            Self::Metadata => false,
        }
    }
}

impl Block {
    fn parse(value: &Value) -> Self {
        Self {
            address: value["addressPrefix"].as_str().unwrap().parse().unwrap(),
            length: value["prefixLen"].as_u64().unwrap().try_into().unwrap(),
        }
    }

    fn holds(&self, ip: IpAddr) -> bool {
        let net = ipnet::IpNet::new(self.address, self.length).unwrap();
        crate::interpreter::in_block(&net, ip)
    }
}

impl Text {
    fn parse(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        let form = if let Some(text) = text("exact") {
            Form::Exact(text)
        } else if let Some(text) = text("prefix") {
            Form::Prefix(text)
        } else if let Some(text) = text("suffix") {
            Form::Suffix(text)
        } else {
            Form::Regex(value["safeRegex"]["regex"].as_str().unwrap().to_owned())
        };
        Self {
            form,
            ignore_case: value["ignoreCase"] == true,
        }
    }

    fn matches(&self, value: &str) -> bool {
        let fold = |text: &str| match self.ignore_case {
            true => text.to_lowercase(),
            false => text.to_owned(),
        };
        let value = fold(value);
        match &self.form {
            Form::Exact(text) => value == fold(text),
            Form::Prefix(text) => value.starts_with(&fold(text)),
            Form::Suffix(text) => value.ends_with(&fold(text)),
            Form::Regex(text) => regex::Regex::new(&format!(r"\A(?:{text})\z"))
                .unwrap()
                .is_match(&value),
        }
    }
}
