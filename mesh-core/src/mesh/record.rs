//! The workload's own record: the wait for it, and what is said where there is none.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};

use super::{MeshInner, WorkloadId};
use crate::ready::PATIENCE;
use crate::settings::deadline;
use crate::snapshot::WorkloadRecord;
use crate::sync::lock;
use crate::{Error, ErrorKind};

/// What was told of a wait for the record, however many wait.
#[derive(Debug)]
pub(super) struct Wait {
    since: Instant,
    is_late: bool,
}

impl MeshInner {
    /// Waits for the workload's own record as well; not where the source says that what it gave is all
    /// there is. The error is cheap: a client may have it for each of its requests.
    pub(crate) async fn record_known(&self) -> Result<Arc<WorkloadRecord>, Error> {
        let found = self.find_record().await?;
        found.ok_or_else(|| Error::new(ErrorKind::NoRecord).with_detail(self.id.to_string()))
    }

    /// As [`record_known`](Self::record_known), for who begins to listen: the error says what may be the reason.
    pub(crate) async fn record_to_listen(&self) -> Result<Arc<WorkloadRecord>, Error> {
        let found = self.find_record().await?;
        found.ok_or_else(|| {
            let node = &self.node.inner;
            let snapshot = node.snapshot.load();
            let mut near = snapshot.names_near(&self.id.namespace, &self.id.name);
            if near.is_empty() {
                near = snapshot.namesakes(&self.id.name);
            }
            // A slip in a manifest is the likeliest reason.
            let mut known = node.problems();
            known.extend(lock(&node.of_no_use).iter().cloned());
            known.extend(node.warnings());
            no_record(
                &self.id,
                self.settings().record_is.as_deref(),
                &near,
                &known,
            )
        })
    }

    async fn find_record(&self) -> Result<Option<Arc<WorkloadRecord>>, Error> {
        let node = &self.node.inner;
        if let Some(record) = self.record(&node.snapshot.load()) {
            return Ok(Some(Arc::clone(record)));
        }
        self.unless_draining(async { Ok(self.record_comes().await) })
            .await
    }

    async fn record_comes(&self) -> Option<Arc<WorkloadRecord>> {
        let node = &self.node.inner;
        let deadline = deadline(self.settings().start_timeout);
        let mut published = node.published();
        let mut begun = None;
        loop {
            published.borrow_and_update();
            if let Some(record) = self.record(&node.snapshot.load()) {
                return Some(Arc::clone(record));
            }
            if node.is_whole() {
                return None;
            }
            let begun = *begun.get_or_insert_with(|| self.wait_begins());
            tokio::select! {
                biased;
                _ = published.changed() => {}
                () = sleep_until(deadline) => return None,
                () = sleep_until(begun + PATIENCE), if !self.is_told_late() => self.wait_is_late(),
            }
        }
    }

    /// Tells of the wait for the record, unless somebody waits already; says since when.
    fn wait_begins(&self) -> Instant {
        // Nobody writes to a log under a lock for which requests wait.
        let since = {
            let mut wait = lock(&self.waits);
            if let Some(wait) = &*wait {
                return wait.since;
            }
            let since = Instant::now();
            *wait = Some(Wait {
                since,
                is_late: false,
            });
            since
        };
        let expected = self.settings().record_is.as_deref();
        tracing::info!(target: "mesh::config", workload = %self.id, expected, "no record of this workload: waiting for it");
        since
    }

    fn is_told_late(&self) -> bool {
        lock(&self.waits).as_ref().is_none_or(|wait| wait.is_late)
    }

    /// Tells once more, and louder, that the record has not come.
    fn wait_is_late(&self) {
        match &mut *lock(&self.waits) {
            Some(wait) if !wait.is_late => wait.is_late = true,
            _ => return,
        }
        let expected = self.settings().record_is.as_deref();
        tracing::warn!(target: "mesh::config", workload = %self.id, expected, "no record of this workload: still waiting for it");
    }
}

/// Says that the configuration has no such workload, and which it has.
fn no_record(
    id: &WorkloadId,
    expected: Option<&str>,
    near: &[Arc<str>],
    problems: &[String],
) -> Error {
    let near = if near.is_empty() {
        "the configuration has none in this namespace whose name is like it".to_owned()
    } else {
        format!("near it: {}", near.join(", "))
    };
    let mut detail = format!("{id}; {near}");
    if let Some(expected) = expected {
        detail.push_str("; expected ");
        detail.push_str(expected);
    }
    for problem in problems.iter().take(3) {
        detail.push_str("; ");
        detail.push_str(problem);
    }
    Error::new(ErrorKind::NoRecord).with_detail(detail)
}
