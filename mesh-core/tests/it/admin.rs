//! A node whose admin service is asked.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use mesh_core::admin::Admin;
use mesh_core::config::Fixed;
use mesh_core::identity::DevCa;
use mesh_core::xds::file::{Loader, Settings};
use mesh_core::xds::model::Update;
use mesh_core::{Builder, Missing, Node};
use serde_json::Value;
use tower::ServiceExt;

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) kind: String,
    pub(crate) allow: Option<String>,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        assert_eq!(
            (self.status, &*self.kind),
            (StatusCode::OK, "application/json"),
            "{}",
            self.text
        );
        serde_json::from_str(&self.text).unwrap()
    }
}

pub(crate) async fn ask(admin: &Admin, request: Request<()>) -> Answer {
    let response = admin.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| {
        head.headers
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    Answer {
        status: head.status,
        kind: header("content-type").unwrap(),
        allow: header("allow"),
        text: String::from_utf8(Bytes::into(body)).unwrap(),
    }
}

pub(crate) async fn get(admin: &Admin, target: &str) -> Answer {
    ask(admin, Request::get(target).body(()).unwrap()).await
}

pub(crate) async fn send(admin: &Admin, method: Method, target: &str) -> Answer {
    let request = Request::builder().method(method).uri(target);
    ask(admin, request.body(()).unwrap()).await
}

/// Resources from text as files have it.
pub(crate) fn read(text: &str) -> Vec<Update> {
    let loaded = Loader::new(Settings::default()).load(vec![("mesh.yaml".into(), text.into())]);
    assert!(loaded.problems().is_empty(), "{:?}", loaded.problems());
    loaded.into_parts().0.into_parts().0
}

/// A node whose listeners are on this machine, and its builder's other settings.
pub(crate) fn node_with(
    updates: Vec<Update>,
    set: impl FnOnce(Builder<Missing, Missing, Missing>) -> Builder<Missing, Missing, Missing>,
) -> Node {
    let builder = Node::builder().bind([127, 0, 0, 1].into()).hbone_port(0);
    set(builder)
        .config(Fixed::new(updates))
        .identity(DevCa::ephemeral("cluster.local"))
        .build_node()
        .unwrap()
}

pub(crate) fn node(updates: Vec<Update>) -> Node {
    node_with(updates, |builder| builder)
}
