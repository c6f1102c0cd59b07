use mesh_xds::model::{Batch, Update};

use super::{ConfigLink, ConfigSource};
use crate::{Error, ErrorKind};

/// Configuration given in code, once.
#[derive(Debug, Default)]
pub struct Fixed {
    updates: Vec<Update>,
}

impl Fixed {
    /// Makes a source of these resources.
    pub fn new(updates: impl IntoIterator<Item = Update>) -> Self {
        Self {
            updates: updates.into_iter().collect(),
        }
    }
}

impl ConfigSource for Fixed {
    /// # Errors
    ///
    /// Unlike a live source, which has a last good version to keep, this one ends with an error
    /// when any of its resources is refused.
    async fn run(self, link: ConfigLink) -> Result<(), Error> {
        link.complete()?;
        let verdicts = link.apply(Batch::new(self.updates, Vec::new()))?;
        let refused: Vec<String> = verdicts
            .iter()
            .filter_map(|verdict| {
                let rejection = verdict.result().err()?;
                Some(format!("{}: {rejection}", verdict.resource()))
            })
            .collect();
        if refused.is_empty() {
            Ok(())
        } else {
            Err(Error::new(ErrorKind::Config).with_detail(refused.join("; ")))
        }
    }
}
