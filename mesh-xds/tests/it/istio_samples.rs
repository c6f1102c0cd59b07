//! Samples for Kubernetes and Istio, as they are: nobody has to rewrite them for the file source.

use std::fs;
use std::path::{Path, PathBuf};

use mesh_xds::file::{Loaded, Loader, Settings};
use mesh_xds::model::{ServiceName, TunnelProtocol, Update};

use crate::manifests::{service, workload};
use crate::require;

const LIBRARY: &str = include_str!("data/library.yaml");

/// What a sample's Deployments would make on a cluster, for one machine: beside the sample, in a file of its own.
fn pods(account: &str, app: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{istio.io/dataplane-mode: ambient}}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {app}-v1, labels: {{app: {app}, version: v1}}}}\n\
         spec: {{serviceAccountName: {account}}}\nstatus: {{podIP: {address}}}\n"
    )
}

fn load(files: Vec<(PathBuf, Vec<u8>)>) -> (Loader, Loaded) {
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(files);
    (loader, loaded)
}

fn services(loader: &Loader) -> Vec<&str> {
    let names = loader.resources().filter_map(|update| match update {
        Update::Service(service) => Some(service.hostname()),
        _ => None,
    });
    names.collect()
}

/// The kinds that were passed over.
fn kinds(loaded: &Loaded) -> Vec<&str> {
    let kinds = loaded.skipped().iter();
    let kinds = kinds.filter(|skipped| skipped.field() == "kind");
    let mut kinds: Vec<_> = kinds
        .filter_map(|skipped| skipped.message().split(' ').next())
        .collect();
    kinds.sort_unstable();
    kinds
}

#[test]
fn a_sample_loads_unchanged_and_says_once_what_it_passes_over() {
    let sample = || vec![("library.yaml".into(), LIBRARY.into())];
    let (mut loader, loaded) = load(sample());
    assert!(loaded.problems().is_empty(), "{:#?}", loaded.problems());
    assert!(loaded.warnings().is_empty(), "{:#?}", loaded.warnings());
    assert_eq!(
        kinds(&loaded),
        [
            "Certificate",
            "Deployment",
            "DestinationRule",
            "EnvoyFilter",
            "Gateway",
            "Ingress",
            "Secret",
            "VirtualService",
        ]
    );
    let others = loaded.skipped().iter();
    let others = others.filter(|skipped| skipped.field() != "kind");
    for skipped in others {
        let said = skipped.to_string();
        assert!(
            said.contains("spec.selector: chooses no workload of these files: Service default/"),
            "{said}"
        );
    }
    assert_eq!(
        services(&loader),
        [
            "catalogue-v1.default.svc.cluster.local",
            "catalogue-v2.default.svc.cluster.local",
            "catalogue.default.svc.cluster.local",
            "loans-db.default.svc.cluster.local",
            "www.publisher.example",
        ]
    );
    let routes = loader.resources();
    let routes = routes.filter(|update| matches!(update, Update::HttpRoute(_)));
    assert_eq!(routes.count(), 2);
    let again = loader.load(sample());
    assert!(again.skipped().is_empty());
    assert!(again.batch().updates().is_empty());
}

#[test]
fn pods_in_a_file_beside_the_sample_are_the_members_of_its_services() {
    let beside = pods("library-catalogue", "catalogue", "127.0.30.1");
    let (loader, loaded) = load(vec![
        ("library.yaml".into(), LIBRARY.into()),
        ("pods.yaml".into(), beside.into()),
    ]);
    assert!(loaded.problems().is_empty(), "{:#?}", loaded.problems());
    let pod = workload(&loader, "catalogue-v1");
    assert_eq!(pod.protocol(), TunnelProtocol::Hbone);
    assert_eq!(pod.service_account(), "library-catalogue");
    let of = |name: &str| {
        let hostname = format!("{name}.default.svc.cluster.local");
        let name = ServiceName::new("default", hostname.as_str());
        pod.services()
            .iter()
            .any(|member| *member.service() == name)
    };
    assert!(of("catalogue") && of("catalogue-v1") && !of("catalogue-v2"));
    assert_eq!(
        service(&loader, "catalogue.default.svc.cluster.local")
            .ports()
            .len(),
        1
    );
}

/// Istio's own Bookinfo, from `samples/bookinfo` in the test data: every file alone, then all that one applies together.
#[test]
fn istios_bookinfo_loads_unchanged() {
    let test = "istios_bookinfo_loads_unchanged";
    let Some(samples) = require::data_in(test, "samples/bookinfo") else {
        return;
    };
    let mut files = Vec::new();
    manifests_below(&samples, &mut files);
    assert!(files.len() > 10, "{files:?}");
    for file in &files {
        let content = fs::read(file).unwrap();
        let (loader, loaded) = load(vec![(file.clone(), content)]);
        let file = file.display();
        assert!(
            loaded.problems().is_empty(),
            "{file}: {:#?}",
            loaded.problems()
        );
        assert!(
            loaded.warnings().is_empty(),
            "{file}: {:#?}",
            loaded.warnings()
        );
        assert!(loaded.is_complete());
        let made = loader.resources().count();
        assert!(
            made > 0 || !loaded.skipped().is_empty(),
            "{file} says nothing"
        );
    }
    let bookinfo = fs::read(samples.join("platform/kube/bookinfo.yaml")).unwrap();
    let beside = pods("bookinfo-reviews", "reviews", "127.0.30.2");
    let (loader, loaded) = load(vec![
        ("bookinfo.yaml".into(), bookinfo),
        ("pods.yaml".into(), beside.into()),
    ]);
    assert_eq!(kinds(&loaded), ["Deployment"]);
    assert_eq!(
        services(&loader),
        ["details", "productpage", "ratings", "reviews"]
            .map(|name| format!("{name}.default.svc.cluster.local"))
    );
    let reviews = workload(&loader, "reviews-v1");
    assert_eq!(reviews.services().len(), 1);
    assert_eq!(reviews.service_account(), "bookinfo-reviews");
}

fn manifests_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests_below(&path, found);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "yaml")
        {
            found.push(path);
        }
    }
    found.sort();
}
