//! What stands refused of what the control plane says: told once, and shown.

use std::collections::BTreeMap;
use std::sync::Arc;

/// How many refused resources are remembered, to be shown.
const MAX_PROBLEMS: usize = 1000;

/// What stands refused. Each is put into words once.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// By type and name.
    named: BTreeMap<(Arc<str>, Box<str>), Arc<str>>,
    /// Of a type.
    standing: BTreeMap<Arc<str>, Standing>,
    /// What was not told yet.
    new: Vec<Arc<str>>,
    changed: bool,
}

/// How much stands refused.
#[derive(Debug)]
struct Standing {
    count: usize,
    /// Whether there is more than was counted.
    and_more: bool,
    /// How much of that has no room among the named, in words, if any has not.
    others: Option<Arc<str>>,
}

/// What is other than when it was asked last.
pub(super) struct Changed {
    pub(super) new: Vec<Arc<str>>,
    /// What stands, the new among it.
    pub(super) all: Vec<Arc<str>>,
}

impl Problems {
    /// Whether anything stands refused.
    pub(super) fn stand(&self) -> bool {
        !self.standing.is_empty()
    }

    /// Of a response these were refused, and why.
    pub(super) fn refused(
        &mut self,
        address: &str,
        url: &Arc<str>,
        resources: Vec<(String, String)>,
    ) {
        for (name, reason) in resources {
            let problem = format!("{address}: {name}: {reason}");
            let key = (Arc::clone(url), name.into());
            let before = self.named.get(&key);
            let has_room = before.is_some() || self.named.len() < MAX_PROBLEMS;
            if has_room && before.is_none_or(|before| **before != *problem) {
                let problem: Arc<str> = problem.into();
                self.new.push(Arc::clone(&problem));
                self.named.insert(key, problem);
                self.changed = true;
            }
        }
    }

    /// These are not refused any more.
    pub(super) fn mended(&mut self, url: &Arc<str>, names: Vec<Box<str>>) {
        for name in names {
            self.changed |= self.named.remove(&(Arc::clone(url), name)).is_some();
        }
    }

    /// So much of a type stands refused after that.
    pub(super) fn stands(&mut self, address: &str, url: Arc<str>, count: usize, and_more: bool) {
        let before = self.standing.get(&url);
        let is_same =
            before.is_some_and(|before| (before.count, before.and_more) == (count, and_more));
        if is_same && !self.changed {
            return;
        }
        self.changed |= before.is_some() || count > 0 || and_more;
        if count == 0 && !and_more {
            self.standing.remove(&url);
            return;
        }
        let named = self.named.keys().filter(|(of, _)| *of == url).count();
        let many = match (count.saturating_sub(named), and_more) {
            (0, false) => None,
            (0, true) => Some("others".to_owned()),
            (others, false) => Some(format!("{others} more")),
            (others, true) => Some(format!("more than {others} others")),
        };
        let kind = short(&url);
        let others: Option<Arc<str>> =
            many.map(|many| format!("{address}: {many} of {kind} stand refused").into());
        if let Some(others) = &others {
            match before.and_then(|before| before.others.as_ref()) {
                None => self.new.push(Arc::clone(others)),
                // It is no other problem.
                Some(before) if before != others => {
                    tracing::debug!(target: "mesh::config", problem = %others, "how many has changed");
                }
                Some(_) => {}
            }
        }
        let standing = Standing {
            count,
            and_more,
            others,
        };
        self.standing.insert(url, standing);
    }

    pub(super) fn take_changed(&mut self) -> Option<Changed> {
        let others = self.standing.values().filter_map(|one| one.others.as_ref());
        let all = self.named.values().chain(others);
        std::mem::take(&mut self.changed).then(|| Changed {
            new: std::mem::take(&mut self.new),
            all: all.cloned().collect(),
        })
    }
}

/// `istio.workload.Address` of its URL.
pub(super) fn short(url: &str) -> &str {
    url.rsplit_once('/').map_or(url, |(_, name)| name)
}
