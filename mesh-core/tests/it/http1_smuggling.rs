//! HTTP/1 whose end can be read in two ways: one request, or none.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use mesh_core::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::service_fn;

use crate::mesh_world::{PORT, World};

/// What whoever reads the end of the first request wrongly takes for the next.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";

/// What becomes of bytes that begin with a request for `/first`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Answered 400 before the application saw anything.
    Refused,
    /// The application has the head, and an error for a body.
    Broken,
    /// One request with this body.
    Whole(String),
}

use Outcome::{Broken, Refused, Whole};

/// Paths and bodies of the requests that the application got; `None` where a body broke off.
type Seen = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// Reads every body to its end, as applications do.
async fn serve(server: &Mesh) -> Seen {
    let seen = Seen::default();
    let http = server.listen_http(PORT).await.unwrap();
    let sees = Arc::clone(&seen);
    tokio::spawn(http.serve(service_fn(
        move |request: Request<hyper::body::Incoming>| {
            let seen = Arc::clone(&sees);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.ok();
                let body = body.map(|body| String::from_utf8(body.to_bytes().to_vec()).unwrap());
                let status = if body.is_some() { 200 } else { 422 };
                seen.lock().unwrap().push((path, body));
                let answer = Response::builder().status(status);
                Ok::<_, Infallible>(answer.body(Full::new(Bytes::from("ok"))).unwrap())
            }
        },
    )));
    seen
}

/// All that is answered to these bytes until the connection ends.
async fn answers(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    // What is waited for never comes: neither side hangs.
    let _ = stream.shutdown().await;
    let mut answers = Vec::new();
    // Closed with something unread is a reset, behind the answer.
    let _ = stream.read_to_end(&mut answers).await;
    String::from_utf8(answers).unwrap()
}

/// A request with these lines in its head, and then these bytes.
fn post(lines: &str, rest: &str) -> String {
    format!("POST /first HTTP/1.1\r\nHost: x\r\n{lines}\r\n\r\n{rest}")
}

/// A request whose body is in chunks, by these bytes.
fn chunked(rest: &str) -> String {
    post("Transfer-Encoding: chunked", rest)
}

/// CVE-2017-18587, CVE-2020-35863, CVE-2021-21299, CVE-2021-32714, CVE-2021-32715, CVE-2026-2835.
fn cases() -> Vec<(String, Outcome)> {
    let hidden = HIDDEN.len();
    let length = |value: &str| post(&format!("Content-Length: {value}"), HIDDEN);
    let coding = |lines: &str| post(lines, &format!("0\r\n\r\n{HIDDEN}"));
    let whole = |body: &str| Whole(body.to_owned());
    let mut cases = vec![
        // Either of two lengths.
        (
            post(
                &format!(
                    "Content-Length: {}\r\nTransfer-Encoding: chunked",
                    hidden + 5
                ),
                &format!("0\r\n\r\n{HIDDEN}"),
            ),
            whole(""),
        ),
        (
            post(
                &format!(
                    "Transfer-Encoding: chunked\r\nContent-Length: {}",
                    hidden + 5
                ),
                &format!("0\r\n\r\n{HIDDEN}"),
            ),
            whole(""),
        ),
        (
            post(
                "Content-Length: 4\r\nTransfer-Encoding: chunked",
                &format!("{hidden:x}\r\n{HIDDEN}\r\n0\r\n\r\n"),
            ),
            whole(HIDDEN),
        ),
        (
            post(
                &format!("Content-Length: 0\r\nContent-Length: {hidden}"),
                HIDDEN,
            ),
            Refused,
        ),
        (
            post(
                &format!("Content-Length: {hidden}\r\nContent-Length: 0"),
                HIDDEN,
            ),
            Refused,
        ),
        (
            post(
                &format!("Content-Length: {hidden}\r\nContent-Length: {hidden}"),
                HIDDEN,
            ),
            whole(HIDDEN),
        ),
        // A body where some expect none.
        (
            length(&hidden.to_string()).replacen("POST", "GET", 1),
            whole(HIDDEN),
        ),
        // Lines that end as some take for an end.
        (
            format!("POST /first HTTP/1.1\nHost: x\nContent-Length: {hidden}\n\n{HIDDEN}"),
            whole(HIDDEN),
        ),
        // Of another version.
        (
            coding("Transfer-Encoding: chunked").replacen("HTTP/1.1", "HTTP/1.0", 1),
            Refused,
        ),
        (
            coding(&format!(
                "Connection: keep-alive\r\nContent-Length: {}\r\nTransfer-Encoding: chunked",
                hidden + 5
            ))
            .replacen("HTTP/1.1", "HTTP/1.0", 1),
            Refused,
        ),
        // White space after a size is nothing.
        (chunked("5 \r\nhello\r\n0\r\n\r\n"), whole("hello")),
        (chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), whole("hello")),
    ];
    let lengths = [
        "+5",
        "-1",
        "0x5",
        "5,5",
        "5, 5",
        "",
        "5 5",
        "\u{b}5",
        "0_5",
        "18446744073709551616",
    ];
    let codings = [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding:\0chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: xchunked",
        // The name is another's.
        "Transfer-Encoding : chunked",
        "Transfer-\0Encoding: chunked",
        // Folded lines, and a return that ends none.
        "Transfer-Encoding:\r\n chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\0\r\nTransfer-Encoding: chunked",
        " Transfer-Encoding: chunked",
    ];
    let lengths = lengths.into_iter().map(length);
    let heads = lengths.chain(codings.into_iter().map(coding));
    cases.extend(heads.map(|bytes| (bytes, Refused)));
    for size in [
        // 2^64 and something, which is 5 to whoever counts in 64 bits.
        "10000000000000005\r\n",
        "f0000000000000005\r\n",
        "+5\r\n",
        "-5\r\n",
        "0x5\r\n",
        " 5\r\n",
        "5 5\r\n",
        "\r\n",
        "5\n",
        "5\r",
        "5;a\n",
    ] {
        cases.push((
            chunked(&format!("{size}hello\r\n0\r\n\r\n{HIDDEN}")),
            Broken,
        ));
    }
    // Data that is longer than was said, and data that does not end.
    cases.push((
        chunked(&format!("5\r\nhello!\r\n0\r\n\r\n{HIDDEN}")),
        Broken,
    ));
    cases.push((chunked(&format!("5\r\nhello\n0\r\n\r\n{HIDDEN}")), Broken));
    cases.push((chunked(&format!("ff\r\n{HIDDEN}")), Broken));
    cases.push((length(&(hidden + 1).to_string()), Broken));
    cases
}

#[tokio::test]
async fn nothing_in_a_request_is_taken_for_the_next() {
    let world = World::new(225);
    let (_client, server) = world.pair().await;
    let seen = serve(&server).await;
    let to = SocketAddr::new(world.ip(2), PORT);
    // Two in a row are two, or this shows nothing.
    let two = post("Content-Length: 5", &format!("hello{HIDDEN}"));
    assert_eq!(
        answers(to, two.as_bytes())
            .await
            .matches("HTTP/1.1")
            .count(),
        2
    );
    let paths = std::mem::take(&mut *seen.lock().unwrap());
    assert_eq!(
        paths.iter().map(|(path, _)| path).collect::<Vec<_>>(),
        ["/first", "/hidden"]
    );

    for (bytes, expected) in cases() {
        let answers = answers(to, bytes.as_bytes()).await;
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        let outcome = match &seen[..] {
            [] if answers.starts_with("HTTP/1.1 400 ") => Refused,
            [(path, None)] if path == "/first" => Broken,
            [(path, Some(body))] if path == "/first" => Whole(body.clone()),
            _ => panic!("{bytes:?}: {seen:?} {answers:?}"),
        };
        assert_eq!(outcome, expected, "{bytes:?}: {answers:?}");
        let said = answers.matches("HTTP/1.").count();
        assert!(said <= 1, "{bytes:?}: {answers:?}");
    }
}
