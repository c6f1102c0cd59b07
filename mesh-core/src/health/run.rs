//! The shell around [`Schedule`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Weak;

use tokio::time::{Instant, sleep_until};

use super::Probe;
use super::schedule::Schedule;
use crate::mesh::MeshInner;

/// Probes until the workload is gone. It may be the last to hold nothing of it.
pub(crate) async fn run(mesh: Weak<MeshInner>, probe: Probe) {
    let mut schedule = Schedule::new(probe.timing, Instant::now());
    let Some(started) = mesh.upgrade().map(|mesh| mesh.started()) else {
        return;
    };
    started.await;
    loop {
        sleep_until(schedule.next()).await;
        let Some(own) = mesh.upgrade().map(|mesh| mesh.own_address()) else {
            return;
        };
        let began = Instant::now();
        let outcome = probe.attempt(own).await;
        if let Err(why) = &outcome {
            tracing::debug!(target: "mesh::health", %why, "the readiness probe failed");
        }
        let Some(health) = schedule.ended(began, Instant::now(), outcome) else {
            continue;
        };
        tracing::info!(target: "mesh::health", ?health, "the readiness probe has a new verdict");
        let Some(mesh) = mesh.upgrade() else {
            return;
        };
        mesh.probed(health);
    }
}

impl MeshInner {
    /// The address of the workload's record; of one without, this host's own.
    fn own_address(&self) -> IpAddr {
        let snapshot = self.node.inner.snapshot.load();
        let record = self.record(&snapshot);
        let own = record.and_then(|record| record.addresses().first().copied());
        own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}
