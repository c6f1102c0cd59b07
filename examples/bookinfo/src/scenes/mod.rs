//! The scenes of `bookinfo --once`: what the mesh promises, shown end to end on real sockets.

mod certificates;
mod configuration;
mod policy;
mod stage;
mod traffic;

use std::future::Future;
use std::time::Duration;

use tokio::time::timeout;

use crate::{BoxError, config};
use stage::Stage;

/// Longer than any scene takes on a slow machine.
const SCENE_TIMEOUT: Duration = Duration::from_secs(60);

/// Plays all scenes; an error names those that failed.
pub(crate) async fn play(control_plane: bool) -> Result<(), BoxError> {
    let mut programme = Programme::default();
    let stage = Stage::set(control_plane).await?;
    config::say("Bookinfo in the mesh: 6 workloads, one process, no proxy, no root.");
    if control_plane {
        config::say(
            "A control plane in the same process has the manifests; each workload has a stream of its own and a token.",
        );
    }
    config::say("");

    programme
        .scene(
            "the page is assembled by four services over mutual TLS",
            traffic::page(&stage),
        )
        .await;
    programme
        .scene(
            "1000 requests spread evenly over reviews v1, v2 and v3",
            traffic::spread(&stage),
        )
        .await;
    programme
        .scene(
            "a caller without the right identity is refused at L4",
            policy::refused_at_l4(&stage),
        )
        .await;
    programme
        .scene(
            "a request that no rule permits is refused at L7",
            policy::refused_at_l7(&stage),
        )
        .await;
    programme
        .scene(
            "a principal is added, then removed: no restart, a live connection is cut",
            policy::added_and_removed(&stage),
        )
        .await;
    programme
        .scene(
            "plaintext: answered, refused under STRICT, answered on a port set to DISABLE",
            policy::plaintext(&stage),
        )
        .await;
    programme
        .scene(
            "a broken edit is refused with its line and changes nothing",
            configuration::broken_edit(&stage),
        )
        .await;
    programme
        .scene(
            "certificates rotate under load without a failed request",
            certificates::rotate(&stage),
        )
        .await;
    programme
        .scene(
            "a wiretap before each HBONE port reads none of the page",
            traffic::wiretap(&stage),
        )
        .await;

    stage.strike().await;
    programme.end()
}

#[derive(Debug, Default)]
struct Programme {
    played: usize,
    failed: Vec<&'static str>,
}

impl Programme {
    async fn scene(
        &mut self,
        title: &'static str,
        scene: impl Future<Output = Result<Vec<String>, BoxError>>,
    ) {
        self.played += 1;
        let outcome = match timeout(SCENE_TIMEOUT, scene).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("did not end within {SCENE_TIMEOUT:?}").into()),
        };
        match outcome {
            Ok(notes) => {
                config::say(&format!("ok      {title}"));
                for note in notes {
                    config::say(&format!("          {note}"));
                }
            }
            Err(error) => {
                config::say(&format!("FAILED  {title}\n          {error}"));
                self.failed.push(title);
            }
        }
    }

    fn end(self) -> Result<(), BoxError> {
        if self.failed.is_empty() {
            config::say(&format!("\nall {} scenes held", self.played));
            Ok(())
        } else {
            Err(format!(
                "{} of {} scenes failed: {}",
                self.failed.len(),
                self.played,
                self.failed.join("; ")
            )
            .into())
        }
    }
}
