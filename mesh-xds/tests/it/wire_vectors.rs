//! Messages written by hand, field number by field number, are read as what they are.

use prost::Message;

use crate::proto::envoy::config::core::v3::{Locality as NodeLocality, Node};
use crate::proto::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::proto::google::protobuf::value::Kind;
use crate::proto::google::rpc::Status;
use crate::proto::istio::security::{Authorization, string_match::MatchType};
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};
use crate::proto::istio::workload::{Address, address, gateway_address};

/// Writes protobuf without knowing any message.
#[derive(Default, Clone)]
struct Wire(Vec<u8>);

impl Wire {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(mut self, field: u64, value: u64) -> Self {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    fn bytes(mut self, field: u64, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    fn message(self, field: u64, value: Wire) -> Self {
        self.bytes(field, value.0)
    }

    /// Reads it as `M`, and sees that nothing was lost.
    #[track_caller]
    fn read<M: Message + Default>(&self) -> M {
        let message = M::decode(&*self.0).expect("a message of this type");
        assert_eq!(message.encode_to_vec(), self.0);
        message
    }
}

fn wire() -> Wire {
    Wire::default()
}

#[test]
fn a_workload() {
    let gateway = wire()
        .message(2, wire().bytes(1, "net-2").bytes(2, [10, 0, 0, 9]))
        .number(3, 15008);
    let waypoint = wire()
        .message(1, wire().bytes(1, "ns").bytes(2, "waypoint.ns"))
        .number(3, 15008);
    let port = wire().number(1, 80).number(2, 8080).number(3, 2);
    let services = wire()
        .bytes(1, "ns/host")
        .message(2, wire().message(1, port));
    let locality = wire().bytes(1, "r").bytes(2, "z").bytes(3, "s");
    let workload = wire()
        .bytes(1, "name")
        .bytes(2, "ns")
        .bytes(3, [10, 0, 0, 1])
        .bytes(3, [0xfd; 16])
        .bytes(4, "net-1")
        .number(5, 1)
        .bytes(6, "td")
        .bytes(7, "sa")
        .message(8, waypoint)
        .bytes(9, "node")
        .bytes(10, "app")
        .bytes(11, "v1")
        .number(12, 2)
        .bytes(13, "deploy")
        .number(14, 1)
        .bytes(16, "ns/policy")
        .number(17, 1)
        .bytes(18, "cluster")
        .message(19, gateway)
        .bytes(20, "uid")
        .bytes(21, "host")
        .message(22, services)
        .message(23, wire().number(1, 1).number(2, 15088))
        .message(24, locality)
        .number(25, 1)
        .message(26, wire().bytes(1, "ext").message(2, wire().bytes(1, "t")))
        .message(27, wire().number(1, 3));
    let address: Address = wire().message(1, workload).read();
    let Some(address::Type::Workload(workload)) = address.r#type else {
        panic!("{address:?}");
    };
    assert_eq!((&*workload.name, &*workload.namespace), ("name", "ns"));
    assert_eq!(workload.addresses, [vec![10, 0, 0, 1], vec![0xfd; 16]]);
    assert_eq!(
        (&*workload.network, workload.tunnel_protocol),
        ("net-1", 1),
        "HBONE"
    );
    assert_eq!(
        (&*workload.trust_domain, &*workload.service_account),
        ("td", "sa")
    );
    let waypoint = workload.waypoint.expect("a waypoint");
    assert_eq!(waypoint.hbone_mtls_port, 15008);
    let Some(gateway_address::Destination::Hostname(host)) = waypoint.destination else {
        panic!("{waypoint:?}");
    };
    assert_eq!((&*host.namespace, &*host.hostname), ("ns", "waypoint.ns"));
    assert_eq!(workload.node, "node");
    assert_eq!(
        (&*workload.canonical_name, &*workload.canonical_revision),
        ("app", "v1")
    );
    assert_eq!(
        (workload.workload_type, &*workload.workload_name),
        (2, "deploy")
    );
    assert!(workload.native_tunnel);
    assert_eq!(workload.authorization_policies, ["ns/policy"]);
    assert_eq!((workload.status, &*workload.cluster_id), (1, "cluster"));
    let gateway = workload.network_gateway.expect("a gateway");
    let Some(gateway_address::Destination::Address(gateway)) = gateway.destination else {
        panic!("{gateway:?}");
    };
    assert_eq!(
        (&*gateway.network, &*gateway.address, gateway.length),
        ("net-2", &[10, 0, 0, 9][..], None)
    );
    assert_eq!((&*workload.uid, &*workload.hostname), ("uid", "host"));
    let ports = &workload.services["ns/host"].ports;
    assert_eq!(
        (
            ports[0].service_port,
            ports[0].target_port,
            ports[0].app_protocol
        ),
        (80, 8080, 2)
    );
    let tunnel = workload.application_tunnel.expect("a tunnel");
    assert_eq!((tunnel.protocol, tunnel.port), (1, 15088));
    let locality = workload.locality.expect("a locality");
    assert_eq!(
        (&*locality.region, &*locality.zone, &*locality.subzone),
        ("r", "z", "s")
    );
    assert_eq!(workload.network_mode, 1);
    assert_eq!(workload.extensions[0].name, "ext");
    assert_eq!(workload.capacity, Some(3));
}

#[test]
fn a_service() {
    let block = wire()
        .bytes(1, "net-1")
        .bytes(2, [10, 0, 0, 0])
        .number(3, 8);
    let balancing = wire().bytes(1, [6, 1]).number(2, 2).number(3, 1);
    let destination = wire().message(1, wire().bytes(1, "ns").bytes(2, "w"));
    let service = wire()
        .bytes(1, "name")
        .bytes(2, "ns")
        .bytes(3, "host")
        .message(4, block)
        .message(5, wire().number(1, 80).number(3, 1))
        .bytes(6, "spiffe://td/ns/ns/sa/sa")
        .message(7, destination.clone())
        .message(8, balancing)
        .number(9, 3)
        .message(10, wire().bytes(1, "ext"))
        .number(11, 1)
        .number(12, 1)
        .message(13, wire().message(1, destination).number(2, 50))
        .number(14, 1);
    let address: Address = wire().message(2, service).read();
    let Some(address::Type::Service(service)) = address.r#type else {
        panic!("{address:?}");
    };
    assert_eq!(
        (&*service.name, &*service.namespace, &*service.hostname),
        ("name", "ns", "host")
    );
    assert_eq!(service.addresses[0].length, Some(8));
    assert_eq!(
        (service.ports[0].service_port, service.ports[0].target_port),
        (80, 0)
    );
    assert_eq!(service.subject_alt_names, ["spiffe://td/ns/ns/sa/sa"]);
    assert!(service.waypoint.is_some());
    let balancing = service.load_balancing.expect("load balancing");
    assert_eq!(balancing.routing_preference, [6, 1]);
    assert_eq!((balancing.mode, balancing.health_policy), (2, 1));
    assert_eq!(service.ip_families, 3);
    assert_eq!(service.extensions.len(), 1);
    assert!(service.canonical && service.ingress_use_waypoint);
    assert_eq!(service.weighted_waypoints[0].weight, 50);
    assert_eq!(service.visibility, 1);
}

#[test]
fn a_policy() {
    let string = |field, text| wire().bytes(field, text);
    let block = |last| wire().bytes(1, [10, 0, 0, last]).number(2, 32);
    let account = |name| wire().bytes(1, "ns").bytes(2, name);
    let one = wire()
        .message(1, string(1, "a"))
        .message(2, string(2, "b"))
        .message(3, string(3, "c"))
        .message(4, wire().message(4, wire()))
        .message(5, block(1))
        .message(6, block(2))
        .message(7, block(3))
        .message(8, block(4))
        .bytes(9, [80])
        .bytes(10, [81])
        .message(11, account("sa"))
        .message(12, account("not"))
        .message(13, wire().bytes(1, "ext"));
    let clause = wire().message(2, one).message(2, wire());
    let policy: Authorization = wire()
        .bytes(1, "name")
        .bytes(2, "ns")
        .number(3, 2)
        .number(4, 1)
        .message(5, wire().message(1, clause))
        .number(6, 1)
        .message(7, wire().bytes(1, "ext"))
        .read();
    assert_eq!((&*policy.name, &*policy.namespace), ("name", "ns"));
    assert_eq!((policy.scope, policy.action, policy.dry_run), (2, 1, true));
    let matches = &policy.rules[0].clauses[0].matches;
    assert_eq!(matches.len(), 2, "an empty match is one");
    let one = &matches[0];
    let kind = |strings: &[crate::proto::istio::security::StringMatch]| {
        strings[0].match_type.clone().expect("a kind")
    };
    assert_eq!(kind(&one.namespaces), MatchType::Exact("a".into()));
    assert_eq!(kind(&one.not_namespaces), MatchType::Prefix("b".into()));
    assert_eq!(kind(&one.principals), MatchType::Suffix("c".into()));
    assert_eq!(kind(&one.not_principals), MatchType::Presence(()));
    let last = |blocks: &[crate::proto::istio::security::Address]| blocks[0].address[3];
    assert_eq!(last(&one.source_ips), 1);
    assert_eq!(last(&one.not_source_ips), 2);
    assert_eq!(last(&one.destination_ips), 3);
    assert_eq!(last(&one.not_destination_ips), 4);
    assert_eq!(one.destination_ports, [80]);
    assert_eq!(one.not_destination_ports, [81]);
    assert_eq!(one.service_accounts[0].service_account, "sa");
    assert_eq!(one.not_service_accounts[0].service_account, "not");
}

#[test]
fn discovery() {
    let label = wire()
        .bytes(1, "app")
        .message(2, wire().bytes(3, "details"));
    let labels = wire()
        .bytes(1, "LABELS")
        .message(2, wire().message(5, wire().message(1, label)));
    let node = wire()
        .bytes(1, "sidecar~10.0.0.1~a.ns~ns.svc.cluster.local")
        .bytes(2, "cluster")
        .message(3, wire().message(1, labels))
        .message(4, wire().bytes(1, "r").bytes(2, "z").bytes(3, "s"));
    let status = wire().number(1, 3).bytes(2, "why");
    let version = wire().bytes(1, "ns/host").bytes(2, "7");
    let request: DeltaDiscoveryRequest = wire()
        .message(1, node.clone())
        .bytes(2, "type")
        .bytes(3, "a")
        .bytes(4, "b")
        .message(5, version)
        .bytes(6, "nonce")
        .message(7, status.clone())
        .read();
    let parsed: Node = node.read();
    assert_eq!(request.node.as_ref(), Some(&parsed));
    assert_eq!(
        parsed.locality,
        Some(NodeLocality {
            region: "r".into(),
            zone: "z".into(),
            sub_zone: "s".into()
        })
    );
    let metadata = parsed.metadata.expect("metadata");
    let Some(Kind::StructValue(labels)) = &metadata.fields["LABELS"].kind else {
        panic!("{metadata:?}");
    };
    assert_eq!(
        labels.fields["app"].kind,
        Some(Kind::StringValue("details".into()))
    );
    assert_eq!(request.type_url, "type");
    assert_eq!(request.resource_names_subscribe, ["a"]);
    assert_eq!(request.resource_names_unsubscribe, ["b"]);
    assert_eq!(request.initial_resource_versions["ns/host"], "7");
    assert_eq!(request.response_nonce, "nonce");
    let parsed: Status = status.read();
    assert_eq!((parsed.code, &*parsed.message), (3, "why"));
    assert_eq!(request.error_detail, Some(parsed));

    let any = wire().bytes(1, "type").bytes(2, [1, 2]);
    let resource = wire()
        .bytes(1, "7")
        .message(2, any.clone())
        .bytes(3, "ns/host")
        .bytes(4, "net/10.0.0.1");
    let error = wire()
        .message(1, wire().bytes(1, "c"))
        .message(2, status.clone());
    let response: DeltaDiscoveryResponse = wire()
        .bytes(1, "version")
        .message(2, resource)
        .bytes(4, "type")
        .bytes(5, "nonce")
        .bytes(6, "gone")
        .message(7, wire().bytes(1, "istiod"))
        .message(8, wire().bytes(1, "gone too"))
        .message(9, error)
        .read();
    assert_eq!(response.system_version_info, "version");
    let resource = &response.resources[0];
    assert_eq!((&*resource.version, &*resource.name), ("7", "ns/host"));
    assert_eq!(resource.aliases, ["net/10.0.0.1"]);
    let value = resource.resource.as_ref().expect("a value");
    assert_eq!((&*value.type_url, &*value.value), ("type", &[1, 2][..]));
    assert_eq!((&*response.type_url, &*response.nonce), ("type", "nonce"));
    assert_eq!(response.removed_resources, ["gone"]);
    assert_eq!(response.removed_resource_names[0].name, "gone too");
    assert_eq!(
        response.control_plane.expect("who answers").identifier,
        "istiod"
    );

    let request: DiscoveryRequest = wire()
        .bytes(1, "version")
        .message(2, node)
        .bytes(3, "a")
        .bytes(4, "type")
        .bytes(5, "nonce")
        .message(6, status)
        .read();
    assert_eq!(
        (&*request.version_info, &*request.resource_names[0]),
        ("version", "a")
    );
    let response: DiscoveryResponse = wire()
        .bytes(1, "version")
        .message(2, any)
        .bytes(4, "type")
        .bytes(5, "nonce")
        .read();
    assert_eq!(response.resources[0].type_url, "type");
    assert_eq!(
        (&*response.version_info, &*response.nonce),
        ("version", "nonce")
    );
}

#[test]
fn certificates() {
    let entry = wire()
        .bytes(1, "ImpersonatedIdentity")
        .message(2, wire().bytes(3, "spiffe://td/ns/ns/sa/sa"));
    let request: IstioCertificateRequest = wire()
        .bytes(1, "csr")
        .number(3, 86_400)
        .message(4, wire().message(1, entry))
        .read();
    assert_eq!((&*request.csr, request.validity_duration), ("csr", 86_400));
    let metadata = request.metadata.expect("metadata");
    assert_eq!(
        metadata.fields["ImpersonatedIdentity"].kind,
        Some(Kind::StringValue("spiffe://td/ns/ns/sa/sa".into()))
    );
    let response: IstioCertificateResponse = wire().bytes(1, "leaf").bytes(1, "root").read();
    assert_eq!(response.cert_chain, ["leaf", "root"]);
}
