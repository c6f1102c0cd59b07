//! The shell around [`Schedule`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use mesh_authz::RequestAttributes;
use tokio::time::{Instant, sleep_until};

use super::Probe;
use super::check::{LookUp, Surroundings};
use super::schedule::Schedule;
use crate::ConnectionContext;
use crate::config::AppHealth;
use crate::inbound::Judgement;
use crate::mesh::MeshInner;
use crate::missed::missed;
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
        let outcome = probe.attempt(&around).await.map_err(|why| {
            let own = mesh.upgrade().and_then(|mesh| mesh.refuses(&probe, own));
            own.map_or(why.clone(), |own| format!("{why}: {own}"))
        });
        if let Err(why) = &outcome {
            tracing::debug!(target: "mesh::health", %why, "the readiness probe failed");
        }
        let Some(health) = schedule.ended(began, Instant::now(), outcome) else {
            continue;
        };
        match &health {
            AppHealth::Healthy => {
                tracing::info!(target: "mesh::health", "the readiness probe finds the application healthy");
            }
            AppHealth::Unhealthy(why) => {
                tracing::warn!(target: "mesh::health", %why, "the readiness probe finds the application unhealthy: it is to get no traffic");
            }
        }
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
            node.hosts.look_up(host, &node.work)
        });
        Box::pin(async move {
            let found = found.ok_or("the workload is gone")?;
            found.await.map_err(|error| report(&error))
        })
    })
}

impl MeshInner {
    /// Whether its own policies are why a probe of one of its own listeners fails, and what to do then.
    fn refuses(&self, probe: &Probe, own: IpAddr) -> Option<String> {
        let (port, request) = probe.of_own(own)?;
        let judgement = self.ports().get(&port)?.judgement;
        let to_do = "probe a port that the mesh does not serve, or say how the application is by `Mesh::report_health`";
        if self.settings().strict {
            return Some(format!(
                "the mesh is built strict, and refuses the probe's plaintext as anybody's: {to_do}"
            ));
        }
        let context =
            ConnectionContext::plaintext(SocketAddr::new(own, 0), SocketAddr::new(own, port));
        let enforced = self.enforcement.on(port);
        let enforced = enforced.load();
        let policies = enforced.policies();
        let attributes = context.attributes();
        let decision = judgement.decide(policies, &context);
        let decision = match &request {
            Some(asked) if decision.is_allowed() && judgement == Judgement::PerRequest => {
                let (host, headers) = (Some(&*asked.host), &asked.headers);
                let request = RequestAttributes::new(&asked.method, host, asked.path, headers);
                policies.evaluate(&attributes.with_request(request))
            }
            _ => decision,
        };
        if decision.is_allowed() {
            return None;
        }
        let missed = missed(&decision, policies).map(|names| format!(": {names}"));
        let missed = missed.unwrap_or_default();
        let what = request
            .map(|asked| format!(", {} {} of host {},", asked.method, asked.path, asked.host));
        let what = what.unwrap_or_default();
        Some(format!(
            "unless the application itself answered so, this workload's own policies refuse it ({decision}{missed}); the probe is plaintext, without an identity: \
             let that{what} in, {to_do}"
        ))
    }

    /// The address of the workload's record; of one without, this host's own.
    fn own_address(&self) -> IpAddr {
        let snapshot = self.node.inner.snapshot.load();
        let record = self.record(&snapshot);
        let own = record.and_then(|record| record.addresses().first().copied());
        own.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}
