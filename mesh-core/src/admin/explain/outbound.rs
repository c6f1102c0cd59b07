//! Connections to others: the way that resolution finds now.

use std::sync::Arc;

use mesh_xds::model::{Health, HealthPolicy};

use super::{BadParameter, Explained, Fact, Step, Subject};
use crate::outbound::Destination;
use crate::settings::OutboundPolicy;
use crate::snapshot::{Hop, Resolution, Route, ServiceRecord, Snapshot, Source};

pub(super) struct Question {
    destination: Destination,
}

impl Question {
    pub(super) fn read(connect: &str) -> Result<Self, BadParameter> {
        let expected = "host:port or ip:port, with a port of 1 to 65535";
        let destination =
            Destination::parse(connect).map_err(|_| BadParameter::new("connect", expected))?;
        Ok(Self { destination })
    }

    pub(super) fn answer(self, subject: &Subject) -> Explained {
        let (mesh, settings) = (&subject.mesh, &subject.node.settings);
        let snapshot = subject.node.snapshot.load();
        let Some(record) = mesh.record(&snapshot) else {
            let near = snapshot.names_near(mesh.id.namespace(), mesh.id.name());
            return super::no_record("outbound", subject, &near);
        };
        let source =
            Source::new(Arc::clone(record)).with_cluster_domain(settings.cluster_domain.as_str());
        // Not the node's own: asking must not change what the next connection gets.
        let mut first = || 0;
        let resolution = snapshot.resolve(&source, self.destination.as_target(), &[], &mut first);
        let mut facts = super::about(subject);
        facts.push(("connect", Fact::Text(self.destination.to_string())));
        let (step, how) = match &resolution {
            Resolution::Found(route) => {
                describe(&snapshot, route, &mut facts);
                let how = way(route);
                (Step::new("resolution", true, "the mesh knows it"), how)
            }
            Resolution::Missing(waypoint) => {
                let wait = settings.policy_wait;
                facts.push(("waypoint", Fact::Text(waypoint.to_string())));
                let why = format!(
                    "its waypoint {waypoint} is not known: a connection waits {wait:?} for it and then fails, and never goes around it"
                );
                (Step::new("resolution", false, why), "")
            }
            Resolution::Refused(refusal) => {
                self.candidates(&snapshot, &source, &mut facts);
                (Step::new("resolution", false, refusal.to_string()), "")
            }
            Resolution::Unknown => match settings.outbound_policy {
                OutboundPolicy::RegistryOnly => (
                    Step::new(
                        "resolution",
                        false,
                        "the mesh does not know it, and the outbound policy is RegistryOnly",
                    ),
                    "",
                ),
                OutboundPolicy::AllowAny => {
                    facts.push(("hop", Fact::Text("passthrough".to_owned())));
                    let why = "the mesh does not know it, and the outbound policy is AllowAny (PassthroughCluster)";
                    (
                        Step::new("resolution", true, why),
                        "in plaintext, past the mesh, its name resolved by this host",
                    )
                }
            },
        };
        let verdict = if step.passes {
            format!("ROUTED: {} to {}: {how}", mesh.id, self.destination)
        } else {
            format!(
                "REFUSED: {} to {}: {}",
                mesh.id, self.destination, step.reason
            )
        };
        let mut steps = Vec::new();
        let readiness = subject.node.gate.current();
        let starts = readiness.configured() && mesh.has_certificate();
        if !starts {
            let why = format!(
                "{readiness}: a connection waits {:?}",
                settings.start_timeout
            );
            steps.push(Step::new("ready", false, why));
        }
        steps.push(step);
        Explained {
            direction: "outbound",
            allowed: steps.iter().all(|step| step.passes),
            verdict,
            facts,
            steps,
            told: None,
        }
    }

    /// What there is of a service of which nothing can be used.
    fn candidates(
        &self,
        snapshot: &Snapshot,
        source: &Source,
        facts: &mut Vec<(&'static str, Fact)>,
    ) {
        let own = source.workload();
        let service = match &self.destination {
            Destination::Host { name, .. } => {
                snapshot.service_by_name(name, own.namespace(), source.cluster_domain())
            }
            Destination::Addr(addr) => {
                snapshot.service_at(own.network(), addr.ip(), own.namespace())
            }
        };
        if let Some(service) = service {
            about_service(snapshot, service, facts);
        }
    }
}

/// The kind of way, for the verdict.
fn way(route: &Route) -> &'static str {
    match route.hop() {
        Hop::Hbone(_) if route.is_through_waypoint() => "through a tunnel to its waypoint",
        Hop::Hbone(_) => "through a tunnel",
        Hop::Plain(_) => "in plaintext: it takes no tunnels",
        Hop::Passthrough(_) => "in plaintext, to the address that was asked for",
        Hop::Resolve(_) => "after its hostname was looked up",
    }
}

fn describe(snapshot: &Snapshot, route: &Route, facts: &mut Vec<(&'static str, Fact)>) {
    let mut text = |name: &'static str, value: String| facts.push((name, Fact::Text(value)));
    match route.hop() {
        Hop::Hbone(tunnel) => {
            text("hop", "hbone".to_owned());
            text("nextHop", tunnel.next_hop().to_string());
            text("authority", tunnel.authority().to_string());
            let identities = tunnel.identities().iter().map(ToString::to_string);
            facts.push(("expectedIdentities", Fact::List(identities.collect())));
        }
        Hop::Plain(addr) => {
            text("hop", "plaintext".to_owned());
            text("nextHop", addr.to_string());
        }
        Hop::Passthrough(addr) => {
            text("hop", "passthrough".to_owned());
            text("nextHop", addr.to_string());
        }
        Hop::Resolve(lookup) => {
            text("hop", "lookup".to_owned());
            text("hostname", lookup.hostname().to_string());
        }
    }
    if let Some(workload) = route.workload() {
        let name = if route.is_through_waypoint() {
            "waypoint"
        } else {
            "endpoint"
        };
        let known = format!(
            "{} ({}/{})",
            workload.uid(),
            workload.namespace(),
            workload.name()
        );
        facts.push((name, Fact::Text(known)));
    }
    if let Some(service) = route.service() {
        about_service(snapshot, service, facts);
    }
}

/// How many endpoints there are: the one that is told is only the first to come to mind.
fn about_service(
    snapshot: &Snapshot,
    service: &ServiceRecord,
    facts: &mut Vec<(&'static str, Fact)>,
) {
    let name = service.name();
    facts.push(("service", Fact::Text(name.to_string())));
    facts.push(("endpoints", Fact::Number(snapshot.endpoint_count(name))));
    let healthy = snapshot.endpoints(name).filter(|record| {
        let known = record.membership(name).and_then(|own| own.health());
        known.unwrap_or(record.health()) == Health::Healthy
    });
    facts.push(("healthyEndpoints", Fact::Number(healthy.count())));
    if service.health_policy() == HealthPolicy::AllowAll {
        facts.push(("healthPolicy", Fact::Text("AllowAll".to_owned())));
    }
}
