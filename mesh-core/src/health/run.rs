//! The shell around [`Schedule`].

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Weak};

use tokio::time::{Instant, sleep_until};

use super::Probe;
use super::check::{LookUp, Surroundings};
use super::schedule::Schedule;
use crate::mesh::MeshInner;
use crate::node::report;

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
        let around = Surroundings {
            own,
            look_up: names(mesh.clone()),
        };
        let outcome = probe.attempt(&around).await;
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

/// Looks up names as connections to others do: bounded, one for all who ask, remembered for a while.
fn names(mesh: Weak<MeshInner>) -> LookUp {
    Arc::new(move |host| {
        let found = mesh.upgrade().map(|mesh| {
            let node = &mesh.node.inner;
            node.hosts.look_up(host, &node.tasks)
        });
        Box::pin(async move {
            let found = found.ok_or("the workload is gone")?;
            found.await.map_err(|error| report(&error))
        })
    })
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
