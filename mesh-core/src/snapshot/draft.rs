//! A snapshot in the making: batches are put into it one after the other, and take effect together.

use std::collections::HashSet;
use std::sync::Arc;

use mesh_xds::model::{Batch, Rejection, ResourceName, Update, Verdict};

use super::apply::{Changes, Sharing, Unsettled};
use super::{Snapshot, Tables};

/// The next snapshot. What it does not change it shares with the one that it was made of.
pub(crate) struct Draft {
    tables: Tables,
    sharing: Sharing,
    /// What [`settle`](Self::settle) has begun with.
    unsettled: Option<Unsettled>,
    /// How many updates and removals there are in it.
    size: usize,
}

impl Snapshot {
    /// Begins the next snapshot.
    pub(crate) fn draft(&self) -> Draft {
        let mut tables = Tables::clone(&self.tables);
        tables.version += 1;
        Draft {
            tables,
            sharing: Sharing::new(self.tables.workloads.is_empty()),
            unsettled: None,
            size: 0,
        }
    }
}

impl Draft {
    /// Puts a batch into it, removals first, and tells which of its updates are refused, by position.
    pub(crate) fn put(&mut self, batch: &Batch, changes: &mut Changes) -> Vec<(usize, Rejection)> {
        self.end_settling();
        let Self {
            tables,
            sharing,
            size,
            ..
        } = self;
        *size += batch.updates().len() + batch.removed().len();
        if !batch.removed().is_empty() {
            let replaced: HashSet<ResourceName> =
                batch.updates().iter().map(Update::name).collect();
            let removed = batch.removed().iter();
            for name in removed.filter(|name| !replaced.contains(name)) {
                tables.remove(name, sharing, changes);
            }
        }
        sharing.tidy();
        let mut rejected = Vec::new();
        for (at, update) in batch.updates().iter().enumerate() {
            if let Err(rejection) = tables.put(update, sharing, changes) {
                rejected.push((at, rejection));
            }
        }
        rejected
    }

    /// How many updates and removals were put into it.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Does some of what [`finish`](Self::finish) has to do: lets go of this many values that no workload shares any
    /// more. `false` if that was the last.
    #[cfg(feature = "istiod")]
    pub(crate) fn settle(&mut self, room: usize) -> bool {
        if self.sharing.is_first() {
            return false;
        }
        let Self {
            tables,
            sharing,
            unsettled,
            ..
        } = self;
        let unsettled = unsettled.get_or_insert_with(|| {
            tables.unsettled(std::mem::replace(sharing, Sharing::new(false)))
        });
        tables.settle_some(unsettled, room)
    }

    fn end_settling(&mut self) {
        if let Some(mut unsettled) = self.unsettled.take() {
            while self.tables.settle_some(&mut unsettled, usize::MAX) {}
        }
    }

    /// The snapshot.
    pub(crate) fn finish(mut self) -> Snapshot {
        self.end_settling();
        let mut tables = self.tables;
        tables.settle(self.sharing);
        Snapshot {
            tables: Arc::new(tables),
        }
    }
}

/// One verdict for each update of a batch, of which these were rejected.
pub(crate) fn verdicts(batch: &Batch, rejected: Vec<(usize, Rejection)>) -> Vec<Verdict> {
    let mut rejected = rejected.into_iter().peekable();
    let verdicts = batch.updates().iter().enumerate().map(|(at, update)| {
        let name = update.name();
        match rejected.next_if(|(rejected, _)| *rejected == at) {
            None => Verdict::accepted(name),
            Some((_, rejection)) => Verdict::rejected(name, rejection),
        }
    });
    verdicts.collect()
}
