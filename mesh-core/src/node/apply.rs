//! How changes of the configuration take effect.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mesh_xds::model::{Batch, Verdict};

use super::NodeInner;
use crate::snapshot::{Changes, Draft, Remains, Snapshot, verdicts};
use crate::sync::lock;

/// From how many changes on what was before is let go of little by little: for so long at once, and then a pause.
const LARGE: usize = 1000;
const BITE: Duration = Duration::from_micros(200);
const PAUSE: Duration = Duration::from_millis(1);

/// How many shared values are settled at once.
#[cfg(feature = "istiod")]
const SETTLED: usize = 64;

/// How many pauses a snapshot may still be read for, before it goes with who reads it.
const READ: usize = 100;

impl NodeInner {
    /// Applies a batch as one change; the configuration is ready by it.
    pub(crate) fn apply(&self, batch: Batch) -> Vec<Verdict> {
        self.apply_as(batch, true)
    }

    /// Applies a batch as one change; it is not all of the first configuration.
    pub(crate) fn prepare(&self, batch: Batch) -> Vec<Verdict> {
        self.apply_as(batch, false)
    }

    /// Puts a batch where nobody sees it before the next one is applied.
    pub(crate) fn add(&self, batch: &Batch) -> Vec<Verdict> {
        let rejected = {
            let mut writer = lock(&self.writer);
            let mut draft = self.draft(&mut writer);
            let rejected = draft.put(batch, &mut Changes::default());
            *writer = Some(draft);
            rejected
        };
        let rejected = rejected.into_iter();
        let verdict =
            |(at, rejection): (usize, _)| Verdict::rejected(batch.updates()[at].name(), rejection);
        let verdicts = rejected.map(verdict).collect::<Vec<_>>();
        refused(&verdicts);
        verdicts
    }

    /// How many updates and removals are to take effect with the next batch.
    #[cfg(feature = "istiod")]
    pub(crate) fn added(&self) -> usize {
        lock(&self.writer).as_ref().map_or(0, Draft::size)
    }

    /// Does some of what is to be done before that takes effect, some 0.3 ms; `false` if there is no more of it.
    #[cfg(feature = "istiod")]
    pub(crate) fn settle(&self) -> bool {
        let mut writer = lock(&self.writer);
        let draft = writer.as_mut();
        draft.is_some_and(|draft| draft.settle(SETTLED))
    }

    /// Drops what was to take effect with the next batch.
    pub(crate) fn discard(&self) {
        let draft = lock(&self.writer).take();
        if draft.as_ref().is_some_and(|draft| draft.size() >= LARGE) {
            self.tasks.runtime().spawn_blocking(move || drop(draft));
        }
    }

    /// The one that was begun, or a new one. It is taken out, so that none is left half changed.
    fn draft(&self, begun: &mut Option<Draft>) -> Draft {
        let begun = begun.take();
        begun.unwrap_or_else(|| self.snapshot.load().draft())
    }

    fn apply_as(&self, batch: Batch, ready: bool) -> Vec<Verdict> {
        let (rejected, last) = {
            let mut writer = lock(&self.writer);
            let mut draft = self.draft(&mut writer);
            let rejected = draft.put(&batch, &mut Changes::default());
            let is_large = draft.size() >= LARGE;
            let snapshot = Arc::new(draft.finish());
            let last = self.snapshot.swap(Arc::clone(&snapshot));
            for mesh in lock(&self.meshes).iter().filter_map(Weak::upgrade) {
                mesh.configuration_changed(&snapshot);
            }
            (rejected, is_large.then_some(last))
        };
        if let Some(last) = last {
            self.tasks.runtime().spawn(let_go(last));
        }
        let verdicts = verdicts(&batch, rejected);
        if ready {
            self.gate.configured();
        }
        self.published.send_modify(|version| *version += 1);
        refused(&verdicts);
        let (_, _, reply) = batch.into_parts();
        if reply.is_wanted() {
            reply.send(verdicts.clone());
        }
        verdicts
    }

    pub(crate) fn whole(&self) {
        self.whole.store(true, Ordering::Release);
    }

    /// Whether what is configured is all there is: nothing that is not there is waited for.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole.load(Ordering::Acquire)
    }
}

/// Tells of what is refused.
fn refused(verdicts: &[Verdict]) {
    for verdict in verdicts {
        if let Err(rejection) = verdict.result() {
            tracing::warn!(target: "mesh::config", resource = %verdict.resource(), %rejection, "refused; its last good version stays, if there is one");
        }
    }
}

/// What an item costs differs too much to count them: whoever frees the last of many may pay for all.
fn shed(last: &mut Remains) -> bool {
    let begun = tokio::time::Instant::now();
    while last.shed() {
        if begun.elapsed() > BITE {
            return true;
        }
    }
    false
}

/// Of a whole mesh it takes a while, in which others have better to do with the core.
async fn let_go(last: Arc<Snapshot>) {
    let mut last = Remains::of(last);
    for _ in 0..READ {
        let Err(read) = last else { break };
        tokio::time::sleep(PAUSE).await;
        last = Remains::of(read);
    }
    if let Ok(mut last) = last {
        while shed(&mut last) {
            tokio::time::sleep(PAUSE).await;
        }
    }
}
