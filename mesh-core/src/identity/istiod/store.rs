//! Reads and writes of the state directory, which nobody's certificate waits for.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::keep::{self, Content};
use super::watch::Settings;
use crate::identity::{Error, ErrorKind};

/// For so long a start waits for the file system; then it is as if nothing were kept.
const LOAD: Duration = Duration::from_secs(5);

/// A file system that hangs takes no more of the runtime's blocking threads than these, and one for writing.
const LOADS: usize = 8;

/// The state directory, if there is one.
pub(super) struct Store {
    folder: Option<Arc<Path>>,
    loads: Arc<Semaphore>,
    /// Waits to be written, the newest of each identity.
    content: HashMap<Identity, Content>,
    /// One write at a time.
    is_storing: bool,
    limit: usize,
}

impl Store {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            folder: settings.state_dir.clone(),
            loads: Arc::new(Semaphore::new(LOADS)),
            content: HashMap::new(),
            is_storing: false,
            limit: settings.identities,
        }
    }

    /// Reads what was kept of an identity; `None` if there is no directory.
    pub(super) fn load(
        &self,
        identity: &Identity,
    ) -> Option<impl Future<Output = Option<Bundle>> + Send + use<>> {
        let folder = self.folder.clone()?;
        let (identity, loads) = (identity.clone(), Arc::clone(&self.loads));
        Some(load(folder, identity, loads))
    }

    /// Has a certificate written when its turn comes.
    pub(super) fn put(&mut self, identity: Identity, content: Content) {
        if self.content.len() >= self.limit && !self.content.contains_key(&identity) {
            tracing::warn!(target: "mesh::identity", %identity, "the certificate is not kept for the next start: as many as permitted wait to be written");
            return;
        }
        self.content.insert(identity, content);
    }

    /// Begins the next write, if there is one and none is under way.
    pub(super) fn next(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        let folder = self.folder.as_ref().filter(|_| !self.is_storing)?;
        let identity = self.content.keys().next()?.clone();
        let content = self.content.remove(&identity)?;
        self.is_storing = true;
        Some(store(Arc::clone(folder), identity, content))
    }

    /// A write has ended.
    pub(super) fn stored(&mut self) {
        self.is_storing = false;
    }
}

async fn load(folder: Arc<Path>, identity: Identity, loads: Arc<Semaphore>) -> Option<Bundle> {
    let whose = identity.clone();
    let loading = async {
        let place = loads.acquire_owned().await;
        let loading = spawn_blocking(move || {
            // Until it has ended, not until it is given up.
            let _place = place;
            keep::load(&folder, &whose)
        });
        loading.await.unwrap_or_else(|error| {
            Err(Error::new(ErrorKind::Io, "reading the state directory").with_source(error))
        })
    };
    let loaded = timeout(LOAD, loading).await.unwrap_or_else(|elapsed| {
        let detail = format!("reading the state directory: no answer within {LOAD:?}");
        Err(Error::new(ErrorKind::Io, detail).with_source(elapsed))
    });
    loaded.unwrap_or_else(|error| {
        tracing::warn!(target: "mesh::identity", %identity, %error, "the kept certificate cannot be used");
        None
    })
}

/// A certificate that cannot be kept is one all the same.
fn store(
    folder: Arc<Path>,
    identity: Identity,
    content: Content,
) -> impl Future<Output = ()> + Send {
    let whose = identity.clone();
    // Begun now: it ends even if whoever waits for it is dropped.
    let storing = spawn_blocking(move || keep::store(&folder, &whose, &content));
    async move {
        let stored = storing.await.unwrap_or_else(|error| {
            let detail = "writing to the state directory";
            Err(Error::new(ErrorKind::Io, detail).with_source(error))
        });
        if let Err(error) = stored {
            tracing::warn!(target: "mesh::identity", %identity, %error, "the certificate is not kept for the next start");
        }
    }
}
