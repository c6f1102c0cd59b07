//! Finds all address blocks that hold an address.
//!
//! Any two blocks are nested or disjoint. In sorted order a block comes after all that hold it, so
//! whatever holds an address is the last block that begins by it, or one that holds that block.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

/// A table of address blocks of both families.
pub(super) struct Blocks<V> {
    four: Nested<u32, V>,
    six: Nested<u128, V>,
}

impl<V> Blocks<V> {
    /// Makes a table; blocks must differ and be canonical.
    pub(super) fn new(blocks: impl IntoIterator<Item = (IpNet, V)>) -> Self {
        let (mut four, mut six) = (Vec::new(), Vec::new());
        for (block, value) in blocks {
            match block {
                IpNet::V4(block) => {
                    four.push((block.network().into(), block.broadcast().into(), value));
                }
                IpNet::V6(block) => {
                    six.push((block.network().into(), block.broadcast().into(), value));
                }
            }
        }
        Self {
            four: Nested::new(four),
            six: Nested::new(six),
        }
    }

    /// Calls `found` with the value of every block that holds the canonical address, the smallest first.
    pub(super) fn covering(&self, ip: IpAddr, found: impl FnMut(&V)) {
        match ip {
            IpAddr::V4(four) => self.four.covering(four.into()).for_each(found),
            IpAddr::V6(six) => self.six.covering(six.into()).for_each(found),
        }
    }

    /// Whether any block holds the canonical address.
    pub(super) fn covers(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(four) => self.four.covering(four.into()).next().is_some(),
            IpAddr::V6(six) => self.six.covering(six.into()).next().is_some(),
        }
    }

    /// The values of all blocks.
    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.four.values().chain(self.six.values())
    }
}

/// Runs of numbers, any two of which are nested or disjoint.
struct Nested<T, V> {
    /// Where each begins, in ascending order; the larger first, where two begin together.
    firsts: Box<[T]>,
    rest: Box<[Rest<T, V>]>,
}

struct Rest<T, V> {
    last: T,
    /// The smallest other run that holds this one.
    parent: Option<u32>,
    value: V,
}

impl<T: Copy + Ord, V> Nested<T, V> {
    fn new(mut runs: Vec<(T, T, V)>) -> Self {
        runs.sort_by_key(|(first, last, _)| (*first, Reverse(*last)));
        let firsts = runs.iter().map(|(first, ..)| *first).collect();
        let mut rest: Vec<Rest<T, V>> = Vec::with_capacity(runs.len());
        let mut parent = None;
        for (at, (_, last, value)) in (0..).zip(runs) {
            while let Some(outer) = parent.map(|at: u32| &rest[at as usize]) {
                if last <= outer.last {
                    break;
                }
                parent = outer.parent;
            }
            rest.push(Rest {
                last,
                parent,
                value,
            });
            parent = Some(at);
        }
        Self {
            firsts,
            rest: rest.into_boxed_slice(),
        }
    }

    /// The values of all runs that hold a number, the smallest run first.
    fn covering(&self, number: T) -> impl Iterator<Item = &V> {
        let after = self.firsts.partition_point(|first| *first <= number);
        let last = after.checked_sub(1).map(|at| &self.rest[at]);
        std::iter::successors(last, |run| run.parent.map(|at| &self.rest[at as usize]))
            .filter(move |run| number <= run.last)
            .map(|run| &run.value)
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.rest.iter().map(|run| &run.value)
    }
}

#[cfg(test)]
mod tests;
