//! Handshakes that no TLS library would begin, or go on with.

use std::net::{IpAddr, Ipv4Addr};

use mesh_hbone::tls::{Admission, accept, accept_with, connect};
use mesh_hbone::{Error, ErrorKind};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use crate::authority::{Authority, CLIENT, SERVER, id};

/// A handshake message that says it has 65 536 bytes.
fn too_long(kind: u8) -> Vec<u8> {
    vec![22, 3, 3, 0, 4, kind, 1, 0, 0]
}

/// A message in fragments, between which comes another record.
const INTERLEAVED: &[u8] = &[22, 3, 3, 0, 1, 1, 23, 3, 3, 0, 1, 0];

/// A ClientHello that has no key share yet, so that it is asked for another.
fn hello_without_share() -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        extensions.extend((body.len() as u16).to_be_bytes());
        extensions.extend_from_slice(body);
    };
    extension(43, &[2, 3, 4]); // TLS 1.3
    extension(10, &[0, 2, 0, 0x1d]); // X25519
    extension(13, &[0, 4, 4, 3, 8, 4]); // ECDSA and PSS with SHA-256
    extension(51, &[0, 0]); // no share
    extension(16, b"\0\x03\x02h2");
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 2, 1, 0]); // no session, AES-256-GCM, no compression
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![22, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

async fn refused(mut peer: DuplexStream, bytes: &[u8], ours: impl Future<Output = Error>) -> Error {
    let say = async {
        // Whoever has heard enough hangs up.
        let _ = peer.write_all(bytes).await;
        let _ = peer.shutdown().await;
        let _ = peer.read_to_end(&mut Vec::new()).await;
    };
    tokio::join!(ours, say).0
}

#[tokio::test]
async fn messages_that_are_too_long_or_torn_end_the_handshake_of_either_side() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let retried = [&hello_without_share()[..], INTERLEAVED].concat();
    for bytes in [&too_long(1)[..], INTERLEAVED, &retried] {
        let (near, far) = duplex(64 * 1024);
        let ours = async { accept(far, &server).await.unwrap_err() };
        let error = refused(near, bytes, ours).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{bytes:?}: {error}");

        let (near, far) = duplex(64 * 1024);
        let admission = Admission::default();
        let source = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ours = async {
            let accepted = accept_with(far, source, &server, &admission).await;
            accepted.unwrap_err()
        };
        refused(near, bytes, ours).await;
        assert_eq!(admission.handshakes(), 0);
    }
    for bytes in [&too_long(2)[..], INTERLEAVED] {
        let (near, far) = duplex(64 * 1024);
        let expected = [id(SERVER)];
        let ours = async { connect(near, &client, &expected).await.unwrap_err() };
        let error = refused(far, bytes, ours).await;
        assert_eq!(error.kind(), ErrorKind::Tls, "{bytes:?}: {error}");
    }
}

#[tokio::test]
async fn a_hello_without_a_share_is_asked_for_one() {
    let server = Authority::root("root").credentials(SERVER);
    let (mut near, far) = duplex(64 * 1024);
    let asks = async {
        near.write_all(&hello_without_share()).await.unwrap();
        let mut head = [0; 6];
        near.read_exact(&mut head).await.unwrap();
        near.shutdown().await.unwrap();
        head
    };
    let (head, accepted) = tokio::join!(asks, accept(far, &server));
    // A handshake record with a ServerHello.
    assert_eq!((head[0], head[5]), (22, 2));
    assert_eq!(accepted.unwrap_err().kind(), ErrorKind::Truncated);
}

proptest! {
    // Three quarters of what others try, and of `PROPTEST_CASES`: each case is two handshakes.
    #![proptest_config(ProptestConfig::with_cases((192 * ProptestConfig::default().cases).div_ceil(256)))]

    /// Whatever comes, both sides end, and with an error.
    #[test]
    fn nothing_that_a_peer_says_first_is_more_than_an_error(
        start in 0..4_usize,
        noise in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..6),
        records in proptest::collection::vec(
            (20..25_u8, proptest::collection::vec(any::<u8>(), 0..40)),
            0..6,
        ),
    ) {
        let mut bytes = match start {
            0 => hello_without_share(),
            1 => too_long(1),
            2 => too_long(2),
            _ => Vec::new(),
        };
        for (kind, payload) in records {
            bytes.extend([kind, 3, 3, 0, payload.len() as u8]);
            bytes.extend(payload);
        }
        for (at, to) in noise {
            let length = bytes.len().max(1);
            if let Some(byte) = bytes.get_mut(usize::from(at) % length) {
                *byte = to;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let root = Authority::root("root");
            let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
            let (near, far) = duplex(64 * 1024);
            refused(near, &bytes, async { accept(far, &server).await.unwrap_err() }).await;
            let (near, far) = duplex(64 * 1024);
            let expected = [id(SERVER)];
            refused(far, &bytes, async { connect(near, &client, &expected).await.unwrap_err() }).await;
        });
    }
}
