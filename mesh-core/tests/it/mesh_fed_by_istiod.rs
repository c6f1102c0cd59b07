//! An SDK server fed with a recorded stream answers as from the manifests.

use http::Method;
use mesh_core::Mesh;
use mesh_core::authz::Identity;
use mesh_core::hbone::client;
use mesh_core::hbone::config::Config;
use mesh_core::hbone::tls::{self, Bundle, Credentials, Options, Provider};
use mesh_core::xds::model::Update;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::admin::get;
use crate::istiod_stream::{Manifests, messages};
use crate::mesh_world::{World, connect_to, identity};
use crate::require;

/// Where `details-v1-1` is in the recording.
const DETAILS: &str = "10.10.2.11";

/// A port that no Service names: istiod has no listener for it.
const UNNAMED: u16 = 9999;

struct Details {
    world: World,
    server: Option<Mesh>,
}

impl Details {
    fn new(net: u8) -> Self {
        let bind = [127, net, 0, 2].into();
        let world = World::with(net, |node| node.bind(bind));
        Self {
            world,
            server: None,
        }
    }

    async fn feed(&mut self, updates: &[Update], removed: &[mesh_core::xds::model::ResourceName]) {
        let verdicts = self
            .world
            .control
            .apply(updates.to_vec(), removed.to_vec())
            .await;
        for verdict in verdicts {
            verdict
                .result()
                .unwrap_or_else(|error| panic!("{}: {error}", verdict.resource()));
        }
    }

    async fn serve(&mut self) {
        let mesh = self
            .world
            .node
            .workload("default", "details-v1-1", "bookinfo-details")
            .unwrap();
        for port in [9080, UNNAMED] {
            let http = mesh.listen_http(port).await.unwrap();
            let router = axum::Router::new().fallback(|| async { "details" });
            tokio::spawn(http.serve(router));
        }
        self.server = Some(mesh);
    }

    /// The status of a request: 401 where the tunnel for it is refused already.
    async fn ask(&self, port: u16, ask: &Ask) -> u16 {
        let bundle: Bundle = self.world.ca.issue(ask.caller.clone()).await.unwrap();
        let provider = Provider::by_feature().unwrap();
        let credentials = Credentials::new(provider, bundle, Options::default()).unwrap();
        let io = tokio::net::TcpStream::connect((self.world.ip(2), 15008))
            .await
            .unwrap();
        let expected = [identity("bookinfo-details")];
        let stream = tls::connect(io, &credentials, &expected).await.unwrap();
        let (connection, sender) = client::handshake(stream, &Config::default()).await.unwrap();
        tokio::spawn(connection);
        let mut tunnel = match sender
            .connect(connect_to(format!("{DETAILS}:{port}")))
            .await
        {
            Ok((tunnel, _)) => tunnel,
            Err(error) => return error.status().unwrap().as_u16(),
        };
        let Ask {
            method,
            path,
            headers,
            ..
        } = ask;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: details:{port}\r\nconnection: close\r\n{headers}\r\n"
        );
        tunnel.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tunnel.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    async fn answers(&self, asks: &[Ask]) -> Vec<u16> {
        let mut answers = Vec::with_capacity(asks.len());
        for ask in asks {
            answers.push(self.ask(9080, ask).await);
        }
        answers
    }

    /// What decides each of them, as `/explain` has it.
    async fn decided(&self, asks: &[Ask]) -> Vec<String> {
        let admin = self.server.as_ref().unwrap().admin();
        let mut decided = Vec::with_capacity(asks.len());
        for Ask {
            caller,
            method,
            path,
            headers,
        } in asks
        {
            let mut question =
                format!("/explain?format=json&to=9080&from={caller}&method={method}&path={path}");
            for header in headers.lines() {
                question += &format!("&header={}", header.replace(' ', "+"));
            }
            let answer = get(&admin, &question).await.json();
            let verdict = answer["verdict"].as_str().unwrap();
            let (_, why) = verdict.split_once("details-v1-1: ").unwrap();
            // A listener's names have no namespace: `/default-reviews` is `default/reviews`.
            let words = why.split(' ').map(|word| match word.split_once('/') {
                Some(("", name)) => name.to_owned(),
                Some((namespace, name)) => format!("{namespace}-{name}"),
                None => word.to_owned(),
            });
            decided.push(words.collect::<Vec<_>>().join(" "));
        }
        decided
    }
}

struct Ask {
    caller: Identity,
    method: Method,
    path: &'static str,
    headers: &'static str,
}

fn asks() -> Vec<Ask> {
    let productpage = identity("bookinfo-productpage");
    let netshoot = identity("netshoot");
    let quarantined = Identity::new("cluster.local", "quarantine", "x").unwrap();
    let ask = |caller: &Identity, method, path, headers| Ask {
        caller: caller.clone(),
        method,
        path,
        headers,
    };
    vec![
        ask(&productpage, Method::GET, "/details/1", ""),
        ask(&productpage, Method::POST, "/details/1", ""),
        ask(&productpage, Method::GET, "/other", ""),
        ask(&netshoot, Method::GET, "/details/1", ""),
        ask(&netshoot, Method::DELETE, "/details/1", "x-user: admin\r\n"),
        ask(&netshoot, Method::DELETE, "/details/1", ""),
        ask(&netshoot, Method::GET, "/details/../x", ""),
        ask(&quarantined, Method::GET, "/details/1", ""),
    ]
}

/// What decides [`asks`]: the last step has a policy that denies one of them.
fn deciding(step: &str) -> [&'static str; 8] {
    const ALLOWED: &str = "allowed by: default-details-l7-selector";
    const NONE: &str = "allow policies exist, but none allowed";
    let delete = match step {
        "08-details-deny-l7.apply" => "explicitly denied by: default-details-deny-l7",
        _ => NONE,
    };
    let quarantined = "explicitly denied by: istio-system-mesh-wide";
    [
        ALLOWED,
        NONE,
        NONE,
        ALLOWED,
        NONE,
        delete,
        NONE,
        quarantined,
    ]
}

#[tokio::test]
async fn details_answers_as_from_the_manifests() {
    let Some(data) = require::data("details_answers_as_from_the_manifests") else {
        return;
    };
    let root = data.join("istiod/bookinfo");
    let mut messages = messages(&root.join("sdk")).into_iter().peekable();
    let (mut streamed, mut loaded) = (Details::new(215), Details::new(216));
    let asks = asks();
    let expected = [200, 403, 403, 200, 403, 403, 403, 401];
    for manifests in Manifests::new(&root.join("manifests")) {
        let step = manifests.step;
        loaded.feed(&manifests.updates, &manifests.removed).await;
        while let Some(message) = messages.next_if(|message| message.step == step) {
            streamed.feed(&message.updates, &message.removed).await;
            if streamed.server.is_some() {
                // In the middle of a step as well.
                assert_eq!(streamed.answers(&asks).await, expected, "{step}");
            }
        }
        if streamed.server.is_none() {
            streamed.serve().await;
            loaded.serve().await;
        }
        for details in [&streamed, &loaded] {
            assert_eq!(details.answers(&asks).await, expected, "{step}");
            assert_eq!(details.decided(&asks).await, deciding(&step), "{step}");
        }
        // There the ambient stream's policies count, of which the ALLOW came without its rules.
        assert_eq!(streamed.ask(UNNAMED, &asks[0]).await, 401, "{step}");
        assert_eq!(loaded.ask(UNNAMED, &asks[0]).await, 200, "{step}");
    }
    assert!(messages.next().is_none());
}
