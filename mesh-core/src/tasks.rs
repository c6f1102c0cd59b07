use std::future::Future;
use std::sync::Mutex;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::sync::lock;

/// The tasks of one owner, on the runtime that made it; dropping the owner ends them.
#[derive(Debug)]
pub(crate) struct Tasks {
    runtime: Handle,
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            set: Mutex::new(JoinSet::new()),
        }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = lock(&self.set);
        // Finished tasks leave their handles behind; taking them here keeps the set at the live ones.
        while set.try_join_next().is_some() {}
        set.spawn_on(task, &self.runtime);
    }

    /// Calls what may start tasks of its own.
    pub(crate) fn enter<T>(&self, call: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        call()
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }
}
