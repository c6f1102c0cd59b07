//! Whether the mesh can carry traffic yet, and if not, what it waits for.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::sync::lock;

/// What a mesh still waits for, or what took its readiness away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    configured: bool,
    pending: BTreeMap<String, String>,
    /// Why waiting for the first configuration is of no use.
    start_failure: Option<String>,
}

impl Readiness {
    pub(crate) fn configured(&self) -> bool {
        self.configured
    }

    /// Why there will be no first configuration unless somebody changes something.
    pub(crate) fn start_failure(&self) -> Option<&str> {
        self.start_failure.as_deref().filter(|_| !self.configured)
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
    waits: Mutex<HashMap<String, Wait>>,
}

/// How long something may take that is on its way, before an operator should look at it: a control plane or an
/// authority that starts beside the application.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A wait, and what was told of it.
#[derive(Debug)]
struct Wait {
    since: Instant,
    told: Option<(Told, String)>,
}

/// How what is waited for is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// It is on its way, and was not waited for before this moment.
    Begins(Instant),
    /// It is on its way, for another reason than before.
    Waits,
    /// It takes too long, or will not come by itself.
    Late,
}

impl Gate {
    pub(crate) fn new() -> Self {
        Self {
            sender: watch::Sender::new(Readiness::default()),
            waits: Mutex::default(),
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

    /// Marks `name` as pending for a reason, and says how that is to be told if it is news. What `comes` by itself is
    /// given some time.
    pub(crate) fn wait(&self, name: &str, why: &str, comes: bool) -> Option<Told> {
        self.pend(name, why);
        let mut waits = self.waits();
        let begins = !waits.contains_key(name);
        let now = Instant::now();
        let wait = waits.entry(name.to_owned()).or_insert(Wait {
            since: now,
            told: None,
        });
        let tell = match now.saturating_duration_since(wait.since) < PATIENCE {
            _ if !comes => Told::Late,
            true if begins => Told::Begins(now),
            true => Told::Waits,
            false => Told::Late,
        };
        let known = matches!(&wait.told, Some((told, reason))
            if &**reason == why && (*told == Told::Late || tell != Told::Late));
        if known {
            return None;
        }
        wait.told = Some((tell, why.to_owned()));
        Some(tell)
    }

    /// Why `name` is still waited for, by the wait that began then, unless that was told.
    pub(crate) fn late(&self, name: &str, began: Instant) -> Option<String> {
        let mut waits = self.waits();
        let wait = waits.get_mut(name).filter(|wait| wait.since == began)?;
        let (told, why) = wait.told.as_mut()?;
        (std::mem::replace(told, Told::Late) != Told::Late).then(|| why.clone())
    }

    fn waits(&self) -> MutexGuard<'_, HashMap<String, Wait>> {
        lock(&self.waits)
    }

    /// Says why waiting for the first configuration is of no use, or that it is of use again.
    pub(crate) fn cannot_start(&self, why: Option<String>) {
        self.sender.send_if_modified(|state| {
            let changed = state.start_failure != why;
            state.start_failure = why;
            changed
        });
    }

    pub(crate) fn done(&self, name: &str) {
        self.waits().remove(name);
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
