//! The workload's own record: the wait for it, and what is said where there is none.

use std::sync::Arc;

use tokio::time::timeout_at;

use super::{MeshInner, WorkloadId};
use crate::settings::deadline;
use crate::snapshot::WorkloadRecord;
use crate::sync::lock;
use crate::{Error, ErrorKind};

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
            no_record(&self.id, &near, &known)
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
        loop {
            published.borrow_and_update();
            if let Some(record) = self.record(&node.snapshot.load()) {
                return Some(Arc::clone(record));
            }
            if node.is_whole() || timeout_at(deadline, published.changed()).await.is_err() {
                return None;
            }
        }
    }
}

/// Says that the configuration has no such workload, and which it has.
fn no_record(id: &WorkloadId, near: &[Arc<str>], problems: &[String]) -> Error {
    let near = if near.is_empty() {
        "the configuration has none in this namespace whose name is like it".to_owned()
    } else {
        format!("near it: {}", near.join(", "))
    };
    let mut detail = format!("{id}; {near}");
    for problem in problems.iter().take(3) {
        detail.push_str("; ");
        detail.push_str(problem);
    }
    Error::new(ErrorKind::NoRecord).with_detail(detail)
}
