//! Kubernetes manifests as people have them.

use std::time::Duration;

use mesh_authz::matcher::StringMatch;
use mesh_authz::policy::{Action, PolicyName};
use mesh_xds::file::{Loaded, Loader, Settings};
use mesh_xds::model::*;

pub(crate) fn load(text: &str) -> (Loader, Loaded) {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
    assert!(loaded.problems().is_empty(), "{:#?}", loaded.problems());
    (loader, loaded)
}

pub(crate) fn workload(loader: &Loader, name: &str) -> Workload {
    let mut found = loader.resources().filter_map(|update| match update {
        Update::Workload(workload) if workload.name() == name => Some(workload.clone()),
        _ => None,
    });
    found.next().unwrap_or_else(|| panic!("no workload {name}"))
}

pub(crate) fn service(loader: &Loader, hostname: &str) -> Service {
    let mut found = loader.resources().filter_map(|update| match update {
        Update::Service(service) if service.hostname() == hostname => Some((**service).clone()),
        _ => None,
    });
    found
        .next()
        .unwrap_or_else(|| panic!("no service {hostname}"))
}

fn policies(loader: &Loader) -> Vec<AttachedPolicy> {
    let policies = loader.resources().filter_map(|update| match update {
        Update::Policy(policy) => Some((**policy).clone()),
        _ => None,
    });
    policies.collect()
}

/// The shape of Istio's own sample: Services, ServiceAccounts and Deployments, no Pods.
#[test]
fn a_sample_without_pods_loads_and_names_what_it_skips() {
    let (loader, loaded) = load(
        r#"
apiVersion: v1
kind: Service
metadata:
  name: details
  labels: {app: details, service: details}
spec:
  ports:
  - port: 9080
    name: http
  selector:
    app: details
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: bookinfo-details
  labels: {account: details}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: details-v1
spec: {replicas: 1}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: details-v2
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: details}
---
"#,
    );
    let skipped: Vec<_> = loaded.skipped().iter().map(ToString::to_string).collect();
    assert_eq!(
        skipped,
        [
            "mesh.yaml:2: spec.selector: chooses no workload of these files: Service default/details has no endpoint",
            "mesh.yaml:20: kind: Deployment says nothing to the mesh: passed over",
            "mesh.yaml:31: kind: DestinationRule says nothing to the mesh: passed over",
        ]
    );
    let details = service(&loader, "details.default.svc.cluster.local");
    assert!(details.addresses().is_empty());
    assert_eq!(
        details.ports(),
        [Port::new(9080)
            .with_target_port(9080)
            .with_app_protocol(AppProtocol::Http11)]
    );
    assert_eq!(loader.resources().count(), 1);
}

#[test]
fn kinds_are_named_once() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let (mut loader, first) = load(text);
    assert_eq!(first.skipped()[0].line(), 1);
    let said = first.skipped()[0].message();
    assert_eq!(said, "ConfigMap says nothing to the mesh: passed over");
    let again = loader.load(vec![("mesh.yaml".into(), text.into())]);
    assert!(again.skipped().is_empty());
}

const LAPTOP: &str = r#"
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
- apiVersion: v1
  kind: Service
  metadata: {name: store, namespace: shop}
  spec:
    selector: {app: store}
    ports:
    - {name: http, port: 80, targetPort: web}
    - {name: grpc-api, port: 81, targetPort: 9090}
    - {name: dns, port: 53, protocol: UDP}
- apiVersion: v1
  kind: Pod
  metadata:
    generateName: store-7c9d-
    name: store-7c9d-x
    namespace: shop
    labels: {app: store, version: v2, pod-template-hash: 7c9d}
    annotations: {hbone-port: "15018"}
    ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: store-7c9d, uid: u, controller: true}]
  spec:
    serviceAccountName: store
    containers: [{name: app, ports: [{name: web, containerPort: 8080}, {name: web, containerPort: 1, protocol: UDP}]}]
  status: {podIP: 127.0.0.2}
- apiVersion: networking.istio.io/v1
  kind: WorkloadEntry
  metadata: {name: store-vm, namespace: shop, labels: {app: store}, annotations: {hbone-port: "15019"}}
  spec: {address: 127.0.0.2, serviceAccount: store, ports: {web: 18080, grpc-api: 19090}, weight: 2}
- apiVersion: networking.istio.io/v1
  kind: WorkloadEntry
  metadata: {name: old-vm, namespace: shop, labels: {app: store}}
  spec: {address: 127.0.0.3}
"#;

#[test]
fn pods_and_entries_on_one_machine() {
    let (loader, _) = load(LAPTOP);
    let pod = workload(&loader, "store-7c9d-x");
    assert_eq!(pod.uid(), "Kubernetes//Pod/shop/store-7c9d-x");
    assert_eq!(pod.protocol(), TunnelProtocol::Hbone);
    assert_eq!(pod.hbone_port(), 15018);
    assert!(pod.native_tunnel());
    assert_eq!(pod.workload_type(), WorkloadType::Deployment);
    assert_eq!(pod.workload_name(), "store");
    assert_eq!(
        (pod.canonical_name(), pod.canonical_revision()),
        ("store", "v2")
    );
    let name = ServiceName::new("shop", "store.shop.svc.cluster.local");
    let ports = |http, grpc| {
        vec![
            Port::new(80).with_target_port(http),
            Port::new(81).with_target_port(grpc),
        ]
    };
    assert_eq!(
        pod.services(),
        [Membership::new(name.clone()).with_ports(ports(8080, 9090))]
    );
    let vm = workload(&loader, "store-vm");
    assert_eq!(vm.hbone_port(), 15019);
    assert_eq!(vm.capacity(), 2);
    assert_eq!(
        vm.services(),
        [Membership::new(name.clone()).with_ports(ports(18080, 19090))]
    );
    // A namespace's label is for its Pods; and an entry without the named port has not got it.
    let old = workload(&loader, "old-vm");
    assert_eq!(old.protocol(), TunnelProtocol::None);
    let only_grpc = vec![Port::new(81).with_target_port(9090)];
    assert_eq!(
        old.services(),
        [Membership::new(name).with_ports(only_grpc)]
    );
    let store = service(&loader, "store.shop.svc.cluster.local");
    let declared: Vec<_> = store
        .ports()
        .iter()
        .map(|port| port.service_port())
        .collect();
    assert_eq!(declared, [80, 81]);
    assert_eq!(store.ports()[0].target_port(), None);
    assert_eq!(store.ports()[1].app_protocol(), AppProtocol::Grpc);
}

#[test]
fn labels_enrol_pods_and_exceptions_hold() {
    let pod = |name: &str, labels: &str, annotations: &str, spec: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: shop\n  labels: {{{labels}}}\n  \
             annotations: {{{annotations}}}\nspec: {{{spec}}}\nstatus: {{podIP: 10.0.0.1}}\n"
        )
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
    let text = [
        namespace.to_owned(),
        pod("plain", "", "", ""),
        pod("out", "istio.io/dataplane-mode: none", "", ""),
        pod("host", "", "", "hostNetwork: true"),
        pod("sidecar", "", "sidecar.istio.io/status: '{}'", ""),
        pod("way", "gateway.networking.k8s.io/gateway-name: way", "", ""),
        pod(
            "native",
            "networking.istio.io/tunnel: http, istio.io/dataplane-mode: none",
            "",
            "",
        ),
        pod(
            "host-in",
            "",
            "ambient.istio.io/redirection: enabled",
            "hostNetwork: true",
        ),
    ];
    let (loader, _) = load(&text.concat());
    let hbone = |name: &str| workload(&loader, name).protocol() == TunnelProtocol::Hbone;
    assert!(hbone("plain") && hbone("native") && hbone("host-in"));
    assert!(!hbone("out") && !hbone("host") && !hbone("sidecar") && !hbone("way"));
    assert!(workload(&loader, "native").native_tunnel());
    assert!(!workload(&loader, "plain").native_tunnel());
    assert_eq!(
        workload(&loader, "host").network_mode(),
        NetworkMode::HostNetwork
    );
}

#[test]
fn controllers_are_found_by_their_owners() {
    let pod = |name: &str, owner: &str, controller: &str, generated: bool| {
        let generate = if generated {
            "generateName: g-"
        } else {
            "generateName:"
        };
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  {generate}\n  labels: {{pod-template-hash: abc}}\n  \
             ownerReferences: [{{kind: {owner}, name: {controller}, controller: true}}]\nstatus: {{podIP: 10.0.0.1}}\n"
        )
    };
    let text = [
        pod("a", "ReplicaSet", "shop-abc", true),
        pod("b", "ReplicaSet", "bare", true),
        pod("c", "Job", "report-29312345", true),
        pod("d", "Job", "report", true),
        pod("e", "StatefulSet", "db", true),
        pod("f", "ReplicaSet", "shop-abc", false),
    ];
    let (loader, _) = load(&text.concat());
    let controller = |name: &str| {
        let workload = workload(&loader, name);
        (
            workload.workload_type(),
            workload.workload_name().to_owned(),
        )
    };
    assert_eq!(controller("a"), (WorkloadType::Deployment, "shop".into()));
    assert_eq!(controller("b"), (WorkloadType::Pod, "b".into()));
    assert_eq!(controller("c"), (WorkloadType::CronJob, "report".into()));
    assert_eq!(controller("d"), (WorkloadType::Job, "report".into()));
    assert_eq!(controller("e"), (WorkloadType::Pod, "e".into()));
    assert_eq!(controller("f"), (WorkloadType::Pod, "f".into()));
}

#[test]
fn slices_without_pods_are_workloads() {
    let (loader, _) = load(
        r#"
apiVersion: v1
kind: Service
metadata: {name: db}
spec: {ports: [{name: sql, port: 5432}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 15432}]
endpoints:
- addresses: [192.0.2.7]
- addresses: [192.0.2.8]
  conditions: {ready: false}
- addresses: [192.0.2.9]
  targetRef: {kind: Pod, name: gone}
"#,
    );
    let uids: Vec<_> = loader
        .resources()
        .filter_map(|update| match update {
            Update::Workload(workload) => Some((workload.uid().to_owned(), workload.health())),
            _ => None,
        })
        .collect();
    let uid = |ip: &str| format!("Kubernetes/discovery.k8s.io/EndpointSlice/default/db-1/{ip}");
    assert_eq!(
        uids,
        [
            (uid("192.0.2.7"), Health::Healthy),
            (uid("192.0.2.8"), Health::Unhealthy)
        ]
    );
    let db = workload(&loader, "db-1");
    assert_eq!(
        db.services()[0].ports(),
        [Port::new(5432).with_target_port(15432)]
    );
}

#[test]
fn waypoints_follow_labels_scope_and_permission() {
    let (loader, _) = load(
        r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: way}}
---
apiVersion: v1
kind: Namespace
metadata: {name: guest, labels: {team: blue}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: way, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
    allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {team: blue}}}}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: guest, labels: {istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: shop}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: guest, labels: {istio.io/use-waypoint: way, istio.io/use-waypoint-namespace: shop}}
status: {podIP: 10.0.0.1}
"#,
    );
    let way = ServiceName::new("shop", "way.shop.svc.cluster.local");
    let expected = GatewayAddress::new(GatewayDestination::Hostname(way), 15008);
    let a = service(&loader, "a.guest.svc.cluster.local");
    assert_eq!(a.waypoint(), Some(&expected));
    // Its own namespace is not among those that the listener allows; and workloads are not its business.
    assert_eq!(
        service(&loader, "b.shop.svc.cluster.local").waypoint(),
        None
    );
    assert_eq!(workload(&loader, "p").waypoint(), None);
    let gateway = loader.resources().find_map(|update| match update {
        Update::Gateway(gateway) => Some((**gateway).clone()),
        _ => None,
    });
    let allowed = AllowedNamespaces::Selected(vec!["guest".into()]);
    let listener = Listener::new("mesh", 15008, "HBONE").with_allowed_namespaces(allowed);
    let name = ObjectName::new("shop", "way");
    assert_eq!(
        gateway,
        Some(Gateway::new(name, "istio-waypoint").with_listeners(vec![listener]))
    );
}

#[test]
fn authorization_policies_are_whole_and_attached() {
    let (loader, _) = load(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop, labels: {app: store}}
status: {podIP: 10.0.0.1}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: l7, namespace: shop}
spec:
  selector: {matchLabels: {app: store}}
  rules: [{to: [{operation: {methods: [GET]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: everywhere, namespace: istio-system}
spec: {selector: {matchLabels: {app: store}}, action: DENY, rules: [{from: [{source: {namespaces: [evil]}}]}]}
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: other, namespace: bank}
spec: {selector: {matchLabels: {app: store}}, action: AUDIT}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nothing, namespace: shop}
spec:
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mesh, namespace: istio-system, annotations: {istio.io/dry-run: "true"}}
spec: {action: CUSTOM, provider: {name: ext}, rules: [{}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: way, namespace: istio-system}
spec:
  targetRefs:
  - {kind: GatewayClass, group: gateway.networking.k8s.io, name: istio-waypoint}
  - {kind: Gateway, group: gateway.networking.k8s.io, name: g}
  - {kind: ServiceEntry, group: networking.istio.io, name: e}
  - {kind: Service, name: s}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: shop}
spec:
  selector: {matchLabels: {app: store}}
  jwtRules:
  - issuer: a
  - issuer: b
    audiences: [x]
    jwksUri: https://b/keys
    fromHeaders: [{name: X-Token, prefix: "Bearer "}]
    fromParams: [token]
    fromCookies: [session]
    forwardOriginalToken: true
    outputPayloadToHeader: x-payload
    outputClaimToHeaders: [{header: x-sub, claim: sub}]
    spaceDelimitedClaims: [roles]
    timeout: 2s
"#,
    );
    let p = workload(&loader, "p");
    assert_eq!(
        p.authorization_policies(),
        [
            PolicyName::new("istio-system", "everywhere"),
            PolicyName::new("shop", "l7")
        ]
    );
    assert_eq!(
        p.request_authentications(),
        [ObjectName::new("shop", "jwt")]
    );
    let found = policies(&loader);
    let named = |name: &str| {
        let found = found
            .iter()
            .find(|policy| policy.policy().name().name() == name);
        found.unwrap_or_else(|| panic!("no policy {name}"))
    };
    assert!(named("l7").policy().needs_request());
    assert_eq!(*named("l7").scope(), Scope::Workload);
    assert_eq!(*named("other").policy().action(), Action::Audit);
    assert!(named("nothing").policy().rules().is_empty());
    assert_eq!(*named("nothing").scope(), Scope::Namespace("shop".into()));
    assert_eq!(*named("mesh").scope(), Scope::Mesh);
    assert!(named("mesh").policy().dry_run());
    assert_eq!(
        *named("mesh").policy().action(),
        Action::Custom {
            provider: "ext".into()
        }
    );
    let in_root = |name: &str| ObjectName::new("istio-system", name);
    assert_eq!(
        *named("way").scope(),
        Scope::Targets(vec![
            Target::GatewayClass("istio-waypoint".into()),
            Target::Gateway(in_root("g")),
            Target::ServiceEntry(in_root("e")),
            Target::Service(in_root("s")),
        ])
    );
    let jwt = loader.resources().find_map(|update| match update {
        Update::RequestAuthentication(jwt) => Some((**jwt).clone()),
        _ => None,
    });
    let rules = vec![
        JwtRule::new("a"),
        JwtRule::new("b")
            .with_audiences(vec!["x".into()])
            .with_jwks(Jwks::Uri("https://b/keys".into()))
            .with_locations(vec![
                TokenLocation::Header {
                    name: "x-token".parse().unwrap(),
                    prefix: "Bearer ".into(),
                },
                TokenLocation::QueryParam("token".into()),
                TokenLocation::Cookie("session".into()),
            ])
            .with_forward_original_token(true)
            .with_output_payload_to_header("x-payload".parse().unwrap())
            .with_output_claims_to_headers(vec![("x-sub".parse().unwrap(), "sub".into())])
            .with_space_delimited_claims(vec!["roles".into()])
            .with_timeout(Duration::from_secs(2)),
    ];
    let name = ObjectName::new("shop", "jwt");
    assert_eq!(
        jwt,
        Some(RequestAuthentication::new(name, Scope::Workload, rules))
    );
}

/// Mode of the mesh, the namespace, the workload and its port 8080; what refuses plaintext, if anything.
#[test]
fn peer_authentication_falls_back_level_by_level() {
    let strict = Some("istio-system/istio_converted_static_strict");
    let converted = Some("shop/converted_peer_authentication_own");
    let inherited = Some("shop/converted_peer_authentication_own_inherited_strict");
    for (mesh, namespace, own, port, expected) in [
        ("", "", "", "", None),
        ("STRICT", "", "", "", strict),
        ("STRICT", "UNSET", "", "", strict),
        ("STRICT", "PERMISSIVE", "", "", None),
        ("PERMISSIVE", "STRICT", "", "", strict),
        ("STRICT", "STRICT", "DISABLE", "", None),
        ("STRICT", "", "UNSET", "", strict),
        ("", "", "STRICT", "", strict),
        ("", "", "STRICT", "STRICT", strict),
        ("", "", "STRICT", "DISABLE", converted),
        ("", "", "STRICT", "PERMISSIVE", converted),
        ("", "", "PERMISSIVE", "STRICT", converted),
        ("", "", "DISABLE", "DISABLE", None),
        ("", "STRICT", "UNSET", "PERMISSIVE", inherited),
        ("", "STRICT", "UNSET", "UNSET", strict),
        ("", "", "UNSET", "STRICT", converted),
    ] {
        let object = |name: &str, namespace: &str, mode: &str, more: &str| {
            if mode.is_empty() {
                return String::new();
            }
            format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                 metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  mtls: {{mode: {mode}}}\n{more}---\n"
            )
        };
        let port_level = match port {
            "" => String::new(),
            mode => format!("  portLevelMtls: {{8080: {{mode: {mode}}}}}\n"),
        };
        let selector = format!("  selector: {{matchLabels: {{app: store}}}}\n{port_level}");
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {app: store}}\nstatus: {podIP: 10.0.0.1}\n";
        let text = [
            object("mesh", "istio-system", mesh, ""),
            object("ns", "shop", namespace, ""),
            object("own", "shop", own, &selector),
            pod.into(),
        ];
        let (loader, _) = load(&text.concat());
        let bound = workload(&loader, "p").authorization_policies().to_vec();
        let bound: Vec<_> = bound.iter().map(ToString::to_string).collect();
        let expected: Vec<_> = expected.into_iter().map(str::to_owned).collect();
        assert_eq!(bound, expected, "{mesh} {namespace} {own} {port}");
        for name in &bound {
            let there = policies(&loader)
                .iter()
                .any(|policy| policy.policy().name().to_string() == *name);
            assert!(there, "{name} is bound and not there");
        }
    }
}

#[test]
fn a_route_in_full() {
    let (loader, _) = load(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec:
  hostnames: ["*.example.com"]
  parentRefs:
  - {name: g, sectionName: http}
  - {group: "", kind: Service, name: s, port: 80}
  rules:
  - name: first
    matches:
    - path: {type: RegularExpression, value: "/v[0-9]+"}
      method: GET
      headers: [{name: X-A, value: one}, {type: RegularExpression, name: x-b, value: "t.*"}]
      queryParams: [{name: q, value: "1"}]
    - path: {value: /p}
    filters:
    - type: RequestHeaderModifier
      requestHeaderModifier: {set: [{name: a, value: b}], add: [{name: c, value: d}], remove: [e]}
    - type: RequestMirror
      requestMirror: {backendRef: {name: m, port: 81}, percent: 25}
    - type: URLRewrite
      urlRewrite: {hostname: h, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
    - type: CORS
      cors: {allowOrigins: ["*"], allowMethods: [GET], allowCredentials: true, maxAge: 60}
    - type: ExtensionRef
      extensionRef: {group: x.example, kind: Thing, name: t}
    backendRefs:
    - {name: s1, port: 80, weight: 9}
    - name: s2
      namespace: other
      port: 80
      filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {remove: [z]}}]
    timeouts: {request: 1m30s, backendRequest: 500ms}
    retry: {attempts: 2, codes: [503], backoff: 10ms}
  - filters:
    - type: RequestRedirect
      requestRedirect: {scheme: https, hostname: h, port: 443, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /x}}
"#,
    );
    let backend = |namespace: &str, name: &str, port| {
        BackendRef::new(ObjectRef::new(
            "",
            "Service",
            ObjectName::new(namespace, name),
        ))
        .with_port(port)
    };
    let header = |name: &str| name.parse::<http::HeaderName>().unwrap();
    let pair = |name: &str, value: &str| (header(name), value.parse().unwrap());
    let first = HttpRouteRule::new()
        .with_name("first")
        .with_matches(vec![
            HttpMatch::new()
                .with_path(PathRule::Regex(StringMatch::regex("/v[0-9]+").unwrap()))
                .with_method(http::Method::GET)
                .with_headers(vec![
                    ValueMatch::new(header("x-a"), StringMatch::Exact("one".into())),
                    ValueMatch::new(header("x-b"), StringMatch::regex("t.*").unwrap()),
                ])
                .with_query_params(vec![ValueMatch::new(
                    "q".into(),
                    StringMatch::Exact("1".into()),
                )]),
            HttpMatch::new().with_path(PathRule::Prefix("/p".into())),
        ])
        .with_filters(vec![
            HttpFilter::RequestHeaders(
                HeaderChanges::new()
                    .with_set(vec![pair("a", "b")])
                    .with_add(vec![pair("c", "d")])
                    .with_remove(vec![header("e")]),
            ),
            HttpFilter::Mirror(Mirror::new(backend("shop", "m", 81), 25, 100)),
            HttpFilter::Rewrite(
                Rewrite::new()
                    .with_hostname("h")
                    .with_path(PathChange::Prefix("/".into())),
            ),
            HttpFilter::Cors(
                Cors::new()
                    .with_allow_origins(vec!["*".into()])
                    .with_allow_methods(vec!["GET".into()])
                    .with_allow_credentials(true)
                    .with_max_age(Duration::from_secs(60)),
            ),
            HttpFilter::Extension(ObjectRef::new(
                "x.example",
                "Thing",
                ObjectName::new("shop", "t"),
            )),
        ])
        .with_backends(vec![
            HttpBackend::new(backend("shop", "s1", 80)).with_weight(9),
            HttpBackend::new(backend("other", "s2", 80)).with_filters(vec![
                HttpFilter::ResponseHeaders(HeaderChanges::new().with_remove(vec![header("z")])),
            ]),
        ])
        .with_timeouts(
            HttpTimeouts::new()
                .with_request(Duration::from_secs(90))
                .with_backend_request(Duration::from_millis(500)),
        )
        .with_retry(
            HttpRetry::new()
                .with_attempts(2)
                .with_codes(vec![503])
                .with_backoff(Duration::from_millis(10)),
        );
    let second = HttpRouteRule::new().with_filters(vec![HttpFilter::Redirect(
        Redirect::new()
            .with_scheme("https")
            .with_hostname("h")
            .with_port(443)
            .with_status_code(301)
            .with_path(PathChange::Full("/x".into())),
    )]);
    let gateway = ObjectRef::new(
        "gateway.networking.k8s.io",
        "Gateway",
        ObjectName::new("shop", "g"),
    );
    let s = ObjectRef::new("", "Service", ObjectName::new("shop", "s"));
    let expected = HttpRoute::new(ObjectName::new("shop", "r"))
        .with_hostnames(vec!["*.example.com".into()])
        .with_parents(vec![
            ParentRef::new(gateway).with_section_name("http"),
            ParentRef::new(s).with_port(80),
        ])
        .with_rules(vec![first, second]);
    let found: Vec<_> = loader.resources().cloned().collect();
    assert_eq!(found, [expected.into()]);
}

#[test]
fn settings_of_the_mesh() {
    let settings = Settings::new()
        .with_trust_domain("mesh.example")
        .with_trust_domain_aliases(vec!["old.example".into()])
        .with_root_namespace("root")
        .with_cluster_id("c1")
        .with_cluster_domain("k8s.example")
        .with_network("net");
    let mut loader = Loader::new(settings);
    let text = "
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: a}}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {clusterIP: 10.1.0.1, selector: {app: a}, ports: [{port: 80}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: root}
spec: {mtls: {mode: STRICT}}
";
    let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
    assert!(loaded.problems().is_empty());
    let p = workload(&loader, "p");
    assert_eq!(p.uid(), "c1//Pod/default/p");
    assert_eq!(p.identity().unwrap().trust_domain(), "mesh.example");
    assert_eq!(p.network(), "net");
    assert_eq!(
        p.authorization_policies(),
        [PolicyName::new("root", "istio_converted_static_strict")]
    );
    let s = service(&loader, "s.default.svc.k8s.example");
    assert_eq!(
        s.addresses(),
        [NetworkAddress::new("net", "10.1.0.1".parse().unwrap())]
    );
}
