use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mesh_xds::ads::NodeValue;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::check::Surroundings;
use super::schedule::Schedule;
use super::*;
use crate::config::AppHealth;

const OWN: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: Duration = Duration::from_secs(1);
/// Long enough for any machine: what is tested does not wait for it.
const LONG: Duration = Duration::from_secs(30);

fn ok() -> Result<(), String> {
    Ok(())
}

fn failed() -> Result<(), String> {
    Err("status 503".to_owned())
}

fn unhealthy() -> Option<AppHealth> {
    Some(AppHealth::Unhealthy("status 503".into()))
}

/// V025.
#[test]
fn without_a_word_it_is_as_in_istio_agent() {
    let probe = Probe::http(8080);
    let now = Instant::now();
    let mut schedule = Schedule::new(probe.timing, now);
    assert_eq!(schedule.next(), now, "the first at once");
    assert_eq!(probe.timing.timeout, SECOND);
    assert_eq!(
        schedule.ended(now, now + SECOND, failed()),
        unhealthy(),
        "one failure is enough"
    );
    assert_eq!(
        schedule.next(),
        now + 10 * SECOND,
        "counted from its beginning"
    );
    assert_eq!(
        schedule.ended(now, now + SECOND, ok()),
        Some(AppHealth::Healthy)
    );
}

/// V025.
#[test]
fn counts_are_consecutive_and_only_transitions_are_told() {
    let probe = Probe::tcp(1).success_threshold(2).failure_threshold(3);
    let now = Instant::now();
    let mut schedule = Schedule::new(probe.timing, now);
    let mut tell = |outcome: Result<(), String>| schedule.ended(now, now, outcome);
    // One success in between begins the count anew, and the other way round.
    for outcome in [failed(), failed(), ok(), failed(), failed()] {
        assert_eq!(tell(outcome), None, "nothing is known yet");
    }
    assert_eq!(tell(failed()), unhealthy());
    assert_eq!(tell(failed()), None);
    assert_eq!(tell(ok()), None);
    assert_eq!(tell(failed()), None);
    assert_eq!(tell(ok()), None);
    assert_eq!(tell(ok()), Some(AppHealth::Healthy));
    assert_eq!(tell(ok()), None);
    for outcome in [failed(), failed(), ok(), failed(), failed()] {
        assert_eq!(tell(outcome), None);
    }
    assert_eq!(tell(failed()), unhealthy());
}

#[test]
fn tries_do_not_overlap_and_the_first_waits_for_its_delay() {
    let timing = Probe::tcp(1)
        .initial_delay(5 * SECOND)
        .period(SECOND)
        .timing;
    let now = Instant::now();
    let mut schedule = Schedule::new(timing, now);
    assert_eq!(schedule.next(), now + 5 * SECOND);
    let (began, ended) = (now + 5 * SECOND, now + 8 * SECOND);
    schedule.ended(began, ended, ok());
    assert_eq!(schedule.next(), ended, "it took longer than the period");
    let endless = Probe::tcp(1)
        .initial_delay(Duration::MAX)
        .period(Duration::MAX);
    let mut schedule = Schedule::new(endless.timing, now);
    assert!(schedule.next() > now + 1_000_000 * SECOND);
    schedule.ended(now, now, ok());
    assert!(schedule.next() > now + 1_000_000 * SECOND);
}

fn read(yaml: &str) -> Result<Probe, String> {
    let value = NodeValue::read_yaml(Path::new("mesh.yaml"), yaml).unwrap();
    Probe::read(&value).map_err(|(field, message)| format!("{field}: {message}"))
}

/// V025.
#[test]
fn all_four_methods_are_read_and_said_again() {
    let http = "{httpGet: {path: /ready, port: 8080, host: 10.0.0.1, scheme: HTTP, httpHeaders: [{name: Host, value: forum}]}, \
        initialDelaySeconds: 5, timeoutSeconds: 2, periodSeconds: 3, successThreshold: 4, failureThreshold: 6}";
    let expected = Probe::http(8080)
        .path("/ready")
        .host("10.0.0.1")
        .header("Host", "forum")
        .initial_delay(5 * SECOND)
        .timeout(2 * SECOND)
        .period(3 * SECOND)
        .success_threshold(4)
        .failure_threshold(6);
    let cases = [
        (http, expected),
        // What is 0 or not said has its default.
        (
            "{httpGet: {port: 80}, periodSeconds: 0, failureThreshold: 0}",
            Probe::http(80),
        ),
        (
            "{tcpSocket: {port: '9000', host: localhost}}",
            Probe::tcp(9000).host("localhost"),
        ),
        (
            "{grpc: {port: 9000, service: shop}}",
            Probe::grpc(9000).service("shop"),
        ),
        (
            "{exec: {command: [cat, /tmp/ready]}}",
            Probe::exec(["cat", "/tmp/ready"]),
        ),
    ];
    for (yaml, expected) in cases {
        assert_eq!(read(yaml).as_ref(), Ok(&expected), "{yaml}");
        assert_eq!(
            Probe::read(&expected.to_metadata()).unwrap(),
            expected,
            "{yaml}"
        );
        expected.validate().unwrap();
    }
}

#[test]
fn what_is_wrong_is_named() {
    for (yaml, expected) in [
        ("{}", ": expected one of httpGet, tcpSocket, exec and grpc"),
        (
            "{exec: {command: [a]}, grpc: {port: 1}}",
            ": expected one of httpGet, tcpSocket, exec and grpc",
        ),
        (
            "{httpGet: {path: /}}",
            "httpGet.port: expected a number of 1 to 65535",
        ),
        (
            "{tcpSocket: {port: 65536}}",
            "tcpSocket.port: expected a number of 1 to 65535",
        ),
        (
            "{grpc: {port: http}}",
            "grpc.port: expected a number of 1 to 65535",
        ),
        (
            "{httpGet: {port: 1, scheme: HTTPS}}",
            "httpGet.scheme: expected HTTP: no other is probed",
        ),
        (
            "{httpGet: {port: 1, httpHeaders: [{value: a}]}}",
            "httpGet.httpHeaders[0].name: expected a string",
        ),
        (
            "{exec: {command: []}}",
            "exec.command: expected a list of strings",
        ),
        (
            "{exec: {command: [1]}}",
            "exec.command: expected a list of strings",
        ),
        (
            "{tcpSocket: {port: 1}, periodSeconds: -1}",
            "periodSeconds: expected a whole number, 0 or more",
        ),
    ] {
        assert_eq!(read(yaml).unwrap_err(), expected, "{yaml}");
    }
    for (probe, expected) in [
        (Probe::tcp(0), "port: expected 1 to 65535, found 0"),
        (
            Probe::tcp(1).host(""),
            "host: expected a name or an address, found nothing",
        ),
        (
            Probe::http(1).path("ready"),
            "path: expected one that begins with /, found \"ready\"",
        ),
        (
            Probe::http(1).path("/a\r\nx: y"),
            "path: expected one that begins with /, found \"/a\\r\\nx: y\"",
        ),
        (
            Probe::http(1).header("a", "b\r\nc: d"),
            "header \"a\": it cannot be sent",
        ),
        (
            Probe::exec([""; 0]),
            "exec: expected a program, found nothing",
        ),
        (
            Probe::tcp(1).period(Duration::ZERO),
            "timeout, period: expected more than 0",
        ),
        (
            Probe::tcp(1).failure_threshold(0),
            "success_threshold, failure_threshold: expected at least 1",
        ),
    ] {
        let error = probe.validate().unwrap_err();
        assert_eq!(
            error.detail().unwrap(),
            format!("readiness_probe: {expected}")
        );
    }
}

/// Answers every connection so; says on which port.
async fn answering(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind((OWN, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            let _ = io.read(&mut [0; 1024]).await;
            let _ = io.write_all(answer).await;
        }
    });
    port
}

/// V025.
#[tokio::test]
async fn a_status_of_200_to_399_is_healthy() {
    for (answer, healthy) in [
        (&b"HTTP/1.1 200 OK\r\n\r\n"[..], true),
        (b"HTTP/1.1 399 Odd\r\n\r\n", true),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", false),
        (b"HTTP/1.1 503 No\r\n\r\n", false),
        (b"220 mail\r\n", false),
        (b"", false),
    ] {
        let port = answering(answer).await;
        let probe = Probe::http(port).path("/ready").timeout(LONG);
        let outcome = probe.attempt(&around()).await;
        assert_eq!(outcome.is_ok(), healthy, "{answer:?}: {outcome:?}");
        if let Err(why) = outcome {
            let expected = format!("GET http://127.0.0.1:{port}/ready: ");
            assert!(why.starts_with(&expected), "{why}");
        }
    }
}

/// V025.
#[tokio::test]
async fn a_connection_and_a_program_are_tried() {
    let port = answering(b"").await;
    Probe::tcp(port)
        .timeout(LONG)
        .attempt(&around())
        .await
        .unwrap();
    let by_name = Probe::tcp(port).host("app.internal").timeout(LONG);
    by_name.attempt(&around()).await.unwrap();
    let unknown = Probe::tcp(port).host("db.internal").timeout(LONG);
    let why = unknown.attempt(&around()).await.unwrap_err();
    assert_eq!(why, format!("TCP db.internal:{port}: nobody knows it"));
    let listener = TcpListener::bind((OWN, 0)).await.unwrap();
    let closed = listener.local_addr().unwrap().port();
    drop(listener);
    let why = Probe::tcp(closed)
        .timeout(LONG)
        .attempt(&around())
        .await
        .unwrap_err();
    assert!(
        why.starts_with(&format!("TCP 127.0.0.1:{closed}: ")),
        "{why}"
    );

    Probe::exec(["true"])
        .timeout(LONG)
        .attempt(&around())
        .await
        .unwrap();
    let why = Probe::exec(["sh", "-c", "exit 3"])
        .timeout(LONG)
        .attempt(&around())
        .await
        .unwrap_err();
    assert_eq!(why, "exec sh: exit status: 3");
    let why = Probe::exec(["/no/such/program"])
        .timeout(LONG)
        .attempt(&around())
        .await
        .unwrap_err();
    assert!(why.starts_with("exec /no/such/program: "), "{why}");
}

/// The workload is at `OWN`, where one name is known to lead as well.
fn around() -> Surroundings {
    Surroundings {
        own: OWN,
        look_up: Arc::new(|host| {
            let found = match host {
                "app.internal" => Ok(Arc::from([OWN])),
                _ => Err("nobody knows it".to_owned()),
            };
            Box::pin(std::future::ready(found))
        }),
    }
}

/// It is killed with what it has started, or a host would fill with them.
#[tokio::test]
async fn a_program_that_takes_too_long_is_killed_with_its_descendants() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let script = format!("(sleep 600 & echo $! > {}; wait); true", file.display());
    let probe = Probe::exec(["sh", "-c", &script]).timeout(2 * SECOND);
    let why = probe.attempt(&around()).await.unwrap_err();
    assert_eq!(why, "exec sh: no answer within 2s");
    let pid = std::fs::read_to_string(&file).unwrap();
    let stat = Path::new("/proc").join(pid.trim()).join("stat");
    // Who has adopted it may leave it a zombie.
    let gone = || match std::fs::read_to_string(&stat) {
        Ok(stat) => stat.rsplit(')').next().unwrap().trim().starts_with('Z'),
        Err(_) => true,
    };
    for _ in 0..1000 {
        if gone() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {} is still there", pid.trim());
}
