//! `k8s.yaml` says what a member of a stock Istio has to say.

use std::path::Path;

use mesh_core::xds::ads::NodeValue;

const FILE: &str = include_str!("../../k8s.yaml");

fn object(kind: &str) -> NodeValue {
    let mut documents = FILE.split("\n---\n").map(|text| {
        let read = NodeValue::read_yaml(Path::new("k8s.yaml"), text);
        read.unwrap_or_else(|problem| panic!("{problem}"))
    });
    let found = documents.find(|one| one.get("kind").and_then(NodeValue::text) == Some(kind));
    found.unwrap_or_else(|| panic!("no {kind}"))
}

/// What is at a path; a number is a place in a list, `name=x` the element that is called so.
#[track_caller]
fn at<'a>(of: &'a NodeValue, path: &str) -> &'a NodeValue {
    path.split(' ').fold(of, |value, step| {
        let next = match (step.strip_prefix("name="), value) {
            (Some(name), NodeValue::List(items)) => items
                .iter()
                .find(|one| one.get("name").and_then(NodeValue::text) == Some(name)),
            (None, NodeValue::List(items)) => step.parse().ok().and_then(|at: usize| items.get(at)),
            _ => value.get(step),
        };
        next.unwrap_or_else(|| panic!("{step} of {path} is not there"))
    })
}

#[track_caller]
fn text<'a>(of: &'a NodeValue, path: &str) -> &'a str {
    at(of, path)
        .text()
        .unwrap_or_else(|| panic!("{path}: no text"))
}

#[track_caller]
fn number(of: &NodeValue, path: &str) -> u16 {
    match at(of, path) {
        NodeValue::Number(number) => number.to_string().parse().expect("a port"),
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn the_pod_is_its_own_end_of_tunnels() {
    let deployment = object("Deployment");
    let labels = at(&deployment, "spec template metadata labels");
    assert_eq!(text(labels, "networking.istio.io/tunnel"), "http");
    assert_eq!(text(labels, "istio.io/dataplane-mode"), "none");
    assert_eq!(
        at(&deployment, "spec selector matchLabels app"),
        at(&object("Service"), "spec selector app")
    );
    let account = text(&deployment, "spec template spec serviceAccountName");
    assert_eq!(account, text(&object("ServiceAccount"), "metadata name"));
}

/// In the places where `ControlPlane::default()` looks.
#[test]
fn the_token_and_the_root_are_where_they_are_looked_for() {
    let deployment = object("Deployment");
    let pod = at(&deployment, "spec template spec");
    let control_plane = format!("{:?}", mesh_core::ControlPlane::default());
    let mount = |name: &str| {
        let path = format!("containers 0 volumeMounts name={name} mountPath");
        text(pod, &path).to_owned()
    };
    let token = at(
        pod,
        "volumes name=istio-token projected sources 0 serviceAccountToken",
    );
    assert_eq!(text(token, "audience"), "istio-ca");
    let path = format!("{}/{}", mount("istio-token"), text(token, "path"));
    assert!(control_plane.contains(&path), "{path}: {control_plane}");
    let root = text(pod, "volumes name=istio-ca-root-cert configMap name");
    assert_eq!(root, "istio-ca-root-cert");
    // The key that istiod gives it.
    let path = format!("{}/root-cert.pem", mount("istio-ca-root-cert"));
    assert!(control_plane.contains(&path), "{path}: {control_plane}");
}

#[test]
fn the_environment_says_what_the_program_asks_for() {
    let deployment = object("Deployment");
    let env = at(&deployment, "spec template spec containers 0 env");
    for (name, field) in [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ("POD_IPS", "status.podIPs"),
    ] {
        let path = format!("name={name} valueFrom fieldRef fieldPath");
        assert_eq!(text(env, &path), field);
    }
    assert_eq!(text(env, "name=CLUSTER_ID value"), "Kubernetes");
}

#[test]
fn istio_finds_probes_and_metrics_at_its_ports() {
    let deployment = object("Deployment");
    let pod = at(&deployment, "spec template spec containers 0");
    assert_eq!(number(pod, "readinessProbe httpGet port"), 15021);
    assert_eq!(text(pod, "readinessProbe httpGet path"), "/healthz/ready");
    let annotations = at(&deployment, "spec template metadata annotations");
    assert_eq!(text(annotations, "prometheus.io/port"), "15020");
    assert_eq!(text(annotations, "prometheus.io/path"), "/stats/prometheus");
    for (name, port) in [
        ("http", 8080),
        ("hbone", 15008),
        ("metrics", 15020),
        ("ready", 15021),
    ] {
        assert_eq!(
            number(pod, &format!("ports name={name} containerPort")),
            port
        );
    }
    assert_eq!(
        number(&object("Service"), "spec ports name=http targetPort"),
        8080
    );
}

/// It runs where the `restricted` Pod Security Standard is enforced, from an image that need not be in a registry.
#[test]
fn the_pod_is_restricted_and_runs_the_image_of_the_dockerfile() {
    let deployment = object("Deployment");
    let pod = at(&deployment, "spec template spec");
    let profile = text(pod, "securityContext seccompProfile type");
    assert_eq!(profile, "RuntimeDefault");
    let container = at(pod, "containers 0");
    for setting in ["runAsNonRoot", "readOnlyRootFilesystem"] {
        let value = at(container, &format!("securityContext {setting}"));
        assert!(matches!(value, NodeValue::Bool(true)), "{setting}");
    }
    assert_eq!(text(container, "imagePullPolicy"), "IfNotPresent");
    let dockerfile = include_str!("../../Dockerfile");
    let tag = format!("-t {} .", text(container, "image"));
    assert!(dockerfile.lines().next().unwrap().ends_with(&tag), "{tag}");
    let user = number(container, "securityContext runAsUser");
    assert!(dockerfile.contains(&format!("\nUSER {user}\n")));
    let package = env!("CARGO_PKG_NAME");
    for line in [
        format!("RUN cargo build --release --locked -p {package}"),
        format!("COPY --from=build /src/target/release/{package} /{package}"),
        format!("ENTRYPOINT [\"/{package}\"]"),
    ] {
        assert!(dockerfile.lines().any(|found| found == line), "{line}");
    }
}
