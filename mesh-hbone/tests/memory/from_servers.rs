//! Attacks of servers on our client.

use std::net::TcpListener;
use std::sync::atomic::Ordering;

use mesh_hbone::client::{self, ConnectRequest};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::tls::connect;
use tokio::runtime::Builder;

use crate::authority::{Authority, CLIENT, SERVER, id};
use crate::reading::Reading;
use crate::wire::*;
use crate::{HostileServer, Sent, attack, counting, judge, linger, patient, server};

/// Asks for one tunnel in this thread, and never reads it; the server is in another.
fn under(
    what: &str,
    config: &Config,
    run: impl FnOnce(&mut HostileServer) -> Sent + Send + 'static,
) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = Authority::root("root");
        let credentials = root.credentials(CLIENT);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (finished, attacked) = tokio::sync::oneshot::channel();
        let attacker = attack(move || {
            let mut attacker = server(&root, &listener);
            let sent = run(&mut attacker);
            linger();
            // Unless we ended first.
            let _ = finished.send(());
            sent
        });
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let (io, read) = Reading::new(tcp);
        let tls = connect(io, &credentials, &[id(SERVER)]).await.unwrap();
        let (connection, sender) = client::handshake(tls, config).await.unwrap();
        let (idle, before) = (counting::idle(), read.load(Ordering::Relaxed));
        let asked = tokio::spawn(async move {
            let request =
                ConnectRequest::new("10.0.0.7:80".parse().unwrap(), ConnectHeaders::default());
            let answer = sender.connect(request).await;
            std::future::pending::<()>().await;
            drop((answer, sender));
        });
        tokio::select! {
            _ = connection => {}
            _ = attacked => {}
        }
        let peak = counting::peak();
        asked.abort();
        let sent = attacker.join().unwrap();
        judge(
            what,
            &sent,
            read.load(Ordering::Relaxed) - before,
            idle,
            peak,
        );
    });
}

const TOTAL: usize = 4 << 20;

#[test]
fn informational_answers() {
    under("103 without end", &Config::default(), |attacker| {
        let one = headers(1, 0, &block(&[(":status", "103")]));
        attacker.flood(TOTAL, true, || one.clone())
    });
    under("103 with fields", &Config::default(), |attacker| {
        let one = headers(
            1,
            0,
            &block(&[(":status", "103"), ("link", &"y".repeat(1000))]),
        );
        attacker.flood(TOTAL, true, || one.clone())
    });
}

#[test]
fn frames_that_only_want_an_answer() {
    for (what, listens, one) in [
        ("PING", false, ping(0, 7)),
        ("PING, answers read", true, ping(0, 7)),
        ("SETTINGS", false, settings(&[])),
        ("SETTINGS, answers read", true, settings(&[])),
        ("GOAWAY", true, goaway(1, NO_ERROR)),
        (
            "GOAWAY with debug data",
            true,
            frame(GOAWAY, 0, 0, &[&[0, 0, 0, 1], &[0; 16_000][..]].concat()),
        ),
        ("RST_STREAM", true, rst(1, CANCEL)),
        ("PRIORITY", true, priority(1001, 3)),
    ] {
        under(what, &patient(), move |attacker| {
            attacker.flood(TOTAL, listens, || one.clone())
        });
    }
}

#[test]
fn tiny_data_that_nobody_reads() {
    for (what, size) in [
        ("DATA of 1 byte", 1),
        ("DATA of 100 bytes", 100),
        ("full DATA", 16_384),
    ] {
        under(what, &patient(), move |attacker| {
            attacker.send(&accepted(1));
            attacker.flood(TOTAL, true, || data(1, 0, &vec![7; size]))
        });
    }
}

#[test]
fn an_answer_that_is_a_bomb() {
    under("an answer that is a bomb", &Config::default(), |attacker| {
        let mut fields = block(&[(":status", "103")]);
        fields.extend(literal(0x40, "x", &"y".repeat(4000)));
        attacker.send(&headers(1, 0, &fields));
        let mut bomb = block(&[(":status", "103")]);
        for _ in 0..14 {
            bomb.extend(indexed(FIRST_DYNAMIC));
        }
        attacker.flood(TOTAL, true, || headers(1, 0, &bomb))
    });
}

#[test]
fn continuation() {
    under("CONTINUATION", &Config::default(), |attacker| {
        let piece = block(&[("x", &"y".repeat(8000))]);
        attacker.send(&frame(HEADERS, 0, 1, &block(&[(":status", "200")])));
        attacker.flood(TOTAL, true, || frame(CONTINUATION, 0, 1, &piece))
    });
}
