//! Whether the mesh can carry traffic yet, and if not, what it waits for.

use std::collections::BTreeMap;
use std::fmt;

use tokio::sync::watch;

/// What a mesh still waits for, or what took its readiness away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    configured: bool,
    pending: BTreeMap<String, String>,
    /// Why waiting for the first configuration is of no use.
    hopeless: Option<String>,
}

impl Readiness {
    pub(crate) fn configured(&self) -> bool {
        self.configured
    }

    /// Why there will be no first configuration unless somebody changes something.
    pub(crate) fn hopeless(&self) -> Option<&str> {
        self.hopeless.as_deref().filter(|_| !self.configured)
    }

    /// Whether nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.configured && self.pending.is_empty()
    }

    /// What is pending, by name, with a reason; sorted by name.
    pub fn pending(&self) -> impl Iterator<Item = (&str, &str)> {
        let config = (!self.configured).then_some(("configuration", "no configuration yet"));
        config
            .into_iter()
            .chain(self.pending.iter().map(|(name, why)| (&**name, &**why)))
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_ready() {
            return f.write_str("ready");
        }
        f.write_str("not ready, pending: ")?;
        for (index, (name, why)) in self.pending().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{name} ({why})")?;
        }
        Ok(())
    }
}

/// The side that changes it.
#[derive(Debug)]
pub(crate) struct Gate {
    sender: watch::Sender<Readiness>,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            sender: watch::Sender::new(Readiness::default()),
        }
    }

    pub(crate) fn configured(&self) {
        self.sender
            .send_if_modified(|state| !std::mem::replace(&mut state.configured, true));
    }

    #[cfg(any(feature = "file", feature = "istiod"))]
    pub(crate) fn is_configured(&self) -> bool {
        self.sender.borrow().configured
    }

    /// Marks `name` as pending for a reason; whether that is news.
    pub(crate) fn pend(&self, name: &str, why: impl fmt::Display) -> bool {
        let why = why.to_string();
        self.sender.send_if_modified(|state| {
            state.pending.insert(name.to_owned(), why.clone()).as_ref() != Some(&why)
        })
    }

    /// Says why waiting for the first configuration is of no use, or that it is of use again.
    pub(crate) fn hopeless(&self, why: Option<String>) {
        self.sender.send_if_modified(|state| {
            let changed = state.hopeless != why;
            state.hopeless = why;
            changed
        });
    }

    pub(crate) fn done(&self, name: &str) {
        self.sender
            .send_if_modified(|state| state.pending.remove(name).is_some());
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Readiness> {
        self.sender.subscribe()
    }

    pub(crate) fn current(&self) -> Readiness {
        self.sender.borrow().clone()
    }
}
