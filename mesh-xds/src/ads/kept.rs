//! Resources that outlive the process, as they came.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::state::{Delivery, Pending, Session};
use super::subscription::{Known, Version};
use crate::decode::Replicas;

/// A resource as the control plane sent it, to be given to a later session:
/// see [`Settings::with_restored`](super::Settings::with_restored).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    type_url: Arc<str>,
    name: Box<str>,
    version: Box<str>,
    value: Box<[u8]>,
}

impl Kept {
    /// A resource: its type, its name in discovery, its version, and the value of its `Any`.
    pub fn new(
        type_url: impl Into<Arc<str>>,
        name: impl Into<Box<str>>,
        version: impl Into<Box<str>>,
        value: impl Into<Box<[u8]>>,
    ) -> Self {
        Self {
            type_url: type_url.into(),
            name: name.into(),
            version: version.into(),
            value: value.into(),
        }
    }

    /// The URL of its type.
    pub fn type_url(&self) -> &Arc<str> {
        &self.type_url
    }

    /// Its name in discovery.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version, as the control plane has it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The value of its `Any`.
    pub fn value(&self) -> &[u8] {
        &self.value
    }
}

/// What has changed in what is worth keeping.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Changed {
    pub(crate) put: Vec<Kept>,
    /// Types and names.
    pub(crate) gone: Vec<(Arc<str>, Box<str>)>,
}

impl Changed {
    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.gone.is_empty()
    }
}

/// By type, in the order of the settings.
pub(super) fn by_type(kept: Vec<Kept>, types: impl Iterator<Item = Arc<str>>) -> Restoring {
    let mut sorted: BTreeMap<Arc<str>, Vec<Kept>> = BTreeMap::new();
    for one in kept {
        sorted
            .entry(Arc::clone(&one.type_url))
            .or_default()
            .push(one);
    }
    let mut ordered = VecDeque::new();
    for url in types {
        if let Some(kept) = sorted.remove(&url) {
            ordered.push_back(kept);
        }
    }
    Restoring {
        types: ordered,
        // Of a type that nobody asks for any more nothing is missed.
        is_under_way: true,
        is_whole: true,
    }
}

/// What is still to be restored.
pub(super) struct Restoring {
    types: VecDeque<Vec<Kept>>,
    is_under_way: bool,
    /// Whether all of it could be, so far.
    is_whole: bool,
}

impl Restoring {
    /// Nothing at all.
    pub(super) fn nothing() -> Self {
        Self {
            types: VecDeque::new(),
            is_under_way: false,
            is_whole: true,
        }
    }

    pub(super) fn next(&mut self) -> Option<Vec<Kept>> {
        self.types.pop_front()
    }

    /// Whether what was judged was whole.
    pub(super) fn judged(&mut self, whole: bool) {
        self.is_whole &= whole;
    }

    /// At the end of it, once: whether it was whole.
    pub(super) fn ends(&mut self) -> Option<bool> {
        let ends = self.is_under_way && self.types.is_empty();
        self.is_under_way &= !ends;
        ends.then_some(self.is_whole)
    }
}

impl Session {
    /// What is kept of a type is here again, as if it had come. [`judged`](Self::judged) follows. Before the
    /// first stream.
    pub(crate) fn restored(&mut self, kept: Vec<Kept>) -> (Delivery, bool) {
        let mut delivery = Delivery::default();
        let url = kept.first().map(|one| Arc::clone(one.type_url()));
        let index = url.and_then(|url| self.subscriptions.iter().position(|s| s.url == url));
        let Some(index) = index else {
            return (delivery, true);
        };
        let number = self.next_number();
        let pending = Pending::restored(index, number);
        let mut replicas = Replicas::default();
        let known = &mut self.subscriptions[index].known;
        let mut whole = true;
        for one in kept {
            let decoded = self
                .decoder
                .decode(&mut replicas, &one.type_url, &one.name, &one.value);
            match decoded {
                Ok(update) => {
                    delivery.updates.extend(update);
                    let name: Arc<str> = one.name.into();
                    let here = Known {
                        version: Version::new(&one.version),
                        seen: number,
                        new: true,
                    };
                    known.insert(name, here);
                }
                Err(rejection) => {
                    tracing::warn!(
                        name = &*one.name,
                        reason = rejection.reason(),
                        "a kept resource cannot be read"
                    );
                    whole = false;
                }
            }
        }
        self.pending = Some(pending);
        (delivery, whole)
    }

    /// What has changed in what is worth keeping, since it was asked last.
    pub(crate) fn take_changed(&mut self) -> Option<Changed> {
        let changed = std::mem::take(&mut self.changed);
        (!changed.is_empty()).then_some(changed)
    }
}
