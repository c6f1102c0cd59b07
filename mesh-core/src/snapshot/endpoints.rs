//! The endpoints of one service, kept so that one is chosen in O(log n) whatever the preference.
//!
//! Endpoints are sorted by what the service's routing preference compares, most important first, so
//! those that have the first k scopes in common with a client stand next to each other: ranking is a
//! few searches in one tree, done once until the endpoints change, and a weighted choice one descent.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use mesh_xds::model::{Health, HealthPolicy, IpFamilies, LoadBalancingMode, LocalityScope};

use super::record::{MembershipRecord, Place, ServiceRecord, WorkloadRecord};
use super::weighted::{Order, WeightedTree};

#[derive(Clone, Default)]
pub(super) struct Endpoints {
    shape: Shape,
    all: Ranked,
    /// For each service port whose target the endpoints say themselves, those that say one.
    by_port: Vec<(u16, Ranked)>,
    /// Those whose application has a tunnel of its own on a port, whatever the service port: few services have any.
    tunnelled: Option<Box<Ranked>>,
}

type Tree = WeightedTree<Endpoint, ByPreference>;

/// Endpoints in order, and which of them are near the first client that asked, and all that are where it is: an
/// application is the only one, and the clients of a node are in one place.
#[derive(Clone, Default)]
struct Ranked {
    tree: Tree,
    near: OnceLock<Box<Near>>,
}

#[derive(Clone)]
struct Near {
    source: Arc<Place>,
    mode: LoadBalancingMode,
    spans: Spans,
}

/// A workload in its role as an endpoint of one service.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) workload: Arc<WorkloadRecord>,
    /// Which of the workload's memberships it is.
    membership: u32,
}

impl Endpoint {
    pub(super) fn new(workload: Arc<WorkloadRecord>, membership: usize) -> Self {
        Self {
            workload,
            membership: membership as u32,
        }
    }

    fn membership(&self) -> Option<&MembershipRecord> {
        self.workload.memberships().get(self.membership as usize)
    }

    /// The endpoint's own port for a service port: its mapping, the service's, its tunnel's.
    pub(super) fn target_port(&self, service: &ServiceRecord, service_port: u16) -> Option<u16> {
        let own = self
            .membership()
            .and_then(|own| own.target_port(service_port));
        own.or_else(|| service.port(service_port)?.target_port())
            .or_else(|| {
                self.workload
                    .application_tunnel_port()
                    .map(|_| service_port)
            })
    }
}

/// What of a service decides how its endpoints are kept.
#[derive(Clone, PartialEq, Eq, Default)]
pub(super) struct Shape {
    preference: Arc<[LocalityScope]>,
    unhealthy_too: bool,
    ip_families: IpFamilies,
    /// Service ports without a target.
    open_ports: Vec<u16>,
}

impl Shape {
    pub(super) fn of(service: &ServiceRecord) -> Self {
        let ports = service.ports().iter();
        Self {
            preference: service.preference(),
            unhealthy_too: service.health_policy() == HealthPolicy::AllowAll,
            ip_families: service.ip_families(),
            open_ports: ports
                .filter(|port| port.target_port().is_none())
                .map(super::ServicePort::service_port)
                .collect(),
        }
    }

    /// The endpoint's share: 0 where it must not be used.
    fn weight(&self, endpoint: &Endpoint) -> u32 {
        let workload = &endpoint.workload;
        let health = endpoint
            .membership()
            .map_or(workload.health(), |own| workload.health_in(own));
        let reachable = workload
            .addresses()
            .iter()
            .any(|ip| allows(self.ip_families, ip.is_ipv4()))
            || workload.hostname().is_some()
            || workload.network_gateway().is_some();
        if reachable && (health == Health::Healthy || self.unhealthy_too) {
            workload.capacity()
        } else {
            0
        }
    }
}

pub(super) fn allows(families: IpFamilies, v4: bool) -> bool {
    match families {
        IpFamilies::Ipv4Only => v4,
        IpFamilies::Ipv6Only => !v4,
        _ => true,
    }
}

#[derive(Clone, Default)]
struct ByPreference(Arc<[LocalityScope]>);

impl ByPreference {
    fn compare_places(&self, a: &Place, b: &Place, scopes: usize) -> Ordering {
        let mut scopes = self.0.iter().take(scopes);
        let differing = scopes.find_map(|scope| {
            let order = a.scope(*scope).cmp(b.scope(*scope));
            order.is_ne().then_some(order)
        });
        differing.unwrap_or(Ordering::Equal)
    }

    /// Whether all that is compared is the same of both.
    fn are_alike(&self, a: &Arc<Place>, b: &Arc<Place>) -> bool {
        let alike = |scope: &LocalityScope| a.scope(*scope) == b.scope(*scope);
        Arc::ptr_eq(a, b) || self.0.iter().all(alike)
    }
}

impl Order<Endpoint> for ByPreference {
    fn compare(&self, a: &Endpoint, b: &Endpoint) -> Ordering {
        // Workloads of one node share their place.
        let places = if Arc::ptr_eq(&a.workload.place, &b.workload.place) {
            Ordering::Equal
        } else {
            self.compare_places(&a.workload.place, &b.workload.place, self.0.len())
        };
        places.then_with(|| a.workload.uid.cmp(&b.workload.uid))
    }
}

/// What is asked of a choice.
pub(super) struct Wanted<'a> {
    pub(super) service: &'a ServiceRecord,
    pub(super) port: u16,
    /// Whether the service is a waypoint, whose endpoints may take a port that it does not declare.
    pub(super) waypoint: bool,
    pub(super) source: &'a Arc<Place>,
    /// Endpoints tried before; used again only where there is no other.
    pub(super) exclude: &'a [Arc<WorkloadRecord>],
}

impl Endpoints {
    pub(super) fn is_empty(&self) -> bool {
        self.all.tree.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.all.tree.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.all.tree.iter()
    }

    pub(super) fn insert(&mut self, endpoint: Endpoint) {
        let weight = self.shape.weight(&endpoint);
        for (port, those) in &mut self.by_port {
            if resolves(&endpoint, *port) {
                those.insert(endpoint.clone(), weight);
            }
        }
        if endpoint.workload.application_tunnel_port().is_some() {
            let none = || Box::new(Ranked::by(&self.shape.preference));
            let tunnelled = self.tunnelled.get_or_insert_with(none);
            tunnelled.insert(endpoint.clone(), weight);
        }
        self.all.insert(endpoint, weight);
    }

    pub(super) fn remove(&mut self, endpoint: &Endpoint) {
        for (_, those) in &mut self.by_port {
            those.remove(endpoint);
        }
        if let Some(tunnelled) = &mut self.tunnelled {
            tunnelled.remove(endpoint);
        }
        self.all.remove(endpoint);
    }

    /// Lets go of some 32 of them, or of more that others have, too. `false` if there are none.
    pub(super) fn shed(&mut self) -> bool {
        let tunnelled = self.tunnelled.as_mut().map(|those| &mut those.tree);
        if self.all.tree.shed() || tunnelled.is_some_and(Tree::shed) {
            return true;
        }
        while let Some((_, those)) = self.by_port.last_mut() {
            if those.tree.shed() {
                return true;
            }
            self.by_port.pop();
        }
        false
    }

    /// Keeps the endpoints as the changed service wants them. Costs nothing unless what matters to
    /// endpoints changed, and then as much as adding them all again.
    pub(super) fn reshape(&mut self, shape: Shape) {
        if self.shape == shape {
            return;
        }
        let none = || Ranked::by(&shape.preference);
        let mut reshaped = Self {
            all: none(),
            tunnelled: None,
            by_port: shape
                .open_ports
                .iter()
                .map(|port| (*port, none()))
                .collect(),
            shape,
        };
        for endpoint in self.all.tree.iter() {
            reshaped.insert(endpoint.clone());
        }
        *self = reshaped;
    }

    /// Chooses an endpoint at random, by weight, among those that the service's mode prefers.
    #[inline(never)] // Its instructions are counted by its name.
    pub(super) fn choose(
        &self,
        wanted: &Wanted<'_>,
        rng: &mut dyn FnMut() -> u64,
    ) -> Option<&Endpoint> {
        let usable = self.usable(wanted)?;
        let tree = &usable.tree;
        if tree.total() == 0 {
            return None;
        }
        // As a rule none was tried before.
        if wanted.exclude.is_empty()
            && let Some(span) = usable.known(wanted)
        {
            return tree.at(span.start + below(width(&span), rng()));
        }
        let excluded = tree.spans_of(wanted.exclude);
        let mut spans = usable.preferred(wanted, &excluded);
        if spans.is_empty() && !excluded.is_empty() {
            spans = usable.preferred(wanted, &[]);
        }
        let spans = spans.as_slice();
        let total = spans.iter().map(width).sum::<u64>();
        if total == 0 {
            return None;
        }
        let mut offset = below(total, rng());
        for span in spans {
            if offset < width(span) {
                return tree.at(span.start + offset);
            }
            offset -= width(span);
        }
        None
    }

    /// The endpoints that have a port of their own for the wanted one.
    fn usable(&self, wanted: &Wanted<'_>) -> Option<&Ranked> {
        match wanted.service.port(wanted.port) {
            Some(port) if port.target_port().is_some() => Some(&self.all),
            Some(_) => {
                let mut ports = self.by_port.iter();
                let (_, those) = ports.find(|(port, _)| *port == wanted.port)?;
                Some(those)
            }
            None if wanted.waypoint => self.tunnelled.as_deref(),
            None => None,
        }
    }
}

/// Scales a uniform number to less than `total`: the high half of their product.
pub(super) fn below(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

fn resolves(endpoint: &Endpoint, open_port: u16) -> bool {
    let own = endpoint
        .membership()
        .and_then(|own| own.target_port(open_port));
    own.is_some() || endpoint.workload.application_tunnel_port().is_some()
}

type Span = Range<u64>;

fn width(span: &Span) -> u64 {
    span.end - span.start
}

/// Spans in order, none of them empty. Mostly there is one: a choice asks for no memory then.
#[derive(Clone)]
enum Spans {
    One(Span),
    Many(Vec<Span>),
}

impl Spans {
    const NONE: Self = Self::Many(Vec::new());

    fn as_slice(&self) -> &[Span] {
        match self {
            Self::One(span) => std::slice::from_ref(span),
            Self::Many(spans) => spans,
        }
    }

    fn is_empty(&self) -> bool {
        self.as_slice().is_empty()
    }

    /// What is left of them without these.
    fn without(&self, holes: &[Span]) -> Self {
        match self {
            Self::One(span) => without(span.clone(), holes),
            many if holes.is_empty() => many.clone(),
            Self::Many(spans) => {
                let left = spans.iter().map(|span| without(span.clone(), holes));
                Self::Many(left.flat_map(|left| left.as_slice().to_vec()).collect())
            }
        }
    }
}

impl Ranked {
    /// None so far.
    fn by(preference: &Arc<[LocalityScope]>) -> Self {
        Self {
            tree: Tree::new(ByPreference(Arc::clone(preference))),
            near: OnceLock::new(),
        }
    }

    fn insert(&mut self, endpoint: Endpoint, weight: u32) {
        self.near = OnceLock::new();
        self.tree.insert(endpoint, weight);
    }

    fn remove(&mut self, endpoint: &Endpoint) {
        self.near = OnceLock::new();
        self.tree.remove(endpoint);
    }

    /// Those to choose among where none is excluded, if that is known and they stand together.
    fn known(&self, wanted: &Wanted<'_>) -> Option<Span> {
        match wanted.service.load_balancing_mode() {
            LoadBalancingMode::Strict | LoadBalancingMode::Failover => {
                let near = self.near.get().filter(|near| self.are_for(near, wanted))?;
                match &near.spans {
                    Spans::One(span) => Some(span.clone()),
                    Spans::Many(_) => None,
                }
            }
            _ => Some(0..self.tree.total()),
        }
    }

    fn are_for(&self, near: &Near, wanted: &Wanted<'_>) -> bool {
        let order = self.tree.order();
        near.mode == wanted.service.load_balancing_mode()
            && order.are_alike(&near.source, wanted.source)
    }

    /// The endpoints of the best rank that has any weight left, as spans of it.
    fn preferred(&self, wanted: &Wanted<'_>, excluded: &[Span]) -> Spans {
        let mode = wanted.service.load_balancing_mode();
        let ranked = match mode {
            LoadBalancingMode::Strict => Tree::in_common,
            LoadBalancingMode::Failover => Tree::by_rank,
            _ => return without(0..self.tree.total(), excluded),
        };
        let near = self.near.get_or_init(|| {
            Box::new(Near {
                source: Arc::clone(wanted.source),
                mode,
                spans: ranked(&self.tree, wanted.source, &[]),
            })
        });
        if self.are_for(near, wanted) {
            let left = near.spans.without(excluded);
            if !left.is_empty() || excluded.is_empty() {
                return left;
            }
        }
        ranked(&self.tree, wanted.source, excluded)
    }
}

impl Tree {
    /// Where these workloads stand, in order.
    fn spans_of(&self, workloads: &[Arc<WorkloadRecord>]) -> Vec<Span> {
        let mut spans = Vec::with_capacity(workloads.len());
        for workload in workloads {
            let sought = Endpoint::new(Arc::clone(workload), 0);
            let span = self.span(|endpoint| self.order().compare(endpoint, &sought));
            if !span.is_empty() {
                spans.push(span);
            }
        }
        spans.sort_by_key(|span| span.start);
        spans.dedup();
        spans
    }

    /// Those that have all scopes in common with the source.
    fn in_common(&self, source: &Place, excluded: &[Span]) -> Spans {
        self.matching(source, self.order().0.len(), excluded)
    }

    /// Those that have at least the first `count` scopes in common with the source.
    fn matching(&self, source: &Place, count: usize, excluded: &[Span]) -> Spans {
        let order = self.order();
        let span =
            self.span(|endpoint| order.compare_places(&endpoint.workload.place, source, count));
        without(span, excluded)
    }

    /// Those that have the most scopes in common with the source.
    fn by_rank(&self, source: &Place, excluded: &[Span]) -> Spans {
        let scopes = &self.order().0;
        let networks_first = scopes.first() == Some(&LocalityScope::Network);
        // Where the network counts first, endpoints of others are ranked by what follows it.
        let least = usize::from(networks_first);
        for count in (least..=scopes.len()).rev() {
            let spans = self.matching(source, count, excluded);
            if !spans.is_empty() {
                return spans;
            }
        }
        if !networks_first {
            return Spans::NONE;
        }
        let networks = self.networks();
        for count in (1..=scopes.len()).rev() {
            let mut spans = Vec::new();
            for network in &networks {
                let place = Place {
                    network: Arc::clone(network),
                    ..source.clone()
                };
                spans.extend_from_slice(self.matching(&place, count, excluded).as_slice());
            }
            if !spans.is_empty() {
                return Spans::Many(spans);
            }
        }
        Spans::NONE
    }

    /// The networks of the endpoints, where the order begins with them: one search for each.
    fn networks(&self) -> Vec<Arc<str>> {
        let mut networks: Vec<Arc<str>> = Vec::new();
        while let Some(next) = self.first_from(|endpoint| {
            networks
                .last()
                .is_some_and(|last| endpoint.workload.network() <= last)
        }) {
            networks.push(Arc::clone(next.workload.network()));
        }
        networks
    }
}

/// What is left of a span without these, which are in order and do not overlap.
fn without(span: Span, holes: &[Span]) -> Spans {
    if holes.is_empty() {
        return match span.is_empty() {
            true => Spans::NONE,
            false => Spans::One(span),
        };
    }
    let mut left = Vec::with_capacity(holes.len() + 1);
    let mut start = span.start;
    for hole in holes {
        if hole.end <= start || hole.start >= span.end {
            continue;
        }
        if hole.start > start {
            left.push(start..hole.start);
        }
        start = hole.end;
    }
    if start < span.end {
        left.push(start..span.end);
    }
    Spans::Many(left)
}
