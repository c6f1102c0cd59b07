//! Labels that ask for a waypoint which does not exist.

use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::*;

use crate::manifests::{service, workload};

/// A typo in the label, or a Gateway that was refused, must not open a way around the waypoint.
#[test]
fn a_waypoint_that_does_not_exist_stays_in_the_way() {
    let text = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/use-waypoint: way}}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: guest, labels: {istio.io/use-waypoint: wai, istio.io/use-waypoint-namespace: shop}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: b, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: c, namespace: shop, labels: {istio.io/use-waypoint: none}}
spec: {ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: shop}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: w, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: way}}
status: {podIP: 10.0.0.2}
"#;
    let mut loader = Loader::new(Settings::default());
    let loaded = loader.load(vec![("mesh.yaml".into(), text.into())]);
    let problems: Vec<_> = loaded.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "mesh.yaml:2: metadata.labels[istio.io/use-waypoint]: there is no Gateway shop/way; \
             until there is, what should go through it is refused",
            "mesh.yaml:6: metadata.labels[istio.io/use-waypoint]: there is no Gateway shop/wai; \
             until there is, what should go through it is refused",
        ]
    );
    let at = |name: &str| {
        let name = ServiceName::new("shop", format!("{name}.shop.svc.cluster.local"));
        Some(GatewayAddress::new(
            GatewayDestination::Hostname(name),
            15008,
        ))
    };
    let a = service(&loader, "a.guest.svc.cluster.local");
    assert_eq!(a.waypoint(), at("wai").as_ref());
    let b = service(&loader, "b.shop.svc.cluster.local");
    assert_eq!(b.waypoint(), at("way").as_ref());
    assert_eq!(workload(&loader, "p").waypoint(), at("way").as_ref());
    let c = service(&loader, "c.shop.svc.cluster.local");
    assert_eq!(c.waypoint(), None);
    assert_eq!(workload(&loader, "w").waypoint(), None);
    // It holds until the Gateway is there, which then says whom it is for.
    let gateway = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: way, namespace: shop}\nspec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15009, protocol: HBONE}]}\n";
    let loaded = loader.load(vec![(
        "mesh.yaml".into(),
        format!("{text}{gateway}").into(),
    )]);
    assert_eq!(loaded.problems().len(), 1);
    let b = service(&loader, "b.shop.svc.cluster.local");
    assert_eq!(
        b.waypoint().map(GatewayAddress::hbone_mtls_port),
        Some(15009)
    );
    assert_eq!(workload(&loader, "p").waypoint(), None);
}
