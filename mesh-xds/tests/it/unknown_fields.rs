//! A field that a kind does not have is named: with a warning where it is passed over, refused where it
//! could widen access.

use std::path::Path;

use mesh_xds::file::{Loader, Settings};

use crate::require;

/// Warnings and problems.
fn load(text: &str) -> (Vec<String>, Vec<String>) {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
    let text = |problems: &[mesh_xds::file::Problem]| {
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    (text(loaded.warnings()), text(loaded.problems()))
}

/// `body` begins at line 4.
fn object(api_version: &str, kind: &str, body: &str) -> String {
    format!("apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: x}}\n{body}\n")
}

#[test]
fn slips_are_named_with_file_and_line_and_the_object_holds() {
    let cases = [
        (
            object("v1", "Service", "spec:\n  clusterIp: 10.96.0.10"),
            "mesh.yaml:5: spec.clusterIp: unknown field; expected clusterIP?",
        ),
        (
            object("v1", "Service", "spec:\n  ports:\n  - port: 80\n    targetport: 8080"),
            "mesh.yaml:7: spec.ports[0].targetport: unknown field; expected targetPort?",
        ),
        (
            object("v1", "Pod", "status:\n  podIp: 10.0.0.1"),
            "mesh.yaml:5: status.podIp: unknown field; expected podIP?",
        ),
        (
            object("v1", "Pod", "spec:\n  serviceAcountName: reviews"),
            "mesh.yaml:5: spec.serviceAcountName: unknown field; expected serviceAccountName?",
        ),
        (
            object("v1", "Pod", "stats: {podIP: 10.0.0.1}"),
            "mesh.yaml:4: stats: unknown field; expected status?",
        ),
        (
            object("v1", "Pod", "spec:\n  containers:\n  - ports:\n    - {port: 80, containerPort: 80}"),
            "mesh.yaml:7: spec.containers[0].ports[0].port: unknown field; \
             known are containerPort, hostIP, hostPort, name, protocol",
        ),
        (
            object("v1", "Pod", "status:\n  address: 10.0.0.1"),
            "mesh.yaml:5: status.address: unknown field; expected none of this name",
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  label: {istio.io/dataplane-mode: ambient}\n".into(),
            "mesh.yaml:5: metadata.label: unknown field; expected labels?",
        ),
        (
            object("discovery.k8s.io/v1", "EndpointSlice", "endpoints:\n- addresses: [10.0.0.1]\n  condition: {}"),
            "mesh.yaml:6: endpoints[0].condition: unknown field; expected conditions?",
        ),
        (
            object("networking.istio.io/v1", "WorkloadEntry", "spec: {address: 10.0.0.1}\nstatus:\n  condition: []"),
            "mesh.yaml:6: status.condition: unknown field; expected conditions?",
        ),
        (
            object(
                "gateway.networking.k8s.io/v1",
                "Gateway",
                "spec:\n  gatewayClassName: istio-waypoint\n  listeners:\n  - name: mesh\n    port: 15008\n    protocol: HBONE\n    allowedRoute: {}",
            ),
            "mesh.yaml:10: spec.listeners[0].allowedRoute: unknown field; expected allowedRoutes?",
        ),
    ];
    for (text, expected) in cases {
        let (warnings, problems) = load(&text);
        assert_eq!(warnings, [expected], "{text}");
        assert!(problems.is_empty(), "{problems:?}");
    }
}

#[test]
fn in_a_security_kind_they_are_refused() {
    let cases = [
        (
            "PeerAuthentication",
            "metadata: {name: x}\nspecs: {mtls: {mode: STRICT}}",
            "specs",
        ),
        (
            "PeerAuthentication",
            "metadata: {name: x, namepsace: istio-system}\nspec: {mtls: {mode: STRICT}}",
            "metadata.namepsace",
        ),
        (
            "AuthorizationPolicy",
            "metadata: {name: x, anotations: {istio.io/dry-run: 'true'}}\nspec: {rules: []}",
            "metadata.anotations",
        ),
        (
            "AuthorizationPolicy",
            "metadata: {name: x}\nspec: {acton: DENY, rules: [{}]}",
            "spec.acton",
        ),
        (
            "RequestAuthentication",
            "metadata: {name: x}\nsepc: {jwtRules: []}",
            "sepc",
        ),
    ];
    for (kind, body, field) in cases {
        let text = format!("apiVersion: security.istio.io/v1\nkind: {kind}\n{body}\n");
        let (warnings, problems) = load(&text);
        assert!(warnings.is_empty(), "{warnings:?}");
        let [problem] = &problems[..] else {
            panic!("{text}: {problems:?}");
        };
        assert!(
            problem.contains(&format!(": {field}: unknown field")),
            "{problem}"
        );
        // What stands for it is the narrowest thing that it could mean.
        assert!(problem.contains("; until it is right, "), "{problem}");
    }
}

#[test]
fn what_kubectl_prints_has_no_unknown_field() {
    let (warnings, problems) = load(
        "apiVersion: v1
kind: Pod
metadata:
  annotations: {kubectl.kubernetes.io/restartedAt: now}
  creationTimestamp: '2026-08-01T10:00:00Z'
  generateName: ratings-v1-
  generation: 1
  labels: {app: ratings}
  managedFields: [{apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {'f:spec': {}}, manager: kubelet}]
  name: ratings-v1-abc
  namespace: default
  ownerReferences: [{apiVersion: apps/v1, blockOwnerDeletion: true, controller: true, kind: ReplicaSet, name: ratings-v1, uid: u}]
  resourceVersion: '5'
  uid: v
spec:
  affinity: {}
  containers:
  - image: ratings:1
    imagePullPolicy: IfNotPresent
    name: ratings
    ports: [{containerPort: 9080, protocol: TCP}]
    resources: {}
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
    volumeMounts: [{mountPath: /var/run, name: token, readOnly: true}]
  dnsPolicy: ClusterFirst
  enableServiceLinks: true
  nodeName: node-1
  preemptionPolicy: PreemptLowerPriority
  priority: 0
  restartPolicy: Always
  schedulerName: default-scheduler
  securityContext: {}
  serviceAccount: bookinfo-ratings
  serviceAccountName: bookinfo-ratings
  terminationGracePeriodSeconds: 30
  tolerations: [{effect: NoExecute, key: node.kubernetes.io/not-ready, operator: Exists, tolerationSeconds: 300}]
  volumes: [{name: token, projected: {defaultMode: 420, sources: []}}]
status:
  conditions:
  - {lastProbeTime: null, lastTransitionTime: '2026-08-01T10:00:00Z', observedGeneration: 1, status: 'True', type: Ready}
  containerStatuses: [{containerID: c, image: ratings:1, imageID: i, lastState: {}, name: ratings, ready: true, restartCount: 0, started: true, state: {}}]
  hostIP: 10.1.0.1
  hostIPs: [{ip: 10.1.0.1}]
  phase: Running
  podIP: 10.0.0.4
  podIPs: [{ip: 10.0.0.4}]
  qosClass: BestEffort
  startTime: '2026-08-01T10:00:00Z'
---
apiVersion: v1
kind: Service
metadata: {name: ratings}
spec:
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv4]
  ipFamilyPolicy: SingleStack
  ports: [{name: http, port: 9080, protocol: TCP, targetPort: 9080, nodePort: 30080, appProtocol: http}]
  selector: {app: ratings}
  sessionAffinity: None
  type: NodePort
status: {loadBalancer: {}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: bookinfo-ratings, labels: {account: ratings}}
automountServiceAccountToken: true
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: ratings-xyz, labels: {kubernetes.io/service-name: ratings}}
addressType: IPv4
endpoints:
- addresses: [10.0.0.4]
  conditions: {ready: true, serving: true, terminating: false}
  hints: {forZones: [{name: a}]}
  nodeName: node-1
  targetRef: {kind: Pod, name: ratings-v1-abc, namespace: default, uid: v}
  zone: a
ports: [{appProtocol: http, name: http, port: 9080, protocol: TCP}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  annotations: {kubectl.kubernetes.io/last-applied-configuration: '{}'}
  creationTimestamp: '2026-08-01T10:00:00Z'
  generation: 1
  name: default
  namespace: default
  resourceVersion: '7'
  uid: w
spec: {mtls: {mode: STRICT}}
status: {conditions: []}
",
    );
    assert_eq!(warnings, [""; 0]);
    assert_eq!(problems, [""; 0]);
}

#[test]
fn a_file_of_slips_is_named_in_bounds() {
    let pod = |n| format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}}}\nspek: {{}}\n---\n");
    let text: String = (0..300).map(pod).collect();
    assert_eq!(load(&text).0.len(), 100);
}

/// Every manifest of a folder and below.
fn manifests(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            found.push(path);
        }
    }
}

fn none_in(folder: &Path, at_least: usize) {
    let mut found = Vec::new();
    manifests(folder, &mut found);
    assert!(found.len() >= at_least, "{found:?}");
    for path in found {
        // Not a manifest but istiod's own settings.
        if path.file_name().is_some_and(|name| name == "mesh.yaml") && !path.starts_with(examples())
        {
            continue;
        }
        let (mut warnings, _) = load(&std::fs::read_to_string(&path).unwrap());
        // Whom a policy binds may be in another file.
        warnings.retain(|warning| !warning.ends_with("binds nobody"));
        assert!(warnings.is_empty(), "{}: {warnings:#?}", path.display());
    }
}

fn examples() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

#[test]
fn the_examples_have_none() {
    none_in(&examples(), 8);
}

#[test]
fn what_istiod_was_given_has_none() {
    let Some(data) = require::data("what_istiod_was_given_has_none") else {
        return;
    };
    none_in(&data.join("istiod"), 15);
}

#[test]
fn a_policy_that_binds_nobody_is_named_with_its_line() {
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop, labels: {app: orders}}\n\
               status: {podIP: 10.0.0.1}\n---\n";
    let policy = |kind: &str, namespace: &str, app: &str| {
        format!(
            "{pod}apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: y, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {{app: {app}}}}}}}\n"
        )
    };
    let says =
        "mesh.yaml:6: spec.selector: chooses no workload of these files: the policy binds nobody";
    for kind in [
        "AuthorizationPolicy",
        "PeerAuthentication",
        "RequestAuthentication",
    ] {
        for (namespace, app, warnings) in [
            ("shop", "orders", vec![]),
            ("shop", "ordres", vec![says.to_owned()]),
            ("shpo", "orders", vec![says.to_owned()]),
            // The root namespace's choose everywhere.
            ("istio-system", "orders", vec![]),
            ("istio-system", "ordres", vec![says.to_owned()]),
        ] {
            let found = load(&policy(kind, namespace, app));
            assert_eq!(found, (warnings, vec![]), "{kind} {namespace} {app}");
        }
    }
    // Hosts that register later come of a group.
    let group = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\nmetadata: {name: z, namespace: shop}\n\
                 spec: {metadata: {labels: {app: ordres}}, template: {serviceAccount: orders}}\n---\n";
    let text = format!("{group}{}", policy("AuthorizationPolicy", "shop", "ordres"));
    assert_eq!(load(&text), (vec![], vec![]));
}

/// A Service that has nobody to serve is told of with its line, as what may well be right.
#[test]
fn a_service_that_chooses_nobody_is_named_with_its_line() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n\
                   spec: {selector: {app: orders}, ports: [{port: 80}]}\n---\n";
    let meta = |kind: &str, app: &str| {
        format!("kind: {kind}\nmetadata: {{name: x, namespace: shop, labels: {{app: {app}}}}}\n")
    };
    let pod = |app: &str| {
        format!(
            "apiVersion: v1\n{}status: {{podIP: 10.0.0.1}}\n",
            meta("Pod", app)
        )
    };
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
                 metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}\n\
                 addressType: IPv4\nendpoints: [{addresses: [10.0.0.9]}]\nports: [{port: 80}]\n";
    let entry = format!(
        "apiVersion: networking.istio.io/v1\n{}spec: {{address: 10.0.0.2, labels: {{app: orders}}}}\n",
        meta("WorkloadEntry", "orders")
    );
    let group = "apiVersion: networking.istio.io/v1\nkind: WorkloadGroup\n\
                 metadata: {name: orders, namespace: shop}\n\
                 spec: {metadata: {labels: {app: orders}}, template: {serviceAccount: orders}}\n";
    for (beside, told) in [
        (pod("orders"), false),
        (slice.to_owned(), false),
        (entry, false),
        (group.to_owned(), false),
        (pod("ordres"), true),
        (String::new(), true),
    ] {
        let text = format!("# Orders.\n{service}{beside}");
        let (mut loader, loaded) = crate::manifests::load(&text);
        assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
        assert!(loaded.warnings().is_empty(), "{:?}", loaded.warnings());
        let said: Vec<_> = loaded.skipped().iter().map(ToString::to_string).collect();
        let expected = "mesh.yaml:2: spec.selector: chooses no workload of these files: Service shop/orders has no endpoint";
        assert_eq!(said, [expected][..usize::from(told)], "{text}");
        let again = loader.load(vec![("mesh.yaml".into(), text.into())]);
        assert!(again.skipped().is_empty(), "once");
    }
}

/// A Service that loses its last Pod is told of each time, and a load that says it again says nothing.
#[test]
fn what_has_been_of_use_meanwhile_is_told_again() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\n\
                   spec: {selector: {app: orders}, ports: [{port: 80}]}\n";
    let pod = "---\napiVersion: v1\nkind: Pod\n\
               metadata: {name: orders-1, namespace: shop, labels: {app: orders}}\n\
               status: {podIP: 10.0.0.1}\n";
    let (mut loader, first) = crate::manifests::load(service);
    assert_eq!(first.skipped().len(), 1);
    for (beside, told) in [(pod, 0), ("", 1), ("", 0), (pod, 0), ("", 1)] {
        let text = format!("{service}{beside}");
        let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
        assert_eq!(loaded.problems(), []);
        assert_eq!(loaded.skipped().len(), told, "{:?}", loaded.skipped());
    }
}

/// `get` matches no `GET`, so nobody is let in, and nothing else would say why.
#[test]
fn a_method_in_lower_case_is_warned_of_and_the_policy_holds() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x}\nspec:\n  rules:\n  \
                - to: [{operation: {methods: [GET, get], paths: [/a]}}]\n";
    let (warnings, problems) = load(text);
    assert!(problems.is_empty(), "{problems:?}");
    let expected = "mesh.yaml:6: spec.rules[0].to[0].operation.methods[1]: methods compare with case, \
                    found \"get\"; expected \"GET\"?";
    assert!(
        warnings.iter().any(|warning| warning == expected),
        "{warnings:?}"
    );
}
