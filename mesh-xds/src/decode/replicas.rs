//! What workloads of one response have in common is read once.
//!
//! Most of a workload's bytes are those of its replicas, or of its node. They are found by comparing bytes, not by
//! decoding them; where anything is unusual the resource is decoded whole, which also says what is wrong.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::Arc;

use super::field::Field;
use super::wire::{Fields, Value};
use super::{parse, workload};
use crate::hashing::Seeded;
use crate::model::{Health, Workload, WorkloadPlace, WorkloadProfile};
use crate::proto::istio::workload as wire;

/// How many places or profiles are remembered; then all are forgotten. Few are enough where replicas follow each other,
/// and do not stand among what stays; where they do not, more and more are.
const FEW_SHARED: usize = 256;
const MAX_SHARED: usize = 16_384;

/// How many bytes that they were read from are, by which they are found.
const MAX_KEYS: usize = 8 * 1024 * 1024;

/// Places and profiles of the workloads that were read so far.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    places: Shared<WorkloadPlace>,
    profiles: Shared<WorkloadProfile>,
}

/// Values by the bytes that they were read from.
#[derive(Debug)]
struct Shared<T> {
    /// Fields in their order, of the resource at hand.
    key: Vec<u8>,
    /// All keys, end to end.
    keys: Vec<u8>,
    values: Vec<(Range<usize>, Arc<T>)>,
    by_hash: HashMap<u64, usize>,
    /// Seeded, for whoever makes workloads has a say in what they hash to.
    hasher: Seeded,
    last: usize,
    /// How many are remembered before all are forgotten.
    room: usize,
    /// The hashes of all that were, and how many of those that are were there before.
    seen: HashSet<u64>,
    again: usize,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            key: Vec::new(),
            keys: Vec::new(),
            values: Vec::new(),
            by_hash: HashMap::new(),
            hasher: Seeded::default(),
            last: 0,
            room: FEW_SHARED,
            seen: HashSet::new(),
            again: 0,
        }
    }
}

impl<T> Shared<T> {
    /// The value of the key, read if it is not known.
    fn get(&mut self, read: impl FnOnce(&[u8]) -> Option<Arc<T>>) -> Option<Arc<T>> {
        // Replicas mostly follow each other.
        if let Some(value) = self.at(self.last) {
            return Some(value);
        }
        let hash = self.hasher.hash_one(&*self.key);
        let found = self.by_hash.get(&hash).copied();
        if let Some(at) = found
            && let Some(value) = self.at(at)
        {
            self.last = at;
            return Some(value);
        }
        let value = read(&self.key)?;
        let is_full = self.keys.len() + self.key.len() > MAX_KEYS;
        if is_full || self.values.len() >= self.room {
            let is_missed = 2 * self.again >= self.values.len();
            if is_missed && !is_full && self.room < MAX_SHARED {
                self.room *= 2;
            } else {
                self.forget();
            }
            self.again = 0;
        }
        self.again += usize::from(!self.seen.insert(hash));
        let start = self.keys.len();
        self.keys.extend_from_slice(&self.key);
        self.last = self.values.len();
        self.values
            .push((start..self.keys.len(), Arc::clone(&value)));
        self.by_hash.insert(hash, self.last);
        Some(value)
    }

    fn forget(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.by_hash.clear();
        if self.seen.len() >= 4 * MAX_SHARED {
            self.seen.clear();
        }
    }

    /// The value there, if it is the key's.
    fn at(&self, at: usize) -> Option<Arc<T>> {
        let (range, value) = self.values.get(at)?;
        (self.keys.get(range.clone())? == self.key).then(|| Arc::clone(value))
    }
}

impl Replicas {
    /// The workload in an `Address`, if it is one like most and named like this.
    pub(super) fn workload(&mut self, bytes: &[u8], name: &str) -> Option<Workload> {
        let mut address = Fields::new(bytes);
        let (1, Value::Bytes(bytes)) = address.next()?.read()? else {
            return None;
        };
        if !address.is_empty() {
            return None;
        }
        self.places.key.clear();
        self.profiles.key.clear();
        let (mut uid, mut own, mut health) = ("", "", Health::Healthy);
        let (mut first, mut others) = (None, Vec::new());
        let mut fields = Fields::new(bytes);
        while !fields.is_empty() {
            let field = fields.next()?;
            match field.number {
                1 => own = field.text()?,
                3 if first.is_none() => first = Some(field.ip()?),
                3 => others.push(field.ip()?),
                17 => {
                    health = match field.read()?.1 {
                        Value::Number(0) => Health::Healthy,
                        Value::Number(1) => Health::Unhealthy,
                        _ => return None,
                    }
                }
                20 => uid = field.text()?,
                // Hostname, extensions, capacity: few have one.
                21 | 26 | 27 => return None,
                // Network, node, cluster and locality.
                4 | 9 | 18 | 24 => self.places.key.extend_from_slice(field.whole),
                _ => self.profiles.key.extend_from_slice(field.whole),
            }
        }
        if !name.is_empty() && name != uid {
            return None;
        }
        let decode = |key: &[u8]| {
            let message: wire::Workload = parse(key).ok()?;
            workload::workload(message, &Field::root("workload")).ok()
        };
        let place = self
            .places
            .get(|key| Some(Arc::clone(decode(key)?.place())))?;
        let profile = self
            .profiles
            .get(|key| Some(Arc::clone(decode(key)?.profile())))?;
        let addresses = first.into_iter().chain(others).collect();
        Some(Workload::replica(uid, own, addresses, place, profile).with_health(health))
    }
}
