//! A mesh of any size, as the control plane of the lab serves it.

use std::net::{IpAddr, Ipv4Addr};

use mesh_xds::model::{
    Batch, Locality, Membership, NetworkAddress, Port, Service, ServiceName, TunnelProtocol,
    Update, Workload,
};

use crate::namespaces::{CLIENT, SERVER};

/// The service whose endpoint comes and goes, and where it is dialled: on the wire of both, for there is no other
/// route.
pub(crate) const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);
pub(crate) const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8080;

/// How many resources are told of at once.
const CHUNK: usize = 1_000;

pub(crate) struct Fleet {
    pub(crate) workloads: u32,
    pub(crate) services: u32,
}

impl Fleet {
    /// Everything, in batches: other workloads and services, the client, the server and its service.
    pub(crate) fn whole(&self) -> Vec<Batch> {
        let mut updates: Vec<Update> = Vec::new();
        for at in 0..self.services {
            updates.push(other_service(at).into());
        }
        let service = Service::new(lab_service())
            .with_addresses(vec![NetworkAddress::new("", IpAddr::from(SERVICE))])
            .with_ports(vec![Port::new(SERVICE_PORT).with_target_port(TARGET_PORT)]);
        updates.push(service.into());
        updates.push(own("client", CLIENT).into());
        updates.push(self.server(true).into());
        updates.extend(self.others(0));
        let batches = updates.chunks(CHUNK);
        batches
            .map(|part| Batch::new(part.to_vec(), Vec::new()))
            .collect()
    }

    /// All other workloads, different in each revision.
    pub(crate) fn revised(&self, revision: u32) -> Batch {
        Batch::new(self.others(revision).collect(), Vec::new())
    }

    /// The server, with its service or without.
    pub(crate) fn endpoint(&self, there: bool) -> Batch {
        Batch::new(vec![self.server(there).into()], Vec::new())
    }

    fn server(&self, endpoint: bool) -> Workload {
        let membership = Membership::new(lab_service())
            .with_ports(vec![Port::new(SERVICE_PORT).with_target_port(TARGET_PORT)]);
        let services = if endpoint {
            vec![membership]
        } else {
            Vec::new()
        };
        own("server", SERVER).with_services(services)
    }

    fn others(&self, revision: u32) -> impl Iterator<Item = Update> + '_ {
        (0..self.workloads).map(move |at| self.other(at, revision).into())
    }

    /// Pods of a deployment behind each service, 50 on a node, in three zones.
    fn other(&self, at: u32, revision: u32) -> Workload {
        let deployment = at % self.services.max(1);
        let namespace = namespace(deployment);
        let app = format!("service-{deployment}");
        let pod = format!(
            "{app}-{:08x}-{at:05x}",
            deployment.wrapping_mul(0x9e37_79b9)
        );
        let node = at / 50;
        let [_, a, b, c] = at.to_be_bytes();
        let membership = Membership::new(service_name(deployment))
            .with_ports(vec![Port::new(80).with_target_port(8080)]);
        Workload::new(
            format!("Kubernetes//Pod/{namespace}/{pod}"),
            namespace.as_str(),
            pod.as_str(),
        )
        .with_addresses(vec![IpAddr::from([100, 64 + a, b, c])])
        .with_protocol(TunnelProtocol::Hbone)
        .with_service_account(app.as_str())
        .with_node(format!("node-{node}.internal"))
        .with_cluster_id("Kubernetes")
        .with_canonical_name(app.as_str())
        .with_canonical_revision(format!("v{revision}"))
        .with_workload_name(app.as_str())
        .with_locality(Locality::new(
            "region-1",
            format!("region-1-{}", node % 3),
            "",
        ))
        .with_services(vec![membership])
    }
}

fn own(name: &'static str, address: Ipv4Addr) -> Workload {
    Workload::new(name, "default", name)
        .with_addresses(vec![address.into()])
        .with_protocol(TunnelProtocol::Hbone)
        .with_service_account(name)
        .with_cluster_id("Kubernetes")
}

fn namespace(deployment: u32) -> String {
    format!("team-{}", deployment / 32)
}

fn service_name(at: u32) -> ServiceName {
    let namespace = namespace(at);
    let host = format!("service-{at}.{namespace}.svc.cluster.local");
    ServiceName::new(namespace, host)
}

fn lab_service() -> ServiceName {
    ServiceName::new("default", "lab.default.svc.cluster.local")
}

fn other_service(at: u32) -> Service {
    let [_, a, b, c] = at.to_be_bytes();
    Service::new(service_name(at))
        .with_addresses(vec![NetworkAddress::new(
            "",
            IpAddr::from([172, 16 + a, b, c]),
        )])
        .with_ports(vec![Port::new(80).with_target_port(8080)])
}
