//! Finds all spans that cover a value, among spans of which any two are nested or disjoint.
//!
//! Address blocks, prefixes and suffixes are such. In sorted order a span comes after all that hold
//! it, so whatever covers a value is the last span that begins by it, or one that holds that span.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

/// Covers a run of values in the order of its `Ord`.
pub(super) trait Span: Ord {
    /// What is looked up.
    type Probe: ?Sized;

    /// Whether the span begins at or before the value.
    fn begins_by(&self, probe: &Self::Probe) -> bool;

    /// Whether the value is in the span.
    fn covers(&self, probe: &Self::Probe) -> bool;

    /// Whether all of `inner` is in the span.
    fn holds(&self, inner: &Self) -> bool;
}

/// A table of spans.
pub(super) struct Nested<S, V> {
    entries: Box<[Entry<S, V>]>,
}

struct Entry<S, V> {
    span: S,
    /// The smallest other span that holds this one.
    parent: Option<u32>,
    value: V,
}

impl<S: Span, V> Nested<S, V> {
    /// Makes a table; spans must differ.
    pub(super) fn new(mut spans: Vec<(S, V)>) -> Self {
        spans.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut entries: Vec<Entry<S, V>> = Vec::with_capacity(spans.len());
        let mut parent = None;
        for (at, (span, value)) in (0..).zip(spans) {
            while let Some(outer) = parent.map(|at: u32| &entries[at as usize]) {
                if outer.span.holds(&span) {
                    break;
                }
                parent = outer.parent;
            }
            entries.push(Entry {
                span,
                parent,
                value,
            });
            parent = Some(at);
        }
        Self {
            entries: entries.into_boxed_slice(),
        }
    }

    /// The values of all spans that cover `probe`, the smallest span first.
    pub(super) fn covering<'a>(&'a self, probe: &'a S::Probe) -> impl Iterator<Item = &'a V> {
        let after = self
            .entries
            .partition_point(|entry| entry.span.begins_by(probe));
        let last = after.checked_sub(1).map(|at| &self.entries[at]);
        std::iter::successors(last, |entry| {
            entry.parent.map(|at| &self.entries[at as usize])
        })
        .filter(|entry| entry.span.covers(probe))
        .map(|entry| &entry.value)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.iter().map(|entry| &entry.value)
    }
}

/// An address block, as the run of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    first: u128,
    /// The larger block first, where two begin together.
    rest: std::cmp::Reverse<u128>,
}

impl Block {
    fn last(&self) -> u128 {
        self.first + self.rest.0
    }
}

impl Span for Block {
    type Probe = u128;

    fn begins_by(&self, probe: &u128) -> bool {
        self.first <= *probe
    }

    fn covers(&self, probe: &u128) -> bool {
        self.first <= *probe && *probe <= self.last()
    }

    fn holds(&self, inner: &Self) -> bool {
        self.first <= inner.first && inner.last() <= self.last()
    }
}

/// Address blocks of both families.
pub(super) struct Blocks<V> {
    four: Nested<Block, V>,
    six: Nested<Block, V>,
}

impl<V> Blocks<V> {
    /// Makes a table; blocks must differ and be canonical.
    pub(super) fn new(blocks: impl IntoIterator<Item = (IpNet, V)>) -> Self {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (block, value) in blocks {
            let first = bits(block.network());
            let span = Block {
                first,
                rest: std::cmp::Reverse(bits(block.broadcast()) - first),
            };
            match block {
                IpNet::V4(_) => four.push((span, value)),
                IpNet::V6(_) => six.push((span, value)),
            }
        }
        Self {
            four: Nested::new(four),
            six: Nested::new(six),
        }
    }

    /// Calls `found` with the value of every block that holds the canonical address, the smallest first.
    pub(super) fn covering(&self, ip: IpAddr, found: impl FnMut(&V)) {
        let table = match ip {
            IpAddr::V4(_) => &self.four,
            IpAddr::V6(_) => &self.six,
        };
        if !table.is_empty() {
            table.covering(&bits(ip)).for_each(found);
        }
    }

    /// Whether any block holds the canonical address.
    pub(super) fn covers(&self, ip: IpAddr) -> bool {
        let table = match ip {
            IpAddr::V4(_) => &self.four,
            IpAddr::V6(_) => &self.six,
        };
        table.covering(&bits(ip)).next().is_some()
    }
}

impl<V> Blocks<V> {
    /// The values of all blocks.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.four.values().chain(self.six.values())
    }
}

fn bits(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(four) => u32::from(four).into(),
        IpAddr::V6(six) => six.into(),
    }
}

/// The texts that begin so.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prefix(pub(super) Arc<str>);

impl Span for Prefix {
    type Probe = str;

    fn begins_by(&self, probe: &str) -> bool {
        *self.0 <= *probe
    }

    fn covers(&self, probe: &str) -> bool {
        probe.starts_with(&*self.0)
    }

    fn holds(&self, inner: &Self) -> bool {
        inner.0.starts_with(&*self.0)
    }
}

/// The texts that end so, ordered as if written backwards.
#[derive(PartialEq, Eq)]
pub(super) struct Suffix(pub(super) Arc<str>);

impl Ord for Suffix {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.bytes().rev().cmp(other.0.bytes().rev())
    }
}

impl PartialOrd for Suffix {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Span for Suffix {
    type Probe = str;

    fn begins_by(&self, probe: &str) -> bool {
        self.0.bytes().rev().le(probe.bytes().rev())
    }

    fn covers(&self, probe: &str) -> bool {
        probe.ends_with(&*self.0)
    }

    fn holds(&self, inner: &Self) -> bool {
        inner.0.ends_with(&*self.0)
    }
}

#[cfg(test)]
mod tests;
