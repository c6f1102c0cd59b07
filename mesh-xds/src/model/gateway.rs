//! Gateways of the Gateway API; waypoints are Gateways.

use std::sync::Arc;

use super::ObjectName;

/// A Gateway of the Gateway API; waypoints are Gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    name: ObjectName,
    class_name: Arc<str>,
    listeners: Vec<Listener>,
    addresses: Vec<Arc<str>>,
    waypoint_for: WaypointFor,
}

impl Gateway {
    /// Makes a gateway without listeners.
    pub fn new(name: ObjectName, class_name: impl Into<Arc<str>>) -> Self {
        Self {
            name,
            class_name: class_name.into(),
            listeners: Vec::new(),
            addresses: Vec::new(),
            waypoint_for: Default::default(),
        }
    }

    /// Sets [`listeners`](Self::listeners).
    #[must_use]
    pub fn with_listeners(mut self, listeners: Vec<Listener>) -> Self {
        self.listeners = listeners;
        self
    }

    /// Sets [`addresses`](Self::addresses).
    #[must_use]
    pub fn with_addresses(mut self, addresses: Vec<Arc<str>>) -> Self {
        self.addresses = addresses;
        self
    }

    /// Sets [`waypoint_for`](Self::waypoint_for).
    #[must_use]
    pub fn with_waypoint_for(mut self, waypoint_for: WaypointFor) -> Self {
        self.waypoint_for = waypoint_for;
        self
    }

    /// Namespace and name.
    pub fn name(&self) -> &ObjectName {
        &self.name
    }

    /// Its GatewayClass, for example `istio-waypoint`.
    pub fn class_name(&self) -> &str {
        &self.class_name
    }

    /// Its listeners.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The addresses and hostnames that it was given.
    pub fn addresses(&self) -> &[Arc<str>] {
        &self.addresses
    }

    /// What a waypoint serves (`istio.io/waypoint-for`). Default: services.
    pub fn waypoint_for(&self) -> WaypointFor {
        self.waypoint_for
    }
}

/// What a waypoint serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum WaypointFor {
    /// Traffic addressed to services.
    #[default]
    Service,
    /// Traffic addressed to workloads.
    Workload,
    /// Both.
    All,
    /// Nothing.
    None,
}

/// One listener of a Gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    name: Arc<str>,
    port: u16,
    protocol: Arc<str>,
    hostname: Option<Arc<str>>,
    allowed_namespaces: AllowedNamespaces,
}

impl Listener {
    /// Makes a listener for every host.
    pub fn new(name: impl Into<Arc<str>>, port: u16, protocol: impl Into<Arc<str>>) -> Self {
        Self {
            name: name.into(),
            port,
            protocol: protocol.into(),
            hostname: None,
            allowed_namespaces: AllowedNamespaces::default(),
        }
    }

    /// Sets [`hostname`](Self::hostname).
    #[must_use]
    pub fn with_hostname(mut self, hostname: impl Into<Arc<str>>) -> Self {
        self.hostname = Some(hostname.into());
        self
    }

    /// Sets [`allowed_namespaces`](Self::allowed_namespaces).
    #[must_use]
    pub fn with_allowed_namespaces(mut self, allowed_namespaces: AllowedNamespaces) -> Self {
        self.allowed_namespaces = allowed_namespaces;
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its protocol, for example `HTTP` or `HBONE`.
    pub fn protocol(&self) -> &str {
        &self.protocol
    }

    /// The host it serves; every host when unset.
    pub fn hostname(&self) -> Option<&str> {
        self.hostname.as_deref()
    }

    /// Where its routes may be. Default: its own namespace.
    pub fn allowed_namespaces(&self) -> &AllowedNamespaces {
        &self.allowed_namespaces
    }
}

/// The namespaces whose routes may attach to a listener.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AllowedNamespaces {
    /// The Gateway's own.
    #[default]
    Same,
    /// All.
    All,
    /// These, in order: those that the listener's selector chose.
    Selected(Vec<Arc<str>>),
}
