//! One call of the certificate service.

use std::sync::Arc;

use mesh_hbone::tls::Bundle;

use super::watch::{Ask, Failed, Settings};

#[derive(Debug)]
pub(super) struct Caller {
    settings: Settings,
}

impl Caller {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            settings: settings.clone(),
        }
    }

    pub(super) async fn fetch(self: Arc<Self>, ask: Ask) -> Result<Bundle, Failed> {
        let _io = self
            .settings
            .control_plane
            .connect(&ask.known, None)
            .await?;
        Err(self.settings.control_plane.unavailable("to come").into())
    }
}
