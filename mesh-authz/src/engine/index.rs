//! Finds the rules that may match by what they cannot match without.
//!
//! Each rule hangs on one *anchor*: a part that it needs and that asks for exact values. A connection's
//! own values then find the rules whose anchor holds; only rules without an anchor are always tried.
//! Of several parts that could be the anchor, the one that the fewest rules share is taken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::affixes::{Affixes, End};
use super::blocks::Blocks;
use super::compile::{self, Hidden, Node, Set};
use super::evaluate::Lean;
use super::keyed;
use crate::attributes::{Attribute, Attributes};
use crate::matcher::{PathMatch, StringMatch};
use crate::policy::{Action, Matcher, Policy};

/// Which part of the policies an index is made of, and how they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// Everything.
    Full,
    /// The L4 reduction: an ALLOW rule that needs a request never matches, a refusing rule loses what
    /// only a request can tell.
    L4,
    /// Before the first request: may one be permitted?
    BeforeRequest,
}

/// The rank of a rule: CUSTOM before DENY before ALLOW, then the order of policies and rules. The
/// match of lowest rank decides.
type Rank = u32;

/// A part of [`Index::lists`].
#[derive(Clone, Copy)]
struct List {
    start: u32,
    end: u32,
}

/// A rule ready for evaluation.
pub(super) struct Compiled {
    when: Node,
    /// What of the condition is known to hold once an anchor of the rule does.
    proven: Proven,
    pub(super) refuses: bool,
    /// Its policy's place in the set.
    pub(super) policy: u32,
    /// Its place in the policy.
    pub(super) rule: u32,
}

/// The part of a condition that consists of anchors only, of which one is enough.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proven {
    Nothing,
    /// The first of the parts that all have to hold.
    First,
    All,
}

/// What a rule may be anchored to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Anchor {
    Principal(Arc<str>),
    PrincipalPrefix(Arc<str>),
    PrincipalSuffix(Arc<str>),
    Namespace(Arc<str>),
    ServiceAccount(Arc<str>),
    TrustDomain(Arc<str>),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
    Sni(Arc<str>),
    Path(Arc<str>),
    PathPrefix(Arc<str>),
}

/// Rules by anchor.
pub(super) struct Index {
    rules: Box<[Compiled]>,
    /// Whether any ALLOW policy applies.
    allows: bool,
    /// Ranks by anchor, each list in ascending order.
    lists: Box<[Rank]>,
    principals: keyed::Texts<List>,
    principal_prefixes: Affixes<List>,
    principal_suffixes: Affixes<List>,
    namespaces: keyed::Texts<List>,
    accounts: keyed::Texts<List>,
    trust_domains: keyed::Texts<List>,
    sources: Blocks<List>,
    destinations: Blocks<List>,
    ports: keyed::Map<u16, List>,
    names: keyed::Texts<List>,
    paths: keyed::Texts<List>,
    path_prefixes: Affixes<List>,
    /// Rules without an anchor.
    rest: List,
    /// How many rules the last search tried.
    #[cfg(test)]
    tried: std::sync::atomic::AtomicU32,
}

impl Index {
    /// Compiles the policies that are under dry run, or those that are not.
    pub(super) fn new(policies: &[Arc<Policy>], dry_run: bool, reading: Reading) -> Self {
        let mut rules = Vec::new();
        let mut allows = false;
        for stage in 0..3 {
            for (policy, at) in policies.iter().zip(0..) {
                if policy.dry_run() != dry_run || stage_of(policy.action()) != Some(stage) {
                    continue;
                }
                let refuses = *policy.action() != Action::Allow;
                allows |= !refuses;
                compile_policy(policy, at, refuses, reading, &mut rules);
            }
        }
        Self::of(rules, allows)
    }

    fn of(mut rules: Vec<Compiled>, allows: bool) -> Self {
        let mut shared = HashMap::new();
        for rule in &rules {
            rule.when.each_anchor(&mut |anchor| {
                *shared.entry(anchor).or_insert(0_u64) += 1;
            });
        }
        let mut anchored: HashMap<Anchor, Vec<Rank>> = HashMap::new();
        let mut rest = Vec::new();
        for (rule, rank) in rules.iter_mut().zip(0..) {
            match rule.anchor(&shared) {
                Some(anchors) => {
                    for anchor in anchors.into_iter().collect::<HashSet<_>>() {
                        anchored.entry(anchor).or_default().push(rank);
                    }
                }
                None => rest.push(rank),
            }
        }

        let mut lists = Vec::with_capacity(rules.len());
        let mut list = |ranks: Vec<Rank>| {
            let start = length(&lists);
            lists.extend(ranks);
            List {
                start,
                end: length(&lists),
            }
        };
        let mut tables = Tables::default();
        for (anchor, ranks) in anchored {
            let list = list(ranks);
            match anchor {
                Anchor::Principal(text) => tables.principals.push((text, list)),
                Anchor::PrincipalPrefix(text) => tables.prefixes.push((text, list)),
                Anchor::PrincipalSuffix(text) => tables.suffixes.push((text, list)),
                Anchor::Namespace(text) => tables.namespaces.push((text, list)),
                Anchor::ServiceAccount(text) => tables.accounts.push((text, list)),
                Anchor::TrustDomain(text) => tables.trust_domains.push((text, list)),
                Anchor::Source(block) => tables.sources.push((block, list)),
                Anchor::Destination(block) => tables.destinations.push((block, list)),
                Anchor::Port(port) => tables.ports.push((port, list)),
                Anchor::Sni(text) => tables.names.push((text, list)),
                Anchor::Path(text) => tables.paths.push((text, list)),
                Anchor::PathPrefix(text) => tables.path_prefixes.push((text, list)),
            }
        }
        let rest = list(rest);
        Self {
            rules: rules.into_boxed_slice(),
            allows,
            lists: lists.into_boxed_slice(),
            principals: tables.principals.into_iter().collect(),
            principal_prefixes: Affixes::new(End::Front, tables.prefixes),
            principal_suffixes: Affixes::new(End::Back, tables.suffixes),
            namespaces: tables.namespaces.into_iter().collect(),
            accounts: tables.accounts.into_iter().collect(),
            trust_domains: tables.trust_domains.into_iter().collect(),
            sources: Blocks::new(tables.sources),
            destinations: Blocks::new(tables.destinations),
            ports: tables.ports.into_iter().collect(),
            names: tables.names.into_iter().collect(),
            paths: tables.paths.into_iter().collect(),
            path_prefixes: Affixes::new(End::Front, tables.path_prefixes),
            rest,
            #[cfg(test)]
            tried: 0.into(),
        }
    }

    #[cfg(test)]
    pub(super) fn tried(&self) -> u32 {
        self.tried.swap(0, std::sync::atomic::Ordering::Relaxed)
    }

    fn ranks(&self, list: List) -> impl Iterator<Item = Rank> + '_ {
        let ranks = &self.lists[list.start as usize..list.end as usize];
        ranks.iter().copied()
    }

    /// Whether any ALLOW policy applies.
    pub(super) fn allows(&self) -> bool {
        self.allows
    }

    /// The matching rule of lowest rank. `hopeful` counts what is unknown in favour of access.
    pub(super) fn first_match(
        &self,
        attributes: &Attributes<'_>,
        hopeful: bool,
    ) -> Option<&Compiled> {
        self.search(attributes, hopeful, false)
    }

    /// The matching rule of lowest rank among those that permit.
    pub(super) fn first_permit(&self, attributes: &Attributes<'_>) -> Option<&Compiled> {
        self.search(attributes, false, true)
    }

    fn search(
        &self,
        attributes: &Attributes<'_>,
        hopeful: bool,
        only_permits: bool,
    ) -> Option<&Compiled> {
        let mut search = Search {
            index: self,
            attributes,
            refuse: if hopeful {
                Lean::REFUSE.hopeful()
            } else {
                Lean::REFUSE
            },
            permit: if hopeful {
                Lean::PERMIT.hopeful()
            } else {
                Lean::PERMIT
            },
            only_permits,
            best: length(&self.rules),
        };
        if self.hides_anchors(attributes) {
            search.walk(0..length(&self.rules), false);
        } else {
            search.look_up();
        }
        self.rules.get(search.best as usize)
    }

    /// Whether an attribute by which rules are found is unknown: then they all have to be tried.
    fn hides_anchors(&self, attributes: &Attributes<'_>) -> bool {
        let by_identity = || {
            !(self.principals.is_empty()
                && self.principal_prefixes.is_empty()
                && self.principal_suffixes.is_empty()
                && self.namespaces.is_empty()
                && self.accounts.is_empty()
                && self.trust_domains.is_empty())
        };
        let by_request = || !(self.paths.is_empty() && self.path_prefixes.is_empty());
        (attributes.identity == Attribute::Unknown && by_identity())
            || (attributes.sni == Attribute::Unknown && !self.names.is_empty())
            || (matches!(attributes.request, Attribute::Unknown) && by_request())
    }
}

/// A search for the matching rule of lowest rank.
struct Search<'i, 'a> {
    index: &'i Index,
    attributes: &'i Attributes<'a>,
    refuse: Lean,
    permit: Lean,
    only_permits: bool,
    /// The lowest rank found to match, at first one that no rule has.
    best: Rank,
}

impl Search<'_, '_> {
    /// Tries rules in ascending order, until one matches or a better match is known.
    fn walk(&mut self, ranks: impl IntoIterator<Item = Rank>, anchored: bool) {
        for rank in ranks {
            if rank >= self.best {
                return;
            }
            let rule = &self.index.rules[rank as usize];
            if self.only_permits && rule.refuses {
                continue;
            }
            #[cfg(test)]
            self.index
                .tried
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let lean = if rule.refuses {
                self.refuse
            } else {
                self.permit
            };
            if rule.holds(self.attributes, lean, anchored) {
                self.best = rank;
                return;
            }
        }
    }

    /// Tries the rules of an anchor that holds.
    fn list(&mut self, list: List) {
        self.walk(self.index.ranks(list), true);
    }

    #[inline(always)]
    fn text(&mut self, table: &keyed::Texts<List>, text: &str) {
        if table.may_have(text) {
            self.look_for(table, text);
        }
    }

    fn look_for(&mut self, table: &keyed::Texts<List>, text: &str) {
        if let Some(list) = table.get(text) {
            self.list(*list);
        }
    }

    fn look_up(&mut self) {
        let (index, attributes) = (self.index, self.attributes);
        self.walk(index.ranks(index.rest), false);
        if let Attribute::Present(identity) = attributes.identity {
            self.text(&index.principals, identity.principal());
            self.text(&index.accounts, compile::account_of(identity));
            self.text(&index.namespaces, identity.namespace());
            self.text(&index.trust_domains, identity.trust_domain());
            for affixes in [&index.principal_prefixes, &index.principal_suffixes] {
                affixes.of(identity.principal(), |list| self.list(*list));
            }
        }
        let destination = attributes.destination;
        index
            .sources
            .covering(attributes.source.ip(), |list| self.list(*list));
        index
            .destinations
            .covering(destination.ip(), |list| self.list(*list));
        if !index.ports.is_empty()
            && let Some(list) = index.ports.get(&destination.port())
        {
            self.list(*list);
        }
        if let Attribute::Present(name) = attributes.sni {
            self.text(&index.names, name);
        }
        if let Attribute::Present(request) = &attributes.request {
            self.text(&index.paths, request.path_alone);
            index
                .path_prefixes
                .of(request.path_alone, |list| self.list(*list));
        }
    }
}

#[derive(Default)]
struct Tables {
    principals: Vec<(Arc<str>, List)>,
    prefixes: Vec<(Arc<str>, List)>,
    suffixes: Vec<(Arc<str>, List)>,
    namespaces: Vec<(Arc<str>, List)>,
    accounts: Vec<(Arc<str>, List)>,
    trust_domains: Vec<(Arc<str>, List)>,
    sources: Vec<(IpNet, List)>,
    destinations: Vec<(IpNet, List)>,
    ports: Vec<(u16, List)>,
    names: Vec<(Arc<str>, List)>,
    paths: Vec<(Arc<str>, List)>,
    path_prefixes: Vec<(Arc<str>, List)>,
}

/// A length as a rank. More than four billion rules do not fit in memory.
fn length<T>(list: &[T]) -> u32 {
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

fn stage_of(action: &Action) -> Option<u8> {
    match action {
        Action::Custom { .. } => Some(0),
        Action::Deny => Some(1),
        Action::Allow => Some(2),
        Action::Audit => None,
    }
}

fn compile_policy(
    policy: &Policy,
    at: u32,
    refuses: bool,
    reading: Reading,
    rules: &mut Vec<Compiled>,
) {
    for (rule, rule_at) in policy.rules().iter().zip(0..) {
        let hidden = match reading {
            Reading::Full => Hidden::Nothing,
            Reading::L4 if !refuses && rule.needs_request() => continue,
            Reading::L4 => Hidden::Request { counts: true },
            // A refusal is certain or none, a permission possible.
            Reading::BeforeRequest => Hidden::LaterRequest { counts: !refuses },
        };
        let when = Node::new(rule.when(), hidden);
        if !when.is_false() {
            rules.push(Compiled {
                when,
                proven: Proven::Nothing,
                refuses,
                policy: at,
                rule: rule_at,
            });
        }
    }
}

impl Compiled {
    /// Chooses anchors of which one has to hold if the condition does.
    fn anchor(&mut self, shared: &HashMap<Anchor, u64>) -> Option<Vec<Anchor>> {
        let (_, anchors) = self.when.anchors(false, shared)?;
        if self.when.is_anchors() {
            self.proven = Proven::All;
        } else if let Node::All(parts) = &mut self.when {
            let of = |part: &Node| part.anchors(false, shared).map(|(_, anchors)| anchors);
            let chosen = parts
                .iter()
                .position(|part| of(part).as_ref() == Some(&anchors));
            if let Some(at) = chosen.filter(|at| parts[*at].is_anchors()) {
                parts[..=at].rotate_right(1);
                self.proven = Proven::First;
            }
        }
        Some(anchors)
    }

    /// Whether the condition holds, given that an anchor does where the rule was found by one.
    fn holds(&self, attributes: &Attributes<'_>, lean: Lean, anchored: bool) -> bool {
        match (&self.when, self.proven) {
            (_, Proven::All) if anchored => true,
            (Node::All(parts), Proven::First) if anchored => {
                parts[1..].iter().all(|part| part.holds(attributes, lean))
            }
            (when, _) => when.holds(attributes, lean),
        }
    }
}

impl Node {
    /// Whether each anchor in the condition is enough for it to hold, and nothing else is in it.
    fn is_anchors(&self) -> bool {
        match self {
            Self::Any(parts) => parts.iter().all(Self::is_anchors),
            Self::Is(matcher) => anchor(matcher).is_some(),
            Self::In(set) => set.anchors().is_some(),
            Self::All(_) | Self::Not(_) => false,
        }
    }

    /// Calls `found` with all anchors that stand where a rule may need them.
    fn each_anchor(&self, found: &mut dyn FnMut(Anchor)) {
        match self {
            Self::All(parts) | Self::Any(parts) => {
                for part in parts {
                    part.each_anchor(found);
                }
            }
            Self::Not(part) => part.each_anchor(found),
            Self::Is(matcher) => anchor(matcher).into_iter().for_each(found),
            Self::In(set) => set.anchors().into_iter().flatten().for_each(found),
        }
    }

    /// Anchors of which one has to hold if the node does (does not, where `negated`), with the number
    /// of rules that share them: of all choices the one with the fewest.
    fn anchors(&self, negated: bool, shared: &HashMap<Anchor, u64>) -> Option<(u64, Vec<Anchor>)> {
        let weigh = |anchors: Vec<Anchor>| {
            let weight = anchors.iter().filter_map(|anchor| shared.get(anchor)).sum();
            (weight, anchors)
        };
        match (self, negated) {
            (Self::All(parts), false) | (Self::Any(parts), true) => parts
                .iter()
                .filter_map(|part| part.anchors(negated, shared))
                .min_by_key(|(weight, _)| *weight),
            (Self::Any(parts), false) | (Self::All(parts), true) => {
                let mut all = (0, Vec::new());
                for part in parts {
                    let (weight, anchors) = part.anchors(negated, shared)?;
                    all.0 += weight;
                    all.1.extend(anchors);
                }
                Some(all)
            }
            (Self::Not(part), _) => part.anchors(!negated, shared),
            (Self::Is(matcher), false) => anchor(matcher).map(|anchor| weigh(vec![anchor])),
            (Self::In(set), false) => set.anchors().map(weigh),
            (Self::Is(_) | Self::In(_), true) => None,
        }
    }
}

fn anchor(matcher: &Matcher) -> Option<Anchor> {
    Some(match matcher {
        Matcher::Principal(StringMatch::Exact(text)) => Anchor::Principal(text.clone()),
        Matcher::Principal(StringMatch::Prefix(text)) => Anchor::PrincipalPrefix(text.clone()),
        Matcher::Principal(StringMatch::Suffix(text)) => Anchor::PrincipalSuffix(text.clone()),
        Matcher::Namespace(StringMatch::Exact(text)) => Anchor::Namespace(text.clone()),
        Matcher::ServiceAccount { namespace, name } => {
            Anchor::ServiceAccount(compile::account_key(namespace, name))
        }
        Matcher::TrustDomain(StringMatch::Exact(text)) => Anchor::TrustDomain(text.clone()),
        Matcher::SourceIp(block) => Anchor::Source(*block),
        Matcher::DestinationIp(block) => Anchor::Destination(*block),
        Matcher::DestinationPort(port) => Anchor::Port(*port),
        Matcher::Sni(StringMatch::Exact(text)) => Anchor::Sni(text.clone()),
        Matcher::Path(PathMatch::String(StringMatch::Exact(text))) => Anchor::Path(text.clone()),
        Matcher::Path(PathMatch::String(StringMatch::Prefix(text))) => {
            Anchor::PathPrefix(text.clone())
        }
        _ => return None,
    })
}

impl Set {
    fn anchors(&self) -> Option<Vec<Anchor>> {
        fn of<T: Clone>(set: &keyed::Set<T>, anchor: fn(T) -> Anchor) -> Vec<Anchor> {
            set.iter().cloned().map(anchor).collect()
        }
        Some(match self {
            Self::Principal(set) => of(set, Anchor::Principal),
            Self::Namespace(set) => of(set, Anchor::Namespace),
            Self::ServiceAccount(set) => of(set, Anchor::ServiceAccount),
            Self::SourceIp(blocks) => blocks.values().copied().map(Anchor::Source).collect(),
            Self::DestinationIp(blocks) => {
                blocks.values().copied().map(Anchor::Destination).collect()
            }
            Self::DestinationPort(set) => of(set, Anchor::Port),
            Self::Path(set) => of(set, Anchor::Path),
            Self::RemoteIp(_) => return None,
        })
    }
}
