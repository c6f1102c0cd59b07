//! What is known of each client: for pages such as istiod's `/debug/syncz`.

use std::fmt;

use mesh_authz::Identity;
use mesh_authz::policy::PolicyName;

/// A client that has a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientStatus {
    pub(super) id: u64,
    pub(super) identity: Identity,
    pub(super) node_id: String,
    pub(super) version: Option<String>,
    pub(super) features: Features,
    pub(super) delta: bool,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) health: Option<Result<(), String>>,
}

/// What a node says that it is and can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) generator: Option<String>,
    pub(super) hbone: bool,
    pub(super) of_client: Vec<String>,
}

impl ClientStatus {
    /// A number that no other stream of this server has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who it proved to be.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The id of its node, `<type>~<address>~<name>.<namespace>~<domain>`; empty before the first request.
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// What it says its version is: the node's metadata `ISTIO_VERSION`, else its build or user agent.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The type of its node, `sidecar` or `ztunnel` mostly: the first part of the node's id.
    pub fn node_type(&self) -> &str {
        let of_id = self.node_id.split_once('~');
        of_id.map_or("", |(node_type, _)| node_type)
    }

    /// Which form of resources it asks for: the node's metadata `GENERATOR`, up to 256 characters. With `grpc` it
    /// gets inbound listeners.
    pub fn generator(&self) -> Option<&str> {
        self.features.generator.as_deref()
    }

    /// Whether it is reached by HBONE, as it says: the node's metadata `ENABLE_HBONE`.
    pub fn hbone(&self) -> bool {
        self.features.hbone
    }

    /// What its xDS client can do, as it says: the node's `client_features`, the first 32, each up to 256
    /// characters.
    pub fn client_features(&self) -> &[String] {
        &self.features.of_client
    }

    /// Whether it is sent changes, rather than the state of the world.
    pub fn is_delta(&self) -> bool {
        self.delta
    }

    /// How its application is, as it reported last: with what is wrong, if something is. `None` before the
    /// first report.
    pub fn health(&self) -> Option<Result<(), &str>> {
        let health = self.health.as_ref()?;
        Some(health.as_ref().copied().map_err(String::as_str))
    }

    /// What it asked for, by type.
    pub fn subscriptions(&self) -> &[Subscription] {
        &self.subscriptions
    }
}

/// What a client asked for of one type, and what it said to what it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscription {
    pub(super) type_url: String,
    pub(super) everything: bool,
    pub(super) names: usize,
    pub(super) responses: u64,
    pub(super) sent: Option<String>,
    pub(super) acknowledged: Option<String>,
    pub(super) refusal: Option<Refusal>,
}

impl Subscription {
    pub(super) fn new(url: &str) -> Self {
        Self {
            type_url: url.to_owned(),
            everything: false,
            names: 0,
            responses: 0,
            sent: None,
            acknowledged: None,
            refusal: None,
        }
    }

    /// The type.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// Whether it asked for all there is, rather than by name.
    pub fn everything(&self) -> bool {
        self.everything
    }

    /// How many names it asked for.
    pub fn names(&self) -> usize {
        self.names
    }

    /// How many responses it was sent.
    pub fn responses(&self) -> u64 {
        self.responses
    }

    /// The version that it was sent and has not answered yet.
    pub fn pending(&self) -> Option<&str> {
        self.sent.as_deref()
    }

    /// The last version that it acknowledged.
    pub fn acknowledged(&self) -> Option<&str> {
        self.acknowledged.as_deref()
    }

    /// Its refusal, if it refused the last version that it answered.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }
}

/// That a client refused a version. It may have applied the parts that it understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    version: String,
    text: String,
}

impl Refusal {
    pub(super) fn new(version: String, text: String) -> Self {
        Self { version, text }
    }

    /// The version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What it said, up to 4 KiB.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A policy that nobody is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    pub(super) policy: PolicyName,
    pub(super) reason: &'static str,
    pub(super) binds: bool,
}

impl Withheld {
    /// The policy.
    pub fn policy(&self) -> &PolicyName {
        &self.policy
    }

    /// Why nobody is sent it.
    pub fn reason(&self) -> &str {
        self.reason
    }

    /// Whether it would bind connections or requests: it is not enforced, and somebody may think it is.
    pub fn binds(&self) -> bool {
        self.binds
    }
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "policy {} is sent to nobody: {}",
            self.policy, self.reason
        )
    }
}
