//! Attacks of clients on our server.

use std::sync::atomic::Ordering;
use std::sync::mpsc;

use mesh_hbone::tls::accept;
use mesh_hbone::{Tunnel, server};
use tokio::io::{AsyncWriteExt as _, copy, split};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::authority::{Authority, SERVER};
use crate::reading::Reading;
use crate::wire::*;
use crate::{HostileClient, Sent, attack, client, counting, judge, linger, patient};

/// What our server does with tunnels.
#[derive(Clone, Copy, PartialEq)]
enum Application {
    Echoes,
    Stalls,
    Waits,
}

async fn echo(tunnel: Tunnel) {
    let (mut read, mut write) = split(tunnel);
    if copy(&mut read, &mut write).await.is_ok() {
        let _ = write.shutdown().await;
    }
}

/// Serves one connection in this thread, attacked from another.
fn under(
    what: &str,
    application: Application,
    run: impl FnOnce(&mut HostileClient) -> Sent + Send + 'static,
) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = Authority::root("root");
        let credentials = root.credentials(SERVER);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shaken, ready) = mpsc::channel();
        let attacker = attack(move || {
            let mut attacker = client(&root, address);
            ready.recv().unwrap();
            let sent = run(&mut attacker);
            linger();
            sent
        });
        let (io, read) = Reading::new(listener.accept().await.unwrap().0);
        let tls = accept(io, &credentials).await.unwrap();
        let mut connection = server::handshake(tls, &patient());
        let mut held = JoinSet::new();
        let (idle, before) = (counting::idle(), read.load(Ordering::Relaxed));
        shaken.send(()).unwrap();
        loop {
            tokio::select! {
                incoming = connection.accept() => match incoming {
                    Some(Ok(incoming)) => {
                        held.spawn(async move {
                            match application {
                                Application::Echoes => {
                                    if let Ok(tunnel) = incoming.accept(None) {
                                        echo(tunnel).await;
                                    }
                                }
                                Application::Stalls => {
                                    let Ok(_tunnel) = incoming.accept(None) else { return };
                                    std::future::pending::<()>().await;
                                }
                                Application::Waits => {
                                    let _incoming = incoming;
                                    std::future::pending::<()>().await;
                                }
                            }
                        });
                    }
                    Some(Err(_)) | None => break,
                },
                Some(_) = held.join_next() => {}
            }
        }
        let peak = counting::peak();
        drop(connection);
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

/// The odd numbers, for ever.
fn streams() -> impl FnMut() -> u32 {
    let mut next = 1;
    move || {
        next += 2;
        next - 2
    }
}

const TOTAL: usize = 4 << 20;

#[test]
fn rapid_reset() {
    for application in [Application::Echoes, Application::Waits] {
        under("rapid reset", application, |attacker| {
            let mut stream = streams();
            attacker.flood(TOTAL, true, || {
                let id = stream();
                [connect(id), rst(id, CANCEL)].concat()
            })
        });
    }
}

#[test]
fn made_you_reset() {
    under(
        "streams that depend on themselves",
        Application::Echoes,
        |attacker| {
            let mut stream = streams();
            attacker.flood(TOTAL, false, || {
                let id = stream();
                [connect(id), priority(id, id)].concat()
            })
        },
    );
}

#[test]
fn continuation() {
    under("CONTINUATION", Application::Echoes, |attacker| {
        let piece = block(&[("x", &"y".repeat(8000))]);
        let start = frame(HEADERS, 0, 1, &connect_block());
        attacker.send(&start);
        attacker.flood(TOTAL, true, || frame(CONTINUATION, 0, 1, &piece))
    });
}

#[test]
fn answers_that_nobody_reads() {
    for (what, one) in [("PING", ping(0, 7)), ("SETTINGS", settings(&[]))] {
        under(what, Application::Echoes, move |attacker| {
            attacker.flood(TOTAL, false, || one.clone())
        });
    }
}

#[test]
fn frames_that_only_want_an_answer() {
    for (what, one) in [
        ("PING, answers read", ping(0, 7)),
        ("SETTINGS, answers read", settings(&[])),
        ("PRIORITY", priority(1001, 3)),
        ("unknown frames", frame(0xbe, 0, 0, &[])),
        ("WINDOW_UPDATE", window_update(0, 1)),
    ] {
        under(what, Application::Echoes, move |attacker| {
            attacker.send(&connect(1));
            attacker.flood(TOTAL, true, || one.clone())
        });
    }
}

/// S-02, RUSTSEC-2024-0003: answers that we are made to send wait in a queue that is bounded.
#[test]
fn refusals_that_nobody_reads() {
    under(
        "requests that are refused",
        Application::Echoes,
        |attacker| {
            let get = block(&[
                (":method", "GET"),
                (":scheme", "http"),
                (":authority", "a"),
                (":path", "/"),
            ]);
            let mut stream = streams();
            attacker.flood(TOTAL, false, || headers(stream(), END_STREAM, &get))
        },
    );
    under("streams beyond the limit", Application::Waits, |attacker| {
        let mut stream = streams();
        attacker.flood(TOTAL, false, || connect(stream()))
    });
}

#[test]
fn empty_data() {
    under("empty DATA", Application::Stalls, |attacker| {
        attacker.send(&connect(1));
        attacker.flood(TOTAL, true, || data(1, 0, b""))
    });
}

/// DATA of a few bytes on every stream that there is, and nobody reads.
#[test]
fn tiny_data_that_nobody_reads() {
    for (what, size, application) in [
        ("DATA of 1 byte", 1, Application::Stalls),
        ("DATA of 1 byte before the answer", 1, Application::Waits),
        ("DATA of 16 bytes", 16, Application::Stalls),
        // With larger ones a MiB is read before they are too many.
        ("DATA of 20 bytes", 20, Application::Stalls),
        ("DATA of 100 bytes", 100, Application::Stalls),
        ("DATA of 255 bytes", 255, Application::Stalls),
        ("DATA of 256 bytes", 256, Application::Stalls),
        ("DATA of 1 000 bytes", 1000, Application::Stalls),
        ("full DATA", 16_384, Application::Stalls),
    ] {
        under(what, application, move |attacker| {
            let payload = vec![7; size];
            for at in 0..100 {
                attacker.send(&connect(1 + 2 * at));
            }
            let mut at = 0;
            attacker.flood(8 << 20, true, || {
                at = (at + 1) % 100;
                data(1 + 2 * at, 0, &payload)
            })
        });
    }
}

/// Padding is on the wire, not in memory.
#[test]
fn padding() {
    under("padding", Application::Stalls, |attacker| {
        let mut payload = vec![255, 7];
        payload.extend([0; 255]);
        attacker.send(&connect(1));
        attacker.flood(TOTAL, true, || frame(DATA, PADDED, 1, &payload))
    });
}

/// Each CONNECT is a few bytes that stand for many.
#[test]
fn hpack_bombs() {
    for application in [Application::Waits, Application::Stalls] {
        under(
            "a field of the table, again and again",
            application,
            |attacker| {
                let mut stream = streams();
                let mut first = connect_block();
                first.extend(literal(0x40, "x", &"y".repeat(4000)));
                attacker.send(&headers(stream(), 0, &first));
                let mut bomb = connect_block();
                for _ in 0..14 {
                    bomb.extend(indexed(FIRST_DYNAMIC));
                }
                attacker.flood(TOTAL, true, || headers(stream(), 0, &bomb))
            },
        );
        under("many tiny fields", application, |attacker| {
            let mut stream = streams();
            let mut bomb = connect_block();
            for _ in 0..1500 {
                bomb.extend(indexed(15));
            }
            attacker.flood(TOTAL, true, || headers(stream(), 0, &bomb))
        });
        under("many tiny cookies", application, |attacker| {
            let mut stream = streams();
            let mut bomb = connect_block();
            for _ in 0..1500 {
                bomb.extend(indexed(32));
            }
            attacker.flood(TOTAL, true, || headers(stream(), 0, &bomb))
        });
    }
}

/// Streams that stay half open, with what was echoed waiting for a window that never opens.
#[test]
fn windows_that_never_open() {
    under("no window", Application::Echoes, |attacker| {
        attacker.send(&settings(&[(INITIAL_WINDOW_SIZE, 0)]));
        for at in 0..100 {
            attacker.send(&connect(1 + 2 * at));
        }
        let mut at = 0;
        attacker.flood(8 << 20, true, || {
            at = (at + 1) % 100;
            data(1 + 2 * at, 0, &[7; 1000])
        })
    });
}
