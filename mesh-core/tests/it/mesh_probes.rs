//! A host's readiness probe, as the control plane hears of it. On real sockets and in real time, but for
//! the control plane.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use hyper::body::Incoming;
use mesh_core::authz::policy::Action;
use mesh_core::authz::policy::istio::Condition;
use mesh_core::config::AppHealth;
use mesh_core::health::Probe;
use mesh_core::identity::Istiod;
use mesh_core::{ErrorKind, Mesh};
use tokio::net::TcpListener;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::handler::{Handler, to};
use crate::istiod::{HttpRequest, HttpResponse, Method, Served};
use crate::istiod_discovery::HEALTH;
use crate::istiod_place::{HOUR, Place, until};
use crate::layers_logs::capture;
use crate::mesh_world::{Control, PORT, World, caller, policy};

/// Long enough for any machine.
const LONG: Duration = Duration::from_secs(60);
const OFTEN: Duration = Duration::from_millis(20);

fn host(place: &Place, probe: Probe) -> Mesh {
    place.token("client", 100 * HOUR);
    let now = Arc::clone(&place.now);
    Mesh::builder()
        .workload("default", "client", "client")
        .readiness_probe(probe.host("127.0.0.1").timeout(LONG).period(OFTEN))
        .transport(place.network.clone())
        .clock(move || now())
        .config(place.xds("client", [10, 0, 0, 1]))
        .identity(Istiod::new(place.control_plane("client")).rng(7))
        .build()
        .unwrap()
}

/// What was reported: on which stream, with which code and text if it is unhealthy.
fn reports(place: &Place) -> Vec<(usize, Option<(i32, String)>)> {
    let asked = place.istiod.discovery.asked().into_iter();
    let health = asked.filter(|one| one.ask.type_url == HEALTH);
    health
        .map(|one| {
            let problem = one.ask.error.map(|problem| (problem.code, problem.message));
            (one.stream, problem)
        })
        .collect()
}

#[tokio::test]
async fn verdicts_are_reported_and_the_last_is_repeated_on_every_stream() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let _mesh = host(&place, Probe::tcp(port));
    until("it is down", || reports(&place).len() == 1).await;
    let (stream, problem) = reports(&place).remove(0);
    let (code, why) = problem.expect("unhealthy");
    // gRPC's INTERNAL, as istio-agent has it.
    assert_eq!((stream, code), (1, 13));
    assert!(why.starts_with(&format!("TCP 127.0.0.1:{port}: ")), "{why}");
    // By this istiod knows that the host reports its health.
    let asked = place.istiod.discovery.asked();
    let node = asked[0].ask.node.as_ref().unwrap();
    assert!(
        node.metadata
            .as_ref()
            .unwrap()
            .fields
            .contains_key("PROXY_CONFIG")
    );

    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    until("it is up", || reports(&place).last() == Some(&(1, None))).await;
    place.istiod.discovery.end_streams();
    until("another istiod knows", || {
        reports(&place).last() == Some(&(2, None))
    })
    .await;
    drop(listener);
    let down = || {
        reports(&place)
            .last()
            .is_some_and(|(stream, why)| *stream == 2 && why.is_some())
    };
    until("it is down again", down).await;
    assert_eq!(
        reports(&place).len(),
        4,
        "only transitions are told: {:?}",
        reports(&place)
    );
}

/// gRPC's health service, of which the answer can be set.
#[derive(Clone)]
struct Health(Arc<AtomicI32>);

#[derive(Clone, PartialEq, prost::Message)]
struct Ask {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

impl Method for Health {
    const SERVICE: &'static str = "grpc.health.v1.Health";
    const METHOD: &'static str = "Check";

    async fn answer(self, request: HttpRequest) -> HttpResponse {
        let codec = ProstCodec::<Answer, Ask>::default();
        Grpc::new(codec).unary(self, request).await
    }
}

impl UnaryService<Ask> for Health {
    type Response = Answer;
    type Future = std::future::Ready<Result<Response<Answer>, Status>>;

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        let status = self.0.load(Ordering::Relaxed);
        std::future::ready(match (&*request.get_ref().service, status) {
            ("shop", 0..) => Ok(Response::new(Answer { status })),
            _ => Err(Status::not_found("unknown service")),
        })
    }
}

/// V025.
#[tokio::test]
async fn grpc_says_whether_it_is_serving() {
    let place = Place::new();
    let status = Arc::new(AtomicI32::new(2));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder()
        .add_service(Served(Health(Arc::clone(&status))))
        .serve_with_incoming(incoming);
    tokio::spawn(server);
    let _mesh = host(&place, Probe::grpc(address.port()).service("shop"));
    until("NOT_SERVING", || reports(&place).len() == 1).await;
    let why = format!("grpc.health.v1 {address}/shop: NOT_SERVING");
    assert_eq!(reports(&place), [(1, Some((13, why)))]);
    status.store(1, Ordering::Relaxed);
    until("SERVING", || reports(&place).last() == Some(&(1, None))).await;
    // A service that it does not know any more.
    status.store(-1, Ordering::Relaxed);
    until("NOT_FOUND", || reports(&place).len() == 3).await;
    let (_, problem) = reports(&place).remove(2);
    assert!(problem.unwrap().1.contains("unknown service"));
}

#[tokio::test]
async fn the_application_has_a_word_too() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = host(&place, Probe::tcp(listener.local_addr().unwrap().port()));
    mesh.report_health(AppHealth::Unhealthy("starting".into()));
    until("its word", || reports(&place).len() == 1).await;
    let said = |text: &str| Some((13, text.to_owned()));
    assert_eq!(reports(&place), [(1, said("starting"))]);
    mesh.report_health(AppHealth::Healthy);
    until("both agree", || reports(&place).last() == Some(&(1, None))).await;
    drop(listener);
    until("the probe disagrees", || reports(&place).len() == 3).await;
    assert!(reports(&place)[2].1.as_ref().unwrap().1.starts_with("TCP "));
}

/// The probe of one's own listener has no identity. Why it is refused nobody could guess from a reset or a 403.
#[tokio::test]
async fn a_probe_that_the_workloads_own_policy_refuses_says_so() {
    let (lines, _guard) = capture("mesh::health=info");
    let (control, batches) = Control::new();
    let world = World::new(89);
    let mesh = Mesh::builder()
        .workload("default", "server", "server")
        .readiness_probe(
            Probe::http(PORT)
                .path("/healthz?full")
                .timeout(LONG)
                .period(OFTEN),
        )
        .config(batches)
        .identity(world.ca.clone())
        .build()
        .unwrap();
    let callers = policy("callers", Action::Allow, vec![caller("client")]);
    control
        .set(vec![world.workload("server", 2).into(), callers])
        .await;
    let http = mesh.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(Handler::default()));
    let says = async |parts: &[&str]| {
        until("a verdict", || {
            let text = lines.text();
            let mut lines = text.lines();
            lines.any(|line| parts.iter().all(|part| line.contains(part)))
        })
        .await;
    };
    let refused =
        "own policies refuse it (allow policies exist, but none allowed: default/callers)";
    let to_do = "without an identity: let that, GET /healthz of host ";
    says(&["WARN", refused, to_do, ", in, ", "Mesh::report_health"]).await;
    let healthz = to(|operation| {
        operation.paths = vec!["/healthz".into()];
        operation.methods = vec!["GET".into()];
    });
    control
        .set(vec![policy(
            "callers",
            Action::Allow,
            vec![caller("client"), healthz],
        )])
        .await;
    says(&["INFO", "finds the application healthy"]).await;
}

/// Policies are asked about the request that it makes, with its host and its header fields.
#[tokio::test]
async fn a_probe_is_not_told_of_policies_that_let_it_in() {
    let (lines, _guard) = capture("mesh::health=debug");
    let (control, batches) = Control::new();
    let world = World::new(252);
    let probe = Probe::http(PORT)
        .header("Host", "forum.example")
        .header("X-Probe", "yes");
    let mesh = Mesh::builder()
        .workload("default", "server", "server")
        .readiness_probe(probe.timeout(LONG).period(OFTEN))
        .config(batches)
        .identity(world.ca.clone())
        .build()
        .unwrap();
    let marked = || {
        let mut rule = to(|operation| operation.hosts = vec!["forum.example".into()]);
        let mut condition = Condition::default();
        condition.key = "request.headers[x-probe]".into();
        condition.values = vec!["yes".into()];
        rule.when = vec![condition];
        rule
    };
    let by_marked = |action| policy("marked", action, vec![marked()]);
    control
        .set(vec![
            world.workload("server", 2).into(),
            by_marked(Action::Allow),
        ])
        .await;
    let http = mesh.listen_http(PORT).await.unwrap();
    tokio::spawn(http.serve(service_fn(|_: http::Request<Incoming>| async {
        let response = http::Response::builder().status(503);
        Ok::<_, Infallible>(response.body(String::new()).unwrap())
    })));
    let fails = async |how: &str| {
        until(how, || lines.text().contains(how)).await;
    };
    // It is the application's own answer.
    fails("status 503").await;
    assert!(!lines.text().contains("policies"), "{}", lines.text());
    control.set(vec![by_marked(Action::Deny)]).await;
    fails("own policies refuse it (explicitly denied by: default/marked)").await;
}

#[tokio::test]
async fn a_probe_that_cannot_be_is_refused_at_the_start() {
    let place = Place::new();
    let error = Mesh::builder()
        .workload("default", "client", "client")
        .readiness_probe(Probe::http(8080).path("ready"))
        .config(place.xds("client", [10, 0, 0, 1]))
        .identity(Istiod::new(place.control_plane("client")))
        .build()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let expected = "readiness_probe: path: expected one that begins with /, found \"ready\"";
    assert_eq!(error.detail(), Some(expected));
}
