use std::fs;

use super::address::entry_name;
use super::*;

/// As istioctl writes them: nearly every value in quotes, what it does not know empty.
const ENV: &str = r#"
# from istioctl
CANONICAL_REVISION='latest'
CANONICAL_SERVICE='forum'
ISTIO_INBOUND_PORTS='*'
ISTIO_METAJSON_LABELS='{"app":"forum","service.istio.io/canonical-name":"forum","note":"it'"'"'s"}'
ISTIO_META_AUTO_REGISTER_GROUP='forum'
ISTIO_META_CLUSTER_ID='west-cluster'
ISTIO_META_DNS_CAPTURE='true'
ISTIO_META_MESH_ID=''
ISTIO_META_NETWORK='vm-network'
ISTIO_META_WORKLOAD_NAME='forum'
ISTIO_NAMESPACE='forum-ns'
ISTIO_SERVICE='forum.forum-ns'
ISTIO_SVC_IP='192.168.10.200'
POD_NAMESPACE='forum-ns'
SERVICE_ACCOUNT='forum-sa'
TRUST_DOMAIN=''
"#;

const MESH: &str = "
defaultConfig:
  discoveryAddress: istiod-canary.istio-system.svc:15012
  proxyMetadata:
    ISTIO_META_WORKLOAD_NAME: from-mesh-yaml
    POD_NAMESPACE: from-mesh-yaml
  readinessProbe:
    httpGet: {path: /ready, port: 8080}
";

const HOSTS: &str = "203.0.113.7 istiod-canary.istio-system.svc\n";

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn error(files: &[(&str, &str)]) -> String {
    let dir = folder(files);
    let error = Host::read(dir.path()).unwrap_err();
    let text = error.detail().unwrap().to_owned();
    let path = format!("{}/", dir.path().display());
    text.replace(&path, "")
}

#[test]
fn five_files_say_all() {
    let dir = folder(&[
        ("cluster.env", ENV),
        ("mesh.yaml", MESH),
        ("root-cert.pem", ""),
        ("istio-token", ""),
        ("hosts", HOSTS),
    ]);
    let host = Host::read(dir.path()).unwrap();
    let expected = WorkloadId::new("forum-ns", "forum-192.168.10.200-vm-network", "forum-sa");
    assert_eq!(host.workload, expected);
    assert_eq!((host.trust_domain, &*host.network), (None, "vm-network"));
    let own: IpAddr = "192.168.10.200".parse().unwrap();
    let node = host
        .xds
        .node(Some(&host.workload), &[own], &host.network, None);
    assert_eq!(
        node.id(),
        "sidecar~192.168.10.200~forum-192.168.10.200-vm-network.forum-ns~forum-ns.svc.cluster.local"
    );
    let text = format!("{node:?}");
    for part in [
        r#""AUTO_REGISTER_GROUP": Text("forum")"#,
        r#""CLUSTER_ID": Text("west-cluster")"#,
        r#""NETWORK": Text("vm-network")"#,
        r#""WORKLOAD_NAME": Text("forum")"#,
        r#""note": Text("it's")"#,
        r#""readinessProbe": Map({"httpGet": Map({"path": Text("/ready"), "port": Number(8080.0)})})"#,
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(
        !text.contains("MESH_ID") && !text.contains(r#""DNS_CAPTURE": Text"#),
        "{text}"
    );
    let probe = Probe::http(8080).path("/ready");
    assert_eq!(host.probe, Some(probe.host("192.168.10.200")));
    assert_eq!(
        host.authority.address(),
        "istiod-canary.istio-system.svc:15012"
    );
    let said = format!("{:?}", host.authority);
    assert!(said.contains("203.0.113.7"), "{said}");
}

/// Whoever has written the files without `--autoregister` waits for what nobody makes.
#[test]
fn what_makes_a_host_a_member_is_said_of_one_that_registers_and_of_one_that_does_not() {
    let record = |env: &str| {
        let dir = folder(&[
            ("cluster.env", env),
            ("mesh.yaml", MESH),
            ("root-cert.pem", ""),
        ]);
        let host = Host::read(dir.path()).unwrap();
        let path = format!("{}/", dir.path().display());
        host.record_is.replace(&path, "")
    };
    let registers = record(ENV);
    assert!(
        registers.contains("by the WorkloadGroup forum-ns/forum,"),
        "{registers}"
    );
    let not = record(&ENV.replace("GROUP='forum'", "GROUP=''"));
    let expected = "cluster.env has no ISTIO_META_AUTO_REGISTER_GROUP, which --autoregister writes";
    assert!(
        not.starts_with("a WorkloadEntry of this name,") && not.ends_with(expected),
        "{not}"
    );
}

#[test]
fn the_places_of_an_installed_agent_and_mesh_yaml_alone_will_do() {
    let mesh = "
defaultConfig:
  proxyMetadata: {POD_NAMESPACE: ns, SERVICE_ACCOUNT: '', ISTIO_META_WORKLOAD_NAME: vm, TRUST_DOMAIN: td, ISTIO_SVC_IP: 'fd00::7'}
";
    let dir = folder(&[
        ("etc/istio/config/mesh", mesh),
        ("etc/certs/root-cert.pem", ""),
    ]);
    let host = Host::read(dir.path()).unwrap();
    assert_eq!(host.workload, WorkloadId::new("ns", "vm", "default"));
    assert_eq!(host.trust_domain.as_deref(), Some("td"));
    assert_eq!(host.authority.address(), CONTROL_PLANE);
}

/// `--externalIP`: the host does not have the address by which others know it.
#[test]
fn a_host_behind_an_address_of_others_probes_itself() {
    let mesh = "
defaultConfig:
  proxyMetadata: {POD_NAMESPACE: ns, ISTIO_META_WORKLOAD_NAME: vm, ISTIO_SVC_IP: 203.0.113.9, REWRITE_PROBE_LEGACY_LOCALHOST_DESTINATION: 'true'}
  readinessProbe: {tcpSocket: {port: 9000}, periodSeconds: 5}
";
    let dir = folder(&[("mesh.yaml", mesh), ("root-cert.pem", "")]);
    let host = Host::read(dir.path()).unwrap();
    let expected = Probe::tcp(9000).period(std::time::Duration::from_secs(5));
    assert_eq!(host.probe, Some(expected.host("localhost")));
}

/// V006: it is the name of both services, wherever certificates come from.
#[test]
fn the_name_of_the_control_plane_can_be_another_than_its_address() {
    let mesh = "
defaultConfig:
  discoveryAddress: 192.0.2.1:15012
  proxyMetadata: {POD_NAMESPACE: ns, ISTIO_META_WORKLOAD_NAME: vm, ISTIO_SVC_IP: 192.0.2.9, ISTIOD_SAN: istiod.example}
";
    for authority in ["", "CA_ADDR='192.0.2.2:15012'\n"] {
        let dir = folder(&[
            ("mesh.yaml", mesh),
            ("cluster.env", authority),
            ("root-cert.pem", ""),
        ]);
        let host = Host::read(dir.path()).unwrap();
        let expected = r#"server_names: ["istiod.example"]"#;
        for said in [format!("{:?}", host.authority), format!("{:?}", host.xds)] {
            assert!(said.contains(expected), "{said}");
        }
    }
}

/// V001: of a host without a group's metadata, and of one that is known by IPv6.
#[test]
fn the_forms_that_istioctl_writes_are_read() {
    let read = |env: &str, mesh: &str| {
        let dir = folder(&[
            ("cluster.env", env),
            ("mesh.yaml", mesh),
            ("root-cert.pem", ""),
        ]);
        Host::read(dir.path()).unwrap()
    };
    let env = ENV.replace("192.168.10.200", "2001:db8::c8");
    let host = read(&env, "defaultConfig: {}");
    assert_eq!(host.workload.name(), "forum-2001-db8--c8-vm-network");
    // A class of safe characters that holds nearly none, so that nearly all is in quotes.
    let plain = "ISTIO_NAMESPACE=www\nISTIO_META_WORKLOAD_NAME='bar'\nISTIO_SVC_IP='10.10.10.10'\nPOD_NAMESPACE=''\nSERVICE_ACCOUNT=''\nTRUST_DOMAIN=''\n";
    let host = read(plain, "defaultConfig:\n  proxyMetadata:\n");
    assert_eq!(host.workload, WorkloadId::new("www", "bar", "default"));
    assert_eq!((host.trust_domain, &*host.network), (None, ""));
    assert_eq!(host.probe, None);
}

#[test]
fn entries_are_named_as_istiod_names_them() {
    let name =
        |group: &str, own: &str, network: &str| entry_name(group, own.parse().unwrap(), network);
    assert_eq!(name("forum", "10.0.0.1", ""), "forum-10.0.0.1");
    assert_eq!(name("forum", "fd00::7", "n"), "forum-fd00--7-n");
    let long = name(&"g".repeat(300), "10.0.0.1", "");
    assert!(long.len() == 253 && long.ends_with("g-10.0.0.1"), "{long}");
}

/// A host of a group whose address the files do not have, with `hosts` as istioctl leaves it.
fn registering(hosts: &str) -> Registering {
    let env = ENV.replace("192.168.10.200", "");
    let dir = folder(&[
        ("cluster.env", &env),
        ("mesh.yaml", MESH),
        ("root-cert.pem", ""),
        ("hosts", hosts),
    ]);
    let host = Host::read(dir.path()).unwrap();
    assert_eq!(host.probe, Some(Probe::http(8080).path("/ready")));
    host.registering.unwrap()
}

/// A state directory in which these were kept, the last one last.
fn state(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("discovery")).unwrap();
    let mut saved = std::time::SystemTime::UNIX_EPOCH;
    for name in names {
        let path = dir.path().join(format!("discovery/{name}.snapshot"));
        let file = fs::File::create(path).unwrap();
        saved += std::time::Duration::from_secs(60);
        file.set_modified(saved).unwrap();
    }
    dir
}

#[test]
fn an_address_that_nobody_says_is_that_of_the_route_to_a_control_plane_that_is_pinned() {
    let mut host = registering("127.0.0.1 istiod-canary.istio-system.svc");
    let expected = WorkloadId::new("forum-ns", "forum-127.0.0.1-vm-network", "forum-sa");
    assert_eq!(host.workload(), expected);
    let state = state(&["forum-ns_forum-127.0.0.2-vm-network"]);
    assert_eq!(host.restore(state.path()), None, "it is another now");
    assert_eq!(host.workload(), expected);
    host.check().unwrap();
}

#[test]
fn without_a_route_the_last_process_says_the_address() {
    let mut host = registering("");
    host.found = Found::None("there is no network".to_owned());
    let error = host.check().unwrap_err();
    let text = error.detail().unwrap();
    assert!(
        text.contains("cluster.env: ISTIO_SVC_IP: ") && text.contains("there is no network"),
        "{text}"
    );
    assert_eq!(host.restore(tempfile::tempdir().unwrap().path()), None);
    // Of other groups, namespaces and networks, and of nobody.
    let others = [
        "forum-ns_another-127.0.0.2-vm-network",
        "default_forum-127.0.0.2-vm-network",
        "forum-ns_forum-127.0.0.2",
        "forum-ns_forum-here-vm-network",
    ];
    assert_eq!(host.restore(state(&others).path()), None);
    // The documentation's addresses are no host's; an interface that is to come may have had the last one.
    let kept = |names: &[&str]| {
        let names = names
            .iter()
            .map(|own| format!("forum-ns_forum-{own}-vm-network"));
        let names: Vec<_> = names.collect();
        state(&names.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut away = host.clone();
    let last = kept(&["192.0.2.7", "2001-db8--c8"]);
    let (id, own) = away.restore(last.path()).unwrap();
    assert_eq!(own, "2001:db8::c8".parse::<IpAddr>().unwrap());
    assert_eq!(id.name(), "forum-2001-db8--c8-vm-network");
    away.check().unwrap();
    // One that the host has goes before one that is newer.
    let (_, own) = host
        .restore(kept(&["127.0.0.2", "192.0.2.7"]).path())
        .unwrap();
    assert_eq!(own, "127.0.0.2".parse::<IpAddr>().unwrap());
}

#[test]
fn by_its_default_route_a_host_keeps_an_address_only_if_it_still_has_it() {
    let mut host = registering("");
    host.found = Found::Default("127.0.0.1".parse().unwrap());
    let gone = state(&["forum-ns_forum-192.0.2.7-vm-network"]);
    assert_eq!(host.restore(gone.path()), None);
    assert_eq!(host.workload().name(), "forum-127.0.0.1-vm-network");
    let here = state(&["forum-ns_forum-127.0.0.2-vm-network"]);
    let (id, _) = host.restore(here.path()).unwrap();
    assert_eq!(id.name(), "forum-127.0.0.2-vm-network");
}

/// Behind NAT two of a group may share a directory, and no interface has the address of either.
#[test]
fn a_host_whose_own_address_is_not_here_has_had_none() {
    let former = "forum-192.0.2.7-vm-network";
    let mut host = registering("");
    for (own, had) in [("127.0.0.1", true), ("192.0.2.8", false)] {
        host.found = Found::Said(own.parse().unwrap());
        assert_eq!(host.had(former), had, "{own}");
        assert!(!host.had("forum-127.0.0.2-vm-network"), "it is here");
        assert!(!host.had(host.workload().name()));
    }
}

#[test]
fn errors_name_file_and_key() {
    let with = |env: &str| {
        error(&[
            ("cluster.env", env),
            ("mesh.yaml", ""),
            ("root-cert.pem", ""),
        ])
    };
    assert_eq!(error(&[]), "mesh.yaml is missing");
    assert_eq!(error(&[("mesh.yaml", "")]), "root-cert.pem is missing");
    assert_eq!(with("A=1\nB"), "cluster.env: line 2: expected KEY=value");
    assert_eq!(
        with("A='x"),
        "cluster.env: line 1: A: expected an end of the quotes on the same line"
    );
    assert_eq!(
        with("ISTIO_SVC_IP=here"),
        "cluster.env: ISTIO_SVC_IP: expected an IP address, found \"here\""
    );
    assert_eq!(
        with("ISTIO_SVC_IP=10.0.0.1"),
        "cluster.env: ISTIO_NAMESPACE: expected the namespace of this host, found nothing"
    );
    assert_eq!(
        with("ISTIO_SVC_IP=10.0.0.1\nPOD_NAMESPACE=ns"),
        "cluster.env: ISTIO_META_WORKLOAD_NAME: expected the name of this host's WorkloadEntry, found nothing"
    );
    let labels = with(
        "ISTIO_SVC_IP=10.0.0.1\nPOD_NAMESPACE=ns\nISTIO_META_WORKLOAD_NAME=n\nISTIO_METAJSON_LABELS='{\"a'",
    );
    assert!(
        labels.starts_with("cluster.env: ISTIO_METAJSON_LABELS: expected JSON: "),
        "{labels}"
    );
    let mesh = |text: &str| error(&[("mesh.yaml", text), ("root-cert.pem", "")]);
    assert_eq!(
        mesh("defaultConfig: 1"),
        "mesh.yaml: defaultConfig: expected a mapping"
    );
    assert!(
        mesh("a: [").starts_with("mesh.yaml:1: "),
        "{}",
        mesh("a: [")
    );
    assert_eq!(
        mesh("defaultConfig: {proxyMetadata: {POD_NAMESPACE: 1}}"),
        "mesh.yaml: defaultConfig.proxyMetadata.POD_NAMESPACE: expected a string"
    );
    let probe = error(&[
        (
            "cluster.env",
            "ISTIO_SVC_IP=10.0.0.1\nPOD_NAMESPACE=ns\nISTIO_META_WORKLOAD_NAME=n",
        ),
        (
            "mesh.yaml",
            "defaultConfig: {readinessProbe: {httpGet: {path: /}}}",
        ),
        ("root-cert.pem", ""),
    ]);
    assert_eq!(
        probe,
        "mesh.yaml: defaultConfig.readinessProbe.httpGet.port: expected a number of 1 to 65535"
    );
    let hosts = error(&[
        ("mesh.yaml", ""),
        ("root-cert.pem", ""),
        ("hosts", "istiod 10.0.0.1"),
    ]);
    assert_eq!(
        hosts,
        "hosts: line 1: expected an IP address, found \"istiod\""
    );
}

/// V001.
#[test]
fn values_are_quoted_as_for_a_shell() {
    let read = |text: &str| variables::read(Path::new("cluster.env"), text).unwrap();
    let variables = read(
        "A=plain\nexport B='a b'\"c \\\" \\$ \\x\"\\'d # comment\nC=\nD=''\nE='a'\"'\"'b'\r\nA=last\n",
    );
    let get = |key: &str| variables[key].as_str();
    assert_eq!(get("A"), "last");
    assert_eq!(get("B"), "a bc \" $ \\x'd");
    assert_eq!((get("C"), get("D"), get("E")), ("", "", "a'b"));
}
