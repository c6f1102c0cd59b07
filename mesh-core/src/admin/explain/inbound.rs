//! Connections and requests from others: the checks of the acceptor and of the layers, in their order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use mesh_authz::{Attribute, Attributes, Identity, RequestAttributes};

use super::{BadParameter, Explained, Fact, Query, Step, Subject, Told};
use crate::config::Asked as Wanted;
use crate::inbound::Judgement;
use crate::layers::{normalize, without_trailing_dot};
use crate::snapshot::{self, Snapshot, WorkloadRecord};

pub(super) struct Question {
    to: To,
    from: Option<Identity>,
    source: Option<IpAddr>,
    request: Option<Request>,
}

enum To {
    Port(u16),
    Addr(SocketAddr),
}

struct Request {
    method: Method,
    /// Normalised as the port's listener has it, if it can be.
    uri: Uri,
    is_normal: bool,
    host: Option<String>,
    headers: HeaderMap,
}

/// As many as a request through [`Admin::serve`](super::Admin::serve) may have itself.
const MAX_HEADERS: usize = 64;

impl Question {
    pub(super) fn read(to: &str, query: &mut Query) -> Result<Self, BadParameter> {
        let to = match (to.parse(), to.parse::<SocketAddr>()) {
            (Ok(port), _) if port != 0 => To::Port(port),
            (_, Ok(addr)) if addr.port() != 0 => To::Addr(addr),
            _ => return Err(BadParameter::new("to", "a port of 1 to 65535, or ip:port")),
        };
        let from = "spiffe://<trust domain>/ns/<namespace>/sa/<service account>, or plaintext";
        let from = match query.take("from")? {
            None => return Err(BadParameter::new("from", from)),
            Some(text) if text == "plaintext" => None,
            Some(text) => match Identity::parse(&text) {
                Ok(identity) => Some(identity),
                Err(error) => {
                    let expected = format_args!("{from}: {error}");
                    return Err(BadParameter::new("from", expected));
                }
            },
        };
        Ok(Self {
            to,
            from,
            source: query.parsed("source_ip", "an IP address")?,
            request: Request::read(query)?,
        })
    }

    pub(super) fn answer(self, subject: &Subject) -> Explained {
        let mesh = &subject.mesh;
        let snapshot = subject.node.snapshot.load();
        let Some(record) = mesh.record(&snapshot) else {
            let near = snapshot.names_near(mesh.id.namespace(), mesh.id.name());
            return super::no_record("inbound", subject, &near);
        };
        let mut asked = Asked::new(self, subject, &snapshot, record);
        asked.reach(subject, &snapshot, record);
        asked.known(subject);
        asked.listened(subject, &snapshot);
        asked.judge(subject)
    }
}

impl Request {
    /// `None` when nothing of a request is given.
    fn read(query: &mut Query) -> Result<Option<Self>, BadParameter> {
        let method = query.take("method")?;
        let path = query.take("path")?;
        let host = query.take("host")?;
        let given: Vec<String> = query.take_all("header").collect();
        if method.is_none() && path.is_none() && host.is_none() && given.is_empty() {
            return Ok(None);
        }
        let method = method.as_deref().unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| BadParameter::new("method", "an HTTP method, for example GET"))?;
        let path = path.as_deref().unwrap_or("/");
        let bad_path =
            || BadParameter::new("path", "/ and what a request target may have after it");
        let target = PathAndQuery::try_from(path).map_err(|_| bad_path())?;
        if !path.starts_with('/') {
            return Err(bad_path());
        }
        if let Some(host) = &host {
            let parsed = host.parse::<Authority>().ok();
            parsed
                .filter(|authority| !authority.as_str().contains('@'))
                .ok_or_else(|| BadParameter::new("host", "<name> or <name>:<port>"))?;
        }
        if given.len() > MAX_HEADERS {
            let expected = format_args!("at most {MAX_HEADERS} of them");
            return Err(BadParameter::new("header", expected));
        }
        let mut headers = HeaderMap::with_capacity(given.len());
        for header in given {
            let read = || {
                let (name, value) = header.split_once(':')?;
                let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
                Some((name, HeaderValue::from_str(value.trim()).ok()?))
            };
            let (name, value) =
                read().ok_or_else(|| BadParameter::new("header", "<name>:<value>"))?;
            headers.append(name, value);
        }
        Ok(Some(Self {
            method,
            uri: Uri::from(target),
            is_normal: false,
            host: host.map(|host| without_trailing_dot(&host).into_owned()),
            headers,
        }))
    }
}

/// Whose policies the port has, where a control plane may say.
fn own_listener(
    subject: &Subject,
    snapshot: &Snapshot,
    record: &WorkloadRecord,
    port: u16,
) -> Option<String> {
    if let Some(listener) = snapshot.inbound_listener(record, port) {
        return Some(match listener.closed() {
            Some(reason) => format!("closed, for the control plane's is not understood: {reason}"),
            None => "the control plane's: it has the policies of the port whole".to_owned(),
        });
    }
    let own = record.addresses().first()?;
    let asked = subject.node.board.listener(SocketAddr::new(*own, port))?;
    let reduced = "policies on requests count in their L4 reduction";
    Some(match asked {
        Wanted::Waiting => format!("none from the control plane yet: {reduced}"),
        Wanted::Absent => {
            format!("the control plane has none, for no Service names the port: {reduced}")
        }
        Wanted::Refused(why) => {
            format!("the control plane is not asked for it, {why}: {reduced}")
        }
    })
}

/// A question on its way through the checks.
struct Asked {
    question: Question,
    source: SocketAddr,
    destination: SocketAddr,
    listener: Option<Judgement>,
    facts: Vec<(&'static str, Fact)>,
    steps: Vec<Step>,
}

impl Asked {
    fn new(
        mut question: Question,
        subject: &Subject,
        snapshot: &Snapshot,
        record: &WorkloadRecord,
    ) -> Self {
        let destination = match question.to {
            To::Addr(addr) => addr,
            To::Port(port) => {
                let own = record.addresses().first().copied();
                let ip = own.or(subject.node.settings.bind);
                SocketAddr::new(ip.unwrap_or(Ipv4Addr::LOCALHOST.into()), port)
            }
        };
        let listener = {
            let ports = subject.mesh.ports();
            ports.get(&destination.port()).map(|port| port.judgement)
        };
        if let Some(request) = &mut question.request {
            let enforced = subject.mesh.enforcement.on(destination.port());
            let mode = enforced.load().path_normalization().unwrap_or_default();
            request.is_normal = normalize(&mut request.uri, mode).is_ok();
        }
        let mut facts = super::about(subject);
        let from = question.from.as_ref();
        let from = from.map_or_else(|| "plaintext".to_owned(), ToString::to_string);
        facts.push(("from", Fact::Text(from)));
        let source = match question.source {
            Some(ip) => ip.to_string(),
            None => "0.0.0.0 (not given)".to_owned(),
        };
        facts.push(("sourceIp", Fact::Text(source)));
        facts.push(("to", Fact::Text(destination.to_string())));
        if let Some(request) = &question.request {
            let line = format!("{} {}", request.method, request.uri);
            facts.push(("request", Fact::Text(line)));
            if let Some(host) = &request.host {
                facts.push(("host", Fact::Text(host.clone())));
            }
        }
        let service = snapshot.service_of_inbound(record, destination.port(), None, None);
        if let Some(service) = service {
            facts.push(("service", Fact::Text(service.name().to_string())));
        }
        let judged = own_listener(subject, snapshot, record, destination.port());
        facts.extend(judged.map(|fact| ("inboundListener", Fact::Text(fact))));
        let ip = question.source.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        Self {
            question,
            source: SocketAddr::new(ip, 0),
            destination,
            listener,
            facts,
            steps: Vec::new(),
        }
    }

    /// Whether it comes in at all, before policies are asked.
    fn reach(&mut self, subject: &Subject, snapshot: &Snapshot, record: &WorkloadRecord) {
        let settings = &subject.node.settings;
        let step = if self.question.from.is_none() {
            match settings.strict {
                true => Step::new("plaintext", false, "the mesh is built strict"),
                false => Step::new(
                    "plaintext",
                    true,
                    "the mesh is not built strict: policies decide",
                ),
            }
        } else {
            let own = record.addresses().first().copied().or(settings.bind);
            let own = own.unwrap_or(self.destination.ip());
            let authority = snapshot::Authority::Addr(self.destination);
            match snapshot.inbound(record, own, &authority) {
                Ok(inbound) => {
                    self.destination = SocketAddr::new(own, inbound.port());
                    Step::new("tunnel", true, "it asks for what this workload has")
                }
                Err(refusal) => Step::new("tunnel", false, refusal.to_string()),
            }
        };
        self.steps.push(step);
    }

    fn known(&mut self, subject: &Subject) {
        let missing = subject.mesh.missing_policies_on(self.destination.port());
        self.steps.push(if missing.is_empty() {
            let enforced = subject.mesh.enforcement.on(self.destination.port());
            let enforced = enforced.load();
            let count = enforced.policies().policies().len();
            Step::new("policies", true, format!("all of them are known: {count}"))
        } else {
            let wait = subject.node.settings.policy_wait;
            let missing = missing.join(", ");
            let reason = format!(
                "connections wait {wait:?} and are refused while these are missing: {missing}"
            );
            Step::new("policies", false, reason)
        });
    }

    fn listened(&mut self, subject: &Subject, snapshot: &Snapshot) {
        let port = self.destination.port();
        let settings = &subject.node.settings;
        let forwards = self.question.from.is_some()
            && settings.forwards_to(port, subject.mesh.hbone_port(snapshot));
        self.steps.push(match self.listener {
            Some(Judgement::PerRequest) => Step::new(
                "listener",
                true,
                format!("HTTP on port {port}: each request is judged"),
            ),
            Some(Judgement::L4) => Step::new(
                "listener",
                true,
                format!("TCP on port {port}: connections are judged, requests are not looked at"),
            ),
            None if forwards => Step::new(
                "listener",
                true,
                format!("none on port {port}: forwarded to that port of this host"),
            ),
            None if settings.forward_unlistened && self.question.from.is_some() => Step::new(
                "listener",
                false,
                format!("none on port {port}, a proxy's: tunnels are not forwarded to it"),
            ),
            None => Step::new("listener", false, format!("nothing listens on port {port}")),
        });
    }

    fn judge(mut self, subject: &Subject) -> Explained {
        let enforced = subject.mesh.enforcement.on(self.destination.port());
        let enforced = enforced.load();
        let set = enforced.policies();
        let from = self.question.from.clone();
        let attributes = Attributes::new(self.source, self.destination)
            .with_identity(Attribute::from(from.as_ref()));
        // Where nothing listens, as what the question is about.
        let by_request = match self.listener {
            Some(judgement) => judgement == Judgement::PerRequest,
            None => self.question.request.is_some(),
        };
        let told = match self.question.request.take() {
            _ if !by_request => {
                let told = set.explain_l4(&attributes);
                let reason = set.evaluate_l4(&attributes).to_string();
                self.steps
                    .push(Step::new("connection", told.is_allowed(), reason));
                told
            }
            None => {
                let decision = set.could_allow(&attributes);
                let reason = if decision.is_allowed() {
                    "some request could be allowed: each is judged on its own".to_owned()
                } else {
                    format!("no request could be allowed: {decision}")
                };
                self.steps
                    .push(Step::new("connection", decision.is_allowed(), reason));
                set.explain_could_allow(&attributes)
            }
            Some(mut request) => {
                let decision = set.could_allow(&attributes);
                self.steps.push(Step::new(
                    "connection",
                    decision.is_allowed(),
                    decision.to_string(),
                ));
                let Request {
                    method,
                    uri,
                    is_normal,
                    host,
                    headers,
                } = &mut request;
                if !*is_normal {
                    let reason = "it cannot be normalised: 400";
                    self.steps.push(Step::new("path", false, reason));
                }
                let refused = enforced.tokens().check(method, uri, headers).is_err();
                self.steps.push(if refused {
                    Step::new(
                        "token",
                        false,
                        "it carries a token, and tokens are not verified yet: 401",
                    )
                } else {
                    Step::new("token", true, "none where tokens are looked for")
                });
                let facts = RequestAttributes::new(method, host.as_deref(), uri.path(), headers);
                // As the layer has it that judges requests.
                let attributes = attributes.with_sni(Attribute::Absent).with_request(facts);
                let decision = set.evaluate(&attributes);
                self.steps.push(Step::new(
                    "request",
                    decision.is_allowed(),
                    decision.to_string(),
                ));
                set.explain(&attributes)
            }
        };
        self.conclude(subject, told)
    }

    fn conclude(self, subject: &Subject, told: mesh_authz::Explanation) -> Explained {
        let refused = self.steps.iter().find(|step| !step.passes);
        let from = self.question.from.as_ref();
        let from = from.map_or_else(|| "plaintext".to_owned(), ToString::to_string);
        let verdict = if refused.is_none() {
            "ALLOWED"
        } else {
            "DENIED"
        };
        let why = refused
            .or(self.steps.last())
            .map_or("", |step| &step.reason);
        Explained {
            direction: "inbound",
            allowed: refused.is_none(),
            verdict: format!(
                "{verdict}: {from} to {} of {}: {why}",
                self.destination, subject.mesh.id
            ),
            facts: self.facts,
            steps: self.steps,
            told: Some(Told::new(told)),
        }
    }
}
