use mesh_hbone::tls::{Credentials, NamedClient, Options, Provider, accept, connect};
use mesh_hbone::{Error, ErrorKind, Side};
use rustls::server::Acceptor;
use rustls::{CipherSuite, NamedGroup};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy, duplex, sink, split,
};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::authority::{Authority, CLIENT, SERVER, client_hello, id, pair, provider, shake};
use crate::foreign;

#[tokio::test]
async fn both_ends_know_each_other() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, far) = shake(&client, &server, &[SERVER]).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    assert_eq!(near.peer().identity(), &id(SERVER));
    assert_eq!(far.peer().identity(), &id(CLIENT));
    assert_eq!(near.peer().chain(), server.current().chain());
    assert_eq!(far.peer().serial_number(), client.current().serial_number());
    assert_eq!(
        near.cipher_suite(),
        Some(CipherSuite::TLS13_AES_256_GCM_SHA384)
    );

    near.write_all(b"ping").await.unwrap();
    near.flush().await.unwrap();
    let mut bytes = [0; 4];
    far.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"ping");
}

#[tokio::test]
async fn one_of_several_expected_identities_is_enough() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, far) = shake(&client, &server, &[CLIENT, SERVER]).await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test]
async fn nobody_expected_is_an_error() {
    let client = Authority::root("root").credentials(CLIENT);
    let (near, _far) = duplex(1024);
    let error = connect(near, &client, &[]).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::InvalidSettings, Side::Us)
    );
}

/// Whoever begins, and whatever is expected of the peer.
#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_waited_for_as_long_as_set() {
    const LIMIT: Duration = Duration::from_secs(3);
    let root = Authority::root("root");
    let options = || Options::default().handshake_timeout(LIMIT);
    let client = root.credentials_with(CLIENT, options());
    let server = root.credentials_with(SERVER, options());
    let named = NamedClient::new(&provider(), &[root.der()], options()).unwrap();
    let [(one, _one), (two, _two), (three, _three)] = [(); 3].map(|()| duplex(64 * 1024));
    let (began, expected) = (Instant::now(), [id(SERVER)]);
    let connects = async {
        (
            connect(one, &client, &expected).await.unwrap_err(),
            began.elapsed(),
        )
    };
    let accepts = async { (accept(two, &server).await.unwrap_err(), began.elapsed()) };
    let by_name = async {
        let names = ["istiod"];
        (
            named.connect(three, &names).await.unwrap_err(),
            began.elapsed(),
        )
    };
    let (connects, accepts, by_name) = tokio::join!(connects, accepts, by_name);
    for (error, after) in [connects, accepts, by_name] {
        assert_eq!((error.kind(), after), (ErrorKind::Timeout, LIMIT));
    }
}

#[tokio::test]
async fn aes_128_is_used_when_the_client_prefers_it() {
    let root = Authority::root("root");
    let options = Options::default().cipher_preference(mesh_hbone::tls::CipherPreference::Aes128);
    let client = root.credentials_with(CLIENT, options);
    let (near, _far) = shake(&client, &root.credentials(SERVER), &[SERVER]).await;
    assert_eq!(
        near.unwrap().cipher_suite(),
        Some(CipherSuite::TLS13_AES_128_GCM_SHA256)
    );
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_provider_can() {
    let (near, far) = pair().await;
    let group = if provider().is_post_quantum() {
        NamedGroup::X25519MLKEM768
    } else {
        NamedGroup::X25519
    };
    assert_eq!(near.key_exchange(), Some(group));
    assert_eq!(far.key_exchange(), Some(group));
    // Which of the two it must be.
    assert_eq!(provider().is_post_quantum(), cfg!(feature = "aws-lc-rs"));
}

#[cfg(all(feature = "aws-lc-rs", feature = "ring"))]
#[tokio::test]
async fn the_two_providers_meet_in_x25519() {
    use mesh_hbone::tls::Credentials;

    let root = Authority::root("root");
    let bundle = root.leaf(CLIENT).bundle(&[&root]).unwrap();
    let client = Credentials::new(Provider::ring(), bundle, Options::default()).unwrap();
    let (near, far) = shake(&client, &root.credentials(SERVER), &[SERVER]).await;
    assert_eq!(near.unwrap().key_exchange(), Some(NamedGroup::X25519));
    assert_eq!(far.unwrap().key_exchange(), Some(NamedGroup::X25519));
}

#[tokio::test]
async fn the_client_hello_names_no_server_and_offers_only_h2_and_aes_gcm() {
    let client = Authority::root("root").credentials(CLIENT);
    let (near, mut far) = duplex(64 * 1024);
    let connecting = tokio::spawn(async move { connect(near, &client, &[id(SERVER)]).await });
    let mut acceptor = Acceptor::default();
    let accepted = loop {
        let mut bytes = vec![0; 4096];
        let count = far.read(&mut bytes).await.unwrap();
        acceptor.read_tls(&mut &bytes[..count]).unwrap();
        if let Some(accepted) = acceptor.accept().map_err(|(error, _)| error).unwrap() {
            break accepted;
        }
    };
    let hello = accepted.client_hello();
    assert_eq!(hello.server_name(), None);
    let alpn: Vec<_> = hello.alpn().unwrap().collect();
    assert_eq!(alpn, [b"h2"]);
    let suites: Vec<_> = hello
        .cipher_suites()
        .iter()
        .filter(|suite| **suite != CipherSuite::TLS_EMPTY_RENEGOTIATION_INFO_SCSV)
        .collect();
    assert_eq!(
        suites,
        [
            &CipherSuite::TLS13_AES_256_GCM_SHA384,
            &CipherSuite::TLS13_AES_128_GCM_SHA256
        ]
    );
    connecting.abort();
}

/// The error of our server, whose client is plain rustls.
async fn refuse(config: rustls::ClientConfig) -> Error {
    let server = Authority::root("root").credentials(SERVER);
    let (near, far) = duplex(64 * 1024);
    let connector = TlsConnector::from(Arc::new(config));
    let (_, refused) = tokio::join!(
        connector.connect(foreign::name(), near),
        accept(far, &server)
    );
    refused.unwrap_err()
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let error = refuse(foreign::client(None)).await;
    assert_eq!(error.kind(), ErrorKind::NoCertificate);
    assert_eq!(error.side(), Side::Downstream);
    assert!(error.is_authentication() && error.is_retry_safe());
}

#[tokio::test]
async fn a_client_with_only_chacha20_is_refused() {
    let leaf = Authority::root("root").leaf(CLIENT);
    let mut crypto = foreign::crypto();
    crypto
        .cipher_suites
        .retain(|suite| suite.suite() == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    assert_eq!(crypto.cipher_suites.len(), 1);
    let only_chacha = Arc::new(crypto.clone());
    let error = refuse(foreign::client_with(Some(&leaf), crypto)).await;
    assert_eq!(error.kind(), ErrorKind::Tls);

    // Neither can a provider that has nothing else be used by us.
    let root = Authority::root("root");
    let bundle = root.leaf(CLIENT).bundle(&[&root]).unwrap();
    let error =
        Credentials::new(Provider::from(only_chacha), bundle, Options::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
}

#[tokio::test]
async fn a_client_that_speaks_another_protocol_is_refused() {
    let root = Authority::root("root");
    let leaf = root.leaf(CLIENT);
    for alpn in [vec![b"http/1.1".to_vec()], Vec::new()] {
        let mut config = foreign::client(Some(&leaf));
        let offered = alpn.clone();
        config.alpn_protocols = alpn;
        let server = root.credentials(SERVER);
        let (near, far) = duplex(64 * 1024);
        let connector = TlsConnector::from(Arc::new(config));
        let (near, refused) = tokio::join!(
            connector.connect(foreign::name(), near),
            accept(far, &server)
        );
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::NoProtocol);
        if !offered.is_empty() {
            let told = near.unwrap_err();
            let told = told.get_ref().and_then(|error| error.downcast_ref());
            let alert = rustls::AlertDescription::NoApplicationProtocol;
            assert_eq!(told, Some(&rustls::Error::AlertReceived(alert)));
        }
    }
}

/// A ClientHello of TLS 1.2: no supported_versions, suites of that version.
const HELLO_TLS12: &[u8] = &[
    0x16, 3, 1, 0, 67, 1, 0, 0, 63, 3, 3, // record, message, version 1.2
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26,
    27, 28, 29, 30, 31, 32, // random
    0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2c, 1, 0, // no session, two suites, no compression
    0, 18, 0, 10, 0, 4, 0, 2, 0, 0x1d, // X25519
    0, 13, 0, 6, 0, 4, 4, 3, 8, 4, // ECDSA and PSS with SHA-256
];

#[tokio::test]
async fn tls_1_2_is_refused() {
    let server = Authority::root("root").credentials(SERVER);
    let (mut near, far) = duplex(4096);
    near.write_all(HELLO_TLS12).await.unwrap();
    let error = accept(far, &server).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls);
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    // Fatal, protocol_version.
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_times_out() {
    let root = Authority::root("root");
    let (near, _far) = duplex(64 * 1024);
    let error = accept(near, &root.credentials(SERVER)).await.unwrap_err();
    assert!(error.is_timeout());
    let (near, _far) = duplex(64 * 1024);
    let error = connect(near, &root.credentials(CLIENT), &[id(SERVER)])
        .await
        .unwrap_err();
    assert!(error.is_timeout() && error.is_retry_safe());
    assert_eq!(error.side(), Side::Upstream);
}

const CLOSE_NOTIFY: &[u8] = &[21, 3, 3, 0, 2, 1, 0];
const UNKNOWN_ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 255];

#[tokio::test]
async fn a_close_or_alert_at_any_point_of_the_handshake_ends_it() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let hello = client_hello(&root).await;
    // One record, whole.
    let length = u16::from_be_bytes([hello[3], hello[4]]);
    assert_eq!(hello.len(), 5 + usize::from(length));

    for cut in 0..=hello.len() {
        for alert in [CLOSE_NOTIFY, UNKNOWN_ALERT, &[]] {
            let (mut near, far) = duplex(64 * 1024);
            near.write_all(&hello[..cut]).await.unwrap();
            near.write_all(alert).await.unwrap();
            near.shutdown().await.unwrap();
            let error = accept(far, &server).await.unwrap_err();
            assert!(!error.is_timeout(), "cut at {cut}: {error:?}");
        }
    }
}

/// Passes on so many bytes, and counts them.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    most: usize,
    passed: &AtomicUsize,
) {
    let mut buffer = [0; 1024];
    loop {
        let room = most - passed.load(Ordering::Relaxed);
        let Ok(count @ 1..) = from.read(&mut buffer[..room.min(1024)]).await else {
            return;
        };
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
        passed.fetch_add(count, Ordering::Relaxed);
    }
}

/// Client and server with a way between them that ends after so many bytes up or down; how far it came.
async fn shake_cut(
    (client, server): (&Credentials, &Credentials),
    [up, down]: [usize; 2],
) -> (Result<(), Error>, Result<(), Error>, [usize; 2]) {
    let passed = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let ((near, at_client), (at_server, far)) = (duplex(64 * 1024), duplex(64 * 1024));
    let counts = Arc::clone(&passed);
    let way = tokio::spawn(async move {
        let (from_client, to_client) = split(at_client);
        let (from_server, to_server) = split(at_server);
        tokio::select! {
            () = pass(from_client, to_server, up, &counts[0]) => {}
            () = pass(from_server, to_client, down, &counts[1]) => {}
        }
    });
    let expected = [id(SERVER)];
    let near = async {
        let connected = connect(near, client, &expected).await;
        // What a server says when all is done is none of the handshake.
        (connected, passed[1].load(Ordering::Relaxed))
    };
    let both = async { tokio::join!(near, accept(far, server)) };
    let ((near, down), far) = tokio::time::timeout(Duration::from_secs(20), both)
        .await
        .expect("both end");
    way.abort();
    let up = passed[0].load(Ordering::Relaxed);
    (near.map(drop), far.map(drop), [up, down])
}

/// Wherever the bytes end, up or down, it is an error at each end that has not got all of them, and at once.
#[tokio::test]
async fn a_handshake_that_is_cut_anywhere_is_an_error_at_who_misses_something() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let ends = (&client, &server);
    const ALL: usize = usize::MAX;
    let (near, far, [up, down]) = shake_cut(ends, [ALL, ALL]).await;
    near.unwrap();
    far.unwrap();
    assert!(up > 1_000 && down > 1_000, "{up} {down}");
    // Signatures differ in length by a few bytes.
    let (up, down) = (up - 16, down - 16);
    for cut in (1..up).step_by(23).chain([up]) {
        let (near, far, _) = shake_cut(ends, [cut, ALL]).await;
        let error = far.unwrap_err();
        assert!(!error.is_timeout(), "{cut} of {up} up: {error:?}");
        // Its own last flight is all that a client need not see arrive.
        assert!(near.is_ok() || !near.unwrap_err().is_timeout());
    }
    for cut in (1..down).step_by(23).chain([down]) {
        let (near, far, _) = shake_cut(ends, [ALL, cut]).await;
        for error in [near.unwrap_err(), far.unwrap_err()] {
            assert!(!error.is_timeout(), "{cut} of {down} down: {error:?}");
        }
    }
}

/// Passes on so many records and, where more would follow, this in their place; how many there were. Open until one of the
/// two ends.
async fn pass_records(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    most: usize,
    instead: &[u8],
) -> usize {
    let mut passed = 0;
    let mut record = vec![0; 5];
    while from.read_exact(&mut record).await.is_ok() {
        let length = u16::from_be_bytes([record[3], record[4]]);
        record.resize(5 + usize::from(length), 0);
        if from.read_exact(&mut record[5..]).await.is_err() {
            break;
        }
        let said = if passed < most { &record } else { instead };
        if to.write_all(said).await.is_err() {
            break;
        }
        if passed >= most {
            let _ = copy(&mut from, &mut sink()).await;
            break;
        }
        passed += 1;
        record.truncate(5);
    }
    let _ = to.shutdown().await;
    passed
}

/// Client and server of whom one hears this in the place of what the other says after so many records.
async fn shake_instead(
    (client, server): (&Credentials, &Credentials),
    [up, down]: [usize; 2],
    instead: &'static [u8],
) -> (Result<(), Error>, Result<(), Error>, [usize; 2]) {
    let ((near, at_client), (at_server, far)) = (duplex(64 * 1024), duplex(64 * 1024));
    let way = tokio::spawn(async move {
        let (from_client, to_client) = split(at_client);
        let (from_server, to_server) = split(at_server);
        let up = pass_records(from_client, to_server, up, instead);
        let (up, down) = tokio::join!(up, pass_records(from_server, to_client, down, instead));
        [up, down]
    });
    let expected = [id(SERVER)];
    let near = async { connect(near, client, &expected).await.map(drop) };
    let far = async { accept(far, server).await.map(drop) };
    let (near, far) = tokio::join!(near, far);
    (near, far, way.await.unwrap())
}

/// CVE-2024-32650, CVE-2021-28683: whatever was said before, and though nothing more comes.
#[tokio::test(start_paused = true)]
async fn an_alert_in_the_place_of_any_record_of_the_handshake_ends_it() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let ends = (&client, &server);
    const ALL: usize = usize::MAX;
    let (near, far, [up, down]) = shake_instead(ends, [ALL, ALL], &[]).await;
    near.unwrap();
    far.unwrap();
    assert!(up > 2 && down > 2, "{up} {down}");
    for alert in [CLOSE_NOTIFY, UNKNOWN_ALERT] {
        // A warning before a version is agreed on is one of TLS 1.2, for which rustls goes on: as if nothing was said.
        let as_silence = |at| at == 0 && alert == CLOSE_NOTIFY;
        for at in 0..up {
            let (_, far, _) = shake_instead(ends, [at, ALL], alert).await;
            let error = far.expect_err("the server has not heard all");
            let silence = error.is_timeout();
            assert_eq!(silence, as_silence(at), "{at} of {up} up: {error:?}");
        }
        for at in 0..down {
            let (near, _, _) = shake_instead(ends, [ALL, at], alert).await;
            let error = near.expect_err("the client has not heard all");
            let silence = error.is_timeout();
            assert_eq!(silence, as_silence(at), "{at} of {down} down: {error:?}");
        }
    }
}
