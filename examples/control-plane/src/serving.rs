//! Connections: TLS, then HTTP/2 with the service on it.

use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mesh_xds::serve::{Body, Peer, Remote, Server, Service};
use rustls::{AlertDescription, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::{BoxError, tls};

/// Connections at a time; others wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;

const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a connection may be here before something on it was accepted: nobody but the Authenticator knows who it is.
const FIRST_ACCEPTED: Duration = Duration::from_secs(10);

/// How long a connection that has reached its age may finish what is on it. As istiod.
const GRACE: Duration = Duration::from_secs(10);

pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    server: Server,
    max_age: Duration,
) {
    let service = server.service();
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "no connection could be accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, service, server) = (acceptor.clone(), service.clone(), server.clone());
        tokio::spawn(async move {
            let from = from.ip();
            match greet(acceptor, stream).await {
                Ok((stream, peer)) => {
                    let ended = on(stream, service, Remote::new(from), peer, jittered(max_age));
                    if let Err(error) = ended.await {
                        tracing::debug!(error, "a connection ends");
                    }
                }
                Err(error) => match why_not(&*error) {
                    Some(reason) => server.note_rejection(from, &reason),
                    None => tracing::debug!(error, "a connection ends"),
                },
            }
            drop(place);
        });
    }
}

/// Says that a client's certificate names nobody we know, which is not the same as that it has none: its token must
/// not count instead.
#[derive(Debug)]
struct NamesNobody;

impl fmt::Display for NamesNobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client's certificate names no workload")
    }
}

impl std::error::Error for NamesNobody {}

/// Makes a TLS session, and finds out who its certificate says the client is, if it has one.
async fn greet(
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<(TlsStream<TcpStream>, Option<Peer>), BoxError> {
    stream.set_nodelay(true)?;
    let stream = timeout(HANDSHAKE, acceptor.accept(stream)).await??;
    let (_, session) = stream.get_ref();
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let peer = match leaf.map(tls::identity) {
        Some(None) => return Err(NamesNobody.into()),
        Some(Some(identity)) => Some(Peer::new(identity)),
        None => None,
    };
    Ok((stream, peer))
}

/// Why there is no session, if one of the two sides did not want it. Whoever only looks whether the port is open
/// is nobody to tell of.
fn why_not(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    if error.is::<NamesNobody>() {
        return Some(error.to_string());
    }
    let inner = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    let tls = inner.downcast_ref::<rustls::Error>()?;
    Some(match tls {
        rustls::Error::AlertReceived(AlertDescription::UnknownCA) => {
            format!("TLS: {tls}: its root certificate is not the one of --state")
        }
        _ => format!("TLS: {tls}"),
    })
}

/// Serves a connection of whom its certificate names, if it has one.
async fn on<I>(
    stream: I,
    service: Service,
    remote: Remote,
    peer: Option<Peer>,
    age: Duration,
) -> Result<(), BoxError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let accepted = Arc::new(Notify::new());
    let accepts = Arc::clone(&accepted);
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        let (mut service, accepted) = (service.clone(), Arc::clone(&accepts));
        request.extensions_mut().insert(remote);
        if let Some(peer) = peer.clone() {
            request.extensions_mut().insert(peer);
        }
        async move {
            let answer = tower_service::Service::call(&mut service, request).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            if is_accepted(&answer) {
                accepted.notify_one();
            }
            Ok::<_, Infallible>(answer)
        }
    });
    speak(stream, service, &accepted, age).await
}

/// gRPC: a call that is refused has its status among the headers.
fn is_accepted<B>(answer: &Response<B>) -> bool {
    answer.status() == StatusCode::OK && !answer.headers().contains_key("grpc-status")
}

/// Speaks HTTP/2 until the client leaves, the connection has reached its age, or nothing on it was `accepted` in time.
async fn speak<I, S>(
    stream: I,
    service: S,
    accepted: &Notify,
    age: Duration,
) -> Result<(), BoxError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: tower_service::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(100);
    let service = TowerToHyperService::new(service);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let end = Instant::now() + age;
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = accepted.notified() => {}
        () = sleep(FIRST_ACCEPTED) => return Err("nothing on it was accepted in time".into()),
    }
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = sleep_until(end) => {}
    }
    // GOAWAY, then the end: a stream of discovery would never finish by itself. Its client comes back, to
    // another replica where there are some, and shows its newest certificate or token.
    connection.as_mut().graceful_shutdown();
    match timeout(GRACE, connection).await {
        Ok(ended) => Ok(ended?),
        Err(_) => Err("it has reached its age".into()),
    }
}

/// A tenth more or less, so that connections that came together do not go together. As gRPC.
fn jittered(age: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 2001;
    let permille = 9000 + u32::try_from(random).unwrap_or_default();
    age.saturating_mul(permille) / 10_000
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::token::Tokens;

    const REMOTE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        let hour = Duration::from_secs(3600);
        let ages: Vec<_> = (0..100).map(|_| jittered(hour)).collect();
        let near = |age: &Duration| age.as_secs().abs_diff(3600) <= 360;
        assert!(ages.iter().all(near), "{ages:?}");
        assert!(ages.iter().any(|age| *age != ages[0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_is_old_is_told_to_go_and_then_ends() {
        let tokens = Tokens::new(b"a secret", "td");
        let token = tokens.issue("default", "a", Duration::from_secs(60));
        let server = Server::builder(tokens).build();
        let (here, there) = tokio::io::duplex(1 << 16);
        let age = Duration::from_secs(1800);
        let started = Instant::now();
        let served = tokio::spawn(on(there, server.service(), Remote::new(REMOTE), None, age));
        let (sender, connection) = h2::client::handshake(here).await.unwrap();
        tokio::spawn(connection);
        let path = "http://cp/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
        let request = Request::post(path)
            .header("content-type", "application/grpc")
            .header("authorization", format!("Bearer {token}"))
            .body(())
            .unwrap();
        // The request never ends, as those of discovery.
        let mut ready = sender.clone().ready().await.unwrap();
        let (response, _open) = ready.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        sleep(age - Duration::from_secs(1)).await;
        assert!(sender.clone().ready().await.is_ok() && server.clients().len() == 1);
        while sender.clone().ready().await.is_ok() {
            sleep(Duration::from_millis(100)).await;
        }
        let told = started.elapsed();
        assert!(
            told >= age && told < age + Duration::from_secs(1),
            "{told:?}"
        );
        assert_eq!(
            server.clients().len(),
            1,
            "what is on it may go on for a while"
        );
        let cut = response.into_body().data().await;
        assert!(cut.is_none_or(|data| data.is_err()));
        let ended = started.elapsed() - told;
        assert!(ended.abs_diff(GRACE) < Duration::from_secs(1), "{ended:?}");
        assert!(served.await.unwrap().is_err());
        assert!(server.clients().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_on_which_nothing_is_accepted_in_time_ends() {
        let (here, there) = tokio::io::duplex(1 << 16);
        let server = Server::builder(Tokens::new(b"a secret", "td")).build();
        let age = Duration::from_secs(1800);
        let served = tokio::spawn(on(there, server.service(), Remote::new(REMOTE), None, age));
        let started = Instant::now();
        let (mut sender, connection) = h2::client::handshake(here).await.unwrap();
        tokio::spawn(connection);
        // Whoever shows nothing is told so each time, and that is no beginning.
        loop {
            let path = "http://cp/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
            let request = Request::post(path).header("content-type", "application/grpc");
            let request = request.body(()).unwrap();
            sender = match sender.ready().await {
                Ok(ready) => ready,
                Err(_) => break,
            };
            let Ok((response, _)) = sender.send_request(request, true) else {
                break;
            };
            let Ok(response) = response.await else {
                break;
            };
            assert_eq!(response.headers()["grpc-status"], "16");
            sleep(Duration::from_secs(1)).await;
        }
        let ended = started.elapsed();
        assert!(
            ended.abs_diff(FIRST_ACCEPTED) <= Duration::from_secs(1),
            "{ended:?}"
        );
        let error = served.await.unwrap().unwrap_err().to_string();
        assert_eq!(error, "nothing on it was accepted in time");
    }
}
