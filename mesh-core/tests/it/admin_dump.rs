//! `/config_dump` has ztunnel's keys, and only what there is to say.

use std::collections::BTreeSet;

use mesh_core::Mesh;
use mesh_core::xds::model::{Service, ServiceName, Update, Workload};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::admin::{Answer, get, node, read};

/// Everything that ztunnel's file has a key for.
const FULL: &str = r#"
workloads:
- uid: cluster1//Pod/shop/store-1
  name: store-1
  namespace: shop
  workloadIps: [10.0.0.1, "fd00::1"]
  protocol: HBONE
  hbonePort: 15018
  networkMode: HostNetwork
  trustDomain: mesh.example
  serviceAccount: store
  network: net-1
  workloadName: store
  workloadType: cronjob
  canonicalName: the-store
  canonicalRevision: v2
  hostname: store.example
  node: n1
  nativeTunnel: true
  applicationTunnel: {protocol: PROXY, port: 15088}
  authorizationPolicies: [shop/allow, root/deny]
  status: Unhealthy
  clusterId: cluster1
  locality: {region: eu, zone: eu-1, subzone: rack}
  capacity: 3
  waypoint: {destination: net-1/10.0.0.9, hboneMtlsPort: 15008}
  networkGateway: {destination: istio-system/east.example, hboneMtlsPort: 15009}
  services:
    "shop/store.example": {80: 8080}
    "shop/later.example": {80: 8081}
services:
- name: store
  namespace: shop
  hostname: store.example
  vips: [net-1/10.1.0.1]
  cidrVips: [{network: net-1, cidr: 10.2.0.0/16}]
  ports: {80: 8080, 81: 0}
  subjectAltNames: ["spiffe://mesh.example/ns/shop/sa/store"]
  waypoint: {destination: shop/waypoint.example, hboneMtlsPort: 15008}
  weightedWaypoints: [{destination: {destination: shop/waypoint.example, hboneMtlsPort: 15008}, weight: 7}]
  loadBalancer: {routingPreferences: [Region, Zone], mode: Failover, healthPolicy: AllowAll}
  ipFamilies: Dual
  canonical: true
  visibility: Namespace
policies:
- name: allow
  namespace: shop
  scope: WorkloadSelector
  action: Allow
  dryRun: true
  rules:
  - - - namespaces: [{Exact: shop}, {Prefix: s}]
        notNamespaces: [{Suffix: p}]
        serviceAccounts: [{namespace: shop, serviceAccount: cart}]
        notServiceAccounts: [{namespace: shop, serviceAccount: till}]
        principals: [{Presence: []}]
        notPrincipals: [{Exact: cluster.local/ns/x/sa/y}]
        sourceIps: [10.0.0.0/8]
        notSourceIps: [10.9.0.0/16]
        destinationIps: [10.0.0.1/32]
        notDestinationIps: ["fd00::/8"]
        destinationPorts: [80, 443]
        notDestinationPorts: [22]
      - destinationPorts: [8080]
    - - notNamespaces: [{Exact: evil}, {Exact: bad}]
  - - - {}
  - []
- name: deny
  namespace: root
  scope: Global
  action: Deny
  rules:
  - - - {}
- name: nothing
  namespace: shop
  scope: Namespace
  action: Allow
  rules: []
"#;

fn keys(value: &Value) -> BTreeSet<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

async fn dump(updates: Vec<Update>) -> Value {
    let node = node(updates);
    let mesh = node.workload("shop", "store-1", "store").unwrap();
    mesh.ready().await.unwrap();
    get(&node.admin(), "/config_dump").await.json()
}

#[tokio::test]
async fn the_keys_at_the_top() {
    let dump = dump(Vec::new()).await;
    let expected = [
        "certificates",
        "config",
        "pending",
        "policies",
        "problems",
        "services",
        "snapshotVersion",
        "stagedServices",
        "version",
        "warnings",
        "workloadState",
        "workloads",
    ];
    assert_eq!(keys(&dump), expected.into());
    let version = [
        "buildProfile",
        "buildStatus",
        "cryptoProvider",
        "gitRevision",
        "istioVersion",
        "rustVersion",
        "version",
    ];
    assert_eq!(keys(&dump["version"]), version.into());
    assert_eq!(dump["config"]["clusterDomain"], "cluster.local");
    assert_eq!(dump["config"]["policyWait"], json!({"secs": 5, "nanos": 0}));
}

#[tokio::test]
async fn what_is_empty_or_default_is_left_out() {
    let service = ServiceName::new("shop", "store.example");
    let dump = dump(vec![
        Service::new(service).into(),
        Workload::new("uid-1", "shop", "store-1").into(),
    ])
    .await;
    let workload = [
        "canonicalName",
        "capacity",
        "clusterId",
        "name",
        "namespace",
        "networkMode",
        "protocol",
        "serviceAccount",
        "status",
        "trustDomain",
        "uid",
        "workloadIps",
        "workloadName",
    ];
    // Names that default to another are known, and so they are said.
    let found = keys(&dump["workloads"][0]);
    assert!(found.is_subset(&workload.into()), "{found:?}");
    for always in [
        "workloadIps",
        "protocol",
        "networkMode",
        "name",
        "namespace",
        "status",
        "clusterId",
        "capacity",
    ] {
        assert!(found.contains(always), "{always}");
    }
    let service = [
        "canonical",
        "endpoints",
        "hostname",
        "name",
        "namespace",
        "ports",
        "subjectAltNames",
        "vips",
        "visibility",
    ];
    assert_eq!(keys(&dump["services"][0]), service.into());
    assert_eq!(dump["stagedServices"], json!({}));
    assert_eq!(dump["policies"], json!([]));
}

#[tokio::test]
async fn workloads_and_services_as_ztunnel_writes_them() {
    let dump = dump(read(FULL)).await;
    assert_eq!(
        dump["workloads"],
        json!([{
            "uid": "cluster1//Pod/shop/store-1", "name": "store-1", "namespace": "shop",
            "workloadIps": ["10.0.0.1", "fd00::1"], "protocol": "HBONE", "hbonePort": 15018,
            "networkMode": "HostNetwork", "trustDomain": "mesh.example", "serviceAccount": "store",
            "network": "net-1", "workloadName": "store", "workloadType": "cronjob",
            "canonicalName": "the-store", "canonicalRevision": "v2", "hostname": "store.example",
            "node": "n1", "nativeTunnel": true,
            "applicationTunnel": {"protocol": "PROXY", "port": 15088},
            "authorizationPolicies": ["shop/allow", "root/deny"], "status": "Unhealthy",
            "clusterId": "cluster1",
            "locality": {"region": "eu", "zone": "eu-1", "subzone": "rack"}, "capacity": 3,
            "waypoint": {"destination": "net-1/10.0.0.9", "hboneMtlsPort": 15008},
            "networkGateway": {"destination": "istio-system/east.example", "hboneMtlsPort": 15009},
            "services": ["shop/later.example", "shop/store.example"],
        }])
    );
    let uid = "cluster1//Pod/shop/store-1";
    assert_eq!(
        dump["services"],
        json!([{
            "name": "store", "namespace": "shop", "hostname": "store.example",
            "vips": ["net-1/10.1.0.1"],
            "cidrVips": [{"network": "net-1", "cidr": "10.2.0.0/16"}],
            "ports": {"80": 8080, "81": 0},
            "endpoints": {uid: {"workloadUid": uid, "port": {"80": 8080}, "status": "Unhealthy"}},
            "subjectAltNames": ["spiffe://mesh.example/ns/shop/sa/store"],
            "waypoint": {"destination": "shop/waypoint.example", "hboneMtlsPort": 15008},
            "weightedWaypoints": [{
                "destination": {"destination": "shop/waypoint.example", "hboneMtlsPort": 15008},
                "weight": 7,
            }],
            "loadBalancer": {
                "routingPreferences": ["Region", "Zone"], "mode": "Failover", "healthPolicy": "AllowAll",
            },
            "ipFamilies": "Dual", "canonical": true, "visibility": "Namespace",
        }])
    );
    let endpoint = json!({"workloadUid": uid, "port": {"80": 8081}, "status": "Unhealthy"});
    assert_eq!(
        dump["stagedServices"],
        json!({"shop/later.example": {uid: endpoint}})
    );
}

#[tokio::test]
async fn policies_as_they_were_read() {
    let dump = dump(read(FULL)).await;
    let names: Vec<_> = dump["policies"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names, ["deny", "allow", "nothing"]);
    let shape = ["action", "dryRun", "name", "namespace", "rules", "scope"];
    for policy in dump["policies"].as_array().unwrap() {
        assert_eq!(keys(policy), shape.into(), "{policy}");
    }
    let allow = &dump["policies"][1];
    assert_eq!(
        allow["rules"],
        json!([
            [
                [
                    {
                        "namespaces": [{"Exact": "shop"}, {"Prefix": "s"}],
                        "notNamespaces": [{"Suffix": "p"}],
                        "serviceAccounts": [{"namespace": "shop", "serviceAccount": "cart"}],
                        "notServiceAccounts": [{"namespace": "shop", "serviceAccount": "till"}],
                        "principals": [{"Presence": []}],
                        "notPrincipals": [{"Exact": "cluster.local/ns/x/sa/y"}],
                        "sourceIps": ["10.0.0.0/8"], "notSourceIps": ["10.9.0.0/16"],
                        "destinationIps": ["10.0.0.1/32"], "notDestinationIps": ["fd00::/8"],
                        "destinationPorts": [80, 443], "notDestinationPorts": [22],
                    },
                    {"destinationPorts": [8080]},
                ],
                [{"notNamespaces": [{"Exact": "evil"}, {"Exact": "bad"}]}],
            ],
            [[{}]],
            [],
        ])
    );
    assert_eq!(dump["policies"][0]["rules"], json!([[[{}]]]));
    // What reads ztunnel's file reads its dump, to the same end.
    let again = json!({"policies": dump["policies"]}).to_string();
    let of = |updates: Vec<Update>| -> Vec<String> {
        let mut policies: Vec<_> = updates
            .iter()
            .filter(|update| matches!(update, Update::Policy(_)))
            .map(|update| format!("{update:?}"))
            .collect();
        policies.sort();
        policies
    };
    assert_eq!(of(read(&again)), of(read(FULL)));
}

#[tokio::test]
async fn policies_that_need_a_request_are_told_whole() {
    let dump = dump(read(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: viewers, namespace: shop}
spec:
  action: ALLOW
  rules:
  - from: [{source: {namespaces: [shop], principals: ["cluster.local/ns/shop/sa/*"]}}]
    to: [{operation: {methods: [GET], ports: ["80"]}}]
    when:
    - {key: "request.headers[authorization]", values: ["Bearer hunter2"]}
  - from: [{source: {namespaces: [shop]}}, {source: {ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {ports: ["80"]}}]
"#,
    ))
    .await;
    let policy = &dump["policies"][0];
    assert_eq!(policy["scope"], "Namespace");
    let from = json!([{
        "namespaces": [{"Exact": "shop"}],
        "principals": [{"Prefix": "cluster.local/ns/shop/sa/"}],
    }]);
    // As istiod sends what it takes away: a match without fields, which holds for nobody.
    assert_eq!(policy["rules"][0], json!([from, [{}], [{}]]));
    assert_eq!(
        policy["rules"][1],
        json!([
            [{"namespaces": [{"Exact": "shop"}]}, {"sourceIps": ["10.0.0.0/8"]}],
            [{"destinationPorts": [80]}],
        ])
    );
    assert_eq!(policy["expressions"].as_array().unwrap().len(), 1);
    assert_eq!(policy["expressions"][0]["rule"], 0);
    let whole = policy["expressions"][0]["when"].to_string();
    for part in [
        "source namespace is shop",
        "method is GET",
        "destination port is 80",
        "header authorization is what the policy says",
    ] {
        assert!(whole.contains(part), "{whole}");
    }
    assert!(!dump.to_string().contains("hunter2"));
}

#[tokio::test]
async fn certificates_without_their_keys() {
    let answer: Answer = {
        let node = node(read(FULL));
        let mesh = node.workload("shop", "store-1", "store").unwrap();
        mesh.ready().await.unwrap();
        get(&mesh.admin(), "/config_dump").await
    };
    let dump = answer.json();
    let certificate = &dump["certificates"][0];
    assert_eq!(
        keys(certificate),
        ["certChain", "identity", "rootCerts", "state"].into()
    );
    assert_eq!(
        certificate["identity"],
        "spiffe://cluster.local/ns/shop/sa/store"
    );
    assert_eq!(certificate["state"], "Available");
    for list in ["certChain", "rootCerts"] {
        let one = &certificate[list][0];
        assert_eq!(
            keys(one),
            ["expirationTime", "pem", "serialNumber", "validFrom"].into()
        );
        let serial = one["serialNumber"].as_str().unwrap();
        assert!(serial.bytes().all(|byte| byte.is_ascii_digit()), "{serial}");
        for time in ["validFrom", "expirationTime"] {
            let time = one[time].as_str().unwrap();
            assert!(
                time.len() == 20 && time.ends_with('Z') && &time[10..11] == "T",
                "{time}"
            );
        }
        // base64 of "-----BEGIN CERTIFICATE-----".
        assert!(
            one["pem"]
                .as_str()
                .unwrap()
                .starts_with("LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0t")
        );
    }
    // "PRIVATE KEY" as it is, and in base64 at each of the three offsets.
    for key in [
        "PRIVATE KEY",
        "UFJJVkFURSBLRV",
        "BSSVZBVEUgS0VZ",
        "QUklWQVRFIEtFW",
    ] {
        assert!(!answer.text.contains(key), "{key}");
    }
}

#[tokio::test]
async fn a_workload_that_waits_is_pending() {
    let node = node(Vec::new());
    let mesh = node.workload("shop", "nobody", "nobody").unwrap();
    mesh.ready().await.unwrap();
    let dump = get(&mesh.admin(), "/config_dump").await.json();
    let state = &dump["workloadState"]["shop/nobody"];
    assert_eq!(state["state"], "Pending");
    assert_eq!(state.get("connections"), None);
    let info = json!({"name": "nobody", "namespace": "shop", "serviceAccount": "nobody"});
    assert_eq!(state["info"], info);
}

#[tokio::test]
async fn live_connections_stand_with_their_workload() {
    let node = node(vec![Workload::new("uid-1", "shop", "store-1").into()]);
    let mesh: Mesh = node.workload("shop", "store-1", "default").unwrap();
    let mut listener = mesh.listen(0).await.unwrap();
    let client = TcpStream::connect(listener.local_addr()).await.unwrap();
    let server = listener.accept().await.unwrap();

    let dump = get(&mesh.admin(), "/config_dump").await.json();
    let state = &dump["workloadState"]["uid-1"];
    assert_eq!(state["state"], "Up");
    let port = listener.local_addr().port().to_string();
    assert_eq!(state["listeners"], json!({ port: "tcp" }));
    let inbound = json!([{
        "src": client.local_addr().unwrap().to_string(), "originalDst": null,
        "actualDst": listener.local_addr().to_string(), "protocol": "TCP",
    }]);
    assert_eq!(
        state["connections"],
        json!({"inbound": inbound, "outbound": []})
    );

    drop(server);
    let dump = get(&mesh.admin(), "/config_dump").await.json();
    let state = &dump["workloadState"]["uid-1"];
    assert_eq!(state["connections"], json!({"inbound": [], "outbound": []}));
}
